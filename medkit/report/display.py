"""What notebooks 03 to 06 show: settings, benchmarks, a prompt, accuracies, errors, scores, style."""

import html
from collections.abc import Mapping, Sequence

import pandas as pd
from IPython.display import HTML
from nbconvert.filters import markdown2html

from medkit import prompts, recipes
from medkit.data.sources import SOURCES
from medkit.evaluate import accuracy, statistics
from medkit.evaluate.style import MARKERS
from medkit.records import ConsumerQuery, MCQItem
from medkit.report import tables
from medkit.report.figures import TITLES
from medkit.report.markdown import interval, percent
from medkit.runs import arms, run_json, storage
from medkit.runs.run_json import Run, may_show


def whole(frame: pd.DataFrame) -> HTML:
    """A table with every row, and every text to its end: pandas shows sixty rows and fifty characters."""
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html())


def details(summary: str, *parts: pd.DataFrame | str) -> HTML:
    """One line and, for the reader who opens it, tables and Markdown."""
    shown = (whole(part).data if isinstance(part, pd.DataFrame) else markdown2html(part) for part in parts)
    return HTML(f"<details><summary>{_escaped(summary)}</summary>{''.join(shown)}</details>")


def settings(run: Run) -> HTML:
    """Where the run's settings differ from the paper's, side by side; behind one line each."""
    fields, info = recipes.flat(run.recipe), run_json.latest(run.info)
    paper = recipes.flat(recipes.get("paper"))
    differing = {
        name: {"the paper": str(paper[name]), "this run": str(value)}
        for name, value in fields.items()
        if value != paper[name] and name not in ("name", "about")
    }
    everything = {
        **fields,
        "rows come from": run.info["data"]["origin"],
        **{f"version of {name}": version for name, version in info["versions"].items() if version},
        **{f"machine: {name}": value for name, value in info["hardware"].items()},
        "commit": info["git"].get("commit"),
    }
    everything = pd.DataFrame({"value": {name: str(value) for name, value in everything.items()}})
    summary = f"Settings: {len(differing)} of {len(fields) - 2} differ from the paper's"
    first = details(
        f"{summary} (recipe {run.recipe.name})", pd.DataFrame.from_dict(differing, orient="index")
    )
    return HTML(first.data + details("Every setting, the versions and the machine", everything).data)


def before_and_after(run: Run, item: MCQItem, before: str, after: str, show_text: bool) -> pd.DataFrame:
    """The two answers to one question, and the right one; an answer can repeat its question, so that it is
    shown where the question may be."""
    if not may_show(run, show_text):
        before, after = (f"{len(text.split())} words, not shown" for text in (before, after))
    rows = {"base model": before, "after stage 1": after, "right answer": item.answer}
    return pd.DataFrame({"answer": rows})


def benchmarks(run: Run, items: Sequence[MCQItem]) -> pd.DataFrame:
    """Per benchmark: the split and why, n, chance, and what the most frequent answer would score."""
    rows = {}
    for name in dict.fromkeys(item.source for item in items):
        gold = [item.answer for item in items if item.source == name]
        letter, share = accuracy.majority(gold)
        part = SOURCES[name].parts[run.recipe.data.source_part(name, "eval")[1]]
        row = {"split": f"{part.config or part.split}: {part.why}", "in the original": f"{part.rows:,}"}
        if run.info["data"]["origin"] == "builtin":
            row["split"] = "the built-in corpus, held-out questions"
        row |= {"n": f"{len(gold):,}", "chance": f"{accuracy.CHANCE[name]:.1%}"}
        rows[TITLES[name]] = row | {"most frequent answer": f"{letter}, {share:.1%}"}
    return pd.DataFrame.from_dict(rows, orient="index")


def prompt(run: Run, tokenizer, item: MCQItem, show_text: bool) -> HTML:
    """The prompt as the model gets it; for a data set's rows its form, with names in place of the texts."""
    if not may_show(run, show_text):
        options = tuple(f"(option {letter})" for letter in item.letters)
        context = "(abstract)" if item.context else ""
        item = MCQItem("form", item.source, "(question)", options, item.answer, context)
    text = prompts.prompt(prompts.ChatFormat.from_tokenizer(tokenizer), item)
    return HTML(f"<pre style='white-space:pre-wrap'>{html.escape(text)}</pre>")


