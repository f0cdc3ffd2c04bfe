"""Research abstracts in PubMedQA's columns: invented trials whose findings say yes, no or maybe."""

import random
import tomllib
from itertools import product
from pathlib import Path

ANSWERS = ("yes", "no", "maybe")
TRAIN_ROWS, EVAL_ROWS = 400, 150

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
BACKGROUNDS = (
    "{O} is an important outcome in {people}, but evidence on {t} is sparse.",
    "Few trials have tested whether {t} changes {o} in {people}.",
    "We asked whether {t} would {verb} {o} in {people}.",
    "It is unclear whether {t} can {verb} {o} in {people}.",
    "{T} is sometimes offered to {people}, yet its effect on {o} has rarely been measured.",
    "This study examined {t} as a way to {verb} {o} in {people}.",
)
METHODS = (
    "A total of {n} {people} were randomized to {t} or {c} and followed for {w} weeks.",
    "In a randomized trial, {n} {people} received {t} or {c}; {o} was measured after {w} weeks.",
    "We enrolled {n} {people}; half received {t} and half {c}, with {w} weeks of follow-up.",
    "A controlled trial at {k} centers compared {t} with {c} in {n} {people}.",
    "Two groups of {half} {people} were compared, one given {t} and one {c}, over {w} weeks.",
)
CONTROLS = ("usual care", "standard care", "routine care alone", "no additional treatment")
FINDINGS = {
    "yes": (
        "{O} {moved} by {big}% with {t} and by {small}% with {c} (P < 0.001).",
        "{O} {moved} clearly more with {t} than with {c} ({big}% versus {small}%, P = {p_low}).",
        "The {gain} in {o} was large and favored {t} (difference {big}%, 95% CI {ci_low} to {ci_high}).",
        "Compared with {c}, {t} led to a marked {gain} in {o} (P = {p_low}).",
        "A significant {gain} in {o} was seen with {t}, and it was present in all subgroups (P = {p_low}).",
        "Both at mid-study and at the end, {o} was significantly better with {t} (P < 0.001).",
        "{T} {did} {o} by {big}%, against {small}% in the comparison group (P = {p_low}).",
        "{O} was significantly better after {t}, with a consistent effect in every center (P = {p_low}).",
    ),
    "no": (
        "{O} {moved} by {mid}% with {t} and by {same}% with {c} (P = {p_high}).",
        "{O} did not differ between {t} and {c} at any visit (P = {p_high}).",
        "The groups were nearly identical in {o}, and the narrow interval ruled out a useful effect of {t}.",
        "Compared with {c}, {t} made no difference to {o} (difference 0.{k}%, 95% CI -1.{k} to 1.{w}).",
        "No {gain} in {o} was seen with {t}, and none appeared in any subgroup (P = {p_high}).",
        "Both at mid-study and at the end, {o} was the same in the two groups (P = {p_high}).",
        "{T} had no effect on {o}, which {moved} equally in both groups (P = {p_high}).",
        "{O} was unchanged by {t}, with the same null result in every center (P = {p_high}).",
    ),
    "maybe": (
        "{O} {moved} with {t} in younger participants but not in older ones; the interaction was uncertain.",
        "{O} was better with {t} at first, but the advantage was lost at the final visit (P = {p_edge}).",
        "{O} tended to be better with {t}, but the interval was wide and included no effect (P = {p_edge}).",
        "One center found a clear {gain} in {o} with {t}, whereas another center found none.",
        "One measure of {o} favored {t} while a second did not, and missing data were frequent.",
        "The trial stopped early; {o} seemed better with {t}, but too few participants remained to be sure.",
        "Results for {o} conflicted: {t} helped in mild cases but not in severe ones (P = {p_edge}).",
        "One analysis showed a {gain} in {o} with {t}; the planned second analysis did not confirm it.",
    ),
}
ASIDES = (  # true of any result, so no hint at the answer
    "Adverse events were few.",
    "Adherence was good in both groups.",
    "{small}% of participants dropped out.",
    "No serious harm was reported.",
    "Baseline values were similar.",
)
CONCLUSIONS = {
    "yes": ("{T} {verbs} {o} in {people}.", "The findings support {t} as a way to {verb} {o} in {people}."),
    "no": ("{T} does not {verb} {o} in {people}.", "The findings do not support {t} for {o} in {people}."),
    "maybe": (
        "Whether {t} {verbs} {o} in {people} remains uncertain.",
        "The evidence on {t} for {o} in {people} is mixed, and larger trials are needed.",
    ),
}


def pubmedqa(rng: random.Random) -> dict[str, list[dict]]:
    """Training and evaluation abstracts on disjoint topics, the three answers equally often (+-1).

    Real PQA-A never says maybe; ours does, or the task could not be learned.
    """
    areas = tomllib.loads((Path(__file__).parent / "abstracts.toml").read_text(encoding="utf-8"))
    return {
        "pubmedqa/pqa_artificial.jsonl": _rows(areas["train"], TRAIN_ROWS, 99_100_000, rng),
        "pubmedqa/pqa_labeled.jsonl": _rows(areas["eval"], EVAL_ROWS, 99_200_000, rng),
    }


def _rows(areas: list[dict], count: int, first_id: int, rng: random.Random) -> list[dict]:
    topics = [
        (area["people"], treatment, outcome, words)
        for area in areas
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
    half, big, middle = rng.randint(18, 160), rng.randint(22, 48), rng.randint(6, 19)
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
        "big": big,
        "small": rng.randint(2, 9),
        "ci_low": big - rng.randint(4, 8),
        "ci_high": big + rng.randint(4, 8),
        "mid": middle,
        "same": middle + rng.choice((-1, 1)),
        "p_low": f"0.00{rng.randint(1, 9)}",
        "p_high": f"0.{rng.randint(41, 95)}",
        "p_edge": f"0.{rng.randint(5, 11):02d}",
    }
    findings = [rng.choice(FINDINGS[answer])]
    if rng.random() < 0.5:
        findings.append(rng.choice(ASIDES))
    sections = {
        "BACKGROUND": rng.choice(BACKGROUNDS),
        "METHODS": rng.choice(METHODS),
        "RESULTS": " ".join(findings),
    }
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
