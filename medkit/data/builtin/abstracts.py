"""Research abstracts in PubMedQA's columns: invented trials whose findings say yes, no or maybe."""

import random
import tomllib
from itertools import product
from pathlib import Path

from medkit.pubmedqa import OPTIONS

ROWS = {"train": 400, "tune": 150, "report": 300}
FIRST_ID = {"train": 99_100_000, "tune": 99_200_000, "report": 99_300_000}

# A lower value is better for some outcomes and a higher one for others: the words that go with each.
FORMS = {
    key: dict(zip(("verb", "verbs", "did", "ing", "moved", "gain"), words.split(), strict=True))
    for key, words in (
        ("lowers", "reduce reduces reduced reducing fell reduction"),
        ("raises", "improve improves improved improving rose improvement"),
    )
}


def wordings() -> dict[str, dict]:
    """The sentence patterns and areas of abstracts.toml, under "train", "tune" and "report"."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def pubmedqa(part: str, rng: random.Random) -> list[dict]:
    """The rows of "train", "tune" or "report", the three answers equally often (+-1), no question twice.

    Real PQA-A never says maybe; ours does, or the task could not be learned.
    """
    words, count = wordings()[part], ROWS[part]
    topics = [
        (area["people"], treatment, outcome, forms)
        for area in words["area"]
        for key, forms in FORMS.items()
        for treatment, outcome in product(area["treatments"], area[key])
    ]
    answers = [OPTIONS[number % 3] for number in range(count)]
    rng.shuffle(answers)
    questions = rng.sample(list(product(topics, words["questions"])), count)
    return [
        _row(words, topic, question, answer, FIRST_ID[part] + number, rng)
        for number, ((topic, question), answer) in enumerate(zip(questions, answers, strict=True))
    ]


def _row(words: dict, topic: tuple, question: str, answer: str, pubid: int, rng: random.Random) -> dict:
    people, treatment, outcome, forms = topic
    half = rng.randint(18, 160)
    fill = {"people": people, "t": treatment, "o": outcome, "c": rng.choice(words["controls"])}
    fill |= {key.capitalize(): text[0].upper() + text[1:] for key, text in fill.items()}
    fill |= forms | {
        "half": half,
        "n": 2 * half,
        "w": rng.choice((4, 6, 8)),
        "k": rng.randint(2, 5),
        "p": f"0.00{rng.randint(1, 9)}",
    }
    sections = {"METHODS": rng.choice(words["methods"]), "RESULTS": rng.choice(words["findings"][answer])}
    return {
        "pubid": pubid,
        "question": question.format(**fill),
        "context": {
            "contexts": [text.format(**fill) for text in sections.values()],
            "labels": list(sections),
            "meshes": ["Humans"],
        },
        "long_answer": rng.choice(words["conclusions"][answer]).format(**fill),
        "final_decision": answer,
    }