def comparisons(summary: dict) -> pd.DataFrame:
    """Differences in points, second minus first, with the discordant questions behind them."""
    return pd.DataFrame(
        {
            "benchmark": TITLES[row["dataset"]],
            "difference": f"{arms.title(row['second'])} minus {arms.title(row['first'])}",
            "shows": row["shows"],
            "points": percent(row, "difference"),
            "only the first right": row["first_only"],
            "only the second": row["second_only"],
            "p (McNemar)": f"{row['p']:.2g}",
            "p (Holm)": f"{row['p_holm']:.2g}",
        }
        for row in summary["comparisons"]
    )


def groups(summary: dict) -> HTML:
    """Accuracy by MedMCQA's subject and MedQA's step: a line a benchmark, and behind it a row a group, the
    largest first."""
    shown = ""
    for dataset, kind in (("medmcqa", "subject"), ("medqa", "step")):
        rows = pd.DataFrame([row for row in summary["groups"] if row["dataset"] == dataset])
        if rows.empty:
            continue
        rows["group"] = rows["group"].replace("", "not given")
        rows["percent"] = [percent(row) for row in rows.to_dict("records")]
        table = rows.pivot(index=["group", "n"], columns="model", values="percent")[summary["models"]]
        table = table.rename(columns=arms.title).sort_index(level=["n", "group"], ascending=[False, True])
        sizes = table.index.get_level_values("n")
        table = table.reset_index().set_index("group").rename_axis(columns=None)
        line = f"{TITLES[dataset]} by {kind}: {len(sizes)}, with {sizes.min():,} to {sizes.max():,} questions"
        shown += details(line, table).data
    return HTML(shown)


def contamination(summary: dict) -> HTML:
    """How many questions appear in training rows, and behind it the accuracies with and without them."""
    if not summary["contamination_known"]:
        return HTML("<p>This run has no training rows in which the questions could be looked for.</p>")
    without = summary["without_contaminated"]
    left_out = sum(without["left_out"].values())
    asked = sum(of["n"] for of in summary["datasets"].values())
    line = f"{left_out:,} of {asked:,} questions appear in a training row"
    return details(f"{line}: accuracy without them", clean(summary, without)) if left_out else details(line)


def clean(summary: dict, without: dict) -> pd.DataFrame:
    """Accuracy on all questions beside that on those that appear in no training row."""
    rows = []
    for name, dataset in without["datasets"].items():
        for model, result in dataset["models"].items():
            everything = summary["datasets"][name]["models"][model]
            row = {"benchmark": TITLES[name], "model": arms.title(model)}
            row |= {"n": everything["n"], "all": percent(everything), "n without": result["n"]}
            rows.append(row | {"without": percent(result)})
    return pd.DataFrame(rows)


def errors(run: Run, wrong: pd.DataFrame, items: Sequence[MCQItem], show_text: bool) -> pd.DataFrame:
    """The sampled errors with the letters' log-probabilities, and the question where it may be shown."""
    by_id = {(item.source, item.id): item for item in items}
    rows = []
    for row in wrong.itertuples():
        item = by_id[row.dataset, row.item_id]
        question = item.question if may_show(run, show_text) else row.item_id
        shown = {"benchmark": TITLES[row.dataset], "question": question}
        shown |= {"gold": row.gold, "predicted": row.predicted}
        rows.append(shown | {f"log p({x})": f"{getattr(row, f'logprob_{x}'):.2f}" for x in item.letters})
    return pd.DataFrame(rows).fillna("")


def protocols(results: Sequence[dict]) -> HTML:
    """What the way of reading an answer changes: a line, and the accuracies behind it."""
    tests = tables.protocol_tests(results)
    if not tests:
        return HTML("<p>No question was answered in words.</p>")
    line = (
        f"Three protocols: {sum(differs for _, differs in tests)} of {len(tests)} accuracies differ "
        "significantly from that by letter"
    )
    return details(line, tables.protocols_page(results), tables.protocols_text(results))


def queries(run: Run, cases: Sequence[ConsumerQuery], left_out: dict[str, int]) -> HTML:
    """How many queries were drawn from each source, and behind it why rows were skipped."""
    counts = pd.Series([TITLES[case.source] for case in cases]).value_counts()
    line = f"{len(cases)} of the {run.recipe.consumer.cases} cases that the recipe asks for: "
    line += ", ".join(f"{count} from {source}" for source, count in counts.items())
    skipped = pd.DataFrame({"rows": left_out}, dtype="Int64").rename_axis("skipped because of")
    return details(f"{line}; {sum(left_out.values()):,} rows skipped", skipped)


