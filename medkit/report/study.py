"""The outcomes of a sweep as one study: what each arm keeps, gains and costs, over seeds and questions.

Reads results/NAME/outcomes/ alone, which `medkit sweep` leaves. How the comparisons are chosen and tested was
stated before the runs: DECISIONS.md, "The replay study".
"""

import itertools
import json
import math
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

# measure -> what it is, and whether it is right or wrong question by question
MEASURES = {
    "accuracy": ("letter accuracy on exam questions", True),
    "general": ("letter accuracy on general questions", True),
    "general_loss": ("loss on general texts, nats per token", False),
    "f1": ("BERTScore F1 of consumer answers", False),
    "words": ("words of consumer answers", False),
    "letter_loss": ("loss of the right letter on exam questions, over the options' letters, nats", False),
}
# A model of the stage-1 run, by the measures for which an arm is compared with it. It is asked no consumer
# queries after stage 1, hence the base there.
BEFORE = {
    "accuracy": "med-mix",
    "letter_loss": "med-mix",
    "general": "med-mix",
    "general_loss": "med-mix",
    "f1": "base",
    "words": "base",
}
KINDS = ("stage 1", "no replay", "one setting", "relearning")
NUMBERS = ("seeds", "items", "difference", "low", "high", "p", "p_holm", "detectable")
COLUMNS = ["kind", "measure", "first", "second", *NUMBERS, "model_low", "model_high", "model_p"]
SHARES = ("rows", "tokens", "supervised_tokens")  # what replay's share of stage 2 is a share of
# Fields of `dmt` that say how stage 2 begins; the others say what it is trained on.
_BEGINNING = ("dmt.handover", "dmt.optimizer_state")


class StudyError(MedkitError):
    """A folder that holds no sweep's outcomes, or outcomes that are no study; one line."""


@dataclass(frozen=True)
class Study:
    """arms: a row an arm, in the sweep's order: rows, tokens, supervised (replay's shares of stage 2's,
    means over seeds), trained_rows, seeds. grids: (arm, measure) -> values as MEASURES has them, a row a
    seed, a column an item; "base" and "med-mix" are arms here. repeats: arm -> (the arm it repeats, "same" or
    "order"), which is the noise floor and no arm of the study."""

    folder: Path
    benchmark: str
    model: str
    builtin: bool
    planned: list[tuple[str, str, int]]  # run, arm ("stage 1" for one), seed
    missing: list[str]
    arms: pd.DataFrame
    recipes: dict[str, Recipe]
    repeats: dict[str, tuple[str, str]]
    grids: dict[tuple[str, str], pd.DataFrame]

    @property
    def compared(self) -> list[str]:
        """The arms of the study."""
        return [arm for arm in self.arms.index if arm not in self.repeats]

    def grid(self, arm: str, measure: str) -> pd.DataFrame:
        """A row a seed, a column an item; empty where it was not measured."""
        return self.grids.get((arm, measure), pd.DataFrame())


def read(sweep_dir: str | Path, benchmark: str = "pubmedqa") -> Study:
    """The study that a sweep's finished trials make. benchmark: the exam that retention is measured on.

    Raises StudyError where there is no sweep, or none of its trials' outcomes.
    """
    if benchmark not in accuracy.CHANCE:
        raise StudyError(f"benchmark={benchmark!r} is none of {', '.join(accuracy.CHANCE)}")
    folder = storage.folder(sweep_dir)
    plan = folder / "outcomes" / "sweep.json"
    if not plan.is_file():
        raise StudyError(f"{storage.relpath(plan)} is missing; medkit sweep FILE --resume writes it")
    planned = json.loads(plan.read_text(encoding="utf-8"))["trials"]
    outcomes = {
        trial["name"]: info for trial in planned if (info := run_json.read(plan.parent / trial["name"]))
    }
    if not any(trial["name"] in outcomes and not trial["is_stage1"] for trial in planned):
        raise StudyError(
            f"{storage.relpath(folder)} has no finished trial beside stage 1; run its sweep first"
        )
    trials = [info for info in outcomes.values() if not info["trial"]["is_stage1"]]
    by_arm: dict[str, Recipe] = {}
    for info in trials:
        by_arm.setdefault(_arm(info["trial"]), recipes.from_dict(info["recipe"]))
    return Study(
        folder=folder,
        benchmark=benchmark,
        model=trials[0]["recipe"]["model"]["base"],
        builtin=trials[0]["data"]["origin"] == "builtin",
        planned=[(trial["name"], _arm(trial), trial["seed"]) for trial in planned],
        missing=[trial["name"] for trial in planned if trial["name"] not in outcomes],
        arms=_arms(trials, plan.parent),
        recipes=by_arm,
        repeats=_repeats(trials),
        grids=_grids(outcomes.values(), plan.parent, benchmark),
    )


def _arm(trial: dict) -> str:
    """An arm of the sweep's file at one point of its axes: the trial's name without its seed."""
    return "stage 1" if trial["is_stage1"] else trial["name"].removesuffix(f"-s{trial['seed']}")


