"""Prompts: the exam question, its answer, and a record as chat messages."""

import hashlib

import pytest

from medkit import MedkitError, prompts, pubmedqa
from medkit.records import ConsumerQuery, MCQItem

ITEM = MCQItem("1", "medqa", "Which is it?", ("one", "two", "three", "four"), "C")
ABSTRACT = MCQItem("2", "pubmedqa", "Does it?", ("yes", "no", "maybe"), "B", context="It was tried. It did.")


def test_the_exam_prompt():
    assert prompts.mcq_user(ITEM) == (
        "Question:\nWhich is it?\n\nOptions:\nA) one\nB) two\nC) three\nD) four"
    )
    assert prompts.mcq_user(ABSTRACT) == (
        "Context:\nIt was tried. It did.\n\nQuestion:\nDoes it?\n\nOptions:\nA) yes\nB) no\nC) maybe"
    )
    assert prompts.mcq_answer(ITEM, "letter") == "C"
    assert prompts.mcq_answer(ITEM, "letter_and_text") == "Answer: C) three"
    roles = [turn["role"] for turn in prompts.messages(ITEM)]
    assert roles == ["system", "user", "assistant"]
    assert prompts.messages(ITEM)[0]["content"] == prompts.INSTRUCTION
    query = ConsumerQuery("5", "icliniq", " It hurts. ", "Rest.")
    assert prompts.messages(query)[1:] == [{"role": "user", "content": "It hurts."}]  # no reference in it


def test_the_instruction_is_the_papers(real_data):
    paper = (real_data.parent / "paper" / "med-nirvana.txt").read_text(encoding="utf-8")
    assert prompts.INSTRUCTION in paper


def test_the_instruction_has_not_changed():
    digest = hashlib.sha256(prompts.INSTRUCTION.encode()).hexdigest()
    assert digest.startswith("376a1cc4b3439ffc")


@pytest.mark.parametrize(("decision", "letter"), [("yes", "A"), ("no", "B"), ("maybe", "C")])
def test_pubmedqa_both_ways(decision, letter):
    assert pubmedqa.to_letter(decision) == letter
    assert pubmedqa.to_decision(letter) == decision
    item = MCQItem("1", "pubmedqa", "Does it?", ("yes", "no", "maybe"), letter, context="It was.")
    assert f"{letter}) {decision}" in prompts.mcq_user(item)


@pytest.mark.parametrize("letter", ["D", "", "yes"])
def test_no_decision_but_three(letter):
    with pytest.raises(MedkitError, match="is not a PubMedQA letter"):
        pubmedqa.to_decision(letter)


@pytest.mark.parametrize("decision", ["Yes", "", "unclear", "A"])
def test_no_letter_for_another_decision(decision):
    with pytest.raises(MedkitError, match="is not a PubMedQA decision"):
        pubmedqa.to_letter(decision)
