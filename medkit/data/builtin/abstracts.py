"""Research abstracts in PubMedQA's columns: invented trials with the answer yes, no or maybe."""

import random
import tomllib
from itertools import product
from pathlib import Path

from medkit.pubmedqa import OPTIONS

ROWS = {"train": 400, "tune": 150, "report": 300}
FIRST_ID = {"train": 99_100_000, "tune": 99_200_000, "report": 99_300_000}

# Words for outcomes where a lower value is better, and for those where a higher one is.
FORMS = {
    key: dict(zip(("verb", "verbs", "did", "ing", "moved", "gain"), words.split(), strict=True))
    for key, words in (
        ("lowers", "reduce reduces reduced reducing fell reduction"),
        ("raises", "improve improves improved improving rose improvement"),
    )
}


def wordings() -> dict[str, dict]:
    """The sentence patterns and areas of abstracts.toml, by "train", "tune" and "report"."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def pubmedqa(part: str, rng: random.Random) -> list[dict]:
    """The rows of "train", "tune" or "report". Answers are balanced (+-1), and no question appears twice.

    The real training rows (PQA-A) never have the answer maybe. These do, so that the task can be learned.
    """
    words, row_count = wordings()[part], ROWS[part]
    topics = [
        (area["people"], treatment, outcome, forms)
        for area in words["area"]
        for key, forms in FORMS.items()
        for treatment, outcome in product(area["treatments"], area[key])
    ]
    answers = [OPTIONS[number % 3] for number in range(row_count)]
    rng.shuffle(answers)
    questions = rng.sample(list(product(topics, words["questions"])), row_count)
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
