"""Table 3: accuracies of a run and the published ones, and which differences are significant."""

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

NEARLY_ALWAYS = 0.9  # a model's most frequent letter, as a share of its answers
_HOW_READ = {True: "first-hand", False: "transcribed"}


def table3(run_dir: str | Path) -> Table:
    """Accuracies of the run's models and the published ones, in percent, from mcq/summary.json."""
    summary = load(run_dir, "mcq/summary.json", ("models", "datasets", "average", "comparisons", "pubmedqa"))
    figures = pd.concat([_our_figures(summary), _published_figures()], ignore_index=True)
    figures = figures.astype({"n": "Int64", "correct": "Int64"})
    page = _page(figures)
    ours = page[page["source"].isin(("", "this run"))]  # n, chance and the run's models
    return Table(
        "table3",
        "Table 3: multiple-choice accuracy, percent",
        figures,
        page,
        _text(summary, run_json.read(Path(run_dir))),
        origin_note(run_dir),
        ours.drop(columns=["PubMedQA, official fold", "how read", "protocol", "source"]),
    )


def _our_figures(summary: dict) -> pd.DataFrame:
    common = {"whose": "this run", "protocol": "most likely letter", "source": "this run"}
    rows = []
    for model in summary["models"]:
        # benchmark -> (result, chance, share of the most frequent answer)
        results = {
            name: (dataset["models"].get(model), dataset["chance"], dataset["majority"]["share"])
            for name, dataset in summary["datasets"].items()
        }
        if fold := (summary["pubmedqa"].get(model) or {}).get("fold"):
            results["pubmedqa_fold"] = fold, CHANCE["pubmedqa"], fold["majority"]["share"]
        results["average"] = summary["average"][model], None, None
        for benchmark, (result, chance, majority) in results.items():
            if result:
                row = common | {"model": model, "benchmark": benchmark}
                row |= {"n": result["n"], "correct": result.get("correct")}
                shares = {"percent": result["accuracy"], "low": result["low"], "high": result["high"]}
                shares |= {"chance": chance, "majority": majority}
                rows.append(row | {key: None if x is None else 100 * x for key, x in shares.items()})
    columns = ["whose", "model", "protocol", "source", "benchmark", "n", "correct"]
    return pd.DataFrame(rows, columns=[*columns, "percent", "low", "high", "chance", "majority"])


def _published_figures() -> pd.DataFrame:
    """The audited accuracies and the published averages."""
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


def _page(figures: pd.DataFrame) -> pd.DataFrame:
    titles = {name: TITLES[name] for name in published.SIZES}
    titles |= {"pubmedqa_fold": "PubMedQA, official fold", "average": "average"}
    scored = figures[(figures["whose"] == "this run") & (figures["benchmark"] != "average")]
    benchmarks = scored.drop_duplicates("benchmark").set_index("benchmark")
    page = [
        {"model": "questions", **benchmarks["n"].map("{:,}".format)},
        {"model": "chance", **benchmarks["chance"].map("{:.1f}".format)},
        {"model": "most frequent answer", **benchmarks["majority"].map("{:.1f}".format)},
    ]
    for (whose, model), rows in figures.groupby(["whose", "model"], sort=False):
        ours, first = whose == "this run", rows.iloc[0]
        cells = {"model": f"**{arms.title(model)}**" if ours else model}
        cells |= {row["benchmark"]: _cell(row) for row in rows.to_dict("records")}
        cells |= {"how read": "" if ours else _HOW_READ[first["first_hand"]]}
        page.append(cells | {"protocol": first["protocol"], "source": first["source"]})
    frame = pd.DataFrame(page, columns=["model", *titles, "how read", "protocol", "source"]).fillna("")
    return frame.rename(columns=titles)


def _cell(row: dict) -> str:
    if row["whose"] == "this run":
        return interval(row, "percent")
    printed = row["printed"] + "†" * (row["attainable"] is False)
    return printed if pd.isna(row["low"]) else f"{printed} [{row['low']:.1f}, {row['high']:.1f}]"


def _text(summary: dict, info: dict | None) -> str:
    paragraphs = [
        "In brackets: 95% intervals (Wilson for a benchmark, bootstrap for the average).",
        "Intervals of published figures assume the test sizes of the paper's Table 1. † no whole number of "
        "right answers gives this figure (`medkit audit` shows the arithmetic).",
        no_better_than_chance(summary),
        constant_answers(summary),
        template_effect(summary, info),
        ties(summary),
        differences(summary["comparisons"]),
    ]
    return "\n\n".join(filter(None, paragraphs))


