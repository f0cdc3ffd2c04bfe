"""Tables 1 to 4 of a run and the protocols table, as CSV and Markdown.

Sources: data/manifest.json, mcq/summary.json (table3.py) and consumer/summary.json.
"""

import math
from collections.abc import Sequence
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
    number,
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
_PAPER_SUFFIX = ", the paper"  # of published rows


def write(run_dir: str | Path) -> list[Path]:
    """Write tables/table1 to table4 of a run (.csv and .md) and return the paths.

    Raises ResultsError before writing anything if an input file is missing.
    """
    tables = [build(run_dir) for build in (table1, table2, table3, table4)]
    return [path for table in tables for path in save(run_dir, table)]


def write_exams(run_dir: str | Path) -> Table:
    """Write Table 3 and, if questions were answered in words, the protocols table; returns Table 3."""
    table, answered = table3(run_dir), load(run_dir, "mcq/summary.json", ("protocols",))["protocols"]
    save(run_dir, table)
    if answered:
        save(run_dir, protocols(run_dir))
    return table


def for_notebook(run_dir: str | Path, number: int) -> str:
    """The Markdown of a written table, with its headings below a notebook section."""
    return demote_headings(storage.file(run_dir, f"tables/table{number}.md").read_text(encoding="utf-8"))


def terminal(run_dir: str | Path) -> str:
    """Short versions of a run's written tables, at most markdown.WIDTH columns wide; "" if there are none."""
    folder = Path(run_dir) / "tables"
    builders = (table1, table2, table3, table4)
    tables = [build(run_dir) for build in builders if (folder / f"{build.__name__}.md").exists()]
    if not tables:
        return ""
    notes = dict.fromkeys(wrap(table.note) for table in tables if table.note)
    full_tables = f"Full tables with their texts: {storage.relpath(folder)}/*.md, *.csv"
    return "\n\n".join([*notes, *(table.terminal() for table in tables), full_tables])


def save(run_dir: str | Path, table: Table) -> list[Path]:
    """Write one table under tables/ as CSV and Markdown and return the two paths."""
    path = Path(run_dir) / "tables" / table.name
    return [
        storage.write_csv(path.with_suffix(".csv"), table.figures),
        storage.write_text(path.with_suffix(".md"), table.markdown()),
    ]


def table1(run_dir: str | Path) -> Table:
    """Composition of the stage-1 mixture, one row per source, from data/manifest.json."""
    manifest = load(run_dir, "data/manifest.json", ("sources", "stage1"))
    stage1, sources = manifest["stage1"], manifest["sources"]
    rows, dropped = [], []
    for name, count in stage1["counts"].items():
        train, held_out = sources[name]["train"], sources[name].get("eval", {})
        paper_train, paper_evaluation = published.STAGE1_ROWS.get(name, (None, None))
        row = {"dataset": name, "train": count, "evaluation": held_out.get("records")}
        row |= {"rows_read": train["rows"], "dropped": sum(train["dropped"].values())}
        rows.append(row | {"paper_train": paper_train, "paper_evaluation": paper_evaluation})
        if reasons := _reasons(train["dropped"]):
            dropped.append(f"{TITLES.get(name, name)}: {reasons}")
    figures = _with_total(rows)
    figures.loc[figures.index[-1], "train"] = stage1["total"]
    share = stage1["validation"] / stage1["total"] if stage1["total"] else math.nan
    text = (
        f"The mixture has {stage1['total']:,} samples, {stage1['train']:,} for training and "
        f"{stage1['validation']:,} ({share:.1%}) for validation, split with seed {stage1['seed']}. "
    )
    text += (
        f"Dropped training rows, by reason: {'; '.join(dropped)}."
        if dropped
        else "No training row was dropped."
    )
    info = run_json.read(Path(run_dir))
    if info and (scored := info["recipe"]["mcq"]["rows"]):
        text += f" The first {scored:,} rows of each evaluation set are scored (Table 3)."
    page = _page(figures, TITLES)
    return Table("table1", "Table 1: stage-1 mixture", figures, page, text, origin_note(run_dir))


