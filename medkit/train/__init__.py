"""Training a stage: model and adapter, tokenized rows, trainer, checkpoints."""

from medkit import lazy_exports

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

__getattr__ = lazy_exports(__name__, _OFFERED)
