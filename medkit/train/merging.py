"""An adapter merged into the weights it was trained against, written as a 16-bit Hugging Face folder.

Each weight is dequantize_4bit(W) + scaling * B A, summed in float32 and rounded once. Unsloth's own
save_pretrained_merged adds the adapter to the original 16-bit model instead, which it downloads and which is
not what the adapter was trained against.
"""

import copy
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from medkit import MedkitError
from medkit.train.checkpoints import appears_whole

SHARD_BYTES = 2_000_000_000  # of one file, which is also what the merge holds in memory beside the model


class MergeError(MedkitError):
    """A model or adapter that cannot be written as plain 16-bit weights, or no room for them."""


def merge_adapter(model, tokenizer, folder: str | Path) -> None:
    """Write `model` (a PeftModel, its base in 4 bit or 16) with its active adapter merged, and the tokenizer.

    `folder` appears whole: config.json, generation_config.json, safetensors of up to SHARD_BYTES with their
    index, the tokenizer's files. The model stays as it is; one file's tensors are in memory at a time.
    Raises MergeError as `check_merge` does.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder = Path(folder)
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: 16 GB each
        shutil.rmtree(left, ignore_errors=True)
    check_merge(model, folder)
    tensors, dtype = _tensors(model), _dtype(model)
    plan = split_torch_state_dict_into_shards(
        {name: _empty(shape, dtype) for name, (shape, _) in tensors.items()}, max_shard_size=SHARD_BYTES
    )
    with appears_whole(folder) as aside:
        for file, names in plan.filename_to_tensors.items():
            shard = {name: _written(tensors[name][1], dtype) for name in names}
            save_file(shard, aside / file, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (aside / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        _config(model, tensors, dtype).save_pretrained(aside)
        if (generation := getattr(_base(model), "generation_config", None)) is not None:
            generation.to_json_file(aside / "generation_config.json")
        tokenizer.save_pretrained(aside)


def check_merge(model, folder: str | Path) -> None:
    """MergeError, naming the module, where `model` has something that plain 16-bit weights cannot hold, and
    where the disk of `folder` has no room for them. Computes nothing: for the start of a stage."""
    size = sum(shape.numel() for shape, _ in _tensors(model).values()) * _dtype(model).itemsize
    place = next(one for one in Path(folder).absolute().parents if one.exists())
    free = shutil.disk_usage(place).free
    if free < size:
        raise MergeError(
            f"the merged model takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room, or set "
            "dmt.handover=continue"
        )


def refusal(config: dict) -> str:
    """Why an adapter cannot be merged into a base of this config.json; empty where it can."""
    found = config.get("quantization_config") or {"load_in_4bit": True}
    method = found.get("quant_method", "bitsandbytes")
    if method == "bitsandbytes" and found.get("load_in_4bit"):
        return ""
    return f"it holds {method} weights; the merge takes a 16-bit base, or one in bitsandbytes' 4 bits"


def _base(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _dtype(model):
    """Of the written weights: the model's own where that has 16 bits."""
    import torch

    own = _base(model).dtype
    return own if own in (torch.float16, torch.bfloat16) else torch.bfloat16


def _empty(shape, dtype):
    import torch

    return torch.empty(shape, dtype=dtype, device="meta")


def _written(compute: Callable, dtype):
    """On the CPU, in the written dtype; what is no number with a fraction stays as it is."""
    import torch

    with torch.no_grad():
        tensor = compute().detach().cpu()
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _config(model, tensors: dict, dtype):
    config = copy.deepcopy(_base(model).config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config.use_cache = dtype, True  # which training switches off
    base = _base(model)
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    names = [f"{name}.weight" for name, module in base.named_modules() if any(module is end for end in ends)]
    # Tied weights are written once, unless an adapter acts on one of the two: then they are tied no more.
    if all(name in tensors for name in names):
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = False
    return config


def _tensors(model) -> dict[str, tuple]:
    """Name, as Transformers saves it -> (shape, function that computes it)."""
    found: dict[str, tuple] = {}
    _collect(_base(model), "", found, set())
    return found


def _collect(module, prefix: str, found: dict, seen: set) -> None:
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper

    if isinstance(module, LoraLayer):
        _collect_lora(module, prefix, found)
    elif isinstance(module, ModulesToSaveWrapper):
        _collect(module.modules_to_save[module.active_adapters[0]], prefix, found, seen)
    elif isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        raise MergeError(f"{prefix[:-1]} carries a {type(module).__name__}; only LoRA merges")
    else:
        _collect_own(module, prefix, found, seen)
        for name, child in module.named_children():
            _collect(child, f"{prefix}{name}.", found, seen)


def _collect_own(module, prefix: str, found: dict, seen: set) -> None:
    """A module's own parameters and saved buffers; tied ones once."""
    passing = module._non_persistent_buffers_set
    buffers = {name: one for name, one in module._buffers.items() if name not in passing}
    for name, one in {**module._parameters, **buffers}.items():
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        plain = name in buffers or (one.is_floating_point() and one.element_size() > 1)
        if not plain and getattr(one, "quant_state", None) is None:
            kind = str(one.dtype).partition(".")[2]
            raise MergeError(f"{prefix}{name} holds {kind} weights, into which no adapter is merged")
        found[prefix + name] = _shape(one), partial(_dequantized, one)


def _collect_lora(layer, prefix: str, found: dict) -> None:
    from peft.tuners.lora import Embedding, Linear
    from peft.tuners.lora.bnb import Linear4bit

    (adapter,) = layer.active_adapters
    plain = adapter not in layer.lora_variant or layer.use_dora.get(adapter)
    if not isinstance(layer, (Embedding, Linear, Linear4bit)) or not plain:
        raise MergeError(f"{prefix[:-1]} carries an adapter that is neither LoRA nor DoRA; only these merge")
    base = layer.get_base_layer()
    found[f"{prefix}weight"] = _shape(base.weight), partial(_merged, layer, adapter)
    bias = getattr(base, "bias", None)
    if layer.lora_bias.get(adapter):
        if bias is None:
            raise MergeError(f"{prefix[:-1]} has no bias, and its adapter one (lora_bias); it does not merge")
        added = layer.lora_B[adapter].bias
        found[f"{prefix}bias"] = bias.shape, lambda: bias.float() + layer.scaling[adapter] * added.float()
    elif bias is not None:
        found[f"{prefix}bias"] = bias.shape, lambda: bias


def _merged(layer, adapter: str):
    weight = _dequantized(layer.get_base_layer().weight).float()
    if adapter in layer.lora_variant:  # DoRA: m (W + s B A) / |W + s B A|
        return layer.lora_variant[adapter].merge_safe(layer, adapter, weight)
    return weight + layer.get_delta_weight(adapter).float()


def _shape(weight):
    """(out, in): of 4-bit weights what they are unpacked to."""
    state = getattr(weight, "quant_state", None)
    return weight.shape if state is None else state.shape


def _dequantized(weight):
    """What a layer computes with: 4-bit weights unpacked, others as they are."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_4bit

    state, data = getattr(weight, "quant_state", None), weight.data
    if state is None:
        return data
    if getattr(state, "packing_format_for_cpu", False):  # on AVX-512 BF16, once a model has answered
        data, state = _convert_weight_packed_for_cpu_inverse(data, copy.copy(state))
    return dequantize_4bit(data, state)
