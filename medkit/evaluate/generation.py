"""Batched answers of any causal language model, kept on disk so that a killed run resumes where it stopped.

An answer depends on the model, its prompt and the decoding alone: not on the batch it was computed in (up to
floating-point rounding), and not on what was computed before it.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from medkit import MedkitError
from medkit.chat_template import ChatFormat
from medkit.evaluate import inference
from medkit.evaluate.store import Store
from medkit.prompts import shared_start
from medkit.train import cpu


class GenerationError(MedkitError):
    """Prompts or settings that no answers can be generated from, or a model that gives no numbers."""


@dataclass(frozen=True, slots=True)
class Answer:
    text: str  # without special tokens or surrounding blanks; "" where the model stopped at once
    finish: str  # "stopped" at an end token; "cut" at max_new_tokens; "too long" for the model: not asked
    tokens: int  # generated ones, the end token not counted


@dataclass(frozen=True, slots=True)
class _Job:
    """One answer to compute: where it goes, what it is stored under, what its noise is drawn from."""

    prompt: int
    sample: int
    ids: tuple[int, ...]
    key: str
    seed: int


def generate(model, tokenizer, prompts: list[list[int]], **settings) -> list[list[str]]:
    """The texts of `generate_answers`, which see for the settings: one list of `samples` texts a prompt."""
    answers = generate_answers(model, tokenizer, prompts, **settings)
    return [[answer.text for answer in row] for row in answers]


def generate_answers(
    model,
    tokenizer,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    samples: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int,
    store: Path | None,
    key: str,
    progress: bool = True,
) -> list[list[Answer]]:
    """`samples` answers to each of `prompts` (token ids up to where the answer begins), in their order.

    `temperature` 0 is greedy; above it tokens are sampled, each answer from its own seeded noise, so that
    the same (seed, prompt, sample) gives the same answer in whatever batch. What a model brings along in its
    generation_config (sampling, repetition penalty) is overruled.

    `store` is a JSON Lines file to which each finished batch is appended, and from which answers are taken
    that were computed before under the same `key` (the identity of model, adapter and dtype, given by the
    caller), prompt and decoding. None keeps nothing.

    A prompt that leaves no room for max_new_tokens in the model's context gets an empty answer that says so.

    Raises GenerationError for settings or prompts that cannot be, and where the model's logits are NaN.
    """
    _check(model, prompts, max_new_tokens, samples, temperature, top_p, batch_size)
    stops = stop_ids(model, tokenizer)
    decoding = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "stops": stops}
    if temperature:
        decoding |= {"seed": seed, "noise": "murmur3"}
    kept = Store(store, Answer, key)
    rows = [
        [
            _Job(i, s, tuple(ids), kept.key(ids, decoding, s), int(_hash(seed, ids, s)[:15], 16))
            for s in range(samples)
        ]
        for i, ids in enumerate(prompts)
    ]
    done = kept.read()
    # Batches are formed from all answers, those in the store too: a resumed run computes the same batches.
    # Longest first: little padding, and a batch that does not fit in memory shows itself at once.
    room = (inference.context(model) or math.inf) - max_new_tokens
    done |= {job.key: Answer("", "too long", 0) for row in rows for job in row if len(job.ids) > room}
    jobs = {job.key: job for row in rows for job in row if len(job.ids) <= room}
    queue = sorted(jobs.values(), key=lambda job: (-len(job.ids), job.prompt, job.sample))
    missing = sum(job.key not in done for job in queue)
    start = shared_start([job.ids for job in queue]) if cpu.decodes_in_rounds(model) else ()
    cache = None
    with (
        inference.evaluating(model),
        tqdm(total=missing, desc="answers", unit="answer", disable=not progress or not missing) as bar,
    ):
        for batch in _chunks(queue, batch_size):
            new = [job.key for job in batch if job.key not in done]
            if not new:
                continue
            cache = cache or (inference.computed(model, start) if start else None)
            begun = len(start), cache
            answers = _answer_batch(model, tokenizer, batch, begun, stops, max_new_tokens, temperature, top_p)
            found = dict(zip((job.key for job in batch), answers, strict=True))
            done.update((key, found[key]) for key in new)
            kept.add({key: found[key] for key in new})
            bar.update(len(new))
    return [[done[job.key] for job in row] for row in rows]


def stop_ids(model, tokenizer) -> list[int]:
    """Every token that ends an answer: the eos of tokenizer and model, and the chat template's end of turn.

    Llama 3 ends a turn with <|eot_id|>, which is not the eos token of its base model; a model stopped at eos
    alone goes on to write the patient's next turn. Raises PromptError for a template that cannot be used.
    """
    found = {tokenizer.eos_token_id}
    eos = getattr(model.generation_config, "eos_token_id", None)
    found.update(eos if isinstance(eos, list | tuple) else [eos])
    if tokenizer.chat_template:
        found.update(tokenizer.convert_tokens_to_ids(ChatFormat.from_tokenizer(tokenizer).ends))
    found.discard(None)
    if not found:
        raise GenerationError("the tokenizer names no end token: set its eos_token to the end of a turn")
    return sorted(found)


@torch.no_grad()  # not inference_mode: the model may be trained afterwards, with what was cached here
def _answer_batch(
    model, tokenizer, batch: list[_Job], begun, stops, max_new_tokens, temperature, top_p
) -> list[Answer]:
    """`begun`: (n, cache), the number of tokens that all prompts begin with and what the model keeps of them.
    Padding follows them, before what is a prompt's own."""
    device = model.get_input_embeddings().weight.device
    width = max(len(job.ids) for job in batch)
    same, cache = begun
    rows, padding = [job.ids for job in batch], [width - len(job.ids) for job in batch]
    ids = torch.tensor(
        [[*row[:same], *[0] * n, *row[same:]] for row, n in zip(rows, padding, strict=True)], device=device
    )
    mask = torch.tensor([[1] * same + [0] * n + [1] * (width - same - n) for n in padding], device=device)
    cache = inference.for_rows(cache, len(batch)) if cache else None

    def settings(new_tokens: int, going: list[int]) -> dict:
        seeds = [batch[row].seed for row in going]
        return {
            "generation_config": _greedy(new_tokens, stops),
            "logits_processor": _processors(temperature, top_p, seeds, width),
        }

    answers = cpu.decode(model, ids, mask, cache, stops, max_new_tokens, settings)
    return [_answer(tokenizer, tokens, stops) for tokens in answers]


