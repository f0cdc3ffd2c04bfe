"""An adapter merged into 4-bit and 16-bit bases: the sum, the folder, what is refused and when."""

import json
import shutil
from dataclasses import replace

import pytest
import tiny_run
import torch
from conftest import make_tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file

from medkit import MedkitError, recipes
from medkit.preflight import checks as preflight
from medkit.preflight import estimate
from medkit.recipes import ModelSpec
from medkit.runs import run_json, storage
from medkit.train import merging, models, stages

NAMES = [
    f"model.layers.{layer}.{part}_proj"
    for layer in (0, 1)
    for part in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    models.unsloth()
    return tiny_run.write_base(tmp_path_factory.mktemp("base"))


def noisy(model, seed=1):
    """LoRA's B is zero at first: fill it, so that the adapter acts."""
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3, generator=torch.manual_seed(seed))
    return model


def written(folder) -> dict:
    return {name: one for file in folder.glob("*.safetensors") for name, one in load_file(file).items()}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(40, 60)[None]).logits[0].float()


@pytest.mark.parametrize("four_bit", [True, False])
def test_every_merged_weight_is_the_sum_with_the_weight_trained_against(base, tmp_path, four_bit):
    """W + s B A with s = alpha / sqrt(r) = 4 / sqrt(4) = 2. In 4 bit W is what NF4 holds, and not the file's
    weight: the two differ by up to several hundredths of the largest."""
    from bitsandbytes.functional import dequantize_4bit

    model, tokenizer, *_ = tiny_run.model_and_rows(base, four_bit=four_bit)
    merging.merge_adapter(noisy(model), tokenizer, tmp_path / "merged")
    merged, original = written(tmp_path / "merged"), load_file(base / "model.safetensors")
    for name in NAMES:
        layer = model.get_base_model().get_submodule(name)
        a, b = (getattr(layer, f"lora_{letter}")["default"].weight for letter in "AB")
        weight = layer.base_layer.weight
        if four_bit:
            weight = dequantize_4bit(weight.data, weight.quant_state)
        expected = (weight.float() + 2 * b.float() @ a.float()).to(torch.bfloat16)
        assert torch.equal(merged[f"{name}.weight"], expected), name
        assert (expected - weight).abs().max() > 0.1  # the adapter acts
        drift = (weight.float() - original[f"{name}.weight"]).abs().max() / weight.float().abs().max()
        assert (drift > 0.02) == four_bit
    others = original.keys() - {f"{name}.weight" for name in NAMES}
    assert others == merged.keys() - {f"{name}.weight" for name in NAMES}
    assert all(torch.equal(merged[name], original[name].to(torch.bfloat16)) for name in others)


def test_the_merged_folder_is_a_plain_16_bit_one_and_answers_as_the_adapter_does(base, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer, *_ = tiny_run.model_and_rows(base)
    merging.merge_adapter(noisy(model), tokenizer, tmp_path / "merged")
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["dtype"], config["use_cache"]) == ("bfloat16", True)
    assert "quantization_config" not in config and str(base) not in json.dumps(config)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert again.dtype == torch.bfloat16
    theirs, ours = logits(again.eval().float()), logits(model.eval().float())
    assert (theirs - ours).std() < 0.05 * ours.std()  # the adapter's answer is computed in bfloat16
    with model.disable_adapter():
        assert (ours - logits(model)).std() > 0.5 * ours.std()
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == tokenizer.get_vocab()
    next_model, *_ = tiny_run.model_and_rows(tmp_path / "merged")  # stage 2: in 4 bit, a fresh adapter
    assert next_model.get_nb_trainable_parameters()[0] == model.get_nb_trainable_parameters()[0]


def test_the_merge_leaves_the_model_as_it_was(base, tmp_path):
    model, tokenizer, *_ = tiny_run.model_and_rows(base)
    before = logits(noisy(model).eval())
    merging.merge_adapter(model, tokenizer, tmp_path / "merged")
    assert torch.equal(logits(model), before)
    assert model.get_base_model().config.use_cache is False  # as training has it


