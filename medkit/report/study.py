"""A sweep's outcomes as one study: what each arm retains, gains and costs, over seeds and questions.

Reads only results/NAME/outcomes/, which `medkit sweep` writes. How the comparisons are chosen and tested was
fixed before the runs: DECISIONS.md, "The replay study".
"""

import itertools
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from medkit import MedkitError, recipes
from medkit.evaluate import accuracy, clustered, statistics
from medkit.recipes import Recipe
from medkit.records import LETTERS
from medkit.runs import run_json, storage

# measure -> (description, whether its values are 0 or 1)
MEASURES = {
    "accuracy": ("letter accuracy on exam questions", True),
    "general": ("letter accuracy on general questions", True),
    "general_loss": ("loss on general texts, nats per token, mean over texts", False),
    "f1": ("BERTScore F1 of consumer answers", False),
    "words": ("words of consumer answers", False),
    "letter_loss": ("loss of the right letter on exam questions, over the options' letters, nats", False),
}
# measure -> the model of the stage-1 run to compare an arm with. Med-Mix answers no consumer queries.
REFERENCE = {
    "accuracy": "med-mix",
    "letter_loss": "med-mix",
    "general": "med-mix",
    "general_loss": "med-mix",
    "f1": "base",
    "words": "base",
}
NUMBERS = ("seeds", "items", "difference", "low", "high", "p", "p_holm", "detectable")
COLUMNS = ["kind", "measure", "first", "second", *NUMBERS, "model_low", "model_high", "model_p"]
SHARES = ("rows", "tokens", "supervised_tokens")  # the replay's share of stage 2, in three units
# Fields of `dmt` that set how stage 2 starts. The others choose its rows.
_START_FIELDS = ("dmt.handover", "dmt.optimizer_state")


@dataclass(frozen=True)
class Study:
    """The finished trials of a sweep, by arm."""

    folder: Path
    benchmark: str
    model: str
    builtin: bool  # trained on the built-in corpus
    planned: list[tuple[str, str, int]]  # run, arm ("stage 1" for a stage-1 run), seed
    missing: list[str]  # planned runs without outcomes
    majority: float  # the benchmark's accuracy of always giving its most frequent answer; NaN if not measured
    arms: pd.DataFrame  # one row per arm, in the sweep's order: SHARES and trained_rows (means), seeds
    recipes: dict[str, Recipe]  # by arm
    repeats: dict[str, tuple[str, str]]  # arm -> arm it repeats, "same" or "order"; for the noise floor only
    # (arm, "base" or "med-mix"; measure) -> values, one row per seed, one column per item
    grids: dict[tuple[str, str], pd.DataFrame]

    @property
    def compared(self) -> list[str]:
        """The arms, without the repeats."""
        return [arm for arm in self.arms.index if arm not in self.repeats]

    def grid(self, arm: str, measure: str) -> pd.DataFrame:
        """One row per seed, one column per item; empty if it was not measured."""
        return self.grids.get((arm, measure), pd.DataFrame())


def read(sweep_dir: str | Path, benchmark: str = "pubmedqa") -> Study:
    """Read a sweep's finished trials. benchmark: the exam that retention is measured on.

    Raises MedkitError if there is no sweep, or no finished trial besides stage 1.
    """
    if benchmark not in accuracy.CHANCE:
        raise MedkitError(f"benchmark is {benchmark!r}; it must be one of {', '.join(accuracy.CHANCE)}")
    folder = storage.folder(sweep_dir)
    plan = folder / "outcomes" / "sweep.json"
    if not plan.is_file():
        raise MedkitError(f"{storage.relpath(plan)} is missing; medkit sweep FILE --resume writes it")
    planned = json.loads(plan.read_text(encoding="utf-8"))["trials"]
    finished = {
        trial["name"]: info for trial in planned if (info := run_json.read(plan.parent / trial["name"]))
    }
    trials = [info for info in finished.values() if not info["trial"]["is_stage1"]]
    if not trials:
        raise MedkitError(f"{storage.relpath(folder)} has no finished trial besides stage 1; run its sweep")
    recipe_of: dict[str, Recipe] = {}
    for info in trials:
        recipe_of.setdefault(_arm_name(info["trial"]), recipes.from_dict(info["recipe"]))
    return Study(
        folder=folder,
        benchmark=benchmark,
        model=trials[0]["recipe"]["model"]["base"],
        builtin=trials[0]["data"]["origin"] == "builtin",
        planned=[(trial["name"], _arm_name(trial), trial["seed"]) for trial in planned],
        missing=[trial["name"] for trial in planned if trial["name"] not in finished],
        majority=_majority(plan.parent, finished, benchmark),
        arms=_arm_table(trials, plan.parent),
        recipes=recipe_of,
        repeats=_repeats(trials),
        grids=_value_grids(finished.values(), plan.parent, benchmark),
    )


