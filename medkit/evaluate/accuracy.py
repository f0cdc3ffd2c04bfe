"""Multiple-choice outcomes, item by item: what mcq/items.csv says, and mcq/summary.json made from it.

A missing or unparsed prediction ("" or NaN) is a wrong answer and stays in the denominator.
Accuracies are fractions in [0, 1], intervals are 95%.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.metrics import confusion_matrix, f1_score

from medkit import MedkitError, pubmedqa
from medkit.evaluate import statistics
from medkit.runs import storage
from medkit.runs.arms import ARMS

CHANCE = {"medqa": 1 / 4, "medmcqa": 1 / 4, "pubmedqa": 1 / 3}  # one of the options, drawn blindly
# What is tested, and what a difference between the two would show.
PAIRS = (
    ("base", "med-mix", "stage 1"),
    ("base", "med-nirvana", "both stages"),
    ("med-mix", "med-nirvana", "stage 2 with replay"),
    ("med-mix", "control", "stage 2 without replay"),
    ("control", "med-nirvana", "the replay"),
    ("med-nirvana", "relearned", "relearning steps"),
)
PUBMEDQA_LABELS = dict(zip(pubmedqa.LETTERS, pubmedqa.OPTIONS, strict=True))


class OutcomeError(MedkitError):
    """Outcomes that are missing, malformed or cannot be paired; one line."""


def read_items(run_dir: str | Path) -> pd.DataFrame:
    """mcq/items.csv with ids and letters as text; an empty `predicted` is NaN. Raises OutcomeError."""
    text = {"item_id": str, "group": str, "gold": str, "predicted": str}
    try:
        return pd.read_csv(
            storage.file(run_dir, "mcq/items.csv"), dtype=text, keep_default_na=False, na_values=["", "nan"]
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise OutcomeError("mcq/items.csv is no table of outcomes; run notebook 03_mcq_eval again") from None


def mcq_summary(items: pd.DataFrame, seed: int = 0) -> dict:
    """What mcq/summary.json holds, from the rows of mcq/items.csv; accuracies are fractions.

    "datasets": per benchmark n, chance, majority answer, and per model n, correct, accuracy, low, high,
    unparsed, and usual: the letter it gives most often, and how often. "average": per model the unweighted
    mean over the benchmarks. "comparisons": PAIRS per benchmark, paired, with McNemar's exact p and Holm's
    adjustment over all of them. "pubmedqa": per model the panel on "all" rows and on the official "fold"
    (None without such rows). "groups": accuracy by subject or step.
    Raises OutcomeError where models cannot be paired.
    """
    models = [model for model in ARMS if model in set(items["model"])]
    models += sorted(set(items["model"]) - set(models))
    datasets = [name for name in CHANCE if name in set(items["dataset"])]
    pubmedqa = items[items["dataset"] == "pubmedqa"]
    return {
        "models": models,
        "datasets": {name: _of_dataset(name, items[items["dataset"] == name], models) for name in datasets},
        "average": {model: _average(items[items["model"] == model], datasets, seed) for model in models},
        "comparisons": _comparisons(items, models, datasets, seed),
        "pubmedqa": {
            model: _both_folds(rows) for model in models if len(rows := pubmedqa[pubmedqa["model"] == model])
        },
        "groups": by_group(items).to_dict("records"),
    }


def _of_dataset(name: str, rows: pd.DataFrame, models: list[str]) -> dict:
    questions = rows.drop_duplicates("item_id")
    letter, share = majority(questions["gold"])
    per_model = {}
    for model in models:
        if len(own := rows[rows["model"] == model]):
            unparsed = int(own["predicted"].fillna("").eq("").sum())
            usual, often = majority(own["predicted"].fillna(""))
            per_model[model] = storage.plain(accuracy(own)) | {
                "unparsed": unparsed,
                "usual": {"letter": usual, "share": often},
            }
    return {
        "n": len(questions),
        "chance": CHANCE[name],
        "majority": {"letter": letter, "share": share},
        "models": per_model,
    }


def _average(items: pd.DataFrame, datasets: list[str], seed: int) -> dict:
    outcomes = [is_correct(items[items["dataset"] == name]).astype(float) for name in datasets]
    mean = statistics.mean_of_means(outcomes, seed)
    return {
        "benchmarks": len(datasets),
        "n": mean.n,
        "accuracy": mean.mean,
        "low": mean.low,
        "high": mean.high,
    }


def _comparisons(items: pd.DataFrame, models: list[str], datasets: list[str], seed: int) -> list[dict]:
    found = []
    for name in datasets:
        rows = items[items["dataset"] == name]
        present = set(rows["model"])
        for first, second, shows in PAIRS:
            if {first, second} <= present:
                pair = statistics.compare(*paired_outcomes(rows, first, second), seed=seed)
                found.append(
                    {"dataset": name, "first": first, "second": second, "shows": shows, **storage.plain(pair)}
                )
    adjusted = statistics.holm([row["p"] for row in found])
    return [row | {"p_holm": p} for row, p in zip(found, adjusted, strict=True)]


def _both_folds(rows: pd.DataFrame) -> dict:
    fold = rows[rows["group"] == "fold"]
    return {
        "all": pubmedqa_panel(rows),
        "fold": pubmedqa_panel(fold) if len(fold) else None,
    }


def is_correct(items: pd.DataFrame) -> pd.Series:
    """Boolean per row: the predicted letter is the gold letter. Unparsed ("" or NaN) is False.

    Raises OutcomeError where the stored `correct` column says otherwise.
    """
    outcome = items["predicted"].fillna("").astype(str) == items["gold"].astype(str)
    if "correct" in items:
        stored = items["correct"].map(lambda value: str(value).lower() in ("true", "1", "1.0"))
        wrong = items.loc[stored != outcome, "item_id"]
        if len(wrong):
            raise OutcomeError(
                f"items.csv: {len(wrong)} rows say `correct` against their own letters, "
                f"first {wrong.iloc[0]}; score them again with notebook 03"
            )
    return outcome


def accuracy(items: pd.DataFrame) -> statistics.Proportion:
    """Accuracy of the given rows of items.csv."""
    return statistics.wilson(int(is_correct(items).sum()), len(items))


def paired_outcomes(items: pd.DataFrame, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two models on one dataset's items, in the same order.

    Raises OutcomeError where an item is missing or doubled on one side, naming how many.
    """
    by_model = []
    for model in (first, second):
        rows = items[items["model"] == model]
        outcome = pd.Series(is_correct(rows).to_numpy(), index=rows["item_id"].astype(str))
        if outcome.index.has_duplicates:
            twice = outcome.index[outcome.index.duplicated()][0]
            raise OutcomeError(f"items.csv: {model} answered {twice} twice; run notebook 03 again")
        by_model.append(outcome)
    unshared = by_model[0].index.symmetric_difference(by_model[1].index)
    if len(unshared):
        raise OutcomeError(
            f"{first} and {second} cannot be paired: {len(unshared)} items were answered by "
            "one of them only; run notebook 03 for both"
        )
    return by_model[0].to_numpy(), by_model[1].loc[by_model[0].index].to_numpy()


