"""Batched generation with any causal language model, saved to disk so that an interrupted run can resume.

An answer depends only on the model, the prompt and the decoding settings. It does not depend on its batch (up
to floating-point rounding) or on earlier answers.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Cache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from medkit import MedkitError
from medkit.chat_template import ChatFormat
from medkit.evaluate import inference
from medkit.evaluate.store import Store, chunks
from medkit.prompts import shared_prefix
from medkit.train import cpu


@dataclass(frozen=True, slots=True)
class Answer:
    text: str  # without special tokens or surrounding whitespace; "" if the model stops immediately
    finish: str  # "stopped" at an end token, "cut" at max_new_tokens, "too long": prompt not answered
    tokens: int  # generated, without the end token


@dataclass(frozen=True, slots=True)
class _Job:
    """One answer to generate."""

    ids: tuple[int, ...]  # of the prompt
    key: str  # in the store
    seed: int  # of the sampling noise


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
    """Generate `samples` answers to each of `prompts` (token ids), in order.

    temperature: 0 is greedy. Above 0, the noise of each answer is seeded, so that the same (seed, prompt,
        sample) gives the same answer in any batch. The model's generation_config (sampling, repetition
        penalty) is ignored.
    store: a JSON Lines file. Each finished batch is appended to it, and answers with the same `key` (the
        identity of model, adapter and dtype), prompt and decoding are read from it. None disables it.

    A prompt that leaves no room for max_new_tokens in the model's context gets an empty "too long" answer.
    Raises MedkitError if max_new_tokens leaves no room for any prompt, or if the model's logits are NaN.
    """
    context = inference.context_length(model) or math.inf
    if max_new_tokens >= context:
        raise MedkitError(
            f"max_new_tokens is {max_new_tokens} and the model's context {context} tokens; "
            "reduce max_new_tokens"
        )
    stops = stop_ids(model, tokenizer)
    decoding = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "stops": stops}
    if temperature:
        decoding |= {"seed": seed, "noise": "murmur3"}
    saved = Store(store, Answer, key)
    jobs_by_prompt = [
        [_Job(tuple(ids), saved.key(ids, decoding, s), _seed(seed, ids, s)) for s in range(samples)]
        for ids in prompts
    ]
    jobs = {job.key: job for row in jobs_by_prompt for job in row}.values()  # without duplicate prompts
    limit = context - max_new_tokens
    answers = saved.read() | {job.key: Answer("", "too long", 0) for job in jobs if len(job.ids) > limit}
    # Longest first: this reduces padding, and a batch that does not fit in memory fails at the start.
    queue = sorted((job for job in jobs if len(job.ids) <= limit), key=lambda job: -len(job.ids))
    prefix = shared_prefix([job.ids for job in queue]) if cpu.decodes_in_rounds(model) else ()
    decoder = _Decoder(model, tokenizer, stops, max_new_tokens, temperature, top_p, prefix)
    with inference.evaluation_mode(model):
        saved.complete(answers, chunks(queue, batch_size), decoder.generate, "answer" if progress else "")
    return [[answers[job.key] for job in row] for row in jobs_by_prompt]


def stop_ids(model, tokenizer) -> list[int]:
    """All tokens that end an answer: the eos of tokenizer and model, and the chat template's end of turn.

    Llama 3 ends a turn with <|eot_id|>, which is not the eos token of its base model. Stopped only at
    eos, the model would continue with the patient's next turn. Raises PromptError for an unusable template.
    """
    ids = {tokenizer.eos_token_id}
    eos = getattr(model.generation_config, "eos_token_id", None)
    ids.update(eos if isinstance(eos, list | tuple) else [eos])
    if tokenizer.chat_template:
        ids.update(tokenizer.convert_tokens_to_ids(ChatFormat.from_tokenizer(tokenizer).ends))
    ids.discard(None)
    if not ids:
        raise MedkitError("the tokenizer has no end token; set its eos_token to the end of a turn")
    return sorted(ids)


def greedy(max_new_tokens: int, stops: list[int]) -> GenerationConfig:
    """Greedy decoding, with every field set that `generate` would otherwise take from the model's own."""
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        eos_token_id=stops,
        pad_token_id=0,  # any token: masked in a prompt, and removed after an answer's end
        return_dict_in_generate=True,  # includes the cache, to continue from
    )


