"""Table 3: accuracies of a run beside the published ones, and which differences are significant."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medkit.evaluate.accuracy import CHANCE
from medkit.report import published
from medkit.report.markdown import ALPHA, Table, in_percent, origin_note, percent, significance, with_interval
from medkit.runs import arms, run_json
from medkit.runs.storage import load

NEARLY_ALWAYS = 0.9  # share of a model's answers that are one letter


def table3(run_dir: str | Path) -> Table:
    """Accuracies of the run's models beside the published ones, in percent, from mcq/summary.json."""
    summary = load(run_dir, "mcq/summary.json", ("models", "datasets", "average", "comparisons", "pubmedqa"))
    figures = pd.DataFrame(_our_figures(summary) + _published_figures())
    figures = figures.astype({"n": "Int64", "correct": "Int64"})
    page = _page3(figures)
    ours = page[page["source"].isin(("", "this run"))]  # questions, chance, the run's models
    return Table(
        "table3",
        "Table 3: multiple-choice accuracy, percent",
        figures,
        page,
        _text3(summary, run_json.read(Path(run_dir))),
        origin_note(run_dir),
        ours.drop(columns=["PubMedQA, official fold", "how read", "protocol", "source"]),
    )


def _our_figures(summary: dict) -> list[dict]:
    rows = []
    for model in summary["models"]:
        about = {"whose": "this run", "model": model, "protocol": "most likely letter", "source": "this run"}
        for name, dataset in summary["datasets"].items():
            majority = dataset["majority"]["share"]
            if own := dataset["models"].get(model):
                rows.append(about | _percent(name, own, dataset["chance"], majority))
        if fold := (summary["pubmedqa"].get(model) or {}).get("fold"):
            majority = fold["majority"]["share"]
            rows.append(about | _percent("pubmedqa_fold", fold, CHANCE["pubmedqa"], majority))
        rows.append(about | _percent("average", summary["average"][model], None, None))
    return rows


def _percent(benchmark: str, own: dict, chance: float | None, majority: float | None) -> dict:
    shares = {"percent": own["accuracy"], "low": own["low"], "high": own["high"]}
    shares |= {"chance": chance, "majority": majority}
    found = {"benchmark": benchmark, "n": own["n"], "correct": own.get("correct")}
    return found | {key: None if share is None else 100 * share for key, share in shares.items()}


def _published_figures() -> list[dict]:
    audited = published.audit()
    audited["model"] = [f"{row.model} {row.size}".strip() for row in audited.itertuples()]
    rows = [
        {"whose": "published", "model": row.model, "protocol": row.protocol, "source": row.source}
        | {"benchmark": row.benchmark, "n": row.n, "percent": float(row.published), "printed": row.published}
        | {"low": row.low, "high": row.high, "attainable": row.attainable, "first_hand": row.first_hand}
        for row in audited.itertuples()
    ]
    averages = [
        {"whose": "published", "model": f"{row.model} {row.size}".strip(), "benchmark": "average"}
        | {"protocol": row.protocol, "source": row.source, "first_hand": row.first_hand}
        | {"percent": float(row.percents["average"]), "printed": row.percents["average"]}
        for row in published.ROWS
        if "average" in row.percents
    ]
    return rows + averages


def _page3(figures: pd.DataFrame) -> pd.DataFrame:
    columns = [*published.SIZES, "pubmedqa_fold", "average"]
    titles = published.TITLES | {"pubmedqa_fold": "PubMedQA, official fold", "average": "average"}
    ours = figures[figures["whose"] == "this run"].drop_duplicates("benchmark").set_index("benchmark")
    heads = {
        "questions": ("n", ",.0f"),
        "chance": ("chance", ".1f"),
        "most frequent answer": ("majority", ".1f"),
    }
    page = []
    for label, (column, form) in heads.items():
        cells = {name: format(ours.loc[name, column], form) for name in columns[:-1] if name in ours.index}
        page.append({"model": label, **cells})
    for (whose, model), rows in figures.groupby(["whose", "model"], sort=False):
        cells = {row.benchmark: _cell3(row) for row in rows.itertuples()}
        about = rows.iloc[0]
        name = f"**{arms.title(model)}**" if whose == "this run" else model
        read = "" if whose == "this run" else "first-hand" if about["first_hand"] else "transcribed"
        page.append(
            {
                "model": name,
                **cells,
                "how read": read,
                "protocol": about["protocol"],
                "source": about["source"],
            }
        )
    frame = pd.DataFrame(page, columns=["model", *columns, "how read", "protocol", "source"]).fillna("")
    return frame.rename(columns=titles)


def _cell3(row) -> str:
    if row.whose == "this run":
        return with_interval(row.percent, row.low, row.high, 1)
    printed = f"{row.printed}†" if row.attainable is False else row.printed
    return printed if pd.isna(row.low) else f"{printed} [{row.low:.1f}, {row.high:.1f}]"


