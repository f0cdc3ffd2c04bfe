"""Intervals, paired tests and multiple-testing corrections.

A layer over scipy and statsmodels that defines the degenerate cases. Accuracies are fractions in [0, 1],
differences are second minus first, intervals are 95%.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats
from scipy.optimize import brentq
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from medkit import MedkitError

RESAMPLES = 9_999  # bootstrap samples; scipy's own default
BATCH = 200  # resamples held in memory at once: 200 x 4,183 doubles are 7 MB


@dataclass(frozen=True, slots=True)
class Proportion:
    """`correct` of `n` with Wilson's interval. For n = 0 the accuracy is NaN and the interval [0, 1]."""

    n: int
    correct: float  # whole number unless computed from a published percentage
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean or another statistic with its percentile bootstrap interval. Undefined values are NaN."""

    n: int
    mean: float
    low: float
    high: float

    def as_dict(self, name: str, prefix: str = "") -> dict[str, float]:
        """{name: mean, prefix + "low": low, prefix + "high": high}."""
        return {name: self.mean, f"{prefix}low": self.low, f"{prefix}high": self.high}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models on the same items: the difference of accuracies and McNemar's exact p."""

    n: int
    first_only: int  # items that only the first model answered correctly
    second_only: int
    difference: float  # second - first
    low: float
    high: float
    p: float


def wilson(correct: float, n: int) -> Proportion:
    """Wilson's 95% interval (Wilson 1927). Raises MedkitError unless 0 <= correct <= n."""
    if not 0 <= correct <= n:
        raise MedkitError(f"{correct} right answers of {n}; the count must be between 0 and n")
    if n == 0:
        return Proportion(0, 0, math.nan, 0.0, 1.0)
    low, high = proportion_confint(correct, n, alpha=0.05, method="wilson")
    return Proportion(n, correct, correct / n, float(low), float(high))


def unpaired_difference(first: float, n_first: int, second: float, n_second: int) -> tuple[float, float]:
    """Newcombe's 95% interval of second/n_second - first/n_first, for results without per-item outcomes.

    It assumes independent samples, so it is too wide if both models answered the same questions.
    """
    if not n_first or not n_second:
        return -1.0, 1.0
    low, high = confint_proportions_2indep(second, n_second, first, n_first, method="newcomb", compare="diff")
    return float(low), float(high)


