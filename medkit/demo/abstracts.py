"""Research abstracts in PubMedQA's columns: invented trials whose findings say yes, no or maybe."""

import random
import tomllib
from itertools import product
from pathlib import Path

ANSWERS = ("yes", "no", "maybe")
TRAIN_ROWS, EVAL_ROWS = 400, 150

# Hardly a run of 13 words stands without a topic's own words in it, so that training and evaluation
# abstracts, whose topics differ, do not count as overlapping.

# A lower value is better for some outcomes and a higher one for others: the words that go with each.
LOWERS = {"verb": "reduce", "verbs": "reduces", "did": "reduced", "ing": "reducing", "moved": "fell"}
LOWERS |= {"gain": "reduction"}
RAISES = {"verb": "improve", "verbs": "improves", "did": "improved", "ing": "improving", "moved": "rose"}
RAISES |= {"gain": "improvement"}

QUESTIONS = (
    "Does {t} {verb} {o} in {people}?",
    "Is {t} effective in {ing} {o} in {people}?",
    "Can {t} {verb} {o} in {people}?",
    "Is {o} in {people} {did} by {t}?",
    "In {people}, does {t} {verb} {o}?",
)
METHODS = (
    "{n} {people} were randomized to {t} or {c}.",
    "Over {w} weeks, {n} {people} received {t} or {c}.",
    "We enrolled {n} {people}; half received {t}, half {c}.",
    "A trial at {k} centers compared {t} with {c} in {n} {people}.",
    "Two groups of {half} {people} were given {t} or {c} for {w} weeks.",
)
CONTROLS = ("usual care", "standard care", "routine care", "a leaflet")
# A word or two carry each answer (significant, no, mixed): a 135M model is to learn them from 240 rows.
FINDINGS = {
    "yes": (
        "{O} {moved} significantly with {t} (P = {p_low}).",
        "There was a significant {gain} in {o} with {t} (P = {p_low}).",
        "{T} significantly {did} {o} (P = {p_low}).",
        "{O} was significantly better after {t} (P = {p_low}).",
    ),
    "no": (
        "There was no {gain} in {o} with {t}.",
        "{T} made no difference to {o}.",
        "{T} had no effect on {o}.",
        "With {t} there was no change in {o}.",
    ),
    "maybe": (
        "{T} may or may not {verb} {o}: results were mixed.",
        "Results were mixed, and {t} may or may not {verb} {o}.",
        "{O} may or may not respond to {t}, as results were mixed.",
        "With mixed results, {t} may or may not {verb} {o}.",
    ),
}
CONCLUSIONS = {
    "yes": ("{T} {verbs} {o} in {people}.", "The findings support {t} as a way to {verb} {o} in {people}."),
    "no": ("{T} does not {verb} {o} in {people}.", "The findings do not support {t} for {o} in {people}."),
    "maybe": (
        "Whether {t} {verbs} {o} in {people} remains uncertain.",
        "The evidence on {t} for {o} in {people} is mixed, and larger trials are needed.",
    ),
}


def areas() -> dict[str, list[dict]]:
    """The areas of abstracts.toml, under "train" and "eval"."""
    return tomllib.loads((Path(__file__).parent / "abstracts.toml").read_text(encoding="utf-8"))


def pubmedqa(rng: random.Random) -> dict[str, list[dict]]:
    """Training and evaluation abstracts on disjoint topics, the three answers equally often (+-1).

    Real PQA-A never says maybe; ours does, or the task could not be learned.
    """
    return {
        "pubmedqa/pqa_artificial.jsonl": _rows(areas()["train"], TRAIN_ROWS, 99_100_000, rng),
        "pubmedqa/pqa_labeled.jsonl": _rows(areas()["eval"], EVAL_ROWS, 99_200_000, rng),
    }


def _rows(part: list[dict], count: int, first_id: int, rng: random.Random) -> list[dict]:
    topics = [
        (area["people"], treatment, outcome, words)
        for area in part
        for key, words in (("lowers", LOWERS), ("raises", RAISES))
        for treatment, outcome in product(area["treatments"], area[key])
    ]
    answers = [ANSWERS[number % 3] for number in range(count)]
    rng.shuffle(answers)
    drawn = rng.sample(list(product(topics, QUESTIONS)), count)  # so that no question stands twice
    return [
        _row(topic, question, answer, first_id + number, rng)
        for number, ((topic, question), answer) in enumerate(zip(drawn, answers, strict=True))
    ]


def _row(topic: tuple, question: str, answer: str, pubid: int, rng: random.Random) -> dict:
    people, treatment, outcome, words = topic
    half = rng.randint(18, 160)
    fill = words | {
        "people": people,
        "t": treatment,
        "T": treatment[0].upper() + treatment[1:],
        "o": outcome,
        "O": outcome[0].upper() + outcome[1:],
        "c": rng.choice(CONTROLS),
        "half": half,
        "n": 2 * half,
        "w": rng.choice((4, 6, 8)),
        "k": rng.randint(2, 5),
        "p_low": f"0.00{rng.randint(1, 9)}",
    }
    sections = {"METHODS": rng.choice(METHODS), "RESULTS": rng.choice(FINDINGS[answer])}
    return {
        "pubid": pubid,
        "question": question.format(**fill),
        "context": {
            "contexts": [text.format(**fill) for text in sections.values()],
            "labels": list(sections),
            "meshes": ["Humans"],
        },
        "long_answer": rng.choice(CONCLUSIONS[answer]).format(**fill),
        "final_decision": answer,
    }
