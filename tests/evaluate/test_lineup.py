"""The models of a run on one base: each answers as its own weights say, and none as another's."""

import functools
import json
from dataclasses import replace

import pytest
import torch
from conftest import make_tiny_llama

from medkit import MedkitError, evaluate, recipes
from medkit.evaluate import lineup
from medkit.runs import run_json, storage
from medkit.runs.arms import ARMS
from medkit.runs.storage import ResultsError
from medkit.train import adapters, models
from medkit.train.adapters import AdapterError

PROMPT = list(range(40, 60))
STUDIED = [arm for arm in ARMS.values() if arm.id != "relearned"]
FOLDERS = [arm.folder for arm in STUDIED if arm.folder]


def save_adapter(model, tokenizer, folder, seed):
    """An adapter that acts: LoRA's B is zero at first, so it is filled with noise."""
    torch.manual_seed(seed)
    for name, weights in model.named_parameters():
        if "lora_B" in name:
            weights.data.normal_(0, 0.5)
    models.save_adapter(model, tokenizer, folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_llama_folder):
    """A run's folder with three random adapters, and its logits as plain PEFT gives them."""
    place = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDKIT_RESULTS", str(place))
        patch.setenv("MEDKIT_RUNNER", "1")  # no lock to hold
        info = run_json.describe(
            "cpu", f"model.base={tiny_llama_folder};model.load_in_4bit=false;model.max_length=512"
        )
        storage.write_json(place / "tiny" / "run.json", info)
        opened = run_json.begin("tiny", "03_mcq_eval")
        model, tokenizer = models.load(opened.recipe.model)
        model = models.attach_lora(model, opened.recipe.lora, seed=0)
        for seed, arm in enumerate(FOLDERS):
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
    for name, arm in ((arm.id, arm.folder) for arm in STUDIED):
        own = expected(tiny_llama_folder, run.folder / arm / "adapter" if arm else None)
        torch.testing.assert_close(seen[name], own, atol=2e-2, rtol=2e-2)
        for other, theirs in seen.items():
            assert other == name or (theirs - own).abs().max() > 0.2, f"{name} answers like {other}"


KINDS = {
    "alpha by layer": {"alpha_pattern": {"q_proj": 64, r".*\.1\.mlp\.down_proj": 1}},
    "rank by layer": {"rank_pattern": {"q_proj": 2, "down_proj": 16}},
    "a regular expression": {"target_modules": r".*\.1\.(self_attn\.v|mlp\.up)_proj"},
    "all linear layers": {"target_modules": "all-linear"},
    "whole embeddings": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "LoRA on embeddings and output layer": {"target_modules": ["lm_head", "embed_tokens", "q_proj"]},
    "one layer": {"layers_to_transform": [1]},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True, "r": 16},
    "dropout": {"lora_dropout": 0.5},
    "a bias of its own": {"lora_bias": True},
}


