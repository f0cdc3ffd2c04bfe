"""How sure a number is: intervals, paired tests, and the PubMedQA panel, on the rows of mcq/items.csv.

Every calculation is scipy's, statsmodels' or scikit-learn's; what is decided here is the degenerate cases.
Accuracies are fractions in [0, 1], differences are second minus first, intervals are 95%.
A missing or unparsed prediction ("" or NaN) is a wrong answer and stays in the denominator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score, recall_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from medkit import MedkitError

RESAMPLES = 9_999  # bootstrap samples; scipy's own default
BATCH = 200  # resamples held in memory at once: 200 x 4,183 doubles are 7 MB
PROPORTION_FIELDS = ("n", "correct", "accuracy", "low", "high")
PUBMEDQA_LABELS = {"A": "yes", "B": "no", "C": "maybe"}


class StatisticsError(MedkitError):
    """Outcomes that cannot be compared; the message is one line."""


@dataclass(frozen=True, slots=True)
class Proportion:
    """`correct` of `n`, with Wilson's interval; for n = 0 the accuracy is NaN and the interval [0, 1]."""

    n: int
    correct: int
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean with its percentile bootstrap interval; NaN where it is undefined (interval: n < 2)."""

    n: int
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same items: the difference of accuracies and McNemar's exact p."""

    n: int
    first_only: int  # items only the first model has right
    second_only: int
    difference: float  # second - first
    low: float
    high: float
    p: float


def wilson(correct: float, n: int) -> Proportion:
    """Wilson's 95% interval (Wilson 1927); raises StatisticsError unless 0 <= correct <= n."""
    if not 0 <= correct <= n:
        raise StatisticsError(f"{correct} right answers of {n}: the count must lie between 0 and n")
    if n == 0:
        return Proportion(0, 0, math.nan, 0.0, 1.0)
    low, high = proportion_confint(correct, n, alpha=0.05, method="wilson")
    return Proportion(n, correct, correct / n, float(low), float(high))


def unpaired_difference(first: float, n_first: int, second: float, n_second: int) -> tuple[float, float]:
    """Newcombe's 95% interval of second/n_second - first/n_first, for results known only as accuracies.

    It takes the two test runs for independent, so it is too wide where both saw the same questions.
    """
    if not n_first or not n_second:
        return -1.0, 1.0
    low, high = confint_proportions_2indep(second, n_second, first, n_first, method="newcomb", compare="diff")
    return float(low), float(high)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Mean:
    """Mean of `values` with a seeded percentile bootstrap (scipy.stats.bootstrap).

    n = 0: all NaN. n = 1: no interval (NaN). Equal values: an interval of width zero.
    Raises StatisticsError where a value is not finite.
    """
    values = np.asarray(values, dtype=float)
    if not np.isfinite(values).all():
        raise StatisticsError(
            f"{(~np.isfinite(values)).sum()} of {len(values)} values are not finite numbers"
        )
    if len(values) < 2:
        return Mean(len(values), float(values.mean()) if len(values) else math.nan, math.nan, math.nan)
    if (values == values[0]).all():  # scipy warns and returns NaN here
        return Mean(len(values), float(values[0]), float(values[0]), float(values[0]))
    low, high = _bootstrap((values,), lambda x, axis: x.mean(axis=axis), seed)
    return Mean(len(values), float(values.mean()), low, high)


def mean_of_means(samples: Sequence[Sequence[float]], seed: int = 0) -> Mean:
    """Unweighted mean of several benchmarks' means, each resampled on its own; n counts all items.

    An empty benchmark makes the mean NaN; a benchmark of one item leaves it without an interval.
    """
    samples = [np.asarray(sample, dtype=float) for sample in samples]
    n = sum(len(sample) for sample in samples)
    if not samples or not all(len(sample) for sample in samples):
        return Mean(n, math.nan, math.nan, math.nan)
    mean = float(np.mean([sample.mean() for sample in samples]))
    if any(len(sample) < 2 for sample in samples):
        return Mean(n, mean, math.nan, math.nan)
    if all((sample == sample[0]).all() for sample in samples):
        return Mean(n, mean, mean, mean)
    statistic = lambda *xs, axis: np.mean([x.mean(axis=axis) for x in xs], axis=0)  # noqa: E731
    return Mean(n, mean, *_bootstrap(tuple(samples), statistic, seed))


