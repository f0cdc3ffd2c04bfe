"""Sensitivity to the order of the options: each question in all cyclic orders.

Order k moves every option k positions back and the last k options to the front. Over all orders, each option
has each letter once.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from medkit.evaluate import statistics
from medkit.evaluate.accuracy import by_dataset
from medkit.evaluate.calibration import LOGPROBS
from medkit.records import LETTERS, MCQItem
from medkit.runs import storage

COLUMNS = ["model", "dataset", "item_id", "rotation", "gold", "predicted", *LOGPROBS]


def rotated(item: MCQItem, rotation: int) -> MCQItem:
    """The question in cyclic order `rotation` with its gold letter adapted. Order 0 is the original."""
    count = len(item.options)
    options = tuple(item.options[(position - rotation) % count] for position in range(count))
    gold = (LETTERS.index(item.answer) + rotation) % count
    return replace(item, options=options, answer=LETTERS[gold])


def rotations(items: Sequence[MCQItem]) -> list[tuple[int, MCQItem]]:
    """(k, question in order k) for all orders of each question except the original."""
    return [(k, rotated(item, k)) for item in items for k in range(1, len(item.options))]


def summary(orders: pd.DataFrame, seed: int = 0) -> dict:
    """Results per benchmark (and "all" together) and model, from mcq/permutations.csv (COLUMNS).

    Letters and log-probabilities in the rows refer to the rotated order. All shares are fractions.

    n: questions.
    accuracies: one per order, the original first. For "all", only the orders that every question has.
    consistency (low, high: Wilson): share of questions with the same chosen option, whatever its letter, in
        every order. A question without an answer in some order is not consistent.
    vote_accuracy (vote_low, vote_high): accuracy of the option with the highest mean log-probability over the
        orders (the first in a tie). Orders without log-probabilities are ignored.
    vote_minus_original: paired comparison, see statistics.compare.
    position_bias: per letter, its share of the answers minus its share of the gold letters.
    unanswered: number of answers without a letter.
    """
    parts = by_dataset(orders) | ({"all": orders} if len(orders) else {})
    return storage.plain(
        {
            name: {model: _summarize(group, seed) for model, group in rows.groupby("model", sort=False)}
            for name, rows in parts.items()
        }
    )


def _summarize(rows: pd.DataFrame, seed: int) -> dict:
    rows = rows.assign(predicted=rows["predicted"].fillna(""))
    questions = [q.sort_values("rotation") for _, q in rows.groupby(["dataset", "item_id"], sort=False)]
    sizes = [len(question) for question in questions]
    correct = [(question["predicted"] == question["gold"]).to_numpy() for question in questions]
    original = np.array([outcomes[0] for outcomes in correct])
    voted = np.array([_vote(question) == LETTERS.index(question["gold"].iloc[0]) for question in questions])
    consistency = statistics.wilson(sum(map(_consistent, questions)), len(questions))
    vote = statistics.wilson(int(voted.sum()), len(questions))
    return {
        "n": len(questions),
        "accuracies": [float(np.mean([outcomes[k] for outcomes in correct])) for k in range(min(sizes))],
        "consistency": consistency.accuracy,
        "low": consistency.low,
        "high": consistency.high,
        "vote_accuracy": vote.accuracy,
        "vote_low": vote.low,
        "vote_high": vote.high,
        "vote_minus_original": storage.plain(statistics.compare(original, voted, seed)),
        "position_bias": {
            letter: float((rows["predicted"] == letter).mean() - (rows["gold"] == letter).mean())
            for letter in LETTERS[: max(sizes)]
        },
        "unanswered": int((rows["predicted"] == "").sum()),
    }


def _consistent(question: pd.DataFrame) -> bool:
    """Whether the same option was chosen in every order."""
    answers = zip(question["rotation"], question["predicted"], strict=True)
    chosen = {(LETTERS.index(letter) - k) % len(question) if letter else None for k, letter in answers}
    return len(chosen) == 1 and None not in chosen


def _vote(question: pd.DataFrame) -> int:
    """Index in the original order of the option with the highest mean log-probability; -1 for none."""
    logprobs = question[LOGPROBS[: len(question)]].to_numpy(dtype=float)
    by_option = [np.roll(row, -k) for k, row in zip(question["rotation"], logprobs, strict=True)]
    finite = [row for row in by_option if not np.isnan(row).any()]
    return int(np.argmax(np.mean(finite, axis=0).round(9))) if finite else -1  # rounding restores ties
