"""Reads and checks a sweep file: its trials, and which of them share a stage 1.

name = "replay-cpu"                     # results/replay-cpu/
recipe = "cpu"
seeds = [0, 1, 2]
seed_fields = ["stage1.seed", "stage2.seed"]  # what a seed sets; this is the default
measure = ["mcq", "consumer"]           # notebooks 03 and 04; this is the default
cpus = 2                                # cores per trial with the ray engine; this is the default

[settings]                              # recipe fields that every trial sets
data.rows_pubmedqa = 300

[arms.k25]                              # an arm: its name, and the fields it sets
dmt.replay_share = "1/3"

[arms.again]                            # an arm may have its own seeds
seeds = [0]
dmt.replay_share = "1/3"

[axes]                                  # each value is combined with every arm and seed
stage2.learning_rate = [1e-4, 3e-4]
"""

import itertools
import re
import tomllib
from dataclasses import dataclass, replace
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
_TYPE_NAMES = {str: "text", list: "a list", int: "a whole number", dict: "a table"}
_STAGE2 = ("stage2", "dmt")  # parts of a recipe that stage 1 does not depend on, except in _stage1_key


@dataclass(frozen=True)
class Trial:
    """One run of a sweep: a stage 1, a stage 2 that continues from one, or a joint stage."""

    name: str  # name of its run and of its folder in outcomes/
    arm: str  # "" for a stage 1
    seed: int
    axes: dict[str, str]  # field -> this trial's value on that axis
    settings: dict[str, str]  # field -> value, as for --set
    recipe: recipes.Recipe
    stage1: str = ""  # name of the stage 1 it continues from, if any

    @property
    def lines(self) -> list[str]:
        return [f"{field}={value}" for field, value in self.settings.items()]


@dataclass(frozen=True)
class Sweep:
    name: str
    recipe: str
    measure: tuple[str, ...]
    cpus: int
    trials: tuple[Trial, ...]  # each stage 1 precedes the trials that continue from it


def read(path: str | Path) -> Sweep:
    """Read a sweep from a TOML file. Raises a one-line MedkitError if anything is wrong with it."""
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise MedkitError(f"{path} cannot be read as a sweep: {reason}") from None
    try:
        return _parse(table)
    except MedkitError as error:
        raise MedkitError(f"{path}: {error}") from None


def _parse(table: dict) -> Sweep:
    _check_keys(table)
    seed_fields = list(table.get("seed_fields", SEED_FIELDS))
    measure = tuple(table.get("measure", MEASURES))
    for name in measure:
        if name not in MEASURES:
            raise MedkitError(f"measure has {name!r}; choose from {' and '.join(MEASURES)}")
    common = _settings("settings", table.get("settings", {}))
    if both := common.keys() & set(seed_fields):
        raise MedkitError(f"settings has {min(both)}, which each seed sets; remove one of them")
    arms = table.get("arms") or {"trial": {}}
    axes = _axes(table.get("axes", {}))
    trials = []
    for arm, arm_table in arms.items():
        if not isinstance(arm_table, dict):
            raise MedkitError(f"arms.{arm} is not a table; write [arms.{arm}] with the arm's fields below")
        arm_settings = _settings(f"arms.{arm}", {k: v for k, v in arm_table.items() if k != "seeds"})
        if both := axes.keys() & arm_settings.keys():
            raise MedkitError(f"{min(both)} is an axis and a field of arm {arm!r}; remove one of them")
        seeds = _seeds(f"arms.{arm}.seeds", arm_table.get("seeds", table["seeds"]))
        for seed, values in itertools.product(seeds, itertools.product(*axes.values())):
            point = dict(zip(axes, values, strict=True))
            settings = common | dict.fromkeys(seed_fields, str(seed)) | point | arm_settings
            trials.append(_trial(table["recipe"], arm, seed, point, settings))
    stages = _stage1_runs(table["recipe"], trials)
    trials = [
        trial if _is_joint(trial) else replace(trial, stage1=stages[_stage1_key(trial.recipe)].name)
        for trial in trials
    ]
    ordered = _in_order([*stages.values()], trials)
    _check_names(ordered)
    return Sweep(table["name"], table["recipe"], measure, table.get("cpus", 2), tuple(ordered))


def _check_keys(table: dict) -> None:
    for key, value in table.items():
        if key not in KEYS:
            raise MedkitError(f"unknown key {key!r}; a sweep has {', '.join(KEYS)}")
        if type(value) is not KEYS[key]:
            raise MedkitError(f"{key}={value!r} is not {_TYPE_NAMES[KEYS[key]]}")
    for key in ("name", "recipe", "seeds"):
        if key not in table:
            raise MedkitError(f"{key} is missing; a sweep needs name, recipe and seeds")
    _seeds("seeds", table["seeds"])
    if table.get("cpus", 1) < 1:
        raise MedkitError(f"cpus={table['cpus']}; a trial needs at least one core")
    if not storage.RUN_NAME.fullmatch(table["name"]):
        raise MedkitError(
            f"name={table['name']!r} is not a valid run name; use lower-case letters, digits, '._-'"
        )
    defaults = recipes.flat(recipes.get(table["recipe"]))
    for field in table.get("seed_fields", SEED_FIELDS):
        if field not in defaults or type(defaults[field]) is not int:
            raise MedkitError(f"seed_fields has {field!r}, which is not a whole-numbered field of a recipe")


