"""Answers in words: a table of real forms and of traps, and that nothing crashes or guesses."""

import random
import re
import time
import unicodedata
from dataclasses import asdict, replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medkit.evaluate import answer_parsing, letter_scoring, mcq
from medkit.records import MCQItem

DRUGS = MCQItem("1", "medqa", "Which drug?", ("Aspirin", "Warfarin", "Heparin", "None of the above"), "C")
BUGS = MCQItem("2", "medqa", "Which germ?", ("E. coli", "C. difficile", "B. burgdorferi", "S. aureus"), "B")
STUDY = MCQItem("3", "pubmedqa", "Does it?", ("yes", "no", "maybe"), "A", context="An abstract.")
TWICE = MCQItem("4", "medmcqa", "Which?", ("Lead", "Lead", "Tin", "Zinc"), "A")
GROUPS = MCQItem("6", "medqa", "Which blood group?", ("A", "B", "AB", "O"), "D")
COMMA = MCQItem("5", "medqa", "What?", ("Aspirin", "Aspirin, heparin", "Vitamin C", "a beta blocker"), "B")
DOSES = MCQItem("7", "medqa", "How many?", ("1", "2", "3", "4"), "B")
RATIOS = MCQItem("8", "medqa", "Which ratio?", ("1:2", "1:4", "2", "3"), "B")

