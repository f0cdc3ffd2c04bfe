"""Reading the data sets: declarations, files, converters, contamination, and the built-in corpus."""

from medkit import lazy_exports

_HOMES = {
    "load": "sources",
    "find": "contamination",
    "duplicates": "contamination",
}

__getattr__ = lazy_exports(__name__, _HOMES)
