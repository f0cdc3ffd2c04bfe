"""What a study shows: its table, the points of Figure 13, and three sentences, all computed."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from medkit.report import markdown, published
from medkit.report.card import HUB_NAMES
from medkit.report.markdown import Table
from medkit.report.study import BEFORE, MEASURES, Study, dose, noise_floor
from medkit.runs import storage

ALPHA = 0.05
# measure -> title of its column, factor to the unit it is printed in, digits
PRINTED = {
    "accuracy": ("retention: accuracy - Med-Mix's, points", 100, 1),
    "f1": ("gain: BERTScore F1 - base's", 1, 3),
    "words": ("words of an answer - base's", 1, 0),
    "general": ("general accuracy - Med-Mix's, points", 100, 1),
    "general_loss": ("general loss - Med-Mix's, nats a token", 1, 3),
    "stage1_loss": ("stage-1 loss, change in stage 2", 1, 3),
}
FIGURE = {"accuracy": "retention", "f1": "gain"}


def table(study: Study, found: pd.DataFrame) -> Table:
    """replay_study: an arm a row, and of every measure the difference with its interval, Holm's p and what
    was detectable. found: study.comparisons'. `figures` has every comparison, with replay's shares."""
    shares = study.arms.rename(columns=lambda name: f"share_of_{name}" if name in SHARES else name)
    columns = [f"share_of_{name}" for name in SHARES]
    figures = found.merge(shares[columns], how="left", left_on="second", right_index=True)
    page = pd.DataFrame([_row(study, found, arm) for arm in _ordered(study)])
    short = [
        name for name in ("arm", "rows, %", *(PRINTED[measure][0] for measure in FIGURE)) if name in page
    ]
    return Table(
        name="replay_study",
        title="Replay study",
        figures=figures,
        page=page,
        text="\n\n".join([*sentences(study, found), _reading(study)]),
        note=markdown.BUILT_IN if study.builtin else "",
        short=page[short],
    )


SHARES = {"rows": "rows, %", "tokens": "tokens, %", "supervised_tokens": "supervised tokens, %"}


def _ordered(study: Study) -> list[str]:
    arms = dose(study)
    return arms + [arm for arm in study.arms.index if arm not in arms and arm not in study.repeats]


def _row(study: Study, found: pd.DataFrame, arm: str) -> dict[str, str]:
    about = study.arms.loc[arm]
    row = {"arm": arm, "seeds": f"{about['seeds']:.0f}"}
    row |= {title: markdown.in_percent(about[name]) for name, title in SHARES.items()}
    for measure, (title, factor, digits) in PRINTED.items():
        own = _only(found, kind="stage 1", measure=measure, second=arm)
        row[title] = _cell(own.iloc[0], factor, digits) if len(own) else ""
    return row


def _interval(one: pd.Series, factor: float, digits: int) -> str:
    value, low, high = (factor * one[end] for end in ("difference", "low", "high"))
    return markdown.with_interval(value, low, high, digits)


def _cell(one: pd.Series, factor: float, digits: int) -> str:
    text = _interval(one, factor, digits)
    if math.isnan(one["p_holm"]):
        return text
    return f"{text}; p {one['p_holm']:.2g}; detectable {factor * one['detectable']:.{digits}f}"


WHY = {
    "no replay": "the replay",
    "one setting": "one setting, or what fills the rows",
    "relearning": "a few steps on stage 1's rows",
}


def pairs_page(found: pd.DataFrame) -> pd.DataFrame:
    """The comparisons between arms, as strings."""
    rows = []
    for _, one in found[found["kind"] != "stage 1"].iterrows():
        _, factor, digits = PRINTED[one["measure"]]
        unit = {"accuracy": "accuracy, points", "general": "general accuracy, points"}
        rows.append(
            {
                "compared": f"{one['second']} - {one['first']}",
                "why": WHY[one["kind"]],
                "measure": unit.get(one["measure"], "BERTScore F1"),
                "difference": _interval(one, factor, digits),
                "p (Holm)": "" if math.isnan(one["p_holm"]) else f"{one['p_holm']:.2g}",
                "detectable": ""
                if math.isnan(one["detectable"])
                else f"{factor * one['detectable']:.{digits}f}",
            }
        )
    return pd.DataFrame(rows)


def check_page(found: pd.DataFrame) -> pd.DataFrame:
    """Differences in exam accuracy, in points, with the bootstrap's interval and the mixed model's."""
    own = _only(found, measure="accuracy")
    kinds = {"bootstrap": ("low", "high"), "mixed model": ("model_low", "model_high")}
    cells = {"compared": own["second"] + " - " + own["first"]}
    for name, (low, high) in kinds.items():
        ends = zip(own["difference"], own[low], own[high], strict=True)
        cells[name] = pd.Series([markdown.in_percent(*one) for one in ends], index=own.index)
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
    for _, one in noise_floor(study).iterrows():
        if one["measure"] in FIGURE:
            _, factor, digits = PRINTED[one["measure"]]
            rows.append(
                {
                    "again": f"{one['arm']}, seed {one['seed']}",
                    "changed": "nothing" if one["how"] == "same" else "the order of rows",
                    "measure": MEASURES[one["measure"]][0],
                    "n": f"{one['items']:,}",
                    "items with another value": f"{one['changed']:.1%}",
                    "mean difference": f"{factor * one['difference']:+.{digits}f}",
                }
            )
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
    questions, title = study.grid("med-mix", "accuracy"), _title(study)
    if questions.empty:
        return f"**Found**: letter accuracy on {title} is not in yet, so nothing is known of retention."
    levels = {arm: study.grid(arm, "accuracy").to_numpy() for arm in dose(study)}
    levels = {arm: f"{100 * np.nanmean(own):.1f}%" for arm, own in levels.items() if own.size}
    shares = [f"{markdown.in_percent(study.arms.loc[arm, 'rows'])}%" for arm in levels]
    text = (
        f"**Found**: {_model(study)} answered {100 * np.nanmean(questions.to_numpy()):.1f}% of "
        f"{questions.shape[1]:,} {title} questions correctly after stage 1, and after a stage 2 with "
        f"{_series(shares)} of its rows replayed {_series(list(levels.values()))}"
    )
    between = found[(found["kind"] != "stage 1") & (found["measure"] == "accuracy")]
    seen = [_signed(one) for _, one in between[between["p_holm"] < ALPHA].iterrows()]
    if not found["p_holm"].notna().any():
        return f"{text}."
    text += f"; significant, in points: {', '.join(seen)}" if seen else "; no two arms differ significantly"
    own = _only(found, kind="stage 1", measure="accuracy")
    lost = own[(own["p_holm"] < ALPHA) & (own["difference"] < 0)]["second"]
    return f"{text}; significantly below stage 1: {', '.join(lost) or 'no arm'}."


def _series(parts: list[str]) -> str:
    return ", ".join(parts[:-1]) + (" and " if len(parts) > 1 else "") + parts[-1] if parts else "no share"


def _signed(one: pd.Series) -> str:
    middle, low, high = (100 * one[end] for end in ("difference", "low", "high"))
    return f"{one['second']} - {one['first']} {middle:+.1f} [{low:.1f}, {high:.1f}]"


def _not_found(found: pd.DataFrame) -> str:
    if not found["p_holm"].notna().any():
        return "**Not found**: with one seed an arm nothing is known of the spread, so nothing was tested."
    parts = []
    for measure, what in (
        ("accuracy", "in exam accuracy"),
        ("f1", "in BERTScore F1"),
        ("general", "in general accuracy"),
    ):
        tested = found[(found["measure"] == measure) & found["p_holm"].notna()]
        unseen = tested[tested["p_holm"] >= ALPHA]
        if len(unseen):
            names = (f"{one['second']} - {one['first']}" for _, one in unseen.iterrows())
            listed = "any comparison" if len(unseen) == len(tested) else ", ".join(names)
            parts.append(f"{what} for {listed} (detectable {_range(unseen['detectable'], measure)})")
    if not parts:
        return "**Not found**: every difference that was tested is significant."
    return f"**Not found**: a significant difference {'; '.join(parts)}."


def _range(values: pd.Series, measure: str) -> str:
    _, factor, digits = PRINTED[measure]
    low, high = (f"{factor * end:.{digits}f}" for end in (values.min(), values.max()))
    unit = " points" if factor == 100 else ""
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _scope(study: Study) -> str:
    counts = study.arms.drop(index=list(study.repeats))["seeds"]
    least, most = int(counts.min()), int(counts.max())
    seeds = f"{least} seed{'s' * (least > 1)}" if least == most else f"{least} to {most} seeds"
    rows = "the built-in corpus" if study.builtin else "these rows"
    done = len(study.planned) - len(study.missing)
    text = f"**Scope**: {_model(study)} on {rows}, {seeds} an arm, {done} of {len(study.planned)} runs"
    if study.missing:
        shown = ", ".join(study.missing[:5]) + (", ..." if len(study.missing) > 5 else "")
        text += f" (missing: {shown})"
    if noise := _noise(study):
        text += f"; {noise}"
    return f"{text}; other sizes of model, and other data, were not tried."


def _noise(study: Study) -> str:
    own = noise_floor(study)
    own = own[own["measure"] == "accuracy"]
    names = {"same": "the same run again", "order": "another order of rows"}
    return ", ".join(
        f"{names[how]} moved accuracy by {100 * rows['difference'].abs().max():.1f} points "
        f"({rows['changed'].max():.1%} of answers)"
        for how, rows in own.groupby("how", sort=False)
    )


def _model(study: Study) -> str:
    return HUB_NAMES.get(study.model, study.model).rpartition("/")[2]


def _title(study: Study) -> str:
    return published.TITLES.get(study.benchmark, study.benchmark)


def _reading(study: Study) -> str:
    return (
        "Intervals (95%) are over seeds and questions; with one seed there is none, as nothing is known of "
        "the spread. p is Holm's within a column, `detectable` what a test at 0.05 would have found with 80% "
        "power. An arm is compared with the models of its own seed on the same questions; retention is on "
        f"{_title(study)}."
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
