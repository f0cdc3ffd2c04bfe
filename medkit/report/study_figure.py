"""Figure 13: what each arm of a replay study keeps and gains, each seed a dot."""

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.axes import Axes

from medkit.report.figures import ABOVE, BLUE, GREY, ORANGE, errorbars

# Of a measure: the y axis and which direction is better.
AXES = {
    "accuracy": "retention: accuracy\nminus Med-Mix's, points\n(higher: more is kept)",
    "f1": "gain: BERTScore F1\nminus the base model's\n(higher is better)",
}
GROUPS: dict[str, dict] = {
    "k": {"color": BLUE, "marker": "o", "label": "replay's share k alone differs"},
    "other": {"color": ORANGE, "marker": "D", "label": "another setting differs"},
}


def figure13(axes: Sequence[Axes], shown: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]) -> Sequence[Axes]:
    """An ax a measure, one below the other, with one x axis: the arms of replay's share k, then the others.

    shown: measure -> (study_page.points', study_page.intervals').
    """
    for ax, (measure, (points, intervals)) in zip(axes, shown.items(), strict=True):
        _draw(ax, points, intervals)
        ax.set_ylabel(AXES[measure])
    top, below = axes[0], axes[-1]
    top.plot([], [], "o", color=GREY, markersize=4.5, alpha=0.5, label="a training seed")
    top.legend(**ABOVE, ncols=3)
    below.set_xlabel(
        "left: k, the share of stage 2's rows that are replayed; right: arms with another setting"
    )
    for tick in below.get_xticklabels():
        tick.set(rotation=35, ha="right", rotation_mode="anchor")
    return axes


def _draw(ax: Axes, points: pd.DataFrame, intervals: pd.DataFrame) -> None:
    """A pale mark a seed, and the mean with its interval beside them. The arms of k are joined by a line."""
    arms = points.drop_duplicates("arm").reset_index(drop=True)
    if arms.empty:
        ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color=GREY)
        return
    doses = int((arms["group"] == "k").sum())
    at = {arm: i + (0.5 if i >= doses and doses else 0.0) for i, arm in enumerate(arms["arm"])}
    for group, look in GROUPS.items():
        seeds = points[points["group"] == group]
        if seeds.empty:
            continue
        x = seeds["arm"].map(at) - 0.12 + 0.06 * _spread(seeds["seed"])
        style: dict = {key: value for key, value in look.items() if key != "label"}
        ax.plot(x, seeds["difference"], linestyle="none", markersize=4.5, alpha=0.5, **style)
        means = intervals.reindex(seeds["arm"].unique()).dropna(subset="difference")
        places = [at[arm] + 0.12 for arm in means.index]
        line = {"linestyle": "-" if group == "k" else "none", "linewidth": 1.2, "markersize": 7}
        errorbars(ax, places, means.to_dict("records"), "difference", **line, **look)
    ax.axhline(0, color="black", linewidth=0.8)
    if 0 < doses < len(arms):
        ax.axvline(doses - 0.25, color=GREY, linestyle=":", linewidth=1)
    ax.set_xticks(list(at.values()), list(arms["label"]))
    ax.grid(axis="x", visible=False)


def _spread(seeds: pd.Series) -> pd.Series:
    """Seeds as -1 to 1, so that equal values stay apart; the same place for a seed in every arm."""
    rank = seeds.rank(method="dense")
    return (rank - rank.mean()) / max(1.0, rank.max() - rank.min()) * 2
