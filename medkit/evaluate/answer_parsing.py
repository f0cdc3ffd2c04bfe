"""Which option an answer in words names, and the rule of the released notebooks.

An answer is read in four steps. Its own part is cut out: without the thought before it, up to the next
question where the model invents one. Then its claims are collected, in tiers: "letter" (the answer is a
letter, opens with one or ends in a line that does), "answer" ("Answer: X", "X is correct"), "option" (an
option's text instead of the letter). Claims that are denied, doubted, asked for or taken back are dropped. If
two letters are left, they contradict each other and the answer is "unparsed": no rule here picks the first,
the last or the likelier one. Unparsed answers count as wrong and stay in the denominator.
"""

from dataclasses import dataclass
from itertools import islice

from medkit.evaluate import answer_text, answer_wording
from medkit.evaluate.answer_claims import claims
from medkit.records import MCQItem

TIERS = ("letter", "answer", "option", "unparsed")


@dataclass(frozen=True, slots=True)
class Parsed:
    """`letter` is one of the item's, or "" where `tier` is "unparsed".

    `first_last_disagree`: the first and the last letter that stand alone in the text differ, so that two
    common extraction rules would score it differently, whatever `letter` says.
    """

    letter: str
    tier: str
    first_last_disagree: bool


def parse(text: str, item: MCQItem, cut: bool = False) -> Parsed:
    """The option that `text`, a model's whole answer, names. Never raises, never guesses.

    cut: the answer was ended by its limit of tokens. Its last word may be half of one ("the answer is a", of
    "a beta blocker") and is not read; "the answer is" at the end answers nothing; "A) Aspirin is ..." may be
    the first of a list; and what begins like a thought may be one that has not ended.
    """
    text = answer_text.plain(text)
    unparsed = Parsed("", "unparsed", _first_last_disagree(text, item))
    answer = answer_text.without_thought(text)
    own = _own_part(answer, item)
    cut = cut and own == answer
    if cut:
        half = answer_wording.LAST_WORD.sub("…", own)  # something follows: "A patient" is no "A"
        unfinished = any(map(answer_wording.UNFINISHED.search, (own[-200:], half[-200:])))
        if unfinished or answer_wording.DELIBERATION.match(own):
            return unparsed
        own = half
    own = answer_text.unmarked(own)
    found = claims(own, item, cut)
    letters = {claim.letter for claim in found}
    if len(letters) != 1 or not letters <= set(item.letters):
        return unparsed
    if answer_wording.RECONSIDERED.search(own, max(claim.at for claim in found)):
        return unparsed
    tier = min((claim.tier for claim in found), key=TIERS.index)
    return Parsed(found[0].letter, tier, unparsed.first_last_disagree)


def _own_part(text: str, item: MCQItem) -> str:
    """The text before the next question that the model invents; the item's own may be repeated."""
    asked = answer_text.key(item.question)[:40]
    for mark in islice(answer_text.NEXT_QUESTION.finditer(text), 12):
        before = text[: mark.start()]
        if not before.strip() and not mark["question"]:
            continue
        repeated = answer_text.key(text[mark.end() : mark.end() + 400]).startswith(asked)
        if (mark["question"] or mark["token"]) and not repeated:
            return before
        if claims(answer_text.unmarked(before), item):
            return before
    return text


def _first_last_disagree(text: str, item: MCQItem) -> bool:
    alone = [letter for letter in answer_wording.ALONE.findall(text) if letter in item.letters]
    return bool(alone) and alone[0] != alone[-1]


def as_released(prompt: str, output: str, item: MCQItem) -> str:
    """The letter by the released notebooks' rule, or "" for none or several.

    Their rule: the substring `Answer: X` anywhere in prompt and output, right only if that of the gold letter
    is the only one. So "Answer: Aspirin" counts as A; the fault is theirs, and kept here for comparison.
    """
    found = [letter for letter in item.letters if f"Answer: {letter}" in prompt + output]
    return found[0] if len(found) == 1 else ""
