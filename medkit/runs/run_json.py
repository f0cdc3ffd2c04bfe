"""run.json: what a run is and how far it has come; runs that differ are not mixed."""

import contextlib
import datetime
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

from medkit import chat_template, recipes
from medkit.runs import arms, energy, inputs, machine, storage
from medkit.runs.storage import ResultsError, relpath

SCHEMA = 1  # of run.json
RETIRED = {"mcq": ("temperature", "top_p")}  # fields that earlier runs' recipes have


class Run:
    """One run's folder with its run.json.

    folder: Path; recipe: recipes.Recipe; data_dir: "" for the recipe's origin; info: run.json's content.
    """

    def __init__(self, place: Path, info: dict, recipe, data_dir: str = "", notebook: str = ""):
        self.folder, self.info, self.recipe = place, info, recipe
        self.data_dir, self.notebook = data_dir, notebook
        self._began = time.monotonic()
        self._energy: energy.Meter | None = None
        self._held = contextlib.ExitStack()

    def save(self) -> None:
        states = [entry["status"] for entry in self.info["notebooks"].values()]
        self.info["status"] = next((s for s in ("running", "failed") if s in states), "complete")
        if self.info["status"] != "failed":
            self.info.pop("failure", None)
        storage.write_json(self.folder / "run.json", self.info)

    def note(self, notebook: str, **fields) -> None:
        """Add fields to a notebook's entry and save, after reading run.json again: a kernel may write it."""
        self.info = read(self.folder) or self.info
        entry = self.info["notebooks"].setdefault(notebook, {})
        entry.update(fields)
        self.save()

    def use_data(self, hashes: dict[str, str]) -> None:
        """Record what was read: file -> sha256, or source -> revision; ResultsError where the run has read
        something else under that name."""
        self.info = read(self.folder) or self.info
        known = self.info["data"]["hashes"]
        for name, value in hashes.items():
            if known.setdefault(name, value) != value:
                raise ResultsError(
                    f"{name} is not the file this run began with; restore it or take another run name"
                )
        self.save()

    def finish(self, **numbers) -> None:
        """Note seconds, peak memory and what the notebook measured, and unlock the folder."""
        used = self._energy.stop() if self._energy else {}
        seconds = round(time.monotonic() - self._began, 1)
        fields = {"seconds": seconds, **machine.peak_memory(), **used, **numbers}
        # The runner notes itself that a notebook is complete, when its kernel has ended.
        if not under_runner():
            fields["status"] = "complete"
        self.note(self.notebook, **fields)
        self._held.close()


_HELD: dict[Path, Run] = {}  # by this process: a notebook that runs twice in a kernel has the lock already


def begin(
    run_dir: str,
    notebook: str,
    recipe: str = "",
    settings: str = "",
    data_dir: str | None = "",
    adapter: str = "",
    needs: Sequence[str] = (),
) -> Run:
    """Open a run for a notebook, or begin one with `recipe` in a new folder.

    notebook: its name in run.json ("02_stage2_noreplay"). data_dir: None for a notebook that reads no data.
    adapter: the folder of one that is evaluated alone. needs: files of the run that must exist. Raises
    ResultsError, before anything is written, where the folder is another run's (naming the field that
    differs), is being written or lacks one of `needs`, or where there is neither run nor recipe.
    """
    for name, value in (("recipe", recipe), ("settings", settings), ("data_dir", data_dir)):
        storage.check_text(name, "" if value is None else value)
    place = storage.folder(run_dir)
    storage.check_not_committed(place)
    info = read(place)
    if info is None:
        if not recipe:
            raise ResultsError(f"{relpath(place)} holds no run; run notebook 01_stage1 first")
        info = describe(recipe, settings, data_dir or "", adapter)
    elif recipe:
        check_same(place, info, describe(recipe, settings, data_dir or "", adapter))
    elif data_dir is not None:
        _check_origin(place, info, data_dir)
    resolved = recipes.from_dict(info["recipe"])
    storage.require(place, [*arms.prerequisites(notebook, resolved), *needs])
    run = Run(place, info, resolved, data_dir or "", notebook)
    run._energy = energy.Meter()
    chat_template.use_date(info["date"])
    if data_dir is not None:
        inputs.connect(run.recipe, data_dir)
    if not under_runner():
        if before := _HELD.pop(place, None):
            before._held.close()
        run._held.enter_context(storage.lock(place))
        _HELD[place] = run
        _continue(run)
        run.note(notebook, status="running", started=now())
    return run


class ReadOnlyRun(Run):
    """A run that this process only reads."""

    def save(self) -> None:
        pass