def _seeds(key: str, values) -> list[int]:
    if not isinstance(values, list) or not values:
        raise MedkitError(f"{key} is {values!r}; list at least one seed, e.g. seeds = [0, 1, 2]")
    for value in values:
        if type(value) is not int or value < 0:
            raise MedkitError(f"{key} has {value!r}; a seed is a whole number from 0")
    return values


def _flat(where: str, table: dict, prefix: str = "") -> dict[str, object]:
    """Dotted field -> value. TOML reads a dotted key as nested tables, a quoted one as it is."""
    fields: dict[str, object] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        inner = _flat(where, value, f"{name}.") if isinstance(value, dict) else {name: value}
        if both := fields.keys() & inner.keys():
            raise MedkitError(f"{where} sets {min(both)} twice; remove one of them")
        fields |= inner
    return fields


def _settings(where: str, table: dict) -> dict[str, str]:
    """field -> value as text."""
    return {field: _text(field, value) for field, value in _flat(where, table).items()}


def _axes(table: dict) -> dict[str, list[str]]:
    """field -> values as text."""
    axes = {}
    for field, values in _flat("axes", table).items():
        if not isinstance(values, list) or not values:
            raise MedkitError(f"axis {field} is {values!r}; list its values, e.g. {field} = [1e-4, 3e-4]")
        axes[field] = [_text(field, value) for value in values]
    return axes


def _text(field: str, value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str) and value.strip() and not re.search(r"[;\n]", value):
        return value.strip()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ",".join(value)
    raise MedkitError(f"{field}={value!r} is not a field's value; give a number, text or true/false")


def _trial(recipe: str, arm: str, seed: int, point: dict[str, str], settings: dict[str, str]) -> Trial:
    words = [arm, *(f"{field.rpartition('.')[2]}-{value}" for field, value in point.items()), f"s{seed}"]
    name = re.sub(r"[^a-z0-9._-]+", "-", "-".join(words).lower())
    try:
        resolved = recipes.get(recipe, settings)
    except recipes.RecipeError as error:
        raise MedkitError(f"trial {name}: {error}") from None
    return Trial(name, arm, seed, point, settings, resolved)


def _is_joint(trial: Trial) -> bool:
    """Whether one stage trains on everything at once, without a stage 1."""
    return trial.recipe.dmt.handover == "joint"


def _stage1_key(recipe: recipes.Recipe) -> tuple:
    """Equal for recipes that can share a stage 1."""
    fields = [
        (field, value)
        for field, value in recipes.flat(recipe).items()
        if field.partition(".")[0] not in _STAGE2
    ]
    return (*fields, recipe.dmt.handover == "merge")  # such a stage 1 also writes the merged model


def _stage1_runs(recipe: str, trials: list[Trial]) -> dict[tuple, Trial]:
    """Key -> the run that trains it, with the settings that stage 1 and its evaluation depend on.

    The first stage 1 of a seed is called stage1-sSEED; others include the name of their first trial.
    """
    stages: dict[tuple, Trial] = {}
    carried = {_stage1_key(trial.recipe) for trial in trials if trial.recipe.dmt.optimizer_state == "carried"}
    for trial in trials:
        key = _stage1_key(trial.recipe)
        if _is_joint(trial) or key in stages:
            continue
        settings = {f: value for f, value in trial.settings.items() if f.partition(".")[0] not in _STAGE2}
        if trial.recipe.dmt.handover == "merge":
            settings["dmt.handover"] = "merge"
        if key in carried:  # the same training, but the optimizer's state is kept as well
            settings["dmt.optimizer_state"] = "carried"
            settings["stage2.optimizer"] = trial.recipe.stage1.optimizer
        name = f"stage1-s{trial.seed}"
        if name in {stage.name for stage in stages.values()}:
            name = f"stage1-{trial.name}"
        stages[key] = Trial(name, "", trial.seed, {}, settings, recipes.get(recipe, settings))
    return stages


def _in_order(stages: list[Trial], trials: list[Trial]) -> list[Trial]:
    """Seed by seed, so that an interrupted sweep has complete seeds; each stage 1 before its trials."""
    ordered = []
    for seed in dict.fromkeys(trial.seed for trial in trials):
        for stage in stages:
            if stage.seed == seed:
                ordered += [stage, *(trial for trial in trials if trial.stage1 == stage.name)]
        ordered += [trial for trial in trials if trial.seed == seed and not trial.stage1]
    return ordered


def _check_names(trials: list[Trial]) -> None:
    names = set()
    for trial in trials:
        if not storage.RUN_NAME.fullmatch(trial.name):
            raise MedkitError(f"trial name {trial.name!r} is not a valid run name; take a shorter arm's name")
        if trial.name in names:
            raise MedkitError(f"two trials are named {trial.name}; give arms and seeds different names")
        names.add(trial.name)
