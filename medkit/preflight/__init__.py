"""What is checked before an hour is spent."""

from importlib import import_module

_HOMES = {
    "check": "checks",
    "machine": "checks",
    "rows_of": "checks.rows",  # the package has a module of that name
    "course": "checks",
    "base_runs": "checks",
    "show": "findings",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, its_name = _HOMES[name].partition(".")
    return getattr(import_module(f"{__name__}.{module}"), its_name or name)
