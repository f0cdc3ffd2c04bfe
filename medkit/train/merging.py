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
from medkit.train.checkpoints import atomic_folder

SHARD_BYTES = 2_000_000_000  # of one file, which is also what the merge holds in memory beside the model


class MergeError(MedkitError):
    """A model or adapter that cannot be written as plain 16-bit weights, or no room for them."""


def merge_adapter(model, tokenizer, folder: str | Path) -> None:
    """Write `model` (a PeftModel, its base in 4 bit or 16) with its active adapter merged, and the tokenizer.

    `folder` appears whole: config.json, generation_config.json, safetensors of up to SHARD_BYTES with their
    index, the tokenizer's files. The model stays as it is; one file's tensors are in memory at a time.
    Raises MergeError as `check_merge` does.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder = Path(folder)
    for left in folder.parent.glob(f".{folder.name}.*"):  # of a process that was killed: 16 GB each
        shutil.rmtree(left, ignore_errors=True)
    check_merge(model, folder)
    tensors, dtype = _tensors(model), _dtype(model)
    plan = split_torch_state_dict_into_shards(
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, _) in tensors.items()},
        max_shard_size=SHARD_BYTES,
    )
    with atomic_folder(folder) as aside:
        for file, names in plan.filename_to_tensors.items():
            shard = {name: _written(tensors[name][1], dtype) for name in names}
            save_file(shard, aside / file, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (aside / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        _config(model, dtype).save_pretrained(aside)
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


def why_unmergeable(config: dict) -> str:
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


def _written(compute: Callable, dtype):
    """On the CPU, in the written dtype; whole numbers stay as they are."""
    import torch

    with torch.no_grad():
        tensor = compute().detach().cpu()
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _config(model, dtype):
    config = copy.deepcopy(_base(model).config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config.use_cache = dtype, True  # which training switches off
    return config


def _tensors(model) -> dict[str, tuple]:
    """Name, as Transformers saves it -> (shape, function that computes it). Tied weights are in it once."""
    base, found = _base(model), {}
    layers = _lora_layers(base)
    for name, weight in base.named_parameters():
        layer, adapted, kind = name.rpartition(".base_layer.")
        if adapted:
            compute = partial(_merged, layers[layer]) if kind == "weight" else weight.float
            found[f"{layer}.{kind}"] = _shape(weight), compute
        elif ".lora_" not in name:
            plain = weight.is_floating_point() and weight.element_size() > 1
            if not plain and getattr(weight, "quant_state", None) is None:
                kind = str(weight.dtype).partition(".")[2]
                raise MergeError(f"{name} holds {kind} weights, into which no adapter is merged")
            found[name] = _shape(weight), partial(_dequantized, weight)
    for name, module in base.named_modules():
        for kind, one in module.named_buffers(recurse=False):
            if kind not in module._non_persistent_buffers_set:
                found[f"{name}.{kind}"] = one.shape, partial(_dequantized, one)
    return found


def _lora_layers(base) -> dict:
    """Name -> layer; MergeError, naming the module, for any other kind of adapter."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.bnb import Linear4bit
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = {}
    for name, module in base.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            if (
                not isinstance(module, (Linear, Linear4bit))
                or module.lora_variant
                or any(module.lora_bias.values())
            ):
                raise MergeError(
                    f"{name} carries a {type(module).__name__}; only LoRA on linear layers merges"
                )
            layers[name] = module
    return layers


def _merged(layer):
    (adapter,) = layer.active_adapters
    return _dequantized(layer.get_base_layer().weight).float() + layer.get_delta_weight(adapter).float()


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
