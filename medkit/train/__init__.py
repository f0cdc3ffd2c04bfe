"""Training a stage: model and adapter, tokenized rows, trainer, checkpoints."""

import importlib

# What notebooks call, by the module that has it; loaded on first use, so that importing this loads no torch.
_OFFERED = {
    "read_records": "stages",
    "load_base": "stages",
    "begin_adapter": "stages",
    "prepare": "stages",
    "sft_config": "config",
    "fit": "stages",
    "relearn": "stages",
    "finish": "stages",
}
__all__ = list(_OFFERED)


def __getattr__(name: str):
    if name not in _OFFERED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_OFFERED[name]}"), name)