@given(shard=st.integers(2_000, 300_000))
@settings(max_examples=5, deadline=None)
def test_files_of_any_size_hold_the_same_tensors(shard, tmp_path_factory):
    """The largest tensor, 261 x 64 of 2 bytes, is a file of its own where it is larger than a file may be."""
    place = tmp_path_factory.mktemp("shards")
    net, tokenizer = make_tiny_llama()
    model = noisy(get_peft_model(net, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])))
    merging.merge_adapter(model, tokenizer, place / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merging, "SHARD_BYTES", shard)
        merging.merge_adapter(model, tokenizer, place / "parts")
    whole, parts = written(place / "whole"), written(place / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    files = [file.stat().st_size for file in (place / "parts").glob("*.safetensors")]
    assert max(files) < max(shard, 2 * 261 * 64) + 4_000  # and a header
    if len(files) > 1:
        index = json.loads((place / "parts" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == whole.keys()
        assert index["metadata"]["total_size"] == sum(one.nbytes for one in whole.values())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), r"k_proj is adapted by Linear"),
        (LoraConfig(target_modules=["embed_tokens"]), r"model\.embed_tokens is adapted by Embedding"),
        (LoraConfig(target_modules=["k_proj"], use_dora=True), r"0\.self_attn\.k_proj is adapted by"),
        (
            LoraConfig(target_modules=["k_proj"], lora_bias=True),
            r"layers\.0\.self_attn\.k_proj is adapted by",
        ),
        (
            LoraConfig(target_modules=["k_proj"], modules_to_save=["lm_head"]),
            r"lm_head is adapted by ModulesToSaveWrapper",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*has no bias")
def test_an_adapter_that_is_not_plain_lora_is_named(tmp_path, other, named):
    model = get_peft_model(make_tiny_llama()[0], other)
    with pytest.raises(MedkitError, match=rf"{named}.*; only LoRA on linear layers can be merged"):
        merging.check_merge(model, tmp_path / "merged")


def test_weights_that_do_not_merge_are_named(tmp_path):
    net, _ = make_tiny_llama()
    model = get_peft_model(net, LoraConfig(target_modules=["q_proj"]))
    norm = net.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.data.to(torch.int8), requires_grad=False)
    with pytest.raises(MedkitError, match=r"model\.norm\.weight has int8 weights"):
        merging.check_merge(model, tmp_path / "merged")


def test_a_full_disk_is_told_before_the_stage(base, tmp_path, monkeypatch):
    model, tokenizer, *_ = tiny_run.model_and_rows(base)
    merging.merge_adapter(model, tokenizer, tmp_path / "merged")
    size = sum(one.nbytes for one in written(tmp_path / "merged").values())
    usage = type(shutil.disk_usage("/"))
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: usage(0, 0, size - 1))
    with pytest.raises(MedkitError, match=r"merged model takes 0\.0 GB.*dmt\.handover=continue"):
        merging.check_merge(model, tmp_path / "other" / "merged")
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: usage(0, 0, size))
    merging.check_merge(model, tmp_path / "other" / "merged")


def test_what_a_killed_merge_left_is_removed_and_a_failed_one_leaves_nothing(base, tmp_path, monkeypatch):
    model, tokenizer, *_ = tiny_run.model_and_rows(base)
    (tmp_path / ".merged.123").mkdir()
    merging.merge_adapter(model, tokenizer, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(merging, "_compute", full)
    with pytest.raises(OSError, match="no space"):
        merging.merge_adapter(model, tokenizer, tmp_path / "second")
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


def test_a_saved_adapter_is_merged_into_its_base_by_folder(base, tmp_path):
    model, tokenizer, *_ = tiny_run.model_and_rows(base)
    models.save_adapter(noisy(model), tokenizer, tmp_path / "adapter")
    merging.merge_adapter(model, tokenizer, tmp_path / "one")
    models.merge_adapter(ModelSpec(base=str(base)), tmp_path / "adapter", tmp_path / "two")
    one, two = written(tmp_path / "one"), written(tmp_path / "two")
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def begin(place, base, monkeypatch, **settings):
    monkeypatch.setenv("MEDKIT_RESULTS", str(place))
    monkeypatch.setenv("MEDKIT_RUNNER", "1")
    fields = {"model.base": base, "dmt.handover": "merge", **settings}
    info = run_json.describe("cpu", ";".join(f"{name}={value}" for name, value in fields.items()))
    storage.write_json(place / "tiny" / "run.json", info)
    return run_json.begin("tiny", "01_stage1")


def test_stage_1_refuses_to_begin_where_its_end_would_fail(base, tmp_path, monkeypatch):
    run = begin(tmp_path / "results", base, monkeypatch)
    stages.load_for_stage(run, "stage1")
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda _: type("", (), {"free": 1000}))
    with pytest.raises(MedkitError, match=r"merged model takes .* and 0\.0 GB are free"):
        stages.load_for_stage(run, "stage1")
    run = begin(tmp_path / "other", base, monkeypatch, **{"dmt.handover": "continue"})
    stages.load_for_stage(run, "stage1")


