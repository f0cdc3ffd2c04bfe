"""The claims of an answer: every letter that it says is right, in the words of answer_wording.

A claim that is denied, doubted or asked for is none. One that is made and then taken back is a claim of "":
another one after it is a change of mind.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from medkit import pubmedqa
from medkit.evaluate import answer_wording as wording
from medkit.evaluate.answer_text import end_of, key
from medkit.records import MCQItem

_BLANKS = re.compile(r"[\s)\].:,(-]*")
_MARKS = re.compile(r"[^\w\n?]*")
_SENTENCE = re.compile(r"[^.;\n]*")
_WORDS = re.compile(r"[\w'’-]+")
_PLAIN_WORDS = frozenset(
    "the a an of in for this that to patient patient's case is with given most best answer".split()
)


class Claim(NamedTuple):
    letter: str  # "" for a claim that is taken back
    tier: str  # "letter", "answer" or "option"
    at: int  # where in the text it is made


def claims(text: str, item: MCQItem, cut: bool = False) -> list[Claim]:
    """The claims that an answer's own part, without markup, makes of `item`'s letters.

    cut: the text was ended by a limit of tokens.
    """
    text = wording.patterns(item.options).listing.sub("listed", text)
    if wording.FIELD.search(text):
        return list(_fields(text, item))
    stated = [
        *_bare_lines(text, item, cut),
        *_opening_letter(text, item, cut),
        *_phrased(text, item, cut),
        *_verdicts(text, item, cut),
        *_judged_lines(text, item),
        *_opening_option(text, item, cut),
    ]
    return stated or list(_described(text, item, cut)) or list(_last_line(text, item, cut))


def _fields(text: str, item: MCQItem) -> Iterator[Claim]:
    """A JSON object's "answer": "C"; its other fields, a reasoning for one, claim nothing."""
    for field in wording.FIELD.finditer(text):
        letters, _, _ = _named(text, field.end(), item)
        yield from (Claim(letter, "answer", field.start()) for letter in letters)


def _bare_lines(text: str, item: MCQItem, cut: bool) -> Iterator[Claim]:
    """Lines that are but a letter: all of them where the first is one, else the last line."""
    lines = [(line.start(), line[0]) for line in re.finditer(r"[^\n]*\S[^\n]*", text)]
    texts = set(map(key, item.options))
    bare = [
        (at, match[1])
        for at, line in lines
        if (match := wording.BARE.fullmatch(line[:40]))
        and (match[1].upper() in item.letters or match[1].lower() not in texts)
    ]
    if bare and bare[0][0] == lines[0][0]:
        end = lines[0][0] + len(lines[0][1])
        if not _refused(text, end, bare[0][1].upper(), item):
            yield from (Claim(_sure(letter.upper(), item), "letter", at) for at, letter in bare)
    elif bare and bare[-1][0] == lines[-1][0] and bare[-1][1].isupper() and not cut:
        yield Claim(_sure(bare[-1][1], item), "answer", bare[-1][0])


def _opening_letter(text: str, item: MCQItem, cut: bool) -> Iterator[Claim]:
    """An answer that begins "C) ...", unless that begins a list of options."""
    lines = _lettered_lines(text, item)
    if not lines or text[: lines[0].start("letter")].strip(" \t\"'“‘([").lower() not in (
        "",
        "option",
        "choice",
    ):
        return
    line, letter = lines[0], lines[0]["letter"].upper()
    if _refused(text, line.start("rest"), letter, item):
        return
    end = _after_own_text(text, line.start("rest"), letter, item)
    sentence = end_of(_SENTENCE, text, end)
    for other in wording.INLINE.finditer(text, end, sentence):
        another = (other["letter"] or other["named"]) != letter
        if another and not wording.ASIDE.search(text[end : other.start()]):
            return
    others = [(other.start("rest"), other["letter"].upper()) for other in lines[1:]]
    others += [
        (other.end(), other["letter"] or other["named"])
        for other in wording.INLINE.finditer(text, sentence, line.end())
        # the next letter is a list's on one line; "Option X" may be any
        if other["named"] not in (None, letter) or other["letter"] == chr(ord(letter) + 1)
    ]
    # a list that begins again with A, or repeats the letter, comes after the answer
    goes_on = others and min(others)[1] not in ("A", letter)
    all_rejected = all(_rejects(text, at, other, item) for at, other in others)
    described = bool(text[end : line.end()].strip(" ."))
    if goes_on and (not all_rejected or (described and asks_for_the_wrong_one(item))):
        return
    if cut and letter == "A" and not others and not wording.EXPLAINED.match(text, end):
        return  # the first of a list that was cut off
    yield Claim(letter, "letter", 0)


