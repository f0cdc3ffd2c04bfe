"""General-knowledge questions and texts, to measure what a medical model has kept of its other abilities."""

import tomllib
from pathlib import Path

from medkit.records import LETTERS, MCQItem


def _load_texts() -> dict:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def questions() -> list[MCQItem]:
    """128 questions with four options on eight subjects, 16 each; no arithmetic and no medicine.

    `source` is "general", `group` the subject. Each letter is correct 32 times, four times per subject.
    """
    items = []
    for number, entry in enumerate(_load_texts()["question"]):
        index = number % len(LETTERS)
        options = (*entry["others"][:index], entry["answer"], *entry["others"][index:])
        id, text, subject = f"general-{number:03d}", entry["question"], entry["subject"]
        items.append(MCQItem(id, "general", text, options, LETTERS[index], group=subject))
    return items


def texts() -> list[str]:
    """40 declarative texts of two or three sentences, for perplexity."""
    return _load_texts()["texts"]
