"""What is read off mcq/items.csv: accuracies, pairs, panels and the summary."""

import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import classification_report

from medkit import MedkitError
from medkit.evaluate import accuracy, statistics


def frame(model, gold, predicted, dataset="medqa", group="", seed=None):
    """Rows of items.csv; item ids are positions, so that models can be paired."""
    rows = pd.DataFrame({"gold": list(gold), "predicted": list(predicted)})
    rows = rows.assign(model=model, dataset=dataset, group=group, item_id=[f"q{i}" for i in range(len(rows))])
    rows["correct"] = rows["predicted"].fillna("").astype(str) == rows["gold"]
    return rows if seed is None else rows.assign(seed=seed)


def test_missing_and_unparsed_predictions_are_wrong_and_stay_in_the_denominator():
    items = frame("base", "ABCA", ["A", "", None, "B"])
    assert accuracy.is_correct(items).tolist() == [True, False, False, False]
    assert (accuracy.accuracy(items).correct, accuracy.accuracy(items).n) == (1, 4)


def test_a_correct_column_that_contradicts_the_letters_is_refused():
    items = frame("base", "AB", "AA").assign(correct=[True, True])
    with pytest.raises(MedkitError, match="1 rows have a `correct` that contradicts their letters, first q1"):
        accuracy.is_correct(items)


@pytest.mark.parametrize("stored", [["True", "False"], [1, 0], [1.0, 0.0], [np.True_, np.False_]])
def test_correct_is_read_in_the_forms_a_csv_gives_it(stored):
    assert accuracy.is_correct(frame("base", "AB", "AA").assign(correct=stored)).tolist() == [True, False]


def test_forgetting_pairs_by_item_id_not_by_row_order():
    before = frame("med-mix", "AAAA", "AAAB")  # right: q0, q1, q2
    after = frame("med-nirvana", "AAAA", "ABBB").iloc[::-1]  # right: q0
    pair = accuracy.paired_outcomes(pd.concat([before, after]), "med-mix", "med-nirvana")
    got = statistics.compare(*pair)
    assert (got.n, got.first_only, got.second_only, got.difference) == (4, 2, 0, -0.5)
    assert got.p == 0.5  # two discordant items, both one way: 2 x 1/4


def test_unpaired_items_are_refused():
    items = pd.concat([frame("base", "AB", "AB"), frame("med-mix", "A", "A")])
    with pytest.raises(MedkitError, match="only one of them answered 1 items"):
        accuracy.paired_outcomes(items, "base", "med-mix")
    twice = pd.concat([frame("base", "A", "A"), frame("base", "A", "A"), frame("med-mix", "A", "A")])
    with pytest.raises(MedkitError, match="base answered q0 twice"):
        accuracy.paired_outcomes(twice, "base", "med-mix")