def write_kind(folder, base, kind, seed=3):
    """An adapter of that kind, made and saved by PEFT alone, that acts."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    fields = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]} | KINDS.get(kind, {})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(**fields))
    torch.manual_seed(seed)
    for name, weights in model.named_parameters():
        if weights.requires_grad and "lora_A" not in name:
            weights.data += 0.3 * torch.randn_like(weights)
    model.save_pretrained(folder)
    return folder


@functools.cache
def as_peft_has_it(base, adapter, four_bit=False):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = {}
    if four_bit:
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16, **nf4
        )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **how)
    return logits(PeftModel.from_pretrained(model, adapter).eval() if adapter else model)


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_of_any_kind_answers_as_in_plain_peft(run, tiny_llama_folder, tmp_path, kind, four_bit):
    adapter = write_kind(tmp_path / "adapter", tiny_llama_folder, kind)
    spec = replace(run.recipe.model, load_in_4bit=four_bit)
    base, member = lineup.Member("base", spec), lineup.Member("own", spec, adapter)
    team = lineup.Lineup([base, member])
    with team.as_model("base") as active:
        before = logits(active.model)
    with team.as_model("own") as active:
        ours = logits(active.model)
    theirs = as_peft_has_it(tiny_llama_folder, adapter, four_bit)
    moved = (theirs - as_peft_has_it(tiny_llama_folder, None, four_bit)).std()
    assert (ours - theirs).std() < 0.1 * moved  # in bfloat16
    with team.as_model("base") as active:
        assert torch.equal(logits(active.model), before)


def test_adapters_of_other_kinds_one_after_another(run, tiny_llama_folder, tmp_path):
    """Each alone, and in either order: nothing of one is left to the next."""
    kinds = ("DoRA", "whole embeddings", "rank by layer", "LoRA on embeddings and output layer")
    adapters = {kind: write_kind(tmp_path / kind, tiny_llama_folder, kind) for kind in kinds}
    members = [lineup.Member(kind, run.recipe.model, adapter) for kind, adapter in adapters.items()]
    one = {active.name: logits(active.model) for active in lineup.Lineup(members)}
    other = {active.name: logits(active.model) for active in lineup.Lineup(members[::-1])}
    assert all(torch.equal(one[kind], other[kind]) for kind in kinds)
    assert len({values.sum().item() for values in one.values()}) == 4


@pytest.mark.parametrize("kind", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_adapter_of_a_changed_base_is_refused_by_name(run, tmp_path, kind):
    stage1 = run.folder / "stage1" / "adapter"
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((stage1 / name).read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": kind}))
    with pytest.raises(AdapterError, match=f"a modified base .init_lora_weights={kind}.*plain LoRA"):
        lineup.single(run, run.recipe.model.base, str(tmp_path))


def test_an_adapter_of_another_type_is_refused_by_name(run, tiny_llama_folder, tmp_path):
    from peft import IA3Config, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for config in (
        PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
        IA3Config(target_modules=["k_proj"], feedforward_modules=[]),
    ):
        model = AutoModelForCausalLM.from_pretrained(tiny_llama_folder)
        get_peft_model(model, config).save_pretrained(tmp_path)
        with pytest.raises(AdapterError, match=f"of type {config.peft_type.value}; use a LoRA"):
            lineup.single(run, run.recipe.model.base, str(tmp_path))


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"peft_type": "OF_TOMORROW"}', '{"peft_type": "LORA", "r": "x"}']
)
def test_a_configuration_that_is_none(run, tmp_path, text):
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(AdapterError, match="adapter"):
        team = lineup.single(run, run.recipe.model.base, str(tmp_path))
        next(iter(team))


def test_an_adapter_on_the_output_layer_is_refused_on_a_gpu(run, tiny_llama_folder, tmp_path, monkeypatch):
    """There Unsloth's decoding multiplies by lm_head's own weight."""
    adapter = write_kind(tmp_path / "adapter", tiny_llama_folder, "LoRA on embeddings and output layer")
    model, _ = models.load(run.recipe.model)
    adapted = adapters.attach(model, adapter)
    with models.for_inference(adapted):
        pass
    monkeypatch.setattr(models.cpu, "on_gpu", lambda: True)
    with pytest.raises(MedkitError, match="acts on lm_head"), models.for_inference(adapted):
        pass


def test_half_an_adapter_is_refused_and_leaves_nothing(run, tiny_llama_folder, tmp_path):
    """Tensors missing, too many, of another size: the next member answers as its own weights say."""
    from safetensors.torch import load_file, save_file

    whole = write_kind(tmp_path / "whole", tiny_llama_folder, "whole embeddings")
    kept = load_file(whole / "adapter_model.safetensors")
    names = sorted(kept)
    lora = next(name for name in names if "lora_B" in name)
    head = next(name for name in names if "lm_head" in name)
    spoiled = {
        "lacks LoRA's": {name: one for name, one in kept.items() if name != lora},
        "lacks a whole module": {name: one for name, one in kept.items() if name != head},
        "has one more": kept | {lora.replace("layers.0", "layers.9"): kept[lora].clone()},
        "another size": kept | {lora: kept[lora][:5].clone()},
    }
    members = [lineup.Member("base", run.recipe.model)]
    for name, tensors in spoiled.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "adapter_config.json").write_text((whole / "adapter_config.json").read_text())
        members.append(lineup.Member(name, run.recipe.model, tmp_path / name))
    team = lineup.Lineup(members)
    with team.as_model("base") as active:
        before = logits(active.model)
    for name in spoiled:
        with pytest.raises(AdapterError, match="does not fit this model"), team.as_model(name):
            pass
        with team.as_model("base") as active:
            assert torch.equal(logits(active.model), before)


def test_the_base_is_itself_again_after_an_adapter(run):
    team = lineup.of_run(run, ["base", "med-mix"])
    with team.as_model("base") as active:
        before = logits(active.model)
    with team.as_model("med-mix") as active:
        adapted = logits(active.model)
    with team.as_model("base") as active:
        after = logits(active.model)
    assert torch.equal(before, after) and not torch.equal(before, adapted)
    with pytest.raises(MedkitError, match=r"no model 'control'.*base, med-mix"):
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
    with lineup.single(run, base, str(adapter)).as_model("tiny-llama0 + adapter") as active:
        before = active.identity
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    with lineup.single(run, base, str(adapter)).as_model("tiny-llama0 + adapter") as active:
        assert active.identity != before


def test_a_missing_arm_names_the_notebook(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    storage.write_json(tmp_path / "empty" / "run.json", run_json.describe("cpu"))
    empty = run_json.begin("empty", "03_mcq_eval")
    with pytest.raises(ResultsError, match=r"stage1/adapter.* is missing; run notebook 01_stage1 first"):
        lineup.of_run(empty)
    assert list(lineup.of_run(empty, ["base"]).members) == ["base"]
    with pytest.raises(
        ResultsError, match=r"stage2_noreplay.* is missing; run notebook 02_stage2 with replay"
    ):
        lineup.of_run(empty, ["control"])  # asked for by name
    with pytest.raises(MedkitError, match=r"no arm 'med_mix'; its arms are base, med-mix"):
        lineup.of_run(empty, ["med_mix"])


def test_any_of_a_runs_arms_alone(run, tmp_path, monkeypatch):
    """As a sweep evaluates them: what was not asked for need not be there."""
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    storage.write_json(tmp_path / "one" / "run.json", run_json.describe("cpu"))
    storage.write_text(tmp_path / "one" / "stage2" / "adapter" / "adapter_model.safetensors", "")
    for begin in (evaluate.begin_exams, evaluate.begin_queries):
        assert list(begin("one", arms="med-nirvana")[1].members) == ["med-nirvana"]
        assert list(begin("one", arms=" med-nirvana, base ")[1].members) == ["med-nirvana", "base"]
        with pytest.raises(ResultsError, match=r"stage1/adapter.* is missing; run notebook 01_stage1 first"):
            begin("one", arms="base,med-mix")
        with pytest.raises(MedkitError, match="no arm 'mixed'"):
            begin("one", arms="mixed")
    with pytest.raises(ResultsError, match="stage1/adapter"):
        evaluate.begin_exams("one")
    with pytest.raises(MedkitError, match="arms is empty"):
        evaluate.begin_queries("one", arms=" ")


def test_a_run_without_the_control_arm_compares_the_others(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    storage.write_json(tmp_path / "three" / "run.json", run_json.describe("cpu"))
    three = run_json.begin("three", "03_mcq_eval")
    for arm in ("stage1", "stage2"):
        storage.write_text(three.folder / arm / "adapter" / "adapter_model.safetensors", "")
    assert list(lineup.of_run(three).members) == ["base", "med-mix", "med-nirvana"]


def test_merged_arms_stand_on_a_base_of_their_own(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path))
    storage.write_json(tmp_path / "merged" / "run.json", run_json.describe("cpu", "dmt.handover=merge"))
    merged = run_json.begin("merged", "03_mcq_eval")
    for arm in FOLDERS:
        storage.write_text(merged.folder / arm / "adapter" / "adapter_model.safetensors", "")
    with pytest.raises(ResultsError, match=r"stage1/merged/config\.json is missing; run notebook 01_stage1"):
        lineup.of_run(merged)
    storage.write_text(merged.folder / "stage1" / "merged" / "config.json", "{}")
    members = lineup.of_run(merged).members
    own = str(merged.folder / "stage1" / "merged")
    assert [member.spec.base for member in members.values()] == ["smollm2", "smollm2", own, own]
    assert lineup.of_run(merged).table()["base"].tolist() == ["smollm2"] * 2 + ["stage1/merged"] * 2


def test_a_folder_that_is_no_adapter_and_one_of_another_base(run, tmp_path):
    with pytest.raises(AdapterError, match="is not an adapter folder"):
        lineup.single(run, run.recipe.model.base, str(tmp_path))
    model, tokenizer = make_tiny_llama(hidden_size=32)
    model.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    team = lineup.single(run, str(tmp_path / "other"), str(run.folder / "stage1" / "adapter"))
    with pytest.raises(AdapterError, match="belongs to another base"):
        next(iter(team))


def test_a_model_in_another_dtype_or_quantization_is_another_model(tiny_llama_folder):
    """The stores of answers tell models apart by this alone."""
    spec = replace(recipes.get("cpu").model, base=str(tiny_llama_folder))
    identities = {
        lineup.identity(
            lineup.Member("base", replace(spec, load_in_4bit=in_4bit)), torch.nn.Linear(1, 1).to(dtype)
        )
        for in_4bit in (True, False)
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert len(identities) == 4
