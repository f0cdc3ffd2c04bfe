"""The ledger: each setting in the paper, in its authors' release and in this run, and why it was chosen.

Paper: the text of "Multi-Stage QLoRA with Augmented Structured Dialogue Corpora". Release: the two notebooks
that its authors published in December 2024. "silent" means that the source does not mention the setting.
"""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medkit import MedkitError, recipes
from medkit.report import markdown
from medkit.runs import run_json, storage

SILENT = "silent"
NOT_STATED = (SILENT, "not released", "not recorded")
CHOSEN = "medkit's choice; neither source states it"
COLUMNS = ["knob", "paper", "release", "run", "why"]


@dataclass(frozen=True, slots=True)
class Knob:
    """A recipe's field in the paper and in the release, from ledger.toml, which explains the fields."""

    field: str
    paper: Any = SILENT
    release: Any = SILENT
    why: str = ""
    small: str = "the size of a laptop"
    words: str = ""
    release_words: str = ""
    zero: str = ""


def _by_field(entries: dict[str, Any]) -> dict[str, Any]:
    """Entries of ledger.toml by recipe field. An entry `stages.FIELD` applies to both stages."""
    by_field = {}
    for name, entry in entries.items():
        if isinstance(entry, dict) and "both" in entry:
            both = entry["both"]
            entry = {key: value for key, value in entry.items() if key != "both"}
            entry |= {"paper": both, "release": both}
        for stage in ("stage1", "stage2") if name.startswith("stages.") else ("stages",):
            by_field[name.replace("stages", stage)] = entry
    return by_field


_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
KNOBS = tuple(Knob(field, **entry) for field, entry in _by_field(_DATA["knobs"]).items())
OURS = _by_field(_DATA["ours"])
FIXED = [[row[column] for column in COLUMNS] for row in _DATA["fixed"]]


def ledger(info: dict) -> pd.DataFrame:
    """One row per setting, from a run's run.json: COLUMNS, as strings."""
    name, settings = info["recipe"]["name"], info.get("settings", {})
    fields = {
        f"{part}.{field}": value
        for part, values in info["recipe"].items()
        if isinstance(values, dict)
        for field, value in values.items()
    }
    if info.get("data", {}).get("origin") == "folder":
        fields["data.origin"], settings = "folder", settings | {"data.origin": "--data-dir"}
    knobs = {knob.field: knob for knob in KNOBS}
    rows = []
    for field, value in fields.items():
        knob = knobs.get(field, Knob(field))
        paper = _stated(knob.paper, knob.words, knob.zero)
        release = _stated(knob.release, knob.release_words, knob.zero)
        why = "set for this run" if field in settings else _reason(knob, value, name)
        rows.append((field, paper, release, format_value(value, knob.zero), why))
    return pd.DataFrame([*rows, *FIXED], columns=COLUMNS)


def _reason(knob: Knob, value: Any, recipe: str) -> str:
    if knob.field in OURS:
        return OURS[knob.field]
    paper, release = _equal(value, knob.paper), _equal(value, knob.release)
    if paper or release:
        against = "" if paper or knob.paper == SILENT else ", against the paper"
        sources = ("the paper",) * paper + ("the release",) * release
        return f"as {' and '.join(sources)}{against}"
    if knob.why and _equal(value, recipes.flat(recipes.PRESETS["recommended"])[knob.field]):
        return knob.why
    return knob.small if recipe == "cpu" else CHOSEN


def _equal(value: Any, stated: Any) -> bool:
    if stated in NOT_STATED:
        return False
    if isinstance(stated, list):
        return list(value) == stated
    return math.isclose(value, stated) if isinstance(stated, float) else value == stated


def _stated(value: Any, words: str, zero: str) -> str:
    if value in NOT_STATED:
        return f"{value}: {words}" if words else value
    return f"{format_value(value, zero)} ({words})" if words else format_value(value, zero)


def format_value(value: Any, zero: str = "") -> str:
    """A field's value as text; `zero` is the text for 0."""
    if isinstance(value, (list, tuple)):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if zero and value == 0:
        return zero
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def render(info: dict) -> str:
    """A run's ledger as Markdown."""
    table = ledger(info).rename(columns={"paper": "the paper", "release": "the release", "run": "this run"})
    about = __doc__.partition("\n")[2].strip()
    return f"# Ledger of a `{info['recipe']['name']}` run\n\n{about}\n\n{markdown.grid(table)}\n"


def write(run_dir: str | Path) -> Path:
    """Write ledger.md to a run's folder. Raises MedkitError if its run.json is missing."""
    info = run_json.read(Path(run_dir))
    if info is None:
        raise MedkitError(f"{Path(run_dir) / 'run.json'} is missing; run notebook 01_stage1 first")
    return storage.write_text(Path(run_dir) / "ledger.md", render(info))
