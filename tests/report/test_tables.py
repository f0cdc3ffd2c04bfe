"""Tables 1 to 4 from a run's folder, and what they say below."""

import copy
import functools
import json
import re
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.evaluate import accuracy
from medkit.report import markdown, published, tables
from medkit.report.table3 import (
    calibration,
    general_ability,
    headline,
    near_ties,
    no_better_than_chance,
    option_order,
    pubmedqa_page,
    table3,
)
from medkit.runs import run_json, storage

MODELS = ("base", "med-mix", "med-nirvana", "control")


def mcq_items(n=(40, 30, 50), fold=20, models=MODELS):
    """Outcomes built so that the text below Table 3 is known: see `test_table3_text`."""
    rng = np.random.default_rng(0)
    frames = []
    for dataset, size in zip(published.SIZES, n, strict=True):
        letters = "ABC" if dataset == "pubmedqa" else "ABCD"
        gold = np.array([letters[i % len(letters)] for i in range(size)])
        wrong = np.array([letters[(i + 1) % len(letters)] for i in range(size)])
        guess = np.where(rng.random(size) < 1 / len(letters), gold, wrong)
        answers = {"base": guess, "med-mix": guess, "med-nirvana": guess, "control": guess}
        if dataset == "pubmedqa":
            answers = {"base": guess, "med-mix": gold, "med-nirvana": np.r_[gold[:-2], wrong[-2:]]}
            answers["control"] = np.where(np.arange(size) % 2, gold, wrong)
        for model in models:
            frame = pd.DataFrame({"gold": gold, "predicted": answers[model]})
            frame["correct"] = frame["gold"] == frame["predicted"]
            group = np.where(np.arange(size) < fold, "fold", "") if dataset == "pubmedqa" else "Anatomy"
            ids = [f"{dataset}-{i}" for i in range(size)]
            frames.append(
                frame.assign(model=model, dataset=dataset, item_id=ids, group=group, logprob_D=np.nan)
            )
    return pd.concat(frames, ignore_index=True)


@functools.cache
def _summary_of(models):
    return accuracy.mcq_summary(mcq_items(models=models))


def summary_of(models=MODELS):
    return copy.deepcopy(_summary_of(tuple(models)))


MANIFEST = {
    "recipe": "cpu",
    "sources": {
        "medqa": {
            "train": {"rows": 50, "records": 48, "dropped": {"empty option": 2}},
            "eval": {"records": 40},
        },
        "medmcqa": {"train": {"rows": 31, "records": 31, "dropped": {}}, "eval": {"records": 30}},
        "pubmedqa": {
            "train": {"rows": 321, "records": 321, "dropped": {"no context": 0}},
            "eval": {"records": 50},
        },
    },
    # 48 + 31 + 321 = 400; a tenth validates
    "stage1": {
        "counts": {"medqa": 48, "medmcqa": 31, "pubmedqa": 321},
        "total": 400,
        "train": 360,
        "validation": 40,
        "seed": 42,
    },
    "stage2": {
        "notechat": {
            "rows": 130,
            "dropped": {"no patient turn": 5, "speaker not known": 2, "line without a speaker": 0},
            "kept": 123,  # 130 - 5 - 2
            "distinct": 120,
            "rows_with_a_note": 0,
            "notes_on_both_sides": None,
            "train": 90,
            "validation": 24,
            "validation_verbatim_in_train": 4,
        },
        "replay": {
            "train": 30,
            "validation": 8,
            "rows_per_stage2_row": 30 / 90,
            "share_of_stage1": 30 / 360,
            "share_of_rows": 30 / 120,
            "share_of_tokens": 0.2,
            "share_of_supervised_tokens": 0.0125,
        },
    },
}


def columns(text: str) -> int:
    return max(map(len, text.splitlines()))


CELLS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=60)


