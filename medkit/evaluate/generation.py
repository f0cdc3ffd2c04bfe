"""Batched answers of any causal language model, kept on disk so that a killed run resumes where it stopped.

An answer depends on the model, its prompt and the decoding alone: not on the batch it was computed in (up to
floating-point rounding), and not on what was computed before it.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from medkit import MedkitError
from medkit.chat_template import ChatFormat
from medkit.evaluate import inference
from medkit.evaluate.store import Store, chunks
from medkit.prompts import shared_prefix
from medkit.train import cpu


@dataclass(frozen=True, slots=True)
class Answer:
    text: str  # without special tokens or surrounding blanks; "" where the model stopped at once
    finish: str  # "stopped" at an end token; "cut" at max_new_tokens; "too long" for the model: not asked
    tokens: int  # generated ones, the end token not counted


@dataclass(frozen=True, slots=True)
class _Job:
    """One answer to compute: its key in the store, and what its noise is drawn from."""

    ids: tuple[int, ...]
    key: str
    seed: int


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

    temperature: 0 is greedy; above it tokens are sampled, each answer from its own seeded noise, so that the
        same (seed, prompt, sample) gives the same answer in any batch. The model's generation_config
        (sampling, repetition penalty) is overruled.
    store: JSON Lines file to which each finished batch is appended, and from which answers are taken that
        were computed before under the same `key` (the identity of model, adapter and dtype), prompt and
        decoding. None keeps nothing.

    A prompt that leaves no room for max_new_tokens in the model's context gets an empty answer, "too long".
    Raises MedkitError where no prompt leaves room, and where the model's logits are NaN.
    """
    places = inference.context_length(model) or math.inf
    if max_new_tokens >= places:
        raise MedkitError(
            f"max_new_tokens is {max_new_tokens} and the model's context {places} tokens: it must be less"
        )
    stops = stop_ids(model, tokenizer)
    decoding = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "stops": stops}
    if temperature:
        decoding |= {"seed": seed, "noise": "murmur3"}
    kept = Store(store, Answer, key)
    rows = [
        [_Job(tuple(ids), kept.key(ids, decoding, s), _seed(seed, ids, s)) for s in range(samples)]
        for ids in prompts
    ]
    jobs = {job.key: job for row in rows for job in row}  # equal prompts are answered once
    room = places - max_new_tokens
    # Longest first: little padding, and a batch that does not fit in memory shows itself at once.
    queue = sorted((job for job in jobs.values() if len(job.ids) <= room), key=lambda job: -len(job.ids))
    done = kept.read() | {job.key: Answer("", "too long", 0) for job in jobs.values() if len(job.ids) > room}
    start = shared_prefix([job.ids for job in queue]) if cpu.decodes_in_rounds(model) else ()
    decoder = _Decoder(model, tokenizer, stops, max_new_tokens, temperature, top_p, start)
    with inference.evaluation_mode(model):
        kept.complete(done, chunks(queue, batch_size), decoder.answers, "answer" if progress else "")
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
        raise MedkitError("the tokenizer names no end token: set its eos_token to the end of a turn")
    return sorted(found)


@dataclass
class _Decoder:
    """How a batch is answered. start: tokens that all prompts begin with, which are computed once."""

    model: torch.nn.Module
    tokenizer: object
    stops: list[int]
    max_new_tokens: int
    temperature: float
    top_p: float
    start: tuple[int, ...]
    cache: object = None  # the model's keys and values of `start`, once they are computed

    @torch.no_grad()  # not inference_mode: the model may be trained afterwards, with what was cached here
    def answers(self, batch: Sequence[_Job]) -> list[Answer]:
        """Padding follows the shared tokens, before the rest of a prompt."""
        if self.start and self.cache is None:
            self.cache = inference.prefill(self.model, self.start)
        same, width = len(self.start), max(len(job.ids) for job in batch)
        padding = [width - len(job.ids) for job in batch]
        ids = [[*job.ids[:same], *[0] * n, *job.ids[same:]] for job, n in zip(batch, padding, strict=True)]
        mask = [[1] * same + [0] * n + [1] * (width - same - n) for n in padding]
        device = self.model.get_input_embeddings().weight.device
        answers = cpu.decode(
            self.model,
            torch.tensor(ids, device=device),
            torch.tensor(mask, device=device),
            inference.repeat_cache(self.cache, len(batch)) if self.cache else None,
            self.stops,
            self.max_new_tokens,
            lambda new_tokens, going: self._settings(new_tokens, [batch[row].seed for row in going], width),
        )
        return [_answer(self.tokenizer, tokens, self.stops) for tokens in answers]

    def _settings(self, new_tokens: int, seeds: list[int], width: int) -> dict:
        config = GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,  # a processor's noise makes the largest logit a sample
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            use_cache=True,
            eos_token_id=self.stops,
            pad_token_id=0,  # any token: it is masked before a prompt, and left off after an answer's end
            return_dict_in_generate=True,  # the cache too, to go on from
        )
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
    # a lone surrogate, which a byte-level vocabulary can decode to, cannot be written as UTF-8
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
        # 31 of the bits, from (0, 1): the smallest decide a draw, and float32 keeps those apart
        uniform = bits.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2**-31).clamp_(max=1 - 2**-24)
        exponential = uniform.neg_().log1p_().neg_()
        return scores.float() - exponential.log_()


def _fmix32(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's finalizer on int32, in place: every bit of the input changes half of the output's. The
    masks make an arithmetic shift a logical one."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(0x85EBCA6B - 2**32)
    x.bitwise_xor_((x >> 13).bitwise_and_(0x7FFFF)).mul_(0xC2B2AE35 - 2**32)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def _seed(*parts) -> int:
    """60 bits of `parts`, in JSON's types."""
    return int(hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:15], 16)
