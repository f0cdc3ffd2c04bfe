"""What a study shows: its table, the points of Figure 13, and three sentences, all computed."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

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


def table(study: Study, found: pd.DataFrame) -> Table:
    """replay_study: an arm a row, and of every measure the difference with its interval, Holm's p and what
    was detectable. found: study.comparisons'. `figures` has every comparison, with replay's shares."""
    shares = study.arms[[*SHARES]].add_prefix("share_of_")
    figures = found.merge(shares, how="left", left_on="second", right_index=True)
    page = pd.DataFrame([_row(study, found, arm) for arm in _ordered(study)])
    return Table(
        name="replay_study",
        title="Replay study",
        figures=figures,
        page=page,
        text="\n\n".join([*sentences(study, found), _reading(study)]),
        note=markdown.BUILT_IN if study.builtin else "",
        short=page[["arm", "rows, %", *(PRINTED[measure][0] for measure in FIGURE)]],
    )


def _ordered(study: Study) -> list[str]:
    return list(dict.fromkeys([*dose(study), *study.compared]))


def _row(study: Study, found: pd.DataFrame, arm: str) -> dict[str, str]:
    about = study.arms.loc[arm]
    row = {"arm": arm, "seeds": f"{about['seeds']:.0f}"}
    row |= {f"{name.replace('_', ' ')}, %": in_percent(about[name]) for name in SHARES}
    for measure, (title, factor, digits) in PRINTED.items():
        for one in _only(found, kind="stage 1", measure=measure, second=arm).to_dict("records"):
            row[title] = interval(one, "difference", digits, factor)
            if not math.isnan(one["p_holm"]):
                detectable = number(factor * one["detectable"], digits)
                row[title] += f"; p {one['p_holm']:.2g}; detectable {detectable}"
        row.setdefault(title, "")
    return row


def pairs_page(found: pd.DataFrame) -> pd.DataFrame:
    """The comparisons between arms, as strings."""
    rows = []
    for one in found[found["kind"] != "stage 1"].to_dict("records"):
        _, factor, digits = PRINTED[one["measure"]]
        row = {"compared": _pair(one), "why": WHY[one["kind"]]}
        row |= {"measure": BETWEEN[one["measure"]]}
        row |= {"difference": interval(one, "difference", digits, factor)}
        row |= {"p (Holm)": "" if math.isnan(one["p_holm"]) else f"{one['p_holm']:.2g}"}
        rows.append(row | {"detectable": number(factor * one["detectable"], digits)})
    return pd.DataFrame(rows)


def check_page(found: pd.DataFrame) -> pd.DataFrame:
    """Differences in exam accuracy, in points, with the bootstrap's interval and the mixed model's."""
    own = _only(found, measure="accuracy")
    model = own[["difference"]].assign(low=own["model_low"], high=own["model_high"])
    cells = {"compared": own["second"] + " - " + own["first"]}
    for name, rows in {"bootstrap": own, "mixed model": model}.items():
        cells[name] = rows.apply(markdown.percent, axis=1, key="difference")
    return pd.DataFrame(cells)


def agreement(found: pd.DataFrame) -> str:
    """In how many comparisons of exam accuracy both intervals say the same of zero."""
    own = _only(found, measure="accuracy").dropna(subset=["low", "model_low"])
    if own.empty:
        return "No comparison has both intervals: with one seed an arm nothing is known of the spread."
    apart = [own[low].gt(0) | own[high].lt(0) for low, high in (("low", "high"), ("model_low", "model_high"))]
    same = apart[0] == apart[1]
    names = ", ".join(own["second"][~same] + " - " + own["first"][~same])
    text = f"Both intervals agree on whether there is a difference in {same.sum()} of {len(own)} comparisons"
    return f"{text}{f'; not in {names}' if names else ''}."


def noise_page(study: Study) -> pd.DataFrame:
    """The noise floor, as strings."""
    rows = []
    for one in noise_floor(study).to_dict("records"):
        if one["measure"] in FIGURE:
            _, factor, digits = PRINTED[one["measure"]]
            row = {"again": f"{one['arm']}, seed {one['seed']}"}
            row |= {"changed": "nothing" if one["how"] == "same" else "the order of rows"}
            row |= {"measure": MEASURES[one["measure"]][0], "n": f"{one['items']:,}"}
            row |= {"items with another value": f"{one['changed']:.1%}"}
            rows.append(row | {"mean difference": f"{factor * one['difference']:+.{digits}f}"})
    return pd.DataFrame(rows)


def points(study: Study, measure: str) -> pd.DataFrame:
    """What Figure 13 draws of a measure, an arm and seed a row: arm, label, group ("k" or "other"), seed,
    difference in the unit it is printed in."""
    _, factor, _ = PRINTED[measure]
    doses, rows = dose(study), []
    before = study.grid(BEFORE[measure], measure)
    for arm in _ordered(study):
        own = study.grid(arm, measure)
        shared = own.columns.intersection(before.columns)
        differences = (own[shared] - before.reindex(own.index)[shared]).mean(axis=1).dropna()
        label = f"{study.arms.loc[arm, 'rows']:.0%}" if arm in doses else arm
        row = {"arm": arm, "label": label, "group": "k" if arm in doses else "other"}
        rows += [row | {"seed": seed, "difference": factor * one} for seed, one in differences.items()]
    return pd.DataFrame(rows, columns=["arm", "label", "group", "seed", "difference"])


def intervals(found: pd.DataFrame, measure: str) -> pd.DataFrame:
    """difference, low and high of an arm in the unit it is printed in; the arm is the index."""
    own = _only(found, kind="stage 1", measure=measure).set_index("second")
    return own[["difference", "low", "high"]] * PRINTED[measure][1]


def sentences(study: Study, found: pd.DataFrame) -> list[str]:
    """Three: what was found, what was not, and for which model and how many seeds that holds."""
    return [_found(study, found), _not_found(found), _scope(study)]


def _found(study: Study, found: pd.DataFrame) -> str:
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
    if not found["p_holm"].notna().any():
        return f"{text}."
    own = _only(found, measure="accuracy")
    significant = own[own["p_holm"] < ALPHA]
    seen = [
        f"{_pair(one)} {100 * one['difference']:+.1f} [{100 * one['low']:.1f}, {100 * one['high']:.1f}]"
        for one in significant[significant["kind"] != "stage 1"].to_dict("records")
    ]
    text += f"; significant, in points: {', '.join(seen)}" if seen else "; no two arms differ significantly"
    lost = significant[(significant["kind"] == "stage 1") & (significant["difference"] < 0)]["second"]
    return f"{text}; significantly below stage 1: {', '.join(lost) or 'no arm'}."


def _pair(one: dict) -> str:
    return f"{one['second']} - {one['first']}"


def _not_found(found: pd.DataFrame) -> str:
    if not found["p_holm"].notna().any():
        return "**Not found**: with one seed an arm nothing is known of the spread, so nothing was tested."
    parts = []
    kinds = {"accuracy": "exam accuracy", "f1": "BERTScore F1", "general": "general accuracy"}
    for measure, what in kinds.items():
        tested = found[(found["measure"] == measure) & found["p_holm"].notna()]
        unseen = tested[tested["p_holm"] >= ALPHA]
        if len(unseen):
            names = ", ".join(map(_pair, unseen.to_dict("records")))
            names = "any comparison" if len(unseen) == len(tested) else names
            parts.append(f"in {what} for {names} (detectable {_range(unseen['detectable'], measure)})")
    if not parts:
        return "**Not found**: every difference that was tested is significant."
    return f"**Not found**: a significant difference {'; '.join(parts)}."


def _range(values: pd.Series, measure: str) -> str:
    _, factor, digits = PRINTED[measure]
    low, high = (f"{factor * end:.{digits}f}" for end in (values.min(), values.max()))
    unit = " points" if factor == 100 else ""
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


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


def _only(found: pd.DataFrame, **wanted: str) -> pd.DataFrame:
    for column, value in wanted.items():
        found = found[found[column] == value]
    return found


def write(study: Study, found: pd.DataFrame) -> list[Path]:
    """tables/replay_study.csv and .md in the sweep's folder."""
    made, folder = table(study, found), study.folder / "tables"
    parts = [made.markdown()]
    for title, cells in (("Between arms", pairs_page(found)), ("Noise floor", noise_page(study))):
        if len(cells):
            parts.append(f"## {title}\n\n{markdown.grid(cells)}\n")
    csv = storage.write_csv(folder / "replay_study.csv", made.figures)
    return [csv, storage.write_text(folder / "replay_study.md", "\n".join(parts))]
