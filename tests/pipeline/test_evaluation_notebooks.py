"""Notebooks 03 and 04 on some of a run's models: what they write, and what a reader sees first."""

import json

import nbformat
import pytest
import tiny_run

from medkit.evaluate import accuracy
from medkit.pipeline import notebooks
from medkit.runs import machine, run_json

SETTINGS = (
    "model.max_length=4096;mcq.rows=4;mcq.generated_rows=2;mcq.max_new_tokens=4;"
    "consumer.cases=3;consumer.max_new_tokens=4;consumer.samples=1"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama_folder):
    """A run of the tiny Llama with random adapters of both arms of stage 2 and of stage 1."""
    arms = ("stage1", "stage2", "stage2_noreplay")
    return tiny_run.write_run(tmp_path_factory.mktemp("results"), tiny_llama_folder, SETTINGS, arms)


def execute(run, name, **parameters):
    path = machine.CHECKOUT / "notebooks" / f"{name}.ipynb"
    environment = {"MEDKIT_RESULTS": str(run.folder.parent)}
    output = run.folder / "notebooks" / f"{name}.ipynb"
    parameters |= {"run_dir": "tiny"}
    notebooks.check_parameters(path, parameters)
    assert notebooks.execute(path, output, parameters, environment) is None
    return nbformat.read(output, as_version=4)


def displayed(executed) -> str:
    """Everything that the notebook displays as Markdown or HTML."""
    data = [o.data for cell in executed.cells for o in cell.get("outputs", []) if "data" in o]
    shown = (one.get("text/markdown") or one.get("text/html") for one in data)
    return "\n".join(filter(None, shown))


@pytest.mark.slow
def test_exams_of_two_of_the_runs_models(run):
    executed = execute(run, "03_mcq_eval", models="med-mix,control")
    items = accuracy.read_items(run.folder)
    assert items["model"].value_counts().to_dict() == {
        "med-mix": 12,
        "control": 12,
    }  # 4 questions of each of 3
    shown = displayed(executed)
    assert shown.startswith("Accuracy in percent on MedQA (n = 4), MedMCQA (n = 4) and PubMedQA (n = 4): ")
    assert "Change after stage 2, in points: stage 2 without replay" in shown
    for summary in ("Settings: ", "Three protocols: ", "MedMCQA by subject: "):
        assert f"<details><summary>{summary}" in shown
    assert set(run_json.read(run.folder)["notebooks"]["03_mcq_eval"]["models"]) == {"med-mix", "control"}


@pytest.mark.slow
@pytest.mark.parametrize("names", ["base,control", "med-mix"])
def test_queries_of_some_of_the_runs_models(run, names):
    executed = execute(run, "04_consumer_eval", models=names)
    summary = json.loads((run.folder / "consumer" / "summary.json").read_text())
    assert list(summary["models"]) == names.split(",") and summary["n"] == 3
    shown = displayed(executed)
    assert shown.startswith("### Table 4: BERTScore")
    assert ("One model only" in shown) == ("," not in names)
    assert ("control (no replay) minus base, paired over the cases" in shown) == ("," in names)
