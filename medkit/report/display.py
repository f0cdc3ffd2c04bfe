"""Views of the notebooks: settings, benchmarks, a prompt, accuracies, errors, scores and style."""

import html
from collections.abc import Mapping, Sequence

import pandas as pd
from IPython.display import HTML, Markdown
from nbconvert.filters import markdown2html

from medkit import prompts, recipes
from medkit.data.sources import SOURCES
from medkit.evaluate import accuracy, statistics
from medkit.evaluate.style import MARKERS
from medkit.records import ConsumerQuery, MCQItem
from medkit.report import ledger, tables
from medkit.report.figures import TITLES
from medkit.report.markdown import interval, percent
from medkit.runs import arms, machine, run_json, storage
from medkit.runs.run_json import Run, may_show


def full_table(frame: pd.DataFrame) -> HTML:
    """A table with all rows and untruncated text; pandas stops at 60 rows and 50 characters."""
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html())


def details(summary: str, *contents: pd.DataFrame | str) -> HTML:
    """A collapsed section: a summary line that opens to tables and Markdown."""
    body = "".join(
        full_table(content).data if isinstance(content, pd.DataFrame) else markdown2html(content)
        for content in contents
    )
    summary = html.escape(summary).replace("\n", "<br>")
    return HTML(f"<details><summary>{summary}</summary>{body}</details>")


def settings(run: Run) -> HTML:
    """The settings that differ from those of the recipe `paper`, then all settings, each collapsed to one
    line."""
    info = run_json.latest(run.info)
    fields, paper = (
        {name: ledger.format_value(value) for name, value in recipes.flat(recipe).items()}
        for recipe in (run.recipe, recipes.get("paper"))
    )
    differing = {
        name: {"recipe paper": paper[name], "this run": value}
        for name, value in fields.items()
        if value != paper[name] and name not in ("name", "about")
    }
    everything = {
        **fields,
        "rows come from": run.info["data"]["origin"],
        **{f"version of {name}": version for name, version in info["versions"].items() if version},
        **{f"machine: {name}": text for name, text in machine.as_text(info["hardware"]).items()},
        "commit": info["git"].get("commit"),
    }
    everything = pd.DataFrame({"value": {name: str(value) for name, value in everything.items()}})
    differences = details(
        f"Settings: {len(differing)} of {len(fields) - 2} differ from recipe paper's (this is recipe "
        f"{run.recipe.name}; the ledger says what the paper itself states)",
        pd.DataFrame.from_dict(differing, orient="index"),
    )
    return HTML(differences.data + details("Every setting, the versions and the machine", everything).data)


def before_and_after(run: Run, item: MCQItem, answers: Mapping[str, str], show_text: bool) -> HTML:
    """One question, the answers of models to it, by the model's name, and the right answer.

    An answer can repeat its question, so it is hidden like a row of the data set.
    """
    texts = {"question": prompts.mcq_user(item), **answers}
    if not may_show(run, show_text):
        texts = {name: f"{len(text.split())} words, not shown" for name, text in texts.items()}
    cells = {name: html.escape(text).replace("\n", "<br>") for name, text in texts.items()}
    rows = "".join(
        f"<tr><th>{name}</th><td style='text-align:left'>{text}</td></tr>"
        for name, text in (cells | {"right answer": item.answer}).items()
    )
    return HTML(f"<table>{rows}</table>")


def benchmarks(run: Run, items: Sequence[MCQItem]) -> pd.DataFrame:
    """Split and reason for it, n, chance, and the most frequent answer with its share, per benchmark."""
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
    """The exact prompt of a question. Rows of a data set are replaced by placeholders unless `show_text`."""
    if not may_show(run, show_text):
        options = tuple(f"(option {letter})" for letter in item.letters)
        context = "(abstract)" if item.context else ""
        item = MCQItem("form", item.source, "(question)", options, item.answer, context)
    text = prompts.prompt(prompts.ChatFormat.from_tokenizer(tokenizer), item)
    return HTML(f"<pre style='white-space:pre-wrap; word-break:normal'>{html.escape(text)}</pre>")


