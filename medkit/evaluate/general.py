"""General ability outside medicine: accuracy on the built-in questions, and loss on the built-in texts.

A text's loss covers all its tokens. The first is predicted from the beginning-of-text token or, if the
tokenizer has none, from the end-of-text token, as in lm-evaluation-harness.
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

TEXTS_AT_ONCE = 8  # limits memory: a batch's logits take 4 bytes per token and vocabulary entry


@dataclass(frozen=True, slots=True)
class Loss:
    """nll: negative log-likelihood of all `tokens` of a text together, in nats."""

    nll: float
    tokens: int


class _Text(NamedTuple):
    key: str
    ids: list[int]


def losses(model, tokenizer, texts: Sequence[str], store, key: str) -> list[Loss]:
    """The loss of each text. store, key: as in letter_scoring.score.

    Raises MedkitError for an empty text, a tokenizer without a token to begin with, and non-finite losses.
    """
    store = Store(store, Loss, key)
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if first is None:
        raise MedkitError("the tokenizer has no bos and no eos token; a text's first token has no loss")
    if not all(texts):
        raise MedkitError("an empty text has no perplexity; leave it out")
    rows = [[first, *tokenizer(text, add_special_tokens=False).input_ids] for text in texts]
    jobs, results = [_Text(store.key("loss", ids), ids) for ids in rows], store.read()
    with inference.evaluation_mode(model):
        batches = chunks(jobs, TEXTS_AT_ONCE)
        store.complete(results, batches, lambda batch: _losses(model, [text.ids for text in batch]))
    return [results[text.key] for text in jobs]


@torch.no_grad()  # not inference_mode: the model may be trained later, with tensors it cached here
def _losses(model, rows: list[list[int]]) -> list[Loss]:
    ids = inference.pad_right(model, rows)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").cpu()
    lengths = [len(row) - 1 for row in rows]
    batch = [Loss(float(row[:n].double().sum()), n) for row, n in zip(nll, lengths, strict=True)]
    if not np.isfinite([loss.nll for loss in batch]).all():
        raise MedkitError(
            "the loss of a general text is not a finite number; load the model in bfloat16 or float32"
        )
    return batch


def frame(name: str, items: Sequence[MCQItem], outcomes, text_losses: Sequence[Loss]) -> pd.DataFrame:
    """One model's rows of mcq/general.csv.

    Questions have the columns of mcq/items.csv; texts have `tokens` and `nll` (nats).
    """
    questions = letter_scoring.frame(name, items, outcomes)
    texts = pd.DataFrame(
        {"model": name, "dataset": "text", "item_id": f"text-{i:03d}", "tokens": loss.tokens, "nll": loss.nll}
        for i, loss in enumerate(text_losses)
    )
    return pd.concat([questions, texts], ignore_index=True)


def summary(rows: pd.DataFrame, seed: int = 0) -> dict:
    """{"models", "comparisons"} from the rows of mcq/general.csv; {} if there are none.

    models: for the questions n, correct, accuracy, low, high (Wilson). For the texts their number (texts),
    tokens, perplexity = exp(nats per token over all texts), perplexity_low and perplexity_high (95% bootstrap
    over texts).
    comparisons: those of accuracy.PAIRS, as statistics.compare returns them, with p_holm over all of them and
    the paired loss_difference (loss_low, loss_high) in nats per token, second minus first; above 0 is worse.
    """
    if rows.empty:
        return {}
    questions, texts = rows[rows["dataset"] != "text"], rows[rows["dataset"] == "text"]
    texts_by_model = {
        model: group.set_index("item_id") for model, group in texts.groupby("model", sort=False)
    }
    models = {}
    for model, group in texts_by_model.items():
        loss = statistics.bootstrap((group["nll"], group["tokens"]), _per_token, seed)
        perplexity = loss.as_dict("perplexity", "perplexity_")
        models[model] = storage.plain(accuracy.accuracy(questions[questions["model"] == model]))
        models[model] |= {"texts": loss.n, "tokens": int(group["tokens"].sum())}
        models[model] |= {name: float(np.exp(value)) for name, value in perplexity.items()}
    comparisons = accuracy.compare_arms(questions, seed)
    for row in comparisons:
        first, second = texts_by_model[row["first"]], texts_by_model[row["second"]]
        difference = second["nll"].loc[first.index] - first["nll"]
        loss = statistics.bootstrap((difference, first["tokens"]), _per_token, seed)
        row |= loss.as_dict("loss_difference", "loss_")
    return storage.plain({"models": models, "comparisons": statistics.with_holm(comparisons)})


def _per_token(nll: np.ndarray, tokens: np.ndarray, axis: int = -1) -> np.ndarray:
    return nll.sum(axis=axis) / tokens.sum(axis=axis)
