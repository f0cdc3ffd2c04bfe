"""Estimates of a stage: memory and disk by their parts; steps, tokens and hours."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from medkit.recipes import Recipe, TrainSpec
from medkit.runs import storage
from medkit.train.cpu import UNPACKED_GB
from medkit.train.metrics import data_sheet

GB = 1e9
GPU_MFU = 0.35  # share of the data sheet's FLOP/s a run is assumed to reach where none was measured
CPU_FLOPS = 67e9  # a core: SmolLM2-135M in NF4 trains at about 250 tokens/s on two, 0.54 GFLOP a token
# On a CPU a layer takes more than its backward pass needs: measured in float32 on SmolLM2-135M, between rows
# of 700 and of 1,500 tokens, 2.57 MB a token, where the sum over layers is 1.01.
CPU_KEPT = 2.6
PACKED = 0.98  # of a packed row's positions hold tokens (best-fit packing of stage 1's rows)


@dataclass(frozen=True)
class Shape:
    """A Llama-like model's sizes, as its config.json names them."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool = False
    head_dim: int | None = None

    @classmethod
    def read(cls, config: Path) -> "Shape":
        """Raises KeyError where config.json lacks one of the sizes."""
        found = json.loads(Path(config).read_text(encoding="utf-8"))
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
        sizes = {name: found[name] for name in names}
        sizes["num_key_value_heads"] = found.get("num_key_value_heads", found["num_attention_heads"])
        tied = found.get("tie_word_embeddings", False)
        return cls(**sizes, tie_word_embeddings=tied, head_dim=found.get("head_dim"))

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of a layer's linear modules."""
        head = self.head_dim or self.hidden_size // self.num_attention_heads
        h, f = self.hidden_size, self.intermediate_size
        q, kv = head * self.num_attention_heads, head * self.num_key_value_heads
        return {
            "q_proj": (h, q),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (q, h),
            "gate_proj": (h, f),
            "up_proj": (h, f),
            "down_proj": (f, h),
        }

    @property
    def body(self) -> int:
        """Weights of all linear modules: those kept in 4 bit."""
        return self.num_hidden_layers * sum(a * b for a, b in self.linears.values())

    @property
    def embeddings(self) -> int:
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        return self.body + self.embeddings

    def lora(self, r: int, modules) -> int:
        """Trainable weights of rank `r` on `modules`: 41,943,040 for Llama 3.1 8B, 16 and all seven."""
        pairs = [self.linears[name] for name in modules if name in self.linears]
        return self.num_hidden_layers * r * sum(a + b for a, b in pairs)

    def flops_per_token(self, lora: int, checkpointing: bool) -> float:
        """As metrics.flops_per_token; with gradient checkpointing the layers' forward pass is done twice, the
        output layer's once."""
        again = 2.0 * (self.body + lora) if checkpointing else 0.0
        return 4.0 * (self.body + self.vocab_size * self.hidden_size) + 6.0 * lora + again


LLAMA_8B = Shape(4096, 14336, 32, 32, 8, 128256)


