"""Whether a model is as sure as it is right, from the log-probabilities in mcq/items.csv.

The confidence of an answer is the probability of the chosen letter among the question's letters. A question
whose log-probabilities are not known (not finite, or too long for the model) has none and is left out here;
in the accuracies it is a wrong answer.
"""

import math

import numpy as np
import pandas as pd

from medkit.evaluate import statistics
from medkit.evaluate.accuracy import CHANCE, OutcomeError
from medkit.records import LETTERS
from medkit.runs import storage
from medkit.runs.arms import ARMS

BINS = 10  # of equal mass
IN_A_BIN = 10  # answers at least: below 100 answers there are fewer bins
ENOUGH = 300  # answers, below which an ECE is mostly noise and biased upward
COVERAGES = tuple(k / 10 for k in range(1, 11))
LOGPROBS = [f"logprob_{letter}" for letter in LETTERS]


def summary(items: pd.DataFrame, seed: int = 0) -> dict:
    """Per benchmark and model, from the rows of mcq/items.csv; accuracies and confidences are fractions.

    n: answers with a confidence; left_out: those without. ece, ece_low, ece_high: expected calibration error
    (Naeini et al. 2015; equal mass as in Nixon et al. 2019), that is |confidence - accuracy| averaged over
    `bins`, each {"confidence", "accuracy", "n"} of about equally many answers, equal confidences in one;
    note: "" or why not to rely on it. brier: mean over questions of the squared distances of all letters'
    probabilities from the gold letter's 1 (0 to 2); brier_top: of the chosen letter's alone (0 to 1).
    overconfidence: mean confidence minus accuracy. coverage: of the surest tenth of the answers, the surest
    two, ... all of them, {"coverage", "n", "accuracy", "low", "high"} (Wilson).
    Intervals (_low, _high) are 95% bootstraps over questions, those of the ECE with the bins held fixed. A
    model without any confidence is left out. Raises OutcomeError for log-probabilities above 0.
    """
    found = {}
    for dataset in [name for name in CHANCE if name in set(items["dataset"])]:
        rows = items[items["dataset"] == dataset]
        models = [model for model in ARMS if model in set(rows["model"])]
        models += sorted(set(rows["model"]) - set(models))
        own = {model: _of_model(rows[rows["model"] == model], seed) for model in models}
        found[dataset] = {model: one for model, one in own.items() if one["n"]}
    return storage.plain(found)


def overconfidence(items: pd.DataFrame, first: str, second: str, seed: int = 0) -> list[dict]:
    """By how much `second` is more overconfident than `first`: the difference of mean confidence minus
    accuracy, paired over the questions that both have a confidence in, with a 95% bootstrap. One
    {"dataset", "first", "second", "n", "difference", "low", "high"} a benchmark that both have answered."""
    found = []
    for dataset in CHANCE:
        rows = items[items["dataset"] == dataset]
        gaps = [_gaps(rows[rows["model"] == model]) for model in (first, second)]
        shared = gaps[0].index.intersection(gaps[1].index)
        if len(shared):
            one = statistics.paired_difference(gaps[0].loc[shared], gaps[1].loc[shared], seed)
            row = {"dataset": dataset, "first": first, "second": second, "n": one.n}
            found.append(row | {"difference": one.mean, "low": one.low, "high": one.high})
    return storage.plain(found)


def probabilities(rows: pd.DataFrame) -> np.ndarray:
    """(rows, letters): each letter's probability; 0 for a letter that the question does not have, NaN in
    every letter where the log-probabilities are not known."""
    logprobs = rows[LOGPROBS].to_numpy(dtype=float)
    if (logprobs > 1e-6).any():
        wrong = rows["item_id"].iloc[int(np.argmax((logprobs > 1e-6).any(axis=1)))]
        raise OutcomeError(
            f"items.csv: {wrong} has a log-probability above 0; score it again with notebook 03"
        )
    chances = np.exp(np.where(np.isnan(logprobs), -np.inf, logprobs))
    total = chances.sum(axis=1, keepdims=True)  # 1 up to rounding
    return np.divide(chances, total, out=np.full_like(chances, np.nan), where=total > 0)


def _gaps(rows: pd.DataFrame) -> pd.Series:
    """Confidence minus outcome of each question with a confidence, by item_id."""
    confidence = probabilities(rows).max(axis=1, initial=-math.inf)
    right = (rows["predicted"].fillna("") == rows["gold"]).to_numpy(dtype=float)
    gaps = pd.Series(confidence - right, index=rows["item_id"].astype(str))
    return gaps[np.isfinite(gaps)]


def _of_model(rows: pd.DataFrame, seed: int) -> dict:
    chances = probabilities(rows)
    known = np.isfinite(chances).all(axis=1)
    chances, rows = chances[known], rows[known]
    if not len(rows):
        return {"n": 0}
    right = (rows["predicted"].fillna("") == rows["gold"]).to_numpy(dtype=float)
    confidence = chances.max(axis=1)
    gold = rows["gold"].map(LETTERS.index).to_numpy()
    squares = ((chances - np.eye(len(LETTERS))[gold]) ** 2).sum(axis=1)
    place = bins_of(confidence)
    means = {
        "brier": statistics.bootstrap_mean(squares, seed),
        "brier_top": statistics.bootstrap_mean((confidence - right) ** 2, seed),
        "overconfidence": statistics.bootstrap_mean(confidence - right, seed),
        "ece": statistics.bootstrap((confidence - right, place), _ece, seed),
    }
    found: dict = {"n": len(rows), "left_out": int((~known).sum())}
    for name, one in means.items():
        found |= {name: one.mean, f"{name}_low": one.low, f"{name}_high": one.high}
    few = f"fewer than {ENOUGH} answers: the ECE is uncertain, and too large on average"
    return found | {
        "note": few if len(rows) < ENOUGH else "",
        "bins": [
            {"confidence": confidence[own].mean(), "accuracy": right[own].mean(), "n": int(own.sum())}
            for own in (place == one for one in np.unique(place))
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
    each = [np.abs(np.where(place == one, gap, 0).sum(axis=axis)) for one in range(BINS)]
    return np.sum(each, axis=0) / gap.shape[axis]


def _at_coverage(confidence: np.ndarray, right: np.ndarray, share: float) -> dict:
    """Accuracy of the surest `share` of the answers; of equal confidences at its end, the mean counts."""
    n = math.ceil(share * len(confidence) - 1e-9)
    end = np.sort(confidence)[-n]
    above, at_end = confidence > end, confidence == end
    correct = right[above].sum() + (n - above.sum()) * right[at_end].mean()
    one = statistics.wilson(float(correct), n)
    return {"coverage": share, "n": n, "accuracy": one.accuracy, "low": one.low, "high": one.high}