def for_reading(run_dir: str, data_dir: str = "") -> Run:
    """Open a run without a lock and without writing; ResultsError where there is none."""
    place = storage.folder(run_dir)
    info = read(place)
    if info is None:
        raise ResultsError(f"{relpath(place)} holds no run; name one that was trained")
    run = ReadOnlyRun(place, info, recipes.from_dict(info["recipe"]), data_dir)
    chat_template.use_date(info["date"])
    # Only built-in rows are read here: only the model may be on the hub.
    inputs.connect(run.recipe, data_dir or str(place))
    return run


def _continue(run: Run) -> None:
    """Note where a run is continued with other code or libraries, or on another machine."""
    here = {"git": machine.git(), "versions": machine.versions(), "hardware": machine.hardware()}
    if any(latest(run.info)[key] != value for key, value in here.items()):
        run.info.setdefault("continued", []).append({"started": now(), **here})
        run.save()


def latest(info: dict) -> dict:
    """Git, versions and hardware of the last part of the run."""
    return [info, *info.get("continued", [])][-1]


def read(place: Path) -> dict | None:
    """run.json's content; None where there is none; ResultsError where it is not one."""
    path = place / "run.json"
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["schema"] != SCHEMA:
            raise ResultsError(
                f"{relpath(path)} has schema {info['schema']}, not {SCHEMA}; start a new run with --fresh"
            )
        for part in ("recipe", "data", "notebooks", "versions", "git", "hardware"):
            if not isinstance(info[part], dict):
                raise TypeError(part)
        info.setdefault("date", info["started"][:10])  # of a run that is older than the field
        for part, names in RETIRED.items():
            for name in names:
                info["recipe"].get(part, {}).pop(name, None)
    except (ValueError, KeyError, TypeError, OSError) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{relpath(path)} is not a valid run.json; start a new run with --fresh") from None
    return info


def describe(recipe: str, settings: str = "", data_dir: str = "", adapter: str = "") -> dict:
    """A new run's run.json: every resolved field, and all else that the results depend on."""
    energy.country()  # refuses a wrong one before anything starts
    overrides = recipes.parse_settings(settings)
    resolved = recipes.get(recipe, overrides)
    seeds = {"data": resolved.data.seed, "stage1": resolved.stage1.seed, "stage2": resolved.stage2.seed}
    return {
        "schema": SCHEMA,
        "status": "running",
        "recipe": storage.plain(resolved),
        "settings": overrides,
        "adapter": adapter_hash(adapter),
        "seeds": {**seeds, "consumer": resolved.consumer.seed},
        "data": {"origin": "folder" if data_dir else resolved.data.origin, "hashes": {}},
        "versions": machine.versions(),
        "git": machine.git(),
        "hardware": machine.hardware(),
        "started": now(),
        "date": datetime.date.today().isoformat(),  # that prompts show, where the template prints one
        "notebooks": {},
    }


def adapter_hash(folder: str) -> str:
    """SHA-256 of an adapter folder's weights; "" for no folder."""
    return storage.sha256(Path(folder).expanduser() / "adapter_model.safetensors") if folder else ""


def check_same(place: Path, info: dict, other: dict) -> None:
    """ResultsError naming the first field in which two descriptions of the run in `place` differ."""
    ours, theirs = identity(info), identity(other)
    for name in ours | theirs:
        if ours.get(name) != theirs.get(name):
            raise ResultsError(
                f"{relpath(place)} is a run with {name}={ours.get(name)}, not {theirs.get(name)}; "
                "set it so, take another run name, or replace the run (medkit run --fresh)"
            )


def identity(info: dict) -> dict:
    """The fields that make two runs the same: the recipe's and the rows' origin (hashes: use_data)."""
    fields = {"recipe": info["recipe"]["name"], "data origin": info["data"]["origin"]}
    fields["adapter"] = info.get("adapter", "")[:16] or "none"
    for part, value in info["recipe"].items():
        if isinstance(value, dict):
            fields.update({f"{part}.{name}": item for name, item in value.items()})
    return fields


def _check_origin(place: Path, info: dict, data_dir: str) -> None:
    from_folder = info["data"]["origin"] == "folder"
    if from_folder and not data_dir:
        raise ResultsError(f"{relpath(place)} read its rows from a folder; name it again in data_dir")
    if data_dir and not from_folder:
        raise ResultsError(
            f"{relpath(place)} read its rows from the {info['data']['origin']}; leave data_dir empty"
        )


def may_show(run: Run, show_text: bool) -> bool:
    """Whether rows may be printed: always those of the built-in corpus, a data set's on request."""
    inputs.check_bool("show_text", show_text)
    return show_text or run.info["data"]["origin"] == "builtin"


def stage2_arm(replay: bool) -> str:
    """The folder of stage 2's arm with or without replay; InputError for anything but True and False."""
    inputs.check_bool("replay", replay)
    return "stage2" if replay else "stage2_noreplay"


def under_runner() -> bool:
    return "MEDKIT_RUNNER" in os.environ


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
