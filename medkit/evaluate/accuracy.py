"""Multiple-choice outcomes, item by item: what mcq/items.csv says, and mcq/summary.json computed from it.

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

CHANCE = {"medqa": 1 / 4, "medmcqa": 1 / 4, "pubmedqa": 1 / 3}  # of a random guess
# What is tested, and what a difference between the two shows.
PAIRS = (
    ("base", "med-mix", "stage 1"),
    ("base", "med-nirvana", "both stages"),
    ("med-mix", "med-nirvana", "stage 2 with replay"),
    ("med-mix", "control", "stage 2 without replay"),
    ("control", "med-nirvana", "the replay"),
    ("med-nirvana", "relearned", "relearning steps"),
)


def read_items(run_dir: str | Path) -> pd.DataFrame:
    """mcq/items.csv with ids and letters as text; an empty `predicted` is NaN. Raises MedkitError."""
    text = {"item_id": str, "group": str, "gold": str, "predicted": str}
    try:
        return pd.read_csv(
            storage.file(run_dir, "mcq/items.csv"), dtype=text, keep_default_na=False, na_values=["", "nan"]
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError):
        raise MedkitError("mcq/items.csv is no table of outcomes; run notebook 03_mcq_eval again") from None


def mcq_summary(items: pd.DataFrame, seed: int = 0) -> dict:
    """What mcq/summary.json holds, from the rows of mcq/items.csv.

    "datasets": per benchmark n, chance, majority answer, and per model n, correct, accuracy, low, high,
    unparsed, and usual: the letter it gives most often. "average": per model the unweighted mean over the
    benchmarks. "comparisons": PAIRS per benchmark, with Holm's adjustment over all of them. "pubmedqa": per
    model the panel on "all" rows and on the official "fold" (None without such rows). "groups": accuracy by
    subject or step. Raises MedkitError where models cannot be paired.
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
    """The rows of each benchmark, in CHANCE's order."""
    return {name: rows for name in CHANCE if len(rows := items[items["dataset"] == name])}