def headline(summary: dict) -> str:
    """Accuracies, changes in stage 2 and significant differences, a sentence or two each."""
    datasets, tested = summary["datasets"], summary["comparisons"]
    names = listed([f"{TITLES[name]} (n = {dataset['n']:,})" for name, dataset in datasets.items()])
    shares = {
        model: [dataset["models"][model]["accuracy"] for dataset in datasets.values()]
        for model in summary["models"]
    }
    accuracies = _by_model(shares, lambda model_shares: listed([*map(in_percent, model_shares)]))
    sentences = [f"Accuracy in percent on {names}: {accuracies}."]
    changes: dict[str, list[str]] = {}
    for row in _stage2_changes(tested):
        change = f"{TITLES[row['dataset']]} {100 * row['difference']:+.1f}"
        changes.setdefault(row["shows"], []).append(change)
    if changes:
        by_arm = "; ".join(f"{shows}, {listed(arm_changes)}" for shows, arm_changes in changes.items())
        text = f"Change after stage 2, in points: {by_arm}."
        if unlearned := [TITLES[name] for name in datasets if not _shows_skill(datasets[name], "med-mix")]:
            text += (
                f" On {listed(unlearned)} that need not be forgetting: Med-Mix is not shown to be better "
                "there than an answer that ignores the question."
            )
        sentences.append(text)
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


def _baseline(dataset: dict) -> float:
    """The accuracy of an answer that ignores the question: chance, or always the most frequent answer."""
    return max(dataset["chance"], dataset["majority"]["share"])


def _shows_skill(dataset: dict, model: str) -> bool:
    """Whether the interval of the model's accuracy is above `_baseline`."""
    result = dataset["models"].get(model)
    return result is not None and result["low"] > _baseline(dataset)


def _pair(row: dict) -> str:
    return f"{arms.title(row['second'])} minus {arms.title(row['first'])}"


def _stage2_changes(comparisons: list[dict]) -> list[dict]:
    """The comparisons with Med-Mix, which measure the effect of stage 2."""
    return [row for row in comparisons if row["first"] == "med-mix"]


def template_effect(summary: dict, info: dict | None) -> str:
    """A caveat for differences to a base model that was not instructed in the prompt's template."""
    if not info or info["recipe"]["model"]["chat_template"] != "chatml":
        return ""
    trained = [arms.title(name) for name in summary["models"] if name != "base" and name in arms.ARMS]
    if "base" not in summary["models"] or not trained:
        return ""
    return (
        "All models are prompted in ChatML, a template that the base was not tuned on: "
        f"{' or '.join(trained)} minus base combines the effects of the template and of the training."
    )


def calibration(summary: dict) -> str:
    """How stage 2 changes overconfidence."""
    changes = "; ".join(
        f"{TITLES[row['dataset']]} {percent(row, 'difference')}" for row in summary["overconfidence"]
    )
    notes = {model["note"] for models in summary["calibration"].values() for model in models.values()}
    sentences = [f"{note[0].upper()}{note[1:]}." for note in sorted(notes) if note]
    if changes:
        sentences.insert(
            0,
            "Change of overconfidence (mean confidence minus accuracy) from Med-Mix to Med-Nirvana, in "
            f"points: {changes}.",
        )
    return " ".join(sentences)


def option_order(summary: dict) -> str:
    """Each benchmark's accuracies under every order, and how often a model chooses the same option."""
    if not (orders := summary.get("option_order")):
        return "No question was asked with its options in another order (mcq.permutations)."
    lines = [
        "Percent right under each order of the options, the original first; in brackets, percent of "
        "questions with the same option under every order:",
        "",
    ]
    for name, models in orders.items():
        if name != "all":
            shares = _by_model(
                models,
                lambda model: (
                    f"{', '.join(map(in_percent, model['accuracies']))} ({in_percent(model['consistency'])})"
                ),
            )
            n = max(model["n"] for model in models.values())
            lines.append(f"- {TITLES[name]}, first {n:,} questions: {shares}.")
    return "\n".join(lines)


def general_ability(summary: dict) -> str:
    """Accuracy and perplexity on non-medical questions and texts, and lm-evaluation-harness's tasks."""
    sentences = []
    if general := summary.get("general"):
        text = "{} percent of {:,} questions right, perplexity {}"
        results = _by_model(
            general["models"],
            lambda model: text.format(percent(model), model["n"], interval(model, "perplexity")),
        )
        sentences.append(f"On non-medical questions and texts: {results}.")
    if tasks := summary.get("lm_eval"):
        results = _by_model(tasks, lambda by_task: listed([*map(_harness_task, by_task, by_task.values())]))
        sentences.append(f"By lm-evaluation-harness, each with its standard error: {results}.")
    return " ".join(sentences) or "General ability was not measured (mcq.general, mcq.lm_eval_tasks)."


def _harness_task(name: str, metrics: dict) -> str:
    """A task's first metric ("acc,none" with "acc_stderr,none"), as in `hellaswag acc 0.412 (0.005)`."""
    metric = next((key for key in metrics if "," in key and "_stderr," not in key), "")
    error = metrics.get(metric.replace(",", "_stderr,"))
    value = f"{metric.partition(',')[0]} {number(metrics.get(metric), 3)}"
    return f"{name} {value}{f' ({number(error, 3)})' if error is not None else ''}"