@settings(deadline=None)
@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=4))
def test_a_table_for_a_terminal_fits_and_loses_nothing(rows):
    frame = pd.DataFrame(rows, columns=["model", "a title of some words", "MedQA"])
    text = markdown.plain_table(frame)
    assert columns(text) <= markdown.WIDTH
    put_in = "".join([*frame.columns, *(markdown._strip_emphasis(cell) for cell in frame.to_numpy().ravel())])
    # Beside what was put in there are only spaces and the line under the titles.
    assert Counter(re.sub(r"[\s-]", "", text)) == Counter(re.sub(r"[\s-]", "", put_in))


def test_cells_that_are_too_long_are_broken():
    frame = pd.DataFrame({"model": ["a" * 60, "b"], "n": ["10,178", ""], "MedQA": ["**c** " * 20, ""]})
    text = markdown.plain_table(frame)
    assert columns(text) <= 100
    assert text.count("a") == 60 and text.count("c") == 20 and "*" not in text
    assert "10,178" in text
    narrow = frame.assign(model=["a", "b"], MedQA=["c", "d"])
    assert markdown.plain_table(narrow).splitlines() == [
        "model    n       MedQA",
        "-------  ------  -------",
        "a        10,178  c",
        "b                d",
    ]


def interval(mean, half):
    return {"mean": mean, "low": mean - half, "high": mean + half}


