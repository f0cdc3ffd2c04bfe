"""Figure 13: what each arm of a replay study retains and gains, with one dot per seed."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from medkit.report.figures import ABOVE, BLUE, GREY, ORANGE, errorbars

# measure -> label of the y axis, with the better direction
AXES = {
    "accuracy": "retention: accuracy\nminus Med-Mix's, points\n(higher: more is kept)",
    "f1": "gain: BERTScore F1\nminus the base model's\n(higher is better)",
}
GROUPS: dict[str, dict] = {
    "k": {"color": BLUE, "marker": "o", "label": "only the replay share k differs"},
    "other": {"color": ORANGE, "marker": "D", "label": "another setting differs"},
}


def figure13(axes: Sequence[Axes], data: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Sequence[Axes]:
    """One ax per measure, one below the other: first the arms by replay share k, then the other arms.

    data: measure -> (study_page.points, study_page.intervals).
    """
    for ax, (measure, (points, intervals)) in zip(axes, data.items(), strict=True):
        _draw(ax, points, intervals)
        ax.set_ylabel(AXES[measure])
    top, bottom = axes[0], axes[-1]
    top.plot([], [], "o", color=GREY, markersize=4.5, alpha=0.5, label="one training seed")
    top.legend(**ABOVE, ncols=3)
    label = "k, the share of replayed rows in stage 2"
    if any(points["group"].eq("other").any() for points, _ in data.values()):
        label = f"left: {label}; right: arms with another setting"
    bottom.set_xlabel(label)
    for tick in bottom.get_xticklabels():
        tick.set(rotation=35, ha="right", rotation_mode="anchor")
    return axes


def _draw(ax: Axes, points: pd.DataFrame, intervals: pd.DataFrame) -> None:
    """Pale dots for the seeds; beside them the mean with its interval. A line joins the arms of k."""
    arms = points.drop_duplicates("arm").reset_index(drop=True)
    if arms.empty:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color=GREY)
        return
    k_arms = int((arms["group"] == "k").sum())
    position = {arm: i + (0.5 if i >= k_arms and k_arms else 0.0) for i, arm in enumerate(arms["arm"])}
    for group, style in GROUPS.items():
        seeds = points[points["group"] == group]
        if seeds.empty:
            continue
        x = seeds["arm"].map(position) - 0.12 + 0.06 * _jitter(seeds["seed"])
        dots: dict = {key: value for key, value in style.items() if key != "label"}
        ax.plot(x, seeds["difference"], linestyle="none", markersize=4.5, alpha=0.5, **dots)
        means = intervals.reindex(seeds["arm"].unique()).dropna(subset="difference")
        x_means = [position[arm] + 0.12 for arm in means.index]
        line = {"linestyle": "-" if group == "k" else "none", "linewidth": 1.2, "markersize": 7}
        errorbars(ax, x_means, means.to_dict("records"), "difference", **line, **style)
    ax.axhline(0, color="black", linewidth=0.8)
    if 0 < k_arms < len(arms):
        ax.axvline(k_arms - 0.25, color=GREY, linestyle=":", linewidth=1)
    ax.set_xticks(list(position.values()), list(arms["label"]))
    ax.set_xlim(-0.75, max(position.values()) + 0.75)  # so that two arms keep their dots together
    ax.grid(axis="x", visible=False)


def _jitter(seeds: pd.Series) -> pd.Series:
    """Offsets from -1 to 1, the same for a seed in every arm, so that equal values do not overlap."""
    rank = seeds.rank(method="dense")
    return (rank - rank.mean()) / max(1.0, rank.max() - rank.min()) * 2
