"""How sure a difference is that several training seeds show on the same questions.

Both the seeds and the questions, which every seed answers, are samples. Both are resampled.
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

RESAMPLES = 2_000  # for a standard error: 1.6% of it is then chance


@dataclass(frozen=True, slots=True)
class Clustered:
    """A mean difference over seeds and items; NaN for what one seed cannot show.

    `detectable` is the smallest difference that a test at 0.05 would have found with 80% power.
    """

    seeds: int
    items: int
    difference: float
    low: float = math.nan
    high: float = math.nan
    p: float = math.nan
    detectable: float = math.nan


def paired(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    """Second minus first, where both have a value. A row is a training seed, a column an item."""
    seeds, items = first.index.intersection(second.index), first.columns.intersection(second.columns)
    found = second.loc[seeds, items].astype(float) - first.loc[seeds, items].astype(float)
    return found.dropna(how="all").dropna(axis="columns", how="all")


def mean_difference(differences: pd.DataFrame, *, binary: bool, seed: int = 0) -> Clustered:
    """The mean of `paired`'s differences (NaN: an item that the seed did not answer), and how sure it is.
    binary: they are differences of right (1) and wrong (0).

    The standard error is that of a bootstrap of seeds, and of items, the same ones in every drawn seed (the
    pigeonhole bootstrap: Owen 2007, Annals of Applied Statistics 1: 386). Interval, p and `detectable` (Bloom
    1995, Evaluation Review 19: 547) take t with seeds - 1 degrees of freedom: the bootstrap's own percentiles
    are too narrow for five seeds.
    """
    values = differences.to_numpy(dtype=float)
    seeds, items = values.shape
    if not values.size:
        return Clustered(0, 0, math.nan)
    mean = float(np.nanmean(values))
    known = values[~np.isnan(values)]
    all_equal = (known == known[0]).all()
    if seeds < 2 or (all_equal and not binary):
        return Clustered(seeds, items, mean)
    if all_equal:  # as in statistics.compare, with the sign test over the items
        low, high = statistics.same_everywhere(items, mean)
        p = min(1.0, 2.0 ** (1 - items)) if mean else 1.0
        detectable = float(statistics.detectable_difference(items, 0))
        return Clustered(seeds, items, mean, low, high, p, detectable)
    error = _standard_error(values, seed)
    t = stats.t(seeds - 1)
    reach = float(t.ppf(0.975)) * error
    p = float(2 * t.sf(abs(mean) / error)) if error else math.nan
    detectable = float(t.ppf(0.975) + t.ppf(0.8)) * error
    low, high = mean - reach, mean + reach
    if binary:
        low, high = max(-1.0, low), min(1.0, high)
    return Clustered(seeds, items, mean, low, high, p, detectable)


def _standard_error(values: np.ndarray, seed: int) -> float:
    if values.shape[1] == 1:  # only the seeds are a sample
        return float(values.std(ddof=1) / math.sqrt(len(values)))
    by_seed, by_item = _draws(*values.shape, seed)
    there = ~np.isnan(values)
    total = ((by_seed @ np.where(there, values, 0.0)) * by_item).sum(axis=1)
    count = ((by_seed @ there.astype(float)) * by_item).sum(axis=1)
    return float((total[count > 0] / count[count > 0]).std(ddof=1))


@functools.lru_cache(maxsize=8)
def _draws(seeds: int, items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """How often each seed, and each item, is in each resample."""
    rng = np.random.default_rng(seed)
    return tuple(rng.multinomial(n, np.full(n, 1 / n), size=RESAMPLES).astype(float) for n in (seeds, items))


def mixed_model(differences: pd.DataFrame) -> tuple[float, float, float]:
    """(low, high, p) of the mean difference by REML, with a random intercept a seed; NaN where the model
    cannot be fitted."""
    long = differences.stack().dropna()
    groups = long.index.get_level_values(0)
    if groups.nunique() < 2 or len(long) <= groups.nunique():
        return math.nan, math.nan, math.nan
    # Where the seeds' variance is near zero, statsmodels' gradient methods fail or stop at another mean.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            model = MixedLM(long.to_numpy(), np.ones((len(long), 1)), groups=groups)
            fitted = model.fit(reml=True, method="powell")
            low, high = np.asarray(fitted.conf_int())[0]
            return float(low), float(high), float(fitted.pvalues[0])
        except np.linalg.LinAlgError:
            return math.nan, math.nan, math.nan
