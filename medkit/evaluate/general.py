"""General ability that medicine did not train: the built-in questions by letter, the built-in texts by loss.

A text's loss is that of its tokens, each after those before it, the first after the beginning-of-text token
(or, where the tokenizer has none, the end-of-text token, as in lm-evaluation-harness).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from medkit import MedkitError
from medkit.evaluate import accuracy, inference, letter_scoring, statistics
from medkit.evaluate.store import Store, chunks
from medkit.records import MCQItem
from medkit.runs import storage

TEXTS_AT_ONCE = 8  # the logits of all their tokens are held, 4 bytes each


@dataclass(frozen=True, slots=True)
class Loss:
    """nll: negative log-likelihood of a text's `tokens` together, in nats."""

    nll: float
    tokens: int


class _Text(NamedTuple):
    key: str
    ids: list[int]


def losses(model, tokenizer, texts: Sequence[str], store, key: str) -> list[Loss]:
    """Each text's loss. store, key: as in letter_scoring.score. Raises MedkitError for an empty text, a
    tokenizer without a token to begin with, and losses that are not finite."""
    kept = Store(store, Loss, key)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise MedkitError("the tokenizer has no bos and no eos token; a text's first token has no loss")
    if not all(texts):
        raise MedkitError("an empty text has no perplexity; leave it out")
    rows = [[first, *tokenizer(text, add_special_tokens=False).input_ids] for text in texts]
    jobs, done = [_Text(kept.key("loss", ids), ids) for ids in rows], kept.read()
    with inference.evaluation_mode(model):
        kept.complete(
            done, chunks(jobs, TEXTS_AT_ONCE), lambda batch: _losses(model, [text.ids for text in batch])
        )
    return [done[text.key] for text in jobs]


@torch.no_grad()  # not inference_mode: the model may be trained afterwards, with what it cached here
def _losses(model, rows: list[list[int]]) -> list[Loss]:
    ids = inference.pad_right(model, rows)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu()
    lengths = [len(row) - 1 for row in rows]
    found = [Loss(float(own[:n].double().sum()), n) for own, n in zip(nll, lengths, strict=True)]
    if not np.isfinite([loss.nll for loss in found]).all():
        raise MedkitError(
            "the loss of a general text is not a finite number; load the model in bfloat16 or float32"
        )
    return found


def frame(name: str, items: Sequence[MCQItem], outcomes, found: Sequence[Loss]) -> pd.DataFrame:
    """The rows of mcq/general.csv: those of mcq/items.csv for the questions, and for each text `tokens` and
    `nll` (nats)."""
    questions = letter_scoring.frame(name, items, outcomes)
    texts = pd.DataFrame(
        {"model": name, "dataset": "text", "item_id": f"text-{i:03d}", "tokens": loss.tokens, "nll": loss.nll}
        for i, loss in enumerate(found)
    )
    return pd.concat([questions, texts], ignore_index=True)


def summary(rows: pd.DataFrame, seed: int = 0) -> dict:
    """{"models", "comparisons"} of the rows of mcq/general.csv; {} for none.

    models: per model n, correct, accuracy, low, high (Wilson) of the questions; texts, tokens, perplexity =
    exp(nats per token of all texts), perplexity_low, perplexity_high (95% bootstrap over texts).
    comparisons: accuracy.PAIRS, as statistics.compare has them, with p_holm over all of them, and
    loss_difference: nats per token, second minus first, paired (loss_low, loss_high); above 0 is worse.
    """
    if rows.empty:
        return {}
    questions, texts = rows[rows["dataset"] != "text"], rows[rows["dataset"] == "text"]
    by_model = {name: own.set_index("item_id") for name, own in texts.groupby("model", sort=False)}
    models = {}
    for name, own in by_model.items():
        loss = statistics.bootstrap((own["nll"], own["tokens"]), _per_token, seed)
        ends = loss.named("perplexity", "perplexity_")
        models[name] = storage.plain(accuracy.accuracy(questions[questions["model"] == name]))
        models[name] |= {"texts": loss.n, "tokens": int(own["tokens"].sum())}
        models[name] |= {end: float(np.exp(value)) for end, value in ends.items()}
    compared = accuracy.compare_arms(questions, seed)
    for row in compared:
        before, after = by_model[row["first"]], by_model[row["second"]]
        more = after["nll"].loc[before.index] - before["nll"]
        row |= statistics.bootstrap((more, before["tokens"]), _per_token, seed).named(
            "loss_difference", "loss_"
        )
    return storage.plain({"models": models, "comparisons": statistics.with_holm(compared)})


def _per_token(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    return nll.sum(axis=axis) / tokens.sum(axis=axis)
