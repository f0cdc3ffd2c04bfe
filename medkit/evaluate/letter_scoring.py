"""Letter scoring: the option that a model finds most likely, from one forward pass per question.

The letters' log-probabilities are read at the last token before the letter (see prompts.letter_position).
Works with any causal language model of Transformers, with or without an adapter or 4-bit weights, on any
device.

The letters' logits are computed in float32 from the last hidden state. In bfloat16, logits between 16 and 32
are multiples of 0.125, and a few percent of the questions would be exact ties.

Rounding errors depend on the batch, but predictions must not. A question whose two best letters are within
TOLERANCE is therefore scored again on its own, without padding or shared prefix, and this result counts. The
report says how often it changed the letter.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from medkit import MedkitError, prompts
from medkit.evaluate import inference
from medkit.evaluate.letter_head import LetterHead
from medkit.evaluate.store import Store
from medkit.records import LETTERS, MCQItem

# Logit differences (nats) that batching, padding or the shared prefix can cause, by compute dtype. Measured
# on SmolLM2-135M in bfloat16 (DECISIONS.md): with bfloat16 logits, leads below 1 changed by at most 0.25, one
# step between 32 and 64, and no letter with a larger lead changed. With float32 logits, leads changed less.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.05, torch.bfloat16: 0.5}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one question."""

    predicted: str  # letter; "", which counts as wrong, if logits are not finite or the prompt is too long
    logprobs: tuple[float, ...]  # of the item's letters, in nats, normalized over them; empty if not finite
    tied: bool = False  # the two best letters have equal logits; the first is predicted
    rescored: bool = False  # scored again on its own, as a near-tie
    flipped: bool = False  # rescoring changed the letter
    too_long: bool = False  # the prompt exceeds the model's context
    moved: float = 0.0  # rescoring's largest change (nats) in the lead of one letter over another


class Scored(NamedTuple):
    """The result of `score`."""

    outcomes: list[Outcome]  # one per item, in order
    report: dict  # how they were computed


@dataclass(frozen=True, slots=True)
class _Question:
    ids: tuple[int, ...]  # the prompt
    letters: tuple[int, ...]  # token ids of the item's letters
    key: str


def score(
    model,
    tokenizer,
    items: Sequence[MCQItem],
    *,
    encode: Callable[[MCQItem], list[int]] | None = None,
    letter_tokens: Sequence[int] | None = None,
    max_batch_tokens: int = 8192,
    prefix_cache: bool = True,
    store: str | Path | None = None,
    key: str = "",
    progress: bool = True,
) -> Scored:
    """Score every item by letter.

    encode: returns an item's token ids up to the answer; default: medkit's prompt in the chat template.
    letter_tokens: token ids of A, B, C, D there; default: letters without a space before them.
    max_batch_tokens: tokens per batch including padding; a longer prompt gets its own batch.
    prefix_cache: compute the common prefix of all prompts once, unless this fails or changes the logits of
        the shortest question (the report's `prefix_note` says how).
    store: JSON Lines file to which finished batches are appended, so that an interrupted evaluation resumes.
        Its entries are identified by `key` (identities.of_model), dtype, template, prompt and item.

    The report contains n, too_long (for the model's context), invalid (not finite), ties, rescored, flips,
    largest_move, tolerance, dtype, head_note ("" for float32 logits, otherwise why the model's own are used),
    prefix_tokens, prefix_note, from_store, seconds, items_per_s (without those from the store).

    Raises MedkitError for an empty prompt, a store without a key, a missing chat template, or letters that
    are not single tokens.
    """
    started = time.monotonic()
    dtype, saved = compute_dtype(model), Store(store, Outcome, key)
    questions = _questions(tokenizer, items, encode, letter_tokens, f"{dtype} float32 letters", saved)
    results = saved.read()
    from_store = sum(question.key in results for question in questions)
    context = inference.context_length(model) or math.inf
    # Longest first: this minimizes padding, and a batch that does not fit in memory fails at once.
    fitting = sorted((q for q in questions if len(q.ids) <= context), key=lambda q: -len(q.ids))
    results |= {q.key: Outcome("", (), too_long=True) for q in questions if len(q.ids) > context}
    to_compute = sum(question.key not in results for question in fitting)
    prefix = prompts.shared_prefix([question.ids for question in fitting] if prefix_cache else [])
    scorer = _Scorer(model, questions, dtype)
    with inference.evaluation_mode(model):
        if to_compute:
            scorer.prepare(prefix, probe=fitting[-1])  # the shortest is the cheapest
        batches = list(_batches(fitting, len(prefix), max_batch_tokens))
        saved.complete(results, batches, scorer.outcomes, "question" if progress else "")
    seconds = time.monotonic() - started
    outcomes = [results[question.key] for question in questions]
    report = _counts(outcomes) | {
        "tolerance": TOLERANCE[dtype],
        "dtype": str(dtype).removeprefix("torch."),
        "head_note": scorer.head_note,
        "prefix_tokens": 0 if scorer.prefix_note else len(prefix),
        "prefix_note": scorer.prefix_note,
        "from_store": from_store,
        "seconds": seconds,
        "items_per_s": to_compute / seconds,
    }
    return Scored(outcomes, report)