def _arm_name(trial: dict) -> str:
    """The trial's name without its seed."""
    return "stage 1" if trial["is_stage1"] else trial["name"].removesuffix(f"-s{trial['seed']}")


def _majority(outcomes: Path, finished: Iterable[str], benchmark: str) -> float:
    measured = [outcomes / name for name in finished if (outcomes / name / "mcq" / "items.csv").is_file()]
    if not measured:
        return math.nan
    items = accuracy.read_items(measured[0])  # every trial answers the same questions
    return accuracy.majority(items.loc[items["dataset"] == benchmark, "gold"])[1]


def _arm_table(trials: list[dict], outcomes: Path) -> pd.DataFrame:
    rows = []
    for info in trials:
        path = outcomes / info["trial"]["name"] / "data" / "manifest.json"
        stage2 = json.loads(path.read_text(encoding="utf-8")).get("stage2", {}) if path.is_file() else {}
        consultations, replay = stage2.get("notechat", {}), stage2.get("replay", {})
        shares = {name: replay.get(f"share_of_{name}", math.nan) for name in SHARES}
        if token_share := info["recipe"]["dmt"].get("replay_token_share"):
            shares["supervised_tokens"] = token_share  # the loss is weighted to this share
        counts = [consultations.get("train"), consultations.get("further"), replay.get("train")]
        rows.append(
            {"arm": _arm_name(info["trial"]), "seeds": 1, **shares, "trained_rows": sum(filter(None, counts))}
        )
    means = dict.fromkeys([*SHARES, "trained_rows"], "mean")
    return pd.DataFrame(rows).groupby("arm", sort=False).agg({**means, "seeds": "sum"})


def _changed_fields(first: Recipe, second: Recipe) -> set[str]:
    """Fields that differ, except seeds and what happens after stage 2."""
    values, others = recipes.flat(first), recipes.flat(second)
    ignored = ("name", "about", "dmt.relearn_steps")
    return {f for f in values if values[f] != others[f] and f not in ignored and not f.endswith(".seed")}


def _repeats(trials: list[dict]) -> dict[str, tuple[str, str]]:
    """Arms with the settings of an earlier one: "order" if their seeds differ, else "same"."""
    seeds = {(_arm_name(info["trial"]), info["trial"]["seed"]): info["seeds"] for info in trials}
    originals: dict[str, Recipe] = {}
    repeats = {}
    for info in trials:
        arm, recipe = _arm_name(info["trial"]), recipes.from_dict(info["recipe"])
        earlier = (name for name, first in originals.items() if not _changed_fields(recipe, first))
        original = next(earlier, arm)
        if original == arm:
            originals[arm] = recipe
        elif seeds.get((original, info["trial"]["seed"]), info["seeds"]) != info["seeds"]:
            repeats[arm] = original, "order"
        else:
            repeats.setdefault(arm, (original, "same"))
    return repeats


