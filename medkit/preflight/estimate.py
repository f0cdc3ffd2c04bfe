"""Estimates for a training stage: memory and disk by part; steps, tokens and hours."""

import json
import math
from dataclasses import dataclass

from medkit.recipes import Recipe, TrainSpec
from medkit.runs import storage
from medkit.train.cpu import UNPACKED_GB
from medkit.train.metrics import data_sheet
from medkit.train.shape import LLAMA_8B, Shape  # noqa: F401 (re-exported)

GB = 1e9
GPU_MFU = 0.35  # assumed share of the data sheet's FLOP/s, unless a speed was measured
CPU_FLOPS = 67e9  # per core: SmolLM2-135M in NF4 trains at about 250 tokens/s on two, 0.54 GFLOP per token
# On a CPU, training keeps more activations than the backward pass needs. Measured in float32 on SmolLM2-135M
# between rows of 700 and 1,500 tokens: 2.57 MB per token, against 1.01 MB summed over the layers.
CPU_ACTIVATIONS = 2.6
PACKED = 0.98  # share of a packed row's positions that hold tokens (best-fit packing of stage 1's rows)


def memory(shape: Shape, recipe: Recipe, stage: TrainSpec, gpu: bool, longest: int = 0) -> dict[str, float]:
    """10^9 bytes by part at the largest batch. Upper estimates: full rows on a GPU, float32 on a CPU.

    longest: tokens of the longest row; 0 if unknown.
    """
    lora = shape.lora(recipe.lora.r, recipe.lora.target_modules)
    tokens = stage.batch_size * (recipe.model.max_length if gpu else longest or recipe.model.max_length)
    if stage.micro_batch_tokens and not gpu:
        # cpu.tokens_per_pass in float32; a longer row is a pass of its own
        tokens = max(stage.micro_batch_tokens // 2, longest)
    width = 2 if gpu else 4  # bytes per activation: bfloat16 on a GPU, float32 on a CPU
    hidden, kv = shape.hidden_size, shape.linears["k_proj"][1]
    layer = (6 * hidden + 2 * kv + 3 * shape.intermediate_size) * width  # bytes per token for backward
    activations = shape.num_hidden_layers * (hidden * width if stage.gradient_checkpointing else layer)
    activations += layer * stage.gradient_checkpointing
    unpacked = 0.0 if gpu or not recipe.model.load_in_4bit else shape.body * width
    # NF4 with double quantization: 4 bits plus 0.127 of constants per weight (arXiv 2305.14314, section 3)
    body_bytes = shape.body * (4.127 / 8 if recipe.model.load_in_4bit else width)
    parts = {
        "weights": body_bytes + shape.embeddings * width,
        "unpacked weights": unpacked if unpacked <= UNPACKED_GB * GB else 0.0,
        "LoRA and gradients": lora * 8,
        "optimizer": lora * (2 if "8bit" in stage.optimizer else 8),
        "activations": tokens * activations * (1 if gpu else CPU_ACTIVATIONS),
        # Fused on a GPU. On a CPU only the supervised tokens' logits are computed, in chunks.
        "logits": tokens * shape.vocab_size * 2 if gpu else 0.0,
        "libraries": 1e9,
    }
    return {name: size / GB for name, size in parts.items()}


def disk(shape: Shape, recipe: Recipe, tokens: float) -> dict[str, float]:
    """10^9 bytes by part. tokens: of the training and validation rows of both stages."""
    lora = shape.lora(recipe.lora.r, recipe.lora.target_modules)
    state = lora * (4 + (2 if "8bit" in recipe.stage1.optimizer else 8))
    parts = {
        "prepared rows": tokens * 8,  # ids and labels
        "packed rows": tokens * 8 if recipe.stage1.packing != "off" else 0,
        "checkpoints": 3 * state,  # two kept, one being written
        "adapters": (3 + bool(recipe.dmt.relearn_steps)) * lora * 4,
        "merged model": 2 * shape.parameters if recipe.dmt.handover == "merge" else 0,
    }
    return {name: size / GB for name, size in parts.items()}


@dataclass(frozen=True)
class Plan:
    """The expected length of a stage."""

    steps: int  # optimizer steps
    tokens: float  # training tokens
    evaluated: float  # validation tokens, summed over all evaluations
    hours: float | None  # None if the device's speed is unknown
    basis: str  # where the speed comes from


def plan(
    recipe: Recipe, name: str, shape: Shape, rows: int, tokens: float, validation: int, hardware: dict
) -> Plan:
    """Steps, tokens and hours of stage `name`.

    rows, tokens: of the training rows. validation: number of validation rows. hardware: machine.hardware().
    A speed measured on the same device with the same recipe (results/benchmarks) takes precedence over
    FLOPs / (peak x assumed share).
    """
    stage, gpu = getattr(recipe, name), bool(hardware["gpus"])
    units = tokens / (PACKED * recipe.model.max_length) if gpu and stage.packing != "off" else rows
    steps = math.ceil(stage.epochs * units / (stage.batch_size * stage.accumulation))
    share = 1.0
    if stage.max_steps:  # also repeats the rows, if the epochs have fewer steps
        share, steps = stage.max_steps / steps, stage.max_steps
    trained, mean_length = tokens * stage.epochs * share, tokens / max(rows, 1)
    evaluations = steps // stage.eval_every + 2  # plus one before the first step and one after the last
    evaluated = evaluations * min(stage.eval_rows or validation, validation) * mean_length
    lora = shape.lora(recipe.lora.r, recipe.lora.target_modules)
    flops = shape.flops_per_token(lora, stage.gradient_checkpointing)
    forward = 2.0 * (shape.body + shape.vocab_size * shape.hidden_size)
    speed, basis = _speed(recipe, name, flops, hardware)
    # An evaluation is a forward pass only.
    hours = (trained + evaluated * forward / flops) / speed / 3600 if speed else None
    return Plan(steps, trained, evaluated, hours, basis)


def _speed(recipe: Recipe, stage: str, flops: float, hardware: dict) -> tuple[float | None, str]:
    """(training tokens/s or None, its source). flops: per token."""
    device = hardware["gpus"][0]["name"] if hardware["gpus"] else None
    for path in sorted((storage.root() / "benchmarks").glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
            if result["recipe"] == recipe.name and not result.get("set") and result["device"] == device:
                return result["stages"][stage]["tokens_per_s"], f"measured ({path.name})"
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    rate, basis = flop_rate(hardware)
    return rate and rate / flops, basis


def flop_rate(hardware: dict) -> tuple[float | None, str]:
    """(assumed FLOP/s of the device, its basis); None if the device's data sheet is unknown."""
    if not hardware["gpus"]:
        return CPU_FLOPS * hardware["cores"], f"assumed {CPU_FLOPS / 1e9:.0f} GFLOP/s a core"
    device = hardware["gpus"][0]["name"]
    peak = data_sheet(device)[0]
    if not peak:
        return None, f"no data-sheet speed known for {device}"
    return GPU_MFU * peak, f"assumed {GPU_MFU:.0%} of {peak / 1e12:.0f} TFLOP/s"