def memory(shape: Shape, recipe: Recipe, stage: TrainSpec, gpu: bool, longest: int = 0) -> dict[str, float]:
    """10^9 bytes at the largest batch, by part; upper estimates: full rows on a GPU, float32 on a CPU.
    longest: tokens of the longest row, if known.
    """
    lora = shape.lora(recipe.lora.r, recipe.lora.target_modules)
    tokens = stage.batch_size * (recipe.model.max_length if gpu else longest or recipe.model.max_length)
    if stage.micro_batch_tokens and not gpu:
        tokens = max(stage.micro_batch_tokens // 2, longest)  # cpu.tokens_per_pass; a longer row by itself
    wide = 2 if gpu else 4  # bytes of an activation: bfloat16 on a GPU, float32 on a CPU
    c, kv = shape, shape.linears["k_proj"][1]
    layer = (6 * c.hidden_size + 2 * kv + 3 * c.intermediate_size) * wide  # what backward needs of a layer
    kept = c.num_hidden_layers * (c.hidden_size * wide if stage.gradient_checkpointing else layer)
    kept += layer * stage.gradient_checkpointing
    unpacked = 0.0 if gpu or not recipe.model.load_in_4bit else c.body * wide
    parts = {
        # NF4 with double quantization: 4 bits and 0.127 of constants a weight (arXiv 2305.14314, section 3)
        "weights": c.body * (4.127 / 8 if recipe.model.load_in_4bit else wide) + c.embeddings * wide,
        "unpacked weights": unpacked if unpacked <= UNPACKED_GB * GB else 0.0,
        "LoRA and gradients": lora * 8,
        "optimizer": lora * (2 if "8bit" in stage.optimizer else 8),
        "activations": tokens * kept * (1 if gpu else CPU_KEPT),
        "logits": tokens * c.vocab_size * 2 if gpu else 0.0,  # fused; on a CPU of learnt tokens, in pieces
        "libraries": 1e9,
    }
    return {name: size / GB for name, size in parts.items()}


def disk(shape: Shape, recipe: Recipe, tokens: float) -> dict[str, float]:
    """10^9 bytes by part, for `tokens` training and validation tokens of both stages."""
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
    """The expected course of a stage."""

    steps: int  # optimizer steps
    tokens: float  # training tokens
    evaluated: float  # validation tokens, all evaluations together
    hours: float | None  # None where the device's speed is not known
    basis: str  # what the hours rest on


def plan(
    recipe: Recipe, name: str, shape: Shape, rows: int, tokens: float, validation: int, hardware: dict
) -> Plan:
    """Steps, tokens and hours of stage `name` on `rows` rows of `tokens` tokens altogether.

    validation: rows held out. hardware: machine.hardware(). A speed measured on the same device with the
    same recipe (results/benchmarks) is preferred to FLOPs / (peak x assumed share).
    """
    stage, gpu = getattr(recipe, name), bool(hardware["gpus"])
    units = tokens / (PACKED * recipe.model.max_length) if gpu and stage.packing != "off" else rows
    steps = math.ceil(stage.epochs * units / (stage.batch_size * stage.accumulation))
    share = 1.0
    if stage.max_steps and stage.max_steps < steps:
        share, steps = stage.max_steps / steps, stage.max_steps
    trained, mean = tokens * stage.epochs * share, tokens / max(rows, 1)
    evaluations = steps // stage.eval_every + 2  # and at the start, and after the last step
    evaluated = evaluations * min(stage.eval_rows or validation, validation) * mean
    lora = shape.lora(recipe.lora.r, recipe.lora.target_modules)
    flops = shape.flops_per_token(lora, stage.gradient_checkpointing)
    forward = 2.0 * (shape.body + shape.vocab_size * shape.hidden_size)
    speed, basis = _speed(recipe, name, flops, hardware)
    # An evaluation is a forward pass only.
    hours = (trained + evaluated * forward / flops) / speed / 3600 if speed else None
    return Plan(steps, trained, evaluated, hours, basis)


def _speed(recipe: Recipe, name: str, flops: float, hardware: dict) -> tuple[float | None, str]:
    """(tokens/s, where it is from)."""
    device = hardware["gpus"][0]["name"] if hardware["gpus"] else None
    for path in sorted((storage.root() / "benchmarks").glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8").strip().splitlines()[-1])
            same = found["recipe"] == recipe.name and not found.get("set") and found["device"] == device
            if same:
                return found["stages"][name]["tokens_per_s"], f"measured ({path.name})"
        except (ValueError, KeyError, TypeError, IndexError):
            continue
    rate, basis = flop_rate(hardware)
    return rate and rate / flops, basis


def flop_rate(hardware: dict) -> tuple[float | None, str]:
    """(assumed FLOP/s of the device, None where its data sheet is not known; the basis)."""
    if not hardware["gpus"]:
        return CPU_FLOPS * hardware["cores"], f"assumed {CPU_FLOPS / 1e9:.0f} GFLOP/s a core"
    device = hardware["gpus"][0]["name"]
    peak = data_sheet(device)[0]
    if not peak:
        return None, f"no data-sheet speed known for {device}"
    return GPU_MFU * peak, f"assumed {GPU_MFU:.0%} of {peak / 1e12:.0f} TFLOP/s"
