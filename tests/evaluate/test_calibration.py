"""How sure a model is beside how right: each number by hand, and against scikit-learn where it has it."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from medkit import MedkitError
from medkit.evaluate import calibration


def items(chances, gold, dataset="medqa", model="base"):
    """Rows of items.csv: chances (n, letters) are probabilities; the likeliest letter is predicted."""
    rows = []
    for i, (own, letter) in enumerate(zip(chances, gold, strict=True)):
        row = {"model": model, "dataset": dataset, "item_id": f"q{i}", "gold": letter}
        row["predicted"] = "ABCD"[int(np.argmax(own))]
        logs = [math.log(one) if one > 0 else -math.inf for one in own] + [math.nan] * (4 - len(own))
        rows.append(row | dict(zip(calibration.LOGPROBS, logs, strict=True)))
    return pd.DataFrame(rows)


def of(rows):
    (found,) = calibration.summary(rows)["medqa"].values()
    return found


def drawn(n, seed=0, sharpness=2.0):
    """n questions of a model that is right as often as it says."""
    rng = np.random.default_rng(seed)
    chances = rng.dirichlet([1 / sharpness] * 4, n)
    gold = ["ABCD"[rng.choice(4, p=own)] for own in chances]
    return chances, gold


def test_two_answers_by_hand():
    """Confidence 0.7 and right, 0.5 and wrong: mean 0.6, accuracy 0.5, in one bin."""
    one = of(items([[0.7, 0.1, 0.1, 0.1], [0.5, 0.3, 0.1, 0.1]], "AB"))
    assert one["bins"] == [{"confidence": pytest.approx(0.6), "accuracy": 0.5, "n": 2}]
    assert one["ece"] == one["overconfidence"] == pytest.approx(0.1)
    # (0.3^2 + 3 * 0.1^2 + 0.5^2 + 0.7^2 + 2 * 0.1^2) / 2, and of the chosen letter (0.3^2 + 0.5^2) / 2
    assert one["brier"] == pytest.approx((0.12 + 0.76) / 2)
    assert one["brier_top"] == pytest.approx((0.09 + 0.25) / 2)
    assert one["n"] == 2 and one["left_out"] == 0 and "fewer than 300" in one["note"]
    # the surest half is right, all are half right
    assert [(p["n"], p["accuracy"]) for p in one["coverage"]] == [(1, 1)] * 5 + [(2, 0.5)] * 5


def test_against_scikit_learn():
    chances, gold = drawn(400)
    rows = items(chances, gold)
    one, right = of(rows), (rows["predicted"] == rows["gold"]).to_numpy()
    assert one["brier"] == pytest.approx(brier_score_loss(gold, chances, labels=list("ABCD")))
    assert one["brier_top"] == pytest.approx(brier_score_loss(right, chances.max(axis=1)))
    accuracies, confidences = calibration_curve(right, chances.max(axis=1), n_bins=10, strategy="quantile")
    assert [b["accuracy"] for b in one["bins"]] == pytest.approx(list(accuracies))
    assert [b["confidence"] for b in one["bins"]] == pytest.approx(list(confidences))
    assert {b["n"] for b in one["bins"]} == {40} and one["note"] == ""
    assert one["ece"] == pytest.approx(abs(accuracies - confidences).mean())  # bins of one size


def test_a_calibrated_model_and_one_that_is_too_sure(monkeypatch):
    monkeypatch.setattr(calibration.statistics, "RESAMPLES", 999)
    chances, gold = drawn(2000)
    fair, sharp = chances, chances**3 / (chances**3).sum(axis=1, keepdims=True)
    one, other = of(items(fair, gold)), of(items(sharp, gold))
    assert one["overconfidence_low"] < 0 < one["overconfidence_high"]
    assert other["overconfidence_low"] > 0.1 and other["ece"] > one["ece"]
    assert other["brier"] > one["brier"]  # a proper score: what is drawn from is best
    for name in ("ece", "brier", "brier_top", "overconfidence"):
        assert one[f"{name}_low"] <= one[f"{name}_high"]
    assert one["coverage"][0]["accuracy"] > one["coverage"][-1]["accuracy"]
    # paired: the accuracies are the same, so the difference is that of the confidences
    both = pd.concat([items(fair, gold, model="med-mix"), items(sharp, gold, model="med-nirvana")])
    (row,) = calibration.overconfidence(both, "med-mix", "med-nirvana")
    assert row["n"] == 2000 and row["low"] <= row["difference"] <= row["high"]
    assert row["difference"] == pytest.approx(sharp.max(axis=1).mean() - fair.max(axis=1).mean())
    assert calibration.overconfidence(both, "base", "med-mix") == []


def test_three_options_and_answers_without_numbers():
    """PubMedQA has no D; a model that gave no number was not sure of anything, and is counted."""
    rows = items([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]], "CA", dataset="pubmedqa")
    rows.loc[1, calibration.LOGPROBS] = math.nan
    one = calibration.summary(rows)["pubmedqa"]["base"]
    assert (one["n"], one["left_out"]) == (1, 1) and one["brier"] == pytest.approx(0.04 + 0.09 + 0.25)
    assert one["brier_low"] is None and one["ece"] == pytest.approx(0.5)  # of a single answer no interval
    rows[calibration.LOGPROBS] = math.nan
    assert calibration.summary(rows) == {"pubmedqa": {}}
    assert calibration.summary(rows.iloc[:0]) == {}
    assert calibration.overconfidence(rows, "base", "base") == []


def test_a_certain_answer_and_one_that_is_no_probability():
    """A letter of probability 0 in items.csv is -inf, the others still count."""
    one = of(items([[1.0, 0.0, 0.0, 0.0]] * 3, "AAB"))
    assert one["bins"] == [{"confidence": 1.0, "accuracy": pytest.approx(2 / 3), "n": 3}]
    rows = items([[0.25] * 4], "A")
    rows["logprob_A"] = 0.5
    with pytest.raises(MedkitError, match="q0 has a log-probability above 0"):
        calibration.summary(rows)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(26, 100), st.booleans()), min_size=1, max_size=60), st.randoms())
def test_the_order_of_the_questions_is_no_matter(answers, rng):
    """Equal confidences, of which there are many here, share a bin and an end of the coverage."""
    rows = items(
        [[p / 100, *[(100 - p) / 300] * 3] for p, _ in answers],
        ["A" if right else "B" for _, right in answers],
    )
    other = rows.sample(frac=1, random_state=rng.randint(0, 99))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = of(rows), of(other)
    for key in ("bins", "coverage"):
        assert [list(b.values()) for b in one[key]] == [pytest.approx(list(b.values())) for b in two[key]]
    assert one["ece"] == pytest.approx(two["ece"]) and 0 <= one["ece"] <= 1
    assert sum(b["n"] for b in one["bins"]) == len(answers)
    gap = sum(b["n"] * (b["confidence"] - b["accuracy"]) for b in one["bins"]) / len(answers)
    assert one["overconfidence"] == pytest.approx(gap) and one["ece"] >= abs(gap) - 1e-12
    assert one["coverage"][-1]["accuracy"] == pytest.approx(sum(right for _, right in answers) / len(answers))
