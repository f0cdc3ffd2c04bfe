"""The outcomes of a sweep as one study: what each arm keeps, gains and costs, over seeds and questions.

Reads results/NAME/outcomes/ alone, which `medkit sweep` leaves. How the comparisons are chosen and tested was
stated before the runs: DECISIONS.md, "The replay study".
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkit import MedkitError, recipes
from medkit.evaluate import accuracy, clustered, statistics
from medkit.recipes import Recipe
from medkit.runs import run_json, storage

# measure -> what it is, and whether it is right or wrong question by question
MEASURES = {
    "accuracy": ("letter accuracy on exam questions", True),
    "general": ("letter accuracy on general questions", True),
    "general_loss": ("loss on general texts, nats per token", False),
    "f1": ("BERTScore F1 of consumer answers", False),
    "words": ("words of consumer answers", False),
    "stage1_loss": ("change of the loss on stage-1 validation rows in stage 2, nats per token", False),
}
# A model of the stage-1 run, by the measures for which an arm is compared with it. It is asked no consumer
# queries after stage 1, hence the base there.
BEFORE = {
    "accuracy": "med-mix",
    "general": "med-mix",
    "general_loss": "med-mix",
    "f1": "base",
    "words": "base",
}
KINDS = ("stage 1", "no replay", "one setting", "relearning")
# Fields of `dmt` that say how stage 2 begins; the others say what it is trained on.
_BEGINNING = ("dmt.handover", "dmt.optimizer_state")


class StudyError(MedkitError):
    """A folder that holds no sweep's outcomes, or outcomes that are no study; one line."""


@dataclass(frozen=True)
class Study:
    """arms: a row an arm, in the sweep's order: rows, tokens, supervised (replay's shares of stage 2's,
    means over seeds), trained_rows, seeds. scores: arm, seed, measure, item, value; "base" and "med-mix" are
    arms here, and values as MEASURES has them. repeats: arm -> (the arm it repeats, "same" or "order"), which
    is the noise floor and no arm of the study."""

    folder: Path
    benchmark: str
    model: str
    builtin: bool
    planned: list[tuple[str, str, int]]  # run, arm ("stage 1" for one), seed
    missing: list[str]
    arms: pd.DataFrame
    recipes: dict[str, Recipe]
    repeats: dict[str, tuple[str, str]]
    scores: pd.DataFrame

    @property
    def complete(self) -> bool:
        return not self.missing

    def grid(self, arm: str, measure: str) -> pd.DataFrame:
        """A row a seed, a column an item."""
        own = self.scores[(self.scores["arm"] == arm) & (self.scores["measure"] == measure)]
        return own.pivot(index="seed", columns="item", values="value")


def read(sweep_dir: str | Path, benchmark: str = "pubmedqa") -> Study:
    """The study that a sweep's finished trials make. benchmark: the exam that retention is measured on.

    Raises StudyError where there is no sweep, or none of its trials' outcomes.
    """
    if benchmark not in accuracy.CHANCE:
        raise StudyError(f"benchmark={benchmark!r} is none of {', '.join(accuracy.CHANCE)}")
    folder = storage.folder(sweep_dir)
    plan = folder / "outcomes" / "sweep.json"
    if not plan.is_file():
        raise StudyError(f"{storage.shown(plan)} is missing; medkit sweep FILE --resume writes it")
    planned = json.loads(plan.read_text(encoding="utf-8"))["trials"]
    found = {one["name"]: info for one in planned if (info := run_json.read(plan.parent / one["name"]))}
    if not any(one["name"] in found and not one["is_stage1"] for one in planned):
        raise StudyError(f"{storage.shown(folder)} has no finished trial beside stage 1; run its sweep first")
    stages = [info for info in found.values() if info["trial"]["is_stage1"]]
    trials = [info for info in found.values() if not info["trial"]["is_stage1"]]
    own = {
        arm: recipes.from_dict(next(one["recipe"] for one in trials if _arm(one) == arm))
        for arm in dict.fromkeys(map(_arm, trials))
    }
    info = trials[0]
    return Study(
        folder=folder,
        benchmark=benchmark,
        model=own[_arm(info)].model.base,
        builtin=info["data"]["origin"] == "builtin",
        planned=[(one["name"], _planned_arm(one), one["seed"]) for one in planned],
        missing=[one["name"] for one in planned if one["name"] not in found],
        arms=_arms(trials, plan.parent),
        recipes=own,
        repeats=_repeats(trials),
        scores=_scores(stages, trials, plan.parent, benchmark),
    )


def _arm(info: dict) -> str:
    """An arm of the sweep's file at one point of its axes: the trial's name without its seed."""
    return _planned_arm(info["trial"])


def _planned_arm(one: dict) -> str:
    return "stage 1" if one["is_stage1"] else one["name"].removesuffix(f"-s{one['seed']}")


