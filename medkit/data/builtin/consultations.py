"""Consultations with their clinical notes, in NoteChat's columns, composed from complaint scripts."""

import random
import tomllib
from pathlib import Path

NOTES_PER_COMPLAINT = 4
HISTORY_QUESTIONS = 4
ASKED = (1, 2, 2)  # of them in a visit


def written() -> dict:
    """The phrases and complaint scripts of consultations.toml."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))


def notechat(rng: random.Random) -> list[dict]:
    """Two consultations for every note, shuffled, so that splitting by note and by row are different things:
    a visit, in which the physician asks, and one in which the patient tells all of it at once. The rows of a
    note repeat it exactly in `data`."""
    scripts = written()
    phrases = scripts["phrases"]
    cases = [case for complaint in scripts["complaint"] for case in _cases(complaint, rng)]
    rows = [
        {"data": _note(case), "conversation": _as_upstream(turns(case, phrases, rng), phrases, rng)}
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


def _visit(case: dict, phrases: dict, rng: random.Random) -> list[str]:
    """From the patient's first turn to the doctor's last: questions answered as noted, findings, advice."""
    turns = [rng.choice(case["openings"]).format(since=case["time"])]
    for number in sorted(rng.sample(range(HISTORY_QUESTIONS), rng.choice(ASKED))):
        item, answer = case["history"][number], case["answers"][number]
        sympathy = f"{rng.choice(phrases['sympathy'])} " if len(turns) == 1 else ""
        turns += [sympathy + rng.choice(item[:2]), item[2 + 2 * answer]]
    turns += [f"{case['finding'][0]} {case['explain']}", rng.choice(phrases["requests"]), case["advice"][0]]
    if rng.random() < 0.4:
        turns += case["worry"]
    return [*turns, rng.choice(phrases["thanks"]), case["back"][0]]


def _told(case: dict, phrases: dict, rng: random.Random) -> list[str]:
    """The same begun with all of it in one turn, as patients write to a physician, and answered in one."""
    reply = f"{rng.choice(phrases['opinions'])} {case['explain']} {case['advice'][0]} {case['back'][0]}"
    return [
        f"{rng.choice(phrases['addresses'])} {case['letter'].format(since=case['time'])}",
        reply,
        *case["worry"],
    ]


def _as_upstream(turns: list[str], phrases: dict, rng: random.Random) -> str:
    """The turns under their labels, half of them after a greeting, some with upstream's leading newline and
    blank lines between turns."""
    names = ("Patient", "Doctor")
    lines = [f"{names[number % 2]}: {turn}" for number, turn in enumerate(turns)]
    if rng.random() < 0.5:
        lines.insert(0, f"Doctor: {rng.choice(phrases['greetings'])}")
    start = "\n" if rng.random() < 0.25 else ""
    between = "\n\n" if rng.random() < 0.75 else "\n"
    return start + between.join(lines)
