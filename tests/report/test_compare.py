"""Two results on the same questions, and samples of lm-evaluation-harness beside a run."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medkit import MedkitError
from medkit.__main__ import main
from medkit.evaluate import statistics
from medkit.report import compare, harness
from medkit.runs import run_json, storage

GOLD = "ABCD" * 15  # 60 questions


def outcomes(model: str, predicted: str, dataset: str = "medmcqa", gold: str = GOLD) -> pd.DataFrame:
    rows = {"model": model, "dataset": dataset, "item_id": [f"q{n}" for n in range(len(gold))]}
    frame = pd.DataFrame(rows | {"gold": list(gold), "predicted": list(predicted)})
    return frame.assign(correct=frame["gold"] == frame["predicted"])


def side(name: str, *frames: pd.DataFrame, **fields) -> compare.Side:
    return compare.Side(name, pd.concat(frames), {"answers": "letter"}, **fields)


WRONG = "BCDA" * 15
FIRST = side("one", outcomes("base", GOLD[:30] + WRONG[30:]))  # 30 of 60
SECOND = side("two", outcomes("base", WRONG[:2] + GOLD[2:50] + WRONG[50:]))  # 2 to 49: 48 of 60


def test_the_paired_difference_by_arithmetic():
    (row,) = compare.compare(FIRST, SECOND)["comparisons"]
    # first alone: questions 0 and 1; second alone: 30 to 49; 48/60 - 30/60 = 18/60 = (20 - 2)/60
    assert (row["n"], row["first_only"], row["second_only"]) == (60, 2, 20)
    assert (row["first_accuracy"], row["second_accuracy"]) == (0.5, 0.8)
    assert row["difference"] == pytest.approx(0.3) and row["low"] < 0.3 < row["high"]
    assert row["p_holm"] == row["p"] == pytest.approx(stats.binomtest(2, 22).pvalue)


def test_holm_runs_over_all_rows_and_models_are_paired_by_name():
    first = side("one", outcomes("base", GOLD), outcomes("med-mix", WRONG), outcomes("control", GOLD))
    second = side("two", outcomes("med-mix", GOLD), outcomes("base", GOLD))
    found = compare.compare(first, second)["comparisons"]
    assert [(row["first"], row["second"]) for row in found] == [("base", "base"), ("med-mix", "med-mix")]
    assert found[1]["p_holm"] == pytest.approx(2 * found[1]["p"])  # the smaller of two
    alone = compare.compare(side("x", outcomes("other", GOLD)), first)["comparisons"]
    assert [row["second"] for row in alone] == ["base", "med-mix", "control"]  # no name in common


def test_only_the_same_questions_are_compared_and_the_rest_is_counted():
    longer = side("two", outcomes("base", GOLD + "A", gold=GOLD + "A"))
    found = compare.compare(FIRST, longer)
    assert found["comparisons"][0]["n"] == 60
    assert found["left_out"] == ["medmcqa: 1 questions that only one of them answered"]
    corrected = side("two", outcomes("base", GOLD, gold="D" + GOLD[1:]))  # one answer changed since
    found = compare.compare(FIRST, corrected)
    assert found["comparisons"][0]["n"] == 59
    assert found["left_out"] == ["medmcqa: 1 questions with another correct answer"]


def test_ids_that_number_other_questions_are_refused():
    other = side("two", outcomes("base", GOLD, gold=WRONG))
    with pytest.raises(MedkitError, match="60 ids that stand for different questions"):
        compare.compare(FIRST, other)
    builtin = side("two", outcomes("base", GOLD), origin="builtin")
    with pytest.raises(MedkitError, match="built-in corpus"):
        compare.compare(FIRST, builtin)
    with pytest.raises(MedkitError, match="no question in common"):
        compare.compare(FIRST, side("two", outcomes("base", GOLD, dataset="medqa")))


def test_what_differs_is_said():
    settings = {"stage2.seed": "0", "stage2.learning_rate": "0.0003"}
    first = side("one", outcomes("base", GOLD), settings=settings)
    second = compare.Side("two", outcomes("base", GOLD), {"answers": "task"}, settings | {"stage2.seed": "1"})
    found = compare.compare(first, second)
    assert found["settings"] == {"stage2.seed": ["0", "1"]}
    assert found["protocol"] == {"answers": ["letter", "task"]}
    assert "which affects every difference above" in compare.text(found)
    assert "No setting differs." in compare.text(compare.compare(first, first))
    unknown = compare.compare(FIRST, FIRST)
    assert "samples are not known" in compare.text(unknown) and "No setting" not in compare.text(unknown)


def test_the_result_is_said_first_with_what_the_machine_adds():
    versions = {"torch": "2.13.0", "cores": "2"}
    first = side("one", outcomes("base", GOLD[:30] + WRONG[30:]), origin="builtin", machine=versions)
    second = side("two", outcomes("base", GOLD), origin="builtin", machine=versions | {"torch": "2.10.0"})
    found = compare.compare(first, second)
    shown = compare.terminal(found)
    # 30 questions that the second alone has right, of 60
    assert shown.startswith("1 of 1 differences significant at 0.05. Of 60 pairs of answers 30 are right")
    assert "Versions and hardware that differ (first, second): torch 2.13.0, 2.10.0." in shown
    assert "say nothing about medicine" in " ".join(shown.split())
    assert "medicine" not in compare.text(compare.compare(FIRST, SECOND))


@given(st.integers(1, 400), st.floats(0, 1))
@settings(deadline=None, max_examples=50)
def test_the_detectable_difference_is_one_that_can_be(n, share):
    discordant = round(share * n)
    found = statistics.detectable_difference(n, discordant)
    if n < 6:
        assert math.isnan(found)
    else:
        assert 0 < found <= 1
        assert found >= statistics.detectable_difference(4 * n, 4 * discordant) - 1e-9
        assert found <= statistics.detectable_difference(n, discordant, 0.01) or n < 8


def test_the_detectable_difference_by_hand():
    """Connor 1987: n = (1.96 sqrt(p) + 0.84 sqrt(p - d^2))^2 / d^2; p = 0.2, d = 0.1 gives 154.6. The exact
    test needs a little more."""
    needed = (1.959964 * math.sqrt(0.2) + 0.841621 * math.sqrt(0.2 - 0.01)) ** 2 / 0.01
    assert needed == pytest.approx(154.6, abs=0.1)
    assert statistics.detectable_difference(155, 31) == pytest.approx(0.104, abs=5e-4)
    # With hardly any that differ, six must, all in one direction: 2 / 2^6 = 0.031 and 2 / 2^5 = 0.063.
    assert stats.binom(100, statistics.detectable_difference(100, 0)).sf(5) == pytest.approx(0.8)
    assert math.isnan(statistics.detectable_difference(0, 0))
    assert math.isnan(statistics.detectable_difference(5, 0))  # never significant


def test_the_detectable_difference_is_found_four_times_in_five():
    rng, n, discordant = np.random.default_rng(3), 120, 30
    difference = statistics.detectable_difference(n, discordant)
    first, second = ((discordant / n + sign * difference) / 2 for sign in (-1, 1))
    draws = rng.choice([-1, 0, 1], (400, n), p=[first, 1 - first - second, second])
    p = [stats.binomtest(int((row > 0).sum()), int((row != 0).sum())).pvalue for row in draws]  # McNemar's
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.8, abs=0.06)  # 3 standard errors of 400 draws


def sample(number: int, target, responses, doc=None, **metric) -> dict:
    row = {"doc_id": number, "doc": doc or {}, "target": target, "filtered_resps": responses}
    return row | (metric or {"acc": 1.0})


def write_samples(folder, task, *rows):
    path = folder / f"samples_{task}_2026-01-02T03-04-05.678901.jsonl"
    storage.write_jsonl(path, rows)
    return path


def test_samples_of_the_harness(tmp_path):
    folder = tmp_path / "org__model"
    four = [[-3.0, False], [-1.0, True], [-2.0, False], [-4.0, False]]
    write_samples(
        folder, "medmcqa", sample(0, 1, four, {"id": "q7"}), sample(1, "3", four, {"id": "q8"}, acc=0)
    )
    write_samples(folder, "medqa_4options", sample(12, "B", four))
    write_samples(folder, "pubmedqa", sample(3, "maybe", ["yes"], {"pubid": 999}, exact_match=0.0))
    found = harness.read_samples(folder).set_index("item_id")
    assert set(found["model"]) == {"org__model"}
    columns = ["dataset", "gold", "predicted", "correct"]
    assert found.loc["q7", columns].tolist() == ["medmcqa", "B", "B", True]
    assert found.loc["q8", columns].tolist() == ["medmcqa", "D", "B", False]
    assert found.loc["medqa-eval-000012", columns].tolist() == ["medqa", "B", "B", True]
    assert found.loc["999", columns].tolist() == ["pubmedqa", "C", "", False]  # it generated text


@pytest.mark.parametrize(
    ("task", "rows", "said"),
    [
        ("arc_easy", [sample(0, 0, [[-1.0, True]])], "task arc_easy is not MedQA, MedMCQA or PubMedQA"),
        ("medmcqa", [sample(0, 9, [[-1.0, True]], {"id": "a"})], "line 1: not a sample of the harness"),
        ("medmcqa", [sample(0, 0, [[-1.0, True]])], "KeyError: 'id'"),
        ("medmcqa", ["text"], "line 1: not a sample of the harness"),
        ("medmcqa", [sample(0, 0, [[-1.0, True]], {"id": "a"})] * 2, "answers a twice"),
        ("medmcqa", [], "contains no samples"),
    ],
)
def test_samples_that_cannot_be_read_are_one_line(tmp_path, task, rows, said):
    path = write_samples(tmp_path, task, *rows)
    with pytest.raises(MedkitError) as refused:
        harness.read_samples(path)
    assert said in str(refused.value) and "\n" not in str(refused.value)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of 60 MedMCQA questions, 30 of them right."""
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / "results"))
    place = storage.folder("a-run")
    storage.write_json(place / "run.json", run_json.describe("recommended"))
    storage.write_csv(place / "mcq" / "items.csv", outcomes("base", GOLD[:30] + WRONG[30:]))
    return place


def test_the_command(run, tmp_path, capsys):
    rows = [
        sample(n, letter, [[-1.0 - (option != letter), False] for option in "ABCD"], {"id": f"q{n}"})
        for n, letter in enumerate(GOLD)
    ]
    write_samples(tmp_path / "elsewhere", "medmcqa", *rows)
    assert main(["compare", "a-run", str(tmp_path / "elsewhere")]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines()[:-1])) <= 100  # the last line names the folder
    assert "elsewhere" in shown and "50.0 [" in shown  # 60 - 30 of 60, in points
    place = run.parent / "compare-a-run-elsewhere"
    written = json.loads((place / "compare.json").read_text())
    assert written["comparisons"][0]["difference"] == 0.5
    assert "| MedMCQA" in (place / "compare.md").read_text()
    page = (place / "compare.html").read_text()
    assert "<table>" in page and "http" not in page and "src=" not in page


def test_the_command_refuses_in_one_line(run, capsys):
    assert main(["compare", "a-run", "no-such-run"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
