"""Evaluation: multiple choice, generated answers, consumer queries, and statistics.

Exports the steps of notebooks 03 and 04, in order. Each module is imported on first use.
"""

from medkit import lazy_exports

_EXPORTS = {
    "begin_exams": "mcq",
    "exam_items": "mcq",
    "answer_exams": "mcq",
    "write_exams": "mcq",
    "begin_queries": "cases",
    "draw_queries": "cases",
    "answer_queries": "cases",
    "write_queries": "cases",
}

__getattr__ = lazy_exports(__name__, _EXPORTS)