def _text3(summary: dict, info: dict | None) -> str:
    paragraphs = [
        "In brackets: 95% intervals, Wilson's for a benchmark, the bootstrap's for the average.",
        "Those of published figures take Table 1's test sizes. † no whole count of these gives this figure "
        "(`medkit audit` shows the arithmetic).",
        blind(summary),
        one_letter(summary),
        template(summary, info),
        ties(summary),
        differences(summary["comparisons"]),
    ]
    if lost := forgetting(summary["comparisons"]):
        paragraphs.append(lost)
    return "\n\n".join(filter(None, paragraphs))


def headline(summary: dict) -> str:
    """What the exam questions show, in a sentence each: accuracies, what stage 2 changed, which differences
    are significant; in percent and points."""
    datasets = summary["datasets"]
    names = _and([f"{published.TITLES[name]} (n = {own['n']:,})" for name, own in datasets.items()])
    accuracies = [
        f"{arms.title(model)} "
        + _and([in_percent(own["models"][model]["accuracy"]) for own in datasets.values()])
        for model in summary["models"]
    ]
    sentences = [f"Percent of right answers on {names}: {'; '.join(accuracies)}."]
    changes: dict[str, list[str]] = {}
    for row in summary["comparisons"]:
        if row["first"] == "med-mix":
            change = f"{published.TITLES[row['dataset']]} {100 * row['difference']:+.1f}"
            changes.setdefault(row["shows"], []).append(change)
    if changes:
        listed = "; ".join(f"{shows}, {_and(points)}" for shows, points in changes.items())
        sentences.append(f"What stage 2 changed, in points: {listed}.")
    if tested := summary["comparisons"]:
        significant = [_short(row) for row in tested if row["p_holm"] < ALPHA]
        sentences.append(
            f"Significantly different after Holm's correction over {len(tested)} paired comparisons: "
            f"{'; '.join(significant) or 'none'}{'; the others are not' if significant else ''}."
        )
    return "\n\n".join(sentences)


def _short(row: dict) -> str:
    first, second = (arms.title(row[side]) for side in ("first", "second"))
    return f"{published.TITLES[row['dataset']]}, {second} minus {first} ({100 * row['difference']:+.1f})"


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def template(summary: dict, info: dict | None) -> str:
    """What a difference to the base contains where it is asked in a template it was not instructed in."""
    if not info or info["recipe"]["model"]["chat_template"] != "chatml":
        return ""
    trained = [arms.title(name) for name in summary["models"] if name != "base" and name in arms.ARMS]
    if "base" not in summary["models"] or not trained:
        return ""
    return (
        "All models are asked in ChatML, in which the others were trained and the base was not instructed: "
        f"{' or '.join(trained)} minus base is the effect of the template and of the training together."
    )


def calibration(summary: dict) -> str:
    """Whether stage 2 makes the model surer than it should be."""
    each = [f"{published.TITLES[row['dataset']]} {_points(row)}" for row in summary["overconfidence"]]
    notes = {own["note"] for models in summary["calibration"].values() for own in models.values()} - {""}
    said = "Mean confidence minus accuracy, after stage 2 minus after stage 1, in points: "
    said = f"{said}{'; '.join(each)}. " if each else ""
    return said + " ".join(f"{note[0].upper()}{note[1:]}." for note in sorted(notes))


def option_order(summary: dict) -> str:
    """How often the order of the options decides the answer."""
    if not (found := summary.get("option_order")):
        return "No question was asked under other orders of its options (mcq.permutations)."
    each = [
        f"{arms.title(model)} {in_percent(own['consistency'], own['low'], own['high'])}"
        for model, own in found["all"].items()
    ]
    n = max(own["n"] for own in found["all"].values())
    return f"Percent of {n:,} questions that get the same option under every order: {'; '.join(each)}."


def general(summary: dict) -> str:
    """What the training cost of general ability: questions and texts that are not medical."""
    if not (found := summary.get("general")):
        return "General ability was not measured (mcq.general)."
    each = [
        f"{arms.title(model)} {percent(own)} percent of {own['n']:,} questions right, "
        f"perplexity {with_interval(own['perplexity'], own['perplexity_low'], own['perplexity_high'], 1)}"
        for model, own in found["models"].items()
    ]
    return f"On questions and texts that are not medical: {'; '.join(each)}."


def near_ties(summary: dict) -> str:
    """How many answers were too close to trust in a batch and were scored again on their own."""
    scoring = summary["scoring"].values()
    rescored, flips, invalid = (sum(own[key] for own in scoring) for key in ("rescored", "flips", "invalid"))
    moved, bound = (max(own[key] for own in scoring) for key in ("largest_move", "tolerance"))
    return (
        f"{rescored:,} answers were near-ties (within {bound:.2g} nats) and were scored again on their own: "
        f"{flips:,} changed, and no lead of one letter over another by more than {moved:.2g} nats; "
        f"{invalid:,} were no finite number and count as wrong."
    )


