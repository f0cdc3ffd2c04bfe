"""Exam questions about the same eighty facts: vignettes as in MedQA and one-liners as in MedMCQA."""

import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from medkit.records import LETTERS

PATIENTS = {  # slot -> noun, minimum and maximum age in years
    "man": ("man", 22, 64),
    "woman": ("woman", 22, 64),
    "youngwoman": ("woman", 20, 38),
    "oldman": ("man", 66, 87),
    "oldwoman": ("woman", 66, 87),
    "boy": ("boy", 3, 11),
    "girl": ("girl", 3, 11),
}


def facts() -> list[tuple[dict, dict]]:
    """The (group, fact) pairs of exams.toml, in order."""
    groups = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["group"]
    return [(group, fact) for group in groups for fact in group["fact"]]


def medqa(part: str, rng: random.Random) -> list[dict]:
    """Three vignettes per fact for "train"; for "tune" or "report", one per fact of that part's groups."""
    drafts = []
    for group, fact in facts():
        *cases, held_out = fact["cases"]
        *asks, held_out_ask = group["case_asks"]
        if part == "train":
            # Each case has a different ask; the third vignette repeats a case with the other one.
            first = rng.randrange(2)
            pairs = [(0, first), (1, 1 - first), rng.choice([(0, 1 - first), (1, first)])]
            drafts += [(group, fact, f"{_patient(cases[c], rng)} {asks[a]}") for c, a in pairs]
        elif part == group["part"]:
            drafts.append((group, fact, f"{_patient(held_out, rng)} {held_out_ask}"))
    return [
        {
            "question": question,
            "answer": fact["answer"],
            "options": dict(zip(LETTERS, options, strict=True)),
            "answer_idx": LETTERS[index],
            "meta_info": group["step"],
        }
        for (group, fact, question), options, index in _with_options(drafts, rng)
    ]


def medmcqa(part: str, rng: random.Random) -> list[dict]:
    """Three one-liners per fact for "train"; for "tune" or "report", one per fact of that part's groups."""
    drafts = []
    for group, fact in facts():
        *clues, held_out = fact["clues"]
        *asks, held_out_ask = group["line_asks"]
        if part == "train":
            pairs = rng.sample([(clue, ask) for clue in clues for ask in asks], 3)
            drafts += [(group, fact, clue, ask) for clue, ask in pairs]
        elif part == group["part"]:
            drafts.append((group, fact, held_out, held_out_ask))
    return [
        {
            "id": f"demo-{part}-{number:04d}",
            "question": ask.format(clue=clue, Clue=clue[0].upper() + clue[1:]),
            **dict(zip(("opa", "opb", "opc", "opd"), options, strict=True)),
            "cop": index,  # 0-3, the hub's convention
            "choice_type": "single",
            # about half of the upstream's rows have no explanation
            "exp": group["explain"].format(answer=fact["answer"], clue=clue) if number % 2 else None,
            "subject_name": group["subject"],
            "topic_name": group["topic"],
        }
        for number, ((group, fact, clue, ask), options, index) in enumerate(_with_options(drafts, rng))
    ]


def _with_options(drafts: list[tuple], rng: random.Random) -> Iterator[tuple[tuple, list[str], int]]:
    """(draft, options, index of the answer) for drafts (group, fact, ...), shuffled; answers are balanced."""
    drafts = rng.sample(drafts, len(drafts))
    indices = [number % 4 for number in range(len(drafts))]
    rng.shuffle(indices)
    for draft, index in zip(drafts, indices, strict=True):
        group, fact = draft[:2]
        options = rng.sample([other["answer"] for other in group["fact"] if other is not fact], 3)
        options.insert(index, fact["answer"])
        yield draft, options, index


def _patient(case: str, rng: random.Random) -> str:
    """The case with its patient slot, if any, replaced by text such as "A 43-year-old man"."""

    def person(slot: re.Match) -> str:
        noun, youngest, oldest = PATIENTS[slot[1]]
        age = rng.randint(youngest, oldest)
        article = "An" if age in (8, 11, 18) or 80 <= age <= 89 else "A"
        return f"{article} {age}-year-old {noun}"

    return re.sub(r"\{(\w+)\}", person, case)
