"""A run's folder: run.json, files written whole, the machine."""

from importlib import import_module

_HOMES = {
    "begin": "run_json",
    "read": "run_json",
    "may_show": "run_json",
    "stage2_arm": "run_json",
    "title": "arms",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
