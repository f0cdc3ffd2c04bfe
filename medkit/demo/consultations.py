"""Consultations with their clinical notes, in NoteChat's columns, composed from complaint scripts."""

import random
import tomllib
from pathlib import Path

NOTES_PER_COMPLAINT = 4
CONSULTATIONS_PER_NOTE = 2  # so that splitting by note and splitting by row are different things
HISTORY_QUESTIONS = 4
ASKED = (0, 0, 0, 1, 1, 2)  # of them in a consultation

GREETINGS = (
    "Good morning. What brings you in today?",
    "Hello, how can I help you?",
    "Please tell me what has been troubling you.",
    "Hello. What can I do for you today?",
)
MEANINGS = (
    "What does that tell you?",
    "So what do you think it is?",
    "Is that good or bad?",
)
REQUESTS = (
    "What do you suggest?",
    "What should I do about it?",
    "What can make it better?",
    "All right. What happens next?",
)
THANKS = (
    "Is there anything I should watch out for?",
    "Thank you. When should I come back?",
    "Which signs should I take seriously?",
)


def notechat(rng: random.Random) -> dict[str, list[dict]]:
    """CONSULTATIONS_PER_NOTE rows for every note, shuffled; rows of one note repeat it exactly in `data`."""
    path = Path(__file__).parent / "consultations.toml"
    cases = [
        case
        for complaint in tomllib.loads(path.read_text(encoding="utf-8"))["complaint"]
        for case in _cases(complaint, rng)
    ]
    rows = [
        {"data": _note(case), "conversation": _conversation(case, rng)}
        for case in cases
        for _ in range(CONSULTATIONS_PER_NOTE)
    ]
    rng.shuffle(rows)
    return {"notechat/train.jsonl": rows}


def _cases(complaint: dict, rng: random.Random) -> list[dict]:
    """NOTES_PER_COMPLAINT patients with one complaint, no two with the same answers."""
    patterns = rng.sample(range(2**HISTORY_QUESTIONS), NOTES_PER_COMPLAINT)
    return [
        complaint
        | {
            "answers": [pattern >> number & 1 for number in range(HISTORY_QUESTIONS)],
            "person": f"{rng.randint(*complaint['ages'])}-year-old "
            + rng.choice(complaint.get("who", ["man", "woman"])),
            "time": rng.choice(complaint["since"]),
        }
        for pattern in patterns
    ]


def _note(case: dict) -> str:
    told = [item[3 + 2 * answer] for item, answer in zip(case["history"], case["answers"], strict=True)]
    return (
        f"{case['person'].capitalize()} with {case['name']}, duration {case['time']}. {'. '.join(told)}. "
        f"Examination: {case['finding'][1]}. Impression: {case['impression']}. "
        f"Plan: {case['advice'][1]}. Return advice: {case['back'][1]}."
    )


def _conversation(case: dict, rng: random.Random) -> str:
    """6 to 15 alternating turns, the last the doctor's: up to two questions, answered as noted."""
    greeting = [rng.choice(GREETINGS)] if rng.random() < 0.5 else []
    turns = [*greeting, rng.choice(case["openings"]).format(since=case["time"])]
    for number in sorted(rng.sample(range(HISTORY_QUESTIONS), rng.choice(ASKED))):
        item, answer = case["history"][number], case["answers"][number]
        turns += [rng.choice(item[:2]), item[2 + 2 * answer]]
    turns += [case["finding"][0]]
    if rng.random() < 0.3:
        turns += [rng.choice(MEANINGS), case["explain"]]
    turns += [rng.choice(REQUESTS), case["advice"][0]]
    if rng.random() < 0.2:
        turns += case["worry"]
    turns += [rng.choice(THANKS), case["back"][0]]
    return _as_upstream(turns, "Doctor" if greeting else "Patient", rng)


def _as_upstream(turns: list[str], first: str, rng: random.Random) -> str:
    """The turns under their labels, some with upstream's leading newline and blank lines between turns."""
    names = ("Doctor", "Patient") if first == "Doctor" else ("Patient", "Doctor")
    lines = [f"{names[number % 2]}: {turn}" for number, turn in enumerate(turns)]
    start = "\n" if rng.random() < 0.25 else ""
    between = "\n\n" if rng.random() < 0.75 else "\n"
    return start + between.join(lines)
