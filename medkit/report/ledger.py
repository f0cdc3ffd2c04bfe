"""The ledger: each knob, what the paper says, what its authors released, what this run does, and why.

Paper: the text of "Multi-Stage QLoRA with Augmented Structured Dialogue Corpora". Release: the two notebooks
its authors published in December 2024. Where one of them says nothing, the ledger says that it is silent.
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
UNSAID = (SILENT, "not released", "not recorded")
CHOSEN = "this kit's choice: neither says"
COLUMNS = ["knob", "paper", "release", "run", "why"]


class LedgerError(MedkitError):
    """A run without a readable run.json; one line."""


@dataclass(frozen=True, slots=True)
class Knob:
    """A recipe's field beside the paper and the release; ledger.toml says what stands where."""

    field: str
    paper: Any = SILENT
    release: Any = SILENT
    why: str = ""
    small: str = "the size of a laptop"
    words: str = ""
    release_words: str = ""
    zero: str = ""


def _by_field(entries: dict[str, Any]) -> dict[str, Any]:
    """The entries of ledger.toml by the recipe's fields: those of `stages.FIELD` are either stage's."""
    by_field = {}
    for name, entry in entries.items():
        if isinstance(entry, dict) and "both" in entry:
            entry = entry | {"paper": entry["both"], "release": entry["both"]}
            entry.pop("both")
        for stage in ("stage1", "stage2") if name.startswith("stages.") else ("",):
            by_field[name.replace("stages", stage) if stage else name] = entry
    return by_field


_DATA = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
KNOBS = tuple(Knob(field, **said) for field, said in _by_field(_DATA["knobs"]).items())
OURS = _by_field(_DATA["ours"])
FIXED = [[row[column] for column in COLUMNS] for row in _DATA["fixed"]]


def ledger(info: dict) -> pd.DataFrame:
    """One row a knob, from a run's run.json: columns COLUMNS (strings)."""
    name, settings = info["recipe"]["name"], info.get("settings", {})
    fields = {
        f"{part}.{field}": value
        for part, values in info["recipe"].items()
        if isinstance(values, dict)
        for field, value in values.items()
    }
    if info.get("data", {}).get("origin") == "folder":
        fields["data.origin"], settings = "folder", settings | {"data.origin": "--data-dir"}
    by_field = {knob.field: knob for knob in KNOBS}
    rows = []
    for field, value in fields.items():
        knob = by_field.get(field, Knob(field))
        sides = _said(knob.paper, knob.words, knob.zero), _said(knob.release, knob.release_words, knob.zero)
        reason = "set for this run" if field in settings else _reason(knob, value, name)
        rows.append((field, *sides, _shown(value, knob.zero), reason))
    return pd.DataFrame([*rows, *FIXED], columns=COLUMNS)


def _reason(knob: Knob, value: Any, recipe: str) -> str:
    if knob.field in OURS:
        return OURS[knob.field]
    paper, release = _same(value, knob.paper), _same(value, knob.release)
    if paper or release:
        against = "" if paper or knob.paper == SILENT else ", against the paper"
        sides = ("the paper",) * paper + ("the release",) * release
        return f"as {' and '.join(sides)}{against}"
    if knob.why and _same(value, recipes.flat(recipes.PRESETS["recommended"])[knob.field]):
        return knob.why
    return knob.small if recipe == "cpu" else CHOSEN


def _same(value: Any, said: Any) -> bool:
    if said in UNSAID:
        return False
    if isinstance(said, list):
        return list(value) == said
    return math.isclose(value, said) if isinstance(said, float) else value == said


def _said(said: Any, words: str, zero: str) -> str:
    if said in UNSAID:
        return f"{said}: {words}" if words else said
    return f"{_shown(said, zero)} ({words})" if words else _shown(said, zero)


def _shown(value: Any, zero: str) -> str:
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
    """The ledger of a run as Markdown."""
    table = ledger(info).rename(columns={"paper": "the paper", "release": "the release", "run": "this run"})
    about = __doc__.partition("\n")[2].strip()
    return f"# Ledger of a `{info['recipe']['name']}` run\n\n{about}\n\n{markdown.grid(table)}\n"


def write(run_dir: str | Path) -> Path:
    """Write ledger.md into a run's folder, from its run.json; LedgerError where that is missing."""
    info = run_json.read(Path(run_dir))
    if info is None:
        raise LedgerError(f"{Path(run_dir) / 'run.json'} is missing; run notebook 01_stage1 first")
    return storage.write_text(Path(run_dir) / "ledger.md", render(info))
