"""Tables, figures, the ledger and the published numbers: reads results, loads no model."""

from importlib import import_module

_HOMES = {
    "before_and_after": "display",
    "check": "consistency",
    "details": "display",
    "finish": "consistency",
    "headline": "table3",
    "settings": "display",
    "write_page": "page",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
