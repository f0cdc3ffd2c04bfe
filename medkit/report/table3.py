"""Table 3: accuracies of a run beside the published ones, and which differences are significant."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from medkit.evaluate.accuracy import CHANCE
from medkit.report import published
from medkit.report.markdown import (
    ALPHA,
    Table,
    in_percent,
    interval,
    listed,
    number,
    origin_note,
    percent,
    points,
    significance,
)
from medkit.report.published import TITLES
from medkit.runs import arms, run_json
from medkit.runs.storage import load

NEARLY_ALWAYS = 0.9  # share of a model's answers that are one letter
_HOW_READ = {True: "first-hand", False: "transcribed"}


def table3(run_dir: str | Path) -> Table:
    """Accuracies of the run's models beside the published ones, in percent, from mcq/summary.json."""
    summary = load(run_dir, "mcq/summary.json", ("models", "datasets", "average", "comparisons", "pubmedqa"))
    figures = pd.concat([_our_figures(summary), _published_figures()], ignore_index=True)
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


def _our_figures(summary: dict) -> pd.DataFrame:
    about = {"whose": "this run", "protocol": "most likely letter", "source": "this run"}
    rows = []
    for model in summary["models"]:
        panel = summary["pubmedqa"].get(model) or {}
        # benchmark -> the result, its chance, the share of the most frequent answer
        results = {
            name: (dataset["models"].get(model), dataset["chance"], dataset["majority"]["share"])
            for name, dataset in summary["datasets"].items()
        }
        if fold := panel.get("fold"):
            results["pubmedqa_fold"] = fold, CHANCE["pubmedqa"], fold["majority"]["share"]
        results["average"] = summary["average"][model], None, None
        for benchmark, (result, chance, majority) in results.items():
            if result:
                row = about | {"model": model, "benchmark": benchmark}
                row |= {"n": result["n"], "correct": result.get("correct")}
                shares = {"percent": result["accuracy"], "low": result["low"], "high": result["high"]}
                shares |= {"chance": chance, "majority": majority}
                rows.append(row | {key: None if x is None else 100 * x for key, x in shares.items()})
    columns = ["whose", "model", "protocol", "source", "benchmark", "n", "correct"]
    return pd.DataFrame(rows, columns=[*columns, "percent", "low", "high", "chance", "majority"])


def _published_figures() -> pd.DataFrame:
    """What the audit lists, and the averages."""
    audited = published.audit().rename(columns={"published": "printed"})
    averages = pd.DataFrame(
        {"model": row.model, "size": row.size, "protocol": row.protocol, "source": row.source}
        | {"benchmark": "average", "printed": row.percents["average"], "first_hand": row.first_hand}
        for row in published.ROWS
        if "average" in row.percents
    )
    rows = pd.concat([audited, averages], ignore_index=True)
    rows["model"] = (rows["model"] + " " + rows["size"]).str.strip()
    columns = ["whose", "model", "protocol", "source", "benchmark", "n", "percent", "low", "high", "printed"]
    rows = rows.assign(whose="published", percent=rows["printed"].astype(float))
    return rows[[*columns, "attainable", "first_hand"]]


def _page3(figures: pd.DataFrame) -> pd.DataFrame:
    titles = {name: TITLES[name] for name in published.SIZES}
    titles |= {"pubmedqa_fold": "PubMedQA, official fold", "average": "average"}
    scored = figures[(figures["whose"] == "this run") & (figures["benchmark"] != "average")]
    questions = scored.drop_duplicates("benchmark").set_index("benchmark")
    page = [
        {"model": label, **questions[column].map(form.format)}
        for label, column, form in (
            ("questions", "n", "{:,}"),
            ("chance", "chance", "{:.1f}"),
            ("most frequent answer", "majority", "{:.1f}"),
        )
    ]
    for (whose, model), rows in figures.groupby(["whose", "model"], sort=False):
        ours, about = whose == "this run", rows.iloc[0]
        row = {"model": f"**{arms.title(model)}**" if ours else model}
        row |= {one["benchmark"]: _cell3(one) for one in rows.to_dict("records")}
        row |= {"how read": "" if ours else _HOW_READ[about["first_hand"]]}
        page.append(row | {"protocol": about["protocol"], "source": about["source"]})
    frame = pd.DataFrame(page, columns=["model", *titles, "how read", "protocol", "source"]).fillna("")
    return frame.rename(columns=titles)