def _phrased(text: str, item: MCQItem, cut: bool, described: bool = False) -> Iterator[Claim]:
    """ "The answer is C", "the answer is heparin"; `described`: "the most likely diagnosis is heparin"."""
    negative = asks_for_the_wrong_one(item)
    for phrase in wording.patterns(item.options).phrase.finditer(text):
        at, said = phrase.end(), phrase[0]
        negated = wording.NEGATED.search(wording.BUT.sub("", said)) or phrase["wrong"]
        denied = wording.DENIED.search(text, max(0, phrase.start() - 200), phrase.start())
        if denied or wording.HEDGED.search(said) or (negated and not negative):
            continue
        letters, tier, end = _named(text, at, item)
        if not letters or not _leads_to(phrase, text[at : at + 1], tier, item):
            continue
        if described != (tier == "option" and phrase["described"] is not None):
            continue
        if tier == "option" and _may_go_on(text, at, item, cut):
            continue
        listed = "\n" in said and len(_lettered_lines(text[at:], item)) > 1
        if listed and not list(_opening_letter(text[at:], item, cut)):
            continue  # "the correct answer is one of these:"
        taken_back = _withdrawn(text, end, letters[0], item)
        yield from (Claim("" if taken_back else letter, tier, phrase.start()) for letter in letters)


def _leads_to(phrase: re.Match, target: str, tier: str, item: MCQItem) -> bool:
    """Whether the phrase is about the answer to the question, and not about some finding on the way."""
    negative, said = asks_for_the_wrong_one(item), phrase[0].lower()
    if negative and re.match(r"(?:correct|right|true) statement", said):
        return False
    if tier == "answer":
        return not phrase["described"] or not (wording.NAMED_BY_LETTER.search(said) or target.islower())
    if said.startswith("choice") and phrase.string[: phrase.start()].lower().endswith("of "):
        return not negative and "choice" in item.question.lower()  # "the drug of choice is"
    return phrase["it"] is None and (not phrase["described"] or _asked_for(phrase["described"], item))


def _described(text: str, item: MCQItem, cut: bool) -> Iterator[Claim]:
    yield from _phrased(text, item, cut, described=True)
    yield from _verdicts(text, item, cut, described=True)


def _verdicts(text: str, item: MCQItem, cut: bool, described: bool = False) -> Iterator[Claim]:
    """ "C is correct", "heparin (C) is the best answer"; `described`: "C is the most likely diagnosis"."""
    negative = asks_for_the_wrong_one(item)
    # true or false is said of each statement, and does not make it the answer
    of_statements = negative or any(
        re.search(r"\b[A-D] (?:and|&|or|only)\b", option) for option in item.options
    )
    of_statements &= cut or len(set(wording.ALONE.findall(text))) > 1
    for verdict in wording.patterns(item.options).verdict.finditer(text):
        start = verdict.start() + len(verdict[0]) - len(verdict[0].lstrip(" .;:,!?\n"))
        before = text[max(0, start - 200) : start]
        if wording.DENIED.search(before) or wording.JOINED.search(before):
            continue
        if (verdict["right"] and of_statements) or (verdict["exception"] and not negative):
            continue
        if described != (verdict["described"] is not None):
            continue
        if described and (negative or not _asked_for(verdict["described"], item)):
            continue
        for letter in item.letters:
            if verdict[letter] or verdict[f"{letter}_text"]:
                own = wording.patterns(item.options).texts[letter].search(verdict[0])
                yield Claim(
                    letter if own else _sure(letter, item), "answer" if verdict[letter] else "option", start
                )
            if verdict[f"{letter}_too"]:
                yield Claim(verdict[f"{letter}_too"], "answer", start)


