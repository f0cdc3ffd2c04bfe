"""What is checked before an hour is spent."""

from medkit import lazy_exports

_HOMES = {
    "check": "checks",
    "machine": "checks",
    "rows_of": "checks.rows",  # the package has a module of that name
    "course": "checks",
    "base_runs": "checks",
    "show": "findings",
}

__getattr__ = lazy_exports(__name__, _HOMES)