def table2(run_dir: str | Path) -> Table:
    """Composition of the stage-2 mixture and the share of replayed rows, from data/manifest.json."""
    stage2 = load(run_dir, "data/manifest.json", ("stage2",), writer="02_stage2")["stage2"]
    consultations, replay = stage2["notechat"], stage2["replay"]
    source = consultations.get("source", "notechat")
    title = SOURCES[source].title
    rows = []
    for name, counts in {source: consultations, "replay": replay}.items():
        # The paper's counts, including its replayed rows, only compare with a stage 2 on NoteChat.
        paper_train, paper_validation = published.STAGE2_ROWS[name] if source == "notechat" else (None, None)
        row = {"dataset": name, "train": counts["train"], "validation": counts["validation"]}
        rows.append(row | {"paper_train": paper_train, "paper_validation": paper_validation})
    figures = _with_total(rows)
    shares = [
        f"{replay[f'share_of_{unit}']:.1%} of the {unit.replace('_', ' ')}"
        for unit in ("rows", "tokens", "supervised_tokens")
        if replay.get(f"share_of_{unit}") is not None
    ]
    text = (
        f"Replay: {replay['rows_per_stage2_row']:.4f} rows per {title} row, which is "
        f"{replay['share_of_stage1']:.4f} of stage 1 (the k of Dong et al.). It makes up "
        f"{', '.join(shares) or 'an unknown share of the rows'} that stage 2 trains on. "
        f"{title}: {_row_counts(consultations)}; {consultations['validation_verbatim_in_train']:,} of "
        f"{consultations['validation']:,} validation rows also appear verbatim in the training rows. "
        f"{_note_counts(consultations)}"
    )
    page = _page(figures, {source: title, "replay": "stage-1 mixture (replay)"})
    if source != "notechat":
        page = page[["dataset", "train", "validation"]]
        text += f" The paper trained stage 2 on NoteChat, so its Table 2 has no counts for {title}."
    return Table("table2", "Table 2: stage-2 mixture", figures, page, text, origin_note(run_dir))


def _row_counts(consultations: dict) -> str:
    distinct = f"{consultations['distinct']:,} distinct"
    if "dropped" not in consultations:  # manifests of earlier versions count only the kept rows
        return f"{consultations['rows']:,} rows kept, {distinct}"
    reasons = _reasons(consultations["dropped"])
    read, kept = consultations["rows"], consultations["kept"]
    dropped = f"{read - kept:,} dropped" + (f" ({reasons})" if reasons else "")
    notes = _reasons(consultations.get("notes", {}))  # which manifests of earlier versions lack
    return f"{read:,} rows read, {dropped}, {kept:,} kept, {distinct}" + (f" ({notes})" if notes else "")


def _reasons(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in dropped.items() if count)


def _note_counts(consultations: dict) -> str:
    if not (with_note := consultations.get("rows_with_a_note")):
        return "No row has a clinical note, so notes shared by training and validation cannot be counted."
    shared = consultations["notes_on_both_sides"]
    return f"{with_note:,} rows have a clinical note; training and validation share {shared:,} of them."


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
            result = scores.get(score) or {}
            row |= {score: result.get("mean")}
            row |= {f"{score}_{bound}": result.get(bound) for bound in ("low", "high")}
        rows.append(row)
        cells = {title: interval(scores.get(score) or {}, digits=3) for score, title in SCORES.items()}
        if scores.get("rescaled"):  # the encoder has a baseline
            cells |= {"F1, rescaled": interval(scores["rescaled"]["f1"], digits=3)}
        cells |= {"words": interval(scores.get("words") or {}, digits=0)}
        page.append({"model": f"**{arms.title(model)}**", "n": summary["n"], **cells})
    for model, scores in published.BERTSCORE.items():
        row = {"whose": "published", "model": model, "n": published.BERTSCORE_N}
        rows.append(row | {score: float(text) for score, text in scores.items()})
        cells = {SCORES[score]: text for score, text in scores.items()}
        page.append({"model": f"{model}{_PAPER_SUFFIX}", "n": published.BERTSCORE_N} | cells)
    if reference := (summary.get("reference") or {}).get("words"):
        words = interval(reference, digits=0)
        page.append({"model": "physicians' answers", "n": summary["n"], "words": words})
    page = pd.DataFrame(page).fillna("")
    info = run_json.read(Path(run_dir))
    text = _text4(summary, info["recipe"]["consumer"]["cases"] if info else summary["n"])
    ours = page[~page["model"].str.endswith(_PAPER_SUFFIX)]
    short = ours.drop(columns=["precision", "recall"], errors="ignore")
    figures = pd.DataFrame(rows)
    return Table("table4", "Table 4: BERTScore", figures, page, text, origin_note(run_dir), short)