# (item, the model's whole answer, letter, tier)
TABLE = [
    # one letter, however it is dressed
    (DRUGS, "C", "C", "letter"),
    (DRUGS, " c ", "C", "letter"),
    (DRUGS, "C.", "C", "letter"),
    (DRUGS, "(C)", "C", "letter"),
    (DRUGS, "[C]", "C", "letter"),
    (DRUGS, "**C**", "C", "letter"),
    (DRUGS, "`C`", "C", "letter"),
    (DRUGS, "“C”", "C", "letter"),
    (DRUGS, "$\\boxed{C}$", "C", "letter"),
    (DRUGS, "Option C", "C", "letter"),
    (DRUGS, "C\n\nExplanation:\nA) is an antiplatelet drug.\nB) acts slowly.", "C", "letter"),
    (DRUGS, "C\r\nbecause it acts at once", "C", "letter"),
    (DRUGS, "Ｃ", "C", "letter"),  # full width, as a Chinese keyboard writes it
    (DRUGS, "C) Heparin", "C", "letter"),
    (DRUGS, "C. Heparin", "C", "letter"),
    (DRUGS, "C: Heparin", "C", "letter"),
    (DRUGS, "c) heparin", "C", "letter"),
    (DRUGS, "**C)** Heparin, because it acts at once.", "C", "letter"),
    (DRUGS, "C) Aspirin", "C", "letter"),  # a wrong text behind the letter does not change the letter
    (STUDY, "A", "A", "letter"),
    (STUDY, "C) maybe", "C", "letter"),
    # "answer", and the letter after it
    (DRUGS, "Answer: C", "C", "answer"),
    (DRUGS, "Answer: C) Heparin", "C", "answer"),
    (DRUGS, "answer: c", "C", "answer"),
    (DRUGS, "Answer:\nC", "C", "answer"),
    (DRUGS, "**Answer:** C", "C", "answer"),
    (DRUGS, "**Answer: C**", "C", "answer"),
    (DRUGS, "The answer is C.", "C", "answer"),
    (DRUGS, "The correct answer is (C) Heparin.", "C", "answer"),
    (DRUGS, "The correct answer is option C, which acts at once.", "C", "answer"),
    (DRUGS, "The best option is C", "C", "answer"),
    (DRUGS, "The answer is most likely C.", "C", "answer"),
    (DRUGS, "The answer is C because it acts at once.", "C", "answer"),
    (DRUGS, "Final answer: $\\boxed{C}$", "C", "answer"),
    (DRUGS, "<answer>C</answer>", "C", "answer"),
    (DRUGS, '{"answer": "C"}', "C", "answer"),
    (
        DRUGS,
        "Let us think. A patient with a clot needs a fast drug.\nTherefore, the answer is C.",
        "C",
        "answer",
    ),
    (DRUGS, "A) Aspirin\nB) Warfarin\nC) Heparin\nD) None of the above\n\nAnswer: C", "C", "answer"),
    (DRUGS, "I choose C.", "C", "answer"),
    (DRUGS, "Option C is correct.", "C", "answer"),
    (DRUGS, "Answer: A. Aspirin. To repeat, the answer is A.", "A", "answer"),
    (BUGS, "The answer is B. C. difficile", "B", "answer"),
    (BUGS, "Answer: C. B. burgdorferi", "C", "answer"),
    (DRUGS, "C - Heparin", "C", "letter"),
    (DRUGS, "Option C: Heparin", "C", "letter"),
    (DRUGS, "Ans: C", "C", "answer"),
    (DRUGS, "A is wrong. Answer: C", "C", "answer"),
    (GROUPS, "O", "D", "option"),
    # rejected, doubted, asked for, or two at once
    (DRUGS, "AnswerA", "", "unparsed"),
    (DRUGS, "(C) is incorrect", "", "unparsed"),
    (DRUGS, "C) Heparin is wrong", "", "unparsed"),
    (DRUGS, "C) Heparin isn't given here.", "", "unparsed"),
    (DRUGS, "I don't think the answer is C", "", "unparsed"),
    (DRUGS, "I doubt the answer is C", "", "unparsed"),
    (DRUGS, "It is false that the answer is C", "", "unparsed"),
    (DRUGS, "Is the answer C?", "", "unparsed"),
    (DRUGS, "A) Aspirin is not right. The answer is heparin", "C", "option"),
    (DRUGS, "C\nD", "", "unparsed"),
    (STUDY, "yes\nno", "", "unparsed"),
    (STUDY, "Yes. No.", "", "unparsed"),
    (STUDY, "No, I cannot answer", "", "unparsed"),
    (DRUGS, "Aspirin? No.", "", "unparsed"),
    (DRUGS, "Heparin: no", "", "unparsed"),
    (DRUGS, "Heparin\nWarfarin", "", "unparsed"),
    (DRUGS, "I don't think option C is correct", "", "unparsed"),
    (DRUGS, "It is not true that option C is correct", "", "unparsed"),
    (DRUGS, "If option C is correct then heparin is given", "", "unparsed"),
    (DRUGS, "Not sure whether option B is right", "", "unparsed"),
    (DRUGS, "C. Incorrect.", "", "unparsed"),
    (DRUGS, "C) No.", "", "unparsed"),
    (DRUGS, "C) Heparin? No.", "", "unparsed"),
    (DRUGS, "C) Heparin cannot be right", "", "unparsed"),
    (DRUGS, "(C) does not apply", "", "unparsed"),
    (DRUGS, "C\nis wrong", "", "unparsed"),
    (DRUGS, "B) Warfarin would be harmful. The best is heparin.", "", "unparsed"),
    (DRUGS, "The answer, C, is wrong.", "", "unparsed"),
    (DRUGS, "Answer: C - this is incorrect", "", "unparsed"),
    (DRUGS, "The answer is C? No.", "", "unparsed"),
    (DRUGS, "I select option A as wrong", "", "unparsed"),
    (DRUGS, "Answer: (A) (C)", "", "unparsed"),
    (DRUGS, "Answer: A; C", "", "unparsed"),
    (DRUGS, "A is correct, but C is more correct", "", "unparsed"),
    (DRUGS, "Heparin. No, aspirin.", "", "unparsed"),
    (STUDY, "yes. Actually no", "", "unparsed"),
    # what is said of the others, and an option that is itself a "no", take nothing back
    (DRUGS, "The answer is C because warfarin is not safe.", "C", "answer"),
    (DRUGS, "C) Heparin, since aspirin is wrong", "C", "letter"),
    (DRUGS, "Answer: C (Heparin)", "C", "answer"),
    (STUDY, "B) no", "B", "letter"),
    (STUDY, "Answer: B) No", "B", "answer"),
    (DRUGS, "The correct answer is C) Heparin. Warfarin is not used here.", "C", "answer"),
    (DRUGS, "C. Heparin is the drug of choice; aspirin is not.", "C", "letter"),
    (DRUGS, "Answer: C\n\nExplanation: A is incorrect because it acts slowly.", "C", "answer"),
    (DRUGS, "The answer is C. No other option fits.", "C", "answer"),
    (DRUGS, "C) Heparin - not warfarin", "C", "letter"),
    (DRUGS, "C\n\nNo further explanation.", "C", "letter"),
    (DRUGS, "Answer: D\nNo treatment is needed.", "D", "answer"),
    (DRUGS, "The correct answer is C, the others are wrong.", "C", "answer"),
    (DRUGS, "Heparin. Warfarin is not safe.", "C", "option"),
    (DRUGS, "Even if untreated, the correct answer is C.", "C", "answer"),
    (STUDY, "No. It is not associated.", "B", "option"),
    (STUDY, "No, it doesn't", "B", "option"),
    (STUDY, "B) no, it does not help.", "B", "letter"),
    (STUDY, "Yes. Surgery is not inferior", "A", "option"),
    (STUDY, "A. Yes, no complications were seen", "A", "letter"),
    # numbers stay whole
    (DOSES, "2.5 mg", "", "unparsed"),
    (DOSES, "1,500", "", "unparsed"),
    (DOSES, "1.5 to 2", "", "unparsed"),
    (DOSES, "2", "B", "option"),
    (DOSES, "2.", "B", "option"),
    (RATIOS, "2:1", "", "unparsed"),
    (RATIOS, "1:4", "B", "option"),
    # an option's text
    (DRUGS, "Heparin", "C", "option"),
    (DRUGS, "heparin.", "C", "option"),
    (DRUGS, "The answer is heparin.", "C", "option"),
    (DRUGS, "None of the above", "D", "option"),
    (DRUGS, "Heparin, since it acts at once", "C", "option"),
    (BUGS, "C. difficile", "B", "option"),
    (BUGS, "The answer is C. difficile.", "B", "option"),
    (BUGS, "B. burgdorferi", "C", "option"),
    (BUGS, "S. aureus", "D", "option"),
    (COMMA, "Aspirin, heparin", "B", "option"),
    (COMMA, "The answer is a beta blocker", "D", "option"),
    (COMMA, "Vitamin C", "C", "option"),
    (STUDY, "Yes", "A", "option"),
    (STUDY, "yes, there was no difference in the other group", "A", "option"),
    (STUDY, "No.", "B", "option"),
    (STUDY, "The answer is maybe.", "C", "option"),
    # nothing that names one option
    (DRUGS, "", "", "unparsed"),
    (DRUGS, " \n\t ", "", "unparsed"),
    (DRUGS, "...", "", "unparsed"),
    (DRUGS, "I cannot answer that.", "", "unparsed"),
    (DRUGS, "A patient with a clot needs care.", "", "unparsed"),  # an article
    (DRUGS, "The answer is A patient's own choice", "", "unparsed"),
    (DRUGS, "Answer: Aspirins are many", "", "unparsed"),  # as_released reads this as A
    (DRUGS, "Answer: C-reactive protein", "", "unparsed"),
    (DRUGS, "Answer: C. difficile", "", "unparsed"),
    (DRUGS, "Answer: B12", "", "unparsed"),
    (DRUGS, "Vitamin C", "", "unparsed"),
    (DRUGS, "Hepatitis B", "", "unparsed"),
    (DRUGS, "E", "", "unparsed"),  # no such option
    (DRUGS, "Answer: E", "", "unparsed"),
    (STUDY, "D", "", "unparsed"),  # three options only
    (STUDY, "Answer: D", "", "unparsed"),
    (DRUGS, "С", "", "unparsed"),  # Cyrillic Es
    (DRUGS, "Α", "", "unparsed"),  # Greek Alpha
    (DRUGS, "Ответ: гепарин", "", "unparsed"),
    (DRUGS, "答案是肝素", "", "unparsed"),
    (DRUGS, "الجواب هو الهيبارين", "", "unparsed"),
    (DRUGS, "AB", "", "unparsed"),
    (DRUGS, "A, B", "", "unparsed"),
    (DRUGS, "A/C", "", "unparsed"),
    (DRUGS, "Both A and C", "", "unparsed"),
    (DRUGS, "Answer: A and C", "", "unparsed"),
    (DRUGS, "Answer: A or C", "", "unparsed"),
    (DRUGS, "Answer: A, C", "", "unparsed"),
    (DRUGS, "What is the answer? A, B, C or D?", "", "unparsed"),
    (DRUGS, "Neither A nor B", "", "unparsed"),
    (DRUGS, "The answer is not C.", "", "unparsed"),
    (DRUGS, "The wrong answer is C.", "", "unparsed"),
    (DRUGS, "If the answer is C, then why?", "", "unparsed"),
    (DRUGS, "Answer: A. No, wait. Answer: C", "", "unparsed"),  # two claims: nobody picks
    (DRUGS, "A\nAnswer: C", "", "unparsed"),
    (DRUGS, "A) Aspirin\nB) Warfarin\nC) Heparin\nD) None of the above", "", "unparsed"),
    (DRUGS, "A) Aspirin B) Warfarin C) Heparin", "", "unparsed"),
    (DRUGS, "Aspirin, heparin", "", "unparsed"),
    (DRUGS, "It is not aspirin", "", "unparsed"),
    (TWICE, "Lead", "", "unparsed"),  # the text of two options
    (TWICE, "B", "B", "letter"),
    (STUDY, "yes, no", "", "unparsed"),
    (STUDY, "Yesterday there was no difference", "", "unparsed"),
    (DRUGS, "<|im_end|>", "", "unparsed"),
    (DRUGS, "\x00\ud800", "", "unparsed"),
]