def _arms(trials: list[dict], outcomes: Path) -> pd.DataFrame:
    rows = []
    for info in trials:
        path = outcomes / info["trial"]["name"] / "data" / "manifest.json"
        stage2 = json.loads(path.read_text(encoding="utf-8")).get("stage2", {}) if path.is_file() else {}
        consultations, replay = stage2.get("notechat", {}), stage2.get("replay", {})
        shares = {name: replay.get(f"share_of_{name}", math.nan) for name in SHARES}
        if weighted := info["recipe"]["dmt"].get("replay_token_share"):
            shares["supervised_tokens"] = weighted  # what the loss makes of the share that the rows have
        trained = [consultations.get("train"), consultations.get("further"), replay.get("train")]
        rows.append(
            {"arm": _arm(info["trial"]), "seeds": 1, **shares, "trained_rows": sum(filter(None, trained))}
        )
    means = dict.fromkeys([*SHARES, "trained_rows"], "mean")
    return pd.DataFrame(rows).groupby("arm", sort=False).agg({**means, "seeds": "sum"})


def _changed(one: Recipe, other: Recipe) -> set[str]:
    """Fields in which two arms differ, whatever their seeds, and whatever is done with the arm afterwards."""
    ours, theirs = recipes.flat(one), recipes.flat(other)
    ignored = ("name", "about", "dmt.relearn_steps")
    return {f for f in ours if ours[f] != theirs[f] and f not in ignored and not f.endswith(".seed")}


def _repeats(trials: list[dict]) -> dict[str, tuple[str, str]]:
    first: dict[str, dict] = {}
    repeats = {}
    for info in trials:
        arm, recipe = _arm(info["trial"]), recipes.from_dict(info["recipe"])
        for earlier, other in first.items():
            if earlier != arm and not _changed(recipe, recipes.from_dict(other["recipe"])):
                same = info["seeds"] == other["seeds"] or info["trial"]["seed"] != other["trial"]["seed"]
                repeats[arm] = (earlier, "same" if same else "order")
        if arm not in repeats:
            first.setdefault(arm, info)
    return repeats


def _grids(found: Iterable[dict], outcomes: Path, benchmark: str) -> dict[tuple[str, str], pd.DataFrame]:
    parts = []
    for info in sorted(found, key=lambda info: not info["trial"]["is_stage1"]):
        trial = info["trial"]
        arm, place = _arm(trial), outcomes / trial["name"]
        arms = {"med-nirvana": arm, "relearned": f"{arm} relearned"}
        if trial["is_stage1"]:
            arms = {"base": "base", "med-mix": "med-mix"}
        values = _of_trial(place, benchmark)
        values = values[values["arm"].isin(list(arms))]
        parts.append(values.assign(arm=values["arm"].map(arms), seed=trial["seed"]))
    scores = pd.concat(parts, ignore_index=True)
    # Two stages 1 of one seed, for arms that need different ones: the first is the reference.
    scores = scores.drop_duplicates(["arm", "seed", "measure", "item"])
    return {
        key: values.pivot(index="seed", columns="item", values="value")
        for key, values in scores.groupby(["arm", "measure"])
    }


def _of_trial(place: Path, benchmark: str) -> pd.DataFrame:
    """arm (the model as the trial calls it), measure, item, value."""
    parts = [pd.DataFrame(columns=["arm", "measure", "item", "value"])]
    if (place / "mcq" / "items.csv").is_file():
        items = accuracy.read_items(place)
        items = items[items["dataset"] == benchmark]
        parts.append(_long(items, "accuracy", items["item_id"], accuracy.is_correct(items).astype(float)))
        letters = items[[f"logprob_{letter}" for letter in LETTERS]].to_numpy()
        right = letters[np.arange(len(items)), items["gold"].map(LETTERS.index)]
        parts.append(_long(items, "letter_loss", items["item_id"], -right))
    if (path := place / "mcq" / "general.csv").is_file():
        rows = pd.read_csv(path, dtype={"item_id": str, "gold": str, "predicted": str})
        texts, questions = rows[rows["dataset"] == "text"], rows[rows["dataset"] != "text"]
        correct = accuracy.is_correct(questions).astype(float)
        parts.append(_long(questions, "general", questions["item_id"], correct))
        parts.append(_long(texts, "general_loss", texts["item_id"], texts["nll"] / texts["tokens"]))
    if (path := place / "consumer" / "scores.csv").is_file():
        answers = pd.read_csv(path, dtype={"case": str})
        answers = answers[answers["sample"] == 0]
        case = answers["source"] + "/" + answers["case"]
        parts += [_long(answers, name, case, answers[name]) for name in ("f1", "words")]
    return pd.concat([part for part in parts if len(part)] or parts, ignore_index=True)


def _long(rows: pd.DataFrame, measure: str, item: pd.Series, value: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"arm": rows["model"], "measure": measure, "item": item, "value": value})


