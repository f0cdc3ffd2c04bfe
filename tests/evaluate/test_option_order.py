"""Each question under its cyclic orders: what is asked, and what the answers show, by hand."""

import json
import math
from collections import Counter

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit.evaluate import option_order
from medkit.evaluate.calibration import LOGPROBS
from medkit.records import LETTERS, MCQItem

FOUR = MCQItem("q", "medqa", "Which?", ("w", "x", "y", "z"), "B")
THREE = MCQItem("p", "pubmedqa", "Is it?", ("yes", "no", "maybe"), "C")


def test_the_orders_by_hand():
    """In order 1 the last option has come to the front, and the gold letter has moved from B to C."""
    orders = [option_order.rotated(FOUR, k) for k in range(4)]
    assert ["".join(one.options) for one in orders] == ["wxyz", "zwxy", "yzwx", "xyzw"]
    assert [one.answer for one in orders] == ["B", "C", "D", "A"]
    assert option_order.rotated(THREE, 1).options == ("maybe", "yes", "no")
    assert [(k, one.id) for k, one in option_order.rotations([FOUR, THREE])] == [
        *((k, "q") for k in (1, 2, 3)),
        *((k, "p") for k in (1, 2)),
    ]


@given(st.integers(0, 7), st.sampled_from("ABCD"), st.integers(3, 4))
def test_a_rotation_keeps_the_answer_and_a_whole_turn_the_question(k, answer, count):
    item = MCQItem("q", "medqa", "Which?", ("w", "x", "y", "z")[:count], answer if count == 4 else "C")
    turned = option_order.rotated(item, k)
    gold = [one.options[LETTERS.index(one.answer)] for one in (item, turned)]
    assert gold[0] == gold[1] and sorted(turned.options) == sorted(item.options)
    assert option_order.rotated(item, count) == item
    letters = Counter(option_order.rotated(item, i).answer for i in range(count))
    assert set(letters.values()) == {1}  # every letter is right once


def answered(item, chances, model="base"):
    """Rows of permutations.csv; chances(k, options) is the probability of each letter in order k, or None."""
    rows = []
    for k in range(len(item.options)):
        one = option_order.rotated(item, k)
        row = {"model": model, "dataset": item.source, "item_id": item.id, "rotation": k, "gold": one.answer}
        found = chances(k, one.options)
        row["predicted"] = LETTERS[max(range(len(found)), key=found.__getitem__)] if found else ""
        logs = [math.log(p) for p in found] if found else []
        rows.append(row | dict(zip(LOGPROBS, [*logs, *[math.nan] * (4 - len(logs))], strict=True)))
    return pd.DataFrame(rows)


def always_a(k, options):
    return [0.7, *[0.3 / (len(options) - 1)] * (len(options) - 1)]


def knows(option):
    return lambda k, options: [0.7 if one == option else 0.3 / (len(options) - 1) for one in options]


def test_a_model_that_always_says_a():
    """Right in one order of four, another option each time, and 3/4 too many A's; the vote is a tie, of
    which the first option is taken."""
    one = option_order.summary(answered(FOUR, always_a))["medqa"]["base"]
    assert one["accuracies"] == [0, 0, 0, 1] and one["consistency"] == 0 and one["n"] == 1
    assert one["position_bias"] == pytest.approx({"A": 0.75, "B": -0.25, "C": -0.25, "D": -0.25})
    assert one["vote_accuracy"] == 0


def test_a_model_that_knows_and_one_that_is_sure_of_another():
    right, wrong = answered(FOUR, knows("x")), answered(FOUR, knows("w"), "med-mix")
    found = option_order.summary(pd.concat([right, wrong]))["medqa"]
    assert found["base"]["accuracies"] == [1] * 4 and found["base"]["vote_accuracy"] == 1
    assert found["med-mix"]["accuracies"] == [0] * 4 and found["med-mix"]["vote_accuracy"] == 0
    for one in found.values():
        assert one["consistency"] == 1 and set(one["position_bias"].values()) == {0}


def test_a_vote_that_is_right_where_the_original_order_is_not():
    """Wrong with 0.4 beside 0.35 in the original order, right with 0.9 in the others: mean log-probability
    (log 0.35 + 3 log 0.9) / 4 against (log 0.4 + 3 log 0.05) / 4."""

    def chances(k, options):
        if k == 0:
            return [0.4, 0.35, 0.15, 0.1]
        return [0.9 if one == "x" else 0.05 if one == "w" else 0.025 for one in options]

    one = option_order.summary(answered(FOUR, chances))["all"]["base"]
    assert one["accuracies"] == [0, 1, 1, 1] and one["consistency"] == 0 and one["vote_accuracy"] == 1
    assert one["vote_minus_original"]["difference"] == 1 and one["vote_minus_original"]["second_only"] == 1


def test_over_all_benchmarks_and_orders_without_an_answer():
    """Four orders of one question and three of the other: the first three are compared over both."""
    silent = answered(THREE, lambda k, options: None if k == 1 else knows("maybe")(k, options))
    found = option_order.summary(pd.concat([answered(FOUR, knows("x")), silent]))
    both = found["all"]["base"]
    assert list(found) == ["medqa", "pubmedqa", "all"] and both["n"] == 2 and both["unanswered"] == 1
    assert both["accuracies"] == [1, 0.5, 1] and both["consistency"] == 0.5 and both["vote_accuracy"] == 1
    assert set(found["pubmedqa"]["base"]["position_bias"]) == {"A", "B", "C"}
    nothing = option_order.summary(answered(THREE, lambda *_: None))["pubmedqa"]["base"]
    assert nothing["vote_accuracy"] == 0 and nothing["consistency"] == 0 and nothing["unanswered"] == 3
    assert option_order.summary(silent.iloc[:0]) == {}
    json.dumps(found, allow_nan=False)
