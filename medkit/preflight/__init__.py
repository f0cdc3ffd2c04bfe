"""Checks to run before hours of computing: machine, data, model and cost."""

from medkit import lazy_exports

_EXPORTS = {
    "check": "checks",
    "machine": "checks",
    "rows_of": "checks.rows",  # `rows` is the name of a module here
    "course": "checks",
    "base_runs": "checks",
    "show": "findings",
}

__getattr__ = lazy_exports(__name__, _EXPORTS)