@pytest.mark.parametrize(("item", "text", "letter", "tier"), TABLE, ids=[repr(row[1])[:40] for row in TABLE])
def test_table(item, text, letter, tier):
    parsed = answer_parsing.parse(text, item)
    assert (parsed.letter, parsed.tier) == (letter, tier)


def test_table_is_long_enough_and_uses_every_tier():
    assert len(TABLE) >= 60
    assert {row[3] for row in TABLE} == set(answer_parsing.TIERS)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is a", ""),  # of "a beta blocker"
        ("The correct answer is", ""),
        ("A)\n\nThe correct answer is", ""),  # and would have said which
        ("C", ""),  # of "Clearly"
        ("C) Heparin is the right dr", "C"),
        ("The answer is C, since hepa", "C"),
        ("Answer: C\n\nExplanation: it ac", "C"),
    ],
)
def test_an_answer_that_was_cut_off(text, letter):
    assert answer_parsing.parse(text, DRUGS, cut=True).letter == letter


def test_first_and_last_letter():
    disagrees = {
        text: answer_parsing.parse(text, DRUGS).first_last_disagree
        for text in (
            "C",
            "",
            "Not A, so C",
            "A patient takes C",
            "C, and again C",
            "C-reactive B12 A",
            "E then C",
        )
    }
    assert [text for text, differs in disagrees.items() if differs] == ["Not A, so C"]


