"""Tables, figures, the ledger and the published numbers: reads results, loads no model."""

from medkit import lazy_exports

_EXPORTS = {
    "before_and_after": "display",
    "check": "consistency",
    "details": "display",
    "finish": "consistency",
    "headline": "table3",
    "settings": "display",
    "write_page": "page",
}

__getattr__ = lazy_exports(__name__, _EXPORTS)