def _arms(trials: list[dict], outcomes: Path) -> pd.DataFrame:
    rows = []
    for info in trials:
        path = outcomes / info["trial"]["name"] / "data" / "manifest.json"
        manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        stage2 = manifest.get("stage2", {})
        replay = stage2.get("replay", {})
        row = {"arm": _arm(info), "seeds": 1}
        for name in ("rows", "tokens", "supervised_tokens"):
            row[name] = replay.get(f"share_of_{name}", float("nan"))
        if weighted := info["recipe"]["dmt"].get("replay_token_share"):
            row["supervised_tokens"] = weighted  # what the loss makes of the share that the rows have
        consultations = stage2.get("notechat", {})
        row["trained_rows"] = sum(
            part.get(name, 0)
            for part, name in ((consultations, "train"), (consultations, "further"), (replay, "train"))
        )
        rows.append(row)
    frame = pd.DataFrame(rows).groupby("arm", sort=False)
    return frame.agg(
        {
            "rows": "mean",
            "tokens": "mean",
            "supervised_tokens": "mean",
            "trained_rows": "mean",
            "seeds": "sum",
        }
    )


def _changed(one: Recipe, other: Recipe) -> set[str]:
    """Fields in which two arms differ, whatever their seeds, and whatever is done with the arm afterwards."""
    ours, theirs = recipes.flat(one), recipes.flat(other)
    ignored = ("name", "about", "dmt.relearn_steps")
    return {f for f in ours if ours[f] != theirs[f] and f not in ignored and not f.endswith(".seed")}


def _repeats(trials: list[dict]) -> dict[str, tuple[str, str]]:
    first: dict[str, dict] = {}
    repeats = {}
    for info in trials:
        arm, recipe = _arm(info), recipes.from_dict(info["recipe"])
        for earlier, other in first.items():
            if earlier != arm and not _changed(recipe, recipes.from_dict(other["recipe"])):
                same = info["seeds"] == other["seeds"] or info["trial"]["seed"] != other["trial"]["seed"]
                repeats[arm] = (earlier, "same" if same else "order")
        if arm not in repeats:
            first.setdefault(arm, info)
    return repeats


def _scores(stages: list[dict], trials: list[dict], outcomes: Path, benchmark: str) -> pd.DataFrame:
    parts = []
    for info in stages:
        models = {"base": "base", "med-mix": "med-mix"}
        parts.append(_of_trial(outcomes / info["trial"]["name"], info["trial"]["seed"], models, benchmark))
    for info in trials:
        arm, place = _arm(info), outcomes / info["trial"]["name"]
        parts.append(
            _of_trial(
                place, info["trial"]["seed"], {"med-nirvana": arm, "relearned": f"{arm} relearned"}, benchmark
            )
        )
        if info["recipe"]["dmt"]["handover"] != "joint":  # whose first loss is the base's
            parts.append(_stage1_loss(place, info["trial"]["seed"], arm))
    scores = pd.concat(parts, ignore_index=True)
    # Two stages 1 of one seed, for arms that need different ones: the first is the reference.
    return scores.drop_duplicates(["arm", "seed", "measure", "item"], ignore_index=True)


def _of_trial(place: Path, seed: int, arms: dict[str, str], benchmark: str) -> pd.DataFrame:
    """arms: model -> the arm that it is."""
    parts = []
    if (place / "mcq" / "items.csv").is_file():
        items = accuracy.read_items(place)
        items = items[items["dataset"] == benchmark]
        correct = accuracy.is_correct(items).astype(float)
        parts.append(_long(items, "accuracy", items["item_id"], correct))
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
    if not parts:
        return pd.DataFrame(columns=["arm", "seed", "measure", "item", "value"])
    found = pd.concat(parts, ignore_index=True)
    found = found[found["arm"].isin(list(arms))]
    return found.assign(arm=found["arm"].map(arms), seed=seed)


def _long(rows: pd.DataFrame, measure: str, item: pd.Series, value: pd.Series) -> pd.DataFrame:
    return pd.DataFrame({"arm": rows["model"], "measure": measure, "item": item, "value": value})


def _stage1_loss(place: Path, seed: int, arm: str) -> pd.DataFrame:
    """The last less the first, before any step, of the same rows; one number a seed."""
    path, column = place / "stage2" / "loss.csv", "eval_loss_stage1"
    loss = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    known = loss[column].dropna() if column in loss else pd.Series(dtype=float)
    if len(known) < 2:
        return pd.DataFrame()
    row = {"arm": arm, "seed": seed, "measure": "stage1_loss", "item": "all rows"}
    return pd.DataFrame([row | {"value": known.iloc[-1] - known.iloc[0]}])


def without_replay(study: Study, arm: str) -> str:
    """The arm that `arm` shows the replay's effect beside: the first without replay whose stage 2 begins and
    is trained in the same way; where there is none, the first without replay. "" for such an arm itself."""
    others = [name for name in study.arms.index if name not in study.repeats]
    none = [
        name
        for name in others
        if study.recipes[name].dmt.replay_share == 0 and study.recipes[name].dmt.handover != "joint"
    ]
    for name in none:
        fields = _changed(study.recipes[name], study.recipes[arm])
        if all(field.startswith("dmt.") and field not in _BEGINNING for field in fields):
            return "" if name == arm else name
    return none[0] if none and none[0] != arm else ""