@dataclass
class _Decoder:
    """Generates the answers of a batch. prefix: the tokens shared by all prompts, computed once."""

    model: torch.nn.Module
    tokenizer: object
    stops: list[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    prefix: tuple[int, ...]
    cache: Cache | None = None  # the model's keys and values of `prefix`

    @torch.no_grad()  # not inference_mode: the model may be trained later, with tensors it cached here
    def generate(self, batch: Sequence[_Job]) -> list[Answer]:
        """The batch's answers, in order. Padding comes between the shared prefix and the rest of a prompt."""
        if self.prefix and self.cache is None:
            self.cache = inference.prefill(self.model, self.prefix)
        shared, width = len(self.prefix), max(len(job.ids) for job in batch)
        padding = [width - len(job.ids) for job in batch]
        ids = [
            [*job.ids[:shared], *[0] * n, *job.ids[shared:]] for job, n in zip(batch, padding, strict=True)
        ]
        mask = [[1] * shared + [0] * n + [1] * (width - shared - n) for n in padding]
        device = self.model.get_input_embeddings().weight.device
        generated = cpu.decode(
            self.model,
            torch.tensor(ids, device=device),
            torch.tensor(mask, device=device),
            inference.repeat_cache(self.cache, len(batch)) if self.cache else None,
            self.stops,
            self.max_new_tokens,
            lambda new_tokens, rows: self._settings(new_tokens, [batch[row].seed for row in rows], width),
        )
        return [_answer(self.tokenizer, tokens, self.stops) for tokens in generated]

    def _settings(self, new_tokens: int, seeds: list[int], width: int) -> dict:
        config = greedy(new_tokens, self.stops)  # _SeededNoise turns the largest logit into a sample
        processors = LogitsProcessorList([_RefuseNaN()])
        if self.temperature:
            processors.append(TemperatureLogitsWarper(self.temperature))
            if self.top_p < 1:
                processors.append(TopPLogitsWarper(self.top_p))
            processors.append(_SeededNoise(seeds, width))
        return {"generation_config": config, "logits_processor": processors}


def _answer(tokenizer, generated: list[int], stops: list[int]) -> Answer:
    end = next((i for i, token in enumerate(generated) if token in stops), None)
    text = tokenizer.decode(generated[:end], skip_special_tokens=True).strip()
    # a byte-level vocabulary can decode to a lone surrogate, which cannot be written as UTF-8
    text = text.encode("utf-8", "replace").decode()
    return Answer(text, "cut" if end is None else "stopped", len(generated) if end is None else end)


class _RefuseNaN(LogitsProcessor):
    def __call__(self, input_ids, scores):
        if torch.isnan(scores).any():
            raise MedkitError(
                "the model's logits are NaN: check the adapter's weights, or load it in bfloat16 or float32"
            )
        return scores


class _SeededNoise(LogitsProcessor):
    """Adds Gumbel noise, seeded per row, so that the largest logit is a sample from the softmax.

    The noise of a token is a hash of the row's seed, the step and the token, as in counter-based generators
    (Salmon et al., SC 2011). It is computed on the logits' device, and is the same on every device and in any
    batch. torch.multinomial draws all rows from one random stream, so a row would depend on its neighbours.
    """

    def __init__(self, seeds: list[int], width: int):
        """seeds: at most 64 bits per row. width: length of the padded prompts, where step 0 begins."""
        halves = [[seed & 0xFFFFFFFF, seed >> 32] for seed in seeds]
        self.seeds = torch.tensor(halves).to(torch.int32)  # wraps around, like all arithmetic below
        self.width = width

    def __call__(self, input_ids, scores):
        self.seeds = self.seeds.to(scores.device)
        step = torch.full_like(self.seeds[:, 1:], input_ids.shape[1] - self.width)
        tokens = torch.arange(scores.shape[1], dtype=torch.int32, device=scores.device)
        bits = _fmix32(tokens ^ self.seeds[:, :1])
        bits = _fmix32(bits.bitwise_xor_(_fmix32(step ^ self.seeds[:, 1:])))
        # 31 bits to (0, 1): the smallest values decide a draw, and float32 distinguishes them
        uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2**-31).clamp_(max=1 - 2**-24)
        exponential = uniform.neg_().log1p_().neg_()
        return scores.float() - exponential.log_()


def _fmix32(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's finalizer on int32, in place: each input bit changes half of the output bits.

    The masks turn arithmetic shifts into logical ones.
    """
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x85EBCA6B - 2**32)
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF)).mul_(0xC2B2AE35 - 2**32)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _seed(*parts) -> int:
    """A 60-bit hash of `parts` (JSON types)."""
    return int(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:15], 16)