def paired_difference(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Mean:
    """Mean of second - first over the same cases, with a bootstrap over the cases."""
    first, second = _paired(first, second)
    return bootstrap_mean(second - first, seed)


def compare(first: Sequence[bool], second: Sequence[bool], seed: int = 0) -> Comparison:
    """Two models' outcomes on the same items: McNemar's exact test and the paired bootstrap.

    Where every item shows the same difference d (all concordant: 0; all discordant one way: -1 or 1), the
    bootstrap would shrink to a point. There the interval is what the upper Wilson limit u of "0 of n items
    are otherwise" allows: d -+ u (1 + |d|), within [-1, 1]. Without a discordant item p is 1.
    """
    first, second = _paired(np.asarray(first, dtype=bool), np.asarray(second, dtype=bool))
    n, first_only, second_only = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    difference = (second_only - first_only) / n if n else math.nan
    if max(first_only, second_only, n - first_only - second_only) == n:
        centre = difference if n else 0.0
        reach = wilson(0, n).high * (1 + abs(centre))
        low, high = max(-1.0, centre - reach), min(1.0, centre + reach)
    else:
        bootstrapped = paired_difference(first.astype(float), second.astype(float), seed)
        low, high = bootstrapped.low, bootstrapped.high
    p = 1.0
    if first_only + second_only:
        table = [[int((first & second).sum()), first_only], [second_only, int((~first & ~second).sum())]]
        p = float(mcnemar(table, exact=True).pvalue)
    return Comparison(n, first_only, second_only, difference, low, high, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment over one table's p-values, in their order; [] for none."""
    if not len(p_values):
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def is_correct(items: pd.DataFrame) -> pd.Series:
    """Boolean per row: the predicted letter is the gold letter. Unparsed ("" or NaN) is False.

    Raises StatisticsError where the stored `correct` column says otherwise.
    """
    outcome = items["predicted"].fillna("").astype(str) == items["gold"].astype(str)
    if "correct" in items:
        stored = items["correct"].map(lambda value: str(value).lower() in ("true", "1", "1.0"))
        wrong = items.loc[stored != outcome, "item_id"]
        if len(wrong):
            raise StatisticsError(
                f"items.csv: {len(wrong)} rows say `correct` against their own letters, "
                f"first {wrong.iloc[0]}; score them again with notebook 03"
            )
    return outcome


def accuracy(items: pd.DataFrame) -> Proportion:
    """Accuracy of the given rows of items.csv."""
    return wilson(int(is_correct(items).sum()), len(items))


def paired_outcomes(items: pd.DataFrame, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two models on one dataset's items, in the same order.

    Raises StatisticsError where an item is missing or doubled on one side, naming how many.
    """
    by_model = []
    for model in (first, second):
        rows = items[items["model"] == model]
        outcome = pd.Series(is_correct(rows).to_numpy(), index=rows["item_id"].astype(str))
        if outcome.index.has_duplicates:
            raise StatisticsError(
                f"items.csv: {model} answered {outcome.index[outcome.index.duplicated()][0]} twice"
            )
        by_model.append(outcome)
    unshared = by_model[0].index.symmetric_difference(by_model[1].index)
    if len(unshared):
        raise StatisticsError(
            f"{first} and {second} cannot be paired: {len(unshared)} items were answered by "
            "one of them only; run notebook 03 for both"
        )
    return by_model[0].to_numpy(), by_model[1].loc[by_model[0].index].to_numpy()


def forgetting(items: pd.DataFrame, before: str, after: str, seed: int = 0) -> dict[str, Comparison]:
    """Per benchmark, what changed between two stages on the same items; below zero is forgotten."""
    return {
        dataset: compare(*paired_outcomes(rows, before, after), seed=seed)
        for dataset, rows in items.groupby("dataset", sort=False)
    }


def by_group(items: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with n and interval per model, dataset and `group` (MedMCQA subject, MedQA step)."""
    rows = [
        {"model": model, "dataset": dataset, "group": group, **_as_dict(accuracy(part))}
        for (model, dataset, group), part in items.fillna({"group": ""}).groupby(
            ["model", "dataset", "group"], sort=True
        )
    ]
    return pd.DataFrame(
        rows, columns=["model", "dataset", "group", "n", "correct", "accuracy", "low", "high"]
    )


def majority(gold: Sequence[str]) -> tuple[str, float]:
    """The most frequent gold letter (of equals the first) and its share; ("", NaN) for no items."""
    counts = pd.Series(list(gold), dtype=str).value_counts().sort_index()
    if counts.empty:
        return "", math.nan
    return str(counts.idxmax()), float(counts.max() / counts.sum())


def pubmedqa_panel(items: pd.DataFrame) -> dict:
    """One model on PubMedQA: accuracy, confusion, macro-F1, recall of maybe, and what a constant answer gets.

    `confusion` has a row per gold label and a column per predicted label (yes, no, maybe); answers that are
    none of the three are in `unparsed` per gold label, and wrong in every score. `macro_f1` is the mean over
    the three labels, a label that is neither gold nor predicted counting 0; where no gold label is maybe,
    its recall is NaN.
    """
    letters = list(PUBMEDQA_LABELS)
    gold = items["gold"].astype(str)
    if not gold.isin(letters).all():
        others = ", ".join(sorted(set(gold) - set(letters)))
        raise StatisticsError(f"PubMedQA's gold answers are A, B or C, found {others}")
    parsed = items["predicted"].fillna("").astype(str)
    predicted = parsed.where(parsed.isin(letters), "none")
    table = (
        confusion_matrix(gold, predicted, labels=[*letters, "none"]) if len(items) else np.zeros((4, 4), int)
    )
    letter, share = majority(gold)
    return {
        **_as_dict(accuracy(items)),
        "labels": list(PUBMEDQA_LABELS.values()),
        "confusion": table[:3, :3].tolist(),
        "unparsed": table[:3, 3].tolist(),
        "macro_f1": _scored(f1_score, gold, predicted, letters, average="macro", zero_division=0),
        "recall_maybe": _scored(
            recall_score, gold, predicted, ["C"], average="macro", zero_division=math.nan
        ),
        "ceiling_without_maybe": float((gold != "C").mean()) if len(items) else math.nan,
        "majority": {"label": PUBMEDQA_LABELS.get(letter, ""), "share": share},
    }


def fold_seeds(items: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Several training seeds of each model (column `seed`) folded into one row per model and dataset.

    `accuracy` is the mean over seeds; low/high resample the items, each with its mean outcome over the seeds,
    and so cover the draw of questions; `seed_sd` and the t interval seed_low/seed_high cover the draw of
    seeds. With one seed the latter three are NaN: nothing is known of the spread.
    Raises StatisticsError where the seeds of a model did not answer the same items.
    """
    rows = []
    for (model, dataset), part in items.groupby(["model", "dataset"], sort=False):
        grid = part.assign(outcome=is_correct(part)).pivot_table(
            index="item_id", columns="seed", values="outcome", aggfunc="mean"
        )
        if grid.isna().to_numpy().any():
            raise StatisticsError(f"{model} on {dataset}: its seeds did not answer the same items")
        over_items = bootstrap_mean(grid.mean(axis=1).to_numpy(dtype=float), seed)
        per_seed = grid.mean(axis=0).to_numpy(dtype=float)
        sd, low, high = math.nan, math.nan, math.nan
        if len(per_seed) > 1:
            sd = float(per_seed.std(ddof=1))
            half = float(stats.t.ppf(0.975, len(per_seed) - 1)) * sd / math.sqrt(len(per_seed))
            low, high = over_items.mean - half, over_items.mean + half
        row = {"model": model, "dataset": dataset, "n": over_items.n, "seeds": len(per_seed)}
        row |= {"accuracy": over_items.mean, "low": over_items.low, "high": over_items.high}
        rows.append(row | {"seed_sd": sd, "seed_low": low, "seed_high": high})
    return pd.DataFrame(rows)


def _bootstrap(samples: tuple, statistic, seed: int) -> tuple[float, float]:
    interval = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _paired(first, second) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise StatisticsError(f"{len(first)} and {len(second)} outcomes cannot be paired")
    return first, second


def _scored(metric, gold, predicted, labels, **kwargs) -> float:
    if not len(gold):
        return math.nan
    return float(metric(gold, predicted, labels=labels, **kwargs))


def _as_dict(result: Proportion) -> dict:
    return {field: getattr(result, field) for field in PROPORTION_FIELDS}