def test_letters_outside_the_item_do_not_count_as_first_or_last():
    assert not answer_parsing.parse("A, not D", STUDY).first_last_disagree  # a PubMedQA item has no D
    assert answer_parsing.parse("A, not D", DRUGS).first_last_disagree


pieces = st.sampled_from(
    [
        "A",
        "B",
        "C",
        "D",
        "E",
        "answer",
        "Answer:",
        " is ",
        "not",
        "\n",
        ")",
        ". ",
        "(",
        "**",
        "or",
        "and",
        ", ",
        "option",
        "heparin",
        "Aspirin",
        "yes",
        "no",
        "maybe",
        "Lead",
        "C. difficile",
        "because",
        "\\boxed{",
        "}",
        "  ",
        "<answer>",
        "the",
        "correct",
        "Ｃ",
        "С",
        "\u0301",
        "ß",
    ]
)
texts = st.one_of(
    st.text(), st.lists(pieces, max_size=12).map(" ".join), st.lists(pieces, max_size=12).map("".join)
)


@settings(max_examples=200, deadline=None)
@given(texts, st.sampled_from([DRUGS, BUGS, STUDY, TWICE, COMMA, DOSES, RATIOS]))
def test_no_string_crashes_it_or_makes_it_guess(text, item):
    parsed = answer_parsing.parse(text, item)
    assert parsed.tier in answer_parsing.TIERS
    assert (parsed.letter == "") == (parsed.tier == "unparsed")
    seen = unicodedata.normalize("NFKC", text)
    if parsed.tier in ("letter", "answer"):  # the letter is in the text on its own; _A_ is emphasis
        assert re.search(rf"(?<![^\W_]){parsed.letter}(?![^\W_])", seen, re.IGNORECASE)
    if parsed.tier == "option":  # so does the option's text, and it is one option's only
        option = item.options["ABCD".index(parsed.letter)]
        assert option.casefold() in re.sub(r"\s+", " ", seen.casefold())
        assert [o.casefold() for o in item.options].count(option.casefold()) == 1
    # what is right plays no part
    for gold in item.letters:
        other = MCQItem(item.id, item.source, item.question, item.options, gold, item.context)
        assert answer_parsing.parse(text, other) == parsed


