"""The claims of an answer: every letter that it says is right, in the words of answer_wording.

A claim that is denied, doubted or asked for does not count. One that is made and then taken back is a claim
of "": another claim after it is a change of mind.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from medkit import pubmedqa
from medkit.evaluate import answer_wording as wording
from medkit.evaluate.answer_text import end_of, key
from medkit.records import MCQItem

_WORDS = re.compile(r"[\w'’-]+")
_PLAIN_WORDS = frozenset(
    "the a an of in for this that to patient patient's case is with given most best answer".split()
)


class Claim(NamedTuple):
    letter: str  # "" for a claim that is taken back
    tier: str  # "letter", "answer" or "option"
    at: int  # where in the text it is made
    weak: bool = False  # counts only where no other claim is made


def claims(text: str, item: MCQItem, cut: bool = False) -> list[Claim]:
    """The claims that an answer's own part, without markup, makes of `item`'s letters.

    cut: the text was ended by a limit of tokens.
    """
    answer = _Answer(wording.patterns(item.options).listing.sub("listed", text), item, cut)
    if wording.FIELD.search(answer.text):
        return list(answer.fields())
    found = [
        *answer.bare_lines(),
        *answer.opening_letter(),
        *answer.phrased(),
        *answer.verdicts(),
        *answer.judged_lines(),
        *answer.opening_option(),
    ]
    return [claim for claim in found if not claim.weak] or found or list(answer.last_line())


@dataclass
class _Answer:
    text: str
    item: MCQItem
    cut: bool

    @cached_property
    def patterns(self) -> wording.Patterns:
        return wording.patterns(self.item.options)

    @cached_property
    def negative(self) -> bool:
        """Whether the question is one of "which is not", "all except": its right answer is a wrong
        statement."""
        sentences = [part for part in re.split(r"[.?!:]\s+", self.item.question) if len(part.split()) > 1]
        return bool(wording.NEGATIVE_QUESTION.search(sentences[-1] if sentences else self.item.question))

    @cached_property
    def lines(self) -> list[re.Match]:
        """The lines that begin with an option's letter: "C) ...", "Option C: ...", "C Heparin"."""
        found = []
        for line in wording.LETTERED.finditer(self.text):
            letter, mark, rest = line["letter"], line["mark"], line["rest"]
            own = self.patterns.texts.get(letter.upper())
            dressed = ")" in mark or "]" in mark or (line["option"] and (mark or line["dash"]))
            if not own or (not dressed and self.texts_at(line.start())):  # "C. difficile"
                continue
            sentence = mark == "." and letter.isupper() and rest[:1].isupper()
            because = letter.isupper() and wording.BECAUSE.match(rest)
            if dressed or sentence or because or own.match(rest):
                found.append(line)
        return found

    # --- what an answer claims

    def fields(self) -> Iterator[Claim]:
        """A JSON object's "answer": "C"; its other fields, such as a reasoning, claim nothing."""
        for field in wording.FIELD.finditer(self.text):
            yield from (Claim(letter, "answer", field.start()) for letter in self.named(field.end())[0])

    def bare_lines(self) -> Iterator[Claim]:
        """Lines that hold only a letter: all of them where the first is one, otherwise the last line."""
        lines = list(re.finditer(r"[^\n]*\S[^\n]*", self.text))
        texts = set(map(key, self.item.options))
        bare = {
            line.start(): match[1]
            for line in lines
            if (match := wording.BARE.fullmatch(line[0][:40]))
            and (match[1].upper() in self.item.letters or match[1].lower() not in texts)
        }
        first, last = (lines[place].start() if lines else 0 for place in (0, -1))
        if first in bare:
            if not self.refused(lines[0].end(), bare[first].upper()):
                yield from (Claim(self.sure(letter.upper()), "letter", at) for at, letter in bare.items())
        elif last in bare and bare[last].isupper() and not self.cut:
            yield Claim(self.sure(bare[last]), "answer", last)

    def opening_letter(self) -> Iterator[Claim]:
        """An answer that begins "C) ...", unless that begins a list of options."""
        text, lines = self.text, self.lines
        opens = ("", "option", "choice")
        if not lines or text[: lines[0].start("letter")].strip(" \t\"'“‘([").lower() not in opens:
            return
        line, letter = lines[0], lines[0]["letter"].upper()
        if self.refused(line.start("rest"), letter):
            return
        end = self.after_own_text(line.start("rest"), letter)
        sentence = end_of(wording.SENTENCE, text, end)
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
        described = bool(text[end : line.end()].strip(" ."))
        if goes_on and ((described and self.negative) or not all(self.rejects(*other) for other in others)):
            return
        if self.cut and letter == "A" and not others and not wording.EXPLAINED.match(text, end):
            return  # the first of a list that was cut off
        yield Claim(letter, "letter", 0)

    def phrased(self) -> Iterator[Claim]:
        """ "The answer is C", "the answer is heparin"; weak: "the most likely diagnosis is heparin"."""
        text = self.text
        for phrase in self.patterns.phrase.finditer(text):
            start, at, said = phrase.start(), phrase.end(), phrase[0]
            negated = wording.NEGATED.search(wording.BUT.sub("", said)) or phrase["wrong"]
            denied = wording.DENIED.search(text, max(0, start - 200), start)
            if denied or wording.HEDGED.search(said) or (negated and not self.negative):
                continue
            letters, tier, end = self.named(at)
            if not letters or not self.leads_to(phrase, tier) or (tier == "option" and self.may_go_on(at)):
                continue
            if "\n" in said:
                rest = _Answer(text[at:], self.item, self.cut)
                if len(rest.lines) > 1 and not list(rest.opening_letter()):
                    continue  # "the correct answer is one of these:"
            taken_back = self.withdrawn(end, letters[0])
            weak = tier == "option" and phrase["described"] is not None
            yield from (Claim("" if taken_back else letter, tier, start, weak) for letter in letters)

    def verdicts(self) -> Iterator[Claim]:
        """ "C is correct", "heparin (C) is the best answer"; weak: "C is the most likely diagnosis"."""
        # true or false is said of each statement, and does not make it the answer
        of_statements = self.negative or any(map(wording.OF_STATEMENTS.search, self.item.options))
        of_statements &= self.cut or len(set(wording.ALONE.findall(self.text))) > 1
        for verdict in self.patterns.verdict.finditer(self.text):
            start = verdict.start() + len(verdict[0]) - len(verdict[0].lstrip(" .;:,!?\n"))
            before = self.text[max(0, start - 200) : start]
            if wording.DENIED.search(before) or wording.JOINED.search(before):
                continue
            if (verdict["right"] and of_statements) or (verdict["exception"] and not self.negative):
                continue
            weak = verdict["described"] is not None
            if weak and (self.negative or not self.asked_for(verdict["described"])):
                continue
            for letter, own in self.patterns.texts.items():
                if verdict[letter] or verdict[f"{letter}_text"]:
                    sure = letter if own.search(verdict[0]) else self.sure(letter)
                    yield Claim(sure, "answer" if verdict[letter] else "option", start, weak)
                if verdict[f"{letter}_too"]:
                    yield Claim(verdict[f"{letter}_too"], "answer", start, weak)

    def judged_lines(self) -> Iterator[Claim]:
        """A line of a list of options that says that it is the answer: "C) Heparin - correct"."""
        rejected = sum(self.rejects(line.start("rest"), line["letter"].upper()) for line in self.lines)
        # where a wrong statement is asked for, "correct" may be said of each statement but one
        every_other = len(self.lines) == len(self.item.letters) == rejected + 1
        for line in self.lines:
            judged = wording.JUDGED.search(line["rest"])
            if judged and (judged["answer"] or every_other or not self.negative):
                yield Claim(line["letter"].upper(), "answer", line.start())

    def opening_option(self) -> Iterator[Claim]:
        """An answer that begins with an option's text; a list in which others follow contradicts itself."""
        text, start = self.text, end_of(wording.OPENERS, self.text)
        found = self.texts_at(0) or self.texts_at(start)
        if not found or wording.NO_ANSWER.search(text.split("\n", 1)[0]) or self.may_go_on(start):
            return
        end = max(end for _, end in found)
        if self.refused(end, found[0][0]):
            return
        if self.item.options != pubmedqa.OPTIONS and (
            wording.HEADING.match(text, end) or re.match(r",[^\n]*\band\b", text[end : end + 300])
        ):
            return  # "Age: 45 years"; "Aspirin, heparin and warfarin"
        yield from (Claim(letter, "option", 0) for letter, at in found if at == end)
        for letter, pattern in self.patterns.texts.items():
            for other in pattern.finditer(text, end):
                begins_line = text[: other.start()].rstrip(" \t0123456789.)")[-1:] == "\n"
                if wording.HEADING.match(text, other.end()) or (
                    begins_line and wording.LINE_ENDS.match(text, other.end())
                ):
                    yield Claim(letter, "option", other.start())

    def last_line(self) -> Iterator[Claim]:
        """A last line that is only "C) Heparin", alone or after the whole list; a last sentence's
        "option C"."""
        text, lines = self.text, self.lines
        if self.cut:
            return
        if lines and lines[-1].end() == len(text):
            letters = "".join(line["letter"].upper() for line in lines)
            whole = self.patterns.texts[letters[-1]].fullmatch(lines[-1]["rest"].strip(" .!)\"'"))
            if whole and letters[:-1] in ("", self.item.letters):
                yield Claim(letters[-1], "letter", lines[-1].start())
            return
        sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text[text.rfind("\n") + 1 :])[-1]
        concluded = set(wording.CONCLUDES.findall(sentence))
        if wording.HEDGED.search(sentence) or wording.NEGATED.search(sentence):
            return
        if len(concluded) == 1 and concluded == set(wording.ALONE.findall(text)):
            yield Claim(concluded.pop(), "answer", len(text) - len(sentence))

    # --- what stands at a place

    def named(self, at: int) -> tuple[list[str], str, int]:
        """(letters, tier, end) of what `at` names: an option's text, or a letter with those joined to it."""
        text, marked = self.text, at
        at = end_of(wording.OPENERS, text, at)
        if found := self.texts_at(marked) or self.texts_at(at):  # "(1/2) / (1/3)" may be one
            end = max(end for _, end in found)
            letters = {letter for letter, text_end in found if text_end == end}
            too = wording.LETTER_TOO.match(text, end)
            if too and (too[1] or too[2]) in self.item.letters:
                return sorted({*letters, too[1] or too[2]}), "answer", too.end()
            return sorted(letters), "option", end
        letter, end = text[at : at + 1], at + 1
        if not (letter.isascii() and letter.isalpha()):
            return [], "answer", end
        own = self.patterns.texts.get(letter.upper())
        if own and own.match(text, end_of(wording.BLANKS, text, end)):
            return [letter.upper()], "answer", end
        if (
            not wording.AFTER.match(text, end)
            or wording.GENUS.match(text, end)  # "C. difficile"
            # "the answer is a, in my view": an article as likely as a letter
            or (letter.islower() and not wording.LOWERCASE_AFTER.match(text, end))
            or (letter == "a" and text[at - 3 : at] == "is " and wording.LINE_ENDS.match(text, end))
        ):
            return [], "answer", end
        letters = [self.sure(letter.upper())]
        while joined := wording.AND_ANOTHER.match(text, end):
            end = joined.end()
            if wording.AFTER.match(text, end):
                letters.append(joined[1])
        return letters, "answer", end

    def texts_at(self, at: int) -> list[tuple[str, int]]:
        """(letter, end) of each option whose text stands at `at`, up to where that ends."""
        found, text, texts = [], self.text, self.patterns.texts
        for letter, pattern in texts.items():
            match = pattern.match(text, at)
            if not match or (len(match[0]) == 1 and match[0].upper() in self.item.letters):
                continue
            end = match.end()
            after = wording.AFTER_TEXT.match(text, end)
            if not after or (match[0].isdecimal() and wording.NUMBERING.match(text, end)):
                continue
            if not (after["comma"] and any(other.match(text, after.end()) for other in texts.values())):
                found.append((letter, end))
        return found

    def after_own_text(self, at: int, letter: str) -> int:
        own = self.patterns.texts.get(letter)
        match = own.match(self.text, end_of(wording.MARKS, self.text, at)) if own else None
        return match.end() if match else at

    # --- what is said of it

    def leads_to(self, phrase: re.Match, tier: str) -> bool:
        """Whether the phrase is about the answer to the question, and not about some finding on the way."""
        said, target = phrase[0].lower(), self.text[phrase.end() : phrase.end() + 1]
        if self.negative and re.match(r"(?:correct|right|true) statement", said):
            return False
        if tier == "answer":
            return not phrase["described"] or not (wording.NAMED_BY_LETTER.search(said) or target.islower())
        if said.startswith("choice") and self.text[: phrase.start()].lower().endswith("of "):
            return not self.negative and "choice" in self.item.question.lower()  # "the drug of choice is"
        return phrase["it"] is None and (not phrase["described"] or self.asked_for(phrase["described"]))

    def asked_for(self, phrase: str) -> bool:
        """Whether "most likely diagnosis" is what the question asks for, by its words."""
        words = set(_WORDS.findall(phrase.lower())) - _PLAIN_WORDS
        return bool(words) and words <= set(_WORDS.findall(self.item.question.lower()))

    def withdrawn(self, at: int, letter: str) -> bool:
        """Whether what follows a claim of `letter`, and its option's text, takes it back or asks for it."""
        at = self.after_own_text(at, letter)
        patterns = [wording.NO, wording.ASKED, wording.NOT_THE_ANSWER]
        return any(
            p.match(self.text, at) for p in (patterns if self.negative else [*patterns, wording.WRONG])
        )

    def refused(self, at: int, letter: str) -> bool:
        """The same for a letter or option that only opens the answer: any negation of it is a rejection."""
        if self.withdrawn(at, letter):
            return True
        if self.negative or self.item.options == pubmedqa.OPTIONS:  # "No, it does not" is a no
            return False
        return bool(wording.REJECTED.match(self.text, self.after_own_text(at, letter)))

    def rejects(self, at: int, letter: str) -> bool:
        """Whether what a line says of an option, after its text, rejects it."""
        at = self.after_own_text(at, letter)
        return bool(wording.REJECTS.search(self.text[at : at + 300].split("\n")[0]))

    def may_go_on(self, at: int) -> bool:
        """Whether the text is cut inside of what may still become another option's."""
        said = key(self.text[at:]).rstrip(" ,…")
        return self.cut and sum(key(option).startswith(said) for option in self.item.options) > 1

    def sure(self, letter: str) -> str:
        """The letter, "" where it is also the text of another option (blood groups, vitamins)."""
        others = (o for own, o in zip(self.item.letters, self.item.options, strict=True) if own != letter)
        return "" if letter.lower() in map(key, others) else letter
