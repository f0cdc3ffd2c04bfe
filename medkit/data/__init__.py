"""Loads the data sets and the built-in corpus, and finds contamination."""

from medkit import lazy_exports

_EXPORTS = {
    "load": "sources",
    "find": "contamination",
    "duplicates": "contamination",
}

__getattr__ = lazy_exports(__name__, _EXPORTS)