def _counts(outcomes: list[Outcome]) -> dict:
    return {
        "n": len(outcomes),
        "too_long": sum(outcome.too_long for outcome in outcomes),
        "invalid": sum(not (outcome.predicted or outcome.too_long) for outcome in outcomes),
        "ties": sum(outcome.tied for outcome in outcomes),
        "rescored": sum(outcome.rescored for outcome in outcomes),
        "flips": sum(outcome.flipped for outcome in outcomes),
        "largest_move": max((outcome.moved for outcome in outcomes), default=0.0),
    }


def frame(model_name: str, items: Sequence[MCQItem], outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """The rows of mcq/items.csv. Missing log-probabilities are NaN."""
    logprobs = [f"logprob_{letter}" for letter in LETTERS]
    columns = ["model", "dataset", "item_id", "gold", "predicted", "correct", *logprobs, "group"]
    rows = []
    for item, outcome in zip(items, outcomes, strict=True):
        padded = [*outcome.logprobs, *[math.nan] * (len(LETTERS) - len(outcome.logprobs))]
        row = [model_name, item.source, item.id, item.answer, outcome.predicted]
        rows.append([*row, outcome.predicted == item.answer, *padded, item.group])
    return pd.DataFrame(rows, columns=columns)


def compute_dtype(model) -> torch.dtype:
    """The coarsest floating dtype the model computes in. 4-bit layers count with their compute dtype."""
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.dtype in TOLERANCE}
    dtypes |= {d for module in model.modules() if (d := getattr(module, "compute_dtype", None)) in TOLERANCE}
    return max(dtypes, key=TOLERANCE.__getitem__, default=torch.float32)


