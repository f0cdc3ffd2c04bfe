"""General ability: the loss of a text by hand, whatever the batch; perplexity and its comparison."""

import math

import pandas as pd
import pytest
import torch
from conftest import make_tiny_llama

from medkit import MedkitError
from medkit.data.builtin import general as written
from medkit.evaluate import general
from medkit.evaluate.general import Loss
from medkit.evaluate.letter_scoring import Outcome

TEXTS = ["Tea is a leaf.", "A map.", "x", *(f"{'Salt was once dear. ' * n}" for n in range(1, 9))]


def alone(model, tokenizer, text) -> float:
    """Nats, from Transformers' own loss of one unpadded text."""
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids]])
    with torch.no_grad():
        return float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)


def test_a_text_s_loss_is_transformers_own_in_whatever_batch(tiny_llama):
    found = general.losses(*tiny_llama, TEXTS, None, "")
    assert [one.tokens for one in found] == [len(text.encode()) for text in TEXTS]  # a token a byte
    for text, one in zip(TEXTS, found, strict=True):
        assert one.nll == pytest.approx(alone(*tiny_llama, text), rel=1e-4)
    assert general.losses(*tiny_llama, TEXTS[3:4], None, "")[0].nll == pytest.approx(found[3].nll, rel=1e-5)


def test_a_killed_one_goes_on_with_the_same_numbers(tiny_llama, tmp_path, monkeypatch):
    model, store = tiny_llama[0], tmp_path / "losses.jsonl"
    whole = general.losses(*tiny_llama, TEXTS, None, "")
    compute, calls = general._losses, []

    def dies(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compute(*args)

    monkeypatch.setattr(general, "_losses", dies)
    with pytest.raises(KeyboardInterrupt):
        general.losses(*tiny_llama, TEXTS, store, "model")
    assert not model.training and len(store.read_text().splitlines()) == general.TEXTS_AT_ONCE
    assert general.losses(*tiny_llama, TEXTS, store, "model") == whole
    calls.extend([1, 1])
    before = len(calls)
    assert general.losses(*tiny_llama, TEXTS, store, "model") == whole and len(calls) == before
    general.losses(*tiny_llama, TEXTS[:1], store, "another model")
    assert len(calls) == before + 1


def test_refusals(tiny_llama):
    model, tokenizer = make_tiny_llama(layers=1)
    with pytest.raises(MedkitError, match="an empty text has no perplexity"):
        general.losses(model, tokenizer, ["a", ""], None, "")
    tokenizer.bos_token = None
    assert general.losses(model, tokenizer, ["a"], None, "")[0].tokens == 1  # after the end-of-text token
    tokenizer.eos_token = None
    with pytest.raises(MedkitError, match="no bos and no eos token"):
        general.losses(model, tokenizer, ["a"], None, "")
    torch.nn.init.constant_(model.lm_head.weight, math.nan)
    with pytest.raises(MedkitError, match="is not a finite number"):
        general.losses(model, tiny_llama[1], ["a"], None, "")
    assert general.losses(model, tiny_llama[1], [], None, "") == []


def rows_of(model, letters, losses):
    items = written.questions()[: len(letters)]
    found = [Outcome(letter, (-1.0, -2.0, -2.0, -2.0)) for letter in letters]
    return general.frame(model, items, found, losses)


def test_perplexity_by_hand():
    """6 nats over 2 tokens and 2 over 2: 8 / 4 = 2 nats a token, exp(2) = 7.389. The other model's texts cost
    it 10 and 2 nats: 4 / 4 = 1 nat a token more."""
    before = rows_of("base", "ABCD", [Loss(6.0, 2), Loss(2.0, 2)])
    after = rows_of("med-mix", "ABAA", [Loss(10.0, 2), Loss(2.0, 2)])
    found = general.summary(pd.concat([before, after]))
    base, mixed = found["models"]["base"], found["models"]["med-mix"]
    assert base["perplexity"] == pytest.approx(math.exp(2)) and base["tokens"] == 4 and base["texts"] == 2
    assert base["perplexity_low"] == pytest.approx(math.exp(1))  # the second text twice
    assert base["perplexity_high"] == pytest.approx(math.exp(3))
    assert (base["correct"], mixed["correct"], base["n"]) == (4, 2, 4)  # the letters are right in turn
    (row,) = found["comparisons"]
    assert (row["first"], row["second"], row["difference"]) == ("base", "med-mix", -0.5)
    assert row["loss_difference"] == pytest.approx(1) and row["p_holm"] == row["p"]
    # one text alone, or none
    assert general.summary(rows_of("base", "A", [Loss(1.0, 1)]))["models"]["base"]["perplexity_low"] is None
    assert general.summary(rows_of("base", "", [])) == {}