def models_of(items: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of each model: the arms in their order, then others by name."""
    present = set(items["model"])
    names = [name for name in ARMS if name in present] + sorted(present - set(ARMS))
    return {name: items[items["model"] == name] for name in names}


def accuracies(items: pd.DataFrame) -> dict[str, dict]:
    """The "datasets" of `mcq_summary`."""
    found = {}
    for name, rows in by_dataset(items).items():
        per_model = {}
        for model, own in models_of(rows).items():
            predicted = own["predicted"].fillna("")
            answered = {"unparsed": int(predicted.eq("").sum()), "usual": _usual(predicted)}
            per_model[model] = storage.plain(accuracy(own)) | answered
        gold = rows.drop_duplicates("item_id")["gold"]
        about = {"n": len(gold), "chance": CHANCE[name], "majority": _usual(gold)}
        found[name] = about | {"models": per_model}
    return found


def _usual(letters: pd.Series) -> dict:
    letter, share = majority(letters)
    return {"letter": letter, "share": share}


def _average(items: pd.DataFrame, datasets: Sequence[str], seed: int) -> dict:
    outcomes = [is_correct(items[items["dataset"] == name]).astype(float) for name in datasets]
    mean = statistics.mean_of_means(outcomes, seed)
    return {"benchmarks": len(datasets), "n": mean.n, **mean.named("accuracy")}


def _both_folds(rows: pd.DataFrame) -> dict:
    fold = rows[rows["group"] == "fold"]
    return {"all": pubmedqa_panel(rows), "fold": pubmedqa_panel(fold) if len(fold) else None}


def is_correct(items: pd.DataFrame) -> pd.Series:
    """Boolean per row: the predicted letter is the gold letter. Unparsed ("" or NaN) is False.

    Raises MedkitError where the stored `correct` column says otherwise.
    """
    outcome = items["predicted"].fillna("").astype(str) == items["gold"].astype(str)
    if "correct" in items:
        stored = items["correct"].map(lambda value: str(value).lower() in ("true", "1", "1.0"))
        wrong = items.loc[stored != outcome, "item_id"]
        if len(wrong):
            raise MedkitError(
                f"items.csv: {len(wrong)} rows say `correct` against their own letters, "
                f"first {wrong.iloc[0]}; score them again with notebook 03"
            )
    return outcome


def accuracy(items: pd.DataFrame) -> statistics.Proportion:
    """Accuracy of the given rows of items.csv."""
    return statistics.wilson(int(is_correct(items).sum()), len(items))


def compare_arms(items: pd.DataFrame, seed: int = 0) -> list[dict]:
    """One dataset's PAIRS, as far as both models are there: first, second, shows, and the numbers of
    statistics.compare."""
    pairs = [pair for pair in PAIRS if set(pair[:2]) <= set(items["model"])]
    return [
        {"first": first, "second": second, "shows": shows}
        | storage.plain(statistics.compare(*paired_outcomes(items, first, second), seed=seed))
        for first, second, shows in pairs
    ]


def paired_outcomes(items: pd.DataFrame, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes of two models on one dataset's items, in the same order.

    Raises MedkitError where an item is missing or doubled on one side, naming how many.
    """
    by_model = []
    for model in (first, second):
        rows = items[items["model"] == model]
        outcome = pd.Series(is_correct(rows).to_numpy(), index=rows["item_id"].astype(str))
        if outcome.index.has_duplicates:
            twice = outcome.index[outcome.index.duplicated()][0]
            raise MedkitError(f"items.csv: {model} answered {twice} twice; run notebook 03 again")
        by_model.append(outcome)
    unshared = by_model[0].index.symmetric_difference(by_model[1].index)
    if len(unshared):
        raise MedkitError(
            f"{first} and {second} cannot be paired: {len(unshared)} items were answered by "
            "one of them only; run notebook 03 for both"
        )
    return by_model[0].to_numpy(), by_model[1].loc[by_model[0].index].to_numpy()


def by_group(items: pd.DataFrame) -> pd.DataFrame:
    """Accuracy with n and interval per model, dataset and `group` (MedMCQA subject, MedQA step)."""
    columns = ["model", "dataset", "group"]
    rows = [
        dict(zip(columns, names, strict=True)) | storage.plain(accuracy(part))
        for names, part in items.fillna({"group": ""}).groupby(columns)
    ]
    return pd.DataFrame(rows, columns=[*columns, "n", "correct", "accuracy", "low", "high"])


def majority(gold: Sequence[str]) -> tuple[str, float]:
    """The most frequent gold letter (of equals the first) and its share; ("", NaN) for no items."""
    counts = pd.Series(list(gold), dtype=str).value_counts().sort_index()
    if counts.empty:
        return "", math.nan
    return str(counts.idxmax()), float(counts.max() / counts.sum())


def pubmedqa_panel(items: pd.DataFrame) -> dict:
    """One model on PubMedQA: accuracy, confusion, macro-F1, recall of maybe, and what a constant answer gets.

    `confusion` has a row per gold label and a column per predicted label (yes, no, maybe); other answers are
    in `unparsed` per gold label, and wrong in every score. `macro_f1` is the mean over the three labels; a
    label that is neither gold nor predicted counts 0. The recall of maybe has Wilson's interval; where no
    gold label is maybe, it is NaN.
    """
    letters, gold = list(pubmedqa.LETTERS), items["gold"].astype(str)
    if others := sorted(set(gold) - set(letters)):
        raise MedkitError(f"PubMedQA's gold answers are A, B or C, found {', '.join(others)}")
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
    """Several training seeds of each model (column `seed`) folded into one row per model and dataset.

    `accuracy` is the mean over seeds; low/high resample the items, each with its mean outcome over the seeds;
    `seed_sd` and the t interval seed_low/seed_high cover the draw of seeds, and are NaN for one seed. Raises
    MedkitError where the seeds of a model did not answer the same items.
    """
    rows = []
    for (model, dataset), part in items.groupby(["model", "dataset"], sort=False):
        folded = _folded(_by_seed(part), "accuracy", 0.0, seed)
        rows.append({"model": model, "dataset": dataset} | folded)
    return pd.DataFrame(rows)


def fold_differences(items: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """PAIRS over several training seeds, models of one seed paired on the same items; columns as
    `fold_seeds`, with `difference` for the accuracy. The base, which has no seed, stands beside each seed of
    the other; otherwise only seeds that both have count. From Med-Mix on, below zero is what stage 2 forgot.
    """
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
            if len(shared):  # an arm may have been trained with other seeds
                names = {"dataset": dataset, "shows": shows, "first": first, "second": second}
                difference = after[shared] - before.loc[after.index, shared]
                rows.append(names | _folded(difference, "difference", -1.0, seed))
    return pd.DataFrame(rows)


def _by_seed(part: pd.DataFrame) -> pd.DataFrame:
    """One model on one dataset: outcome (0 or 1) of each item in each seed."""
    grid = part.assign(outcome=is_correct(part)).pivot_table(
        index="item_id", columns="seed", values="outcome", aggfunc="mean"
    )
    if grid.isna().to_numpy().any():
        model, dataset = part.iloc[0][["model", "dataset"]]
        raise MedkitError(f"{model} on {dataset}: its seeds did not answer the same items")
    return grid.astype(float)


def _folded(grid: pd.DataFrame, name: str, lowest: float, seed: int) -> dict[str, float]:
    """The mean over items and seeds (columns), its interval over the items, and over the seeds the standard
    deviation and the mean's t interval, within [lowest, 1]."""
    over_items = statistics.bootstrap_mean(grid.mean(axis=1).to_numpy(dtype=float), seed)
    row = {"n": over_items.n, "seeds": grid.shape[1], **over_items.named(name)}
    values = grid.mean(axis=0).to_numpy(dtype=float)
    if len(values) < 2:
        return row | dict.fromkeys(("seed_sd", "seed_low", "seed_high"), math.nan)
    sd, mean = float(values.std(ddof=1)), float(values.mean())
    half = float(stats.t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return row | {"seed_sd": sd, "seed_low": max(lowest, mean - half), "seed_high": min(1.0, mean + half)}
