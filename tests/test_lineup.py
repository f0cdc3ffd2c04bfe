"""The models of a run on one base: each answers as its own weights say, and none as another's."""

import json

import pytest
import torch
from conftest import make_tiny_llama

from medkit import lineup, results, runs, training
from medkit.lineup import LineupError
from medkit.results import ResultsError
from medkit.training import TrainingError

PROMPT = list(range(40, 60))


def save_adapter(model, tokenizer, folder, seed):
    """An adapter that acts: LoRA's B is zero at first, so it is filled with noise."""
    torch.manual_seed(seed)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(0, 0.5)
    training.save_adapter(model, tokenizer, folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama_folder):
    """A run's folder with three random adapters, and its logits as plain PEFT gives them."""
    place = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKIT_RESULTS", str(place))
        patch.setenv("MEDKIT_RUNNER", "1")  # no lock to hold
        info = runs.describe(
            "cpu", f"model.base={tiny_llama_folder};model.load_in_4bit=false;model.max_length=512"
        )
        results.write_json(place / "tiny" / "run.json", info)
        opened = runs.begin("tiny", "03_mcq_eval")
        model, tokenizer = training.load(opened.recipe.model)
        model = training.attach_lora(model, opened.recipe.lora, seed=0)
        for seed, arm in enumerate(filter(None, lineup.ARMS.values())):
            save_adapter(model, tokenizer, opened.folder / arm / "adapter", seed)
        yield opened


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([PROMPT])).logits[0, -1].float()


def expected(tiny_llama_folder, adapter) -> torch.Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
    return logits(PeftModel.from_pretrained(model, adapter) if adapter else model)


def test_each_model_answers_as_its_own_weights_say(run, tiny_llama_folder):
    seen = {}
    for active in lineup.of_run(run):
        seen[active.name] = logits(active.model)
        assert active.model.config.use_cache and not active.model.training
    assert list(seen) == ["base", "med-mix", "med-nirvana", "control"]
    for name, arm in lineup.ARMS.items():
        own = expected(tiny_llama_folder, run.folder / arm / "adapter" if arm else None)
        torch.testing.assert_close(seen[name], own, atol=2e-2, rtol=2e-2)
        for other, theirs in seen.items():
            assert other == name or (theirs - own).abs().max() > 0.2, f"{name} answers like {other}"


def test_the_base_is_itself_again_after_an_adapter(run):
    team = lineup.of_run(run, ["base", "med-mix"])
    with team.as_model("base") as active:
        before = logits(active.model)
    with team.as_model("med-mix") as active:
        adapted = logits(active.model)
    with team.as_model("base") as active:
        after = logits(active.model)
    assert torch.equal(before, after) and not torch.equal(before, adapted)
    with pytest.raises(LineupError, match=r"no model 'control'.*base, med-mix"):
        team.as_model("control").__enter__()


def test_identities_tell_weights_apart_and_stay(run):
    first = {active.name: active.identity for active in lineup.of_run(run)}
    assert len(set(first.values())) == 4
    again = {active.name: active.identity for active in lineup.of_run(run, ["med-mix", "base"])}
    assert again == {name: first[name] for name in again}


def test_an_adapter_changed_in_place_is_another_model(run, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (adapter / name).write_bytes((run.folder / "stage1" / "adapter" / name).read_bytes())
    base = run.recipe.model.base
    with lineup.alone(run, base, str(adapter)).as_model("tiny-llama0 + adapter") as active:
        before = active.identity
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    with lineup.alone(run, base, str(adapter)).as_model("tiny-llama0 + adapter") as active:
        assert active.identity != before


def test_a_missing_arm_names_the_notebook(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    results.write_json(tmp_path / "empty" / "run.json", runs.describe("cpu"))
    empty = runs.begin("empty", "03_mcq_eval")
    with pytest.raises(ResultsError, match=r"stage1/adapter.* is missing; run notebook 01_stage1 first"):
        lineup.of_run(empty)
    lineup.of_run(empty, ["base"])


def test_a_run_without_the_control_arm_compares_the_others(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    results.write_json(tmp_path / "three" / "run.json", runs.describe("cpu"))
    three = runs.begin("three", "03_mcq_eval")
    for arm in ("stage1", "stage2"):
        results.write_text(three.folder / arm / "adapter" / "adapter_model.safetensors", "")
    assert list(lineup.of_run(three).members) == ["base", "med-mix", "med-nirvana"]


def test_merged_arms_stand_on_a_base_of_their_own(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    results.write_json(tmp_path / "merged" / "run.json", runs.describe("cpu", "dmt.handover=merge"))
    merged = runs.begin("merged", "03_mcq_eval")
    for arm in filter(None, lineup.ARMS.values()):
        results.write_text(merged.folder / arm / "adapter" / "adapter_model.safetensors", "")
    with pytest.raises(ResultsError, match=r"stage1/merged/config\.json is missing; run notebook 01_stage1"):
        lineup.of_run(merged)
    results.write_text(merged.folder / "stage1" / "merged" / "config.json", "{}")
    members = lineup.of_run(merged).members
    own = str(merged.folder / "stage1" / "merged")
    assert [member.spec.base for member in members.values()] == ["smollm2", "smollm2", own, own]
    assert lineup.of_run(merged).table()["base"].tolist() == ["smollm2"] * 2 + ["stage1/merged"] * 2


def test_a_folder_that_is_no_adapter_and_one_of_another_base(run, tmp_path):
    with pytest.raises(TrainingError, match="is no adapter folder"):
        lineup.alone(run, run.recipe.model.base, str(tmp_path))
    model, tokenizer = make_tiny_llama(hidden_size=32)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    team = lineup.alone(run, str(tmp_path / "other"), str(run.folder / "stage1" / "adapter"))
    with pytest.raises(TrainingError, match="belongs to another base"):
        next(iter(team))
