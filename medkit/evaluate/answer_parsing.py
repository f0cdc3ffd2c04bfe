"""Extracts the chosen option from an answer in words; also the released notebooks' extraction rule.

1. Remove reasoning, and any further question that the model invents after its answer.
2. Collect the answer's claims by tier: "letter" (the answer is a letter, opens with one or ends in a line
   with one), "answer" ("Answer: X", "X is correct"), "option" (an option's text instead of its letter).
3. Drop claims that are negated, hedged, asked as a question or withdrawn.
4. If the remaining claims name more than one letter, the answer is "unparsed". No rule picks the first, the
   last or the likeliest of them. Unparsed answers count as wrong and stay in the denominator.
"""

from dataclasses import dataclass
from itertools import islice

from medkit.evaluate import answer_text, answer_wording
from medkit.evaluate.answer_claims import find_claims
from medkit.records import MCQItem

TIERS = ("letter", "answer", "option", "unparsed")


@dataclass(frozen=True, slots=True)
class Parsed:
    """`letter` is one of the item's letters, or "" if `tier` is "unparsed".

    `first_last_disagree`: the first and the last standalone letter of the text differ, so that two common
    extraction rules would score the answer differently.
    """

    letter: str
    tier: str
    first_last_disagree: bool


def parse(text: str, item: MCQItem, cut: bool = False) -> Parsed:
    """The option that `text`, a model's whole answer, names. Never raises, never guesses.

    cut: the answer was truncated at its token limit. Its last word may be incomplete ("the answer is a" of "a
    beta blocker") and is ignored. "The answer is" at the end is no answer, "A) Aspirin is ..." may be the
    first option of a list, and text that begins like reasoning may be unfinished reasoning.
    """
    text = answer_text.normalize(text)
    unparsed = Parsed("", "unparsed", _first_last_disagree(text, item))
    without_reasoning = answer_text.strip_reasoning(text)
    answer = _before_next_question(without_reasoning, item)
    cut = cut and answer == without_reasoning
    if cut:
        # the ellipsis stands for the missing text: "A patient" must not be read as "A"
        shortened = answer_wording.LAST_WORD.sub("…", answer)
        unfinished = any(map(answer_wording.UNFINISHED.search, (answer[-200:], shortened[-200:])))
        if unfinished or answer_wording.DELIBERATION.match(answer):
            return unparsed
        answer = shortened
    answer = answer_text.strip_markup(answer)
    claims = find_claims(answer, item, cut)
    letters = {claim.letter for claim in claims}
    if len(letters) != 1 or not letters <= set(item.letters):
        return unparsed
    if answer_wording.RECONSIDERED.search(answer, max(claim.position for claim in claims)):
        return unparsed
    tier = min((claim.tier for claim in claims), key=TIERS.index)
    return Parsed(claims[0].letter, tier, unparsed.first_last_disagree)


def _before_next_question(text: str, item: MCQItem) -> str:
    """The text before the next question that the model invents. The item's own question may be repeated."""
    question = answer_text.comparison_key(item.question)[:40]
    for mark in islice(answer_text.NEXT_QUESTION.finditer(text), 12):
        before = text[: mark.start()]
        if not before.strip() and not mark["question"]:
            continue
        repeated = answer_text.comparison_key(text[mark.end() : mark.end() + 400]).startswith(question)
        if (mark["question"] or mark["token"]) and not repeated:
            return before
        if find_claims(answer_text.strip_markup(before), item):
            return before
    return text


def _first_last_disagree(text: str, item: MCQItem) -> bool:
    letters = [letter for letter in answer_wording.ALONE.findall(text) if letter in item.letters]
    return bool(letters) and letters[0] != letters[-1]


def as_released(prompt: str, output: str, item: MCQItem) -> str:
    """The letter by the released notebooks' rule; "" if there is none or more than one.

    Their rule looks for the substring `Answer: X` in prompt and output, and requires the gold letter to be
    the only match. It reads "Answer: Aspirin" as A. The error is kept for comparison.
    """
    letters = [letter for letter in item.letters if f"Answer: {letter}" in prompt + output]
    return letters[0] if len(letters) == 1 else ""
