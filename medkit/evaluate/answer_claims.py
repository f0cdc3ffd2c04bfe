"""Finds the claims of an answer: every letter that it says is right. answer_wording has the patterns.

A claim that is negated, hedged or asked as a question does not count. A withdrawn claim has the letter "", so
that another claim after it makes the answer contradictory.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from medkit import pubmedqa
from medkit.evaluate import answer_wording as wording
from medkit.evaluate.answer_text import comparison_key, match_end
from medkit.records import MCQItem

_WORDS = re.compile(r"[\w'’-]+")
_STOP_WORDS = frozenset(
    "the a an of in for this that to patient patient's case is with given most best answer".split()
)


class Claim(NamedTuple):
    letter: str  # "" if the claim is withdrawn or its letter is ambiguous
    tier: str  # "letter", "answer" or "option"
    position: int  # in the text
    weak: bool = False  # counts only if all claims are weak


def find_claims(text: str, item: MCQItem, cut: bool = False) -> list[Claim]:
    """The claims that an answer, without reasoning and markup, makes about `item`'s letters.

    cut: the answer was truncated at its token limit.
    """
    answer = _Answer(wording.option_patterns(item.options).listing.sub("listed", text), item, cut)
    if wording.JSON_FIELD.search(answer.text):
        return list(answer.json_fields())
    claims = [
        *answer.bare_letters(),
        *answer.opening_letter(),
        *answer.phrases(),
        *answer.verdicts(),
        *answer.marked_options(),
        *answer.opening_option(),
    ]
    return [claim for claim in claims if not claim.weak] or claims or list(answer.conclusion())


@dataclass
class _Answer:
    text: str
    item: MCQItem
    cut: bool

    @cached_property
    def patterns(self) -> wording.OptionPatterns:
        return wording.option_patterns(self.item.options)

    @cached_property
    def is_negative(self) -> bool:
        """Whether the question asks for a wrong statement: "which is not", "all except"."""
        sentences = re.split(r"[.?!:]\s+", self.item.question)
        sentences = [sentence for sentence in sentences if len(sentence.split()) > 1]
        return bool(wording.NEGATIVE_QUESTION.search(sentences[-1] if sentences else self.item.question))

    @cached_property
    def option_lines(self) -> list[re.Match]:
        """The lines that begin with an option's letter: "C) ...", "Option C: ...", "C Heparin"."""
        option_lines = []
        for line in wording.LETTERED.finditer(self.text):
            letter, mark, rest = line["letter"], line["mark"], line["rest"]
            option_text = self.patterns.texts.get(letter.upper())
            labelled = ")" in mark or "]" in mark or (line["option"] and (mark or line["dash"]))
            if not option_text or (not labelled and self.options_at(line.start())):  # "C. difficile"
                continue
            sentence = mark == "." and letter.isupper() and rest[:1].isupper()
            because = letter.isupper() and wording.BECAUSE.match(rest)
            if labelled or sentence or because or option_text.match(rest):
                option_lines.append(line)
        return option_lines

    # --- claims

    def json_fields(self) -> Iterator[Claim]:
        """A JSON object's "answer": "C". Other fields, such as "reasoning", make no claim."""
        for field in wording.JSON_FIELD.finditer(self.text):
            yield from (Claim(letter, "answer", field.start()) for letter in self.answer_at(field.end())[0])

    def bare_letters(self) -> Iterator[Claim]:
        """Lines with only a letter: all of them if the first line is one, otherwise only the last line."""
        lines = list(re.finditer(r"[^\n]*\S[^\n]*", self.text))
        if not lines:
            return
        option_keys = set(map(comparison_key, self.item.options))
        bare = {
            line.start(): match[1]
            for line in lines
            if (match := wording.BARE.fullmatch(line[0][:40]))
            and (match[1].upper() in self.item.letters or match[1].lower() not in option_keys)
        }
        first, last = lines[0].start(), lines[-1].start()
        if first in bare:
            if not self.is_rejected(lines[0].end(), bare[first].upper()):
                for position, letter in bare.items():
                    yield Claim(self.unless_ambiguous(letter.upper()), "letter", position)
        elif last in bare and bare[last].isupper() and not self.cut:
            yield Claim(self.unless_ambiguous(bare[last]), "answer", last)

    def opening_letter(self) -> Iterator[Claim]:
        """An answer that begins "C) ...", unless it begins a list of options."""
        text, lines = self.text, self.option_lines
        prefixes = ("", "option", "choice")
        if not lines or text[: lines[0].start("letter")].strip(" \t\"'“‘([").lower() not in prefixes:
            return
        line, letter = lines[0], lines[0]["letter"].upper()
        if self.is_rejected(line.start("rest"), letter):
            return
        end = self.skip_option_text(line.start("rest"), letter)
        sentence_end = match_end(wording.SENTENCE, text, end)
        for mention in wording.INLINE.finditer(text, end, sentence_end):
            differs = (mention["letter"] or mention["named"]) != letter
            if differs and not wording.CONTRAST.search(text[end : mention.start()]):
                return
        later = [(option.start("rest"), option["letter"].upper()) for option in lines[1:]]
        later += [
            (mention.end(), mention["letter"] or mention["named"])
            for mention in wording.INLINE.finditer(text, sentence_end, line.end())
            # "D)" after "C)" continues a list on one line; "Option X" may be any letter
            if mention["named"] not in (None, letter) or mention["letter"] == chr(ord(letter) + 1)
        ]
        # a list that starts again at A, or that repeats the letter, follows the answer
        continues = later and min(later)[1] not in ("A", letter)
        described = bool(text[end : line.end()].strip(" ."))
        if continues and (
            (described and self.is_negative) or not all(self.rejects_option(*option) for option in later)
        ):
            return
        if self.cut and letter == "A" and not later and not wording.EXPLAINED.match(text, end):
            return  # may be the first option of a truncated list
        yield Claim(letter, "letter", 0)

    def phrases(self) -> Iterator[Claim]:
        """ "The answer is C", "the answer is heparin"; weak: "the most likely diagnosis is heparin"."""
        text = self.text
        for phrase in self.patterns.phrase.finditer(text):
            start, end = phrase.span()
            negated = wording.NEGATED.search(wording.BUT.sub("", phrase[0])) or phrase["wrong"]
            discounted = wording.DISCOUNTED.search(text, max(0, start - 200), start)
            if discounted or wording.HEDGED.search(phrase[0]) or (negated and not self.is_negative):
                continue
            letters, tier, answer_end = self.answer_at(end)
            if not letters or not self.introduces_answer(phrase, tier):
                continue
            if tier == "option" and self.is_cut_option(end):
                continue
            if "\n" in phrase[0]:
                rest = _Answer(text[end:], self.item, self.cut)
                if len(rest.option_lines) > 1 and not list(rest.opening_letter()):
                    continue  # "the correct answer is one of these:"
            withdrawn = self.is_withdrawn(answer_end, letters[0])
            weak = tier == "option" and phrase["described"] is not None
            yield from (Claim("" if withdrawn else letter, tier, start, weak) for letter in letters)

    def verdicts(self) -> Iterator[Claim]:
        """ "C is correct", "heparin (C) is the best answer"; weak: "C is the most likely diagnosis"."""
        # an answer that calls each statement true or false does not choose the true ones
        judges_statements = self.is_negative or any(map(wording.COMBINATION.search, self.item.options))
        judges_statements &= self.cut or len(set(wording.ALONE.findall(self.text))) > 1
        for verdict in self.patterns.verdict.finditer(self.text):
            start = verdict.start() + len(verdict[0]) - len(verdict[0].lstrip(" .;:,!?\n"))
            before = self.text[max(0, start - 200) : start]
            if wording.DISCOUNTED.search(before) or wording.JOINED_BEFORE.search(before):
                continue
            if (verdict["right"] and judges_statements) or (verdict["exception"] and not self.is_negative):
                continue
            weak = verdict["described"] is not None
            if weak and (self.is_negative or not self.is_asked(verdict["described"])):
                continue
            for letter, option_text in self.patterns.texts.items():
                if verdict[letter] or verdict[f"{letter}_text"]:
                    has_text = option_text.search(verdict[0])
                    claimed = letter if has_text else self.unless_ambiguous(letter)
                    yield Claim(claimed, "answer" if verdict[letter] else "option", start, weak)
                if verdict[f"{letter}_too"]:
                    yield Claim(verdict[f"{letter}_too"], "answer", start, weak)

    def marked_options(self) -> Iterator[Claim]:
        """A line in a list of options that is marked as the answer: "C) Heparin - correct"."""
        rejected = sum(
            self.rejects_option(line.start("rest"), line["letter"].upper()) for line in self.option_lines
        )
        # if the question asks for a wrong statement, "correct" may mark all the others
        one_left = len(self.option_lines) == len(self.item.letters) == rejected + 1
        for line in self.option_lines:
            marked = wording.MARKED_CORRECT.search(line["rest"])
            if marked and (marked["answer"] or one_left or not self.is_negative):
                yield Claim(line["letter"].upper(), "answer", line.start())

    def opening_option(self) -> Iterator[Claim]:
        """An answer that begins with an option's text. A list of other options after it contradicts it."""
        text, start = self.text, match_end(wording.OPENERS, self.text)
        options = self.options_at(0) or self.options_at(start)
        if not options or wording.NO_ANSWER.search(text.split("\n", 1)[0]) or self.is_cut_option(start):
            return
        end = max(end for _, end in options)
        if self.is_rejected(end, options[0][0]):
            return
        if self.item.options != pubmedqa.OPTIONS and (
            wording.HEADING.match(text, end) or re.match(r",[^\n]*\band\b", text[end : end + 300])
        ):
            return  # "Age: 45 years"; "Aspirin, heparin and warfarin"
        yield from (Claim(letter, "option", 0) for letter, option_end in options if option_end == end)
        for letter, pattern in self.patterns.texts.items():
            for match in pattern.finditer(text, end):
                begins_line = text[: match.start()].rstrip(" \t0123456789.)")[-1:] == "\n"
                if wording.HEADING.match(text, match.end()) or (
                    begins_line and wording.LINE_END.match(text, match.end())
                ):
                    yield Claim(letter, "option", match.start())

    def conclusion(self) -> Iterator[Claim]:
        """A last line "C) Heparin", alone or after the whole list, or "option C" in the last sentence."""
        text, lines = self.text, self.option_lines
        if self.cut:
            return
        if lines and lines[-1].end() == len(text):
            letters = "".join(line["letter"].upper() for line in lines)
            has_text = self.patterns.texts[letters[-1]].fullmatch(lines[-1]["rest"].strip(" .!)\"'"))
            if has_text and letters[:-1] in ("", self.item.letters):
                yield Claim(letters[-1], "letter", lines[-1].start())
            return
        sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text[text.rfind("\n") + 1 :])[-1]
        if wording.HEDGED.search(sentence) or wording.NEGATED.search(sentence):
            return
        letters = set(wording.CONCLUSION.findall(sentence))
        if len(letters) == 1 and letters == set(wording.ALONE.findall(text)):
            yield Claim(letters.pop(), "answer", len(text) - len(sentence))

    # --- what the text names at a position

    def answer_at(self, position: int) -> tuple[list[str], str, int]:
        """(letters, tier, end) of the answer at `position`: an option's text, or one or more letters."""
        text, start = self.text, match_end(wording.OPENERS, self.text, position)
        if options := self.options_at(position) or self.options_at(start):  # "(1/2) / (1/3)" may be an option
            end = max(end for _, end in options)
            letters = {letter for letter, option_end in options if option_end == end}
            named = wording.LETTER_AFTER_TEXT.match(text, end)
            if named and (named[1] or named[2]) in self.item.letters:
                return sorted({*letters, named[1] or named[2]}), "answer", named.end()
            return sorted(letters), "option", end
        letter, end = text[start : start + 1], start + 1
        if not (letter.isascii() and letter.isalpha()):
            return [], "answer", end
        option_text = self.patterns.texts.get(letter.upper())
        if option_text and option_text.match(text, match_end(wording.SEPARATORS, text, end)):
            return [letter.upper()], "answer", end
        if (
            not wording.AFTER_LETTER.match(text, end)
            or wording.GENUS.match(text, end)  # "C. difficile"
            # "the answer is a, in my view": as likely an article as a letter
            or (letter.islower() and not wording.AFTER_LOWERCASE.match(text, end))
            or (letter == "a" and text[start - 3 : start] == "is " and wording.LINE_END.match(text, end))
        ):
            return [], "answer", end
        letters = [self.unless_ambiguous(letter.upper())]
        while joined := wording.JOINED_LETTER.match(text, end):
            end = joined.end()
            if wording.AFTER_LETTER.match(text, end):
                letters.append(joined[1])
        return letters, "answer", end

    def options_at(self, position: int) -> list[tuple[str, int]]:
        """(letter, end) of each option whose text begins at `position`."""
        options, text, texts = [], self.text, self.patterns.texts
        for letter, pattern in texts.items():
            match = pattern.match(text, position)
            if not match or (len(match[0]) == 1 and match[0].upper() in self.item.letters):
                continue
            end = match.end()
            after = wording.AFTER_TEXT.match(text, end)
            if not after or (match[0].isdecimal() and wording.NUMBERING.match(text, end)):
                continue
            if not (after["comma"] and any(option.match(text, after.end()) for option in texts.values())):
                options.append((letter, end))
        return options

    def skip_option_text(self, position: int, letter: str) -> int:
        """The end of `letter`'s option text if it is at `position`; otherwise `position`."""
        pattern = self.patterns.texts.get(letter)
        match = pattern and pattern.match(self.text, match_end(wording.PUNCTUATION, self.text, position))
        return match.end() if match else position

    # --- whether a claim counts

    def introduces_answer(self, phrase: re.Match, tier: str) -> bool:
        """Whether the phrase introduces the answer to the question, not an intermediate finding."""
        phrase_text, target = phrase[0].lower(), self.text[phrase.end() : phrase.end() + 1]
        if self.is_negative and re.match(r"(?:correct|right|true) statement", phrase_text):
            return False
        if tier == "answer":
            named = wording.NAMED_BY_LETTER.search(phrase_text)
            return not phrase["described"] or not (named or target.islower())
        if phrase_text.startswith("choice") and self.text[: phrase.start()].lower().endswith("of "):
            # "the drug of choice is"
            return not self.is_negative and "choice" in self.item.question.lower()
        return phrase["it"] is None and (not phrase["described"] or self.is_asked(phrase["described"]))

    def is_asked(self, description: str) -> bool:
        """Whether the question contains the words of a description such as "most likely diagnosis"."""
        words = set(_WORDS.findall(description.lower())) - _STOP_WORDS
        return bool(words) and words <= set(_WORDS.findall(self.item.question.lower()))

    def is_withdrawn(self, position: int, letter: str) -> bool:
        """Whether the text after a claim of `letter` and its option text withdraws or questions the claim."""
        position = self.skip_option_text(position, letter)
        patterns = [wording.NO, wording.QUESTIONED, wording.NOT_THE_ANSWER]
        if not self.is_negative:
            patterns.append(wording.WRONG)
        return any(pattern.match(self.text, position) for pattern in patterns)

    def is_rejected(self, position: int, letter: str) -> bool:
        """As is_withdrawn, for a letter or option at the start of an answer, which any negation rejects."""
        if self.is_withdrawn(position, letter):
            return True
        if self.is_negative or self.item.options == pubmedqa.OPTIONS:  # "No, it does not" answers no
            return False
        return bool(wording.REJECTED.match(self.text, self.skip_option_text(position, letter)))

    def rejects_option(self, position: int, letter: str) -> bool:
        """Whether the rest of the line, after the option's text, rejects the option."""
        position = self.skip_option_text(position, letter)
        return bool(wording.REJECTS.search(self.text[position : position + 300].split("\n")[0]))

    def is_cut_option(self, position: int) -> bool:
        """Whether the answer was truncated at `position` where more than one option could continue it."""
        prefix = comparison_key(self.text[position:]).rstrip(" ,…")
        options = map(comparison_key, self.item.options)
        return self.cut and sum(option.startswith(prefix) for option in options) > 1

    def unless_ambiguous(self, letter: str) -> str:
        """The letter, or "" if it is also another option's text (blood groups, vitamins)."""
        options = zip(self.item.letters, self.item.options, strict=True)
        others = [comparison_key(text) for option, text in options if option != letter]
        return "" if letter.lower() in others else letter
