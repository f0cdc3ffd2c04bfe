"""Differences over seeds and questions: known effects are covered and found, a null is not claimed."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medkit.evaluate import clustered, statistics


def crossed(rng, seeds, items, mean, between_seeds, between_items, noise):
    values = mean + rng.normal(0, between_seeds, (seeds, 1)) + rng.normal(0, between_items, (1, items))
    return pd.DataFrame(values + rng.normal(0, noise, (seeds, items)))


def test_the_standard_error_is_that_of_the_draws():
    # Four seeds alike, eight items 0 or 1: the mean of eight drawn items is B(8, 1/2) / 8, with a standard
    # deviation of sqrt(8 x 1/4) / 8 = 0.1768. t of three degrees of freedom at 97.5% is 3.182.
    found = clustered.mean_difference(pd.DataFrame([[0.0, 1.0] * 4] * 4), binary=False)
    assert (found.seeds, found.items, found.difference) == (4, 8, 0.5)
    assert (found.high - found.difference) / 3.182 == pytest.approx(0.1768, rel=0.05)
    # with 80% power: t at 97.5% and at 80% (0.978), together 4.161 standard errors
    assert found.detectable == pytest.approx(4.161 * 0.1768, rel=0.05)
    assert found.p == pytest.approx(2 * stats.t(3).sf(0.5 / 0.1768), rel=0.05)


def test_what_is_detectable_in_a_family_is_that_of_holms_first_step():
    values = pd.DataFrame([[0.0, 1.0] * 4] * 4)
    alone, family = (clustered.mean_difference(values, binary=False, tests=tests) for tests in (1, 10))
    t = stats.t(3)  # at 0.05 / 10: t at 99.75% instead of 97.5%
    ratio = (t.ppf(0.9975) + t.ppf(0.8)) / (t.ppf(0.975) + t.ppf(0.8))
    assert family.detectable == pytest.approx(ratio * alone.detectable)
    assert (family.low, family.high, family.p) == (alone.low, alone.high, alone.p)


@pytest.mark.parametrize("items", [1, 8])
def test_of_seeds_whose_items_agree_it_is_the_t_test(items):
    """Drawn with replacement, five seeds vary by 4/5 of their variance only."""
    values = pd.DataFrame(np.repeat([[0.1], [0.3], [0.2], [0.6], [0.3]], items, axis=1))
    found = clustered.mean_difference(values, binary=False)
    assert found.p == pytest.approx(stats.ttest_1samp(values[0], 0).pvalue)


@pytest.mark.parametrize("between_seeds, between_items", [(0, 0.4), (0.05, 0.2), (0.15, 0.1)])
def test_the_interval_covers_and_a_null_is_not_claimed(between_seeds, between_items):
    rng = np.random.default_rng(5)
    covered, claimed = [], []
    for _ in range(200):
        found = clustered.mean_difference(
            crossed(rng, 5, 40, -0.1, between_seeds, between_items, 0.3), binary=False
        )
        covered.append(found.low <= -0.1 <= found.high)
        null = crossed(rng, 5, 40, 0.0, between_seeds, between_items, 0.3)
        claimed.append(clustered.mean_difference(null, binary=False).p < 0.05)
    # 95% of 200 are 190, give or take 2 x sqrt(200 x 0.95 x 0.05) = 6
    assert sum(covered) >= 184 and sum(claimed) <= 16


def test_an_effect_of_the_detectable_size_is_mostly_found():
    rng = np.random.default_rng(6)
    size = np.mean(
        [
            clustered.mean_difference(crossed(rng, 5, 40, 0, 0.1, 0.2, 0.3), binary=False).detectable
            for _ in "12345"
        ]
    )
    p = [
        clustered.mean_difference(crossed(rng, 5, 40, size, 0.1, 0.2, 0.3), binary=False).p
        for _ in range(100)
    ]
    assert np.mean(np.array(p) < 0.05) > 0.7  # 80% by design


def test_only_shared_seeds_and_items_are_paired():
    first = pd.DataFrame({"a": [0, 1, 0], "b": [1, 1, 1]}, index=[0, 1, 2])
    second = pd.DataFrame({"b": [0, 1], "c": [1, 1]}, index=[2, 3])
    found = clustered.paired(first, second)  # seed 2, item b: 0 - 1
    assert found.to_numpy().tolist() == [[-1.0]] and found.index.tolist() == [2]
    assert clustered.paired(first, second.loc[[3]]).size == 0


def test_a_question_that_one_seed_did_not_answer_counts_for_the_others():
    values = pd.DataFrame([[0.0, 1.0, 0.5], [0.0, 1.0, np.nan]])
    assert clustered.mean_difference(values, binary=False).difference == pytest.approx(2.5 / 5)


def test_of_one_seed_or_none_only_the_mean_is_known():
    one = clustered.mean_difference(pd.DataFrame([[0.0, 1.0]]), binary=True)
    assert one.difference == 0.5
    assert all(math.isnan(value) for value in (one.low, one.high, one.p, one.detectable))
    assert math.isnan(clustered.mean_difference(pd.DataFrame(), binary=True).difference)


def test_where_nothing_differs_the_interval_is_wilsons_reach():
    same = clustered.mean_difference(pd.DataFrame(np.zeros((5, 60))), binary=True)
    reach = statistics.wilson(0, 60).high  # z^2 / (60 + z^2) = 3.84 / 63.84 = 0.060
    assert (same.low, same.high, same.p) == (-reach, reach, 1.0)
    # Six of 60 must differ, all in one direction (2 / 2^6 < 0.05): 80% of the time with 13% that do.
    assert stats.binom(60, same.detectable).sf(5) == pytest.approx(0.8)
    assert same.detectable == pytest.approx(0.128, abs=1e-3)
    all_lost = clustered.mean_difference(pd.DataFrame(-np.ones((5, 10))), binary=True)
    assert all_lost.p == 2**-9 and all_lost.low == -1  # ten heads or ten tails: 2 / 2^10
    scores = clustered.mean_difference(pd.DataFrame(np.full((5, 10), 0.3)), binary=False)
    assert scores.difference == pytest.approx(0.3) and math.isnan(scores.p)


@given(
    st.integers(2, 5).flatmap(
        lambda seeds: st.lists(
            st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=6, max_size=6),
            min_size=seeds,
            max_size=seeds,
        )
    )
)
@settings(max_examples=40, deadline=None)
def test_turned_round_it_says_the_same(rows):
    values = pd.DataFrame(rows)
    there, back = (clustered.mean_difference(one, binary=True) for one in (values, -values))
    assert there.difference == pytest.approx(-back.difference)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.p == pytest.approx(back.p) and 0 <= there.p <= 1
    assert -1 <= there.low <= there.difference + 1e-9 and there.difference <= there.high + 1e-9


def test_the_mixed_model_is_the_seeds_means_where_they_vary():
    # Balanced, with a random intercept: the mean's standard error is sd(seed means) / sqrt(5).
    values = crossed(np.random.default_rng(1), 5, 40, 0.2, 0.3, 0, 0.3)
    low, high, _ = clustered.mixed_model(values)
    assert (high - low) / (2 * 2.776) == pytest.approx(  # t of four degrees of freedom
        values.mean(axis=1).std(ddof=1) / math.sqrt(5), rel=0.02
    )
    assert (low + high) / 2 == pytest.approx(values.to_numpy().mean())


def test_the_mixed_model_of_seeds_that_do_not_vary_is_the_mean_of_the_items():
    values = pd.DataFrame([np.repeat([0.0, -1.0], [12, 48])] * 5)  # every seed loses 48 of 60: -0.8
    low, high, p = clustered.mixed_model(values)
    assert (low + high) / 2 == pytest.approx(-0.8)
    assert (high - low) / (2 * 2.776) == pytest.approx(0.4 / math.sqrt(300), rel=0.05)  # sd 0.4 over 300
    assert p == pytest.approx(2 * stats.t(4).sf(0.8 / (0.4 / math.sqrt(300))), rel=0.3)
    assert all(math.isnan(value) for value in clustered.mixed_model(values.iloc[:1]))