def comparisons(summary: dict) -> pd.DataFrame:
    """Paired differences in points, and the numbers of questions that only one of the two has right."""
    return pd.DataFrame(
        {
            "benchmark": TITLES[row["dataset"]],
            "difference": f"{arms.title(row['second'])} minus {arms.title(row['first'])}",
            "shows": row["shows"],
            "points": percent(row, "difference"),
            "right only by the first-named": row["second_only"],
            "only by the other": row["first_only"],
            "p (McNemar)": f"{row['p']:.2g}",
            "p (Holm)": f"{row['p_holm']:.2g}",
        }
        for row in summary["comparisons"]
    )


def groups(summary: dict) -> HTML:
    """Accuracy by MedMCQA subject and MedQA step: a collapsed table per benchmark, largest groups first."""
    sections = ""
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
        sections += details(line, table).data
    return HTML(sections)


def contamination(summary: dict) -> HTML:
    """How many questions appear in training rows, and the accuracies with and without them."""
    if not summary["contamination_known"]:
        return HTML("<p>Contamination is unknown: this run has no training rows to search.</p>")
    without = summary["without_contaminated"]
    left_out = sum(without["left_out"].values())
    total = sum(dataset["n"] for dataset in summary["datasets"].values())
    line = f"{left_out:,} of {total:,} questions appear in a training row"
    if not left_out:
        return details(line)
    return details(f"{line}: accuracy without them", contamination_table(summary, without))


def contamination_table(summary: dict, without: dict) -> pd.DataFrame:
    """Accuracy on all questions and on those that appear in no training row."""
    rows = []
    for name, dataset in without["datasets"].items():
        for model, result in dataset["models"].items():
            full_result = summary["datasets"][name]["models"][model]
            row = {"benchmark": TITLES[name], "model": arms.title(model)}
            row |= {"n": full_result["n"], "all": percent(full_result), "n without": result["n"]}
            rows.append(row | {"without": percent(result)})
    return pd.DataFrame(rows)


def errors(run: Run, wrong: pd.DataFrame, items: Sequence[MCQItem], show_text: bool) -> pd.DataFrame:
    """Sampled errors with the letters' log-probabilities, and the question or, if hidden, its id."""
    by_id = {(item.source, item.id): item for item in items}
    rows = []
    for error in wrong.itertuples():
        item = by_id[error.dataset, error.item_id]
        question = item.question if may_show(run, show_text) else error.item_id
        row = {"benchmark": TITLES[error.dataset], "question": question}
        row |= {"gold": error.gold, "predicted": error.predicted}
        rows.append(row | {f"log p({x})": f"{getattr(error, f'logprob_{x}'):.2f}" for x in item.letters})
    return pd.DataFrame(rows).fillna("")


def protocols(results: Sequence[dict]) -> HTML:
    """How many accuracies change with the protocol, and all of them in a collapsed table."""
    tests = tables.protocol_tests(results)
    if not tests:
        return HTML("<p>No question was answered in words.</p>")
    line = (
        f"Three protocols: {sum(differs for _, differs in tests)} of {len(tests)} accuracies differ "
        f"significantly from that by letter{tables.too_few(results, len(tests))}"
    )
    return details(line, tables.protocols_page(results), tables.protocols_text(results))


def queries(run: Run, cases: Sequence[ConsumerQuery], row_counts: dict[str, dict[str, int]]) -> HTML:
    """How many queries were drawn from each source, and the skipped rows and the notes on the others."""
    counts = pd.Series([TITLES[case.source] for case in cases]).value_counts()
    line = f"{len(cases)} of the {run.recipe.consumer.cases} cases that the recipe asks for: "
    line += ", ".join(f"{count} from {source}" for source, count in counts.items())
    skipped, notes = (
        pd.DataFrame({"rows": row_counts[kind]}, dtype="Int64") for kind in ("passed_over", "notes")
    )
    return details(
        f"{line}; {skipped['rows'].sum():,} rows skipped",
        skipped.rename_axis("skipped because of"),
        notes.rename_axis("notes on the others"),
    )


