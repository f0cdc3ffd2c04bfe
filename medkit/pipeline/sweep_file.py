"""A sweep's file, read and checked: which trials there are, and which of them share a stage 1.

name = "replay-cpu"                     # results/replay-cpu/
recipe = "cpu"
seeds = [0, 1, 2]
seed_fields = ["stage1.seed", "stage2.seed"]  # what a seed sets; this is the default
measure = ["mcq", "consumer"]           # notebooks 03 and 04; this is the default
cpus = 2                                # cores that the ray engine gives a trial; this is the default

[settings]                              # of every trial: any fields of the recipe
data.rows_pubmedqa = 300

[arms.k25]                              # an arm: its name, and the fields that make it one
dmt.replay_share = "1/3"

[arms.again]                            # an arm may have seeds of its own
seeds = [0]
dmt.replay_share = "1/3"

[axes]                                  # each value of each axis with every arm and seed
stage2.learning_rate = [1e-4, 3e-4]
"""

import itertools
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from medkit import MedkitError, recipes
from medkit.runs import storage

MEASURES = ("mcq", "consumer")
SEED_FIELDS = ("stage1.seed", "stage2.seed")
KEYS = {
    "name": str,
    "recipe": str,
    "seeds": list,
    "seed_fields": list,
    "measure": list,
    "cpus": int,
    "settings": dict,
    "arms": dict,
    "axes": dict,
}
_STAGE2 = ("stage2", "dmt")  # what a stage 1 and its evaluation do not depend on; of `dmt` see _stage1_key


class SweepError(MedkitError):
    """A sweep's file that cannot be read as one, or whose trials contradict each other."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: a stage 1, or a stage 2 that goes on from one."""

    name: str  # of its run and of its folder in outcomes/
    arm: str  # "" for a stage 1
    seed: int
    axes: dict[str, str]  # field -> the value that this trial has of each axis
    settings: dict[str, str]  # field -> value, as medkit run takes them with --set
    recipe: recipes.Recipe
    stage1: str = ""  # the run whose stage 1 it goes on from; "" where it has none, or is one

    @property
    def lines(self) -> list[str]:
        return [f"{field}={value}" for field, value in self.settings.items()]


@dataclass(frozen=True)
class Sweep:
    name: str
    recipe: str
    measure: tuple[str, ...]
    cpus: int
    trials: tuple[Trial, ...]  # each stage 1 stands before the trials that go on from it


def read(path: str | Path) -> Sweep:
    """The sweep in a TOML file. SweepError or RecipeError, in one line, for whatever is wrong with it."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise SweepError(f"{path} cannot be read as a sweep: {reason}") from None
    try:
        return _sweep(table)
    except MedkitError as error:
        raise SweepError(f"{path}: {error}") from None


def _sweep(table: dict) -> Sweep:
    _check_keys(table)
    fields = list(table.get("seed_fields", SEED_FIELDS))
    measure = tuple(table.get("measure", MEASURES))
    for name in measure:
        if name not in MEASURES:
            raise SweepError(f"measure has {name!r}; it may have {' and '.join(MEASURES)}")
    common = _settings("settings", table.get("settings", {}))
    if both := common.keys() & set(fields):
        raise SweepError(f"settings has {min(both)}, which each seed sets; leave one of them out")
    arms = table.get("arms") or {"trial": {}}
    axes = _axes(table.get("axes", {}))
    trials = []
    for arm, arm_table in arms.items():
        if not isinstance(arm_table, dict):
            raise SweepError(f"arms.{arm} is no table; write [arms.{arm}] with the arm's fields below")
        of_arm = _settings(f"arms.{arm}", {k: v for k, v in arm_table.items() if k != "seeds"})
        seeds = _seeds(f"arms.{arm}.seeds", arm_table.get("seeds", table["seeds"]))
        for seed, point in itertools.product(seeds, _points(axes, of_arm, arm)):
            settings = common | dict.fromkeys(fields, str(seed)) | point | of_arm
            trials.append(_trial(table["recipe"], arm, seed, point, settings))
    stages = _stage1_runs(table["recipe"], trials)
    trials = [_going_on(trial, stages) for trial in trials]
    ordered = _in_order([*stages.values()], trials)
    _check_names(ordered)
    return Sweep(table["name"], table["recipe"], measure, table.get("cpus", 2), tuple(ordered))


def _check_keys(table: dict) -> None:
    for key, value in table.items():
        if key not in KEYS:
            raise SweepError(f"unknown key {key!r}; a sweep has {', '.join(KEYS)}")
        if type(value) is not KEYS[key]:
            wanted = {str: "text", list: "a list", int: "a whole number", dict: "a table"}[KEYS[key]]
            raise SweepError(f"{key}={value!r} is not {wanted}")
    for key in ("name", "recipe", "seeds"):
        if key not in table:
            raise SweepError(f"{key} is missing; a sweep needs name, recipe and seeds")
    _seeds("seeds", table["seeds"])
    if table.get("cpus", 1) < 1:
        raise SweepError(f"cpus={table['cpus']}; a trial needs at least one core")
    if not storage.RUN_NAME.fullmatch(table["name"]):
        raise SweepError(f"name={table['name']!r} is no run name; take lower-case letters, digits, '._-'")
    known = recipes.flat(recipes.get(table["recipe"]))
    for field in table.get("seed_fields", SEED_FIELDS):
        if field not in known or type(known[field]) is not int:
            raise SweepError(f"seed_fields has {field!r}, which is no whole-numbered field of a recipe")


def _seeds(key: str, values) -> list[int]:
    if not isinstance(values, list) or not values:
        raise SweepError(f"{key} is {values!r}; list at least one seed, e.g. seeds = [0, 1, 2]")
    for value in values:
        if type(value) is not int or value < 0:
            raise SweepError(f"{key} has {value!r}; a seed is a whole number from 0")
    return values


def _settings(where: str, table: dict, path: str = "") -> dict[str, str]:
    """field -> value as text. A dotted key is a nested table to TOML, a quoted one is not: both are read."""
    fields: dict[str, str] = {}
    for key, value in table.items():
        field = f"{path}.{key}" if path else key
        inner = _settings(where, value, field) if isinstance(value, dict) else {field: _text(field, value)}
        if twice := fields.keys() & inner.keys():
            raise SweepError(f"{where} sets {min(twice)} twice; give it once")
        fields |= inner
    return fields


def _text(field: str, value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.strip() and not re.search(r"[;\n]", value):
        return value.strip()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise SweepError(f"{field}={value!r} is no value of a recipe's field; give a number, text or true/false")


def _axes(table: dict) -> dict[str, list[str]]:
    def flat(inner: dict, path: str):
        for key, value in inner.items():
            field = f"{path}.{key}" if path else key
            if isinstance(value, dict):
                yield from flat(value, field)
            elif not isinstance(value, list) or not value:
                raise SweepError(f"axis {field} is {value!r}; list its values, e.g. {field} = [1e-4, 3e-4]")
            else:
                yield field, [_text(field, item) for item in value]

    return dict(flat(table, ""))


def _points(axes: dict[str, list[str]], of_arm: dict[str, str], arm: str) -> list[dict[str, str]]:
    if both := axes.keys() & of_arm.keys():
        raise SweepError(f"{min(both)} is an axis and a field of arm {arm!r}; leave one of them out")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _trial(recipe: str, arm: str, seed: int, point: dict[str, str], settings: dict[str, str]) -> Trial:
    parts = [arm, *(f"{field.rpartition('.')[2]}-{value}" for field, value in point.items()), f"s{seed}"]
    name = re.sub(r"[^a-z0-9._-]+", "-", "-".join(parts).lower())
    try:
        resolved = recipes.get(recipe, settings)
    except recipes.RecipeError as error:
        raise SweepError(f"trial {name}: {error}") from None
    return Trial(name, arm, seed, point, settings, resolved)


def _stage1_key(recipe: recipes.Recipe) -> tuple:
    """What two trials have in common that share a stage 1. The rest of `dmt` is stage 2's."""
    fields = recipes.flat(recipe)
    return (
        *((name, value) for name, value in fields.items() if name.partition(".")[0] not in _STAGE2),
        recipe.dmt.handover == "merge",  # it has the merged model beside its adapter
    )