def _by_model(models: dict, text: Callable[[Any], str], separator: str = "; ") -> str:
    return separator.join(f"{arms.title(model)} {text(value)}" for model, value in models.items())


def near_ties(summary: dict) -> str:
    """How many answers were too close to trust in a batch and were scored again on their own."""
    scoring = summary["scoring"].values()
    rescored, flips, invalid, too_long = (
        sum(report.get(key, 0) for report in scoring) for key in ("rescored", "flips", "invalid", "too_long")
    )
    largest_move, tolerance = (
        max(report[key] for report in scoring) for key in ("largest_move", "tolerance")
    )
    return (
        f"{rescored:,} answers were near-ties (within {tolerance:.2g} nats) and were scored again on their "
        f"own: {flips:,} changed, and the lead of one letter over another moved by at most "
        f"{largest_move:.2g} nats. {invalid:,} answers were not finite, and {too_long:,} questions were too "
        "long for the model; these count as wrong."
    )


def ties(summary: dict) -> str:
    """How many questions had two best letters with exactly the same logit, by model."""
    counted = {model: report for model, report in summary.get("scoring", {}).items() if "ties" in report}
    if not counted:
        return ""
    tied = {model: report for model, report in counted.items() if report["ties"]}
    counts = _by_model(tied, lambda report: f"{report['ties']:,}") or "none"
    rounded = [arms.title(model) for model, report in counted.items() if report.get("head_note")]
    note = f", except for {', '.join(rounded)}, where the model rounds them" if rounded else ""
    return (
        f"Exact ties between the two best letters, won by the first of them: {counts}. The letters' logits "
        f"are computed in float32{note}."
    )


def constant_answers(summary: dict) -> str:
    """Which models give the same letter to nearly every question.

    Their accuracy is that letter's share of the right answers, whatever the model knows.
    """
    parts = []
    for name, dataset in summary["datasets"].items():
        constant = {
            model: result["usual"]
            for model, result in dataset["models"].items()
            if (usual := result.get("usual")) and usual["letter"] and usual["share"] >= NEARLY_ALWAYS
        }
        if constant:
            letters = _by_model(constant, lambda usual: f"({usual['letter']}, {usual['share']:.0%})", ", ")
            parts.append(f"{TITLES[name]}: {letters}")
    return f"Nearly all answers are one letter (its share in brackets). {'; '.join(parts)}." if parts else ""


def no_better_than_chance(summary: dict) -> str:
    """Which accuracies are not shown to be better than an answer that ignores the question."""
    parts = []
    for name, dataset in summary["datasets"].items():
        if models := [arms.title(model) for model in dataset["models"] if not _shows_skill(dataset, model)]:
            parts.append(f"{TITLES[name]} ({in_percent(_baseline(dataset))}): {', '.join(models)}")
    if not parts:
        return (
            "The interval of every accuracy is above chance and above always giving the most frequent answer."
        )
    return (
        "Not shown to be better than chance or than always giving the most frequent answer, whichever is "
        f"higher (in brackets, percent): {'; '.join(parts)}."
    )


def differences(comparisons: list[dict]) -> str:
    """Significant and other differences, one list item per benchmark."""
    if not comparisons:
        return "One model only: there is nothing to compare."
    lines = [
        f"Paired over the same questions: McNemar's exact test with Holm's correction over all "
        f"{len(comparisons)} comparisons, at {ALPHA}. In brackets: points with the paired bootstrap's 95% "
        "interval (Wilson's if all questions agree), and the questions that only the first-named model and "
        "only the other has right.",
        "",
    ]
    for name in dict.fromkeys(row["dataset"] for row in comparisons):
        results = [
            (
                f"{_pair(row)}, {row['shows']} ({points(row)}; {row['second_only']:,} and "
                f"{row['first_only']:,} of {row['n']:,}; corrected p = {row['p_holm']:.2g})",
                row["p_holm"] < ALPHA,
            )
            for row in comparisons
            if row["dataset"] == name
        ]
        lines.append(f"- {significance(results, TITLES[name])}")
    return "\n".join(lines)


def pubmedqa_page(summary: dict) -> pd.DataFrame:
    """The PubMedQA panel of mcq/summary.json as formatted percentages, one row per model and fold."""
    page = [
        {"model": arms.title(model), "rows": fold, "n": f"{panel['n']:,}"}
        | {"accuracy": percent(panel), "macro-F1": in_percent(panel["macro_f1"])}
        | {"recall of maybe": percent(panel, "recall_maybe")}
        | {"never saying maybe": in_percent(panel["ceiling_without_maybe"])}
        | {f"always {panel['majority']['label']}": in_percent(panel["majority"]["share"])}
        for model, folds in summary["pubmedqa"].items()
        for fold, panel in folds.items()
        if panel
    ]
    return pd.DataFrame(page).fillna("")
