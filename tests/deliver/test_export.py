"""An export is done when it answers as the adapter does, and not before."""

import json
import sys
import types

import pytest
import torch

from medkit.__main__ import main
from medkit.deliver import export
from medkit.evaluate.letter_scoring import Outcome
from medkit.records import MCQItem
from medkit.runs import run_json, storage
from medkit.train import models


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama_folder):
    """The results folder of a run with a random adapter of stage 2."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKIT_RESULTS", str(folder))
        settings = f"model.base={tiny_llama_folder};model.load_in_4bit=false;model.max_length=512"
        storage.write_json(folder / "tiny" / "run.json", run_json.describe("cpu", settings))
        opened = run_json.for_reading("tiny")
        model, tokenizer = models.load(opened.recipe.model)
        model = models.attach_lora(model, opened.recipe.lora, seed=0)
        torch.manual_seed(1)
        for name, weights in model.named_parameters():
            if "lora_B" in name:
                weights.data.normal_(0, 0.1)
        models.save_adapter(model, tokenizer, opened.folder / "stage2" / "adapter")
        yield folder


@pytest.fixture(autouse=True)
def results(monkeypatch, place):
    monkeypatch.setenv("MEDKIT_RESULTS", str(place))
    monkeypatch.setattr(export, "QUESTIONS", 12)


def test_a_merged_model_passes_and_leaves_its_figures(place, capsys):
    before = (place / "tiny" / "run.json").read_bytes()
    assert main(["export", "tiny", "--to", "merged"]) == 0
    made = place / "tiny" / "export" / "merged"
    found = json.loads((made / "export.json").read_text())
    assert found["passed"] and found["n"] == 12 and found["agreement"] >= 0.97
    assert (made / "merged" / "config.json").is_file()
    assert not made.with_name("merged.failed").exists()
    assert (place / "tiny" / "run.json").read_bytes() == before  # a run is only read


def test_an_adapter_of_twice_the_scale_fails(place, monkeypatch, capsys):
    honest = models.merge_adapter

    def twice(spec, adapter, folder):
        scaled = folder.parent / "scaled"
        scaled.mkdir(parents=True)
        config = json.loads((adapter / "adapter_config.json").read_text())
        storage.write_json(scaled / "adapter_config.json", config | {"lora_alpha": 2 * config["lora_alpha"]})
        (scaled / "adapter_model.safetensors").write_bytes(
            (adapter / "adapter_model.safetensors").read_bytes()
        )
        honest(spec, scaled, folder)

    monkeypatch.setattr(models, "merge_adapter", twice)
    assert main(["export", "tiny", "--to", "merged"]) == 1
    said = capsys.readouterr().err
    assert "merged is not the adapter" in said and said.count("medkit: failed") == 1
    failed = place / "tiny" / "export" / "merged.failed"
    assert json.loads((failed / "export.json").read_text())["passed"] is False
    assert not failed.with_name("merged").exists()  # the earlier one is not left to be taken for this one


def test_another_template_fails_by_its_prompt(place, monkeypatch, capsys):
    honest = models.merge_adapter

    def other_template(spec, adapter, folder):
        honest(spec, adapter, folder)
        for file in folder.glob("*.jinja"):
            file.write_text(file.read_text().replace("\n\n", "\n"))
        config = json.loads((folder / "tokenizer_config.json").read_text())
        if template := config.get("chat_template"):
            config["chat_template"] = template.replace("\n\n", "\n")
            storage.write_json(folder / "tokenizer_config.json", config)

    monkeypatch.setattr(models, "merge_adapter", other_template)
    assert main(["export", "tiny", "--to", "merged"]) == 1
    assert "makes another prompt of" in capsys.readouterr().err


ITEM = MCQItem("q", "medqa", "Which?", ("a", "b", "c", "d"), "B")


def outcome(letter: str, *logprobs: float) -> Outcome:
    return Outcome(letter, logprobs)


def test_what_the_gate_judges_by_arithmetic():
    wanted = [outcome("B", -1.0, -0.5, -2.0, -3.0), outcome("A", -0.1, -3.0, -4.0, -5.0)]
    got = [outcome("B", -1.0, -0.6, -2.0, -3.4), outcome("B", -0.9, -0.8, -4.0, -5.0)]
    found = export.compare([ITEM, ITEM], wanted, got)
    # moves: 0, 0.1, 0, 0.4 and 0.8, 2.2, 0, 0: their median is 0.05, the largest 2.2
    assert found["agreement"] == 0.5 and found["n"] == 2
    assert (found["adapter_accuracy"], found["export_accuracy"]) == (0.5, 1.0)
    assert found["median_move"] == pytest.approx(0.05) and found["largest_move"] == pytest.approx(2.2)
    assert found["difference"]["difference"] == 0.5


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "onnx"], "--to onnx is none of merged, gguf, ollama"),
        (["--to", "gguf", "--quantization", "q2"], "--quantization q2 is none of"),
        (["--to", "gguf"], "llama.cpp's converter"),
        (["--to", "merged", "--model", "base"], "is the base as it is"),
        (["--to", "merged", "--model", "gpt"], "gpt"),
        (["--to", "merged", "--model", "med-mix"], "is missing"),
    ],
)
def test_what_cannot_begin_is_one_line(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    assert main(["export", "tiny", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("medkit: ") == 1


def test_q4_needs_its_tool(monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: types.ModuleType(name))
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    with pytest.raises(export.ExportError, match="llama-quantize"):
        export.check_tools("q4_k_m")


def test_a_converter_that_fails_is_one_line(tmp_path, monkeypatch):
    broken = tmp_path / "convert_hf_to_gguf.py"
    broken.write_text("import sys; sys.exit('NotImplementedError: BPE pre-tokenizer was not recognized')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(export.ExportError, match="BPE pre-tokenizer was not recognized"):
        export.convert(tmp_path, tmp_path / "out.gguf", "q8_0")
    assert sys.executable


def test_the_modelfile_asks_as_the_model_was_trained(tiny_llama_folder, tmp_path):
    text = export.modelfile(tmp_path / "m.gguf", tiny_llama_folder)
    assert text.startswith("FROM ./m.gguf\n") and export.INSTRUCTION in text
    template = text.split('"""')[1]
    turns = [("system", "{{ .System }}"), ("user", "{{ .Prompt }}"), ("assistant", "{{ .Response }}")]
    assert template == "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{content}<|eot_id|>" for role, content in turns
    )
    assert 'PARAMETER stop "<|eot_id|>"' in text
