"""A model's identity follows its content: not its place, and not a name whose content moved."""

import json
import shutil

import pytest

from medkit import MedkitError
from medkit.train import identities


def test_identity_of_a_folder(tiny_llama_folder, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tiny_llama_folder, folder)
    original = identities.of_model(folder)
    assert original == identities.of_model(tiny_llama_folder) == identities.of_model(str(folder))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    with_adapter = identities.of_model(folder, adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"2")
    assert len({original, with_adapter, identities.of_model(folder, adapter)}) == 3
    config = json.loads((folder / "config.json").read_text())
    before = identities.of_base(folder)
    (folder / "config.json").write_text(json.dumps(config | {"transformers_version": "9.9"}, indent=4))
    assert identities.of_base(folder) == before  # the same model, written down by another version
    (folder / "config.json").write_text(json.dumps(config | {"rope_theta": 1.0}))
    assert identities.of_model(folder) != original and identities.of_base(folder) != before


def test_identity_of_a_hub_model_is_the_commit_of_its_revision(tmp_path, monkeypatch):
    """In the cache `main` stands for commit 1... and the branch `old` for 2...; then `main` moves."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    model = tmp_path / "models--some--model"
    (model / "refs").mkdir(parents=True)
    for branch, commit in {"main": "1" * 40, "old": "2" * 40, "new": "3" * 40}.items():
        (model / "refs" / branch).write_text(commit)
        (model / "snapshots" / commit).mkdir(parents=True)
        (model / "snapshots" / commit / "config.json").write_text("{}")
    assert identities.of_base("some/model") == "some/model@" + "1" * 40
    assert identities.of_base("some/model", "old") == "some/model@" + "2" * 40
    assert identities.of_model("some/model") != identities.of_model("some/model", revision="old")
    (model / "refs" / "main").write_text("3" * 40)
    assert identities.of_base("some/model") == "some/model@" + "3" * 40


@pytest.mark.parametrize("name", ["no/such-model", "not a name at all", "."])
def test_identity_of_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MedkitError) as error:
        identities.of_model(name)
    assert "\n" not in str(error.value)
