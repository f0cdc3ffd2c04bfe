"""Whether a model is as confident as it is right, from the log-probabilities in mcq/items.csv.

The confidence of an answer is the probability of the chosen letter among the question's letters. A question
whose log-probabilities are not known (not finite, or too long for the model) has none and is left out here;
in the accuracies it is a wrong answer.
"""

import math

import numpy as np
import pandas as pd

from medkit import MedkitError
from medkit.evaluate import statistics
from medkit.evaluate.accuracy import by_dataset, models_of
from medkit.records import LETTERS
from medkit.runs import storage

BINS = 10  # of equal mass
IN_A_BIN = 10  # answers at least: below 100 answers there are fewer bins
ENOUGH = 300  # answers, below which an ECE is mostly noise and biased upward
COVERAGES = tuple(k / 10 for k in range(1, 11))
LOGPROBS = [f"logprob_{letter}" for letter in LETTERS]


def summary(items: pd.DataFrame, seed: int = 0) -> dict:
    """Per benchmark and model, from the rows of mcq/items.csv; accuracies and confidences are fractions.

    n: answers with a confidence; left_out: those without. ece: expected calibration error (Naeini et al.
    2015; equal mass as in Nixon et al. 2019), |confidence - accuracy| averaged over `bins` of about equally
    many answers, equal confidences in one; note: "" or why not to rely on it. brier: mean over questions of
    the squared distances of all letters' probabilities from the gold letter's 1 (0 to 2); brier_top: of the
    chosen letter's only (0 to 1). overconfidence: mean confidence minus accuracy. coverage: accuracy of the
    most confident tenth of the answers, two tenths, ... all of them (Wilson).
    Intervals (_low, _high) are 95% bootstraps over questions, those of the ECE with the bins held fixed. A
    model without any confidence is left out. Raises MedkitError for log-probabilities above 0.
    """
    return storage.plain(
        {
            dataset: {
                model: found
                for model, own in models_of(rows).items()
                if (found := _of_model(own, seed)) is not None
            }
            for dataset, rows in by_dataset(items).items()
        }
    )


def overconfidence(items: pd.DataFrame, first: str, second: str, seed: int = 0) -> list[dict]:
    """By how much `second` is more overconfident than `first`: the difference of mean confidence minus
    accuracy, paired over the questions that both have a confidence in, with a 95% bootstrap. One
    {"dataset", "first", "second", "n", "difference", "low", "high"} a benchmark that both have answered."""
    found = []
    for dataset, rows in by_dataset(items).items():
        gaps = []
        for model in (first, second):
            own, chances = _known(rows[rows["model"] == model])
            gaps.append(pd.Series(chances.max(axis=1) - _right(own), index=own["item_id"].astype(str)))
        shared = gaps[0].index.intersection(gaps[1].index)
        if len(shared):
            gain = statistics.paired_difference(gaps[0].loc[shared], gaps[1].loc[shared], seed)
            row = {"dataset": dataset, "first": first, "second": second, "n": gain.n}
            found.append(row | gain.named("difference"))
    return storage.plain(found)


def _known(rows: pd.DataFrame) -> tuple[pd.DataFrame, np.ndarray]:
    """The rows with a confidence, and (rows, letters) each letter's probability: 0 for a letter that the
    question does not have."""
    logprobs = rows[LOGPROBS].to_numpy(dtype=float)
    if (above := (logprobs > 1e-6).any(axis=1)).any():
        raise MedkitError(
            f"items.csv: {rows['item_id'][above].iloc[0]} has a log-probability above 0; "
            "score it again with notebook 03"
        )
    chances = np.exp(np.where(np.isnan(logprobs), -np.inf, logprobs))
    total = chances.sum(axis=1, keepdims=True)  # 1 up to rounding
    known = total[:, 0] > 0
    return rows[known], chances[known] / total[known]


def _right(rows: pd.DataFrame) -> np.ndarray:
    return (rows["predicted"].fillna("") == rows["gold"]).to_numpy(dtype=float)


def _of_model(rows: pd.DataFrame, seed: int) -> dict | None:
    known, chances = _known(rows)
    if known.empty:
        return None
    right, confidence = _right(known), chances.max(axis=1)
    gold = known["gold"].map(LETTERS.index).to_numpy()
    squares = ((chances - np.eye(len(LETTERS))[gold]) ** 2).sum(axis=1)
    place = bins_of(confidence)
    found: dict = {"n": len(known), "left_out": len(rows) - len(known)}
    for name, mean in {
        "brier": statistics.bootstrap_mean(squares, seed),
        "brier_top": statistics.bootstrap_mean((confidence - right) ** 2, seed),
        "overconfidence": statistics.bootstrap_mean(confidence - right, seed),
        "ece": statistics.bootstrap((confidence - right, place), _ece, seed),
    }.items():
        found |= mean.named(name, f"{name}_")
    few = f"fewer than {ENOUGH} answers: the ECE is uncertain, and too large on average"
    bins = [place == number for number in np.unique(place)]
    return found | {
        "note": few if len(known) < ENOUGH else "",
        "bins": [
            {"confidence": confidence[own].mean(), "accuracy": right[own].mean(), "n": int(own.sum())}
            for own in bins
        ],
        "coverage": [_at_coverage(confidence, right, share) for share in COVERAGES],
    }


def bins_of(confidence: np.ndarray) -> np.ndarray:
    """Each answer's bin of equal mass; equal confidences share one, as in sklearn.calibration."""
    count = max(1, min(BINS, len(confidence) // IN_A_BIN))
    edges = np.quantile(confidence, np.linspace(0, 1, count + 1))
    return np.asarray(np.searchsorted(edges[1:-1], confidence))


def _ece(gap: np.ndarray, place: np.ndarray, axis: int = -1) -> np.ndarray:
    """gap: confidence minus outcome; place: its bin."""
    each = [np.abs(np.where(place == number, gap, 0).sum(axis=axis)) for number in range(BINS)]
    return np.sum(each, axis=0) / gap.shape[axis]


def _at_coverage(confidence: np.ndarray, right: np.ndarray, share: float) -> dict:
    """Accuracy of the most confident `share` of the answers; of equal confidences at its end, the mean
    counts."""
    n = math.ceil(share * len(confidence) - 1e-9)
    end = np.sort(confidence)[-n]
    above, at_end = confidence > end, confidence == end
    correct = right[above].sum() + (n - above.sum()) * right[at_end].mean()
    found = statistics.wilson(float(correct), n)
    return {"coverage": share, "n": n, "accuracy": found.accuracy, "low": found.low, "high": found.high}
