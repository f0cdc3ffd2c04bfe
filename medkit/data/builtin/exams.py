"""Exam questions: MedQA-like vignettes and MedMCQA-like one-liners on the same eighty facts."""

import random
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

LETTERS = "ABCD"

PATIENTS = {  # slot -> noun and the ages drawn from, in years
    "man": ("man", 22, 64),
    "woman": ("woman", 22, 64),
    "youngwoman": ("woman", 20, 38),
    "oldman": ("man", 66, 87),
    "oldwoman": ("woman", 66, 87),
    "boy": ("boy", 3, 11),
    "girl": ("girl", 3, 11),
}


def facts() -> list[tuple[dict, dict]]:
    """(group, fact) pairs of exams.toml, in its order."""
    groups = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))["group"]
    return [(group, fact) for group in groups for fact in group["fact"]]


def medqa(part: str, rng: random.Random) -> list[dict]:
    """The vignettes of "train" (three a fact), "tune" or "report" (one a fact of that part's groups)."""
    drafts = []
    for group, fact in facts():
        *cases, held_out = fact["cases"]
        *asks, held_out_ask = group["case_asks"]
        if part == "train":
            first = rng.randrange(2)  # which ask goes with which case; the third repeats a case, asked anew
            pairs = [(0, first), (1, 1 - first), rng.choice([(0, 1 - first), (1, first)])]
            drafts += [(group, fact, f"{_patient(cases[c], rng)} {asks[a]}") for c, a in pairs]
        elif part == group["part"]:
            drafts.append((group, fact, f"{_patient(held_out, rng)} {held_out_ask}"))
    return [
        {
            "question": question,
            "answer": fact["answer"],
            "options": dict(zip(LETTERS, options, strict=True)),
            "answer_idx": LETTERS[place],
            "meta_info": group["step"],
        }
        for (group, fact, question), options, place in _with_options(drafts, rng)
    ]


def medmcqa(part: str, rng: random.Random) -> list[dict]:
    """The one-liners of "train" (three a fact), "tune" or "report" (one a fact of that part's groups)."""
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
            "cop": place,  # 0-3, the hub's convention
            "choice_type": "single",
            # upstream has no explanation for about half of its rows
            "exp": group["explain"].format(answer=fact["answer"], clue=clue) if number % 2 else None,
            "subject_name": group["subject"],
            "topic_name": group["topic"],
        }
        for number, ((group, fact, clue, ask), options, place) in enumerate(_with_options(drafts, rng))
    ]


def _with_options(drafts: list[tuple], rng: random.Random) -> Iterator[tuple[tuple, list[str], int]]:
    """(draft, options, place of the answer) for drafts (group, fact, ...); every place equally often."""
    drafts = rng.sample(drafts, len(drafts))
    places = [number % 4 for number in range(len(drafts))]
    rng.shuffle(places)
    for draft, place in zip(drafts, places, strict=True):
        group, fact = draft[:2]
        options = rng.sample([other["answer"] for other in group["fact"] if other is not fact], 3)
        options.insert(place, fact["answer"])
        yield draft, options, place


def _patient(case: str, rng: random.Random) -> str:
    """`case` with its patient slot, where it has one, as "A 43-year-old man"."""

    def person(slot: re.Match) -> str:
        noun, youngest, oldest = PATIENTS[slot[1]]
        age = rng.randint(youngest, oldest)
        article = "An" if age in (8, 11, 18) or 80 <= age <= 89 else "A"
        return f"{article} {age}-year-old {noun}"

    return re.sub(r"\{(\w+)\}", person, case)
