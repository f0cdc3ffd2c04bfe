"""Multiple-choice accuracy: computes mcq/summary.json from the outcomes in mcq/items.csv.

A missing or unparsed prediction ("" or NaN) counts as wrong and stays in the denominator. Accuracies are
fractions in [0, 1], intervals are 95%.
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

CHANCE = {"medqa": 1 / 4, "medmcqa": 1 / 4, "pubmedqa": 1 / 3}  # accuracy of random guessing
# (first arm, second arm, the effect that their difference measures)
PAIRS = (
    ("base", "med-mix", "stage 1"),
    ("base", "med-nirvana", "both stages"),
    ("med-mix", "med-nirvana", "stage 2 with replay"),
    ("med-mix", "control", "stage 2 without replay"),
    ("control", "med-nirvana", "the replay"),
    ("med-nirvana", "relearned", "relearning steps"),
)


def read_items(run_dir: str | Path) -> pd.DataFrame:
    """Read mcq/items.csv with ids and letters as text. An empty `predicted` is NaN.

    Raises MedkitError if the file cannot be parsed.
    """
    text = {"item_id": str, "group": str, "gold": str, "predicted": str}
    try:
        return pd.read_csv(
            storage.file(run_dir, "mcq/items.csv"), dtype=text, keep_default_na=False, na_values=["", "nan"]
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise MedkitError("mcq/items.csv cannot be parsed; run notebook 03_mcq_eval again") from None


def mcq_summary(items: pd.DataFrame, seed: int = 0) -> dict:
    """The contents of mcq/summary.json, from the rows of mcq/items.csv.

    datasets: per benchmark n, chance, majority answer; per model n, correct, accuracy, low, high, unparsed,
        and usual, its most frequent letter.
    average: per model, the unweighted mean over the benchmarks.
    comparisons: PAIRS per benchmark, with Holm's adjustment over all.
    pubmedqa: per model, the panel on "all" rows and on the official "fold" (None if it has no rows).
    groups: accuracy by subject or step.

    Raises MedkitError if models cannot be paired.
    """
    datasets, by_model = by_dataset(items), models_of(items)
    panels = models_of(datasets.get("pubmedqa", items.iloc[:0]))
    return {
        "models": list(by_model),
        "datasets": accuracies(items),
        "average": {model: _average(rows, list(datasets), seed) for model, rows in by_model.items()},
        "comparisons": statistics.with_holm(
            [{"dataset": name} | row for name, rows in datasets.items() for row in compare_arms(rows, seed)]
        ),
        "pubmedqa": {model: _both_folds(rows) for model, rows in panels.items()},
        "groups": by_group(items).to_dict("records"),
    }


def by_dataset(items: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each benchmark, in the order of CHANCE."""
    return {name: rows for name in CHANCE if len(rows := items[items["dataset"] == name])}