class _Scorer:
    """Computes a model's letter logits at the end of prompts, in batches."""

    def __init__(self, model, questions: Sequence[_Question], dtype: torch.dtype):
        self.model, self.dtype, self.tolerance = model, dtype, TOLERANCE[dtype]
        self.letters: list[int] = max((list(q.letters) for q in questions), key=len, default=[])
        self.head: LetterHead | None = None  # None: use the model's logits
        self.prefix_length, self.cache = 0, None  # the shared prefix and its keys and values
        self.head_note = self.prefix_note = ""

    def prepare(self, prefix: tuple[int, ...], probe: _Question) -> None:
        """Enable float32 logits and the shared prefix, each if it reproduces the logits of `probe`."""
        self.head_note = self._enable_float32(probe)
        if prefix:
            self.prefix_note = self._enable_prefix(prefix, probe)
        if self.prefix_note:
            self.prefix_length, self.cache = 0, None

    def outcomes(self, batch: Sequence[_Question]) -> list[Outcome]:
        alone = len(batch) == 1 and not self.prefix_length
        outcomes = []
        for question, logits in zip(batch, self.logits(batch), strict=True):
            outcome, lead = _outcome(logits)
            if not alone and lead < self.tolerance:
                again, _ = _outcome(self.logits([question], alone=True)[0])
                changes = [a - b for a, b in zip(again.logprobs, outcome.logprobs, strict=True)] or [0.0]
                flipped, moved = again.predicted != outcome.predicted, max(changes) - min(changes)
                outcome = replace(again, rescored=True, flipped=flipped, moved=moved)
            outcomes.append(outcome)
        return outcomes

    def _enable_float32(self, probe: _Question) -> str:
        """Compute the letters' logits in float32 from now on. Returns "" or why this is impossible."""
        try:
            head = LetterHead.of(self.model, self.letters)  # before a pass, in which a CPU may repack 4 bits
            model_logits, hidden = self._forward([probe], 0, None)
            head_logits = None if hidden is None else head(hidden)
        except (torch.OutOfMemoryError, MedkitError):
            raise
        except Exception as error:  # an unknown kind of output layer
            return f"the output layer's weights cannot be read ({type(error).__name__})"
        if head_logits is None:
            return "the model's code does not call its output layer"
        gap = (head_logits - model_logits).abs().max().item()
        rounding = 4 * torch.finfo(self.dtype).eps * model_logits.abs().max().item()
        if not gap <= max(self.tolerance, rounding):
            return f"the model's own logits differ from them by {gap:.2g}"
        self.head = head
        return ""

    def _enable_prefix(self, prefix: tuple[int, ...], probe: _Question) -> str:
        """Compute `prefix` once for all later batches. Returns "" or why the model cannot use it."""
        (alone,) = self.logits([probe], alone=True)
        try:
            with _last_only(self.model, torch.tensor([len(prefix) - 1])):
                self.cache = inference.prefill(self.model, prefix)
            self.prefix_length = len(prefix)
            shared = self.logits([probe, probe])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # model code may not support a given cache
            return f"the model takes no shared prefix ({type(error).__name__})"
        gap = max(((row - row.max()) - (alone - alone.max())).abs().max().item() for row in shared)
        return "" if gap <= 2 * self.tolerance else f"with the shared prefix the logits differ by {gap:.2g}"

    def logits(self, batch: Sequence[_Question], alone: bool = False) -> list[torch.Tensor]:
        """Each question's letter logits, in float32. alone: without the shared prefix."""
        if alone or self.cache is None:
            logits, hidden = self._forward(batch, 0, None)
        else:
            cache = inference.repeat_cache(self.cache, len(batch))
            logits, hidden = self._forward(batch, self.prefix_length, cache)
        if self.head and hidden is not None:  # Unsloth bypasses the output layer for a single token
            logits = self.head(hidden)
        return [row[: len(question.letters)] for row, question in zip(logits, batch, strict=True)]

    @torch.no_grad()  # not inference_mode: the model may be trained later, with tensors it cached here
    def _forward(
        self, batch: Sequence[_Question], skip: int, cache
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(logits, hidden) at each prompt's last token: the model's letter logits, (rows, letters), on the
        CPU, and the inputs of its output layer, (rows, hidden size), or None if its code bypasses the layer.

        `cache` contains the first `skip` tokens.
        """
        rows = [question.ids[skip:] for question in batch]
        last = torch.tensor([len(row) - 1 for row in rows])
        with _last_only(self.model, last) as head_inputs:
            options = {"past_key_values": cache, "use_cache": True} if skip else {"use_cache": False}
            logits = self.model(input_ids=inference.pad_right(self.model, rows), **options).logits
        positions = last.to(logits.device) if logits.shape[1] > 1 else 0
        logits = logits[torch.arange(len(batch), device=logits.device), positions]
        return logits[:, self.letters].float().cpu(), head_inputs[0] if head_inputs else None


@contextlib.contextmanager
def _last_only(model, last: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Run the output layer and, on a CPU, the last block's MLP only at each row's last token (`last`).

    Yields a list that receives the inputs of the output layer, (rows, hidden size). With a vocabulary of
    50,000 or more, logits at every position would take a fifth of a small model's time and most of its
    memory. A hook keeps the model's scaling and capping of logits, unlike calling the layers directly. If the
    model's code bypasses the layer, it returns logits for all positions and the caller selects them.

    The MLP's single output is added to the residual of every position. This is correct at the last position,
    and no other is read.
    """
    head, head_inputs = model.get_output_embeddings(), []

    def select(layer, inputs):
        hidden = inputs[0]
        if hidden.shape[0] != len(last) or hidden.shape[1] <= int(last.max()):
            return None
        selected = hidden[torch.arange(len(last), device=hidden.device), last.to(hidden.device)]
        if layer is head:
            head_inputs.append(selected)
        return (selected[:, None], *inputs[1:])

    layers = [head]
    if head.weight.device.type == "cpu" and hasattr(model, "get_decoder"):
        blocks = getattr(model.get_decoder(), "layers", None)
        layers += [blocks[-1].mlp] if blocks and hasattr(blocks[-1], "mlp") else []
    hooks = [layer.register_forward_pre_hook(select) for layer in layers]
    try:
        yield head_inputs
    finally:
        for hook in hooks:
            hook.remove()


def _outcome(logits: torch.Tensor) -> tuple[Outcome, float]:
    """(outcome, lead of the best letter in nats). In a tie the first letter is predicted."""
    logprobs = torch.log_softmax(logits, dim=0)
    if not torch.isfinite(logprobs).all():
        return Outcome("", ()), math.inf
    best = torch.topk(logits, 2).values
    lead = float(best[0] - best[1])
    return Outcome(LETTERS[int(logits.argmax())], tuple(logprobs.tolist()), tied=lead == 0), lead


def _questions(tokenizer, items, encode, letter_tokens, method: str, store: Store) -> list[_Question]:
    if encode is None or letter_tokens is None:
        default = prompts.letter_position(tokenizer, "letter")
        encode, letter_tokens = encode or default["encode"], letter_tokens or default["letter_tokens"]
    questions = []
    for item in items:
        ids, letters = tuple(encode(item)), tuple(letter_tokens[: len(item.letters)])
        if not ids:
            raise MedkitError(
                f"{item.source} {item.id}: its prompt is empty; encode must return at least one token"
            )
        key = store.key(method, tokenizer.chat_template, ids, letters, asdict(item))
        questions.append(_Question(ids, letters, key))
    return questions


def _batches(questions: Sequence[_Question], skip: int, max_tokens: int) -> Iterator[list[_Question]]:
    batch: list[_Question] = []
    for question in questions:
        width = len((batch or [question])[0].ids) - skip  # the first is the longest
        if batch and (len(batch) + 1) * width > max_tokens:
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch
