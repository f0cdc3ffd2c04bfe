"""A study in print: its table, the points of Figure 13, and three computed sentences."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from medkit.evaluate import clustered
from medkit.report import markdown
from medkit.report.card import HUB_NAMES
from medkit.report.markdown import ALPHA, Table, in_percent, interval, listed, number
from medkit.report.published import TITLES
from medkit.report.study import MEASURES, REFERENCE, SHARES, Study, dose_arms, noise_floor
from medkit.runs import storage

# measure -> column title, factor to the printed unit, digits
PRINTED = {
    "accuracy": ("retention: accuracy minus Med-Mix's, points", 100, 1),
    "letter_loss": ("loss of the right letter minus Med-Mix's, nats", 1, 2),
    "f1": ("gain: BERTScore F1 minus the base's", 1, 3),
    "words": ("words per answer minus the base's", 1, 0),
    "general": ("general accuracy minus Med-Mix's, points", 100, 1),
    "general_loss": ("general loss minus Med-Mix's, nats per token", 1, 3),
}
FIGURE13 = ("accuracy", "f1")  # retention and gain
TESTED = {"accuracy": "exam accuracy", "f1": "BERTScore F1", "general": "general accuracy"}  # between arms
DIFFERS = {  # kind of comparison -> what differs between its two arms
    "no replay": "the replay, or what replaces it",
    "one setting": "one setting, or what fills the rows",
    "relearning": "a few steps on stage 1's rows",
}


def table(study: Study, comparisons: pd.DataFrame) -> Table:
    """replay_study: one row per arm with, for each measure, the difference and its interval, Holm's p and the
    detectable difference. `figures` has all comparisons, with the replay's shares."""
    shares = study.arms[[*SHARES]].add_prefix("share_of_")
    page = pd.DataFrame([_row(study, comparisons, arm) for arm in _ordered(study)])
    return Table(
        name="replay_study",
        title="Replay study",
        figures=comparisons.merge(shares, how="left", left_on="second", right_index=True),
        page=page,
        text="\n\n".join([*sentences(study, comparisons), _legend(study)]),
        note=markdown.BUILT_IN if study.builtin else "",
        short=page[["arm", "rows, %", *(PRINTED[measure][0] for measure in FIGURE13)]],
    )


def _ordered(study: Study) -> list[str]:
    return list(dict.fromkeys([*dose_arms(study), *study.compared]))


def _row(study: Study, comparisons: pd.DataFrame, arm: str) -> dict[str, str]:
    values = study.arms.loc[arm]
    cells = {"arm": arm, "seeds": f"{values['seeds']:.0f}"}
    cells |= {f"{name.replace('_', ' ')}, %": _share(values[name]) for name in SHARES}
    for measure, (title, factor, digits) in PRINTED.items():
        for row in _select(comparisons, kind="stage 1", measure=measure, second=arm).to_dict("records"):
            cells[title] = interval(row, "difference", digits, factor)
            if not math.isnan(row["p_holm"]):
                detectable = number(factor * row["detectable"], digits)
                cells[title] += f"; p {row['p_holm']:.2g}; detectable {detectable}"
        cells.setdefault(title, "")
    return cells


def _share(share: float) -> str:
    """In percent with one decimal, or with two digits below 0.1%: a replayed question has two tokens."""
    return f"{100 * share:.2g}" if 0 < share < 0.001 else in_percent(share)


