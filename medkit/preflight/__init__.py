"""What is checked before an hour is spent."""

from medkit import offered

_HOMES = {
    "check": "checks",
    "machine": "checks",
    "rows_of": "checks.rows",  # the package has a module of that name
    "course": "checks",
    "base_runs": "checks",
    "show": "findings",
}

__getattr__ = offered(__name__, _HOMES)
