"""General ability that medicine did not train: the built-in questions by letter, the built-in texts by loss.

A text's loss is that of its own tokens, each after those before it, the first after the beginning-of-text
token (or, where the tokenizer has none, the end-of-text token, as in lm-evaluation-harness).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from medkit import MedkitError
from medkit.evaluate import accuracy, inference, letter_scoring, statistics
from medkit.evaluate.store import Store
from medkit.records import MCQItem
from medkit.runs import storage

TEXTS_AT_ONCE = 8  # the logits of all their tokens are held, 4 bytes each
COLUMNS = ["tokens", "nll"]  # beside those of mcq/items.csv


class PerplexityError(MedkitError):
    """A text or a model that has no perplexity."""


@dataclass(frozen=True, slots=True)
class Loss:
    """nll: negative log-likelihood of a text's `tokens` together, in nats."""

    nll: float
    tokens: int


def losses(model, tokenizer, texts: Sequence[str], store, key: str) -> list[Loss]:
    """Each text's loss. store, key: as in letter_scoring.score. Raises PerplexityError for an empty text, a
    tokenizer without a token to begin with, and losses that are not finite."""
    kept = Store(store, Loss, key)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise PerplexityError("the tokenizer has no bos and no eos token; a text's first token has no loss")
    ids = [[first, *tokenizer(text, add_special_tokens=False).input_ids] for text in texts]
    if min(map(len, ids), default=2) < 2:
        raise PerplexityError("an empty text has no perplexity; leave it out")
    keys, done = [kept.key("loss", one) for one in ids], kept.read()
    with inference.evaluating(model):
        for start in range(0, len(ids), TEXTS_AT_ONCE):
            batch = slice(start, start + TEXTS_AT_ONCE)
            if not done.keys() >= set(keys[batch]):
                found = dict(zip(keys[batch], _losses(model, ids[batch]), strict=True))
                kept.add({name: one for name, one in found.items() if name not in done})
                done |= found
    return [done[name] for name in keys]


@torch.no_grad()  # not inference_mode: the model may be trained afterwards, with what it cached here
def _losses(model, rows: list[list[int]]) -> list[Loss]:
    """Padding is on the right, where no token of a causal model sees it."""
    width = max(map(len, rows))
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu()
    found = [
        Loss(float(own[: len(row) - 1].double().sum()), len(row) - 1)
        for own, row in zip(nll, rows, strict=True)
    ]
    if not np.isfinite([one.nll for one in found]).all():
        raise PerplexityError(
            "the loss of a general text is not a finite number; load the model in bfloat16 or float32"
        )
    return found


def frame(name: str, items: Sequence[MCQItem], outcomes, found: Sequence[Loss]) -> pd.DataFrame:
    """The rows of mcq/general.csv: those of mcq/items.csv for the questions, and for each text `tokens` and
    `nll` (nats)."""
    questions = letter_scoring.frame(name, items, outcomes)
    texts = pd.DataFrame(
        {"model": name, "dataset": "text", "item_id": f"text-{i:03d}", "tokens": one.tokens, "nll": one.nll}
        for i, one in enumerate(found)
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
    questions, texts = (rows[own] for own in (rows["dataset"] != "text", rows["dataset"] == "text"))
    by_model = {name: own.set_index("item_id") for name, own in texts.groupby("model", sort=False)}
    models = {}
    for name, own in by_model.items():
        one = statistics.bootstrap((own["nll"], own["tokens"]), _per_token, seed)
        models[name] = storage.plain(accuracy.accuracy(questions[questions["model"] == name]))
        models[name] |= {"texts": one.n, "tokens": int(own["tokens"].sum())}
        ends = {"perplexity": one.mean, "perplexity_low": one.low, "perplexity_high": one.high}
        models[name] |= {end: float(np.exp(value)) for end, value in ends.items()}
    compared = []
    for first, second, shows in accuracy.PAIRS:
        if {first, second} <= by_model.keys():
            pair = statistics.compare(*accuracy.paired_outcomes(questions, first, second), seed=seed)
            before, after = by_model[first], by_model[second].loc[by_model[first].index]
            loss = statistics.bootstrap((after["nll"] - before["nll"], before["tokens"]), _per_token, seed)
            row = {"first": first, "second": second, "shows": shows, **storage.plain(pair)}
            compared.append(
                row | {"loss_difference": loss.mean, "loss_low": loss.low, "loss_high": loss.high}
            )
    adjusted = statistics.holm([row["p"] for row in compared])
    compared = [row | {"p_holm": p} for row, p in zip(compared, adjusted, strict=True)]
    return storage.plain({"models": models, "comparisons": compared})


def _per_token(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    return nll.sum(axis=axis) / tokens.sum(axis=axis)