def bootstrap(columns: Sequence[ArrayLike], statistic: Callable, seed: int = 0, paired: bool = True) -> Mean:
    """`statistic(*columns, axis)` with a seeded percentile bootstrap (scipy.stats.bootstrap).

    paired: resample the items that all columns share; otherwise each column is resampled independently, and n
    is their total size. An empty column gives NaN everywhere, a single value a NaN interval, and constant
    columns an interval of width zero.
    """
    arrays = tuple(np.asarray(column) for column in columns)
    sizes = [len(array) for array in arrays]
    n = sizes[0] if paired else sum(sizes)
    value = float(statistic(*arrays, axis=-1)) if sizes and all(sizes) else math.nan
    if min(sizes, default=0) < 2:
        return Mean(n, value, math.nan, math.nan)
    if all((array == array[0]).all() for array in arrays):  # scipy warns and returns NaN here
        return Mean(n, value, value, value)
    interval = stats.bootstrap(
        arrays,
        statistic,
        n_resamples=RESAMPLES,
        batch=BATCH,
        vectorized=True,
        paired=paired,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Mean(n, value, float(interval.low), float(interval.high))


def bootstrap_mean(values: ArrayLike, seed: int = 0) -> Mean:
    """The mean of `values`. Raises MedkitError if one is not finite."""
    values = np.asarray(values, dtype=float)
    if not_finite := (~np.isfinite(values)).sum():
        raise MedkitError(f"{not_finite} of {len(values)} values are not finite numbers")
    if len(values) > 1 and (values == values[0]).all():  # exact, whereas a sum would round
        return Mean(len(values), *[float(values[0])] * 3)
    return bootstrap([values], np.mean, seed)


def mean_of_means(samples: Sequence[ArrayLike], seed: int = 0) -> Mean:
    """Unweighted mean of several benchmarks' means. Each benchmark is resampled independently."""

    def statistic(*columns, axis):
        return np.mean([column.mean(axis=axis) for column in columns], axis=0)

    return bootstrap([np.asarray(sample, dtype=float) for sample in samples], statistic, seed, paired=False)


def paired_difference(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Mean:
    """Mean of second - first, with a bootstrap over the cases."""
    first, second = _paired(first, second)
    return bootstrap_mean(second - first, seed)


def sign_flip_p(first: ArrayLike, second: ArrayLike, seed: int = 0) -> float:
    """Two-sided p of a paired mean difference by a sign-flip permutation test (scipy.stats.permutation_test).

    Exact up to 13 pairs, otherwise 9,999 seeded draws. NaN below 2 pairs.
    """
    first, second = _paired(first, second)
    if len(first) < 2:
        return math.nan
    test = stats.permutation_test(
        (second, first),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9_999,
        rng=np.random.default_rng(seed),
    )
    return float(test.pvalue)


def compare(first: ArrayLike, second: ArrayLike, seed: int = 0) -> Comparison:
    """Two models' outcomes on the same items: McNemar's exact test and the paired bootstrap.

    If all items have the same difference, the bootstrap would shrink to a point, and
    `constant_difference_interval` replaces it. Without discordant items p is 1.
    """
    first, second = _paired(np.asarray(first, dtype=bool), np.asarray(second, dtype=bool))
    n, first_only, second_only = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    difference = (second_only - first_only) / n if n else math.nan
    if max(first_only, second_only, n - first_only - second_only) == n:
        low, high = constant_difference_interval(n, difference if n else 0.0)
    else:
        bootstrapped = paired_difference(first.astype(float), second.astype(float), seed)
        low, high = bootstrapped.low, bootstrapped.high
    p = 1.0
    if first_only + second_only:
        table = [[int((first & second).sum()), first_only], [second_only, int((~first & ~second).sum())]]
        p = float(mcnemar(table, exact=True).pvalue)
    return Comparison(n, first_only, second_only, difference, low, high, p)


def constant_difference_interval(n: int, difference: float) -> tuple[float, float]:
    """Interval of a difference d that all n items have: 0, or -1 or 1 if all are discordant in one direction.

    It is d -+ u (1 + |d|), clipped to [-1, 1], with u the upper Wilson limit of "0 of n items differ".
    """
    reach = wilson(0, n).high * (1 + abs(difference))
    return max(-1.0, difference - reach), min(1.0, difference + reach)


def detectable_difference(n: int, discordant: int, alpha: float = 0.05) -> float:
    """The smallest difference of accuracies that McNemar's exact test at `alpha` finds with 80% power.

    Only one of the models is correct on `discordant` of the `n` paired items, and this share is assumed, or
    that of the difference itself if it is larger. The power is summed over the numbers of discordant items.
    NaN if n is too small for any significant result.
    """
    counts = np.arange(n + 1)  # of discordant items
    # The largest number on one side that is significant; -1 for none.
    critical = stats.binom.ppf(alpha / 2, counts, 0.5)
    critical -= stats.binom.cdf(critical, counts, 0.5) > alpha / 2

    def power(difference: float) -> float:
        share = max(discordant / n, difference)
        first = (1 - difference / share) / 2  # of the discordant items, those of the first model
        found = stats.binom.cdf(critical, counts, first)
        found += stats.binom.sf(counts - critical - 1, counts, first)
        return float(stats.binom.pmf(counts, n, share) @ found)

    if n == 0 or power(1.0) < 0.8:
        return math.nan
    return float(brentq(lambda difference: power(difference) - 0.8, 1e-9, 1.0))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a table's p-values, in the same order."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]] if len(p_values) else []


def with_holm(rows: Sequence[dict]) -> list[dict]:
    """Add `p_holm`, adjusted over all rows, to the rows of a table."""
    adjusted = holm([row["p"] for row in rows])
    return [row | {"p_holm": p} for row, p in zip(rows, adjusted, strict=True)]


def _paired(first, second) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.shape != second.shape:
        raise MedkitError(f"{len(first)} and {len(second)} outcomes cannot be paired")
    return first, second