@given(st.text(alphabet=st.characters(blacklist_categories=("Lu", "Ll", "Lt", "Lm", "Lo", "Nl", "So"))))
def test_without_letters_there_is_no_answer(text):
    if not any(character.isalpha() for character in unicodedata.normalize("NFKC", text)):
        assert answer_parsing.parse(text, DRUGS).letter == ""


@pytest.mark.parametrize(
    "text",
    [
        "x" * 100_000,
        " " * 100_000 + "C",
        "*" * 100_000,
        "answer " * 15_000,
        "Answer: A " * 10_000,
        "A) " * 33_000,
        "A\n" * 50_000,
        "((((" * 25_000,
        "answer: " + " " * 99_000 + "C",
        "B, " * 33_000,
        "answer is " * 10_000,
        "heparin. " * 11_000,
        "\ufdfa" * 10_000,
    ],
    ids=range(13),
)
def test_long_answers_take_no_long_time(text):
    start = time.process_time()
    answer_parsing.parse(text, DRUGS)
    assert time.process_time() - start < 10  # a quadratic rule takes minutes


def test_random_bytes_decoded_do_not_crash_it():
    source = random.Random(0)
    for _ in range(200):
        answer_parsing.parse(source.randbytes(300).decode("utf-8", "replace"), DRUGS)


@pytest.mark.parametrize(
    ("output", "letter"),
    [
        ("Answer: C) Heparin", "C"),
        ("C", ""),  # the rule wants the words
        ("answer: C", ""),  # and wants them so written
        ("Answer: C ... Answer: A", ""),  # two letters: wrong
        ("Answer: C ... Answer: C", "C"),
        ("Answer: Aspirin", "A"),  # the substring, not the letter
        ("Answer: E", ""),
        ("", ""),
    ],
)
def test_the_released_rule(output, letter):
    assert answer_parsing.as_released("Question:\nWhich drug?\nAnswer:", output, DRUGS) == letter


def test_the_released_rule_reads_the_prompt_too():
    assert answer_parsing.as_released("Example. Answer: A\n", "Answer: C", DRUGS) == ""
    assert answer_parsing.as_released("Options: C) x\nAnswer:", " C", DRUGS) == "C"  # prompt + output, joined


def protocol_summary(scored, generated, released):
    """Of answers to DRUGS by one model."""
    items = [replace(DRUGS, id=str(number)) for number in range(len(scored))]
    outcomes = [letter_scoring.Outcome(letter, ()) for letter in scored]
    words = pd.DataFrame([asdict(parsed) for parsed in generated]).assign(released=released, finish="stopped")
    words = words.assign(model="base", dataset="medqa", item_id=[item.id for item in items], gold="C")
    (summary,) = mcq.protocols(letter_scoring.frame("base", items, outcomes), words)
    return summary


def test_protocols_side_by_side():
    """Four items, gold C each: scored C C A C (3 right), generated C A - C (2 right, 1 unparsed)."""
    answers = ["C", "Answer: A", "no idea", "Heparin"]
    generated = [answer_parsing.parse(text, DRUGS) for text in answers]
    released = [answer_parsing.as_released("", text, DRUGS) for text in answers]  # "", A, "", "": none right
    summary = protocol_summary(["C", "C", "A", "C"], generated, released)
    assert summary["n"] == 4
    assert summary["correct"] == {"scored": 3, "generated": 2, "released": 0}
    assert summary["accuracy"] == {"scored": 3 / 4, "generated": 2 / 4, "released": 0}  # never a smaller n
    assert summary["unparsed"] == {"scored": 0, "generated": 1, "released": 3}
    assert [summary["tiers"][tier]["count"] for tier in answer_parsing.TIERS] == [1, 1, 1, 1]
    assert summary["tiers"]["unparsed"]["share"] == 1 / 4
    # generated C A - C against C C A C: the first and the last, 2 of 4; released A for the second only: 0
    assert summary["agreement_with_scored"] == {"generated": 2 / 4, "released": 0}


def test_two_unparsed_are_no_agreement():
    nothing = answer_parsing.parse("", DRUGS)
    assert protocol_summary([""], [nothing], [""])["agreement_with_scored"] == {"generated": 0, "released": 0}
