"""What notebooks 03 and 04 show: a prompt, accuracies, errors; scores, lengths, style."""

import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from medkit import prompts
from medkit.data import sources
from medkit.evaluate import accuracy, statistics
from medkit.evaluate.style import MARKERS
from medkit.records import MCQItem
from medkit.report import figures
from medkit.report.figures import TITLES
from medkit.report.markdown import in_percent, percent, with_interval
from medkit.runs import arms, run_json, storage
from medkit.runs.run_json import Run


def benchmarks(run: Run, items: Sequence[MCQItem]) -> pd.DataFrame:
    """Per benchmark: the split and why, n, chance, and what the most frequent answer would score."""
    rows = {}
    for name in dict.fromkeys(item.source for item in items):
        gold = [item.answer for item in items if item.source == name]
        letter, share = accuracy.majority(gold)
        part = sources.SOURCES[name].parts[run.recipe.data.reads(name, "eval")[1]]
        row = {"split": f"{part.config or part.split}: {part.why}", "in the original": f"{part.rows:,}"}
        if run.info["data"]["origin"] == "builtin":
            row["split"] = "the built-in corpus, held-out questions"
        row |= {"n": f"{len(gold):,}", "chance": f"{accuracy.CHANCE[name]:.1%}"}
        rows[TITLES[name]] = row | {"most frequent answer": f"{letter}, {share:.1%}"}
    return pd.DataFrame.from_dict(rows, orient="index")


def prompt(run: Run, tokenizer, item: MCQItem, show_text: bool) -> HTML:
    """The prompt as the model gets it; for a data set's rows its form, with names in place of the texts."""
    if not run_json.may_show(run, show_text):
        options = tuple(f"(option {letter})" for letter in item.letters)
        context = "(abstract)" if item.context else ""
        item = MCQItem("form", item.source, "(question)", options, item.answer, context)
    text = prompts.prompt(prompts.ChatFormat.from_tokenizer(tokenizer), item)
    return HTML(f"<pre style='white-space:pre-wrap'>{html.escape(text)}</pre>")


def accuracies(summary: dict) -> pd.DataFrame:
    """A row a model, a column a benchmark: percent with the 95% interval."""
    rows = {}
    for model in summary["models"]:
        cells = {
            f"{TITLES[name]}, n {dataset['n']:,}": percent(dataset["models"][model])
            for name, dataset in summary["datasets"].items()
        }
        rows[arms.title(model)] = cells | {"average": percent(summary["average"][model])}
    return pd.DataFrame.from_dict(rows, orient="index")


def comparisons(summary: dict) -> pd.DataFrame:
    """Differences in points, second minus first, with the discordant questions behind them."""
    rows = []
    for row in summary["comparisons"]:
        first, second = (arms.title(row[side]) for side in ("first", "second"))
        points = in_percent(row["difference"], row["low"], row["high"])
        shown = {"benchmark": TITLES[row["dataset"]], "difference": f"{second} minus {first}"}
        shown |= {"shows": row["shows"], "points": points}
        shown |= {"only the first right": row["first_only"], "only the second": row["second_only"]}
        rows.append(shown | {"p (McNemar)": f"{row['p']:.2g}", "p (Holm)": f"{row['p_holm']:.2g}"})
    return pd.DataFrame(rows)


def groups(summary: dict, dataset: str) -> pd.DataFrame:
    """Accuracy by subject or step: a row a group with its n, a column a model, largest group first."""
    rows = pd.DataFrame([row for row in summary["groups"] if row["dataset"] == dataset])
    if rows.empty:
        return rows
    rows["group"] = rows["group"].replace("", "not given")
    shown = rows.assign(percent=[percent(row) for row in rows.to_dict("records")])
    table = shown.pivot(index=["group", "n"], columns="model", values="percent")[summary["models"]]
    table = table.rename(columns=arms.title).sort_index(level=["n", "group"], ascending=[False, True])
    return table.reset_index().set_index("group").rename_axis(columns=None)


def confusions(summary: dict) -> Figure:
    """PubMedQA's answers, expected by predicted; a panel a model, on all rows and, where the official fold is
    among them, beside it on the fold."""
    found = [
        (folds[fold], f"{arms.title(model)}{', official fold' if fold == 'fold' else ''}")
        for model, folds in summary["pubmedqa"].items()
        for fold in ("all", "fold")
        if folds[fold]
    ]
    figure, axes = figures.new(width=3.3 * len(found), height=3.4, columns=len(found))
    for ax, (panel, title) in zip(np.ravel(axes), found, strict=True):
        figures.confusion(ax, panel, title)
    return figure


def clean(summary: dict, without: dict) -> pd.DataFrame:
    """Accuracy on all questions beside that on those which stand in no training row."""
    rows = []
    for name, dataset in without["datasets"].items():
        for model, own in dataset["models"].items():
            everything = summary["datasets"][name]["models"][model]
            row = {"benchmark": TITLES[name], "model": arms.title(model)}
            row |= {"n": everything["n"], "all": percent(everything), "n without": own["n"]}
            rows.append(row | {"without": percent(own)})
    return pd.DataFrame(rows)