def _greedy(max_new_tokens: int, stops: list[int]) -> GenerationConfig:
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,  # a processor's noise makes the largest logit a sample
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=stops,
        pad_token_id=0,  # any token will do: it is masked before a prompt, and left off after an answer's end
        return_dict_in_generate=True,  # the cache too, to go on from
    )


def _processors(temperature: float, top_p: float, seeds: list[int], width: int) -> LogitsProcessorList:
    processors = LogitsProcessorList([_RefuseNaN()])
    if temperature:
        processors.append(TemperatureLogitsWarper(temperature))
        if top_p < 1:
            processors.append(TopPLogitsWarper(top_p))
        processors.append(_SeededNoise(seeds, width))
    return processors


def _answer(tokenizer, generated: list[int], stops: list[int]) -> Answer:
    end = next((i for i, token in enumerate(generated) if token in stops), None)
    text = tokenizer.decode(generated[:end], skip_special_tokens=True).strip()
    # a lone surrogate, which a byte-level vocabulary can decode to, cannot be written as UTF-8
    text = text.encode("utf-8", "replace").decode()
    return Answer(text, "cut" if end is None else "stopped", len(generated) if end is None else end)


class _RefuseNaN(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if torch.isnan(scores).any():
            raise GenerationError(
                "the model's logits are NaN: check the adapter's weights, or load it in bfloat16 or float32"
            )
        return scores


class _SeededNoise(LogitsProcessor):
    """Adds each row's own Gumbel noise, after which the largest logit is a draw from the softmax.

    A token's noise is a hash of the row's seed, the step and the token, as in counter-based generators
    (Salmon et al., SC 2011): all of it is computed at once where the logits are, and is the same on every
    device and in any batch. torch.multinomial takes the randomness of all rows from one stream, so that a
    row's draw would depend on its neighbours.
    """

    def __init__(self, seeds: list[int], width: int):
        """seeds: 64 bits a row at most; width: tokens of the prompts, after which step 0 begins."""
        halves = [[seed & 0xFFFFFFFF, seed >> 32] for seed in seeds]
        self.seeds = torch.tensor(halves).to(torch.int32)  # wraps, as everything below does
        self.width = width

    def __call__(self, input_ids, scores):
        self.seeds = self.seeds.to(scores.device)
        step = torch.full_like(self.seeds[:, 1:], input_ids.shape[1] - self.width)
        tokens = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
        bits = _fmix32(tokens ^ self.seeds[:, :1])
        bits = _fmix32(bits.bitwise_xor_(_fmix32(step ^ self.seeds[:, 1:])))
        # 31 of the bits, from (0, 1): a draw is decided by the smallest, which float32 tells apart
        uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2**-31).clamp_(max=1 - 2**-24)
        exponential = uniform.neg_().log1p_().neg_()
        return scores.float() - exponential.log_()


def _fmix32(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's finalizer on int32, in place: every bit of the input changes half of the output's. The
    masks make an arithmetic shift a logical one."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x85EBCA6B - 2**32)
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF)).mul_(0xC2B2AE35 - 2**32)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _check(model, prompts, max_new_tokens, samples, temperature, top_p, batch_size):
    for name, value in [
        ("max_new_tokens", max_new_tokens),
        ("samples", samples),
        ("batch_size", batch_size),
    ]:
        if value < 1:
            raise GenerationError(f"{name} is {value}: it must be at least 1")
    if temperature < 0:
        raise GenerationError(f"temperature is {temperature}: it must be 0 (greedy) or more")
    if not 0 < top_p <= 1:
        raise GenerationError(f"top_p is {top_p}: it must be above 0 and at most 1")
    if samples > 1 and not temperature:
        raise GenerationError(f"samples is {samples} with temperature 0: greedy answers are all the same")
    if (places := inference.context(model)) and max_new_tokens >= places:
        raise GenerationError(
            f"max_new_tokens is {max_new_tokens} and the model's context {places} tokens: it must be less"
        )
    for i, ids in enumerate(prompts):
        if not len(ids):
            raise GenerationError(f"prompt {i} is empty: give at least one token")


def _hash(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _chunks(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
