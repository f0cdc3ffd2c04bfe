"""Tables 1 to 4 of a run and that of the protocols, as CSV and Markdown.

Sources: data/manifest.json, mcq/summary.json (table3.py) and consumer/summary.json.
"""

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from medkit.data.sources import SOURCES
from medkit.evaluate import statistics
from medkit.report import published
from medkit.report.markdown import (
    ALPHA,
    Table,
    demote_headings,
    in_percent,
    interval,
    origin_note,
    percent,
    significance,
    wrap,
)
from medkit.report.published import TITLES
from medkit.report.table3 import table3
from medkit.runs import arms, run_json, storage
from medkit.runs.storage import load

PROTOCOLS = {"scored": "most likely letter", "generated": "answer in words", "released": "as released"}
SCORES = {"precision": "precision", "recall": "recall", "f1": "F1", "rouge_l": "ROUGE-L"}
_PAPERS = ", the paper"  # behind the name of a published row


def write(run_dir: str | Path) -> list[Path]:
    """Write tables/table1..table4 (.csv, .md) of a run; returns the paths.

    Raises ResultsError, before anything is written, where one of the inputs is missing.
    """
    tables = [build(run_dir) for build in (table1, table2, table3, table4)]
    return list(chain.from_iterable(save(run_dir, table) for table in tables))


def write_exams(run_dir: str | Path) -> Table:
    """Write tables/table3 and, where questions were answered in words, tables/protocols; returns Table 3."""
    table, spoken = table3(run_dir), load(run_dir, "mcq/summary.json", ("protocols",))["protocols"]
    save(run_dir, table)
    if spoken:
        save(run_dir, protocols(run_dir))
    return table


def part(run_dir: str | Path, number: int) -> str:
    """A written table as Markdown, for a notebook in which it is a part."""
    return demote_headings(storage.file(run_dir, f"tables/table{number}.md").read_text(encoding="utf-8"))


def terminal(run_dir: str | Path) -> str:
    """What a terminal shows of the tables that a run has: short, at most markdown.WIDTH columns wide."""
    place = Path(run_dir)
    builders = (table1, table2, table3, table4)
    built = [build(place) for build in builders if (place / "tables" / f"{build.__name__}.md").exists()]
    if not built:
        return ""
    notes = dict.fromkeys(wrap(table.note) for table in built if table.note)
    whole = f"The whole tables, and what they show: {storage.relpath(place / 'tables')}/*.md, *.csv"
    return "\n\n".join([*notes, *(table.terminal() for table in built), whole])


def save(run_dir: str | Path, table: Table) -> list[Path]:
    """Write one table under tables/, as CSV and as Markdown; returns the two paths."""
    place = Path(run_dir) / "tables" / table.name
    return [
        storage.write_csv(place.with_suffix(".csv"), table.figures),
        storage.write_text(place.with_suffix(".md"), table.markdown()),
    ]


def table1(run_dir: str | Path) -> Table:
    """Composition of the stage-1 mixture, one row a source, from data/manifest.json."""
    manifest = load(run_dir, "data/manifest.json", ("sources", "stage1"))
    stage1, sources = manifest["stage1"], manifest["sources"]
    rows, dropped = [], []
    for name, count in stage1["counts"].items():
        train, held_out = sources[name]["train"], sources[name].get("eval", {})
        paper = published.STAGE1_ROWS.get(name, (None, None))
        row = {"dataset": name, "train": count, "evaluation": held_out.get("records")}
        row |= {"rows_read": train["rows"], "dropped": sum(train["dropped"].values())}
        rows.append(row | {"paper_train": paper[0], "paper_evaluation": paper[1]})
        if reasons := _reasons(train["dropped"]):
            dropped.append(f"{TITLES.get(name, name)}: {reasons}")
    figures = _with_total(rows)
    figures.loc[figures.index[-1], "train"] = stage1["total"]
    validation = stage1["validation"] / stage1["total"] if stage1["total"] else math.nan
    info = run_json.read(Path(run_dir))
    scored = info["recipe"]["mcq"]["rows"] if info else 0
    text = (
        f"Of the mixture's {stage1['total']:,} samples {stage1['train']:,} train and "
        f"{stage1['validation']:,} ({validation:.1%}) validate, split by seed {stage1['seed']}. "
    )
    text += (
        f"Dropped training rows, by reason: {'; '.join(dropped)}."
        if dropped
        else "No training row was dropped."
    )
    if scored:
        text += f" Of each evaluation set the first {scored:,} rows are scored (Table 3)."
    page = _page(figures, TITLES)
    return Table("table1", "Table 1: stage-1 mixture", figures, page, text, origin_note(run_dir))


