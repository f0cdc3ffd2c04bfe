"""A run's folder: run.json, atomic file writes, the machine."""

from medkit import lazy_exports

_EXPORTS = {
    "begin": "run_json",
    "read": "run_json",
    "may_show": "run_json",
    "stage2_arm": "run_json",
    "title": "arms",
}

__getattr__ = lazy_exports(__name__, _EXPORTS)