CONSUMER = {
    "scorer": {"model": "minilm", "layers": 6, "hash": "minilm_L6_no-idf", "rescaled": False},
    "n": 16,
    "models": {
        "base": {"precision": interval(0.4, 0.02), "recall": interval(0.5, 0.02), "f1": interval(0.45, 0.02)}
        | {"rouge_l": interval(0.1, 0.01), "words": interval(120.0, 20.0), "style": {"lists": 0.5}},
        "med-nirvana": {
            "precision": interval(0.5, 0.02),
            "recall": interval(0.5, 0.02),
            "f1": interval(0.5, 0.02),
        },
    },
    "differences": {
        "med-nirvana": {
            "minus": "base",
            "precision": interval(0.1, 0.03) | {"p": 0.01},
            "f1": interval(0.05, 0.06) | {"p": 0.2},
        }
    },
    "reference": {"words": interval(90.0, 15.0)},
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    items = mcq_items()
    storage.write_json(folder / "data/manifest.json", MANIFEST)
    storage.write_csv(folder / "mcq/items.csv", items)
    storage.write_json(folder / "mcq/summary.json", accuracy.mcq_summary(accuracy.read_items(folder)))
    storage.write_json(folder / "consumer/summary.json", CONSUMER)
    return folder


def test_items_survive_the_file(run_dir):
    read, written = accuracy.read_items(run_dir), mcq_items()
    assert read["predicted"].tolist() == written["predicted"].tolist()
    assert read["correct"].tolist() == written["correct"].tolist()
    assert accuracy.is_correct(read).sum() == written["correct"].sum()


def test_mcq_summary_counts_and_corrections():
    summary = summary_of()
    assert summary["models"] == list(MODELS)
    assert {name: dataset["n"] for name, dataset in summary["datasets"].items()} == {
        "medqa": 40,
        "medmcqa": 30,
        "pubmedqa": 50,
    }
    assert summary["datasets"]["medqa"]["majority"] == {"letter": "A", "share": 0.25}
    assert len(summary["comparisons"]) == 5 * 3  # five pairs, three benchmarks
    lost = next(
        row
        for row in summary["comparisons"]
        if (row["dataset"], row["first"], row["second"]) == ("pubmedqa", "med-mix", "control")
    )
    # the control has every even item wrong: 25 of 50 lost, none gained: p = 2 / 2**25. Only what base
    # lost to the two that know the abstracts is rarer, so Holm's factor is that of the third: 15 - 2 = 13
    assert (lost["first_only"], lost["second_only"], lost["difference"]) == (25, 0, -0.5)
    assert lost["p"] == pytest.approx(2 / 2**25)
    assert lost["p_holm"] == pytest.approx(13 * 2 / 2**25)
    assert all(row["p_holm"] >= row["p"] for row in summary["comparisons"])
    assert summary["pubmedqa"]["med-mix"]["fold"]["n"] == 20
    assert summary["pubmedqa"]["med-mix"]["all"]["n"] == 50
    shares = [summary["datasets"][name]["models"]["med-mix"]["accuracy"] for name in published.SIZES]
    assert summary["average"]["med-mix"]["accuracy"] == pytest.approx(sum(shares) / 3)


def test_mcq_summary_of_a_single_model_and_benchmark():
    items = mcq_items(models=("base",))
    summary = accuracy.mcq_summary(items[items["dataset"] == "medqa"])
    assert list(summary["datasets"]) == ["medqa"] and summary["comparisons"] == []
    assert summary["pubmedqa"] == {} and summary["average"]["base"]["benchmarks"] == 1


def test_mcq_summary_counts_unparsed_as_wrong():
    items = mcq_items(models=("base",)).drop(columns="correct")
    items["predicted"] = np.where(items.index % 2, "", items["predicted"])
    own = accuracy.mcq_summary(items)["datasets"]["medqa"]["models"]["base"]
    assert own["n"] == 40 and own["unparsed"] == 20 and own["correct"] <= 20


def test_table1(run_dir):
    table = tables.table1(run_dir)
    figures = table.figures.set_index("dataset")
    assert figures["train"].to_dict() == {"medqa": 48, "medmcqa": 31, "pubmedqa": 321, "total": 400}
    assert figures.loc["medqa", "dropped"] == 2
    # the paper's Table 1: 10,178 + 182,822 + 211,269 = 404,269
    assert figures.loc["total", "paper_train"] == 404_269
    assert figures["paper_evaluation"].to_dict() | {"total": 0} == {
        "medqa": 1273,
        "medmcqa": 4183,
        "pubmedqa": 1000,
        "total": 0,
    }
    assert "400 samples, 360 for training and 40 (10.0%) for validation" in table.text
    assert "MedQA: 2 empty option." in table.text and "no context" not in table.text


def test_table2(run_dir):
    table = tables.table2(run_dir)
    figures = table.figures.set_index("dataset")
    assert figures["train"].to_dict() == {"notechat": 90, "replay": 30, "total": 120}
    assert figures["paper_train"].to_dict() == {"notechat": 100_000, "replay": 33_333, "total": 133_333}
    assert "0.3333 rows per NoteChat row, which is 0.0833 of stage 1" in table.text
    assert "25.0% of the rows, 20.0% of the tokens, 1.2% of the supervised tokens" in table.text
    assert "4 of 24 validation rows also appear verbatim in the training rows." in table.text
    assert (
        "NoteChat: 130 rows read, 7 dropped (5 no patient turn, 2 speaker not known), 123 kept, 120 distinct;"
    ) in table.text
    assert "No row has a clinical note" in table.text and "share 0" not in table.text


def test_table2_of_other_consultations_has_no_count_of_the_papers_beside_it(tmp_path):
    talks = MANIFEST["stage2"]["notechat"] | {"source": "mts_dialog"}
    stage2 = MANIFEST["stage2"] | {"notechat": talks}
    storage.write_json(tmp_path / "data/manifest.json", MANIFEST | {"stage2": stage2})
    table = tables.table2(tmp_path)
    assert table.figures["dataset"].tolist() == ["mts_dialog", "replay", "total"]
    assert table.figures["train"].tolist() == [90, 30, 120]
    assert table.figures[["paper_train", "paper_validation"]].isna().all(axis=None)
    assert table.page.columns.tolist() == ["dataset", "train", "validation"]
    assert table.page["dataset"].iloc[0] == "MTS-Dialog"
    assert "The paper trained stage 2 on NoteChat, so its Table 2 has no counts for MTS-Dialog." in table.text


def test_table2_counts_notes_where_there_are_any(tmp_path):
    talks = MANIFEST["stage2"]["notechat"] | {"rows_with_a_note": 3, "notes_on_both_sides": 0, "dropped": {}}
    talks |= {"kept": 130, "notes": {"rows cut at a stage line": 2}}
    stage2 = MANIFEST["stage2"] | {"notechat": talks}
    storage.write_json(tmp_path / "data/manifest.json", MANIFEST | {"stage2": stage2})
    text = tables.table2(tmp_path).text
    assert "3 rows have a clinical note; training and validation share 0 of them." in text
    assert "130 rows read, 0 dropped, 130 kept, 120 distinct (2 rows cut at a stage line)" in text
    earlier = {
        name: value
        for name, value in talks.items()
        if name not in ("dropped", "notes", "kept", "rows_with_a_note", "notes_on_both_sides")
    }
    stage2 = MANIFEST["stage2"] | {"notechat": earlier}
    storage.write_json(tmp_path / "data/manifest.json", MANIFEST | {"stage2": stage2})
    assert "130 rows kept, 120 distinct" in tables.table2(tmp_path).text


def test_table3_figures(run_dir):
    figures = table3(run_dir).figures
    ours = figures[figures["whose"] == "this run"]
    assert len(ours) == 4 * 5  # four models on three benchmarks, the fold, and the average
    row = ours[(ours["model"] == "med-nirvana") & (ours["benchmark"] == "pubmedqa")].iloc[0]
    assert (row["n"], row["correct"], row["percent"]) == (50, 48, 96.0)
    assert row["low"] < 96 < row["high"] and row["chance"] == pytest.approx(100 / 3)
    others = figures[figures["whose"] == "published"]
    assert len(others) == len(published.audit()) + sum("average" in row.percents for row in published.ROWS)
    assert others["source"].notna().all() and others["protocol"].notna().all()


def test_table3_page(run_dir):
    page = table3(run_dir).page.set_index("model")
    assert page.loc["questions", "PubMedQA"] == "50" and page.loc["chance", "MedQA"] == "25.0"
    assert page.loc["questions", "PubMedQA, official fold"] == "20"
    assert page.loc["**Med-Nirvana**", "PubMedQA"].startswith("96.0 [")
    nirvana = page.loc["Med-Nirvana (4-bit quantized) 8B"]
    # 71.67% of 1,000: by statsmodels' proportion_confint(716.7, 1000, method="wilson"), 68.8 to 74.4
    assert nirvana["PubMedQA"] == "71.67† [68.8, 74.4]"
    assert nirvana["MedQA"].startswith("53.55† [") and nirvana["MedMCQA"].startswith("52.77† [")
    assert nirvana["average"] == "59.33"  # its interval would need the three tests' outcomes
    assert nirvana["how read"] == "first-hand"
    assert page.loc["Med-Mix (4-bit quantized) 8B", "PubMedQA"] == "79.1 [76.5, 81.5]"
    assert page.loc["GPT-4", "how read"] == "transcribed"
    # two rows of one name are two models
    assert page.loc["MEDITRON 7B", "MedQA"][:4] == "37.4" and page.loc["MEDITRON 70B", "MedQA"][:4] == "59.8"


def test_table3_text(run_dir):
    """med-mix knows every abstract, med-nirvana all but two, the control every other; exams are guessed."""
    text = table3(run_dir).text
    lines = {line.split(": ")[0]: line for line in text.splitlines() if line.startswith("- ")}
    assert len(lines) == 3
    for exam in ("MedQA", "MedMCQA"):
        assert lines[f"- {exam}. Significantly different"].count("corrected p = 1)") == 5
        assert ": none. Not significantly different: " in lines[f"- {exam}. Significantly different"]
    yes, no = lines["- PubMedQA. Significantly different"].split(" Not significantly different: ")
    assert "Med-Nirvana minus Med-Mix, stage 2 with replay (-4.0, " in no  # 2 of 50
    assert "; 0 and 2 of 50; corrected p = 1)" in no
    assert "control (no replay) minus Med-Mix, stage 2 without replay (-50.0, " in yes
    assert yes.count("corrected p") == 4
    blind = next(part for part in text.split("\n\n") if part.startswith("Not shown to be better than chance"))
    assert "MedQA (25.0): base, Med-Mix, Med-Nirvana, control (no replay)" in blind
    assert "Med-Mix" not in blind.split("PubMedQA")[1]


def test_the_headline_is_three_sentences(run_dir):
    """Only PubMedQA differs: 50 questions, of which Med-Nirvana has two wrong and the control every other."""
    first, second, third = headline(storage.load(run_dir, "mcq/summary.json", ())).split("\n\n")
    assert first.startswith("Accuracy in percent on MedQA (n = 40), MedMCQA (n = 30) and PubMedQA (n = 50):")
    assert first.count("100.0") == 1 and " and 96.0; control (no replay) " in first
    assert second == (
        "Change after stage 2, in points: stage 2 with replay, MedQA +0.0, MedMCQA +0.0 and PubMedQA -4.0; "
        "stage 2 without replay, MedQA +0.0, MedMCQA +0.0 and PubMedQA -50.0. On MedQA and MedMCQA that need "
        "not be forgetting: Med-Mix is not shown to be better there than an answer that ignores the question."
    )
    assert third.startswith(
        "Significantly different after Holm's correction over 15 paired comparisons: PubMedQA, "
    )
    assert third.count("PubMedQA") == 4 and "MedQA," not in third.replace("PubMedQA", "")
    assert third.endswith("; the others are not.")


def test_the_headline_of_one_model_compares_nothing():
    said = headline(summary_of(("base",)))
    assert said.startswith("Accuracy in percent on MedQA") and "\n" not in said
    two = headline(summary_of(("base", "control")))
    assert two.count("\n\n") == 0  # the two are not a pair that shows anything
    guessed = mcq_items(models=("base", "med-mix")).query("dataset == 'medqa'")
    assert headline(accuracy.mcq_summary(guessed)).endswith("over 1 paired comparisons: none.")


def test_differences_are_significant_or_not():
    rows = [("a", True), ("b", False), ("c", True)]
    assert markdown.significance(rows, "X") == (
        "X. Significantly different: a; c. Not significantly different: b."
    )
    assert markdown.significance([]) == "Significantly different: none. Not significantly different: none."


def test_pubmedqa_page(run_dir):
    page = pubmedqa_page(json.loads((run_dir / "mcq/summary.json").read_text()))
    assert page["rows"].tolist() == ["all", "fold"] * 4
    row = page[(page["model"] == "Med-Nirvana") & (page["rows"] == "all")].iloc[0]
    # gold is A, B, C in turn over 50: 17, 17 and 16; the two wrong ones are items 48 (A) and 49 (B)
    assert row["accuracy"].startswith("96.0 [") and row["never saying maybe"] == "68.0"
    assert row["recall of maybe"] == "100.0 [80.6, 100.0]" and row["always yes"] == "34.0"


def test_table3_of_one_model_says_there_is_nothing_to_compare(tmp_path):
    storage.write_json(tmp_path / "mcq/summary.json", summary_of(("base",)))
    assert "there is nothing to compare" in table3(tmp_path).text


def test_table4(run_dir):
    table = tables.table4(run_dir)
    page = table.page.set_index("model")
    assert page.loc["**base**", "F1"] == "0.450 [0.430, 0.470]"
    assert page.loc["**base**", "words"] == "120 [100, 140]"
    assert page.loc["**Med-Nirvana**", "ROUGE-L"] == ""  # not in the summary, so not in the table
    assert page.loc[f"{published.MED_NIRVANA}, the paper", "F1"] == "0.864375"
    assert page.loc["physicians' answers", "words"] == "90 [75, 105]"
    assert "minilm_L6_no-idf" in table.text and "another encoder" in table.text
    yes, no = table.text.split("Significantly different: ")[1].split("Not significantly different: ")
    # Of two, Holm doubles the smaller p: 2 x 0.01, and leaves the larger: 0.2.
    assert no.startswith("F1 (+0.050, -0.010 to +0.110; corrected p = 0.2)")
    assert yes.startswith("precision (+0.100, +0.070 to +0.130; corrected p = 0.02)")


def test_table4_says_how_much_depends_on_the_patient(tmp_path):
    control = {"base": {"f1": {"mean": 0.2}, "gap": {"mean": 0.25, "low": 0.2, "high": 0.3}}}
    storage.write_json(tmp_path / "consumer/summary.json", CONSUMER | {"control": control})
    text = tables.table4(tmp_path).text
    assert "base 0.450 and 0.200, difference 0.250 [0.200, 0.300]. Only the difference depends" in text
    assert "; the intervals are not corrected. Significantly" in text


def test_table4_tolerates_a_summary_without_extras(tmp_path):
    bare = {key: CONSUMER[key] for key in ("scorer", "n")} | {"models": {"base": {"f1": {"mean": 0.4}}}}
    storage.write_json(tmp_path / "consumer/summary.json", bare)
    table = tables.table4(tmp_path)
    assert table.page.set_index("model").loc["**base**", "F1"] == "0.400"


def test_write_leaves_csv_and_markdown_of_every_table(run_dir):
    paths = tables.write(run_dir)
    assert sorted(path.name for path in paths) == sorted(
        f"table{i}.{kind}" for i in range(1, 5) for kind in ("csv", "md")
    )
    for path in paths:
        if path.suffix == ".csv":
            assert len(pd.read_csv(path)) == len(getattr(tables, path.stem)(run_dir).figures)
        else:
            text = path.read_text()
            assert text.startswith(f"# Table {path.stem[-1]}") and "nan" not in text and "None" not in text


def test_what_a_terminal_shows_is_short_and_says_where_the_rest_is(run_dir):
    tables.write(run_dir)
    text = tables.terminal(run_dir)
    assert columns(text) <= markdown.WIDTH
    third = text.split("Table 3:")[1].split("Table 4:")[0]
    for model in ("base", "Med-Mix", "Med-Nirvana", "control (no replay)"):
        assert third.count(f"\n{model}  ") == 1
    assert "GPT-4" not in text and "GPT-4" in (run_dir / "tables" / "table3.md").read_text()
    assert "the paper" not in text.split("Table 4:")[1].split("\n\n")[1]
    assert text.endswith(f"{run_dir / 'tables'}/*.md, *.csv")


def test_a_run_without_tables_shows_none(tmp_path):
    assert tables.terminal(tmp_path) == ""


@pytest.mark.parametrize(
    ("name", "notebook"),
    [
        ("data/manifest.json", "01_stage1"),
        ("mcq/summary.json", "03_mcq_eval"),
        ("consumer/summary.json", "04_consumer_eval"),
    ],
)
def test_a_missing_piece_is_named_with_its_notebook(run_dir, tmp_path, name, notebook):
    for other in ("data/manifest.json", "mcq/summary.json", "consumer/summary.json"):
        if other != name:
            storage.write_text(tmp_path / other, (run_dir / other).read_text())
    with pytest.raises(storage.ResultsError) as refusal:
        tables.write(tmp_path)
    message = str(refusal.value)
    assert name in message and notebook in message and "\n" not in message
    assert not (tmp_path / "tables").exists()


def test_malformed_pieces_are_refused(tmp_path):
    with pytest.raises(storage.ResultsError, match=r"items\.csv is missing; run notebook 03_mcq_eval"):
        accuracy.read_items(tmp_path)
    storage.write_text(tmp_path / "mcq/items.csv", "")
    with pytest.raises(MedkitError, match="cannot be parsed"):
        accuracy.read_items(tmp_path)
    storage.write_text(tmp_path / "mcq/summary.json", "{")
    with pytest.raises(storage.ResultsError, match="is not JSON; run notebook 03_mcq_eval"):
        table3(tmp_path)
    storage.write_text(tmp_path / "data/manifest.json", json.dumps({**MANIFEST, "stage2": None}))
    with pytest.raises(storage.ResultsError, match="lacks stage2; run notebook 02_stage2"):
        tables.table2(tmp_path)


def test_a_run_on_the_built_in_corpus_says_so_above_its_tables(tmp_path):
    from medkit.report.markdown import BUILT_IN, origin_note

    summary = summary_of()
    storage.write_json(tmp_path / "mcq" / "summary.json", summary)
    assert BUILT_IN not in table3(tmp_path).markdown()
    storage.write_json(tmp_path / "run.json", run_json.describe("cpu"))
    assert origin_note(tmp_path) == BUILT_IN
    assert table3(tmp_path).markdown().splitlines()[2] == f"**{BUILT_IN}**"
    storage.write_json(tmp_path / "run.json", run_json.describe("cpu", data_dir="somewhere"))
    assert origin_note(tmp_path) == ""


@pytest.mark.parametrize("rows", [0, 60])
def test_table1_says_how_many_evaluation_rows_are_scored(run_dir, rows):
    storage.write_json(run_dir / "run.json", run_json.describe("cpu", f"mcq.rows={rows}"))
    scored = "The first 60 rows of each evaluation set are scored"
    assert (scored in tables.table1(run_dir).text) == bool(rows)


def test_answers_that_are_one_letter_are_named():
    from medkit.report.table3 import constant_answers

    items = mcq_items(models=("base", "med-mix"))
    base = (items["model"] == "base") & (items["dataset"] == "medqa")
    items.loc[base, "predicted"] = "A"
    items["correct"] = items["gold"] == items["predicted"]
    said = constant_answers(accuracy.mcq_summary(items))
    assert said == "Nearly all answers are one letter (its share in brackets). MedQA: base (A, 100%)."
    assert constant_answers(summary_of(("med-mix",))) == ""


@pytest.mark.parametrize(
    ("recipe", "models", "said"),
    [
        ("paper", MODELS, True),
        ("as_released", ("base", "med-mix"), True),
        ("recommended", MODELS, False),  # the model's own template
        ("paper", ("base",), False),  # no difference is printed
        ("paper", ("med-mix", "med-nirvana"), False),
    ],
)
def test_table3_says_that_a_difference_to_the_base_contains_the_template(tmp_path, recipe, models, said):
    storage.write_json(tmp_path / "mcq/summary.json", summary_of(models))
    storage.write_json(tmp_path / "run.json", run_json.describe(recipe))
    text = table3(tmp_path).text
    assert ("minus base combines the effects of the template and of the training" in text) == said
    assert "ties" not in text  # a summary of an earlier version, which did not count them


def test_confidence_order_and_general_ability_are_a_line_each():
    gap = {"dataset": "medqa", "difference": 0.25, "low": 0.1, "high": 0.4}
    few = {"medqa": {"base": {"note": "few answers"}, "med-mix": {"note": "few answers"}}}
    assert calibration({"calibration": few, "overconfidence": [gap]}) == (
        "Change of overconfidence (mean confidence minus accuracy) from Med-Mix to Med-Nirvana, in points: "
        "MedQA 25.0 [10.0, 40.0]. Few answers."
    )
    assert calibration({"calibration": {"medqa": {"base": {"note": ""}}}, "overconfidence": []}) == ""
    own = {"n": 20, "consistency": 0.5, "accuracies": [0.4, 0.5, 0.25]}
    letters = {"n": 20, "consistency": 0.0, "accuracies": [1.0, 0.0, 0.0]}
    models = {"base": own, "med-mix": letters}
    said = option_order({"option_order": {"pubmedqa": models, "all": models}})
    assert said.startswith("Percent right under each order of the options, the original first;")
    assert said.endswith(
        "- PubMedQA, first 20 questions: base 40.0, 50.0, 25.0 (50.0); Med-Mix 100.0, 0.0, 0.0 (0.0)."
    )
    assert option_order({"option_order": {}}).startswith("No question was asked")
    one = {"n": 128, "accuracy": 0.5, "low": 0.4, "high": 0.6, "perplexity": 20, "perplexity_low": 18}
    said = general_ability({"general": {"models": {"base": one | {"perplexity_high": 22}}}})
    assert "base 50.0 [40.0, 60.0] percent of 128 questions right, perplexity 20.0 [18.0, 22.0]." in said
    assert general_ability({"general": {}}).startswith("General ability was not measured")
    tasks = {"hellaswag": {"acc,none": 0.412, "acc_stderr,none": 0.005, "n": 100, "version": 1}}
    assert general_ability({"general": {}, "lm_eval": {"base": tasks}}) == (
        "By lm-evaluation-harness, each with its standard error: base hellaswag acc 0.412 (0.005)."
    )


def test_near_ties_are_summed_over_the_models():
    own = {"rescored": 3, "flips": 1, "invalid": 0, "largest_move": 0.01, "tolerance": 0.02}
    other = {"rescored": 1_000, "flips": 0, "invalid": 2, "largest_move": 0.001, "tolerance": 0.03}
    said = near_ties({"scoring": {"base": own, "med-mix": other}})
    assert said.startswith(
        "1,003 answers were near-ties (within 0.03 nats) and were scored again on their own: 1 changed"
    )
    assert "moved by at most 0.01 nats. 2 answers were not finite, and 0 questions were too long" in said
    said = near_ties({"scoring": {"base": own | {"too_long": 7}}})
    assert said.endswith("and 7 questions were too long for the model; these count as wrong.")


def test_exams_leave_table_3_and_the_protocols_where_there_are_any(tmp_path):
    summary = summary_of()
    storage.write_json(tmp_path / "mcq/summary.json", summary | {"protocols": []})
    assert tables.write_exams(tmp_path).name == "table3"
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == ["table3.csv", "table3.md"]
    assert tables.for_notebook(tmp_path, 3).startswith("### Table 3")


def test_table3_counts_ties(tmp_path):
    summary = summary_of(("base", "med-mix", "med-nirvana"))
    counts = {"base": (2, ""), "med-mix": (0, ""), "med-nirvana": (1, "the model's code does not ...")}
    summary["scoring"] = {name: {"ties": n, "head_note": note} for name, (n, note) in counts.items()}
    storage.write_json(tmp_path / "mcq/summary.json", summary)
    text = table3(tmp_path).text
    assert "won by the first of them: base 2; Med-Nirvana 1. The letters' logits" in text
    assert "in float32, except for Med-Nirvana, where the model rounds them." in text
    summary["scoring"] = {"base": {"ties": 0, "head_note": ""}}
    storage.write_json(tmp_path / "mcq/summary.json", summary)
    text = table3(tmp_path).text
    assert "the first of them: none. The letters' logits are computed in float32." in text
    assert "except for" not in text


def test_an_accuracy_below_the_most_frequent_answers_is_no_skill():
    model = {"accuracy": 0.32, "low": 0.3, "high": 0.34}
    dataset = {"chance": 0.25, "majority": {"share": 0.31}, "models": {"base": model}}
    assert "PubMedQA (31.0): base" in no_better_than_chance({"datasets": {"pubmedqa": dataset}})
