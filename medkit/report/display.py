"""What the notebooks show: settings; a row raw, converted and as tokens; accuracies, errors, style."""

import html
from collections.abc import Sequence

import pandas as pd
from IPython.display import HTML, Markdown
from nbconvert.filters import markdown2html

from medkit import prompts, recipes
from medkit.data.sources import SOURCES, Loaded
from medkit.evaluate import accuracy, statistics
from medkit.evaluate.style import MARKERS
from medkit.records import ConsumerQuery, MCQItem
from medkit.report import tables
from medkit.report.figures import TITLES
from medkit.report.markdown import in_percent, percent, with_interval
from medkit.runs import arms, run_json, storage
from medkit.runs.run_json import Run, may_show

HIDDEN = "not shown: a row of a data set (show_text shows it)"


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
    own, info = recipes.flat(run.recipe), run_json.latest(run.info)
    paper = recipes.flat(recipes.get("paper"))
    differing = {
        name: {"the paper": str(paper[name]), "this run": str(value)}
        for name, value in own.items()
        if value != paper[name] and name not in ("name", "about")
    }
    everything = {
        **own,
        "rows come from": run.info["data"]["origin"],
        **{f"version of {name}": version for name, version in info["versions"].items() if version},
        **{f"machine: {name}": value for name, value in info["hardware"].items()},
        "commit": info["git"].get("commit"),
    }
    everything = pd.DataFrame({"value": {name: str(value) for name, value in everything.items()}})
    summary = f"Settings: {len(differing)} of {len(own) - 2} differ from the paper's"
    first = details(
        f"{summary} (recipe {run.recipe.name})", pd.DataFrame.from_dict(differing, orient="index")
    )
    return HTML(first.data + details("Every setting, the versions and the machine", everything).data)


def sources(run: Run, train: dict, evaluation: dict) -> pd.DataFrame:
    """Rows read and kept per source and part, and the reasons why others were not."""
    rows, builtin = [], run.info["data"]["origin"] == "builtin"
    for part, loaded in (("train", train), ("evaluation", evaluation)):
        for name, one in loaded.items():
            reasons = "; ".join(f"{reason}: {count}" for reason, count in one.dropped.items())
            row = {"source": name, "part": part, "read": one.rows, "kept": len(one.records)}
            origin = "built-in corpus" if builtin else one.origin
            rows.append(row | {"dropped": reasons or "none", "origin": origin})
    return pd.DataFrame(rows).set_index(["source", "part"])


def conversations(loaded, split) -> pd.Series:
    """How many conversations were read, dropped by reason and kept, and where they went; loaded:
    sources.Loaded, split: dmt.Dialogues. Of notes, as far as rows have one."""
    counts = {"read": split.rows}
    counts |= {f"dropped: {reason}": count for reason, count in loaded.dropped.items()}
    counts |= {"kept": split.kept, "different ones": split.distinct}
    counts |= {"for training": len(split.train), "for validation": len(split.validation)}
    counts |= {"validation rows verbatim in training": split.validation_verbatim_in_train}
    counts |= {"rows with a clinical note": split.with_note}
    if split.with_note:
        counts |= {"clinical notes on both sides": split.notes_on_both_sides}
    return pd.Series(counts, name="conversations")


def duplicates(stage2: dict) -> pd.Series:
    """What occurs twice among stage 2's consultations, from the manifest's stage2."""
    found = stage2["notechat"]
    groups = found["duplicate_groups"]
    counts = {
        "files": len(found["files"]),
        "files of the same bytes": found["files_of_the_same_bytes"],
        "conversations that repeat another": groups["rows"] - groups["groups"],
    }
    for how, count in found["validation_found_in_train"].items():
        counts[f"validation rows found in training: {how}"] = count
    return pd.Series(counts, name="duplicates")


def found_in_training(part: dict) -> pd.DataFrame | Markdown:
    """Evaluation items found in training rows by source and method, and how many of them count as known;
    from a part of the manifest with `overlap`."""
    if not part["overlap"]["counts"]:
        return Markdown("No evaluation item was found in a training row, by any of the measures.")
    counts = pd.DataFrame(part["overlap"]["counts"]).T.fillna(0).astype(int)
    known = pd.Series([name.split("/", 1)[0] for name in part["overlap"]["contaminated"]], dtype=str)
    return counts.assign(**{"known": known.value_counts().reindex(counts.index, fill_value=0)})


