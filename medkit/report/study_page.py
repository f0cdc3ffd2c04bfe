"""What a study shows: its table, the points of Figure 13, and three sentences, all computed."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from medkit.evaluate import clustered
from medkit.report import markdown
from medkit.report.card import HUB_NAMES
from medkit.report.markdown import ALPHA, Table, in_percent, interval, listed, number
from medkit.report.published import TITLES
from medkit.report.study import BEFORE, MEASURES, SHARES, Study, dose, noise_floor
from medkit.runs import storage

# measure -> title of its column, factor to the unit it is printed in, digits
PRINTED = {
    "accuracy": ("retention: accuracy - Med-Mix's, points", 100, 1),
    "letter_loss": ("loss of the right letter - Med-Mix's, nats", 1, 2),
    "f1": ("gain: BERTScore F1 - base's", 1, 3),
    "words": ("words of an answer - base's", 1, 0),
    "general": ("general accuracy - Med-Mix's, points", 100, 1),
    "general_loss": ("general loss - Med-Mix's, nats a token", 1, 3),
}
FIGURE = ("accuracy", "f1")  # the measures of Figure 13: retention and gain
WHY = {
    "no replay": "the replay",
    "one setting": "one setting, or what fills the rows",
    "relearning": "a few steps on stage 1's rows",
}
BETWEEN = {"accuracy": "accuracy, points", "f1": "BERTScore F1", "general": "general accuracy, points"}


def table(study: Study, comparisons: pd.DataFrame) -> Table:
    """replay_study: an arm a row, and of every measure the difference with its interval, Holm's p and what
    was detectable. `figures` has every comparison (study.comparisons), with replay's shares."""
    shares = study.arms[[*SHARES]].add_prefix("share_of_")
    page = pd.DataFrame([_row(study, comparisons, arm) for arm in _ordered(study)])
    return Table(
        name="replay_study",
        title="Replay study",
        figures=comparisons.merge(shares, how="left", left_on="second", right_index=True),
        page=page,
        text="\n\n".join([*sentences(study, comparisons), _reading(study)]),
        note=markdown.BUILT_IN if study.builtin else "",
        short=page[["arm", "rows, %", *(PRINTED[measure][0] for measure in FIGURE)]],
    )


def _ordered(study: Study) -> list[str]:
    return list(dict.fromkeys([*dose(study), *study.compared]))


def _row(study: Study, comparisons: pd.DataFrame, arm: str) -> dict[str, str]:
    about = study.arms.loc[arm]
    cells = {"arm": arm, "seeds": f"{about['seeds']:.0f}"}
    cells |= {f"{name.replace('_', ' ')}, %": in_percent(about[name]) for name in SHARES}
    for measure, (title, factor, digits) in PRINTED.items():
        for row in _only(comparisons, kind="stage 1", measure=measure, second=arm).to_dict("records"):
            cells[title] = interval(row, "difference", digits, factor)
            if not math.isnan(row["p_holm"]):
                detectable = number(factor * row["detectable"], digits)
                cells[title] += f"; p {row['p_holm']:.2g}; detectable {detectable}"
        cells.setdefault(title, "")
    return cells