def dose(study: Study) -> list[str]:
    """The arms that differ in replay's share alone, in its order: those without any setting of their own."""
    arms = [name for name in study.arms.index if name not in study.repeats]
    first = next((name for name in arms if not without_replay(study, name)), arms[0])
    own = [n for n in arms if _changed(study.recipes[first], study.recipes[n]) <= {"dmt.replay_share"}]
    return sorted(own, key=lambda name: study.recipes[name].dmt.replay_share)


def pairs(study: Study) -> list[tuple[str, str, str]]:
    """(kind, first, second) of every comparison between arms: each with its arm without replay; and two that
    differ in one setting other than the share, or in what fills equally many rows."""
    arms = [name for name in study.arms.index if name not in study.repeats]
    found = [("no replay", first, arm) for arm in arms if (first := without_replay(study, arm))]
    for one, other in itertools.combinations(arms, 2):
        fields = _changed(study.recipes[one], study.recipes[other])
        rows = study.arms.loc[[one, other], "trained_rows"]
        filled = all(f.startswith("dmt.") and f not in _BEGINNING for f in fields) and rows.nunique() == 1
        if (len(fields) == 1 and fields != {"dmt.replay_share"}) or filled:
            found.append(("one setting", one, other))
    known = {(first, second) for kind, first, second in found if kind == "no replay"}
    return [one for one in found if one[0] == "no replay" or one[1:] not in known]


def comparisons(study: Study) -> pd.DataFrame:
    """Every comparison, a row: kind (KINDS), measure, first, second, and clustered.Clustered's numbers of
    second minus first; p_holm within a kind and measure; of accuracies also model_low, model_high, model_p,
    the mixed model's. An arm whose seeds have no partner yet has no row."""
    arms = [name for name in study.arms.index if name not in study.repeats]
    wanted = [("stage 1", measure, BEFORE[measure], arm) for measure in BEFORE for arm in arms]
    wanted += [
        (kind, measure, first, second)
        for kind, first, second in pairs(study)
        for measure in ("accuracy", "f1", "general")
    ]
    # An arm's relearning probe beside the arm, and beside stage 1: is its skill gone, or hidden?
    probes = [
        ("relearning", "accuracy", first, f"{arm} relearned") for arm in arms for first in (arm, "med-mix")
    ]
    rows = []
    for kind, measure, first, second in wanted + probes:
        found = clustered.paired(study.grid(first, measure), study.grid(second, measure))
        if found.size:
            row = {"kind": kind, "measure": measure, "first": first, "second": second}
            row |= storage.plain(clustered.mean_difference(found, binary=MEASURES[measure][1]))
            if measure == "accuracy":
                ends = clustered.mixed_model(found)
                row |= dict(zip(("model_low", "model_high", "model_p"), ends, strict=True))
            rows.append(row)
    for arm in arms:
        change = study.grid(arm, "stage1_loss")
        if change.size:
            row = {"kind": "stage 1", "measure": "stage1_loss", "first": "med-mix", "second": arm}
            rows.append(row | storage.plain(clustered.mean_difference(change, binary=False)))
    return _adjusted(pd.DataFrame(rows, columns=COLUMNS))


NUMBERS = ("seeds", "items", "difference", "low", "high", "p", "p_holm", "detectable")
COLUMNS = ["kind", "measure", "first", "second", *NUMBERS, "model_low", "model_high", "model_p"]


def _adjusted(rows: pd.DataFrame) -> pd.DataFrame:
    numbers = [name for name in COLUMNS[4:] if name not in ("seeds", "items")]
    rows[numbers] = rows[numbers].astype(float)
    tested = rows[rows["p"].notna()]
    for _, family in tested.groupby(["kind", "measure"], sort=False):
        rows.loc[family.index, "p_holm"] = statistics.holm(family["p"].tolist())
    return rows


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
    found = {}
    for arm in study.arms.index:
        own = recipes.flat(study.recipes[arm])
        fields = sorted(_changed(study.recipes[first], study.recipes[arm]))
        values = {field: own[field] for field in fields}
        found[arm] = ", ".join(f"{k}={round(v, 4) if isinstance(v, float) else v}" for k, v in values.items())
    return pd.Series(found, name=f"differs from {first} in")


def noise_floor(study: Study) -> pd.DataFrame:
    """Per repeated arm and seed: how ("same": nothing changed; "order": other rows' order), and per measure
    the mean difference and the share of items with another value."""
    rows = []
    for again, (arm, how) in study.repeats.items():
        for measure in BEFORE:
            found = clustered.paired(study.grid(arm, measure), study.grid(again, measure))
            for seed, values in found.iterrows():
                values = values.dropna()
                row = {"arm": arm, "again": again, "how": how, "seed": seed, "measure": measure}
                row |= {"items": len(values), "difference": values.mean(), "changed": (values != 0).mean()}
                rows.append(row)
    columns = ["arm", "again", "how", "seed", "measure", "items", "difference", "changed"]
    return pd.DataFrame(rows, columns=columns)