def record(run: Run, loaded: Loaded, show_text: bool) -> HTML:
    """The source's first row: as it was read, the record it became, and the chat made of that."""
    if not may_show(run, show_text):
        return HTML(f"<p>{HIDDEN}</p>")
    if loaded.example is None:
        return HTML("<p>No row was kept.</p>")
    row, one = loaded.example
    turns = prompts.messages(one, run.recipe.data.mcq_target)
    chat = "".join(f"<p><b>{turn['role']}</b><br>{_escaped(turn['content'])}</p>" for turn in turns)
    read = "".join(
        f"<p><b>{_escaped(str(name))}</b><br>{_escaped(str(cell))}</p>" for name, cell in row.items()
    )
    return HTML(
        _columns({"row as read": read, "record": f"<code>{_escaped(repr(one))}</code>", "chat": chat})
    )


def tokens(run: Run, tokenizer, row: dict, show_text: bool) -> HTML:
    """A tokenized row; bold where the loss is taken."""
    if not may_show(run, show_text):
        return HTML(f"<p>{HIDDEN}</p>")
    pieces = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        text = _escaped(tokenizer.decode([token]))
        pieces.append(text if label == prompts.IGNORED else f"<b>{text}</b>")
    return HTML(f"<p style='text-align:left'>{''.join(pieces)}</p>")


def lengths_by_source(records: list, rows) -> dict[str, list[int]]:
    """Tokens of every row, by the source of its record."""
    lengths: dict[str, list[int]] = {}
    for one, length in zip(records, rows["length"], strict=True):
        lengths.setdefault(one.source, []).append(length)
    return lengths


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
        part = SOURCES[name].parts[run.recipe.data.reads(name, "eval")[1]]
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
    without = summary["without_contaminated"]
    left_out = sum(without["left_out"].values())
    if not summary["contamination_known"]:
        return HTML("<p>This run has no training rows in which the questions could be looked for.</p>")
    asked = sum(own["n"] for own in summary["datasets"].values())
    line = f"{left_out:,} of {asked:,} questions appear in a training row"
    return details(f"{line}: accuracy without them", clean(summary, without)) if left_out else details(line)


def clean(summary: dict, without: dict) -> pd.DataFrame:
    """Accuracy on all questions beside that on those that appear in no training row."""
    rows = []
    for name, dataset in without["datasets"].items():
        for model, own in dataset["models"].items():
            everything = summary["datasets"][name]["models"][model]
            row = {"benchmark": TITLES[name], "model": arms.title(model)}
            row |= {"n": everything["n"], "all": percent(everything), "n without": own["n"]}
            rows.append(row | {"without": percent(own)})
    return pd.DataFrame(rows)


def errors(run: Run, wrong: pd.DataFrame, items: Sequence[MCQItem], show_text: bool) -> pd.DataFrame:
    """The sampled errors with the letters' log-probabilities, and the question where it may be shown."""
    by_id = {(item.source, item.id): item for item in items}
    rows = []
    for row in wrong.itertuples():
        item = by_id[row.dataset, row.item_id]
        sure = {letter: getattr(row, f"logprob_{letter}") for letter in item.letters}
        shown = {"benchmark": TITLES[row.dataset], "question": row.item_id}
        if may_show(run, show_text):
            shown["question"] = item.question
        shown |= {"gold": row.gold, "predicted": row.predicted}
        rows.append(shown | {f"log p({letter})": f"{value:.2f}" for letter, value in sure.items()})
    return pd.DataFrame(rows).fillna("")


def protocols(found: Sequence[dict]) -> HTML:
    """What the way of reading an answer changes: a line, and the accuracies behind it."""
    tests = tables.protocol_tests(found)
    if not tests:
        return HTML("<p>No question was answered in words.</p>")
    line = (
        f"Three protocols: {sum(differs for _, differs in tests)} of {len(tests)} accuracies differ "
        "significantly from that by letter"
    )
    return details(line, tables.protocols_page(found), tables.protocols_text(found))


def queries(run: Run, cases: Sequence[ConsumerQuery], left_out: dict[str, int]) -> HTML:
    """How many queries were drawn from each source, and behind it why rows were skipped."""
    counts = pd.Series([TITLES[case.source] for case in cases]).value_counts()
    line = f"{len(cases)} of the {run.recipe.consumer.cases} cases that the recipe asks for: "
    line += ", ".join(f"{count} from {source}" for source, count in counts.items())
    skipped = pd.DataFrame({"rows": left_out}, dtype="Int64").rename_axis("skipped because of")
    return details(f"{line}; {sum(left_out.values()):,} rows skipped", skipped)


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
    differences in points, each on its own, with the bootstrap's."""
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


def _columns(parts: dict[str, str]) -> str:
    heads = "".join(f"<th style='text-align:left'>{name}</th>" for name in parts)
    cell = f"<td style='text-align:left;vertical-align:top;width:{100 // len(parts)}%'>{{}}</td>"
    return f"<table><tr>{heads}</tr><tr>{''.join(cell.format(part) for part in parts.values())}</tr></table>"


def _escaped(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
