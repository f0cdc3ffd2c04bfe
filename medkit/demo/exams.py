"""Exam questions: MedQA-like vignettes and MedMCQA-like one-liners on the same eighty facts."""

import random
import re
import tomllib
from pathlib import Path

LETTERS = "ABCD"
EVAL_ROWS = 60  # of the eighty facts, so a benchmark does not simply list them all

PATIENTS = {  # slot -> noun and the ages drawn from, in years
    "man": ("man", 22, 64),
    "woman": ("woman", 22, 64),
    "oldman": ("man", 66, 87),
    "oldwoman": ("woman", 66, 87),
    "boy": ("boy", 3, 11),
    "girl": ("girl", 3, 11),
}


def facts() -> list[tuple[dict, dict]]:
    """(group, fact) pairs of exams.toml, in its order."""
    groups = tomllib.loads((Path(__file__).parent / "exams.toml").read_text(encoding="utf-8"))["group"]
    return [(group, fact) for group in groups for fact in group["fact"]]


def medqa(rng: random.Random) -> dict[str, list[dict]]:
    """Three training vignettes a fact, and one in held-out words for EVAL_ROWS of the facts."""
    train, test = [], []
    for group, fact in facts():
        *cases, held_out = fact["cases"]
        *asks, held_out_ask = group["case_asks"]
        first = rng.randrange(2)  # which ask goes with which case; the third row repeats a case, asked anew
        pairs = [(0, first), (1, 1 - first), rng.choice([(0, 1 - first), (1, first)])]
        train += [(group, fact, f"{_patient(cases[c], rng)} {asks[a]}") for c, a in pairs]
        test.append((group, fact, f"{_patient(held_out, rng)} {held_out_ask}"))

    def row(group: dict, question: str, options: list[str], place: int) -> dict:
        return {
            "question": question,
            "answer": options[place],
            "options": dict(zip(LETTERS, options, strict=True)),
            "answer_idx": LETTERS[place],
            "meta_info": group["step"],
        }

    def part(drafts: list[tuple]) -> list[dict]:
        return [row(group, *rest) for group, _, *rest in _with_options(drafts, rng)]

    return {"medqa/train.jsonl": part(train), "medqa/test.jsonl": part(rng.sample(test, EVAL_ROWS))}


def medmcqa(rng: random.Random) -> dict[str, list[dict]]:
    """Three training one-liners a fact, and one in held-out words for EVAL_ROWS of the facts."""
    train, validation = [], []
    for group, fact in facts():
        *clues, held_out = fact["clues"]
        *asks, held_out_ask = group["line_asks"]
        pairs = rng.sample([(clue, ask) for clue in clues for ask in asks], 3)
        train += [(group, fact, _fill(ask, clue)) for clue, ask in pairs]
        validation.append((group, fact, _fill(held_out_ask, held_out)))

    def part(name: str, drafts: list[tuple]) -> list[dict]:
        rows = []
        for number, (group, fact, question, options, place) in enumerate(_with_options(drafts, rng)):
            explanation = group["explain"].format(answer=fact["answer"], clue=fact["clues"][0])
            rows.append(
                {
                    "id": f"demo-{name}-{number:04d}",
                    "question": question,
                    **dict(zip(("opa", "opb", "opc", "opd"), options, strict=True)),
                    "cop": place,  # 0-3, the hub's convention
                    "choice_type": "single",
                    "exp": explanation if rng.random() < 0.5 else None,  # upstream has none for half the rows
                    "subject_name": group["subject"],
                    "topic_name": group["topic"],
                }
            )
        return rows

    return {
        "medmcqa/train.jsonl": part("train", train),
        "medmcqa/validation.jsonl": part("validation", rng.sample(validation, EVAL_ROWS)),
    }


def _with_options(drafts: list[tuple[dict, dict, str]], rng: random.Random) -> list[tuple]:
    """(group, fact, question, options, place of the answer), shuffled; every place equally often."""
    drafts = rng.sample(drafts, len(drafts))
    places = [number % 4 for number in range(len(drafts))]
    rng.shuffle(places)
    rows = []
    for (group, fact, question), place in zip(drafts, places, strict=True):
        options = rng.sample([f["answer"] for f in group["fact"] if f is not fact], 3)
        options.insert(place, fact["answer"])
        rows.append((group, fact, question, options, place))
    return rows


def _patient(case: str, rng: random.Random) -> str:
    """`case` with its patient slot, where it has one, as "A 43-year-old man"."""

    def person(slot: re.Match) -> str:
        noun, youngest, oldest = PATIENTS[slot[1]]
        age = rng.randint(youngest, oldest)
        article = "An" if age in (8, 11, 18) or 80 <= age <= 89 else "A"
        return f"{article} {age}-year-old {noun}"

    return re.sub(r"\{(\w+)\}", person, case)


def _fill(ask: str, clue: str) -> str:
    return ask.format(clue=clue, Clue=clue[0].upper() + clue[1:])