def ties(summary: dict) -> str:
    """How many questions had two best letters with exactly the same logit, by model."""
    counts = {model: own["ties"] for model, own in summary.get("scoring", {}).items() if "ties" in own}
    if not counts:
        return ""
    tied = "; ".join(f"{arms.title(model)} {count:,}" for model, count in counts.items() if count)
    rounded = [arms.title(m) for m, own in summary["scoring"].items() if own.get("head_note")]
    note = f" Not in float32, but as the model rounds them: {', '.join(rounded)}." if rounded else ""
    return (
        f"Exact ties between the two best letters, which go to the first of them: {tied or 'none'}; the "
        f"letters' logits are computed in float32.{note}"
    )


def one_letter(summary: dict) -> str:
    """Which models give one letter to nearly every question: such an accuracy is that letter's share of the
    right answers, whatever the model knows."""
    found = []
    for name, dataset in summary["datasets"].items():
        constant = [
            f"{arms.title(model)} ({own['usual']['letter']}, {own['usual']['share']:.0%})"
            for model, own in dataset["models"].items()
            if (own.get("usual") or {}).get("share", 0) >= NEARLY_ALWAYS
        ]
        if constant:
            found.append(f"{published.TITLES[name]}: {', '.join(constant)}")
    return f"Nearly always one letter, and its share of the answers. {'; '.join(found)}." if found else ""


def blind(summary: dict) -> str:
    """Which accuracies are no better than an answer that does not look at the question."""
    found = []
    for name, dataset in summary["datasets"].items():
        blind = max(dataset["chance"], dataset["majority"]["share"])
        below = [arms.title(model) for model, own in dataset["models"].items() if own["low"] <= blind]
        if below:
            found.append(f"{published.TITLES[name]} ({100 * blind:.1f}): {', '.join(below)}")
    if not found:
        return "Every accuracy's interval lies above chance and above the most frequent answer."
    return (
        "Not shown to be better than chance or always giving the most frequent answer, whichever is more "
        f"(in brackets, percent): {'; '.join(found)}."
    )


def differences(comparisons: list[dict]) -> str:
    """Per benchmark: the pairs whose corrected p is below ALPHA, and the others."""
    if not comparisons:
        return "One model only: there is nothing to compare."
    lines = [
        f"Paired over the same questions: McNemar's exact test with Holm's correction over all "
        f"{len(comparisons)} comparisons, at {ALPHA}; points with the paired bootstrap's 95% interval, and "
        "how many questions only the first named and only the other has right.",
        "",
    ]
    for name in dict.fromkeys(row["dataset"] for row in comparisons):
        rows = [(_compared(row), row["p_holm"] < ALPHA) for row in comparisons if row["dataset"] == name]
        lines.append(f"- {significance(rows, published.TITLES[name])}")
    return "\n".join(lines)


def _compared(row: dict) -> str:
    first, second = (arms.title(row[side]) for side in ("first", "second"))
    return (
        f"{second} minus {first}, {row['shows']} ({_points(row)}; {row['second_only']:,} and "
        f"{row['first_only']:,} of {row['n']:,}; corrected p = {row['p_holm']:.2g})"
    )


def forgetting(comparisons: list[dict]) -> str:
    """What stage 2 cost of stage 1's skill, by benchmark and arm."""
    each = [
        f"{published.TITLES[row['dataset']]}, {row['shows']}: {_points(row)}"
        for row in comparisons
        if row["first"] == "med-mix"
    ]
    return f"Forgetting, after stage 2 minus after stage 1: {'; '.join(each)}." if each else ""


def _points(row: dict) -> str:
    return f"{100 * row['difference']:+.1f}, {100 * row['low']:+.1f} to {100 * row['high']:+.1f}"


def pubmedqa_page(summary: dict) -> pd.DataFrame:
    """The PubMedQA panel of mcq/summary.json for reading: a row per model and fold, in percent."""
    page = []
    for model, folds in summary["pubmedqa"].items():
        for rows, panel in folds.items():
            if panel is None:
                continue
            recall = (panel["recall_maybe"], panel["recall_maybe_low"], panel["recall_maybe_high"])
            majority = panel["majority"]
            cells = {"model": arms.title(model), "rows": rows, "n": f"{panel['n']:,}"}
            cells |= {"accuracy": percent(panel), "macro-F1": in_percent(panel["macro_f1"])}
            cells |= {"recall of maybe": in_percent(*recall)}
            cells |= {"never saying maybe": in_percent(panel["ceiling_without_maybe"])}
            page.append(cells | {f"always {majority['label']}": in_percent(majority["share"])})
    return pd.DataFrame(page).fillna("")
