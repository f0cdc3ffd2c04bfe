"""What a run reads is refused before anything is written."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from medkit import MedkitError, recipes
from medkit.preflight import inputs
from medkit.runs import inputs as run_inputs

QUESTION = {
    "question": "Which?",
    "options": {"A": "one", "B": "two", "C": "three", "D": "four"},
    "answer_idx": "B",
    "answer": "two",
}


def medqa(folder, *rows):
    (folder / "medqa").mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "medqa" / "test.jsonl").write_text(text)
    return str(folder)


def test_a_folder_of_rows_that_can_be_read(tmp_path):
    inputs.check(recipes.get("cpu"), medqa(tmp_path, QUESTION), ["medqa eval", "medqa eval"])


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["medqa eval", "medmcqa eval"], "no folder medmcqa"),
        (["medqa train"], "expected a file of the train split"),
    ],
)
def test_rows_that_are_not_there(tmp_path, parts, said):
    with pytest.raises(MedkitError) as refused:
        inputs.check(recipes.get("cpu"), medqa(tmp_path, QUESTION), parts)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_data_folder_that_is_none(tmp_path):
    run_inputs.check_data_dir("")
    run_inputs.check_data_dir(str(tmp_path))
    with pytest.raises(MedkitError, match="is not a folder; it must contain one folder per source"):
        run_inputs.check_data_dir(str(tmp_path / "nowhere"))


def test_rows_that_are_not_what_they_should_be(tmp_path):
    five = QUESTION | {"options": QUESTION["options"] | {"E": "five"}}
    with pytest.raises(MedkitError, match=r"test\.jsonl"):
        inputs.check(recipes.get("cpu"), medqa(tmp_path, QUESTION, five), ["medqa eval"])


def test_models_that_are_none(tmp_path):
    inputs.check_model("smollm2")
    (tmp_path / "model").mkdir()
    for base in (str(tmp_path / "model"), "./nowhere", "~/no such model"):
        with pytest.raises(MedkitError, match="is not a model folder"):
            inputs.check_model(base)


def test_a_base_has_to_be_whole(tiny_llama_folder, tmp_path):
    """One thing after another is put right; weights are read as safetensors alone."""
    model = tmp_path / "model"
    model.mkdir()
    for name, content, refusal in (
        ("config.json", "{}", "has no model_type"),
        ("config.json", '{"model_type": "llama"}', r"has no \.safetensors weights"),
        ("pytorch_model.bin", "weights", r"has no \.safetensors weights"),
        ("model.safetensors", "not whole", r"model\.safetensors cannot be read"),
    ):
        (model / name).write_text(content)
        with pytest.raises(MedkitError, match=refusal):
            inputs.check_model(str(model))
    whole = (tiny_llama_folder / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(MedkitError, match=r"model\.safetensors cannot be read"):
        inputs.check_model(str(model))
    (model / "model.safetensors").write_bytes(whole)
    index = model / "model.safetensors.index.json"
    for content in ("not JSON", "[]", '{"weight_map": ["a"]}'):
        index.write_text(content)
        with pytest.raises(MedkitError, match=r"index\.json cannot be read"):
            inputs.check_model(str(model))
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}))
    with pytest.raises(MedkitError, match=r"lacks model-2\.safetensors"):
        inputs.check_model(str(model))
    index.unlink()
    with pytest.raises(MedkitError, match="has no tokenizer"):
        inputs.check_model(str(model))
    inputs.check_model(str(tiny_llama_folder))


def test_offline_reaches_libraries_that_are_loaded_already():
    """In a process of its own, as the tests' is offline anyway; whatever asks the network ends there."""
    code = """
import sys
class Asked(Exception): pass
def watch(event, args):
    if event == "socket.getaddrinfo":
        raise Asked
sys.addaudithook(watch)
import datasets, transformers
from huggingface_hub import hf_hub_download
from medkit.data import hub
def ask():
    try:
        hf_hub_download("some/model", "config.json")
    except Exception as error:
        print(type(error).__name__)
ask()
hub.set_offline(True)
ask()
hub.set_offline(False)  # a run of the hub's rows, in the same kernel
ask()
"""
    environment = {k: v for k, v in os.environ.items() if "OFFLINE" not in k}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.stdout.split() == ["Asked", "LocalEntryNotFoundError", "Asked"], ended.stderr[-2000:]


def test_a_hub_that_cannot_be_reached():
    # tests/conftest.py puts the hub out of reach.
    with pytest.raises(
        MedkitError, match=r"some/model cannot be loaded from the hub .*--set model\.base=DIR"
    ) as refused:
        inputs.check_model("some/model")
    assert "\n" not in str(refused.value)
    with pytest.raises(MedkitError, match="cannot be loaded from the hub"):
        inputs.check_scorer("some/encoder", offline=False)


def test_an_encoder_that_a_private_run_does_not_have(tmp_path):
    inputs.check_scorer("minilm", offline=True)
    with pytest.raises(MedkitError, match=r"stays offline; take --set consumer\.scorer=minilm"):
        inputs.check_scorer("some/encoder", offline=True)
    # Only the notebook that scores answers needs it.
    recipe = recipes.get("cpu", {"consumer.scorer": "some/encoder"})
    inputs.check(recipe, "", ["medqa train", "icliniq eval"])
    with pytest.raises(MedkitError, match="some/encoder"):
        inputs.check(recipe, "", ["icliniq eval", inputs.SCORER])


def test_private_runs_are_those_without_a_hub(tmp_path):
    here = str(tmp_path)
    assert run_inputs.is_fully_local(recipes.get("cpu"), "")
    assert run_inputs.is_fully_local(recipes.get("cpu"), here)
    assert run_inputs.is_fully_local(recipes.get("recommended", {"model.base": here}), here)
    assert not run_inputs.is_fully_local(recipes.get("cpu", {"data.origin": "hub"}), "")
    assert not run_inputs.is_fully_local(recipes.get("recommended"), here)
    assert not run_inputs.is_fully_local(recipes.get("recommended", {"model.base": here}), "")


def test_a_cloned_model_without_its_large_files(tmp_path, tiny_llama_folder):
    shutil.copytree(tiny_llama_folder, tmp_path / "model")
    inputs.check_model(str(tmp_path / "model"))
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4cac19\nsize 123\n")
    with pytest.raises(MedkitError) as refused:
        inputs.check_model(str(tmp_path / "model"))
    assert str(refused.value) == f"{weights} is a Git LFS pointer; run `git lfs pull` in {weights.parent}"
    weights.unlink()
    weights.symlink_to(tmp_path / "nowhere")  # as a hub cache that was half deleted has them
    with pytest.raises(MedkitError, match=r"cannot be read .*; download the model again"):
        inputs.check_model(str(tmp_path / "model"))
