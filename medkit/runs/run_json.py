"""run.json: a run's settings and progress. Results of runs with different settings are never mixed."""

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
RETIRED = {"mcq": ("temperature", "top_p")}  # recipe fields that only older runs have


class Run:
    """A run's folder, its run.json and its recipe, as a notebook uses them.

    info: the content of run.json. data_dir: "" for the recipe's origin.
    """

    def __init__(
        self, folder: Path, info: dict, recipe: recipes.Recipe, data_dir: str = "", notebook: str = ""
    ):
        self.folder, self.info, self.recipe = folder, info, recipe
        self.data_dir, self.notebook = data_dir, notebook
        self._started = time.monotonic()
        self._energy: energy.Meter | None = None
        self._lock = contextlib.ExitStack()

    def save(self) -> None:
        states = [entry["status"] for entry in self.info["notebooks"].values()]
        self.info["status"] = next((s for s in ("running", "failed") if s in states), "complete")
        if self.info["status"] != "failed":
            self.info.pop("failure", None)
        storage.write_json(self.folder / "run.json", self.info)

    def note(self, notebook: str, **fields) -> None:
        """Add fields to a notebook's entry in run.json, which a kernel may have changed meanwhile."""
        self.info = read(self.folder) or self.info
        self.info["notebooks"].setdefault(notebook, {}).update(fields)
        self.save()

    def use_data(self, hashes: dict[str, str]) -> None:
        """Record the data that was read: file -> sha256, or source -> revision. ResultsError if the run has
        recorded another hash under the same name."""
        self.info = read(self.folder) or self.info
        recorded = self.info["data"]["hashes"]
        for name, value in hashes.items():
            if recorded.setdefault(name, value) != value:
                raise ResultsError(
                    f"{name} has changed since this run started; restore it or choose another run name"
                )
        self.save()

    def finish(self, **numbers) -> None:
        """Record the notebook's duration, peak memory, energy and `numbers`, and unlock the folder."""
        energy = self._energy.stop() if self._energy else {}
        seconds = round(time.monotonic() - self._started, 1)
        fields = {"seconds": seconds, **machine.peak_memory(), **energy, **numbers}
        # The runner marks a notebook as complete itself, after the kernel has ended.
        if not under_runner():
            fields["status"] = "complete"
        self.note(self.notebook, **fields)
        self._lock.close()


_OPEN: dict[Path, Run] = {}  # runs locked by this process, in case a notebook runs twice in one kernel


def begin(
    run_dir: str,
    notebook: str,
    recipe: str = "",
    settings: str = "",
    data_dir: str | None = "",
    adapter: str = "",
    needs: Sequence[str] = (),
) -> Run:
    """Open a run for a notebook; with a recipe, create the run if it does not exist.

    notebook: its name in run.json ("02_stage2_noreplay"). data_dir: None for a notebook that reads no data.
    adapter: the folder of an adapter that is evaluated without a training run. needs: files of the run that
    must exist.

    Raises ResultsError, before writing anything, if the folder belongs to a run with other settings, is being
    written or lacks one of `needs`, or if there is neither a run nor a recipe.
    """
    for name, value in (("recipe", recipe), ("settings", settings), ("data_dir", data_dir)):
        storage.check_text(name, "" if value is None else value)
    energy.country()  # raises for an invalid MEDKIT_COUNTRY before anything starts
    folder = storage.folder(run_dir)
    storage.check_not_committed(folder)
    info = read(folder)
    if info is None:
        if not recipe:
            raise ResultsError(f"{relpath(folder)} is not a run; run notebook 01_stage1 first")
        info = describe(recipe, settings, data_dir or "", adapter)
    elif recipe:
        check_same(folder, info, describe(recipe, settings, data_dir or "", adapter))
    elif data_dir is not None:
        _check_origin(folder, info, data_dir)
    resolved = recipes.from_dict(info["recipe"])
    storage.require(folder, [*arms.prerequisites(notebook, resolved), *needs])
    run = Run(folder, info, resolved, data_dir or "", notebook)
    chat_template.use_date(info["date"])
    if data_dir is not None:
        inputs.connect(run.recipe, data_dir)
    if not under_runner():
        if earlier := _OPEN.pop(folder, None):
            earlier._lock.close()
            if earlier._energy:
                earlier._energy.stop()
        run._lock.enter_context(storage.lock(folder))
        _OPEN[folder] = run
        _record_continuation(run)
        run.note(notebook, status="running", started=utc_now())
    run._energy = energy.Meter()
    return run


class ReadOnlyRun(Run):
    """A run whose run.json this process does not write."""

    def save(self) -> None:
        pass