def pairs_page(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The comparisons between arms, as strings."""
    page = []
    for row in comparisons[comparisons["kind"] != "stage 1"].to_dict("records"):
        _, factor, digits = PRINTED[row["measure"]]
        cells = {"compared": _pair(row), "why": WHY[row["kind"]], "measure": BETWEEN[row["measure"]]}
        cells |= {"difference": interval(row, "difference", digits, factor)}
        cells |= {"p (Holm)": "" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}"}
        page.append(cells | {"detectable": number(factor * row["detectable"], digits)})
    return pd.DataFrame(page)


def check_page(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Differences in exam accuracy, in points, with the bootstrap's interval and the mixed model's."""
    rows = _only(comparisons, measure="accuracy")
    model = rows.assign(low=rows["model_low"], high=rows["model_high"])
    cells = {"compared": rows["second"] + " - " + rows["first"]}
    for name, intervals in {"bootstrap": rows, "mixed model": model}.items():
        cells[name] = intervals.apply(markdown.percent, axis=1, key="difference")
    return pd.DataFrame(cells)


def agreement(comparisons: pd.DataFrame) -> str:
    """In how many comparisons of exam accuracy both intervals say the same of zero."""
    rows = _only(comparisons, measure="accuracy").dropna(subset=["low", "model_low"])
    if rows.empty:
        return "No comparison has both intervals: with one seed an arm nothing is known of the spread."
    bootstrap, model = (rows[f"{source}low"].gt(0) | rows[f"{source}high"].lt(0) for source in ("", "model_"))
    others = rows[bootstrap != model]
    names = ", ".join(others["second"] + " - " + others["first"])
    agreed = f"{len(rows) - len(others)} of {len(rows)} comparisons{f'; not in {names}' if names else ''}"
    return f"Both intervals agree on whether there is a difference in {agreed}."


def noise_page(study: Study) -> pd.DataFrame:
    """The noise floor, as strings."""
    page = []
    for row in noise_floor(study).to_dict("records"):
        if row["measure"] in FIGURE:
            _, factor, digits = PRINTED[row["measure"]]
            cells = {"again": f"{row['arm']}, seed {row['seed']}"}
            cells |= {"changed": "nothing" if row["how"] == "same" else "the order of rows"}
            cells |= {"measure": MEASURES[row["measure"]][0], "n": f"{row['items']:,}"}
            cells |= {"items with another value": f"{row['changed']:.1%}"}
            page.append(cells | {"mean difference": f"{factor * row['difference']:+.{digits}f}"})
    return pd.DataFrame(page)


def points(study: Study, measure: str) -> pd.DataFrame:
    """What Figure 13 draws of a measure, an arm and seed a row: arm, label, group ("k" or "other"), seed,
    difference in the unit it is printed in."""
    _, factor, _ = PRINTED[measure]
    doses, rows = dose(study), []
    for arm in _ordered(study):
        by_seed = clustered.paired(study.grid(BEFORE[measure], measure), study.grid(arm, measure)).mean(
            axis=1
        )
        label = f"{study.arms.loc[arm, 'rows']:.0%}" if arm in doses else arm
        about = {"arm": arm, "label": label, "group": "k" if arm in doses else "other"}
        rows += [about | {"seed": seed, "difference": factor * mean} for seed, mean in by_seed.items()]
    return pd.DataFrame(rows, columns=["arm", "label", "group", "seed", "difference"])


def intervals(comparisons: pd.DataFrame, measure: str) -> pd.DataFrame:
    """difference, low and high of an arm in the unit it is printed in; the arm is the index."""
    rows = _only(comparisons, kind="stage 1", measure=measure).set_index("second")
    return rows[["difference", "low", "high"]] * PRINTED[measure][1]


def sentences(study: Study, comparisons: pd.DataFrame) -> list[str]:
    """Three: what was found, what was not, and for which model and how many seeds that holds."""
    return [_found(study, comparisons), _not_found(comparisons), _scope(study)]


def _found(study: Study, comparisons: pd.DataFrame) -> str:
    questions, title = study.grid("med-mix", "accuracy"), TITLES[study.benchmark]
    if questions.empty:
        return f"**Found**: letter accuracy on {title} is not in yet, so nothing is known of retention."
    grids = {arm: grid for arm in dose(study) if (grid := study.grid(arm, "accuracy")).size}
    levels = [f"{100 * np.nanmean(grid.to_numpy()):.1f}%" for grid in grids.values()]
    shares = [f"{in_percent(study.arms.loc[arm, 'rows'])}%" for arm in grids]
    text = (
        f"**Found**: {_model(study)} answered {100 * np.nanmean(questions.to_numpy()):.1f}% of "
        f"{questions.shape[1]:,} {title} questions correctly after stage 1, and after a stage 2 with "
        f"{listed(shares) or 'no share'} of its rows replayed {listed(levels) or 'no share'}"
    )
    if not comparisons["p_holm"].notna().any():
        return f"{text}."
    rows = _only(comparisons, measure="accuracy")
    significant = rows[rows["p_holm"] < ALPHA]
    between = [
        f"{_pair(row)} {100 * row['difference']:+.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        for row in significant[significant["kind"] != "stage 1"].to_dict("records")
    ]
    text += (
        f"; significant, in points: {', '.join(between)}" if between else "; no two arms differ significantly"
    )
    lost = significant[(significant["kind"] == "stage 1") & (significant["difference"] < 0)]["second"]
    return f"{text}; significantly below stage 1: {', '.join(lost) or 'no arm'}."


def _pair(row: dict) -> str:
    return f"{row['second']} - {row['first']}"


def _not_found(comparisons: pd.DataFrame) -> str:
    if not comparisons["p_holm"].notna().any():
        return "**Not found**: with one seed an arm nothing is known of the spread, so nothing was tested."
    parts = []
    kinds = {"accuracy": "exam accuracy", "f1": "BERTScore F1", "general": "general accuracy"}
    for measure, what in kinds.items():
        tested = comparisons[(comparisons["measure"] == measure) & comparisons["p_holm"].notna()]
        unseen = tested[tested["p_holm"] >= ALPHA]
        if len(unseen):
            names = ", ".join(map(_pair, unseen.to_dict("records")))
            names = "any comparison" if len(unseen) == len(tested) else names
            _, factor, digits = PRINTED[measure]
            ends = (unseen["detectable"].min(), unseen["detectable"].max())
            detectable = " to ".join(dict.fromkeys(number(factor * end, digits) for end in ends))
            parts.append(f"in {what} for {names} (detectable {detectable}{' points' * (factor == 100)})")
    if not parts:
        return "**Not found**: every difference that was tested is significant."
    return f"**Not found**: a significant difference {'; '.join(parts)}."


def _scope(study: Study) -> str:
    counts = study.arms.loc[study.compared, "seeds"]
    least, most = int(counts.min()), int(counts.max())
    seeds = f"{least} seed{'s' * (least > 1)}" if least == most else f"{least} to {most} seeds"
    rows = "the built-in corpus" if study.builtin else "these rows"
    done = len(study.planned) - len(study.missing)
    text = f"**Scope**: {_model(study)} on {rows}, {seeds} an arm, {done} of {len(study.planned)} runs"
    if study.missing:
        shown = ", ".join(study.missing[:5]) + (", ..." if len(study.missing) > 5 else "")
        text += f" (missing: {shown})"
    noise = [
        f"{what} moved accuracy by {100 * rows['difference'].abs().max():.1f} points "
        f"({rows['changed'].max():.1%} of answers)"
        for how, what in {"same": "the same run again", "order": "another order of rows"}.items()
        if len(rows := _only(noise_floor(study), measure="accuracy", how=how))
    ]
    text += f"; {', '.join(noise)}" if noise else ""
    return f"{text}; other sizes of model, and other data, were not tried."


def _model(study: Study) -> str:
    return HUB_NAMES.get(study.model, study.model).rpartition("/")[2]


def _reading(study: Study) -> str:
    return (
        "Intervals (95%) are over seeds and questions; with one seed there is none, as nothing is known of "
        "the spread. p is Holm's within a column, `detectable` what a test at 0.05 would have found with 80% "
        "power. An arm is compared with the models of its own seed on the same questions; retention is on "
        f"{TITLES[study.benchmark]}."
    )


def _only(rows: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


def write(study: Study, comparisons: pd.DataFrame) -> list[Path]:
    """tables/replay_study.csv and .md in the sweep's folder."""
    built, folder = table(study, comparisons), study.folder / "tables"
    parts = [built.markdown()]
    for title, cells in (("Between arms", pairs_page(comparisons)), ("Noise floor", noise_page(study))):
        if len(cells):
            parts.append(f"## {title}\n\n{markdown.grid(cells)}\n")
    csv = storage.write_csv(folder / "replay_study.csv", built.figures)
    return [csv, storage.write_text(folder / "replay_study.md", "\n".join(parts))]