def table2(run_dir: str | Path) -> Table:
    """Composition of the stage-2 mixture and the replay's share of it, from data/manifest.json."""
    stage2 = load(run_dir, "data/manifest.json", ("stage2",), writer="02_stage2")["stage2"]
    consultations, replay = stage2["notechat"], stage2["replay"]
    source = consultations.get("source", "notechat")
    title = SOURCES[source].title
    rows = []
    for name, part in {source: consultations, "replay": replay}.items():
        # The paper's counts are those of NoteChat and the replay beside it: no others compare with them.
        paper = published.STAGE2_ROWS[name] if source == "notechat" else (None, None)
        row = {"dataset": name, "train": part["train"], "validation": part["validation"]}
        rows.append(row | {"paper_train": paper[0], "paper_validation": paper[1]})
    figures = _with_total(rows)
    shares = [
        f"{replay[f'share_of_{what}']:.1%} of the {what.replace('_', ' ')}"
        for what in ("rows", "tokens", "supervised_tokens")
        if replay.get(f"share_of_{what}") is not None
    ]
    text = (
        f"Replay: {replay['rows_per_stage2_row']:.4f} rows per {title} row, which is "
        f"{replay['share_of_stage1']:.4f} of stage 1 (the k of Dong et al.); it makes "
        f"{', '.join(shares) or 'no known share'} of what stage 2 trains on. "
        f"{title}: {_conversations(consultations)}; {consultations['validation_verbatim_in_train']:,} of "
        f"{consultations['validation']:,} validation rows are verbatim in the training rows. "
        f"{_notes(consultations)}"
    )
    page = _page(figures, {source: title, "replay": "stage-1 mixture (replay)"})
    if source != "notechat":
        page = page[["dataset", "train", "validation"]]
        text += f" The paper's stage 2 trained on NoteChat: no count of its Table 2 is of {title}."
    return Table("table2", "Table 2: stage-2 mixture", figures, page, text, origin_note(run_dir))


def _conversations(described: dict) -> str:
    distinct = f"{described['distinct']:,} distinct"
    if "dropped" not in described:  # a manifest of an earlier version: `rows` are those that were kept
        return f"{described['rows']:,} rows kept, {distinct}"
    reasons = _reasons(described["dropped"])
    dropped = f"{described['rows'] - described['kept']:,} dropped" + (f" ({reasons})" if reasons else "")
    return f"{described['rows']:,} rows read, {dropped}, {described['kept']:,} kept, {distinct}"


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)


def _notes(described: dict) -> str:
    if not described.get("rows_with_a_note"):
        return "No row has its clinical note, so that notes on both sides cannot be counted."
    with_note, crossed = described["rows_with_a_note"], described["notes_on_both_sides"]
    return f"{with_note:,} rows have their clinical note; {crossed:,} of these notes are on both sides."


def _with_total(rows: list[dict]) -> pd.DataFrame:
    frame = pd.DataFrame(rows).set_index("dataset")
    frame.loc["total"] = frame.sum(min_count=len(frame))
    return frame.astype("Int64").reset_index()