def _by_model(rows: Mapping[str, dict]) -> pd.DataFrame:
    return pd.DataFrame.from_dict({arms.title(name): row for name, row in rows.items()}, orient="index")


def _means(scores: dict, titles: Mapping[str, str]) -> dict[str, str]:
    """title -> formatted mean and interval of scores[key], for `titles` from key to title."""
    return {title: interval(scores[key], digits=4) for key, title in titles.items()}


def _with_physicians(summary: dict) -> dict[str, dict]:
    """Statistics of each model's answers, and of the physicians'."""
    return {**summary["models"], "physicians": summary["reference"]}


def _minus(model: str, differences: dict) -> str:
    return f"{arms.title(model)} minus {arms.title(differences['minus'])}"


def lengths(summary: dict) -> pd.DataFrame:
    """Words per answer of the models and the physicians, and the numbers of cut, empty and truncated ones."""
    counts = {"cut": "cut at the limit", "too_long": "query too long", "empty": "empty"}
    counts |= {"truncated": "longer than the encoder reads", "other_script": "not in Latin letters"}
    return _by_model(
        {
            model: {"words, mean": interval(answers["words"], digits=0)}
            | {"median": answers["words"]["median"], "longest": answers["words"]["max"]}
            | {title: answers.get(count, "") for count, title in counts.items()}
            for model, answers in _with_physicians(summary).items()
        }
    )


def differences(summary: dict) -> pd.DataFrame:
    """Paired differences over the cases. `same length`: both answers cut to the words of the shorter one."""
    return _by_model(
        {
            _minus(model, scores): _means(scores, tables.SCORES)
            | _means(scores["length_matched"], {"f1": "F1, same length"})
            | {"words": interval(scores["words"], digits=0)}
            | {"cases": summary["n"], "cases with two answers": scores["length_matched"]["n"]}
            for model, scores in summary["differences"].items()
        }
    )


def control(summary: dict) -> pd.DataFrame:
    """F1 of the same answers against their own and against another case's physician."""
    return _by_model(
        {
            model: _means(summary["models"][model], {"f1": "F1, own physician"})
            | _means(scores, {"f1": "F1, another case's", "gap": "difference"})
            for model, scores in (summary["control"] or {}).items()
        }
    )


def sampling(summary: dict) -> pd.DataFrame | Markdown:
    """F1 of the greedy answer, the mean and the best of the sampled ones, and the gain from picking."""
    sampled = summary["sampling"] or {"samples": 0}
    if sampled["samples"] < 2:
        return Markdown(f"Nothing to pick from: consumer.samples is {sampled['samples']}.")
    kinds = {"greedy": "greedy", "mean": "mean of the sampled", "best": "best of them"}
    gains = {"gain_of_best": "best minus mean", "best_minus_greedy": "best minus greedy"}
    rows = {model: _means(scores, kinds | gains) for model, scores in sampled["models"].items()}
    for model, scores in sampled["differences"].items():
        rows[f"{arms.title(model)}, difference"] = _means(scores, kinds)
    return _by_model(rows).fillna("")


def styles(summary: dict) -> pd.DataFrame:
    """Percent of answers with each style marker, with Wilson intervals, and paired differences in points.

    The differences have bootstrap intervals that are not corrected for their number.
    """
    n, rows = summary["n"], {}
    for name, (meaning, _) in MARKERS.items():
        row = rows[name] = {"means": meaning}
        for model, answers in _with_physicians(summary).items():
            share = statistics.wilson(round(answers["style"][name] * n), n)
            row[arms.title(model)] = percent(storage.plain(share))
        for model, scores in summary["differences"].items():
            row[_minus(model, scores)] = percent(scores["style"][name], "mean")
        for model, scores in summary["models"].items():
            difference = scores["style_minus_physicians"][name]
            row[f"{arms.title(model)} minus physicians"] = percent(difference, "mean")
    return pd.DataFrame.from_dict(rows, orient="index")
