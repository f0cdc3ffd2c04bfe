"""What the notebooks show: settings, a row raw and converted, a row as tokens."""

import html

import pandas as pd
from IPython.display import HTML, Markdown

from medkit import prompts, recipes
from medkit.data.sources import Loaded
from medkit.records import MCQItem
from medkit.runs import run_json
from medkit.runs.run_json import Run

HIDDEN = "not shown: a row of a data set (show_text shows it)"


def whole(frame: pd.DataFrame) -> HTML:
    """A table with every row, and every text to its end: pandas shows sixty rows and fifty characters."""
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html())


def details(summary: str, *parts: pd.DataFrame | str) -> HTML:
    """One line, and behind it, for the reader who opens it, tables and paragraphs."""
    shown = (
        whole(part).data if isinstance(part, pd.DataFrame) else f"<p>{_escaped(part)}</p>" for part in parts
    )
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
    """What stands twice in NoteChat, from the manifest's stage2."""
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
    if not run_json.may_show(run, show_text):
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
    if not run_json.may_show(run, show_text):
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
    if not run_json.may_show(run, show_text):
        before, after = (f"{len(text.split())} words, not shown" for text in (before, after))
    rows = {"base model": before, "after stage 1": after, "right answer": item.answer}
    return pd.DataFrame({"answer": rows})


def _columns(parts: dict[str, str]) -> str:
    heads = "".join(f"<th style='text-align:left'>{name}</th>" for name in parts)
    cell = f"<td style='text-align:left;vertical-align:top;width:{100 // len(parts)}%'>{{}}</td>"
    return f"<table><tr>{heads}</tr><tr>{''.join(cell.format(part) for part in parts.values())}</tr></table>"


def _escaped(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