def models_of(items: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each model: first the arms in their order, then other models by name."""
    models = set(items["model"])
    names = [name for name in ARMS if name in models] + sorted(models - set(ARMS))
    return {name: items[items["model"] == name] for name in names}


def accuracies(items: pd.DataFrame) -> dict[str, dict]:
    """The "datasets" of `mcq_summary`."""
    results = {}
    for name, rows in by_dataset(items).items():
        by_model = {}
        for model, answers in models_of(rows).items():
            predicted = answers["predicted"].fillna("")
            letters = {"unparsed": int(predicted.eq("").sum()), "usual": _majority_dict(predicted)}
            by_model[model] = storage.plain(accuracy(answers)) | letters
        gold = rows.drop_duplicates("item_id")["gold"]
        benchmark = {"n": len(gold), "chance": CHANCE[name], "majority": _majority_dict(gold)}
        results[name] = benchmark | {"models": by_model}
    return results


def _majority_dict(letters: pd.Series) -> dict:
    letter, share = majority(letters)
    return {"letter": letter, "share": share}


def _average(items: pd.DataFrame, datasets: Sequence[str], seed: int) -> dict:
    outcomes = [is_correct(items[items["dataset"] == name]).astype(float) for name in datasets]
    mean = statistics.mean_of_means(outcomes, seed)
    return {"benchmarks": len(datasets), "n": mean.n, **mean.as_dict("accuracy")}


def _both_folds(rows: pd.DataFrame) -> dict:
    fold = rows[rows["group"] == "fold"]
    return {"all": pubmedqa_panel(rows), "fold": pubmedqa_panel(fold) if len(fold) else None}


def is_correct(items: pd.DataFrame) -> pd.Series:
    """Whether each row's predicted letter is the gold letter. Unparsed ("" or NaN) is False.

    Raises MedkitError if the stored `correct` column disagrees.
    """
    outcome = items["predicted"].fillna("").astype(str) == items["gold"].astype(str)
    if "correct" in items:
        stored = items["correct"].map(lambda value: str(value).lower() in ("true", "1", "1.0"))
        wrong = items.loc[stored != outcome, "item_id"]
        if len(wrong):
            raise MedkitError(
                f"items.csv: {len(wrong)} rows have a `correct` that contradicts their letters, "
                f"first {wrong.iloc[0]}; score them again with notebook 03"
            )
    return outcome


def accuracy(items: pd.DataFrame) -> statistics.Proportion:
    """Accuracy over rows of items.csv."""
    return statistics.wilson(int(is_correct(items).sum()), len(items))


def compare_arms(items: pd.DataFrame, seed: int = 0) -> list[dict]:
    """The PAIRS that one benchmark's rows contain: first, second, shows, and the fields of
    statistics.Comparison."""
    pairs = [pair for pair in PAIRS if set(pair[:2]) <= set(items["model"])]
    return [
        {"first": first, "second": second, "shows": shows}
        | storage.plain(statistics.compare(*paired_outcomes(items, first, second), seed=seed))
        for first, second, shows in pairs
    ]


def paired_outcomes(items: pd.DataFrame, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two models on the items of a benchmark, in the same order.

    Raises MedkitError if a model has an item twice, or lacks one that the other has.
    """
    by_model = []
    for model in (first, second):
        rows = items[items["model"] == model]
        outcome = pd.Series(is_correct(rows).to_numpy(), index=rows["item_id"].astype(str))
        if outcome.index.has_duplicates:
            duplicate = outcome.index[outcome.index.duplicated()][0]
            raise MedkitError(f"items.csv: {model} answered {duplicate} twice; run notebook 03 again")
        by_model.append(outcome)
    unshared = by_model[0].index.symmetric_difference(by_model[1].index)
    if len(unshared):
        raise MedkitError(
            f"{first} and {second} cannot be paired: only one of them answered {len(unshared)} items; "
            "run notebook 03 for both"
        )
    return by_model[0].to_numpy(), by_model[1].loc[by_model[0].index].to_numpy()


def by_group(items: pd.DataFrame) -> pd.DataFrame:
    """Accuracy per model, dataset and `group` (MedMCQA subject, MedQA step)."""
    columns = ["model", "dataset", "group"]
    rows = [
        dict(zip(columns, names, strict=True)) | storage.plain(accuracy(group))
        for names, group in items.fillna({"group": ""}).groupby(columns)
    ]
    return pd.DataFrame(rows, columns=[*columns, "n", "correct", "accuracy", "low", "high"])


def majority(gold: Sequence[str]) -> tuple[str, float]:
    """The most frequent letter (the first in a tie) and its share; ("", NaN) without items."""
    counts = pd.Series(list(gold), dtype=str).value_counts().sort_index()
    if counts.empty:
        return "", math.nan
    return str(counts.idxmax()), float(counts.max() / counts.sum())


def pubmedqa_panel(items: pd.DataFrame) -> dict:
    """One model on PubMedQA: accuracy, confusion, macro-F1, recall of maybe, and constant-answer baselines.

    `confusion` has one row per gold label and one column per predicted label (yes, no, maybe). Other answers
    are in `unparsed`, per gold label, and count as wrong in every score. `macro_f1` is the mean over the
    three labels; a label that is neither gold nor predicted counts as 0. The recall of maybe has Wilson's
    interval, and is NaN if no gold label is maybe.
    """
    letters, gold = list(pubmedqa.LETTERS), items["gold"].astype(str)
    if invalid := sorted(set(gold) - set(letters)):
        raise MedkitError(f"PubMedQA's gold answers must be A, B or C, found {', '.join(invalid)}")
    predicted = items["predicted"].where(items["predicted"].isin(letters), "none").astype(str)
    table, macro_f1 = np.zeros((4, 4), dtype=int), math.nan
    if len(items):  # scikit-learn refuses empty input
        table = confusion_matrix(gold, predicted, labels=[*letters, "none"])
        macro_f1 = float(f1_score(gold, predicted, labels=letters, average="macro", zero_division=0))
    letter, share = majority(gold)
    maybe = statistics.wilson(int(table[2, 2]), int(table[2].sum()))
    return {
        **storage.plain(accuracy(items)),
        "labels": list(pubmedqa.OPTIONS),
        "confusion": table[:3, :3].tolist(),
        "unparsed": table[:3, 3].tolist(),
        "macro_f1": macro_f1,
        "recall_maybe": maybe.accuracy,
        "recall_maybe_low": maybe.low,
        "recall_maybe_high": maybe.high,
        "ceiling_without_maybe": float((gold != "C").mean()) if len(items) else math.nan,
        "majority": {"label": pubmedqa.to_decision(letter) if letter else "", "share": share},
    }


def fold_seeds(items: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Average the training seeds (column `seed`) of each model: one row per model and dataset.

    `accuracy` is the mean over seeds. low/high bootstrap the items, each with its mean outcome over seeds.
    `seed_sd` and the t interval seed_low/seed_high measure the variation between seeds, and are NaN for one
    seed. Raises MedkitError if the seeds of a model did not answer the same items.
    """
    rows = []
    for (model, dataset), group in items.groupby(["model", "dataset"], sort=False):
        row = {"model": model, "dataset": dataset}
        rows.append(row | _mean_over_seeds(_seed_grid(group), "accuracy", 0.0, seed))
    return pd.DataFrame(rows)


def fold_differences(items: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """PAIRS over several training seeds, with columns as in `fold_seeds` and `difference` for accuracy.

    Models are paired by seed and item, over the seeds that both have. The base has no seed and is paired with
    every seed. A negative difference from Med-Mix is what stage 2 forgot.
    """
    rows = []
    for dataset, group in items.groupby("dataset", sort=False):
        grids = {model: _seed_grid(answers) for model, answers in group.groupby("model")}
        for first, second, shows in PAIRS:
            if not {first, second} <= grids.keys():
                continue
            before, after = grids[first], grids[second]
            if first == "base":
                before = pd.concat({seed: before.iloc[:, 0] for seed in after.columns}, axis=1)
            shared = before.columns.intersection(after.columns)
            if len(shared):  # arms may have been trained with different seeds
                names = {"dataset": dataset, "shows": shows, "first": first, "second": second}
                difference = after[shared] - before.loc[after.index, shared]
                rows.append(names | _mean_over_seeds(difference, "difference", -1.0, seed))
    return pd.DataFrame(rows)


def _seed_grid(answers: pd.DataFrame) -> pd.DataFrame:
    """Outcomes (0 or 1) of one model on one dataset: one row per item, one column per seed."""
    grid = answers.assign(outcome=is_correct(answers)).pivot_table(
        index="item_id", columns="seed", values="outcome", aggfunc="mean"
    )
    if grid.isna().to_numpy().any():
        model, dataset = answers.iloc[0][["model", "dataset"]]
        raise MedkitError(f"{model} on {dataset}: its seeds did not answer the same items")
    return grid.astype(float)


def _mean_over_seeds(grid: pd.DataFrame, name: str, lower_bound: float, seed: int) -> dict[str, float]:
    """The mean of `grid` with a bootstrap interval over items, and the standard deviation and t interval over
    seeds, clipped to [lower_bound, 1]."""
    over_items = statistics.bootstrap_mean(grid.mean(axis=1).to_numpy(dtype=float), seed)
    row = {"n": over_items.n, "seeds": grid.shape[1], **over_items.as_dict(name)}
    values = grid.mean(axis=0).to_numpy(dtype=float)
    if len(values) < 2:
        return row | dict.fromkeys(("seed_sd", "seed_low", "seed_high"), math.nan)
    sd, mean = float(values.std(ddof=1)), float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return row | {
        "seed_sd": sd,
        "seed_low": max(lower_bound, mean - half),
        "seed_high": min(1.0, mean + half),
    }