def _judged_lines(text: str, item: MCQItem) -> Iterator[Claim]:
    """A line of a list of options that says of its own that it is the answer: "C) Heparin - correct"."""
    lines = _lettered_lines(text, item)
    rejected = [line for line in lines if _rejects(text, line.start("rest"), line["letter"], item)]
    for line in lines:
        judged = wording.JUDGED.search(line["rest"])
        # where a wrong statement is asked for, "correct" may be said of each statement but one
        every_other = len(lines) == len(item.letters) == len(rejected) + 1
        if judged and (judged["answer"] or every_other or not asks_for_the_wrong_one(item)):
            yield Claim(line["letter"].upper(), "answer", line.start())


def _opening_option(text: str, item: MCQItem, cut: bool) -> Iterator[Claim]:
    """An answer that begins with an option's text; a list in which others follow contradicts itself."""
    start = end_of(wording.OPENERS, text)
    found = _texts_at(text, 0, item) or _texts_at(text, start, item)
    if not found or wording.NO_ANSWER.search(text.split("\n", 1)[0]) or _may_go_on(text, start, item, cut):
        return
    end = max(end for _, end in found)
    if _refused(text, end, found[0][0], item):
        return
    if item.options != pubmedqa.OPTIONS and (
        wording.HEADING.match(text, end) or re.match(r",[^\n]*\band\b", text[end : end + 300])
    ):
        return  # "Age: 45 years"; "Aspirin, heparin and warfarin"
    yield from (Claim(letter, "option", 0) for letter, at in found if at == end)
    for letter, pattern in wording.patterns(item.options).texts.items():
        for other in pattern.finditer(text, end):
            begins_line = text[: other.start()].rstrip(" \t0123456789.)")[-1:] == "\n"
            if wording.HEADING.match(text, other.end()) or (
                begins_line and wording.LINE_ENDS.match(text, other.end())
            ):
                yield Claim(letter, "option", other.start())


def _last_line(text: str, item: MCQItem, cut: bool) -> Iterator[Claim]:
    """A last line that is but "C) Heparin", alone or after the whole list; a last sentence's "option C"."""
    lines = _lettered_lines(text, item)
    if cut:
        return
    if lines and lines[-1].end() == len(text):
        letters = "".join(line["letter"].upper() for line in lines)
        own = wording.patterns(item.options).texts[letters[-1]]
        if own.fullmatch(lines[-1]["rest"].strip(" .!)\"'")) and letters[:-1] in ("", item.letters):
            yield Claim(letters[-1], "letter", lines[-1].start())
        return
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text[text.rfind("\n") + 1 :])[-1]
    named = set(wording.CONCLUDES.findall(sentence))
    if (
        len(named) == 1
        and named == set(wording.ALONE.findall(text))
        and not (wording.HEDGED.search(sentence) or wording.NEGATED.search(sentence))
    ):
        yield Claim(named.pop(), "answer", len(text) - len(sentence))


def _lettered_lines(text: str, item: MCQItem) -> list[re.Match]:
    """The lines that begin with an option's letter: "C) ...", "Option C: ...", "C Heparin"."""
    found = []
    for line in wording.LETTERED.finditer(text):
        letter, mark, rest = line["letter"], line["mark"], line["rest"]
        own = wording.patterns(item.options).texts.get(letter.upper())
        dressed = ")" in mark or "]" in mark or (line["option"] and (mark or line["dash"]))
        sentence = mark == "." and letter.isupper() and rest[:1].isupper()
        because = letter.isupper() and wording.BECAUSE.match(rest)
        if not own or (not dressed and _texts_at(text, line.start(), item)):  # "C. difficile"
            continue
        if dressed or sentence or because or own.match(rest):
            found.append(line)
    return found