def _value_grids(
    finished: Iterable[dict], outcomes: Path, benchmark: str
) -> dict[tuple[str, str], pd.DataFrame]:
    parts = []
    for info in sorted(finished, key=lambda info: not info["trial"]["is_stage1"]):
        trial = info["trial"]
        arm = _arm_name(trial)
        arms = {"med-nirvana": arm, "relearned": f"{arm} relearned"}
        if trial["is_stage1"]:
            arms = {"base": "base", "med-mix": "med-mix"}
        values = _trial_values(outcomes / trial["name"], benchmark)
        values = values[values["arm"].isin(list(arms))]
        parts.append(values.assign(arm=values["arm"].map(arms), seed=trial["seed"]))
    scores = pd.concat(parts, ignore_index=True)
    # If a seed has several stage-1 runs, for arms that need different ones, the first is the reference.
    scores = scores.drop_duplicates(["arm", "seed", "measure", "item"])
    return {
        key: values.pivot(index="seed", columns="item", values="value")
        for key, values in scores.groupby(["arm", "measure"])
    }


def _trial_values(folder: Path, benchmark: str) -> pd.DataFrame:
    """Columns arm (the trial's name of the model), measure, item, value."""
    parts = [pd.DataFrame(columns=["arm", "measure", "item", "value"])]
    if (folder / "mcq" / "items.csv").is_file():
        items = accuracy.read_items(folder)
        items = items[items["dataset"] == benchmark]
        correct = accuracy.is_correct(items).astype(float)
        parts.append(_long_rows(items, "accuracy", items["item_id"], correct))
        logprobs = items[[f"logprob_{letter}" for letter in LETTERS]].to_numpy()
        gold_logprobs = logprobs[np.arange(len(items)), items["gold"].map(LETTERS.index)]
        parts.append(_long_rows(items, "letter_loss", items["item_id"], -gold_logprobs))
    if (path := folder / "mcq" / "general.csv").is_file():
        rows = pd.read_csv(path, dtype={"item_id": str, "gold": str, "predicted": str})
        texts, questions = rows[rows["dataset"] == "text"], rows[rows["dataset"] != "text"]
        correct = accuracy.is_correct(questions).astype(float)
        parts.append(_long_rows(questions, "general", questions["item_id"], correct))
        parts.append(_long_rows(texts, "general_loss", texts["item_id"], texts["nll"] / texts["tokens"]))
    if (path := folder / "consumer" / "scores.csv").is_file():
        answers = pd.read_csv(path, dtype={"case": str})
        answers = answers[answers["sample"] == 0]
        case = answers["source"] + "/" + answers["case"]
        parts += [_long_rows(answers, name, case, answers[name]) for name in ("f1", "words")]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _long_rows(rows: pd.DataFrame, measure: str, item: pd.Series, value: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"arm": rows["model"], "measure": measure, "item": item, "value": value})


def _without_replay(study: Study) -> list[str]:
    dmt = {name: study.recipes[name].dmt for name in study.compared}
    return [name for name, spec in dmt.items() if spec.replay_share == 0 and spec.handover != "joint"]


def no_replay_arm(study: Study, arm: str) -> str:
    """The first arm without replay that differs from `arm` only in the rows of stage 2. "" if that is `arm`
    itself, or if there is none."""
    similar = (
        name
        for name in _without_replay(study)
        if _only_rows_differ(_changed_fields(study.recipes[name], study.recipes[arm]))
    )
    first = next(similar, arm)
    return "" if first == arm else first


def _only_rows_differ(fields: set[str]) -> bool:
    """Whether a change of these fields changes only the rows of stage 2."""
    return all(field.startswith("dmt.") and field not in _START_FIELDS for field in fields)


def dose_arms(study: Study) -> list[str]:
    """The arms that differ only in the replay's share, by increasing share."""
    arms = study.compared
    first = next(iter(_without_replay(study)), arms[0])
    similar = [
        name
        for name in arms
        if _changed_fields(study.recipes[first], study.recipes[name]) <= {"dmt.replay_share"}
    ]
    return sorted(similar, key=lambda name: study.recipes[name].dmt.replay_share)


def pairs(study: Study) -> list[tuple[str, str, str]]:
    """(kind, first, second) of every comparison between arms. "no replay": an arm with its no-replay arm.
    "one setting": two arms that differ in one setting, or in what fills equally many rows."""
    kinds = {(first, arm): "no replay" for arm in study.compared if (first := no_replay_arm(study, arm))}
    for first, second in itertools.combinations(study.compared, 2):
        fields = _changed_fields(study.recipes[first], study.recipes[second])
        same_size = study.arms.loc[[first, second], "trained_rows"].nunique() == 1
        one_setting = len(fields) == 1 and fields != {"dmt.replay_share"}
        if one_setting or (same_size and _only_rows_differ(fields)):
            kinds.setdefault((first, second), "one setting")
    return [(kind, *pair) for pair, kind in kinds.items()]