def without_replay(study: Study, arm: str) -> str:
    """The arm that `arm` shows the replay's effect beside: the first without replay whose stage 2 begins and
    is trained in the same way; where there is none, the first without replay. "" for such an arm itself."""
    dmt = {name: study.recipes[name].dmt for name in study.compared}
    none = [name for name, spec in dmt.items() if spec.replay_share == 0 and spec.handover != "joint"]
    alike = [name for name in none if _only_rows(_changed(study.recipes[name], study.recipes[arm]))]
    first = next(iter(alike or none), arm)
    return "" if first == arm else first


def _only_rows(fields: set[str]) -> bool:
    """Whether arms that differ in these fields differ in the rows of stage 2 alone."""
    return all(field.startswith("dmt.") and field not in _BEGINNING for field in fields)


def dose(study: Study) -> list[str]:
    """The arms that differ in replay's share alone, in its order: those without any setting of their own."""
    arms = study.compared
    first = next((name for name in arms if not without_replay(study, name)), arms[0])
    alike = [n for n in arms if _changed(study.recipes[first], study.recipes[n]) <= {"dmt.replay_share"}]
    return sorted(alike, key=lambda name: study.recipes[name].dmt.replay_share)


def pairs(study: Study) -> list[tuple[str, str, str]]:
    """(kind, first, second) of every comparison between arms: each with its arm without replay; and two that
    differ in one setting other than the share, or in what fills equally many rows."""
    kinds = {(first, arm): "no replay" for arm in study.compared if (first := without_replay(study, arm))}
    for one, other in itertools.combinations(study.compared, 2):
        fields = _changed(study.recipes[one], study.recipes[other])
        filled = _only_rows(fields) and study.arms.loc[[one, other], "trained_rows"].nunique() == 1
        if (len(fields) == 1 and fields != {"dmt.replay_share"}) or filled:
            kinds.setdefault((one, other), "one setting")
    return [(kind, *pair) for pair, kind in kinds.items()]


def comparisons(study: Study) -> pd.DataFrame:
    """Every comparison, a row: kind (KINDS), measure, first, second, and clustered.Clustered's numbers of
    second minus first; p_holm within a kind and measure; of accuracies also model_low, model_high, model_p,
    the mixed model's. An arm whose seeds have no partner yet has no row."""
    arms = study.compared
    wanted = [("stage 1", measure, BEFORE[measure], arm) for measure in BEFORE for arm in arms]
    wanted += [
        (kind, measure, first, second)
        for kind, first, second in pairs(study)
        for measure in ("accuracy", "f1", "general")
    ]
    # An arm's relearning probe beside the arm, and beside stage 1: is its skill gone, or hidden?
    wanted += [
        ("relearning", "accuracy", first, f"{arm} relearned") for arm in arms for first in (arm, "med-mix")
    ]
    rows = []
    for kind, measure, first, second in wanted:
        differences = clustered.paired(study.grid(first, measure), study.grid(second, measure))
        if differences.size:
            row: dict = {"kind": kind, "measure": measure, "first": first, "second": second}
            row |= storage.plain(clustered.mean_difference(differences, binary=MEASURES[measure][1]))
            if measure == "accuracy":
                ends = clustered.mixed_model(differences)
                row |= dict(zip(("model_low", "model_high", "model_p"), ends, strict=True))
            rows.append(row)
    table = pd.DataFrame(rows, columns=COLUMNS).astype(dict.fromkeys(COLUMNS[6:], float))
    for _, family in table[table["p"].notna()].groupby(["kind", "measure"], sort=False):
        table.loc[family.index, "p_holm"] = statistics.holm(family["p"].tolist())
    return table


def progress(study: Study) -> pd.DataFrame:
    """A row an arm (stage 1 first), a column a seed: "done", "missing", or "" where the sweep has no such
    run."""
    cells: dict[str, dict[int, str]] = {}
    for name, arm, seed in study.planned:
        cells.setdefault(arm, {})[seed] = "missing" if name in study.missing else "done"
    return pd.DataFrame.from_dict(cells, orient="index").fillna("").rename_axis(index="arm", columns="seed")


def settings(study: Study) -> pd.Series:
    """The fields in which each arm differs from the first arm of `dose`, with its values."""
    first = dose(study)[0]
    changed = {}
    for arm, recipe in study.recipes.items():
        values = {field: recipes.flat(recipe)[field] for field in _changed(study.recipes[first], recipe)}
        shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in sorted(values.items())}
        changed[arm] = ", ".join(f"{field}={value}" for field, value in shown.items())
    return pd.Series(changed, name=f"differs from {first} in")


def noise_floor(study: Study) -> pd.DataFrame:
    """Per repeated arm and seed: how ("same": nothing changed; "order": other rows' order), and per measure
    the mean difference and the share of items with another value."""
    rows = []
    for again, (arm, how) in study.repeats.items():
        for measure in BEFORE:
            differences = clustered.paired(study.grid(arm, measure), study.grid(again, measure))
            for seed, values in differences.iterrows():
                values = values.dropna()
                row = {"arm": arm, "again": again, "how": how, "seed": seed, "measure": measure}
                row |= {"items": len(values), "difference": values.mean(), "changed": (values != 0).mean()}
                rows.append(row)
    columns = ["arm", "again", "how", "seed", "measure", "items", "difference", "changed"]
    return pd.DataFrame(rows, columns=columns)