def _by_model(rows: Mapping[str, dict]) -> pd.DataFrame:
    return pd.DataFrame.from_dict({arms.title(name): row for name, row in rows.items()}, orient="index")


def _means(measured: dict, titles: Mapping[str, str]) -> dict[str, str]:
    """title -> the mean of measured[part], with its interval."""
    return {title: interval(measured[part], digits=4) for part, title in titles.items()}


def _sides(summary: dict) -> dict[str, dict]:
    """What was measured of each model's answers, and of the physicians'."""
    return {**summary["models"], "physicians": summary["reference"]}


def _minus(model: str, measured: dict) -> str:
    return f"{arms.title(model)} minus {arms.title(measured['minus'])}"


def consumer_scores(summary: dict) -> pd.DataFrame:
    """Per model BERTScore, rescaled where the encoder has a baseline, and ROUGE-L; 95% intervals."""
    return _by_model(
        {
            model: _means(measured, tables.SCORES)
            | (_means(measured["rescaled"], {"f1": "F1, rescaled"}) if measured["rescaled"] else {})
            for model, measured in summary["models"].items()
        }
    )


def lengths(summary: dict) -> pd.DataFrame:
    """Words of the answers, the physicians' last, and how many answers were cut off, empty, or cut for the
    scorer."""
    counts = {"cut": "cut at the limit", "too_long": "too long to be asked", "empty": "empty"}
    counts |= {"truncated": "longer than the encoder reads"}
    return _by_model(
        {
            model: {"words, mean": interval(measured["words"], digits=0)}
            | {"median": measured["words"]["median"], "longest": measured["words"]["max"]}
            | {title: measured.get(count, "") for count, title in counts.items()}
            for model, measured in _sides(summary).items()
        }
    )


def differences(summary: dict) -> pd.DataFrame:
    """Paired differences over the cases; `same length`: both answers cut to the shorter one's words."""
    return _by_model(
        {
            _minus(model, measured): _means(measured, tables.SCORES)
            | _means(measured["length_matched"], {"f1": "F1, same length"})
            | {"words": interval(measured["words"], digits=0)}
            | {"cases": summary["n"], "cases with two answers": measured["length_matched"]["n"]}
            for model, measured in summary["differences"].items()
        }
    )


def control(summary: dict) -> pd.DataFrame:
    """The same answers against another case's physician, and how much more their own physician gives."""
    return _by_model(
        {
            model: _means(summary["models"][model], {"f1": "F1, own physician"})
            | _means(measured, {"f1": "F1, another case's", "gap": "difference"})
            for model, measured in (summary["control"] or {}).items()
        }
    )


def sampling(summary: dict) -> pd.DataFrame:
    """F1 of the greedy answer, the mean sampled one and the best sampled one, and what picking adds."""
    sampled = summary["sampling"] or {"models": {}, "differences": {}}
    kinds = {"greedy": "greedy", "mean": "mean of the sampled", "best": "best of them"}
    gains = {"gain_of_best": "best minus mean", "best_minus_greedy": "best minus greedy"}
    rows = {model: _means(measured, kinds | gains) for model, measured in sampled["models"].items()}
    for model, measured in sampled["differences"].items():
        rows[f"{arms.title(model)}, difference"] = _means(measured, kinds)
    return _by_model(rows).fillna("")


def styles(summary: dict) -> pd.DataFrame:
    """Percent of answers that show each marker, with Wilson's 95% interval, the physicians' last; and paired
    differences in points, each on its own, with the bootstrap's."""
    n, rows = summary["n"], {}
    for name, (meaning, _) in MARKERS.items():
        row = rows[name] = {"means": meaning}
        for model, measured in _sides(summary).items():
            share = statistics.wilson(round(measured["style"][name] * n), n)
            row[arms.title(model)] = percent(storage.plain(share))
        for model, measured in summary["differences"].items():
            row[_minus(model, measured)] = percent(measured["style"][name], "mean")
        for model, measured in summary["models"].items():
            row[f"{arms.title(model)} minus physicians"] = percent(
                measured["style_minus_physicians"][name], "mean"
            )
    return pd.DataFrame.from_dict(rows, orient="index")


def _escaped(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
