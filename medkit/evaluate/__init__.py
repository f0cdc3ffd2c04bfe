"""Evaluation: letters, answers in words, consumer queries, and their statistics.

The eight steps of notebooks 03 and 04, in order; each is loaded when it is first asked for.
"""

from importlib import import_module

_HOMES = {
    "begin_exams": "mcq",
    "exam_items": "mcq",
    "answer_exams": "mcq",
    "write_exams": "mcq",
    "begin_queries": "cases",
    "draw_queries": "cases",
    "answer_queries": "cases",
    "write_queries": "cases",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
