"""Preparation: rows as the prompts give them, cut and counted, cached by content, whole or absent."""

import os

import pytest
from conftest import make_tokenizer

from medkit import prompts
from medkit.records import Dialogue, MCQItem, Turn
from medkit.runs import machine
from medkit.train import tokenization

SETTINGS = {"target": "letter", "loss_on": "answer", "max_length": 2048, "progress": False}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def item(number, words=3):
    return MCQItem(str(number), "medqa", "why " * words + "?", ("a", "b", "c", "d"), "ABCD"[number % 4])


def talk(*texts):
    turns = tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))
    return Dialogue("1", "notechat", turns, note="a note")


RECORDS = [item(0), talk("It hurts.", "Where?"), item(1, words=30)]


def test_rows_are_those_of_the_prompts_module(tokenizer, tmp_path):
    rows = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    ids, labels = prompts.training_ids(tokenizer, chat, [prompts.messages(record) for record in RECORDS])
    assert rows["input_ids"][:] == ids
    assert rows["labels"][:] == labels
    assert rows["length"][:] == [len(row) for row in ids]
    # A letter and its end-of-turn token; "Where?" is 6 bytes, and one byte a token here.
    assert rows["supervised"][:] == [2, 7, 2]
    assert rows["cut"][:] == [0, 0, 0]


def test_more_rows_than_a_batch_keep_their_order(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "BATCH", 4)
    records = [item(n, words=n + 1) for n in range(10)]  # 4 + 4 + 2
    rows = tokenization.prepare(records, tokenizer, cache=tmp_path, **SETTINGS)
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    assert rows["input_ids"][:] == prompts.training_ids(tokenizer, chat, map(prompts.messages, records))[0]


def test_long_rows_are_cut_and_counted(tokenizer, tmp_path):
    whole = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    limit = whole["length"][0]  # the first row just fits
    cut = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS | {"max_length": limit})
    assert cut["length"][:] == [min(n, limit) for n in whole["length"]]
    assert cut["cut"][:] == [n - kept for n, kept in zip(whole["length"], cut["length"], strict=True)]
    assert cut["input_ids"][:] == [row[:limit] for row in whole["input_ids"]]
    assert cut["labels"][:] == [row[:limit] for row in whole["labels"]]
    assert cut["supervised"][:] == [2, 7, 0]  # the third row's answer stood behind the limit


@pytest.mark.parametrize(
    "change",
    [{"target": "letter_and_text"}, {"loss_on": "text"}, {"max_length": 64}],
    ids=lambda change: next(iter(change)),
)
def test_another_setting_is_another_cache_entry(tokenizer, tmp_path, change):
    one = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    other = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS | change)
    assert tokenization.key(one) != tokenization.key(other)


def test_another_text_order_or_template_is_another_cache_entry(tokenizer, tmp_path):
    chatml = make_tokenizer()
    chatml.chat_template = prompts.CHATML
    asked = [
        (RECORDS, tokenizer),
        (RECORDS[::-1], tokenizer),
        (RECORDS[:2], tokenizer),
        ([item(0, words=4), *RECORDS[1:]], tokenizer),
        ([RECORDS[0], talk("It hurts.", "Where?!"), RECORDS[2]], tokenizer),
        (RECORDS, chatml),
    ]
    keys = {tokenization.key(tokenization.prepare(r, t, cache=tmp_path, **SETTINGS)) for r, t in asked}
    assert len(keys) == len(asked)


def test_another_wording_of_the_prompt_is_another_cache_entry(tokenizer, tmp_path, monkeypatch):
    first = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    monkeypatch.setattr(prompts, "mcq_user", lambda item: f"Question: {item.question}")
    second = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    assert tokenization.key(first) != tokenization.key(second)


def test_equal_rows_are_found_again_by_equal_but_other_objects(tokenizer, tmp_path, monkeypatch):
    first = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    again = [item(0), talk("".join(["It ", "hurts."]), "Where?"), item(1, words=30)]
    monkeypatch.setattr(tokenization, "_write", lambda *_: pytest.fail("tokenized again"))
    second = tokenization.prepare(again, make_tokenizer(), cache=tmp_path, **SETTINGS)
    assert tokenization.key(first) == tokenization.key(second)
    assert first._fingerprint == second._fingerprint
    assert second["input_ids"][:] == first["input_ids"][:]


def test_an_interrupted_preparation_is_not_taken_for_a_whole_one(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokenization, "BATCH", 2)
    real, calls = prompts.token_arrays, []

    def fails_at_the_second_batch(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    # The check of the template tokenizes too, before the first batch.
    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    monkeypatch.setattr(prompts.ChatFormat, "from_tokenizer", lambda _: chat)
    monkeypatch.setattr(prompts, "token_arrays", fails_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    assert list((tmp_path / "prepared").iterdir()) == []
    monkeypatch.setattr(prompts, "token_arrays", real)
    rows = tokenization.prepare(RECORDS, tokenizer, cache=tmp_path, **SETTINGS)
    assert len(rows) == 3
    assert [path.name for path in (tmp_path / "prepared").iterdir()] == [tokenization.key(rows)]


def test_no_rows(tokenizer, tmp_path):
    rows = tokenization.prepare([], tokenizer, cache=tmp_path, **SETTINGS)
    assert len(rows) == 0
    assert rows.column_names == ["input_ids", "labels", "length", "cut", "supervised"]


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path))
    assert machine.cache_dir() == tmp_path
    monkeypatch.delenv("MEDKIT_CACHE")
    assert machine.cache_dir().parts[-2:] == (".cache", "medkit")
    assert os.path.isabs(machine.cache_dir())
