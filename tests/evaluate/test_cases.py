"""Notebook 04's steps: which cases, whose answers, and what of them is written."""

import json

import pytest

from medkit import evaluate
from medkit.evaluate import cases
from medkit.evaluate.generation import Answer
from medkit.evaluate.lineup import Active
from medkit.records import ConsumerQuery
from medkit.runs import run_json, storage

SETTINGS = "consumer.cases=3;consumer.max_new_tokens=4;consumer.samples=2"
CASE = ConsumerQuery("q1", "icliniq", "My left knee has been hurting for about two weeks now.", "Rest it.")


def opened(monkeypatch, tmp_path, data_dir="", settings=SETTINGS):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    monkeypatch.setenv("MEDKIT_RUNNER", "1")  # no lock to hold
    storage.write_json(tmp_path / "tiny" / "run.json", run_json.describe("cpu", settings, data_dir))
    return run_json.begin("tiny", "04_consumer_eval", data_dir=data_dir)


def test_a_greedy_answer_and_the_sampled_ones_a_case(monkeypatch, tmp_path, tiny_llama):
    run = opened(monkeypatch, tmp_path)
    drawn, row_counts = cases.draw_queries(run)
    assert len(drawn) == 3 and row_counts == {"passed_over": {}, "notes": {}}
    given = cases.answer_cases(run, Active("base", *tiny_llama, "x"), drawn)
    assert [len(own) for own in given] == [3, 3, 3]  # greedy, and two sampled
    assert cases.answer_cases(run, Active("base", *tiny_llama, "x"), drawn) == given
    none = opened(monkeypatch, tmp_path / "none", settings="consumer.samples=0;consumer.max_new_tokens=4")
    greedy = cases.answer_cases(none, Active("base", *tiny_llama, "x"), drawn)
    assert greedy == [own[:1] for own in given]


def test_a_call_answers_and_a_call_writes(monkeypatch, tmp_path, tiny_llama):
    """Two models of the same weights, three cases, a greedy and two sampled answers: 18 rows."""

    class Twins(list):
        def close(self):
            self.closed = True

    run = opened(monkeypatch, tmp_path)
    twins = Twins(Active(name, *tiny_llama, name) for name in ("base", "med-nirvana"))
    drawn, row_counts = evaluate.draw_queries(run)
    answers = evaluate.answer_queries(run, twins, drawn)
    assert twins.closed and answers.identities == {"base": "base", "med-nirvana": "med-nirvana"}
    summary, scores = evaluate.write_queries(run, drawn, answers, row_counts)
    assert summary == json.loads((run.folder / "consumer" / "summary.json").read_text())
    assert len(scores) == 18 == len(storage.read_jsonl(run.folder / "consumer" / "answers.jsonl"))
    assert summary["answers_withheld"] == 0 and summary.items() >= row_counts.items()
    assert summary["differences"]["med-nirvana"]["f1"]["mean"] == 0
    assert summary["sampling"]["samples"] == 2


@pytest.mark.parametrize(
    ("text", "withheld"),
    [
        ("You say your LEFT knee has been hurting for about two weeks!", True),  # nine words in a row
        ("Your left knee has been hurting for about a month.", False),  # left ... about: seven
        ("Rest it.", False),
        ("", False),
    ],
)
def test_an_answer_that_repeats_a_row_is_withheld(monkeypatch, tmp_path, text, withheld):
    run = opened(monkeypatch, tmp_path, data_dir="somewhere")
    answers = {"base": [[Answer(text, "stopped", 9)]]}
    path = run.folder / "consumer" / "answers.jsonl"
    assert cases.write_answers(run, [CASE], answers, show_text=False) == withheld
    row = json.loads(path.read_text())
    assert row["text"] == (None if withheld else text) and row["case"] == "q1" and row["tokens"] == 9
    assert cases.write_answers(run, [CASE], answers, show_text=True) == 0
    assert json.loads(path.read_text())["text"] == text


def test_the_built_in_corpus_is_written_whole(monkeypatch, tmp_path):
    run = opened(monkeypatch, tmp_path)
    answers = {"base": [[Answer(CASE.query, "stopped", 9), Answer("", "cut", 4)]]}
    assert cases.write_answers(run, [CASE], answers, show_text=False) == 0
    rows = storage.read_jsonl(run.folder / "consumer" / "answers.jsonl")
    assert [(row["sample"], row["text"]) for row in rows] == [(0, CASE.query), (1, "")]