def pairs_page(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The comparisons between arms, as strings."""
    page = []
    for row in comparisons[comparisons["kind"] != "stage 1"].to_dict("records"):
        _, factor, digits = PRINTED[row["measure"]]
        page.append(
            {
                "compared": _pair(row),
                "what differs": DIFFERS[row["kind"]],
                "measure": TESTED[row["measure"]] + ", points" * (factor == 100),
                "difference": interval(row, "difference", digits, factor),
                "p (Holm)": "" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}",
                "detectable": number(factor * row["detectable"], digits),
            }
        )
    return pd.DataFrame(page)


def check_page(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Differences in exam accuracy, in points, with the bootstrap interval and the mixed model's."""
    bootstrap = _select(comparisons, measure="accuracy")
    model = bootstrap.assign(low=bootstrap["model_low"], high=bootstrap["model_high"])
    cells = {"compared": bootstrap["second"] + " - " + bootstrap["first"]}
    for name, rows in {"bootstrap": bootstrap, "mixed model": model}.items():
        cells[name] = rows.apply(markdown.percent, axis=1, key="difference")
    return pd.DataFrame(cells)


def agreement(comparisons: pd.DataFrame) -> str:
    """How often both intervals of `check_page` exclude zero, or both include it."""
    rows = _select(comparisons, measure="accuracy").dropna(subset=["low", "model_low"])
    if rows.empty:
        return "No comparison has both intervals: exam accuracy needs several seeds per arm."
    bootstrap, model = (rows[f"{source}low"].gt(0) | rows[f"{source}high"].lt(0) for source in ("", "model_"))
    disagreeing = rows[bootstrap != model]
    names = ", ".join(map(_pair, disagreeing.to_dict("records")))
    count = f"{len(rows) - len(disagreeing)} of {len(rows)} comparisons{f'; not in {names}' if names else ''}"
    return f"Both intervals agree on whether there is a difference in {count}."


def noise_page(study: Study) -> pd.DataFrame:
    """The noise floor, as strings."""
    page = []
    for row in noise_floor(study).to_dict("records"):
        if row["measure"] in FIGURE13:
            _, factor, digits = PRINTED[row["measure"]]
            page.append(
                {
                    "repeated run": f"{row['arm']}, seed {row['seed']}",
                    "what differs": "nothing" if row["how"] == "same" else "the order of rows",
                    "measure": MEASURES[row["measure"]][0],
                    "n": f"{row['items']:,}",
                    "changed items": f"{row['changed']:.1%}",
                    "mean difference": f"{factor * row['difference']:+.{digits}f}",
                }
            )
    return pd.DataFrame(page)


def points(study: Study, measure: str) -> pd.DataFrame:
    """The dots of Figure 13, one row per arm and seed: arm, label, group ("k" or "other"), seed, and
    difference in the printed unit."""
    _, factor, _ = PRINTED[measure]
    k_arms, rows = dose_arms(study), []
    for arm in _ordered(study):
        differences = clustered.paired(study.grid(REFERENCE[measure], measure), study.grid(arm, measure))
        label = f"{study.arms.loc[arm, 'rows']:.0%}" if arm in k_arms else arm
        group = "k" if arm in k_arms else "other"
        rows += [
            {"arm": arm, "label": label, "group": group, "seed": seed, "difference": factor * mean}
            for seed, mean in differences.mean(axis=1).items()
        ]
    return pd.DataFrame(rows, columns=["arm", "label", "group", "seed", "difference"])


def intervals(comparisons: pd.DataFrame, measure: str) -> pd.DataFrame:
    """The means of Figure 13, in the printed unit: difference, low and high, indexed by arm."""
    rows = _select(comparisons, kind="stage 1", measure=measure).set_index("second")
    return rows[["difference", "low", "high"]] * PRINTED[measure][1]


def sentences(study: Study, comparisons: pd.DataFrame) -> list[str]:
    """What was found, what was not, and the scope: model, data, seeds and noise floor."""
    return [_found(study, comparisons), _not_found(comparisons), _scope(study)]


def _found(study: Study, comparisons: pd.DataFrame) -> str:
    questions, title = study.grid("med-mix", "accuracy"), TITLES[study.benchmark]
    if questions.empty:
        return f"**Found**: accuracy on {title} is not measured yet, so retention is unknown."
    grids = {arm: grid for arm in dose_arms(study) if (grid := study.grid(arm, "accuracy")).size}
    accuracies = [f"{100 * np.nanmean(grid.to_numpy()):.1f}%" for grid in grids.values()]
    shares = [f"{in_percent(study.arms.loc[arm, 'rows'])}%" for arm in grids]
    style, stage1 = "-style" if study.builtin else "", np.nanmean(questions.to_numpy())
    text = (
        f"**Found**: {_model(study)} answered {100 * stage1:.1f}% of {questions.shape[1]:,} {title}{style} "
        f"questions correctly after stage 1 (always giving the most frequent answer: "
        f"{in_percent(study.majority)}%)"
    )
    if grids:
        text += f", and {listed(accuracies)} after a stage 2 with {listed(shares)} of its rows replayed"
    if stage1 <= study.majority:
        text += ". Stage 1 is not above that, so this exam cannot show forgetting"
    if not comparisons["p_holm"].notna().any():
        return f"{text}."
    rows = _select(comparisons, measure="accuracy")
    significant = rows[rows["p_holm"] < ALPHA]
    between = [
        f"{_pair(row)} {100 * row['difference']:+.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in significant[significant["kind"] != "stage 1"].to_dict("records")
    ]
    below = rows[(rows["kind"] == "stage 1") & (rows["difference"] < 0)]
    listed_below = below[below["p_holm"] < ALPHA]["second"]
    text += (
        f". Significant differences between arms, in points: {', '.join(between) or 'none'}. "
        f"Arms significantly below stage 1: {', '.join(listed_below) or 'none'}"
    )
    others = below[(below["p_holm"] >= ALPHA) & (below["high"] < 0)]
    if len(others):
        names = ", ".join(
            f"{row['second']} {100 * row['difference']:+.1f}" for row in others.to_dict("records")
        )
        text += f"; only before the correction: {names} ({_detectable(others, 100, 1)} points)"
    return f"{text}."


def _detectable(rows: pd.DataFrame, factor: float, digits: int) -> str:
    bounds = (rows["detectable"].min(), rows["detectable"].max())
    return f"detectable {' to '.join(dict.fromkeys(number(factor * bound, digits) for bound in bounds))}"


def _not_found(comparisons: pd.DataFrame) -> str:
    if not comparisons["p_holm"].notna().any():
        return "**Not found**: with one seed per arm the spread is unknown, so nothing was tested."
    parts = []
    for measure, name in TESTED.items():
        tested = comparisons[(comparisons["measure"] == measure) & comparisons["p_holm"].notna()]
        null = tested[tested["p_holm"] >= ALPHA]
        if len(null):
            names = "any comparison" if len(null) == len(tested) else _names(null)
            _, factor, digits = PRINTED[measure]
            detectable = _detectable(null, factor, digits) + " points" * (factor == 100)
            parts.append(f"in {name} for {names} ({detectable})")
    if not parts:
        return "**Not found**: every tested difference is significant."
    meaning = "`detectable`: what Holm's first step finds with 80% power"
    return f"**Not found** ({meaning}): a significant difference {'; '.join(parts)}."


def _names(null: pd.DataFrame) -> str:
    """The comparisons with the arm without replay by name, and the number of the others."""
    named = [_pair(row) for row in _select(null, kind="no replay").to_dict("records")]
    others = len(null) - len(named)
    more = f"{others} {'other ' if named else ''}comparison{'s' * (others > 1)}"
    return listed([*named, *([more] if others else [])])


def _pair(row: dict) -> str:
    return f"{row['second']} - {row['first']}"


def _scope(study: Study) -> str:
    counts = study.arms.loc[study.compared, "seeds"]
    least, most = int(counts.min()), int(counts.max())
    seeds = f"{least} seed{'s' * (least > 1)}" if least == most else f"{least} to {most} seeds"
    rows = "the built-in corpus" if study.builtin else "these rows"
    done = len(study.planned) - len(study.missing)
    text = f"**Scope**: {_model(study)} on {rows}, {seeds} per arm, {done} of {len(study.planned)} runs"
    if study.missing:
        names = ", ".join(study.missing[:5]) + (", ..." if len(study.missing) > 5 else "")
        text += f" (missing: {names})"
    noise = [
        f"{change} (n = {len(rows)}) moved accuracy by up to {100 * rows['difference'].abs().max():.1f} "
        f"points and changed up to {rows['changed'].max():.1%} of answers"
        for how, change in {"same": "the same run again", "order": "another order of rows"}.items()
        if len(rows := _select(noise_floor(study), measure="accuracy", how=how))
    ]
    text += f". Noise floor: {', '.join(noise)}" if noise else ""
    return f"{text}. This sweep tried no other model and no other data."


def _model(study: Study) -> str:
    return HUB_NAMES.get(study.model, study.model).rpartition("/")[2]


def _legend(study: Study) -> str:
    return (
        "Each arm is compared with the models of its own seed on the same questions; retention is on "
        f"{TITLES[study.benchmark]}. 95% intervals cover seeds and questions and are not corrected for their "
        "number; one seed has none. p is Holm's, within a measure and a kind of comparison. `detectable` is "
        "the difference that Holm's first step at 0.05 finds with 80% power."
    )


def _select(rows: pd.DataFrame, **values: str) -> pd.DataFrame:
    for column, value in values.items():
        rows = rows[rows[column] == value]
    return rows


def write(study: Study, comparisons: pd.DataFrame) -> list[Path]:
    """Write tables/replay_study.csv and .md in the sweep's folder; return their paths."""
    built, folder = table(study, comparisons), study.folder / "tables"
    parts = [built.markdown()]
    for title, cells in (("Between arms", pairs_page(comparisons)), ("Noise floor", noise_page(study))):
        if len(cells):
            parts.append(f"## {title}\n\n{markdown.grid(cells)}\n")
    csv = storage.write_csv(folder / "replay_study.csv", built.figures)
    return [csv, storage.write_text(folder / "replay_study.md", "\n".join(parts))]
