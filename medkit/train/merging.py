"""Merges an adapter into the weights it was trained on and writes a 16-bit Hugging Face folder.

Each weight is dequantize_4bit(W) + scaling * B A, summed in float32 and rounded once. Unsloth's
save_pretrained_merged instead downloads the original 16-bit model and adds the adapter to that, although the
adapter was trained on the 4-bit weights.
"""

import copy
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from medkit import MedkitError
from medkit.runs import machine
from medkit.train.checkpoints import atomic_folder

SHARD_BYTES = 2_000_000_000  # per file; the merge needs this much memory in addition to the model


def merge_adapter(model, tokenizer, folder: str | Path) -> None:
    """Write `model` (a PeftModel, base in 4 or 16 bit) with its active adapter merged, and the tokenizer.

    `folder` appears only when it is complete. The safetensors files have up to SHARD_BYTES each, and only one
    file's tensors are in memory at a time. The model is not changed. Raises MedkitError, like `check_merge`.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    folder = Path(folder)
    for leftover in folder.parent.glob(f".{folder.name}.*"):  # of killed processes: 16 GB each
        shutil.rmtree(leftover, ignore_errors=True)
    check_merge(model, folder)
    tensors, dtype = _tensors(model), _dtype(model)
    plan = split_torch_state_dict_into_shards(
        {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, _) in tensors.items()},
        max_shard_size=SHARD_BYTES,
    )
    with atomic_folder(folder) as temporary:
        for file, names in plan.filename_to_tensors.items():
            shard = {name: _compute(tensors[name][1], dtype) for name in names}
            save_file(shard, temporary / file, metadata={"format": "pt"})
        if plan.is_sharded:
            index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
            (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
        _config(model, dtype).save_pretrained(temporary)
        if (generation := getattr(_base(model), "generation_config", None)) is not None:
            generation.to_json_file(temporary / "generation_config.json")
        tokenizer.save_pretrained(temporary)


def check_merge(model, folder: str | Path) -> None:
    """MedkitError if `model` cannot be merged into plain 16-bit weights or the disk has no space for them.
    Computes no weights, so that a stage can check it before training."""
    size = sum(shape.numel() for shape, _ in _tensors(model).values()) * _dtype(model).itemsize
    free = machine.free_disk(Path(folder))
    if free < size:
        raise MedkitError(
            f"the merged model takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room, or set "
            "dmt.handover=continue"
        )


def why_unmergeable(config: dict) -> str:
    """Why an adapter cannot be merged into a base with this config.json; "" if it can."""
    quantization = config.get("quantization_config") or {"load_in_4bit": True}
    method = quantization.get("quant_method", "bitsandbytes")
    if method == "bitsandbytes" and quantization.get("load_in_4bit"):
        return ""
    return f"it has {method} weights; the merge needs a 16-bit base, or bitsandbytes' 4-bit weights"


def _base(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _dtype(model):
    """The dtype of the merged weights: the model's dtype if it has 16 bits, else bfloat16."""
    import torch

    dtype = _base(model).dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) else torch.bfloat16


def _compute(compute: Callable, dtype):
    """Compute a tensor on the CPU. Floating-point tensors are converted to `dtype`."""
    import torch

    with torch.no_grad():
        tensor = compute().detach().cpu()
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _config(model, dtype):
    config = copy.deepcopy(_base(model).config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.dtype, config.use_cache = dtype, True  # training turns the cache off
    return config


def _tensors(model) -> dict[str, tuple]:
    """Saved name -> (shape, function that computes the tensor). Tied weights occur once."""
    base, tensors = _base(model), {}
    layers = _lora_layers(base)
    for name, weight in base.named_parameters():
        layer, adapted, kind = name.rpartition(".base_layer.")
        if adapted:
            compute = partial(_merged, layers[layer]) if kind == "weight" else weight.float
            tensors[f"{layer}.{kind}"] = _shape(weight), compute
        elif ".lora_" not in name:
            is_float = weight.is_floating_point() and weight.element_size() > 1
            if not is_float and getattr(weight, "quant_state", None) is None:
                dtype = str(weight.dtype).partition(".")[2]
                raise MedkitError(f"{name} has {dtype} weights; an adapter cannot be merged into them")
            tensors[name] = _shape(weight), partial(_dequantized, weight)
    for name, module in base.named_modules():
        for buffer_name, buffer in module.named_buffers(recurse=False):
            if buffer_name not in module._non_persistent_buffers_set:
                tensors[f"{name}.{buffer_name}"] = buffer.shape, partial(_dequantized, buffer)
    return tensors


def _lora_layers(base) -> dict:
    """Name -> LoRA layer; MedkitError for any other kind of adapter."""
    from peft.tuners.lora import Linear
    from peft.tuners.lora.bnb import Linear4bit
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    layers = {}
    for name, module in base.named_modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            is_linear = isinstance(module, (Linear, Linear4bit))
            if not is_linear or module.lora_variant or any(module.lora_bias.values()):
                raise MedkitError(
                    f"{name} is adapted by {type(module).__name__}; only LoRA on linear layers can be merged"
                )
            layers[name] = module
    return layers


def _merged(layer):
    (adapter,) = layer.active_adapters
    return _dequantized(layer.get_base_layer().weight).float() + layer.get_delta_weight(adapter).float()


def _shape(weight):
    """The shape (out, in); of 4-bit weights, the dequantized shape."""
    state = getattr(weight, "quant_state", None)
    return weight.shape if state is None else state.shape


def _dequantized(weight):
    """The weights that a layer computes with: 4-bit weights dequantized, others unchanged."""
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse, dequantize_4bit

    state, data = getattr(weight, "quant_state", None), weight.data
    if state is None:
        return data
    if getattr(state, "packing_format_for_cpu", False):  # repacked for AVX-512 BF16 by inference
        data, state = _convert_weight_packed_for_cpu_inverse(data, copy.copy(state))
    return dequantize_4bit(data, state)
