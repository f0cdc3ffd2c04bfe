"""Computes the letters' logits in float32 from the output layer, with the model's scaling and capping."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from peft.tuners.lora import LoraLayer
from peft.utils.integrations import dequantize_module_weight

# Fields of Transformers' configurations that multiply, divide or cap a logit (cap * tanh(logit / cap)).
FACTORS = ("logit_scale", "lm_head_multiplier", "output_multiplier")
DIVISORS = ("logits_scaling",)
CAPS = ("final_logit_softcapping", "logits_soft_cap")


@dataclass(frozen=True)
class LetterHead:
    """The output layer restricted to a few tokens, on the CPU, in float32 or a finer dtype of the model."""

    weight: torch.Tensor  # (tokens, hidden size)
    bias: torch.Tensor | float  # (tokens,); 0 without a bias
    scale: float
    cap: float  # 0 = none

    @classmethod
    def of(cls, model, tokens: Sequence[int]) -> "LetterHead":
        """Extract the head from the model's output layer: 16 or 32 bit or bitsandbytes, tied or not, with its
        active LoRA adapters. Compare the logits with the model's before using them."""
        layer, rows = model.get_output_embeddings(), list(tokens)
        adapted = isinstance(layer, LoraLayer)
        base = layer.get_base_layer() if adapted else layer
        weight = _at_least_float32(dequantize_module_weight(base).detach()[rows])
        if adapted and not (layer.disable_adapters or layer.merged):
            for name in layer.active_adapters:
                up, down = layer.lora_B[name].weight.detach()[rows], layer.lora_A[name].weight.detach()
                weight = weight + layer.scaling[name] * (_at_least_float32(up) @ _at_least_float32(down))
        bias = getattr(base, "bias", None)
        config = model.config.get_text_config()
        scale = 1.0
        for name in FACTORS:
            scale *= getattr(config, name, None) or 1.0
        for name in DIVISORS:
            scale /= getattr(config, name, None) or 1.0
        cap = next((value for name in CAPS if (value := getattr(config, name, None))), 0.0)
        return cls(weight, 0.0 if bias is None else _at_least_float32(bias.detach()[rows]), scale, cap)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, tokens) of the output layer's inputs, (rows, hidden size).

        Computed on the CPU, because a GPU may multiply float32 in TF32.
        """
        logits = (_at_least_float32(hidden).to(self.weight.dtype) @ self.weight.T + self.bias) * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.cpu().to(torch.promote_types(tensor.dtype, torch.float32))