def quantized(folder, base, **config):
    shutil.copytree(base, folder)
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(whole | {"quantization_config": config}))
    return folder


@pytest.mark.parametrize(
    "config, method",
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
    ],
)
def test_check_refuses_a_base_that_no_adapter_merges_into(base, tmp_path, config, method):
    folder = quantized(tmp_path / "base", base, **config)
    recipe = recipes.get("cpu", {"model.base": str(folder), "dmt.handover": "merge"})
    found = {check.name: check for check in preflight.machine(recipe)}["hand-over"]
    assert (found.status, found.fix) == ("fail", "--set dmt.handover=continue")
    assert f"it has {method} weights" in found.message
    kept = replace(recipe, dmt=replace(recipe.dmt, handover="continue"))
    assert "hand-over" not in {check.name for check in preflight.machine(kept)}


def test_check_reads_the_configuration_of_a_hubs_model_from_the_cache(base, tmp_path, monkeypatch):
    folder = quantized(tmp_path / "cached", base, quant_method="awq", bits=4)
    asked = []

    def cached(*where, **more):
        asked.append((where, more))
        return str(folder / "config.json")

    monkeypatch.setattr(preflight, "try_to_load_from_cache", cached)
    monkeypatch.setattr(preflight, "check_model", lambda *_: None)
    recipe = recipes.get("paper", {"model.base": "some/model", "model.revision": "abc"})
    found = {check.name: check for check in preflight.machine(recipe)}["hand-over"]
    assert found.status == "fail" and "some/model: it has awq weights" in found.message
    assert asked == [(("some/model", "config.json"), {"revision": "abc"})]


def test_check_passes_a_base_in_16_bit_or_bitsandbytes_4(base, tmp_path):
    four = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for folder in (base, quantized(tmp_path / "four", base, **four)):
        recipe = recipes.get("cpu", {"model.base": str(folder), "dmt.handover": "merge"})
        checks = {check.name: check for check in preflight.machine(recipe)}
        assert checks["hand-over"].status == "pass"
        assert "merged model" in checks["disk"].message
    # Two bytes a weight: 2 x 8.03e9
    assert estimate.disk(estimate.LLAMA_8B, recipes.get("paper"), 0)["merged model"] == pytest.approx(
        16.06, abs=0.01
    )


def test_a_base_saved_in_4_bit_merges_without_any_other_file(base, tmp_path):
    """As the paper's base is: the folder holds NF4 weights alone, and nothing is fetched."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    net = AutoModelForCausalLM.from_pretrained(base, quantization_config=how, dtype=torch.bfloat16)
    net.save_pretrained(tmp_path / "four")
    for file in base.glob("*token*"):
        shutil.copy(file, tmp_path / "four")
    shutil.copy(base / "chat_template.jinja", tmp_path / "four")
    model, tokenizer, *_ = tiny_run.model_and_rows(tmp_path / "four")
    noisy(model)
    weight = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight
    assert weight.quant_state.nested  # double quantization
    merging.merge_adapter(model, tokenizer, tmp_path / "merged")
    from bitsandbytes.functional import dequantize_4bit

    layer = model.get_base_model().model.layers[0].mlp.up_proj
    delta = 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    expected = dequantize_4bit(weight.data, weight.quant_state).float() + delta
    found = written(tmp_path / "merged")["model.layers.0.mlp.up_proj.weight"]
    assert torch.equal(found, expected.to(torch.bfloat16))
