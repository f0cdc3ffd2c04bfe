"""lm-evaluation-harness: refused in one line before anything starts, kept by model, and tried for real."""

import importlib.util
import json

import pytest
from conftest import make_tiny_llama

from medkit import MedkitError, evaluate, recipes
from medkit.evaluate import harness
from medkit.evaluate.lineup import Active
from medkit.preflight import inputs
from medkit.runs import lm_eval_tasks, run_json, storage


def refused(tasks, match):
    with pytest.raises(MedkitError, match=match) as error:
        lm_eval_tasks.check(tasks)
    assert "\n" not in str(error.value)


def test_no_task_needs_no_harness(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for none in ("", " , "):
        lm_eval_tasks.check(none)
        assert harness.measure(Active("base", None, None, "x"), none, tmp_path) == {}
    refused("piqa", r"needs lm-evaluation-harness, which is not installed; run pip install -e '\.\[bench\]'")


def test_a_run_and_notebook_03_are_refused_before_they_start(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    monkeypatch.setenv("MEDKIT_RUNNER", "1")
    settings = "mcq.lm_eval_tasks=piqa"
    with pytest.raises(MedkitError, match="which is not installed"):
        inputs.check(recipes.get("cpu", recipes.parse_settings(settings)), "", [])
    storage.write_json(tmp_path / "one" / "run.json", run_json.describe("cpu", settings, ""))
    storage.write_text(tmp_path / "one" / "stage1" / "adapter" / "adapter_model.safetensors", "")
    with pytest.raises(MedkitError, match="which is not installed"):
        evaluate.begin_exams("one", arms="med-mix")


def test_results_are_kept_by_model_task_and_version(monkeypatch, tmp_path):
    asked, versions = [], iter(["1", "1", "1", "2"])

    def evaluated(active, name):
        asked.append((active.name, name))
        return {name: {"acc,none": 0.5, "n": 6, "version": 1}}

    monkeypatch.setattr(harness, "_evaluate_task", evaluated)
    monkeypatch.setattr(harness.importlib.metadata, "version", lambda name: next(versions))
    one, other = Active("base", None, None, "x"), Active("med-mix", None, None, "y")
    found = harness.measure(one, "a, b,a", tmp_path)
    assert found == {name: {"acc,none": 0.5, "n": 6, "version": 1} for name in "ab"}
    assert harness.measure(one, "b", tmp_path) == {"b": found["b"]} and len(asked) == 2
    harness.measure(other, "b", tmp_path)
    harness.measure(one, "b", tmp_path)  # by the next version
    assert asked == [("base", "a"), ("base", "b"), ("med-mix", "b"), ("base", "b")]


@pytest.fixture
def task(tmp_path):
    """Six questions, of which the gold answer is the first and the second option in turn."""
    rows = [{"q": f"Question {i}?", "choices": ["yes", "no"], "label": i % 2} for i in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "tiny.yaml"
    path.write_text(
        f"""task: tiny_medkit
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path}/rows.jsonl
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
"""
    )
    return path


def test_a_task_of_a_file_on_a_model_in_memory(task, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    lm_eval_tasks.check(str(task))
    active = Active("base", *make_tiny_llama(), "x")
    found = harness.measure(active, str(task), tmp_path)["tiny_medkit"]
    assert found["n"] == 6 and 0 <= found["acc,none"] <= 1 and found["acc_stderr,none"] > 0
    monkeypatch.setattr(harness, "_evaluate_task", None)  # from the store
    assert harness.measure(active, str(task), tmp_path)["tiny_medkit"] == found


def test_a_task_that_there_is_none_of(tmp_path):
    pytest.importorskip("lm_eval")
    refused("hellaswagg", "there is no lm-evaluation-harness task 'hellaswagg'; did you mean hellaswag")
    refused("nothing.yaml", "there is no file 'nothing.yaml'")
    refused("hellaswag", "the task hellaswag of lm-evaluation-harness cannot be loaded")  # offline
