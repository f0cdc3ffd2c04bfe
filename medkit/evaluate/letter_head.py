"""The letters' logits in float32: their rows of the output layer, and what a model does to its logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight

# Fields of Transformers' configurations: what a logit is multiplied with, divided by, and capped at (as
# cap * tanh(logit / cap)).
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling",)
CAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True)
class LetterHead:
    """The output layer for some tokens only, on the CPU, in float32 or the model's finer dtype."""

    weight: torch.Tensor  # (tokens, hidden size)
    bias: torch.Tensor | float  # (tokens,); 0 without one
    scale: float
    cap: float  # 0: none

    @classmethod
    def of(cls, model, tokens: Sequence[int]) -> "LetterHead":
        """From the model's output layer: 16 or 32 bits or bitsandbytes, tied or not, with a LoRA adapter that
        is switched on. Compare with the model's own logits before relying on it."""
        layer, rows = model.get_output_embeddings(), list(tokens)
        adapted = isinstance(layer, LoraLayer)
        base = layer.get_base_layer() if adapted else layer
        weight = _wide(dequantize_module_weight(base).detach()[rows])
        if adapted and not (layer.disable_adapters or layer.merged):
            for name in layer.active_adapters:
                up, down = layer.lora_B[name].weight.detach()[rows], layer.lora_A[name].weight.detach()
                weight = weight + layer.scaling[name] * (_wide(up) @ _wide(down))
        bias = getattr(base, "bias", None)
        config = model.config.get_text_config()
        scale = 1.0
        for name in FACTORS:
            scale *= getattr(config, name, None) or 1.0
        for name in DIVISORS:
            scale /= getattr(config, name, None) or 1.0
        cap = next((found for name in CAPS if (found := getattr(config, name, None))), 0.0)
        return cls(weight, 0.0 if bias is None else _wide(bias.detach()[rows]), scale, cap)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, tokens) of what the output layer is given, (rows, hidden size).

        On the CPU: a GPU may be set to multiply float32 in TF32.
        """
        logits = (_wide(hidden).to(self.weight.dtype) @ self.weight.T + self.bias) * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().to(torch.promote_types(tensor.dtype, torch.float32))
