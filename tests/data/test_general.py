"""The built-in general questions and texts: one right option each, nothing medical, nothing that trains."""

import json
import re
import tomllib
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from medkit.data import builtin
from medkit.data.builtin import general
from medkit.records import LETTERS, MCQItem
from medkit.text_keys import normalize

CARD = Path(__file__).resolve().parents[2] / "data_cards" / "demo.md"
# Stems of words that a medical question or text would hardly do without.
MEDICAL = re.compile(
    r"\b(anatom|disease|doctor|drug|fever|hospital|illness|infect|medic|nurse|pains?\b|patient|pills?\b|physician"
    r"|surg|symptom|therap|treatment|virus|vitamin)",
    re.I,
)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def test_128_questions_of_eight_subjects_in_the_form_of_exam_questions():
    items = general.questions()
    assert all(isinstance(item, MCQItem) and item.source == "general" for item in items)
    assert len({item.id for item in items}) == len({item.question for item in items}) == len(items) == 128
    assert set(Counter(item.group for item in items).values()) == {16}  # 8 x 16 = 128
    assert items == general.questions()  # nothing is drawn


def test_four_distinct_options_and_every_letter_right_equally_often():
    items = general.questions()
    assert all(len(item.options) == 4 and not item.repeats_an_option for item in items)
    assert Counter(item.answer for item in items) == dict.fromkeys(LETTERS, 32)  # 4 x 32 = 128
    by_subject = Counter((item.group, item.answer) for item in items)
    assert set(by_subject.values()) == {4}


def test_the_letter_points_at_the_written_answer():
    path = Path(general.__file__).parent / "general.toml"
    written = tomllib.loads(path.read_text(encoding="utf-8"))["question"]
    for one, item in zip(written, general.questions(), strict=True):
        assert item.options[LETTERS.index(item.answer)] == one["answer"]
        assert sorted(item.options) == sorted([one["answer"], *one["others"]])


def test_the_longest_option_is_not_a_way_to_answer():
    """Chance is 1/4; of 128 questions its standard error is 0.04."""
    items = general.questions()
    longest = sum(max(item.options, key=len) == item.options[LETTERS.index(item.answer)] for item in items)
    assert longest / len(items) < 0.37


def test_forty_short_declarative_texts():
    texts = general.texts()
    assert len(set(texts)) == len(texts) == 40
    for text in texts:
        assert 15 <= len(text.split()) <= 40
        assert text.endswith(".") and "?" not in text and text.count(".") >= 2
        assert text.isascii()


@pytest.mark.parametrize("kind", ["questions", "texts"])
def test_nothing_is_medical_or_arithmetic(kind):
    texts = general.texts()
    if kind == "questions":
        texts = [text for item in general.questions() for text in (item.question, *item.options)]
        assert not any(re.search(r"\d\s*[-+*/x]\s*\d|how many|sum of", text) for text in texts)
    assert not [text for text in texts if MEDICAL.search(text)]


@pytest.fixture(scope="module")
def corpus_texts(tmp_path_factory) -> list[str]:
    found = []
    for part in ("tune", "report"):
        for path in builtin.write(tmp_path_factory.mktemp(part), part=part).rglob("*.jsonl"):
            found += [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [text for row in found for text in _strings(row)]


def _strings(value) -> list[str]:
    if isinstance(value, dict | list):
        return [s for part in (value.values() if isinstance(value, dict) else value) for s in _strings(part)]
    return [value] if isinstance(value, str) else []


def test_no_eight_words_in_a_row_are_shared_with_the_corpus(corpus_texts):
    def grams(texts):
        split = map(words, texts)
        return {tuple(text[i : i + 8]) for text in split for i in range(len(text) - 7)}

    items = general.questions()
    ours = grams([*general.texts(), *(text for item in items for text in (item.question, *item.options))])
    assert len(ours) > 500 and not ours & grams(corpus_texts)


def test_no_question_is_a_training_question(corpus_texts):
    asked = {normalize(text) for text in corpus_texts}
    assert not asked & {normalize(item.question) for item in general.questions()}


def test_text_is_plain():
    for item in general.questions():
        for text in (item.question, *item.options):
            assert text.isascii() and text == text.strip() and "  " not in text
            assert not any(one == two for one, two in pairwise(words(text)))
        assert item.question.endswith(("?", "'", "..."))


def test_the_card_gives_the_counts():
    card = " ".join(CARD.read_text("utf-8").split())
    assert "128 questions" in card and "40 short texts" in card