def _cell3(row: dict) -> str:
    if row["whose"] == "this run":
        return interval(row, "percent")
    printed = row["printed"] + "†" * (row["attainable"] is False)
    return printed if pd.isna(row["low"]) else f"{printed} [{row['low']:.1f}, {row['high']:.1f}]"


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
        forgetting(summary["comparisons"]),
    ]
    return "\n\n".join(filter(None, paragraphs))


def headline(summary: dict) -> str:
    """What the exam questions show, in a sentence each: accuracies, what stage 2 changed, which differences
    are significant; in percent and points."""
    datasets, tested = summary["datasets"], summary["comparisons"]
    names = listed([f"{TITLES[name]} (n = {dataset['n']:,})" for name, dataset in datasets.items()])
    shares = {
        model: [dataset["models"][model]["accuracy"] for dataset in datasets.values()]
        for model in summary["models"]
    }
    accuracies = _by_model(shares, lambda of_model: listed([*map(in_percent, of_model)]))
    sentences = [f"Percent of right answers on {names}: {accuracies}."]
    changes: dict[str, list[str]] = {}
    for row in _after_stage2(tested):
        change = f"{TITLES[row['dataset']]} {100 * row['difference']:+.1f}"
        changes.setdefault(row["shows"], []).append(change)
    if changes:
        each = "; ".join(f"{shows}, {listed(parts)}" for shows, parts in changes.items())
        sentences.append(f"What stage 2 changed, in points: {each}.")
    if tested:
        significant = [
            f"{TITLES[row['dataset']]}, {_pair(row)} ({100 * row['difference']:+.1f})"
            for row in tested
            if row["p_holm"] < ALPHA
        ]
        sentences.append(
            f"Significantly different after Holm's correction over {len(tested)} paired comparisons: "
            f"{'; '.join(significant) or 'none'}{'; the others are not' if significant else ''}."
        )
    return "\n\n".join(sentences)


def _pair(row: dict) -> str:
    return f"{arms.title(row['second'])} minus {arms.title(row['first'])}"


def _after_stage2(comparisons: list[dict]) -> list[dict]:
    """The comparisons with Med-Mix, which show what stage 2 changed."""
    return [row for row in comparisons if row["first"] == "med-mix"]


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
    each = "; ".join(f"{TITLES[row['dataset']]} {points(row)}" for row in summary["overconfidence"])
    notes = {model["note"] for models in summary["calibration"].values() for model in models.values()}
    sentences = [f"{note[0].upper()}{note[1:]}." for note in sorted(notes) if note]
    if each:
        sentences.insert(
            0, f"Mean confidence minus accuracy, after stage 2 minus after stage 1, in points: {each}."
        )
    return " ".join(sentences)


def option_order(summary: dict) -> str:
    """How often the order of the options decides the answer."""
    if not (orders := summary.get("option_order")):
        return "No question was asked under other orders of its options (mcq.permutations)."
    n = max(model["n"] for model in orders["all"].values())
    each = _by_model(orders["all"], lambda model: percent(model, "consistency"))
    return f"Percent of {n:,} questions that get the same option under every order: {each}."


def general(summary: dict) -> str:
    """What the training cost of general ability: questions and texts that are not medical."""
    if not (measured := summary.get("general")):
        return "General ability was not measured (mcq.general)."
    text = "{} percent of {:,} questions right, perplexity {}"
    each = _by_model(
        measured["models"],
        lambda model: text.format(percent(model), model["n"], interval(model, "perplexity")),
    )
    return f"On questions and texts that are not medical: {each}."


def _by_model(models: dict, text: Callable[[Any], str], separator: str = "; ") -> str:
    return separator.join(f"{arms.title(model)} {text(value)}" for model, value in models.items())


