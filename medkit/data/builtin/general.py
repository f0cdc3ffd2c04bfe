"""General knowledge: questions and texts on which a medical model shows what it has kept of the rest."""

import tomllib
from pathlib import Path

from medkit.records import LETTERS, MCQItem


def _written() -> dict:
    return tomllib.loads((Path(__file__).parent / "general.toml").read_text(encoding="utf-8"))


def questions() -> list[MCQItem]:
    """128 questions with four options on eight subjects, 16 each; no arithmetic and no medicine.

    `source` is "general", `group` the subject. Every letter is right 32 times, four times in each subject.
    """
    items = []
    for number, one in enumerate(_written()["question"]):
        place = number % len(LETTERS)
        options = [*one["others"][:place], one["answer"], *one["others"][place:]]
        items.append(
            MCQItem(
                id=f"general-{number:03d}",
                source="general",
                question=one["question"],
                options=tuple(options),
                answer=LETTERS[place],
                group=one["subject"],
            )
        )
    return items


def texts() -> list[str]:
    """40 declarative texts of two or three sentences, for perplexity."""
    return _written()["texts"]
