"""The model card of a run, held to huggingface_hub's own reading of it."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from medkit.__main__ import main
from medkit.report import card
from medkit.runs import run_json, storage


def accuracies(n: int, correct: int, chance: float) -> dict:
    own = {"n": n, "correct": correct, "accuracy": correct / n, "low": 0.4, "high": 0.6, "unparsed": 3}
    return {"n": n, "chance": chance, "models": {"med-nirvana": own, "base": own}}


SUMMARY = {
    "models": ["base", "med-nirvana"],
    "datasets": {
        "medqa": accuracies(1273, 700, 0.25),  # 700 / 1,273 = 54.99%
        "pubmedqa": accuracies(1000, 750, 1 / 3),
    },
    "contamination_known": True,
    "without_contaminated": {"left_out": {"medqa": 2, "pubmedqa": 5}},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of rows from the hub, as far as a card reads it."""
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / "results"))

    def make(recipe="recommended", name="big"):
        place = storage.folder(name)
        info = run_json.describe(recipe)
        info["notebooks"] = {
            "01_stage1": {"status": "complete", "samples": 363842, "steps": 22740, "seconds": 7200},
            "03_mcq_eval": {"status": "complete", "started": "2026-01-02T03:04:05+00:00"},
        }
        storage.write_json(place / "run.json", info)
        storage.write_json(place / "mcq" / "summary.json", SUMMARY)
        adapter = place / "stage2" / "adapter"
        storage.write_bytes(adapter / "adapter_model.safetensors", b"weights")
        storage.write_json(adapter / "adapter_config.json", {"base_model_name_or_path": "/home/me/llama"})
        storage.write_text(adapter / "README.md", "PEFT's own, with /home/me/llama")
        return place

    return make


def test_the_metadata_is_what_the_hub_reads(run, capsys):
    place = run()
    assert main(["card", "big"]) == 0
    data = ModelCard.load(place / "hub" / "README.md").data
    assert data.base_model == "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"
    assert (data.library_name, data.license) == ("peft", "llama3.1")
    assert data.datasets[-1] == "akemiH/NoteChat" and len(data.datasets) == 4
    medqa, pubmedqa = data.eval_results
    assert (medqa.metric_type, medqa.metric_value) == ("accuracy", 54.99)
    assert "n = 1273, Wilson 95% [40.0, 60.0]; zero-shot" in medqa.metric_name
    assert (pubmedqa.dataset_config, pubmedqa.dataset_split) == ("pqa_labeled", "train")
    assert len(pubmedqa.dataset_revision) == 40


def test_the_newer_results_are_what_the_hub_reads(run):
    hub = card.write(str(run().name))
    files = sorted((hub / ".eval_results").iterdir())
    assert [file.name for file in files] == ["medqa.yaml", "pubmedqa.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[1].read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("qiaojin/PubMedQA", "pqa_labeled", 75.0)
    assert entry.date == "2026-01-02T03:04:05+00:00" and "n = 1000" in entry.notes


def test_the_adapter_is_the_same_file_and_names_no_folder_of_this_machine(run):
    place = run()
    hub = card.write("big")
    original = place / "stage2" / "adapter" / "adapter_model.safetensors"
    assert (hub / original.name).samefile(original)
    config = json.loads((hub / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit"
    assert "/home/me" not in "".join(p.read_text() for p in hub.rglob("*") if p.suffix in (".md", ".json"))
    assert card.write("big") == hub  # written again over itself


def test_the_body_says_what_has_to_be_said(run):
    text = (card.write(run().name) / "README.md").read_text()
    assert "Not for clinical use" in text and "## Not tested" in text
    notechat = next(line for line in text.splitlines() if line.startswith("| NoteChat"))
    assert "none stated" in notechat
    assert "55.0 [40.0, 60.0]" in text and "2.00" in text  # 7,200 s
    assert "7 of the evaluation questions were found in the training rows" in text  # 2 + 5


def test_a_gpu_is_named_as_text(run):
    place = run()
    info = run_json.read(place)
    info["hardware"]["gpus"] = [{"name": "NVIDIA H100 80GB HBM3", "memory_gb": 79.6, "driver": "580.1"}]
    storage.write_json(place / "run.json", info)
    text = (card.write("big") / "README.md").read_text()
    assert "On NVIDIA H100 80GB HBM3, 79.6 GiB, driver 580.1. The run's ledger.md" in text


def test_the_built_in_corpus_claims_nothing_on_the_hubs_data_sets(run):
    hub = card.write(run("cpu", "small").name)
    data = ModelCard.load(hub / "README.md").data
    assert data.datasets is None and data.eval_results is None and not (hub / ".eval_results").exists()
    assert data.base_model == "HuggingFaceTB/SmolLM2-135M-Instruct" and data.license == "apache-2.0"
    assert "say nothing about medicine" in (hub / "README.md").read_text()


def test_any_other_base_states_no_licence_of_ours(run, tmp_path):
    place = run()
    info = run_json.read(place)
    info["recipe"]["model"]["base"] = "org/other"
    storage.write_json(place / "run.json", info)
    data = ModelCard.load(card.write("big") / "README.md").data
    assert (data.license, data.license_name) == ("other", "that-of-the-base-model-and-the-data")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("run.json", "is not a run"),
        ("stage2/adapter/adapter_model.safetensors", "is missing"),
        ("mcq/summary.json", "03_mcq_eval"),
    ],
)
def test_what_is_missing_is_named(run, capsys, missing, said):
    (run() / missing).unlink()
    assert main(["card", "big"]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def settings(place, **dmt):
    info = run_json.read(place)
    info["recipe"]["dmt"] |= dmt
    storage.write_json(place / "run.json", info)


def test_an_adapter_of_a_merged_model_is_not_published_for_the_base(run, capsys):
    settings(run(), handover="merge")
    assert main(["card", "big"]) == 2
    assert "publish the whole model with medkit export big --to merged" in capsys.readouterr().err


def test_a_local_base_is_named_without_its_path(run, tmp_path):
    place, base = run(), tmp_path / "my-llama"
    base.mkdir()
    info = run_json.read(place)
    info["recipe"]["model"]["base"] = str(base)
    storage.write_json(place / "run.json", info)
    text = (card.write("big") / "README.md").read_text()
    assert str(tmp_path) not in text and 'from_pretrained("my-llama")' in text


@pytest.mark.parametrize(
    ("dmt", "course"),
    [
        ({}, "in two stages: multiple-choice exams, then consultations with a replayed share of the exams"),
        ({"replay_share": 0.0}, "in two stages: multiple-choice exams, then consultations, after"),
        ({"handover": "joint"}, "in one stage on multiple-choice exams and consultations, after"),
    ],
)
def test_the_card_says_how_it_was_trained(run, dmt, course):
    settings(run(), **dmt)
    assert course in (card.write("big") / "README.md").read_text()