def _without_stage1(recipe: recipes.Recipe) -> bool:
    return recipe.dmt.handover == "joint"  # one stage on everything at once


def _stage1_runs(recipe: str, trials: list[Trial]) -> dict[tuple, Trial]:
    """Key -> the run that trains it. The first of a seed is stage1-sSEED, another has its first arm's name.

    Its settings are those that stage 1 and its evaluation depend on.
    """
    stages: dict[tuple, Trial] = {}
    carried = {_stage1_key(trial.recipe) for trial in trials if trial.recipe.dmt.optimizer_state == "carried"}
    for trial in trials:
        key = _stage1_key(trial.recipe)
        if _without_stage1(trial.recipe) or key in stages:
            continue
        settings = {
            field: value for field, value in trial.settings.items() if field.partition(".")[0] not in _STAGE2
        }
        if trial.recipe.dmt.handover == "merge":
            settings["dmt.handover"] = "merge"
        if key in carried:  # the same training, which leaves its optimizer's state too
            settings["dmt.optimizer_state"] = "carried"
            settings["stage2.optimizer"] = trial.recipe.stage1.optimizer
        taken = {stage.name for stage in stages.values()}
        name = f"stage1-s{trial.seed}"
        name = f"stage1-{trial.name}" if name in taken else name
        stages[key] = Trial(name, "", trial.seed, {}, settings, recipes.get(recipe, settings))
    return stages


def _going_on(trial: Trial, stages: dict[tuple, Trial]) -> Trial:
    if _without_stage1(trial.recipe):
        return trial
    name = stages[_stage1_key(trial.recipe)].name
    return Trial(**{**vars(trial), "stage1": name})


def _in_order(stages: list[Trial], trials: list[Trial]) -> list[Trial]:
    """Seed by seed, so that a sweep that is broken off has whole seeds; each stage 1 before its trials."""
    ordered = []
    for seed in dict.fromkeys(trial.seed for trial in trials):
        for stage in stages:
            if stage.seed == seed:
                ordered += [stage, *(trial for trial in trials if trial.stage1 == stage.name)]
        ordered += [trial for trial in trials if trial.seed == seed and not trial.stage1]
    return ordered


def _check_names(trials: list[Trial]) -> None:
    seen = set()
    for trial in trials:
        if not storage.RUN_NAME.fullmatch(trial.name):
            raise SweepError(f"trial {trial.name!r} has no possible name; take a shorter arm's name")
        if trial.name in seen:
            raise SweepError(f"two trials are named {trial.name}; name their arms, or list seeds, apart")
        seen.add(trial.name)