def by_group(items: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with n and interval per model, dataset and `group` (MedMCQA subject, MedQA step)."""
    rows = [
        {"model": model, "dataset": dataset, "group": group, **storage.plain(accuracy(part))}
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
    the three labels, a label that is neither gold nor predicted counting 0. The recall of maybe has Wilson's
    interval; where no gold label is maybe, it is NaN.
    """
    letters = list(PUBMEDQA_LABELS)
    gold = items["gold"].astype(str)
    if not gold.isin(letters).all():
        others = ", ".join(sorted(set(gold) - set(letters)))
        raise OutcomeError(f"PubMedQA's gold answers are A, B or C, found {others}")
    parsed = items["predicted"].fillna("").astype(str)
    predicted = parsed.where(parsed.isin(letters), "none")
    table, macro_f1 = np.zeros((4, 4), dtype=int), math.nan
    if len(items):  # scikit-learn refuses empty input
        table = confusion_matrix(gold, predicted, labels=[*letters, "none"])
        macro_f1 = float(f1_score(gold, predicted, labels=letters, average="macro", zero_division=0))
    letter, share = majority(gold)
    maybe = statistics.wilson(int(table[2, 2]), int(table[2].sum()))
    return {
        **storage.plain(accuracy(items)),
        "labels": list(PUBMEDQA_LABELS.values()),
        "confusion": table[:3, :3].tolist(),
        "unparsed": table[:3, 3].tolist(),
        "macro_f1": macro_f1,
        "recall_maybe": maybe.accuracy,
        "recall_maybe_low": maybe.low,
        "recall_maybe_high": maybe.high,
        "ceiling_without_maybe": float((gold != "C").mean()) if len(items) else math.nan,
        "majority": {"label": PUBMEDQA_LABELS.get(letter, ""), "share": share},
    }


def fold_seeds(items: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Several training seeds of each model (column `seed`) folded into one row per model and dataset.

    `accuracy` is the mean over seeds; low/high resample the items, each with its mean outcome over the seeds,
    and so cover the draw of questions; `seed_sd` and the t interval seed_low/seed_high cover the draw of
    seeds. With one seed the latter three are NaN: nothing is known of the spread.
    Raises OutcomeError where the seeds of a model did not answer the same items.
    """
    rows = []
    for (model, dataset), part in items.groupby(["model", "dataset"], sort=False):
        grid = _by_seed(part)
        over_items = statistics.bootstrap_mean(grid.mean(axis=1).to_numpy(dtype=float), seed)
        row = {"model": model, "dataset": dataset, "n": over_items.n, "seeds": grid.shape[1]}
        row |= {"accuracy": over_items.mean, "low": over_items.low, "high": over_items.high}
        rows.append(row | _over_seeds(grid.mean(axis=0), lowest=0.0))
    return pd.DataFrame(rows)


def fold_differences(items: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """PAIRS over several training seeds, models of one seed paired on the same items; columns as
    `fold_seeds`, with `difference` for the accuracy. The base, which has no seed, stands beside each seed of
    the other; else only seeds that both have count. From Med-Mix on it is what stage 2 forgot, below zero."""
    rows = []
    for dataset, part in items.groupby("dataset", sort=False):
        grids = {model: _by_seed(own) for model, own in part.groupby("model")}
        for first, second, shows in PAIRS:
            if not {first, second} <= grids.keys():
                continue
            before, after = grids[first], grids[second]
            if first == "base":
                before = pd.concat({seed: before.iloc[:, 0] for seed in after.columns}, axis=1)
            shared = before.columns.intersection(after.columns)
            if shared.empty:  # an arm that was not trained with the other's seeds
                continue
            difference = after[shared] - before.loc[after.index, shared]
            over_items = statistics.bootstrap_mean(difference.mean(axis=1).to_numpy(dtype=float), seed)
            row = {"dataset": dataset, "shows": shows, "first": first, "second": second, "n": over_items.n}
            row |= {"seeds": difference.shape[1], "difference": over_items.mean}
            row |= {"low": over_items.low, "high": over_items.high}
            rows.append(row | _over_seeds(difference.mean(axis=0), lowest=-1.0))
    return pd.DataFrame(rows)


def _by_seed(part: pd.DataFrame) -> pd.DataFrame:
    """One model on one dataset: outcome (0 or 1) of each item in each seed."""
    grid = part.assign(outcome=is_correct(part)).pivot_table(
        index="item_id", columns="seed", values="outcome", aggfunc="mean"
    )
    if grid.isna().to_numpy().any():
        model, dataset = part.iloc[0][["model", "dataset"]]
        raise OutcomeError(f"{model} on {dataset}: its seeds did not answer the same items")
    return grid.astype(float)


def _over_seeds(per_seed: Sequence[float], lowest: float) -> dict[str, float]:
    """Standard deviation over the seeds and the mean's t interval, within [lowest, 1]."""
    values = np.asarray(per_seed, dtype=float)
    if len(values) < 2:
        return dict.fromkeys(("seed_sd", "seed_low", "seed_high"), math.nan)
    sd, mean = float(values.std(ddof=1)), float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return {"seed_sd": sd, "seed_low": max(lowest, mean - half), "seed_high": min(1.0, mean + half)}