def for_reading(run_dir: str, data_dir: str = "") -> Run:
    """Open an existing run without locking or writing it; ResultsError if there is none."""
    folder = storage.folder(run_dir)
    info = read(folder)
    if info is None:
        raise ResultsError(f"{relpath(folder)} is not a run; name one that was trained")
    run = ReadOnlyRun(folder, info, recipes.from_dict(info["recipe"]), data_dir)
    chat_template.use_date(info["date"])
    # Readers need no data beyond the built-in rows, so only the model may be on the hub.
    inputs.connect(run.recipe, data_dir or str(folder))
    return run


def _record_continuation(run: Run) -> None:
    """Record it if a run is continued with other code or libraries, or on another machine."""
    current = {"git": machine.git(), "versions": machine.versions(), "hardware": machine.hardware()}
    if any(latest(run.info)[key] != value for key, value in current.items()):
        run.info.setdefault("continued", []).append({"started": utc_now(), **current})
        run.save()


def latest(info: dict) -> dict:
    """The entry with git, versions and hardware of the run's last part."""
    return [info, *info.get("continued", [])][-1]


def read(folder: Path) -> dict | None:
    """The content of run.json; None if there is none, ResultsError if it is invalid."""
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["schema"] != SCHEMA:
            raise ResultsError(f"{relpath(path)} has schema {info['schema']}, not {SCHEMA}; start a new run")
        for section in ("recipe", "data", "notebooks", "versions", "git", "hardware"):
            if not isinstance(info[section], dict):
                raise TypeError(section)
        info.setdefault("date", info["started"][:10])  # older runs lack the field
        for section, names in RETIRED.items():
            for name in names:
                info["recipe"].get(section, {}).pop(name, None)
    except ResultsError:
        raise
    except (ValueError, KeyError, TypeError, OSError):
        raise ResultsError(f"{relpath(path)} is not a valid run.json; start a new run with --fresh") from None
    return info


def describe(recipe: str, settings: str = "", data_dir: str = "", adapter: str = "") -> dict:
    """The run.json of a new run: every recipe field and everything else that the results depend on."""
    energy.country()  # as in `begin`, for a run that `medkit run` creates
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
        "started": utc_now(),
        "date": datetime.date.today().isoformat(),  # for chat templates that print the date
        "notebooks": {},
    }


def adapter_hash(folder: str) -> str:
    """SHA-256 of an adapter folder's weights; "" if `folder` is empty."""
    return storage.sha256(Path(folder).expanduser() / "adapter_model.safetensors") if folder else ""


# Fields of an adapter's training that its evaluation depends on: prompt, the letter's position, test rows.
SHARED_WITH_TRAINING = ("model.chat_template", "data.mcq_target", "data.pubmedqa_train")


def settings_of_adapter(folder: str) -> dict[str, str]:
    """The values of SHARED_WITH_TRAINING in the run that trained an adapter, if its folder is still in that
    run's; {} otherwise, and for ""."""
    info = read(Path(folder).expanduser().resolve().parent.parent) if folder else None
    fields = identity(info) if info else {}
    return {name: str(fields[name]) for name in SHARED_WITH_TRAINING if name in fields}


def check_same(folder: Path, info: dict, requested: dict) -> None:
    """ResultsError naming the first field in which a requested run differs from the run in `folder`."""
    existing_fields, requested_fields = identity(info), identity(requested)
    for name in existing_fields | requested_fields:
        existing, new = existing_fields.get(name), requested_fields.get(name)
        if existing != new:
            raise ResultsError(
                f"{relpath(folder)} is a run with {name}={existing}, not {new}; "
                "use its value, choose another run name, or replace the run (medkit run --fresh)"
            )


def identity(info: dict) -> dict:
    """The fields in which two runs must agree to be the same run. File hashes are checked by `use_data`."""
    fields = {"recipe": info["recipe"]["name"], "data origin": info["data"]["origin"]}
    fields["adapter"] = info.get("adapter", "")[:16] or "none"
    for section, values in info["recipe"].items():
        if isinstance(values, dict):
            fields.update({f"{section}.{name}": value for name, value in values.items()})
    return fields


def _check_origin(folder: Path, info: dict, data_dir: str) -> None:
    origin = info["data"]["origin"]
    if origin == "folder" and not data_dir:
        raise ResultsError(f"{relpath(folder)} read its rows from a folder; set data_dir to that folder")
    if data_dir and origin != "folder":
        raise ResultsError(f"{relpath(folder)} read its rows from the {origin}; leave data_dir empty")


def may_show(run: Run, show_text: bool) -> bool:
    """Whether rows may be printed: always for the built-in corpus, otherwise only with `show_text`."""
    inputs.check_bool("show_text", show_text)
    return show_text or run.info["data"]["origin"] == "builtin"


def stage2_arm(replay: bool) -> str:
    """The folder of stage 2's arm with or without replay; InputError unless `replay` is a bool."""
    inputs.check_bool("replay", replay)
    return "stage2" if replay else "stage2_noreplay"


def under_runner() -> bool:
    """Whether `medkit run` executes this notebook."""
    return "MEDKIT_RUNNER" in os.environ


def utc_now() -> str:
    """The current time in UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
