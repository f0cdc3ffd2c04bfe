"""Tables, figures, the ledger and the published numbers: reads results, loads no model."""

from importlib import import_module

_HOMES = {
    "before_and_after": "display",
    "details": "display",
    "settings": "display",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