def _page(figures: pd.DataFrame, titles: dict[str, str]) -> pd.DataFrame:
    page = figures.drop(columns="dataset").map(lambda count: "" if pd.isna(count) else f"{count:,}")
    page.insert(0, "dataset", [titles.get(name, name) for name in figures["dataset"]])
    return page.rename(columns=lambda name: name.replace("paper_", "the paper: ").replace("_", " "))


def table4(run_dir: str | Path) -> Table:
    """BERTScore against the physicians' answers, with lengths, from consumer/summary.json."""
    summary = load(run_dir, "consumer/summary.json", ("models", "scorer", "n"))
    rows, page = [], []
    for model, scores in summary["models"].items():
        row = {"whose": "this run", "model": model, "n": summary["n"]}
        for score in (*SCORES, "words"):
            measured = scores.get(score) or {}
            ends = {f"{score}_{end}": measured.get(end) for end in ("low", "high")}
            row |= {score: measured.get("mean"), **ends}
        rows.append(row)
        cells = {title: interval(scores.get(score) or {}, digits=3) for score, title in SCORES.items()}
        cells |= {"words": interval(scores.get("words") or {}, digits=0)}
        page.append({"model": f"**{arms.title(model)}**", "n": summary["n"], **cells})
    for model, scores in published.BERTSCORE.items():
        about = {"model": model, "n": published.BERTSCORE_N}
        rows.append({"whose": "published", **about, **{score: float(text) for score, text in scores.items()}})
        cells = {SCORES[score]: text for score, text in scores.items()}
        page.append(about | {"model": f"{model}{_PAPERS}"} | cells)
    if reference := (summary.get("reference") or {}).get("words"):
        words = interval(reference, digits=0)
        page.append({"model": "the physicians' own answers", "n": summary["n"], "words": words})
    page = pd.DataFrame(page).fillna("")
    info = run_json.read(Path(run_dir))
    text = _text4(summary, info["recipe"]["consumer"]["cases"] if info else summary["n"])
    short = page[~page["model"].str.endswith(_PAPERS)].drop(columns=["precision", "recall"], errors="ignore")
    figures = pd.DataFrame(rows)
    return Table("table4", "Table 4: BERTScore", figures, page, text, origin_note(run_dir), short)


def _text4(summary: dict, asked: int) -> str:
    scorer, fewer = summary["scorer"], ""
    if summary["n"] < asked:
        fewer = f", where the recipe asks for {asked} and no more undamaged ones are there"
    rescaled = "rescaled" if scorer.get("rescaled") else "not rescaled"
    other = "" if "roberta-large" in str(scorer.get("model")) else ", and another encoder scored this run"
    sentences = [
        f"{summary['n']} cases (the paper: {published.BERTSCORE_N}){fewer}, BERTScore "
        f"hash `{scorer.get('hash')}`, {rescaled}; 95% bootstrap intervals over the cases.",
        f"The paper's rows: {published.BERTSCORE_PROTOCOL}; they are not comparable with a run's that "
        f"takes one answer to each case{other}.",
        *(_differences4(model, measured) for model, measured in (summary.get("differences") or {}).items()),
        "Likeness to a physician's wording is not safety, and it rewards matching length.",
    ]
    return "\n\n".join(filter(None, sentences))


def _differences4(model: str, differences: dict) -> str:
    tested = {title: differences.get(score) for score, title in SCORES.items()}
    same_length = differences.get("length_matched") or {}
    tested["F1 with both answers cut to the same length"] = same_length.get("f1")
    tested = {title: row for title, row in tested.items() if row and row.get("mean") is not None}
    if not tested:
        return ""
    # One case has no interval and no p.
    adjusted = statistics.holm([1.0 if row.get("p") is None else row["p"] for row in tested.values()])
    rows = []
    for (title, row), p in zip(tested.items(), adjusted, strict=True):
        ends = "no interval" if row.get("p") is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
        rows.append((f"{title} ({row['mean']:+.3f}, {ends}; corrected p = {p:.2g})", p < ALPHA))
    return (
        f"{arms.title(model)} minus {arms.title(differences.get('minus', 'base'))}, paired over the cases; "
        f"sign-flip test with Holm's correction over these {len(rows)}, at {ALPHA}. {significance(rows)}"
    )


