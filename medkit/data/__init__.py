"""Reading the data sets: declarations, files, converters, contamination, and the built-in corpus."""

from importlib import import_module

_HOMES = {
    "load": "sources",
    "find": "contamination",
    "duplicates": "contamination",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