def _named(text: str, at: int, item: MCQItem) -> tuple[list[str], str, int]:
    """(letters, tier, end) of what `at` names: an option's text, or a letter with those joined to it."""
    marked, at = at, end_of(wording.OPENERS, text, at)
    if found := _texts_at(text, marked, item) or _texts_at(text, at, item):  # "(1/2) / (1/3)" may be one
        end = max(end for _, end in found)
        letters = {letter for letter, text_end in found if text_end == end}
        too = wording.LETTER_TOO.match(text, end)
        if too and (too[1] or too[2]) in item.letters:
            return sorted({*letters, too[1] or too[2]}), "answer", too.end()
        return sorted(letters), "option", end
    letter, end = text[at : at + 1], at + 1
    if not (letter.isascii() and letter.isalpha()):
        return [], "answer", end
    own = wording.patterns(item.options).texts.get(letter.upper())
    followed = bool(own and own.match(text, end_of(_BLANKS, text, end)))
    if followed:
        return [letter.upper()], "answer", end
    # "the answer is a, in my view": an article as likely as a letter; "C. difficile"
    if not wording.AFTER.match(text, end) or wording.GENUS.match(text, end):
        return [], "answer", end
    if letter.islower() and not wording.LOWERCASE_AFTER.match(text, end):
        return [], "answer", end
    if letter == "a" and text[at - 3 : at] == "is " and wording.LINE_ENDS.match(text, end):
        return [], "answer", end
    letters = [_sure(letter.upper(), item)]
    while joined := wording.AND_ANOTHER.match(text, end):
        end = joined.end()
        if wording.AFTER.match(text, end):
            letters.append(joined[1])
    return letters, "answer", end


def _texts_at(text: str, at: int, item: MCQItem) -> list[tuple[str, int]]:
    """(letter, end) of each option whose text is what stands at `at`, up to where that ends."""
    found, texts = [], wording.patterns(item.options).texts
    for letter, pattern in texts.items():
        match = pattern.match(text, at)
        if not match or (len(match[0]) == 1 and match[0].upper() in item.letters):
            continue
        after = wording.AFTER_TEXT.match(text, match.end())
        if not after or (match[0].isdecimal() and wording.NUMBERING.match(text, match.end())):
            continue
        if not (after["comma"] and any(other.match(text, after.end()) for other in texts.values())):
            found.append((letter, match.end()))
    return found


def _sure(letter: str, item: MCQItem) -> str:
    """The letter, "" where it is also the text of another option (blood groups, vitamins)."""
    others = (option for own, option in zip(item.letters, item.options, strict=True) if own != letter)
    return "" if letter.lower() in map(key, others) else letter


def _rejects(text: str, at: int, letter: str, item: MCQItem) -> bool:
    """Whether what a line says of an option, after its text, rejects it."""
    at = _after_own_text(text, at, letter.upper(), item)
    return bool(wording.REJECTS.search(text[at : at + 300].split("\n")[0]))


def _may_go_on(text: str, at: int, item: MCQItem, cut: bool) -> bool:
    """Whether the text is cut inside of what may still become another option's."""
    said = key(text[at:]).rstrip(" ,…")
    return cut and sum(key(option).startswith(said) for option in item.options) > 1


def _asked_for(phrase: str, item: MCQItem) -> bool:
    """Whether "most likely diagnosis" is what the question asks for, by its words."""
    words = set(_WORDS.findall(phrase.lower())) - _PLAIN_WORDS
    return bool(words) and words <= set(_WORDS.findall(item.question.lower()))


@lru_cache(maxsize=256)
def asks_for_the_wrong_one(item: MCQItem) -> bool:
    """Whether the question is one of "which is not", "all except": its right answer is a wrong statement."""
    sentences = [part for part in re.split(r"[.?!:]\s+", item.question) if len(part.split()) > 1]
    return bool(wording.NEGATIVE_QUESTION.search(sentences[-1] if sentences else item.question))


def _withdrawn(text: str, at: int, letter: str, item: MCQItem) -> bool:
    """Whether what follows a claim of `letter`, and its option's text, takes it back or asks for it."""
    at = _after_own_text(text, at, letter, item)
    if any(pattern.match(text, at) for pattern in (wording.NO, wording.ASKED, wording.NOT_THE_ANSWER)):
        return True
    return not asks_for_the_wrong_one(item) and bool(wording.WRONG.match(text, at))


def _refused(text: str, at: int, letter: str, item: MCQItem) -> bool:
    """The same for a letter or option that only opens the answer, where any negation of it is a rejection."""
    if _withdrawn(text, at, letter, item):
        return True
    if asks_for_the_wrong_one(item) or item.options == pubmedqa.OPTIONS:  # "No, it does not" is a no
        return False
    return bool(wording.REJECTED.match(text, _after_own_text(text, at, letter, item)))


def _after_own_text(text: str, at: int, letter: str, item: MCQItem) -> int:
    own = wording.patterns(item.options).texts.get(letter)
    match = own.match(text, end_of(_MARKS, text, at)) if own else None
    return match.end() if match else at
