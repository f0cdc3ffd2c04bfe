"""What the order of the options is worth: each question under its cyclic orders.

In order k the option that comes first in the data set has moved k places back (the last k have come to the
front), so over all orders every option has every letter once.
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
    """The question in cyclic order `rotation`, with the gold letter moved along; order 0 is the original."""
    count = len(item.options)
    options = tuple(item.options[(place - rotation) % count] for place in range(count))
    gold = (LETTERS.index(item.answer) + rotation) % count
    return replace(item, options=options, answer=LETTERS[gold])


def rotations(items: Sequence[MCQItem]) -> list[tuple[int, MCQItem]]:
    """(k, question in order k) for every order of each question except the original."""
    return [(k, rotated(item, k)) for item in items for k in range(1, len(item.options))]


def summary(orders: pd.DataFrame, seed: int = 0) -> dict:
    """Per benchmark, and over "all" of them, per model, from the rows of mcq/permutations.csv (COLUMNS, with
    letters and log-probabilities as they were in that order); fractions:

    n: questions. accuracies: in each order, the original first; over "all", in the orders that every
    question has. consistency: share of questions that get the same option under every order, whatever its
    letter (low, high: Wilson); a question without an answer in one of them is not consistent. vote_accuracy
    (vote_low, vote_high): of the option with the highest mean log-probability over the orders, of equals the
    first; an order without numbers has no vote. vote_minus_original: paired, as statistics.compare has it.
    position_bias: per letter, the share of answers that gave it minus the share for which it was right.
    unanswered: answers without a letter.
    """
    parts = by_dataset(orders) | ({"all": orders} if len(orders) else {})
    return storage.plain(
        {
            name: {model: _of_model(own, seed) for model, own in rows.groupby("model", sort=False)}
            for name, rows in parts.items()
        }
    )


def _of_model(rows: pd.DataFrame, seed: int) -> dict:
    rows = rows.assign(predicted=rows["predicted"].fillna(""))
    questions = [own.sort_values("rotation") for _, own in rows.groupby(["dataset", "item_id"], sort=False)]
    sizes = [len(own) for own in questions]
    right = [(own["predicted"] == own["gold"]).to_numpy() for own in questions]
    original = np.array([outcomes[0] for outcomes in right])
    voted = np.array([_vote(own) == LETTERS.index(own["gold"].iloc[0]) for own in questions])
    consistency = statistics.wilson(sum(map(_consistent, questions)), len(questions))
    vote = statistics.wilson(int(voted.sum()), len(questions))
    return {
        "n": len(questions),
        "accuracies": [float(np.mean([outcomes[k] for outcomes in right])) for k in range(min(sizes))],
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
    """Whether every order was answered, with the same option."""
    answers = zip(question["rotation"], question["predicted"], strict=True)
    chosen = {(LETTERS.index(letter) - k) % len(question) if letter else None for k, letter in answers}
    return len(chosen) == 1 and None not in chosen


def _vote(question: pd.DataFrame) -> int:
    """The option, by its place in the original order, with the highest mean log-probability; -1 for none."""
    logprobs = question[LOGPROBS[: len(question)]].to_numpy(dtype=float)
    by_option = [np.roll(row, -k) for k, row in zip(question["rotation"], logprobs, strict=True)]
    known = [row for row in by_option if not np.isnan(row).any()]
    return int(np.argmax(np.mean(known, axis=0).round(9))) if known else -1  # equals up to rounding