def test_pubmedqa_panel_agrees_with_scikit_learn():
    gold, predicted = "AAAAABBBCC", ["A", "A", "A", "B", "", "B", "B", "C", "A", "C"]
    got = accuracy.pubmedqa_panel(frame("base", gold, predicted, "pubmedqa"))
    assert got["confusion"] == [[3, 1, 0], [0, 2, 1], [1, 0, 1]]
    assert got["unparsed"] == [1, 0, 0]  # 3 + 1 + 0 + 1 = 5 yes
    assert (got["correct"], got["n"]) == (6, 10)  # 3 + 2 + 1
    # F1: yes 2*3/(2*3+1+2), no 2*2/(2*2+1+1), maybe 2*1/(2*1+1+1): 2/3, 2/3, 1/2
    assert got["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    report = classification_report(gold_list := list(gold), predicted, labels=list("ABC"), output_dict=True)
    assert len(gold_list) == 10 and got["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert got["recall_maybe"] == 0.5
    assert got["ceiling_without_maybe"] == 0.8
    assert got["majority"] == {"label": "yes", "share": 0.5}


def test_pubmedqa_ceiling_and_majority_of_the_real_label_counts():
    # data/README.md: PQA-L is 552 yes, 338 no, 110 maybe. Never maybe: (552 + 338) / 1000 = 89.0%
    gold = "A" * 552 + "B" * 338 + "C" * 110
    got = accuracy.pubmedqa_panel(frame("base", gold, gold.replace("C", "B"), "pubmedqa"))
    assert got["ceiling_without_maybe"] == got["accuracy"] == 0.89
    assert got["majority"]["share"] == 0.552
    assert got["recall_maybe"] == 0.0


def test_pubmedqa_panel_degenerate():
    empty = accuracy.pubmedqa_panel(frame("base", "", "", "pubmedqa"))
    assert empty["n"] == 0 and math.isnan(empty["macro_f1"]) and math.isnan(empty["ceiling_without_maybe"])
    assert empty["confusion"] == [[0, 0, 0]] * 3 and empty["majority"]["label"] == ""
    no_maybe = accuracy.pubmedqa_panel(frame("base", "AB", "AB", "pubmedqa"))
    assert math.isnan(no_maybe["recall_maybe"]) and no_maybe["macro_f1"] == pytest.approx(2 / 3)
    with pytest.raises(MedkitError, match="found D"):
        accuracy.pubmedqa_panel(frame("base", "AD", "AA", "pubmedqa"))


def test_by_group_counts_every_row_once():
    items = pd.concat([frame("base", "AAB", "ABB", group=g) for g in ("Anatomy", "Surgery")])
    items.loc[items["item_id"] == "q2", "group"] = None  # a row without a group keeps its own line
    got = accuracy.by_group(items).set_index("group")
    assert got["n"].to_dict() == {"": 2, "Anatomy": 2, "Surgery": 2}
    assert got["correct"].to_dict() == {"": 2, "Anatomy": 1, "Surgery": 1}
    assert accuracy.by_group(items.iloc[:0]).empty


def test_majority_of_equals_is_the_first_letter():
    assert accuracy.majority("BABA") == ("A", 0.5)
    assert accuracy.majority([])[0] == "" and math.isnan(accuracy.majority([])[1])


def test_fold_seeds():
    # accuracies 2/4, 3/4, 4/4: mean 0.75, sd 0.25; t(0.975, 2) = 4.3027, and
    # 4.3027 * 0.25 / sqrt(3) = 0.621
    items = pd.concat(
        frame("med-mix", "AAAA", predicted, seed=i) for i, predicted in enumerate(["AABB", "AAAB", "AAAA"])
    )
    row = accuracy.fold_seeds(items).iloc[0]
    assert (row["n"], row["seeds"], row["accuracy"], row["seed_sd"]) == (4, 3, 0.75, 0.25)
    assert row["accuracy"] - row["seed_low"] == pytest.approx(0.6210, abs=1e-4)
    assert row["seed_high"] == 1  # no accuracy is above
    assert row["low"] < 0.75 < row["high"]
    alone = accuracy.fold_seeds(items[items["seed"] == 0]).iloc[0]
    assert alone["accuracy"] == 0.5 and alone["seeds"] == 1 and math.isnan(alone["seed_sd"])
    with pytest.raises(MedkitError, match="did not answer the same items"):
        accuracy.fold_seeds(items.iloc[:-1])


def test_fold_differences():
    """Base, untrained, has 2 of 4; Med-Mix 3 and 4 of 4 in two seeds, Med-Nirvana 4 and 2: stage 1 brings
    +1/4 and +2/4 (mean 0.375, sd 0.1768, t(0.975, 1) = 12.706), stage 2 +1/4 and -2/4."""
    items = pd.concat(
        [
            frame("base", "AAAA", "AABB", seed=0),
            *(frame("med-mix", "AAAA", predicted, seed=i) for i, predicted in enumerate(["AAAB", "AAAA"])),
            *(
                frame("med-nirvana", "AAAA", predicted, seed=i)
                for i, predicted in enumerate(["AAAA", "AABB"])
            ),
        ]
    )
    found = accuracy.fold_differences(items).set_index("shows")
    assert found["difference"].to_dict() == {
        "stage 1": 0.375,
        "both stages": 0.25,
        "stage 2 with replay": -0.125,
    }
    assert found.loc["stage 1", "seed_sd"] == pytest.approx(0.1768, abs=1e-4)
    assert (found.loc["stage 1", "seed_low"], found.loc["stage 1", "seed_high"]) == (-1, 1)  # 1.6 either way
    assert (found["seeds"] == 2).all() and (found["n"] == 4).all()


def test_an_arm_that_lacks_a_seed_is_compared_where_it_has_one():
    items = pd.concat(
        [
            *(frame("med-mix", "AA", predicted, seed=i) for i, predicted in enumerate(["AB", "AA"])),
            *(frame("med-nirvana", "AA", predicted, seed=i) for i, predicted in enumerate(["AA", "BB"])),
            frame("control", "AA", "BB", seed=1),
        ]
    )
    found = accuracy.fold_differences(items).set_index("shows")
    lost, replay = found.loc["stage 2 without replay"], found.loc["the replay"]
    assert (lost["seeds"], lost["difference"]) == (1, -1.0) and math.isnan(lost["seed_sd"])
    assert (replay["seeds"], replay["difference"]) == (1, 0.0)  # both have nothing right in seed 1
