"""What the order of the options is worth: each question under its cyclic orders.

In order k the option that comes first in the data set has moved k places back (the last k have come to the
front), so over all orders every option has had every letter once.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from medkit.evaluate import statistics
from medkit.evaluate.accuracy import CHANCE
from medkit.evaluate.calibration import LOGPROBS
from medkit.records import LETTERS, MCQItem
from medkit.runs import storage

COLUMNS = ["model", "dataset", "item_id", "rotation", "gold", "predicted", *LOGPROBS]


def rotated(item: MCQItem, rotation: int) -> MCQItem:
    """The question in cyclic order `rotation`, with the gold letter moved along; order 0 is its own."""
    shift = rotation % len(item.options)
    options = item.options[len(item.options) - shift :] + item.options[: len(item.options) - shift]
    gold = (LETTERS.index(item.answer) + shift) % len(item.options)
    return replace(item, options=options, answer=LETTERS[gold])


def rotations(items: Sequence[MCQItem]) -> list[tuple[int, MCQItem]]:
    """(k, question in order k) for every order of each question but its own."""
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
    parts = {name: orders[orders["dataset"] == name] for name in CHANCE if name in set(orders["dataset"])}
    parts |= {"all": orders} if len(orders) else {}
    return storage.plain(
        {
            name: {model: _of_model(own, seed) for model, own in rows.groupby("model", sort=False)}
            for name, rows in parts.items()
        }
    )


def _of_model(rows: pd.DataFrame, seed: int) -> dict:
    questions = [own.sort_values("rotation") for _, own in rows.groupby(["dataset", "item_id"], sort=False)]
    shared = min(len(own) for own in questions)
    right = [(own["predicted"].fillna("") == own["gold"]).to_numpy() for own in questions]
    chosen = [_options(own) for own in questions]
    voted = np.array([_vote(own) == LETTERS.index(own["gold"].iloc[0]) for own in questions])
    original = np.array([one[0] for one in right])
    consistent = statistics.wilson(sum(len(set(one)) == 1 and one[0] >= 0 for one in chosen), len(questions))
    vote = statistics.wilson(int(voted.sum()), len(questions))
    given, gold = rows["predicted"].fillna(""), rows["gold"]
    return {
        "n": len(questions),
        "accuracies": [float(np.mean([one[k] for one in right])) for k in range(shared)],
        "consistency": consistent.accuracy,
        "low": consistent.low,
        "high": consistent.high,
        "vote_accuracy": vote.accuracy,
        "vote_low": vote.low,
        "vote_high": vote.high,
        "vote_minus_original": storage.plain(statistics.compare(original, voted, seed)),
        "position_bias": {
            letter: float((given == letter).mean() - (gold == letter).mean())
            for letter in LETTERS[: max(len(own) for own in questions)]
        },
        "unanswered": int((given == "").sum()),
    }


def _options(own: pd.DataFrame) -> list[int]:
    """The place in the original order of the option chosen in each order; -1 for no answer."""
    pairs = zip(own["rotation"], own["predicted"].fillna(""), strict=True)
    return [(LETTERS.index(letter) - k) % len(own) if letter else -1 for k, letter in pairs]


def _vote(own: pd.DataFrame) -> int:
    """The option, by its place in the original order, with the highest mean log-probability; -1 for none."""
    logprobs = own[LOGPROBS[: len(own)]].to_numpy(dtype=float)
    by_option = [np.roll(row, -k) for k, row in zip(own["rotation"], logprobs, strict=True)]
    known = [row for row in by_option if not np.isnan(row).any()]
    return int(np.argmax(np.mean(known, axis=0).round(9))) if known else -1  # equals up to rounding