def protocols(run_dir: str | Path) -> Table:
    """tables/protocols: an accuracy per model, benchmark and protocol in percent, from mcq/summary.json."""
    results = load(run_dir, "mcq/summary.json", ("protocols",))["protocols"]
    rows = []
    for result in results:
        for protocol, title in PROTOCOLS.items():
            share = statistics.wilson(result["correct"][protocol], result["n"])
            row = {"model": result["model"], "dataset": result["dataset"], "protocol": title}
            row |= {"n": share.n, "correct": share.correct, "unparsed": result["unparsed"][protocol]}
            row |= {"percent": 100 * share.accuracy, "low": 100 * share.low, "high": 100 * share.high}
            if minus := result.get("minus_scored", {}).get(protocol):
                names = {"difference": "minus_letter", "low": "minus_low", "high": "minus_high"}
                row |= {name: 100 * minus[key] for key, name in names.items()} | {"p": minus["p"]}
            rows.append(row)
    title = "Protocols: the same questions, read in three ways"
    page, text = protocols_page(results), protocols_text(results)
    return Table("protocols", title, pd.DataFrame(rows), page, text, origin_note(run_dir))


def protocols_page(results: Sequence[dict]) -> pd.DataFrame:
    """A row a model and benchmark; an answer that could not be read is a wrong one."""
    rows = []
    for result in results:
        row = {"model": arms.title(result["model"]), "benchmark": TITLES[result["dataset"]], "n": result["n"]}
        for protocol, title in PROTOCOLS.items():
            row[title] = percent(storage.plain(statistics.wilson(result["correct"][protocol], result["n"])))
        for protocol, difference in result.get("minus_scored", {}).items():
            row[f"{PROTOCOLS[protocol]} minus letter"] = percent(difference, "difference")
        row |= {f"in words: {tier}": in_percent(share["share"]) for tier, share in result["tiers"].items()}
        row |= {"cut at the limit": in_percent(result.get("cut")), "too long": result.get("too_long", 0)}
        row |= {"first and last letter differ": in_percent(result["first_last_disagree"])}
        row |= {"agrees with the letter": in_percent(result["agreement_with_scored"]["generated"])}
        rows.append(row)
    return pd.DataFrame(rows)


def protocol_tests(results: Sequence[dict]) -> list[tuple[str, bool]]:
    """Each protocol's accuracy against the letters': (what differs, whether significantly), by McNemar's test
    with Holm's correction over all of them; [] where no question was answered in words."""
    tested = [
        (f"{arms.title(result['model'])} on {TITLES[result['dataset']]}, {PROTOCOLS[protocol]}", difference)
        for result in results
        for protocol, difference in result.get("minus_scored", {}).items()
    ]
    rows = []
    adjusted = statistics.holm([difference["p"] for _, difference in tested])
    for (name, difference), p in zip(tested, adjusted, strict=True):
        points = f"{100 * difference['difference']:+.1f} points"
        rows.append((f"{name} ({points}; corrected p = {p:.2g})", p < ALPHA))
    return rows


def protocols_text(results: Sequence[dict]) -> str:
    """How the protocols read an answer, and which give another accuracy than the letters."""
    if not (rows := protocol_tests(results)):
        return "No question was answered in words."
    return (
        "Percent. Answers in words are greedy and read by tiers; `as released` puts `Answer:` behind the "
        "question, samples up to 128 tokens and looks for `Answer: X` in prompt and output; two letters are "
        "wrong, and so is a letter without these words, which is all that a model trained on letters says. "
        "Paired with the likeliest letter over the same questions: McNemar's exact test with "
        f"Holm's correction over {len(rows)}, at {ALPHA}. {significance(rows)}"
    )
