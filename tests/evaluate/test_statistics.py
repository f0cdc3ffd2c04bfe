"""Intervals and tests against textbook values, against the libraries, and on the degenerate cases."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medkit import MedkitError
from medkit.evaluate import statistics as s


def test_wilson_textbook_examples():
    # Newcombe (Statistics in Medicine 17, 1998, 857-872), Table I, method 3: 81/263, 15/148, 0/20 and 1/29.
    for correct, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        got = s.wilson(correct, n)
        assert (round(got.low, 4), round(got.high, 4)) == (low, high)
        assert got.accuracy == correct / n


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipys_and_contains_the_estimate(case):
    correct, n = case
    got = s.wilson(correct, n)
    reference = stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert got.low == pytest.approx(reference.low, abs=1e-9)
    assert got.high == pytest.approx(reference.high, abs=1e-9)
    assert got.low - 1e-9 <= got.accuracy <= got.high + 1e-9


def test_wilson_degenerate():
    nothing = s.wilson(0, 0)
    assert math.isnan(nothing.accuracy) and (nothing.low, nothing.high) == (0.0, 1.0)
    perfect = s.wilson(30, 30)
    assert perfect.high == 1.0 and 0.88 < perfect.low < 0.89  # n / (n + z^2) = 30 / 33.84 = 0.8865
    with pytest.raises(MedkitError, match="31 right answers of 30"):
        s.wilson(31, 30)


def test_unpaired_difference_textbook_example():
    # Newcombe (Statistics in Medicine 17, 1998, 873-890), Table II, method 10: 56/70 - 48/80 = 0.2
    low, high = s.unpaired_difference(48, 80, 56, 70)
    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    assert s.unpaired_difference(0, 0, 1, 2) == (-1.0, 1.0)


def test_bootstrap_mean_is_seeded_and_near_the_normal_interval():
    values = np.random.default_rng(3).normal(0.8, 0.1, 400)
    got = s.bootstrap_mean(values, seed=7)
    assert got == s.bootstrap_mean(values, seed=7)
    assert got != s.bootstrap_mean(values, seed=8)
    half = 1.96 * values.std(ddof=1) / 20  # sqrt(400) = 20
    assert got.mean == pytest.approx(values.mean())
    assert got.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert got.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_mean_degenerate():
    assert math.isnan(s.bootstrap_mean([]).mean)
    one = s.bootstrap_mean([0.7])
    assert one.mean == 0.7 and math.isnan(one.low) and math.isnan(one.high)
    assert s.bootstrap_mean([0.5] * 6) == s.Mean(6, 0.5, 0.5, 0.5)
    with pytest.raises(MedkitError, match="1 of 2 values"):
        s.bootstrap_mean([0.5, math.nan])


def test_mean_of_means_weighs_benchmarks_not_items():
    # (1/4 + 3/4 + 1) / 3 = 2/3, though 1 + 3 + 12 = 16 of 20 items are right
    samples = [[1, 0, 0, 0], [1, 1, 1, 0], [1] * 12]
    got = s.mean_of_means(samples)
    assert got.mean == pytest.approx(2 / 3) and got.n == 20
    assert got.low < 2 / 3 < got.high
    assert math.isnan(s.mean_of_means([[1, 0], []]).mean)
    assert math.isnan(s.mean_of_means([]).mean)
    assert s.mean_of_means([[1, 1], [0, 0]]) == s.Mean(4, 0.5, 0.5, 0.5)
    assert math.isnan(s.mean_of_means([[1], [1, 0]]).low)


def test_mcnemar_textbook_example():
    # Agresti, Categorical Data Analysis (2nd ed.), Table 10.1: approval at two surveys, 1600 people,
    # 794 yes-yes, 150 yes-no, 86 no-yes, 570 no-no. Difference (86 - 150) / 1600 = -0.04; Wald 95%
    # interval (-0.06, -0.02). The exact p is the two-sided binomial of 86 in 236.
    first = np.repeat([True, True, False, False], [794, 150, 86, 570])
    second = np.repeat([True, False, True, False], [794, 150, 86, 570])
    got = s.compare(first, second)
    assert (got.n, got.first_only, got.second_only) == (1600, 150, 86)
    assert got.difference == pytest.approx(-0.04)
    assert (round(got.low, 2), round(got.high, 2)) == (-0.06, -0.02)
    assert got.p == pytest.approx(stats.binomtest(86, 236).pvalue, rel=1e-9)


def test_compare_without_discordant_items_does_not_claim_certainty():
    same = s.compare([True] * 20, [True] * 20)
    assert same.p == 1.0 and same.difference == 0.0
    assert (round(same.low, 4), round(same.high, 4)) == (-0.1611, 0.1611)  # Wilson's upper limit of 0/20
    # all ten discordant one way: u = Wilson's upper limit of 0/10 = 3.8415 / 13.8415, low = 1 - 2u = 0.4449
    swept = s.compare([False] * 10, [True] * 10)
    assert (swept.difference, round(swept.low, 4), swept.high) == (1.0, 0.4449, 1.0)
    assert swept.p == pytest.approx(2 / 1024)
    nothing = s.compare([], [])
    assert nothing.p == 1.0 and math.isnan(nothing.difference) and (nothing.low, nothing.high) == (-1.0, 1.0)
    with pytest.raises(MedkitError, match="2 and 1 outcomes"):
        s.compare([True, False], [True])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_compare_is_antisymmetric_and_p_is_a_probability(pairs):
    first, second = zip(*pairs, strict=True)
    one, other = s.compare(first, second), s.compare(second, first)
    assert one.p == pytest.approx(other.p) and 0 < one.p <= 1
    assert one.difference == pytest.approx(-other.difference)
    assert -1 <= one.low <= one.difference <= one.high <= 1


def test_paired_difference_of_scores():
    got = s.paired_difference([0.1, 0.4, 0.2, 0.9], [0.2, 0.5, 0.3, 1.0])
    assert got.mean == pytest.approx(0.1) and got.low == pytest.approx(0.1, abs=1e-9)


def test_holm_textbook_example():
    # Holm (1979) on 0.01, 0.04, 0.03, 0.005: sorted 4 x 0.005 = 0.02, 3 x 0.01 = 0.03, 2 x 0.03 = 0.06, then
    # 1 x 0.04 raised to 0.06 by monotony
    assert s.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert s.holm([]) == []
    assert s.holm([0.7]) == [0.7]


def test_the_sign_flip_test_of_small_samples_is_exact():
    # Three differences of +1: of 2^3 = 8 sign patterns two (all plus, all minus) are as large: p = 2/8.
    assert s.sign_flip_p([0, 0, 0], [1, 1, 1]) == pytest.approx(0.25)
    # +1 and -1: each of the four patterns has a mean at least as far from 0.
    assert s.sign_flip_p([0, 1], [1, 0]) == 1
    assert math.isnan(s.sign_flip_p([0.5], [0.7]))
    assert s.sign_flip_p([0.5, 0.5], [0.5, 0.5]) == 1
