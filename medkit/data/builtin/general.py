"""General knowledge: questions and texts that show what a medical model has kept of the rest."""

import tomllib
from pathlib import Path

from medkit.records import LETTERS, MCQItem


def _written() -> dict:
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def questions() -> list[MCQItem]:
    """128 questions with four options on eight subjects, 16 each; no arithmetic and no medicine.

    `source` is "general", `group` the subject. Every letter is right 32 times, four times in each subject.
    """
    items = []
    for number, question in enumerate(_written()["question"]):
        place = number % len(LETTERS)
        options = [*question["others"][:place], question["answer"], *question["others"][place:]]
        asked, subject = question["question"], question["subject"]
        items.append(
            MCQItem(f"general-{number:03d}", "general", asked, tuple(options), LETTERS[place], group=subject)
        )
    return items


def texts() -> list[str]:
    """40 declarative texts of two or three sentences, for perplexity."""
    return _written()["texts"]