def near_ties(summary: dict) -> str:
    """How many answers were too close to trust in a batch and were scored again on their own."""
    scoring = summary["scoring"].values()
    rescored, flips, invalid = (
        sum(report[key] for report in scoring) for key in ("rescored", "flips", "invalid")
    )
    moved, bound = (max(report[key] for report in scoring) for key in ("largest_move", "tolerance"))
    return (
        f"{rescored:,} answers were near-ties (within {bound:.2g} nats) and were scored again on their own: "
        f"{flips:,} changed, and no lead of one letter over another by more than {moved:.2g} nats; "
        f"{invalid:,} were no finite number and count as wrong."
    )


def ties(summary: dict) -> str:
    """How many questions had two best letters with exactly the same logit, by model."""
    counted = {model: report for model, report in summary.get("scoring", {}).items() if "ties" in report}
    if not counted:
        return ""
    tied = {model: report for model, report in counted.items() if report["ties"]}
    rounded = [arms.title(model) for model, report in counted.items() if report.get("head_note")]
    note = f" Not in float32, but as the model rounds them: {', '.join(rounded)}." if rounded else ""
    counts = _by_model(tied, lambda report: f"{report['ties']:,}") or "none"
    return (
        f"Exact ties between the two best letters, which go to the first of them: {counts}; the letters' "
        f"logits are computed in float32.{note}"
    )


def one_letter(summary: dict) -> str:
    """Which models give one letter to nearly every question: such an accuracy is that letter's share of the
    right answers, whatever the model knows."""
    parts = []
    for name, dataset in summary["datasets"].items():
        constant = {
            model: result["usual"]
            for model, result in dataset["models"].items()
            if (result.get("usual") or {}).get("share", 0) >= NEARLY_ALWAYS
        }
        if constant:
            each = _by_model(constant, lambda usual: f"({usual['letter']}, {usual['share']:.0%})", ", ")
            parts.append(f"{TITLES[name]}: {each}")
    return f"Nearly always one letter, and its share of the answers. {'; '.join(parts)}." if parts else ""


def blind(summary: dict) -> str:
    """Which accuracies are no better than an answer that does not look at the question."""
    parts = []
    for name, dataset in summary["datasets"].items():
        bar = max(dataset["chance"], dataset["majority"]["share"])
        if below := [
            arms.title(model) for model, result in dataset["models"].items() if result["low"] <= bar
        ]:
            parts.append(f"{TITLES[name]} ({number(100 * bar)}): {', '.join(below)}")
    if not parts:
        return "Every accuracy's interval lies above chance and above the most frequent answer."
    return (
        "Not shown to be better than chance or always giving the most frequent answer, whichever is more "
        f"(in brackets, percent): {'; '.join(parts)}."
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
        rows = [
            (
                f"{_pair(row)}, {row['shows']} ({points(row)}; {row['second_only']:,} and "
                f"{row['first_only']:,} of {row['n']:,}; corrected p = {row['p_holm']:.2g})",
                row["p_holm"] < ALPHA,
            )
            for row in comparisons
            if row["dataset"] == name
        ]
        lines.append(f"- {significance(rows, TITLES[name])}")
    return "\n".join(lines)


def forgetting(comparisons: list[dict]) -> str:
    """What stage 2 cost of stage 1's skill, by benchmark and arm; "" where nothing shows it."""
    rows = _after_stage2(comparisons)
    each = "; ".join(f"{TITLES[row['dataset']]}, {row['shows']}: {points(row)}" for row in rows)
    return f"Forgetting, after stage 2 minus after stage 1: {each}." if each else ""


def pubmedqa_page(summary: dict) -> pd.DataFrame:
    """The PubMedQA panel of mcq/summary.json for reading: a row per model and fold, in percent."""
    page = [
        {"model": arms.title(model), "rows": rows, "n": f"{panel['n']:,}"}
        | {"accuracy": percent(panel), "macro-F1": in_percent(panel["macro_f1"])}
        | {"recall of maybe": percent(panel, "recall_maybe")}
        | {"never saying maybe": in_percent(panel["ceiling_without_maybe"])}
        | {f"always {panel['majority']['label']}": in_percent(panel["majority"]["share"])}
        for model, folds in summary["pubmedqa"].items()
        for rows, panel in folds.items()
        if panel
    ]
    return pd.DataFrame(page).fillna("")