def errors(run: Run, wrong: pd.DataFrame, items: Sequence[MCQItem], show_text: bool) -> pd.DataFrame:
    """The sampled errors with the letters' probabilities, and the question where it may be shown."""
    by_id = {(item.source, item.id): item for item in items}
    rows = []
    for row in wrong.itertuples():
        item = by_id[row.dataset, row.item_id]
        sure = {letter: getattr(row, f"logprob_{letter}") for letter in item.letters}
        shown = {"benchmark": TITLES[row.dataset], "question": row.item_id}
        if run_json.may_show(run, show_text):
            shown["question"] = item.question
        shown |= {"gold": row.gold, "predicted": row.predicted}
        rows.append(shown | {f"log p({letter})": f"{value:.2f}" for letter, value in sure.items()})
    return pd.DataFrame(rows).fillna("")


def consumer_scores(summary: dict) -> pd.DataFrame:
    """Per model BERTScore, rescaled where the encoder has a baseline, and ROUGE-L; 95% intervals."""
    rows = {}
    for model, own in summary["models"].items():
        row = {title: _mean(own[part]) for part, title in _SCORES.items()}
        if own["rescaled"]:
            row["F1, rescaled"] = _mean(own["rescaled"]["f1"])
        rows[arms.title(model)] = row
    return pd.DataFrame.from_dict(rows, orient="index")


_SCORES = {"precision": "precision", "recall": "recall", "f1": "F1", "rouge_l": "ROUGE-L"}


def lengths(summary: dict) -> pd.DataFrame:
    """Words of the answers, the physicians' last, and how many answers were cut off, empty, or cut for the
    scorer."""
    rows = {}
    for model, own in [*summary["models"].items(), ("physicians", summary["reference"])]:
        row = {"words, mean": _mean(own["words"], 0), "median": own["words"]["median"]}
        row |= {"longest": own["words"]["max"], "cut at the limit": own.get("cut", "")}
        row |= {"too long to be asked": own.get("too_long", "")}
        row |= {"empty": own.get("empty", ""), "longer than the encoder reads": own["truncated"]}
        rows[arms.title(model)] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def differences(summary: dict) -> pd.DataFrame:
    """Paired differences over the cases; `same length`: both answers cut to the shorter one's words."""
    rows = {}
    for model, own in summary["differences"].items():
        name = f"{arms.title(model)} minus {arms.title(own['minus'])}"
        row = {title: _mean(own[part]) for part, title in _SCORES.items()}
        row |= {"F1, same length": _mean(own["length_matched"]["f1"]), "words": _mean(own["words"], 0)}
        row |= {"cases": summary["n"], "cases with two answers": own["length_matched"]["n"]}
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def control(summary: dict) -> pd.DataFrame:
    """The same answers against another case's physician, and how much more their own physician gives."""
    rows = {
        arms.title(model): {
            "F1, own physician": _mean(summary["models"][model]["f1"]),
            "F1, another case's": _mean(own["f1"]),
            "difference": _mean(own["gap"]),
        }
        for model, own in (summary["control"] or {}).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def sampling(summary: dict) -> pd.DataFrame:
    """F1 of the greedy answer, the mean sampled one and the best sampled one, and what picking adds."""
    found = summary["sampling"] or {"models": {}, "differences": {}}
    titles = {"greedy": "greedy", "mean": "mean of the sampled", "best": "best of them"}
    rows = {}
    for model, own in found["models"].items():
        row = {title: _mean(own[kind]) for kind, title in titles.items()}
        row |= {"best minus mean": _mean(own["gain_of_best"])}
        rows[arms.title(model)] = row | {"best minus greedy": _mean(own["best_minus_greedy"])}
    for model, own in found["differences"].items():
        rows[f"{arms.title(model)}, difference"] = {t: _mean(own[kind]) for kind, t in titles.items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def styles(summary: dict) -> pd.DataFrame:
    """Percent of answers that show each marker, with Wilson's 95% interval, the physicians' last; and paired
    differences in points, each for itself, with the bootstrap's."""
    sides = [*summary["models"].items(), ("physicians", summary["reference"])]
    rows = {
        name: {"means": meaning}
        | {arms.title(model): _share(own["style"][name], summary["n"]) for model, own in sides}
        for name, (meaning, _) in MARKERS.items()
    }
    for name, row in rows.items():
        for model, own in summary["differences"].items():
            title = f"{arms.title(model)} minus {arms.title(own['minus'])}"
            row[title] = _points(own["style"][name])
        for model, own in summary["models"].items():
            row[f"{arms.title(model)} minus physicians"] = _points(own["style_minus_physicians"][name])
    return pd.DataFrame.from_dict(rows, orient="index")


def _points(found: dict) -> str:
    return in_percent(found["mean"], found["low"], found["high"])


def _share(share: float, n: int) -> str:
    return percent(storage.plain(statistics.wilson(round(share * n), n)))


def _mean(found: dict, digits: int = 4) -> str:
    return with_interval(found["mean"], found["low"], found["high"], digits)
