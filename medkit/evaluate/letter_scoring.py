"""Letter scoring: which option a model holds most likely, from one forward pass a question.

The letters' log-probabilities are read where the answer begins, at the prompt's last token. Any causal
language model of Transformers will do, with an adapter or in 4 bits, on any device.

The letters' logits are computed in float32 from the last hidden state: in bfloat16 a logit between 16 and 32
has steps of 0.125, and some questions in a hundred would end in an exact tie.

A prediction does not depend on the batch it was computed in. Rounding does, so a question whose two best
letters lie within TOLERANCE of each other is scored again alone, unpadded and without the shared prefix, and
that counts; how often it changed the letter is reported.
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

# Logit differences (nats) that a batch, padding or the shared prefix can make, by the dtype computed in.
# Measured on SmolLM2-135M in bfloat16 (DECISIONS.md): with logits in bfloat16 too, leads below 1 moved by at
# most 0.25, one step between 32 and 64, and no letter that led by more was changed; in float32 they moved by
# less.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.05, torch.bfloat16: 0.5}


@dataclass(frozen=True, slots=True)
class Outcome:
    """`predicted` is a letter, or "" where the model's logits were not finite, or (`too_long`) the prompt
    does not fit in the model's context: a wrong answer, not a gap.

    `logprobs`: of the item's letters, in nats, normalized over those letters; empty where not finite.
    `tied`: the two best letters have exactly the same logit, and the first of them is taken.
    `rescored`: scored again alone, as a near-tie; `flipped`: which changed the letter; `moved`: by how much
    (nats) that changed the lead of one letter over another at most.
    """

    predicted: str
    logprobs: tuple[float, ...]
    tied: bool = False
    rescored: bool = False
    flipped: bool = False
    too_long: bool = False
    moved: float = 0.0


class Scored(NamedTuple):
    """outcomes: one an item, in the items' order; report: how they were computed."""

    outcomes: list[Outcome]
    report: dict


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

    encode: an item's token ids up to where the answer begins; default: the kit's prompt in the model's own
        chat template. letter_tokens: the token of A, B, C, D there; default: the letter without a space.
    max_batch_tokens: of a batch, padding included; a longer prompt is a batch of its own.
    prefix_cache: compute the tokens that all prompts begin with once. Checked on the shortest question
        against the plain pass; where the model does not take a cache, or the numbers differ, it is not
        used, and the report's `prefix_note` says why.
    store: JSON Lines file to which each finished batch is appended, so that a killed evaluation resumes with
        the same result; entries are found by `key` (identities.of_model), dtype, template, prompt and item.
    report: n, too_long (for the model's context), invalid (not finite), ties, rescored, flips, largest_move,
        tolerance, dtype, head_note (why the letters' logits are the model's own, in its dtype; "" where they
        are float32), prefix_tokens, prefix_note, from_store, seconds, items_per_s (of those computed now).

    Raises MedkitError for an empty prompt, a store without a key, no chat template, letters of two tokens.
    """
    started = time.monotonic()
    dtype, kept = compute_dtype(model), Store(store, Outcome, key)
    questions = _questions(tokenizer, items, encode, letter_tokens, f"{dtype} float32 letters", kept)
    done = kept.read()
    from_store = sum(question.key in done for question in questions)
    places = inference.context_length(model) or math.inf
    # Longest first: little padding, and a batch that does not fit in memory shows itself at once.
    short = sorted((q for q in questions if len(q.ids) <= places), key=lambda q: -len(q.ids))
    done |= {q.key: Outcome("", (), too_long=True) for q in questions if len(q.ids) > places}
    to_compute = sum(question.key not in done for question in short)
    start = prompts.shared_prefix([question.ids for question in short] if prefix_cache else [])
    scorer = _Scorer(model, questions, dtype)
    with inference.evaluation_mode(model):
        if to_compute:
            scorer.prepare(start, probe=short[-1])  # the shortest is the cheapest
        batches = list(_batches(short, len(start), max_batch_tokens))
        kept.complete(done, batches, scorer.outcomes, "question" if progress else "")
    seconds = time.monotonic() - started
    outcomes = [done[question.key] for question in questions]
    report = _counts(outcomes) | {
        "tolerance": TOLERANCE[dtype],
        "dtype": str(dtype).removeprefix("torch."),
        "head_note": scorer.head_note,
        "prefix_tokens": 0 if scorer.prefix_note else len(start),
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
    """The rows of mcq/items.csv; an unknown log-probability is NaN."""
    logprobs = [f"logprob_{letter}" for letter in LETTERS]
    columns = ["model", "dataset", "item_id", "gold", "predicted", "correct", *logprobs, "group"]
    rows = []
    for item, outcome in zip(items, outcomes, strict=True):
        known = [*outcome.logprobs, *[math.nan] * (len(LETTERS) - len(outcome.logprobs))]
        row = [model_name, item.source, item.id, item.answer, outcome.predicted]
        rows.append([*row, outcome.predicted == item.answer, *known, item.group])
    return pd.DataFrame(rows, columns=columns)


def compute_dtype(model) -> torch.dtype:
    """The coarsest floating dtype the model computes in; for 4-bit layers that of their products."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.dtype in TOLERANCE}
    found |= {d for module in model.modules() if (d := getattr(module, "compute_dtype", None)) in TOLERANCE}
    return max(found, key=TOLERANCE.__getitem__, default=torch.float32)


class _Scorer:
    """A model's letter logits at the end of prompts, in batches."""

    def __init__(self, model, questions: Sequence[_Question], dtype: torch.dtype):
        self.model, self.dtype, self.tolerance = model, dtype, TOLERANCE[dtype]
        self.letters: list[int] = max((list(q.letters) for q in questions), key=len, default=[])
        self.head: LetterHead | None = None  # None: the model's own logits are read
        self.prefix, self.cache = 0, None  # tokens that are computed already, and their keys and values
        self.head_note = self.prefix_note = ""

    def prepare(self, start: tuple[int, ...], probe: _Question) -> None:
        """Go over to float32 logits and to the shared `start`, as far as `probe` comes out the same; the
        notes say why not."""
        self.head_note = self._use_float32(probe)
        if start:
            self.prefix_note = self._share(start, probe)
        if self.prefix_note:
            self.prefix, self.cache = 0, None

    def outcomes(self, batch: Sequence[_Question]) -> list[Outcome]:
        alone = len(batch) == 1 and not self.prefix
        found = []
        for question, logits in zip(batch, self.logits(batch), strict=True):
            outcome, gap = _outcome(logits)
            if not alone and gap < self.tolerance:
                again, _ = _outcome(self.logits([question], alone=True)[0])
                changes = [a - b for a, b in zip(again.logprobs, outcome.logprobs, strict=True)] or [0.0]
                flipped, moved = again.predicted != outcome.predicted, max(changes) - min(changes)
                outcome = replace(again, rescored=True, flipped=flipped, moved=moved)
            found.append(outcome)
        return found

    def _use_float32(self, probe: _Question) -> str:
        """Compute the letters' logits in float32 from here on, or say why that is not what the model
        computes."""
        try:
            head = LetterHead.of(self.model, self.letters)  # before a pass, in which a CPU may repack 4 bits
            own, hidden = self._pass([probe], 0, None)
            exact = None if hidden is None else head(hidden)
        except (torch.OutOfMemoryError, MedkitError):
            raise
        except Exception as error:  # an output layer of an unknown kind
            return f"the output layer's weights cannot be read ({type(error).__name__})"
        if exact is None:
            return "the model's code does not call its output layer"
        apart = (exact - own).abs().max().item()
        if not apart <= max(self.tolerance, 4 * torch.finfo(self.dtype).eps * own.abs().max().item()):
            return f"the model's own logits differ from them by {apart:.2g}"
        self.head = head
        return ""

    def _share(self, start: tuple[int, ...], probe: _Question) -> str:
        """Compute `start` once for all that follows, or say why the model cannot."""
        (alone,) = self.logits([probe], alone=True)
        try:
            with _last_only(self.model, torch.tensor([len(start) - 1])):
                self.cache = inference.prefill(self.model, start)
            self.prefix = len(start)
            shared = self.logits([probe, probe])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a model's code does with a cache it was not written for
            return f"the model takes no shared prefix ({type(error).__name__})"
        apart = max(((row - row.max()) - (alone - alone.max())).abs().max().item() for row in shared)
        return (
            "" if apart <= 2 * self.tolerance else f"with the shared prefix the logits differ by {apart:.2g}"
        )

    def logits(self, batch: Sequence[_Question], alone: bool = False) -> list[torch.Tensor]:
        """Per question its letters' logits, float32; alone: without the shared prefix."""
        if alone or self.cache is None:
            logits, hidden = self._pass(batch, 0, None)
        else:
            logits, hidden = self._pass(batch, self.prefix, inference.repeat_cache(self.cache, len(batch)))
        if self.head and hidden is not None:  # Unsloth multiplies a single token by hand
            logits = self.head(hidden)
        return [row[: len(question.letters)] for row, question in zip(logits, batch, strict=True)]

    @torch.no_grad()  # not inference_mode: the model may be trained afterwards, with what it cached here
    def _pass(self, batch: Sequence[_Question], skip: int, cache) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(the model's own logits of the letters, (rows, letters), on the CPU; what its output layer was
        given there, (rows, hidden size), or None where its code does not call that layer)."""
        rows = [question.ids[skip:] for question in batch]
        last = torch.tensor([len(row) - 1 for row in rows])
        with _last_only(self.model, last) as given_to_head:
            given = {"past_key_values": cache, "use_cache": True} if skip else {"use_cache": False}
            logits = self.model(input_ids=inference.pad_right(self.model, rows), **given).logits
        at = last.to(logits.device) if logits.shape[1] > 1 else 0
        logits = logits[torch.arange(len(batch), device=logits.device), at]
        return logits[:, self.letters].float().cpu(), given_to_head[0] if given_to_head else None


@contextlib.contextmanager
def _last_only(model, last: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Only each row's last real position goes through the output layer and, on a CPU, the last block's MLP.
    Yields a list that what the output layer is given, (rows, hidden size), is put into.

    At a vocabulary of 50,000 and more the logits of every position would cost a fifth of a small model's
    time, and most of its memory. A hook leaves whatever the model does to its logits (scaling, capping) in
    force, which calling the layers by hand would not; where a model's code skips the layer, its logits come
    back for every position and the caller takes them there.
    The last MLP's one position is added to the residual of every position, which is right at the last of
    them, and no other is read after it.
    """
    head, given_to_head = model.get_output_embeddings(), []

    def select(layer, inputs):
        hidden = inputs[0]
        if hidden.shape[0] != len(last) or hidden.shape[1] <= int(last.max()):
            return None
        chosen = hidden[torch.arange(len(last), device=hidden.device), last.to(hidden.device)]
        if layer is head:
            given_to_head.append(chosen)
        return (chosen[:, None], *inputs[1:])

    layers = [head]
    if head.weight.device.type == "cpu" and hasattr(model, "get_decoder"):
        blocks = getattr(model.get_decoder(), "layers", None)
        layers += [blocks[-1].mlp] if blocks and hasattr(blocks[-1], "mlp") else []
    hooks = [layer.register_forward_pre_hook(select) for layer in layers]
    try:
        yield given_to_head
    finally:
        for hook in hooks:
            hook.remove()


def _outcome(logits: torch.Tensor) -> tuple[Outcome, float]:
    """The outcome, and by how much (nats) the best letter leads; of equals the first letter is taken."""
    logprobs = torch.log_softmax(logits, dim=0)
    if not torch.isfinite(logprobs).all():
        return Outcome("", ()), math.inf
    best = torch.topk(logits, 2).values
    lead = float(best[0] - best[1])
    return Outcome(LETTERS[int(logits.argmax())], tuple(logprobs.tolist()), tied=lead == 0), lead


def _questions(tokenizer, items, encode, letter_tokens, how: str, store: Store) -> list[_Question]:
    if encode is None or letter_tokens is None:
        place = prompts.letter_position(tokenizer, "letter")
        encode, letter_tokens = encode or place["encode"], letter_tokens or place["letter_tokens"]
    questions = []
    for item in items:
        ids, letters = tuple(encode(item)), tuple(letter_tokens[: len(item.letters)])
        if not ids:
            raise MedkitError(
                f"{item.source} {item.id}: its prompt is empty; encode must give one token at least"
            )
        key = store.key(how, tokenizer.chat_template, ids, letters, asdict(item))
        questions.append(_Question(ids, letters, key))
    return questions


def _batches(questions: Sequence[_Question], skip: int, max_tokens: int) -> Iterator[list[_Question]]:
    batch: list[_Question] = []
    for question in questions:
        width = len((batch or [question])[0].ids) - skip  # the longest comes first
        if batch and (len(batch) + 1) * width > max_tokens:
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch
