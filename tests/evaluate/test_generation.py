"""Answers do not depend on the batch, survive a kill, and are never read for another model."""

import json
import math
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import make_tiny_llama, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig

from medkit import MedkitError
from medkit.evaluate import generation
from medkit.evaluate.generation import (
    Answer,
    generate_answers,
    stop_ids,
)
from medkit.evaluate.store import Store
from medkit.runs import storage
from medkit.train import cpu

PROMPT_TEXTS = ["a", "Why does my knee hurt?", "fever " * 12, "x y", "Is it safe to fly?", "tired " * 5]


@pytest.fixture
def prompts(tiny_llama):
    tokenizer = tiny_llama[1]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPT_TEXTS
    ]


def ask(tiny, prompts, **settings):
    defaults = dict(max_new_tokens=12, batch_size=4, store=None, key="tiny", progress=False)
    return generate_answers(*tiny, prompts, **(defaults | settings))


@pytest.fixture
def calls(tiny_llama, monkeypatch):
    """The batch size of every call of model.generate."""
    model, sizes = tiny_llama[0], []
    original = model.generate
    monkeypatch.setattr(
        model, "generate", lambda **kw: sizes.append(len(kw["input_ids"])) or original(**kw), raising=False
    )
    return sizes


@pytest.fixture
def starts(monkeypatch):
    """What was computed once for all prompts, call by call."""
    computed, plain = [], generation.inference.prefill
    monkeypatch.setattr(
        generation.inference, "prefill", lambda model, ids: computed.append(ids) or plain(model, ids)
    )
    return computed


def test_greedy_does_not_depend_on_the_batch(tiny_llama, prompts):
    alone = ask(tiny_llama, prompts, batch_size=1)
    together = ask(tiny_llama, prompts, batch_size=6)
    assert alone == together
    assert len({row[0].text for row in alone}) > 1, "prompts with the same answer would show nothing"


def test_padding_without_a_mask_would_change_answers(tiny_llama, prompts, monkeypatch):
    """The test above can fail: the same batch with the mask taken away gives other answers."""
    model = tiny_llama[0]
    original = model.generate
    monkeypatch.setattr(
        model,
        "generate",
        lambda **kw: original(**(kw | {"attention_mask": torch.ones_like(kw["attention_mask"])})),
        raising=False,
    )
    assert ask(tiny_llama, prompts, batch_size=6) != ask(tiny_llama, prompts, batch_size=1)


def test_greedy_equals_a_plain_forward_loop(tiny_llama, prompts):
    model, tokenizer = tiny_llama
    ids, stops = list(prompts[1]), stop_ids(model, tokenizer)
    for _ in range(12):
        with torch.no_grad():
            token = model(torch.tensor([ids])).logits[0, -1].argmax().item()
        if token in stops:
            break
        ids.append(token)
    expected = tokenizer.decode(ids[len(prompts[1]) :], skip_special_tokens=True).strip()
    assert ask(tiny_llama, prompts)[1][0].text == expected


@pytest.mark.parametrize("decoding", [{}, {"samples": 2, "temperature": 0.7, "top_p": 0.9}])
def test_what_all_prompts_begin_with_is_computed_once(tiny_llama, starts, monkeypatch, decoding):
    """40 tokens that three prompts begin with, 3, 9 and 1 of their own: padding stands between the two."""
    start = tuple(range(30, 70))
    ours = [[*start, *range(70, 70 + n)] for n in (3, 9, 1)]
    shared = ask(tiny_llama, ours, batch_size=2, **decoding)
    assert starts == [start]
    monkeypatch.setattr(generation, "shared_prefix", lambda prompts: ())
    assert ask(tiny_llama, ours, batch_size=2, **decoding) == shared
    assert len({answer.text for row in shared for answer in row}) > 1


def test_a_model_with_a_window_shares_nothing(tiny_llama, starts, monkeypatch):
    """Padding in between would count among the tokens that its window holds."""
    model, _ = tiny_llama
    ours = [tuple(range(30, 70 + n)) for n in (3, 9)]
    ask(tiny_llama, ours)
    assert starts == [tuple(range(30, 72))]
    monkeypatch.setattr(model.config, "sliding_window", 16, raising=False)
    ask(tiny_llama, ours)
    assert len(starts) == 1


def test_order_is_the_prompts_not_the_lengths(tiny_llama, prompts):
    forward = ask(tiny_llama, prompts)
    assert ask(tiny_llama, prompts[::-1]) == forward[::-1]


# --- stopping


def test_stops_at_the_end_of_turn_and_eos(tiny_llama):
    model, tokenizer = tiny_llama
    assert stop_ids(model, tokenizer) == [tokenizer.convert_tokens_to_ids("<|eot_id|>")]


def test_end_of_turn_counts_where_it_is_not_eos(tiny_llama):
    _, tokenizer = make_tiny_llama()
    tokenizer.eos_token = "<|bos|>"  # as a base model's tokenizer, whose eos ends a text, not a turn
    expected = sorted(tokenizer.convert_tokens_to_ids(["<|bos|>", "<|eot_id|>"]))
    model = type("M", (), {"generation_config": GenerationConfig(eos_token_id=[expected[0]])})()
    assert stop_ids(model, tokenizer) == expected


def test_no_end_token_is_refused(tiny_llama):
    _, tokenizer = make_tiny_llama()
    tokenizer.eos_token, tokenizer.chat_template = None, None
    model = type("M", (), {"generation_config": GenerationConfig()})()
    with pytest.raises(MedkitError, match="no end token"):
        stop_ids(model, tokenizer)


def test_cut_and_stopped_are_told_apart(tiny_llama):
    tokenizer = tiny_llama[1]
    eot = tokenizer.eos_token_id
    letters = tokenizer("hi there", add_special_tokens=False).input_ids
    assert generation._answer(tokenizer, letters, [eot]) == Answer("hi there", "cut", 8)
    # 8 letters, the end, and padding that must not be read
    assert generation._answer(tokenizer, [*letters, eot, 3, 3], [eot]) == Answer("hi there", "stopped", 8)
    assert generation._answer(tokenizer, [eot], [eot]) == Answer("", "stopped", 0)


@pytest.mark.parametrize("decoding", [{}, {"samples": 2, "temperature": 1.5, "top_p": 0.9}])
def test_answers_that_have_ended_leave_their_batch(tiny_llama, prompts, calls, monkeypatch, decoding):
    """12 tokens in rounds of 5, 5 and 2; every third token of the vocabulary ends an answer."""
    size = len(tiny_llama[1])
    monkeypatch.setattr(generation, "stop_ids", lambda model, tokenizer: list(range(0, size, 3)))
    settings = {"max_new_tokens": 12, "batch_size": 12, **decoding}
    whole = ask(tiny_llama, prompts, **settings)
    (everyone,) = calls
    monkeypatch.setattr(cpu, "ROUND", 5)
    assert ask(tiny_llama, prompts, **settings) == whole
    ends = [answer.tokens if answer.finish == "stopped" else 12 for row in whole for answer in row]
    # the end itself is a token: an answer of four has ended within the first five
    expected = [everyone, sum(n >= 5 for n in ends), sum(n >= 10 for n in ends)]
    assert calls[1:] == [n for n in expected if n]
    assert expected[1] < everyone, "no answer ended in the first round, which would show nothing"


def test_a_random_model_is_cut(tiny_llama, prompts):
    answers = ask(tiny_llama, prompts, max_new_tokens=3)
    assert {(row[0].finish, row[0].tokens) for row in answers} == {("cut", 3)}


def test_a_half_character_at_the_cut_can_be_stored(tiny_llama, tmp_path):
    tokenizer = tiny_llama[1]
    first_byte_of_two = tokenizer("é", add_special_tokens=False).input_ids[:1]
    answer = generation._answer(tokenizer, first_byte_of_two, [tokenizer.eos_token_id])
    answer.text.encode()


# --- what a model brings along


def test_the_models_own_generation_config_is_overruled(tiny_llama, prompts):
    plain = ask(tiny_llama, prompts)
    model = tiny_llama[0]
    before = model.generation_config
    try:
        model.generation_config = GenerationConfig(
            **before.to_diff_dict() | dict(do_sample=True, temperature=5.0, top_k=2, repetition_penalty=3.0)
        )
        assert ask(tiny_llama, prompts) == plain
    finally:
        model.generation_config = before


def test_training_mode_is_given_back():
    model, tokenizer = make_tiny_llama()
    model.train()
    ask((model, tokenizer), [[5, 6]], max_new_tokens=2)
    assert model.training


# --- sampling


def test_a_sample_depends_on_seed_prompt_and_number_only(tiny_llama, prompts):
    sampled = dict(samples=3, temperature=1.0, seed=7)
    one = ask(tiny_llama, prompts, batch_size=1, **sampled)
    assert one == ask(tiny_llama, prompts, batch_size=5, **sampled)
    assert one == ask(tiny_llama, prompts[::-1], batch_size=4, **sampled)[::-1]
    assert one != ask(tiny_llama, prompts, **(sampled | {"seed": 8}))
    assert len({answer.text for answer in one[0]}) == 3


def noise(seeds, size, step=0):
    """(rows, tokens) of Gumbel noise."""
    processor = generation._SeededNoise(list(seeds), width=3)
    return processor(torch.zeros(len(seeds), 3 + step, dtype=torch.long), torch.zeros(len(seeds), size))


def test_noise_samples_the_softmax():
    """Probabilities 1/2, 1/3, 1/6: 6,000 draws give 3,000, 2,000, 1,000, each within 4 standard deviations
    (at most 4 * sqrt(6000 / 4) = 155); over seeds that follow one another, and over steps of one seed."""
    logits = torch.tensor([1 / 2, 1 / 3, 1 / 6]).log()
    of_seeds = noise(range(6000), 3)
    of_steps = torch.cat([noise([9], 3, step) for step in range(6000)])
    for drawn in (of_seeds, of_steps):
        counts = Counter((logits + drawn).argmax(1).tolist())
        assert [abs(counts[i] - n) < 155 for i, n in enumerate([3000, 2000, 1000])] == [True] * 3


