"""Inference for a difference measured with several training seeds on the same questions.

Seeds and questions are both samples, so both are resampled. Every seed answers all questions.
"""

import functools
import math
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.regression.mixed_linear_model import MixedLM

from medkit.evaluate import statistics

RESAMPLES = 2_000  # gives standard errors to within about 1.6%


@dataclass(frozen=True, slots=True)
class Clustered:
    """A mean difference over seeds and items. What a single seed cannot estimate is NaN.

    `detectable` is the smallest difference that is found with 80% power.
    """

    seeds: int
    items: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan


def paired(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first for the seeds and items that both have: one row per seed, one column per item."""
    seeds, items = first.index.intersection(second.index), first.columns.intersection(second.columns)
    differences = second.loc[seeds, items].astype(float) - first.loc[seeds, items].astype(float)
    return differences.dropna(how="all").dropna(axis="columns", how="all")


def mean_difference(differences: pd.DataFrame, *, binary: bool, seed: int = 0, tests: int = 1) -> Clustered:
    """The mean of `paired`'s differences with interval, p and detectable difference.

    differences: NaN for items that a seed did not answer.
    binary: the outcomes are 0 or 1, so differences are -1, 0 or 1.
    tests: in the family. `detectable` is for a test at 0.05 / tests, Holm's first step; interval and p are
        not corrected.

    The standard error comes from a bootstrap of seeds and items, with the same items in every resampled seed
    (the pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1: 386), and is at least that of the
    seeds' means. Interval, p and `detectable` (Bloom 1995, Evaluation Review 19: 547) use t with seeds - 1
    degrees of freedom, because bootstrap percentiles are too narrow for five seeds.
    """
    values = differences.to_numpy(dtype=float)
    seeds, items = values.shape
    if not values.size:
        return Clustered(0, 0, math.nan)
    mean = float(np.nanmean(values))
    observed = values[~np.isnan(values)]
    all_equal = (observed == observed[0]).all()
    if seeds < 2 or (all_equal and not binary):
        return Clustered(seeds, items, mean)
    if all_equal:  # as in statistics.compare, with the sign test over the items
        low, high = statistics.constant_difference_interval(items, mean)
        p = min(1.0, 2.0 ** (1 - items)) if mean else 1.0
        detectable = statistics.detectable_difference(items, 0, 0.05 / tests)
        return Clustered(seeds, items, mean, low, high, p, detectable)
    error = _standard_error(values, seed)
    t = stats.t(seeds - 1)
    half_width = float(t.ppf(0.975)) * error
    p = float(2 * t.sf(abs(mean) / error)) if error else math.nan
    detectable = float(t.ppf(1 - 0.025 / tests) + t.ppf(0.8)) * error
    low, high = mean - half_width, mean + half_width
    if binary:
        low, high = max(-1.0, low), min(1.0, high)
    return Clustered(seeds, items, mean, low, high, p, detectable)


def _standard_error(values: np.ndarray, seed: int) -> float:
    """The larger of the bootstrap's standard error and that of the seeds' means, since S resampled seeds vary
    by (S - 1) / S of the seeds' variance only."""
    seed_counts, item_counts = _resample_counts(*values.shape, seed)
    observed = ~np.isnan(values)
    total = ((seed_counts @ np.where(observed, values, 0.0)) * item_counts).sum(axis=1)
    count = ((seed_counts @ observed.astype(float)) * item_counts).sum(axis=1)
    bootstrapped = (total[count > 0] / count[count > 0]).std(ddof=1)
    return float(max(bootstrapped, np.nanmean(values, axis=1).std(ddof=1) / math.sqrt(len(values))))


@functools.lru_cache(maxsize=8)
def _resample_counts(seeds: int, items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed and each item occurs in each resample: (RESAMPLES, seeds), (RESAMPLES, items)."""
    rng = np.random.default_rng(seed)
    return tuple(rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float) for n in (seeds, items))


def mixed_model(differences: pd.DataFrame) -> tuple[float, float, float]:
    """(low, high, p) of the mean difference from a mixed model with a random intercept per seed, by REML.

    It treats questions as independent between seeds. Interval and p use t with seeds - 1 degrees of freedom.
    NaN if the model cannot be fitted.
    """
    long = differences.stack().dropna()
    groups = long.index.get_level_values(0)
    if groups.nunique() < 2 or len(long) <= groups.nunique():
        return math.nan, math.nan, math.nan
    # If the variance between seeds is near zero, statsmodels' gradient methods fail or stop at a wrong mean.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = MixedLM(long.to_numpy(), np.ones((len(long), 1)), groups=groups)
            fitted = model.fit(reml=True, method="powell")
            mean, error, t = fitted.params[0], fitted.bse[0], stats.t(groups.nunique() - 1)
            reach = t.ppf(0.975) * error
            return float(mean - reach), float(mean + reach), float(2 * t.sf(abs(mean) / error))
        except np.linalg.LinAlgError:
            return math.nan, math.nan, math.nan
