"""Calibration: compares confidence with accuracy, from the log-probabilities in mcq/items.csv.

The confidence of an answer is the probability of the chosen letter among the question's letters. Questions
without log-probabilities (not finite, or too long for the model) are omitted here. In the accuracies they
count as wrong.
"""

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from medkit import MedkitError
from medkit.evaluate import statistics
from medkit.evaluate.accuracy import by_dataset, models_of
from medkit.records import LETTERS
from medkit.runs import storage

MAX_BINS = 10  # of equal mass
MIN_BIN_SIZE = 10  # answers per bin: fewer than 100 answers get fewer bins
MIN_ANSWERS = 300  # with fewer, the ECE is mostly noise and biased upward
COVERAGES = tuple(k / 10 for k in range(1, 11))
LOGPROBS = [f"logprob_{letter}" for letter in LETTERS]


def summary(items: pd.DataFrame, seed: int = 0) -> dict:
    """Results per benchmark and model, from the rows of mcq/items.csv. All rates are fractions.

    n: answers with a confidence.
    left_out: answers without.
    ece: expected calibration error (Naeini et al. 2015; equal mass as in Nixon et al. 2019): mean
        |confidence - accuracy| over `bins` of about equal size, with equal confidences in the same bin.
    note: "" or why the ECE is unreliable.
    brier: mean squared distance of all letters' probabilities from the gold letter's one-hot (0 to 2).
    brier_top: the same for the chosen letter only (0 to 1).
    overconfidence: mean confidence minus accuracy.
    coverage: accuracy of the most confident tenth of the answers, two tenths, ... all of them (Wilson).

    Intervals (_low, _high) are 95% bootstraps over questions: percentiles, for the ECE basic ones with fixed
    bins. Models without any confidence are omitted. Raises MedkitError for log-probabilities above 0.
    """
    summaries: dict[str, dict] = {}
    for dataset, rows in by_dataset(items).items():
        by_model = {model: _summarize(group, seed) for model, group in models_of(rows).items()}
        summaries[dataset] = {model: result for model, result in by_model.items() if result is not None}
    return storage.plain(summaries)


def overconfidence(items: pd.DataFrame, first: str, second: str, seed: int = 0) -> list[dict]:
    """Overconfidence (mean confidence minus accuracy) of `second` minus that of `first`, per benchmark.

    Paired over the questions for which both have a confidence, with a 95% bootstrap. Returns one {"dataset",
    "first", "second", "n", "difference", "low", "high"} per benchmark that both answered.
    """
    differences = []
    for dataset, rows in by_dataset(items).items():
        gaps = []
        for model in (first, second):
            answers, probabilities = _with_confidence(rows[rows["model"] == model])
            gap = probabilities.max(axis=1) - _outcomes(answers)
            gaps.append(pd.Series(gap, index=answers["item_id"].astype(str)))
        shared = gaps[0].index.intersection(gaps[1].index)
        if len(shared):
            difference = statistics.paired_difference(gaps[0].loc[shared], gaps[1].loc[shared], seed)
            row = {"dataset": dataset, "first": first, "second": second, "n": difference.n}
            differences.append(row | difference.as_dict("difference"))
    return storage.plain(differences)


def _with_confidence(rows: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows with log-probabilities, and the letters' probabilities, (rows, letters). Letters that a
    question lacks have probability 0."""
    logprobs = rows[LOGPROBS].to_numpy(dtype=float)
    if (above := (logprobs > 1e-6).any(axis=1)).any():
        raise MedkitError(
            f"items.csv: {rows['item_id'][above].iloc[0]} has a log-probability above 0; "
            "score it again with notebook 03"
        )
    probabilities = np.exp(np.where(np.isnan(logprobs), -np.inf, logprobs))
    total = probabilities.sum(axis=1, keepdims=True)  # 1 up to rounding
    has_logprobs = total[:, 0] > 0
    return rows[has_logprobs], probabilities[has_logprobs] / total[has_logprobs]


def _outcomes(rows: pd.DataFrame) -> np.ndarray:
    return (rows["predicted"].fillna("") == rows["gold"]).to_numpy(dtype=float)


def _summarize(rows: pd.DataFrame, seed: int) -> dict | None:
    answers, probabilities = _with_confidence(rows)
    if answers.empty:
        return None
    outcomes, confidence = _outcomes(answers), probabilities.max(axis=1)
    gold = answers["gold"].map(LETTERS.index).to_numpy()
    squares = ((probabilities - np.eye(len(LETTERS))[gold]) ** 2).sum(axis=1)
    bins = _bin_numbers(confidence)
    result: dict = {"n": len(answers), "left_out": len(rows) - len(answers)}
    for name, mean in {
        "brier": statistics.bootstrap_mean(squares, seed),
        "brier_top": statistics.bootstrap_mean((confidence - outcomes) ** 2, seed),
        "overconfidence": statistics.bootstrap_mean(confidence - outcomes, seed),
        "ece": _basic(statistics.bootstrap((confidence - outcomes, bins), _ece, seed)),
    }.items():
        result |= mean.as_dict(name, f"{name}_")
    few = f"fewer than {MIN_ANSWERS} answers: the ECE is uncertain, and too large on average"
    members = [bins == number for number in np.unique(bins)]
    return result | {
        "note": few if len(answers) < MIN_ANSWERS else "",
        "bins": [
            {"confidence": confidence[mask].mean(), "accuracy": outcomes[mask].mean(), "n": int(mask.sum())}
            for mask in members
        ],
        "coverage": [_at_coverage(confidence, outcomes, share) for share in COVERAGES],
    }


def _bin_numbers(confidence: np.ndarray) -> np.ndarray:
    """The bin of each answer, by quantiles. Equal confidences share a bin, as in sklearn.calibration."""
    count = max(1, min(MAX_BINS, len(confidence) // MIN_BIN_SIZE))
    edges = np.quantile(confidence, np.linspace(0, 1, count + 1))
    return np.asarray(np.searchsorted(edges[1:-1], confidence))


def _ece(gap: np.ndarray, bins: np.ndarray, axis: int = -1) -> np.ndarray:
    """Expected calibration error. gap: confidence minus outcome; bins: bin numbers."""
    gap_sums = [np.abs(np.where(bins == number, gap, 0).sum(axis=axis)) for number in range(MAX_BINS)]
    return np.sum(gap_sums, axis=0) / gap.shape[axis]


def _basic(ece: statistics.Mean) -> statistics.Mean:
    """With the basic bootstrap's interval: percentiles lie too high, as resampling makes any ECE larger."""
    low, high = (float(np.maximum(0, 2 * ece.mean - bound)) for bound in (ece.high, ece.low))  # NaN stays
    return replace(ece, low=low, high=high)


def _at_coverage(confidence: np.ndarray, outcomes: np.ndarray, share: float) -> dict:
    """Accuracy of the most confident `share` of the answers. Ties at the threshold count with their mean."""
    n = math.ceil(share * len(confidence) - 1e-9)
    threshold = np.sort(confidence)[-n]
    above, tied = confidence > threshold, confidence == threshold
    correct = outcomes[above].sum() + (n - above.sum()) * outcomes[tied].mean()
    result = statistics.wilson(float(correct), n)
    return {"coverage": share, "n": n, "accuracy": result.accuracy, "low": result.low, "high": result.high}