def comparisons(study: Study) -> pd.DataFrame:
    """One row per comparison: kind ("stage 1", "no replay", "one setting" or "relearning"), measure, first,
    second, and the numbers of clustered.Clustered for second minus first.

    p_holm is corrected within kind and measure, a family whose size `detectable` takes into account.
    Accuracies also have the mixed model's model_low, model_high and model_p. Arms without a matching seed are
    omitted.
    """
    arms = study.compared
    planned = [("stage 1", measure, REFERENCE[measure], arm) for measure in REFERENCE for arm in arms]
    planned += [
        (kind, measure, first, second)
        for kind, first, second in pairs(study)
        for measure in ("accuracy", "f1", "general")
    ]
    # An arm after relearning against the arm and against stage 1: was its skill lost, or hidden?
    planned += [
        ("relearning", "accuracy", first, f"{arm} relearned") for arm in arms for first in (arm, "med-mix")
    ]
    compared = {
        comparison: differences
        for comparison in planned
        if (differences := _paired(study, *comparison[1:])).size
    }
    tests = Counter(comparison[:2] for comparison, differences in compared.items() if len(differences) > 1)
    rows = []
    for comparison, differences in compared.items():
        row: dict = dict(zip(("kind", "measure", "first", "second"), comparison, strict=True))
        binary, family = MEASURES[row["measure"]][1], max(1, tests[comparison[:2]])
        row |= storage.plain(clustered.mean_difference(differences, binary=binary, tests=family))
        if row["measure"] == "accuracy":
            estimates = clustered.mixed_model(differences)
            row |= dict(zip(("model_low", "model_high", "model_p"), estimates, strict=True))
        rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[6:], float))
    for _, family in table[table["p"].notna()].groupby(["kind", "measure"], sort=False):
        table.loc[family.index, "p_holm"] = statistics.holm(family["p"].tolist())
    return table


def _paired(study: Study, measure: str, first: str, second: str) -> pd.DataFrame:
    return clustered.paired(study.grid(first, measure), study.grid(second, measure))


def progress(study: Study) -> pd.DataFrame:
    """One row per arm (stage 1 first), one column per seed: "done", "missing", or "" if not planned."""
    cells: dict[str, dict[int, str]] = {}
    for name, arm, seed in study.planned:
        cells.setdefault(arm, {})[seed] = "missing" if name in study.missing else "done"
    return pd.DataFrame.from_dict(cells, orient="index").fillna("").rename_axis(index="arm", columns="seed")


def settings(study: Study) -> pd.Series:
    """For each arm the fields that differ from the first arm of `dose_arms`, with their values."""
    first = dose_arms(study)[0]
    texts = {}
    for arm, recipe in study.recipes.items():
        values = {
            field: recipes.flat(recipe)[field] for field in _changed_fields(study.recipes[first], recipe)
        }
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in sorted(values.items())}
        texts[arm] = ", ".join(f"{field}={value}" for field, value in rounded.items())
    return pd.Series(texts, name=f"differs from {first} in")


def noise_floor(study: Study) -> pd.DataFrame:
    """One row per repeated arm, seed and measure: how it was repeated ("same": nothing changed, "order": the
    order of rows), the mean difference, and the share of items whose value changed."""
    rows = []
    for again, (arm, how) in study.repeats.items():
        for measure in REFERENCE:
            differences = _paired(study, measure, arm, again)
            for seed, values in differences.iterrows():
                values = values.dropna()
                row = {"arm": arm, "again": again, "how": how, "seed": seed, "measure": measure}
                row |= {"items": len(values), "difference": values.mean(), "changed": (values != 0).mean()}
                rows.append(row)
    columns = ["arm", "again", "how", "seed", "measure", "items", "difference", "changed"]
    return pd.DataFrame(rows, columns=columns)