def _text4(summary: dict, requested_cases: int) -> str:
    scorer, fewer = summary["scorer"], ""
    if summary["n"] < requested_cases:
        fewer = f", fewer than the recipe's {requested_cases}, as no more are undamaged"
    rescaled = "rescaled" if scorer.get("rescaled") else "not rescaled"
    encoder = "" if "roberta-large" in str(scorer.get("model")) else " and uses another encoder"
    paragraphs = [
        f"{summary['n']} cases (the paper: {published.BERTSCORE_N}){fewer}, BERTScore "
        f"hash `{scorer.get('hash')}`, {rescaled}; 95% bootstrap intervals over the cases.",
        *(_differences4(model, scores) for model, scores in (summary.get("differences") or {}).items()),
        _control4(summary),
        f"The paper's rows: {published.BERTSCORE_PROTOCOL}. They are not comparable with this run, which "
        f"takes one answer per case{encoder}.",
        "Similarity to a physician's wording does not show safety, and it rewards matching length.",
    ]
    return "\n\n".join(filter(None, paragraphs))


def _control4(summary: dict) -> str:
    """How much of F1 depends on the patient: the gain against another patient's answer is in style only."""
    if not (control := summary.get("control")):
        return ""
    parts = [
        f"{arms.title(model)} {number(summary['models'][model]['f1']['mean'], 3)} and "
        f"{number(scores['f1']['mean'], 3)}, difference {interval(scores['gap'], digits=3)}"
        for model, scores in control.items()
    ]
    return (
        "Closer in content, or only in style? F1 against the patient's own physician and against another "
        f"patient's: {'; '.join(parts)}. Only the difference depends on what the patient asked."
    )


def _differences4(model: str, differences: dict) -> str:
    tested = {title: differences.get(score) for score, title in SCORES.items()}
    same_length = differences.get("length_matched") or {}
    tested["F1 with both answers cut to the same length"] = same_length.get("f1")
    tested = {title: row for title, row in tested.items() if row and row.get("mean") is not None}
    if not tested:
        return ""
    # A single case has no interval and no p.
    adjusted = statistics.holm([1.0 if row.get("p") is None else row["p"] for row in tested.values()])
    results = []
    for (title, row), p in zip(tested.items(), adjusted, strict=True):
        bounds = "no interval" if row.get("p") is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
        results.append((f"{title} ({row['mean']:+.3f}, {bounds}; corrected p = {p:.2g})", p < ALPHA))
    return (
        f"{arms.title(model)} minus {arms.title(differences.get('minus', 'base'))}, paired over the cases; "
        f"sign-flip test with Holm's correction over these {len(results)}, at {ALPHA}; the intervals are not "
        f"corrected. {significance(results)}"
    )


def protocols(run_dir: str | Path) -> Table:
    """Accuracy in percent per model, benchmark and protocol, from mcq/summary.json."""
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
    title = "Protocols: three ways to score the same questions"
    page, text = protocols_page(results), protocols_text(results)
    return Table("protocols", title, pd.DataFrame(rows), page, text, origin_note(run_dir))


def protocols_page(results: Sequence[dict]) -> pd.DataFrame:
    """One row per model and benchmark. Unparsed answers count as wrong."""
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
    """Compare each protocol's accuracy with the letter protocol's: (description, is significant).

    McNemar's test with Holm's correction over all comparisons; [] if no question was answered in words.
    """
    tested = [
        (f"{arms.title(result['model'])} on {TITLES[result['dataset']]}, {PROTOCOLS[protocol]}", difference)
        for result in results
        for protocol, difference in result.get("minus_scored", {}).items()
    ]
    comparisons = []
    adjusted = statistics.holm([difference["p"] for _, difference in tested])
    for (name, difference), p in zip(tested, adjusted, strict=True):
        points = f"{100 * difference['difference']:+.1f} points"
        comparisons.append((f"{name} ({points}; corrected p = {p:.2g})", p < ALPHA))
    return comparisons


def too_few(results: Sequence[dict], tests: int) -> str:
    """A note if there are too few questions for any of the `tests` to be significant; else ""."""
    most = max(result["n"] for result in results)
    smallest_p = 2.0 ** (1 - most) * tests  # of McNemar's exact test if all questions are discordant, by Holm
    return f" ({most} questions each: too few for any significant difference)" if smallest_p > ALPHA else ""


def protocols_text(results: Sequence[dict]) -> str:
    """How each protocol reads an answer, and which accuracies differ significantly from the letter's."""
    if not (comparisons := protocol_tests(results)):
        return "No question was answered in words."
    return (
        "Percent. Answers in words are decoded greedily and parsed in tiers. `as released` adds `Answer:` "
        "after the question, samples up to 128 tokens and searches prompt and output for `Answer: X`. Two "
        "different letters count as wrong, and so does a letter without `Answer:`, which is all that a model "
        "trained on letters gives. Paired with the most likely letter over the same questions: McNemar's "
        f"exact test with Holm's correction over {len(comparisons)}, at {ALPHA}"
        f"{too_few(results, len(comparisons))}. Significantly different: "
        f"{'; '.join(name for name, differs in comparisons if differs) or 'none'}."
    )
