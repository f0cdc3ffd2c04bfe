"""Reading the data sets: declarations, files, converters, contamination, and the built-in corpus."""

from medkit import offered

_HOMES = {
    "load": "sources",
    "find": "contamination",
    "duplicates": "contamination",
}

__getattr__ = offered(__name__, _HOMES)
