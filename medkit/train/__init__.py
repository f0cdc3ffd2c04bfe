"""Training a stage: model and adapter, tokenized rows, trainer, checkpoints."""

from medkit import lazy_exports

# The functions that the notebooks call. Loaded on first use, so that importing the package imports no torch.
_EXPORTS = {
    "read_records": "stages",
    "load_base": "stages",
    "begin_adapter": "stages",
    "prepare": "stages",
    "sft_config": "config",
    "fit": "stages",
    "relearn": "stages",
    "finish": "stages",
}
__all__ = list(_EXPORTS)

__getattr__ = lazy_exports(__name__, _EXPORTS)
