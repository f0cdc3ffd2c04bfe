"""Training a stage: model and adapter, tokenized rows, trainer, checkpoints."""

import importlib

# What notebooks call, by the module that has it; loaded on first use, so that importing this loads no torch.
_OFFERED = {
    "load_for_stage": "stages",
    "tokenize": "stages",
    "sft_config": "config",
    "fit": "stages",
    "finish": "stages",
    "for_inference": "models",
    "trainable_parameters": "models",
}
__all__ = list(_OFFERED)


def __getattr__(name: str):
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OFFERED[name]}"), name)
