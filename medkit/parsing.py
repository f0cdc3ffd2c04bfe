"""Which option an answer in words names: parsing in tiers, and the rule of the released notebooks.

The tiers, in order: "letter" (the answer is a letter, or opens with one), "answer" ("Answer: X", "the answer
is X"), "option" (the answer is an option's text), else "unparsed". An answer that claims two different
letters is unparsed: no rule here picks the first, the last or the likelier one. Unparsed is an outcome,
counted wrong and kept in the denominator.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from medkit import MedkitError
from medkit.records import LETTERS, PUBMEDQA_OPTIONS, MCQItem

TIERS = ("letter", "answer", "option", "unparsed")


class ParsingError(MedkitError):
    """Protocols that cannot be compared; one line."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """`letter` is one of the item's, or "" where `tier` is "unparsed".

    `first_last_disagree`: the first and the last letter standing alone in the text differ, so that two
    extraction rules in common use would score it differently, whatever `letter` says.
    """

    letter: str
    tier: str
    first_last_disagree: bool


_OPEN = r"[\s*_~#>\"'“‘`$(\[{<]*"
_BARE = re.compile(
    rf"{_OPEN}(?:(?:option|choice|letter)\s+)?\\?(?:boxed|text)?{_OPEN}([A-Za-z])[\s*_~\"'”’`$)\]}}>.,:;!]*",
    re.IGNORECASE,
)
_LEADING = re.compile(
    rf"{_OPEN}(?:(?:option|choice)\s+)?([A-Za-z])[*_]*([)\].:]|\s[-–—](?=\s))[*_]*(?!\w)\s*", re.IGNORECASE
)
# What comes after a letter or an option and takes it back: "(C) is incorrect", "Heparin cannot be right". It
# must be said of that one: "C, the others are wrong" takes nothing back.
_NEGATION = r"not|incorrect|wrong|false|unlikely|inappropriate|contraindicated|harmful|dangerous"
_REJECTED = re.compile(
    r"[^\w.\n]{0,8}(?:(?:it|this|that|which|answer|option|choice)\s+){0,2}(?:"
    rf"(?:is|are|was|were|seems|looks|as|(?:would|could|can|may|should) be)\b(?: \w+)? (?:{_NEGATION})\b|"
    r"(?:is|are|was|were|does|do|did|can|could|would|should)n['’]t\b|cannot be\b|"
    r"(?:can|could|would|should) not be\b|(?:does|do|did) not (?:apply|fit|work|help|match)\b)",
    re.IGNORECASE,
)
# The same in a word: "C) No.", "C. Incorrect.", "Yes. Actually no"
_NO = re.compile(
    r"[\W_]{0,8}(?:(?:actually|wait)\b|(?:no|incorrect|wrong|false)\s*(?:[.,;:!?)]|$))", re.IGNORECASE
)
_ASKED = re.compile(r"[^.;:!?\n]{0,200}\?|[^.;!?]{1,200}: no\b", re.IGNORECASE)  # "Aspirin?", "Heparin: no"
_NO_ANSWER = re.compile(
    r"\b(?:cannot|can not|can['’]t|unable to|not able to|won['’]t|will not)\s+"
    r"(?:\w+ly )?(?:answer|say|tell|determine|decide|choose)\b",
    re.IGNORECASE,
)
# "answer", then nothing but words that still lead to the letter: "answer: X", "correct answer is option (X)"
_FILLER = (
    r"is|are|was|would be|should be|must be|will be|to this question|to the question|option|choice|letter|"
    r"key|the|most likely|likely|probably|therefore|thus|clearly|boxed|text|mathrm|correct|best|final"
)
_PHRASE = re.compile(
    rf"\b(?:answer|ans|(?:correct|right|best) (?:option|choice)|i (?:choose|select|pick))\b"
    rf"(?:[^\w\n]{{0,6}}\b(?:{_FILLER})\b){{0,6}}[^\w]{{0,12}}(?=\w)",
    re.IGNORECASE,
)
# What stands before "answer" where the answer is denied, doubted or asked for: "I don't think the answer",
# "it is false that the answer", "Is the answer"
_DENIED = re.compile(
    r"(?:\b(?:incorrect|wrong|worst|not|never|no|if|unless)|n['’]t)(?: an?| the)?\s*$"
    r"|(?:\b(?:not|never|cannot|doubt|deny|unsure|whether|if|unless|false|unlikely|incorrect)|n['’]t)\b[^.,;:!?\n]{0,25}$"
    r"|(?:^|[.;:!?\n])\s*(?:is|was|could|would|might|may|what|which)\b[^.;:!?\n]{0,12}$",
    re.IGNORECASE,
)
_IS_CORRECT = re.compile(
    r"(?:^|[.;:,!?]\s+|\b(?i:option|choice|letter|thus|so|hence|therefore|but|and|though|while|that)[\s,]+)"
    r"[*_(\"]{0,3}([A-Z])[*_)\".]{0,3} is (?:(?:the|most likely|therefore|thus|clearly|also|more|most) ){0,3}"
    r"(?:correct|right|best answer|best option|best choice|answer)\b",
    re.MULTILINE,
)
# What may come after a letter that is an answer: not "A patient", "C-reactive", "D's", "B12"
_AFTER = re.compile(
    r"\s*$|</|\s*[()\]}>,:;!?*_\"”`$|]|\s*\.(?!\w)|'(?!\w)|’(?!\w)|\s+[-–—]\s|\s*\n|"
    r"\s+(?:because|since|as|which|based|due|given)\b"
)
_AND_ANOTHER = re.compile(
    r"[\s*_)\".]{0,4}(?:,|;|/|&|\+|\band\b|\bor\b|(?=[(]))(?:\s|and\b|or\b)*[*_(\"]{0,3}([A-Z])(?!\w)"
)
_LAST_WORD = re.compile(r"\s*[\w'’-]*$")
_LINE_END = re.compile(r"[^\w\n]*(?:\n|$)")
_PIECES = re.compile(r"[.,](?!\d)|:(?!\d)|[;!?()]|\s[-–—]\s")  # a number stays whole: 2.5, 1,500, 2:1
_GENUS = re.compile(r"\.\s+(?=[a-z])")
# "A patient": an article, no letter; "A is wrong": a letter
_ALONE = re.compile(r"(?<![\w'’-])(?!A (?!(?:is|was|and|or|because) )[a-z])([A-Z])(?![\w'’-])")


def parse(text: str, item: MCQItem, cut: bool = False) -> Parsed:
    """The option that `text`, a model's whole answer, names. Never raises, never guesses.

    cut: the answer was ended by its limit of tokens. Its last word may then be half of one ("the answer is
    a", of "a beta blocker") and is left out, and one that ends in "the answer is" has not answered.
    """
    text = _plain(text)
    disagree = _first_last_disagree(text, item)
    if cut:
        text = _LAST_WORD.sub("", text)
        if any(phrase.end() == len(text) + 1 for phrase in _PHRASE.finditer(f"{text} X")):
            return Parsed("", "unparsed", disagree)
    for claims in (_letters(text, item), _options(text, item)):
        if claims:
            letters = {letter for letter, _ in claims}
            if len(letters) > 1:
                break
            if (
                claims[0][0] and claims[0][0] in item.letters
            ):  # else it may be an option's text: blood group O
                return Parsed(*claims[0], disagree)
    return Parsed("", "unparsed", disagree)


def as_released(prompt: str, output: str, item: MCQItem) -> str:
    """The letter by the released notebooks' rule, or "" for none or several.

    Their rule: the substring `Answer: X` anywhere in prompt and output, and right only if that of the gold
    letter is the only one there. So "Answer: Aspirin" counts as A; the fault is theirs and kept here, to be
    compared with.
    """
    found = [letter for letter in item.letters if f"Answer: {letter}" in prompt + output]
    return found[0] if len(found) == 1 else ""


def protocol_summary(
    items: Sequence[MCQItem], scored: Sequence[str], generated: Sequence[Parsed], released: Sequence[str] = ()
) -> dict:
    """How the protocols fared on the same items; every share is of `n`, unparsed answers included.

    scored: letters by log-probability; generated: `parse` of answers in words; released: `as_released`,
    where those answers were made. Raises ParsingError where the lengths differ.
    """
    columns = {"scored": scored, "generated": generated, **({"released": released} if released else {})}
    for name, column in columns.items():
        if len(column) != len(items):
            raise ParsingError(f"{len(items)} items but {len(column)} outcomes {name}; give one an item")
    n = len(items)
    letters = {"scored": list(scored), "generated": [answer.letter for answer in generated]}
    if released:
        letters["released"] = list(released)
    tiers = Counter(answer.tier for answer in generated)
    correct = {
        name: sum(letter == item.answer for letter, item in zip(column, items, strict=True))
        for name, column in letters.items()
    }
    same = {
        name: sum(a == b != "" for a, b in zip(column, scored, strict=True))
        for name, column in letters.items()
        if name != "scored"
    }
    return {
        "n": n,
        "correct": correct,
        "accuracy": {name: _share(count, n) for name, count in correct.items()},
        "unparsed": {name: column.count("") for name, column in letters.items()},
        "tiers": {tier: {"count": tiers[tier], "share": _share(tiers[tier], n)} for tier in TIERS},
        "first_last_disagree": _share(sum(answer.first_last_disagree for answer in generated), n),
        "agreement_with_scored": {name: _share(count, n) for name, count in same.items()},
    }


def _share(count: int, n: int) -> float:
    return count / n if n else float("nan")


def _plain(text: str) -> str:
    """Full-width forms to ASCII (NFKC), line ends to \\n; letters of other scripts stay what they are."""
    return re.sub(r"\r\n?", "\n", unicodedata.normalize("NFKC", text)).strip()


def _letters(text: str, item: MCQItem) -> list[tuple[str, str]]:
    """(letter, tier) of each claim of a letter, that of the strongest tier first."""
    claims = []
    lines = [line for line in text.split("\n") if len(line) < 80]
    bare = [match[1].upper() for line in lines if (match := _BARE.fullmatch(line))]
    first, _, rest = text.partition("\n")
    if bare and _BARE.fullmatch(first[:80]):
        if _doubted(rest, _option(bare[0], item)):
            return []
        claims += [(letter, "letter") for letter in bare]  # each line that is but a letter claims it
    elif opening := _opening_letter(text, item):
        claims.append((opening, "letter"))
    return claims + [(letter, "answer") for letter in _phrased(text, item)]


def _opening_letter(text: str, item: MCQItem) -> str:
    """The letter of an answer that begins "C) ..."; none where further lines list other letters alike."""
    opening = _LEADING.match(text)
    if not opening:
        return ""
    letter, rest = opening[1].upper(), text[opening.end() :]
    lettered = (_LEADING.match(line) for line in text.split("\n"))
    others = {match[1].upper() for match in lettered if match} | set(re.findall(r"\s([A-Z])\)", rest))
    if others - {letter} or _doubted(rest, _option(letter, item)):
        return ""
    own = _key(_option(letter, item))
    sentence = opening[2] == "." and opening[1].isupper() and rest[:1].isupper()
    return letter if opening[2] in ")]" or sentence or (own and _key(rest).startswith(own)) else ""


def _phrased(text: str, item: MCQItem) -> Iterator[str]:
    for phrase in _affirmed(text):
        yield from _letters_at(text, phrase.end(), item)
    for match in _IS_CORRECT.finditer(text):
        if not _denied(text, match.start(1)):
            yield match[1]


def _letters_at(text: str, at: int, item: MCQItem) -> Iterator[str]:
    """The letter that stands at `at` as an answer, with those joined to it by "and", "or", commas."""
    letter, end = text[at], at + 1
    if not (letter.isascii() and letter.isalpha()) or not _AFTER.match(text, end):
        return
    if letter.islower() and not (_LINE_END.match(text, end) or text.startswith(")", end)):
        return  # "the answer is a, in my view": an article as likely as a letter
    own = _key(_option(letter, item))
    if (genus := _GENUS.match(text, end)) and not (
        own and _key(text[genus.end() : genus.end() + 500]).startswith(own)
    ):
        return  # "C. difficile", unless the option begins so
    if _doubted(text[end : end + 1000], _option(letter, item)):
        yield ""  # a claim that is taken back: another one after it is a change of mind
        return
    yield letter.upper()
    while joined := _AND_ANOTHER.match(text, end):
        end = joined.end()
        if _AFTER.match(text, end):
            yield joined[1]


def _option(letter: str, item: MCQItem) -> str:
    """The option's text, "" for a letter that is none of the item's."""
    return dict(zip(item.letters, item.options, strict=True)).get(letter.upper(), "")


def _options(text: str, item: MCQItem) -> list[tuple[str, str]]:
    """(letter, "option") for each option that the answer, or what follows "the answer is", consists of."""
    keys = [_key(option) for option in item.options]
    reach = 2 * max(map(len, item.options)) + 100  # more text than that is not an option's
    found = []
    for start in [0, *(phrase.end() for phrase in _affirmed(text))]:
        said = text[start : start + reach]
        line = said.split("\n", 1)[0]
        pieces = [key for part in _PIECES.split(line) if (key := _key(part))]
        opening = pieces if pieces[:1] and pieces[0] in keys else []  # all, to see "Aspirin. No, heparin"
        further = [_key(other) for other in said.split("\n")[1:]]  # "yes", and "no" on the next line
        for named in (
            [_key(said)],
            [_key(line), *further],
            [*opening, *further],
            [_key(line.split(". ")[0])],
        ):
            if letters := [LETTERS[i] for i, key in enumerate(keys) if key and key in named]:
                if _key(said) in keys or not _doubtful(line):
                    found += [(letter, "option") for letter in letters]
                break
    return found


def _doubtful(line: str) -> bool:
    """Whether a line that opens with an option rejects it, asks for it, or gives no answer."""
    option = _PIECES.split(line, maxsplit=1)[0]
    return bool(_doubted(line, option.strip()) or _NO_ANSWER.search(line) or _ASKED.match(line))


def _doubted(rest: str, option: str = "") -> bool:
    """Whether what comes after a letter, and its option's text, takes it back or asks for it."""
    if option:  # whose own "no" denies nothing
        rest = re.sub(rf"^[^\w\n]*{re.escape(option)}", "", rest, count=1, flags=re.IGNORECASE)
    if _key(option) not in PUBMEDQA_OPTIONS and _REJECTED.match(rest):  # "No, it does not" is a no
        return True
    return bool(_NO.match(rest) or _ASKED.match(rest))


def _affirmed(text: str) -> Iterator[re.Match]:
    for phrase in _PHRASE.finditer(text):
        if not _denied(text, phrase.start()):
            yield phrase


def _denied(text: str, at: int) -> bool:
    """Whether what stands before `at` denies, doubts or asks for what stands there."""
    return bool(_DENIED.search(text, max(0, at - 40), at))


def _key(text: str) -> str:
    """Text as it is compared: NFKC, case folded, blanks single, no marks around it."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"\s+", " ", folded).strip(" \n\t*_~#>\"'“”‘’`$()[]{}.,:;!?")


def _first_last_disagree(text: str, item: MCQItem) -> bool:
    alone = [letter for letter in _ALONE.findall(text) if letter in item.letters]
    return bool(alone) and alone[0] != alone[-1]