def test_noise_is_standard_gumbel_over_a_whole_vocabulary():
    """128,256 tokens: the Kolmogorov-Smirnov distance to the distribution exceeds 1.95 / sqrt(n) = 0.0054
    once in a thousand times. Neither neighbouring tokens, seeds nor steps go together: a correlation has a
    standard deviation of 1 / sqrt(n) = 0.0028, and 4 of them are 0.011."""
    from scipy import stats

    size = 128_256
    one, other = noise([1, 2], size)
    for values in (one, other, noise([1], size, step=1)[0]):
        assert torch.isfinite(values).all()
        assert stats.kstest(values.numpy(), "gumbel_r").statistic < 0.0054
    later = noise([1], size, step=1)[0]
    for a, b in [(one, other), (one, later), (one[:-1], one[1:]), (one[: size // 2], one[size // 2 :])]:
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.011 * (2 if len(a) < size - 1 else 1)
    assert len(set(one.tolist())) > 0.99 * size


@given(
    st.lists(st.integers(0, 2**60 - 1), min_size=1, max_size=6),
    st.integers(0, 600),
    st.integers(1, 400),
    st.randoms(),
)
def test_noise_depends_on_seed_step_and_token_only(seeds, step, size, random):
    """Not on the other rows, their order, or how many tokens come after."""
    whole = noise(seeds, 400, step)
    order = random.sample(range(len(seeds)), len(seeds))
    assert torch.equal(noise([seeds[i] for i in order], size, step), whole[order, :size])
    for width in (3, 50):  # nor on the prompt's length
        processor = generation._SeededNoise(seeds, width)
        given_ids = torch.zeros(len(seeds), width + step, dtype=torch.long)
        assert torch.equal(processor(given_ids, torch.zeros(len(seeds), 400)), whole)
    assert len(set(seeds)) < 2 or not torch.equal(whole[0], whole[[s != seeds[0] for s in seeds].index(True)])


def test_noise_is_drawn_by_no_generator_of_the_cpu(monkeypatch):
    """One thread drew 128,256 numbers a row and step, while a GPU waited."""

    def refuse(*args, **kwargs):
        raise AssertionError("drawn on the CPU")

    for name in ("exponential_", "uniform_", "random_"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    scores = torch.zeros(2, 40, device="meta")
    found = generation._SeededNoise([1, 2], 3)(torch.zeros(2, 3, dtype=torch.long), scores)
    assert found.device.type == "meta" and found.shape == (2, 40)


def test_the_hash_is_murmur3s():
    """MurmurHash3_x86_32 of nothing is its finalizer of the seed: published vectors."""
    hashed = generation._fmix32(torch.tensor([0, 1, -1], dtype=torch.int32))
    assert [n & 0xFFFFFFFF for n in hashed.tolist()] == [0, 0x514E28B7, 0x81F16F39]


def test_a_single_token_left_by_top_p_is_drawn():
    """However large its noise: -inf for all would give token 0."""
    scores = torch.full((500, 300), -math.inf)
    scores[:, 7] = 0.0
    drawn = generation._SeededNoise(list(range(500)), 3)(torch.zeros(500, 3, dtype=torch.long), scores)
    assert set(drawn.argmax(1).tolist()) == {7}


def test_low_temperature_and_small_top_p_are_greedy(tiny_llama, prompts):
    greedy = [row[0].text for row in ask(tiny_llama, prompts)]
    cold = ask(tiny_llama, prompts, temperature=1e-6)
    narrow = ask(tiny_llama, prompts, temperature=1.0, top_p=1e-6)
    assert [row[0].text for row in cold] == greedy == [row[0].text for row in narrow]


# --- the store


def test_a_second_call_computes_nothing(tiny_llama, prompts, tmp_path, calls):
    store = tmp_path / "deep" / "answers.jsonl"
    first = ask(tiny_llama, prompts, store=store)
    assert calls == [4, 2]  # 6 prompts in batches of 4
    assert ask(tiny_llama, prompts, store=store, batch_size=1) == first
    assert calls == [4, 2]
    assert len(store.read_bytes().splitlines()) == 6


@pytest.mark.parametrize(
    "other", [{"key": "another model"}, {"max_new_tokens": 11}, {"temperature": 0.5}, {"top_p": 0.9}]
)
def test_nothing_is_read_for_another_key(tiny_llama, prompts, tmp_path, calls, other):
    store = tmp_path / "answers.jsonl"
    ask(tiny_llama, prompts, store=store)
    calls.clear()
    ask(tiny_llama, prompts, store=store, **other)
    assert sum(calls) == 6


def test_another_seed_is_another_sample(tiny_llama, prompts, tmp_path, calls):
    store = tmp_path / "answers.jsonl"
    ask(tiny_llama, prompts, store=store, temperature=1.0, seed=1)
    ask(tiny_llama, prompts, store=store, temperature=1.0, seed=2)
    assert sum(calls) == 12


def test_a_killed_run_goes_on_with_the_same_result(tiny_llama, prompts, tmp_path, monkeypatch):
    settings = dict(samples=2, temperature=1.0, batch_size=3)
    whole = ask(tiny_llama, prompts, **settings)
    store, model = tmp_path / "answers.jsonl", tiny_llama[0]
    original, batches = model.generate, iter(range(2))

    def dies_in_the_third_batch(**kw):
        if next(batches, None) is None:
            raise KeyboardInterrupt
        return original(**kw)

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", dies_in_the_third_batch, raising=False)
        with pytest.raises(KeyboardInterrupt):
            ask(tiny_llama, prompts, store=store, **settings)
    assert len(store.read_bytes().splitlines()) == 6  # 2 batches of 3
    assert ask(tiny_llama, prompts, store=store, **settings) == whole


def test_every_cut_of_the_file_is_survived(tiny_llama, prompts, tmp_path, calls):
    """Wherever in the last line the kill fell, the answers before it are kept and the result is the same."""
    store = tmp_path / "answers.jsonl"
    whole = ask(tiny_llama, prompts, store=store)
    content = store.read_bytes()
    start = content.rstrip(b"\n").rindex(b"\n") + 1
    for cut in (start, start + 1, start + 20, len(content) - 2, len(content) - 1):
        store.write_bytes(content[:cut])
        assert len(Store(store, Answer, "m").read()) == 5
        calls.clear()
        assert ask(tiny_llama, prompts, store=store) == whole
        assert calls == [2]  # its batch of two, as at first
        assert len(Store(store, Answer, "m").read()) == 6, "the new line was glued to the half-written one"


@pytest.mark.parametrize("junk", [b"\xff\xfe\n", b"[1]\n", b"{}\n", b'{"key": "a", "text": 1}\n', b"7\n"])
def test_foreign_lines_are_passed_over(tmp_path, junk):
    store = tmp_path / "s.jsonl"
    good = json.dumps({"key": "k", "text": "t", "finish": "cut", "tokens": 1}).encode() + b"\n"
    store.write_bytes(junk + good)
    assert Store(store, Answer, "m").read() == {"k": Answer("t", "cut", 1)}


def test_a_line_separator_in_an_answer_does_not_split_it(tmp_path):
    store = tmp_path / "s.jsonl"
    answer = Answer("one\u2028two\x85three\nfour", "stopped", 9)
    storage.append_jsonl(store, {"key": "k", **asdict(answer)})
    assert Store(store, Answer, "m").read() == {"k": answer}


def test_equal_prompts_are_answered_once(tiny_llama, prompts, calls):
    answers = ask(tiny_llama, [prompts[0]] * 3)
    assert calls == [1] and answers[0] == answers[1] == answers[2]


def test_no_prompts_no_answers(tiny_llama, calls):
    assert ask(tiny_llama, []) == [] and calls == []


# --- refusals


def test_a_context_without_room_for_an_answer_is_refused(tiny_llama, prompts):
    words = "max_new_tokens is 4096 and the model's context 4096 tokens"
    with pytest.raises(MedkitError, match=words) as error:
        ask(tiny_llama, prompts, max_new_tokens=4096)
    assert "\n" not in str(error.value)


def test_nan_logits_are_refused_and_nothing_is_stored(prompts, tmp_path):
    model, tokenizer = make_tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(MedkitError, match="NaN"):
        ask((model, tokenizer), prompts, store=tmp_path / "s.jsonl")
    assert not (tmp_path / "s.jsonl").exists()


def test_a_lora_adapter_answers_like_any_model(prompts):
    from peft import LoraConfig, get_peft_model

    model, tokenizer = make_tiny_llama()
    before = ask((model, tokenizer), prompts)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    assert ask((tuned, tokenizer), prompts) == before  # B is zero: an untrained adapter changes nothing
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight.data, std=0.5, generator=torch.Generator().manual_seed(0))
    changed = ask((tuned, tokenizer), prompts, batch_size=1)
    assert changed != before and changed == ask((tuned, tokenizer), prompts, batch_size=6)


def test_a_prompt_without_room_for_its_answer_is_counted_and_stops_no_other(tiny_llama, prompts, monkeypatch):
    model, tokenizer = tiny_llama
    monkeypatch.setattr(model.config, "max_position_embeddings", 196)
    settings = {"max_new_tokens": 96, "batch_size": 2, "progress": False, "key": "k", "store": None}
    alone = generate_answers(model, tokenizer, prompts, **settings)
    fits, does_not = [65] * 100, [65] * 101  # of 196 positions
    found = generate_answers(model, tokenizer, [does_not, *prompts, fits], **settings)
    assert found[0] == [Answer("", "too long", 0)]
    assert found[1:-1] == alone
    assert found[-1][0].finish in ("stopped", "cut")


@pytest.mark.parametrize("pad", [None, "<|eot_id|>", "<|beyond|>"])
def test_answers_need_no_pad_token(tiny_llama, prompts, pad):
    """Missing, an end token, or one beyond the embeddings."""
    model, tokenizer = tiny_llama
    settings = {"max_new_tokens": 40, "batch_size": 4, "progress": False, "key": "k", "store": None}
    expected = generate_answers(model, tokenizer, prompts, **settings)
    other = make_tokenizer()
    other.add_tokens("<|beyond|>")
    other.pad_token = pad
    assert generate_answers(model, other, prompts, **settings) == expected
