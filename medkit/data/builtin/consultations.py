"""Consultations with their clinical notes, in NoteChat's columns, composed from complaint scripts."""

import random
import tomllib
from pathlib import Path

NOTES_PER_COMPLAINT = 4
HISTORY_QUESTIONS = 4
QUESTIONS_PER_VISIT = (1, 2, 2)  # drawn from for each visit


def load_texts() -> dict:
    """The phrases and complaint scripts of consultations.toml."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def notechat(rng: random.Random) -> list[dict]:
    """Two consultations per note, shuffled: a visit, and one that opens with a patient's letter.

    Both rows repeat the note exactly in `data`, so that splitting by note and splitting by row differ.
    """
    texts = load_texts()
    phrases = texts["phrases"]
    cases = [case for complaint in texts["complaint"] for case in _cases(complaint, rng)]
    rows = [
        {"data": _note(case), "conversation": _format(compose(case, phrases, rng), phrases, rng)}
        for case in cases
        for compose in (_visit, _letter)
    ]
    rng.shuffle(rows)
    return rows


def _cases(complaint: dict, rng: random.Random) -> list[dict]:
    """NOTES_PER_COMPLAINT patients with this complaint and different answers."""
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
    history = [item[3 + 2 * answer] for item, answer in zip(case["history"], case["answers"], strict=True)]
    return (
        f"{case['person'].capitalize()} with {case['name']}, duration {case['time']}. {'. '.join(history)}. "
        f"Examination: {case['finding'][1]}. Impression: {case['impression']}. "
        f"Plan: {case['advice'][1]}. Return advice: {case['back'][1]}."
    )


def _visit(case: dict, phrases: dict, rng: random.Random) -> list[str]:
    """The turns of a visit: opening, questions and answers from the note, findings, advice. Patient first."""
    turns = [rng.choice(case["openings"]).format(since=case["time"])]
    for number in sorted(rng.sample(range(HISTORY_QUESTIONS), rng.choice(QUESTIONS_PER_VISIT))):
        item, answer = case["history"][number], case["answers"][number]
        sympathy = f"{rng.choice(phrases['sympathy'])} " if len(turns) == 1 else ""
        turns += [sympathy + rng.choice(item[:2]), item[2 + 2 * answer]]
    turns += [f"{case['finding'][0]} {case['explain']}", rng.choice(phrases["requests"]), case["advice"][0]]
    if rng.random() < 0.4:
        turns += case["worry"]
    return [*turns, rng.choice(phrases["thanks"]), case["back"][0]]


def _letter(case: dict, phrases: dict, rng: random.Random) -> list[str]:
    """The turns of a consultation in which the patient writes everything at once and gets one full reply."""
    reply = f"{rng.choice(phrases['opinions'])} {case['explain']} {case['advice'][0]} {case['back'][0]}"
    return [
        f"{rng.choice(phrases['addresses'])} {case['letter'].format(since=case['time'])}",
        reply,
        *case["worry"],
    ]


def _format(turns: list[str], phrases: dict, rng: random.Random) -> str:
    """The labelled turns as in NoteChat: half start with a greeting, and line breaks vary."""
    names = ("Patient", "Doctor")
    lines = [f"{names[number % 2]}: {turn}" for number, turn in enumerate(turns)]
    if rng.random() < 0.5:
        lines.insert(0, f"Doctor: {rng.choice(phrases['greetings'])}")
    prefix = "\n" if rng.random() < 0.25 else ""
    separator = "\n\n" if rng.random() < 0.75 else "\n"
    return prefix + separator.join(lines)
