"""Consultations with their clinical notes, in NoteChat's columns, composed from complaint scripts."""

import random
import tomllib
from pathlib import Path

NOTES_PER_COMPLAINT = 4
HISTORY_QUESTIONS = 4
ASKED = (1, 2, 2)  # of them in a visit

GREETINGS = (
    "Good morning. What brings you in today?",
    "Hello, how can I help you?",
    "Please tell me what has been troubling you.",
    "Hello. What can I do for you today?",
)
SYMPATHY = (
    "I am sorry to hear that.",
    "Thank you for telling me.",
    "I can see that this is a burden to you.",
    "Thank you for coming in with it.",
)
ADDRESSES = (
    "Good afternoon, doctor.",
    "Hello doctor, I hope that you can help me.",
    "I would like to ask for your advice.",
    "Doctor, thank you for taking the time.",
)
OPINIONS = (
    "Thank you for describing it so clearly.",
    "I understand that this worries you, so let me say what I think.",
    "It is good that you ask about this.",
    "I am sorry that you have had to put up with this.",
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


def complaints() -> list[dict]:
    """The scripts of consultations.toml."""
    path = Path(__file__).parent / "consultations.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))["complaint"]


def notechat(rng: random.Random) -> list[dict]:
    """Two consultations for every note, shuffled, so that splitting by note and by row are different things:
    a visit, in which the physician asks, and one in which the patient tells all of it at once. The rows of a
    note repeat it exactly in `data`."""
    cases = [case for complaint in complaints() for case in _cases(complaint, rng)]
    rows = [
        {"data": _note(case), "conversation": _as_upstream(turns(case, rng), rng)}
        for case in cases
        for turns in (_visit, _told)
    ]
    rng.shuffle(rows)
    return rows


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


def _visit(case: dict, rng: random.Random) -> list[str]:
    """From the patient's first turn to the doctor's last: questions answered as noted, findings, advice."""
    turns = [rng.choice(case["openings"]).format(since=case["time"])]
    for number in sorted(rng.sample(range(HISTORY_QUESTIONS), rng.choice(ASKED))):
        item, answer = case["history"][number], case["answers"][number]
        sympathy = f"{rng.choice(SYMPATHY)} " if len(turns) == 1 else ""
        turns += [sympathy + rng.choice(item[:2]), item[2 + 2 * answer]]
    turns += [f"{case['finding'][0]} {case['explain']}", rng.choice(REQUESTS), case["advice"][0]]
    if rng.random() < 0.4:
        turns += case["worry"]
    return [*turns, rng.choice(THANKS), case["back"][0]]


def _told(case: dict, rng: random.Random) -> list[str]:
    """The same begun with all of it in one turn, as patients write to a physician, and answered in one."""
    reply = f"{rng.choice(OPINIONS)} {case['explain']} {case['advice'][0]} {case['back'][0]}"
    return [f"{rng.choice(ADDRESSES)} {case['letter'].format(since=case['time'])}", reply, *case["worry"]]


def _as_upstream(turns: list[str], rng: random.Random) -> str:
    """The turns under their labels, half of them after a greeting, some with upstream's leading newline and
    blank lines between turns."""
    names = ("Patient", "Doctor")
    lines = [f"{names[number % 2]}: {turn}" for number, turn in enumerate(turns)]
    if rng.random() < 0.5:
        lines.insert(0, f"Doctor: {rng.choice(GREETINGS)}")
    start = "\n" if rng.random() < 0.25 else ""
    between = "\n\n" if rng.random() < 0.75 else "\n"
    return start + between.join(lines)
