"""A run's folder: where it lies, how files get into it whole, who may write it, and its run.json."""

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from medkit import MedkitError, machine, recipes

RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
SCHEMA = 1  # of run.json

# Which notebook writes what, for the message that something is missing.
WRITTEN_BY = {
    "data": "01_stage1",
    "stage1": "01_stage1",
    "stage2": "02_stage2",
    "stage2_noreplay": "02_stage2 with replay=False",
    "mcq": "03_mcq_eval",
    "consumer": "04_consumer_eval",
    "tables": "05_report",
    "figures": "05_report",
    "ledger.md": "05_report",
}


class ResultsError(MedkitError):
    """A run's folder that is not one, belongs to another run, is being written, or lacks a file."""


# -- files ---------------------------------------------------------------------------------------


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` so that `path` holds either what it held before or all of it, whenever a kill comes.

    Raises ResultsError, with the old content still there, where the disk is full or the folder read-only.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o644)
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        _sync(path.parent)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}; what it held before is kept") from error
    return path


def write_json(path: str | Path, content) -> Path:
    """Strict JSON: dataclasses become objects, numpy numbers plain ones, not-a-number null."""
    return write_text(path, json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, frame) -> Path:
    """A pandas frame without its index; floats as the shortest text that reads back as the same number."""
    return write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def append_jsonl(path: str | Path, *rows) -> None:
    """Add rows, one JSON text a line, in one write; a line that a kill cut short is dropped first."""
    path = Path(path)
    text = "".join(json.dumps(_plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.truncate(_whole_lines(file))
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}") from error


def read_jsonl(path: str | Path) -> list:
    """The rows that were written whole; none where there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _whole_lines(file) -> int:
    """Bytes up to and with the last line end."""
    file.seek(0)
    return file.read().rfind(b"\n") + 1


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _plain(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, torch's tensors
        return _plain(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


# -- where a run lies ----------------------------------------------------------------------------


def root() -> Path:
    """MEDKIT_RESULTS; else results/ of the checkout when working in it (a notebook does), else of this folder."""
    if set_by_user := os.environ.get("MEDKIT_RESULTS"):
        return Path(set_by_user).resolve()
    here = Path.cwd().resolve()
    return (machine.CHECKOUT if here.is_relative_to(machine.CHECKOUT) else here) / "results"


def folder(run_dir: str | Path) -> Path:
    """The absolute folder of `NAME`, `results/NAME` or a path; ResultsError for any place but results/NAME."""
    path = Path(run_dir)
    if not RUN_NAME.fullmatch(path.name):
        raise ResultsError(
            f"{str(run_dir)!r} is no run name; take lower-case letters, digits, '.', '_' and '-', "
            "at most 64, a letter or digit first"
        )
    if str(path.parent) in (".", "results"):
        path = root() / path.name
    if path.resolve() != root().resolve() / path.name:
        raise ResultsError(
            f"{run_dir} lies outside {_shown(root())}; name the run alone, or set MEDKIT_RESULTS"
        )
    return path.resolve()


def require(run_dir: str | Path, names: Iterable[str]) -> Path:
    """The run's folder, once each of `names` (relative to it) is there; ResultsError for the first that is not."""
    place = folder(run_dir)
    for name in names:
        if not (place / name).exists():
            notebook = WRITTEN_BY.get(Path(name).parts[0])
            mend = f"run notebook {notebook} first" if notebook else "start the run anew"
            raise ResultsError(f"{_shown(place / name)} is missing; {mend}")
    return place


def _shown(path: Path) -> str:
    """As a reader would type it: relative to where he works when it lies below."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


@contextlib.contextmanager
def lock(place: Path) -> Iterator[None]:
    """Hold a run's folder; ResultsError, naming the process, where another one does.

    The lock file lies beside the folder, so that the folder can be replaced under it, and is the kernel's
    (flock): it goes with the process, however that ends.
    """
    path = place.parent / f".{place.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+")  # noqa: SIM115 - held over the yield
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise ResultsError(
                f"{_shown(place)} is being written by process {holder}; wait for it, or take another run name"
            ) from None
        # Whoever held it before may have removed the file between our open and our lock.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            break
        file.close()
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


# -- run.json ------------------------------------------------------------------------------------


class Run:
    """One run's folder with its run.json, as a notebook or the command line works in it.

    folder: Path; recipe: recipes.Recipe; data_dir: str as given, "" for the recipe's own origin;
    info: run.json's content.
    """

    def __init__(self, place: Path, info: dict, recipe, data_dir: str = "", notebook: str = ""):
        self.folder, self.info, self.recipe = place, info, recipe
        self.data_dir, self.notebook = data_dir, notebook
        self._began = time.monotonic()
        self._held = contextlib.ExitStack()

    def save(self) -> None:
        states = [entry["status"] for entry in self.info["notebooks"].values()]
        status = next((s for s in ("failed", "running") if s in states), "complete")
        self.info["status"] = status if states else "running"
        write_json(self.folder / "run.json", self.info)

    def note(self, notebook: str, **fields) -> None:
        """Add fields to a notebook's entry, and save; run.json is read again, as a kernel may have written it."""
        self.info = read(self.folder) or self.info
        entry = self.info["notebooks"].setdefault(notebook, {})
        entry.update(fields)
        self.save()

    def use_data(self, hashes: dict[str, str]) -> None:
        """Record what was read (file -> sha256, or source -> revision); ResultsError where the run read otherwise."""
        self.info = read(self.folder) or self.info
        known = self.info["data"]["hashes"]
        for name, value in hashes.items():
            if known.setdefault(name, value) != value:
                raise ResultsError(
                    f"{name} is not the file this run began with; restore it or take another run name"
                )
        self.save()

    def finish(self, **numbers) -> None:
        """The notebook's last word: seconds, peak memory and whatever it measured; gives the folder free."""
        fields = {"seconds": round(time.monotonic() - self._began, 1), **machine.peak_memory(), **numbers}
        # Under the runner it is for the runner to say that a notebook is complete: it sees the kernel's end.
        if not _under_runner():
            fields["status"] = "complete"
        self.note(self.notebook, **fields)
        self._held.close()


_HELD: dict[Path, Run] = {}  # of this process: a notebook run twice in one kernel holds the lock already


def begin(
    run_dir: str, notebook: str, recipe: str = "", settings: str = "", data_dir: str | None = ""
) -> Run:
    """Open the run for a notebook; in a new folder with `recipe`, else the recipe is the run's own.

    notebook: the executed notebook's name, which tells arms apart ("02_stage2_noreplay").
    data_dir: None for a notebook that reads no data. Raises ResultsError where the folder is another
    run's (naming the field that differs), is being written, or where there is no run and no recipe.
    """
    place = folder(run_dir)
    info = read(place)
    if info is None:
        if not recipe:
            raise ResultsError(f"{_shown(place)} holds no run; run notebook 01_stage1 first")
        info = describe(recipe, settings, data_dir or "")
    elif recipe:
        check_same(place, info, describe(recipe, settings, data_dir or ""))
    elif data_dir is not None:
        _check_origin(place, info, data_dir)
    run = Run(place, info, _recipe_of(place, info), data_dir or "", notebook)
    if not _under_runner():
        if before := _HELD.pop(place, None):
            before._held.close()
        run._held.enter_context(lock(place))
        _HELD[place] = run
        run.note(notebook, status="running", started=now())
    return run


def read(place: Path) -> dict | None:
    """run.json's content; None where there is none; ResultsError where it is not one."""
    path = place / "run.json"
    if not path.exists():
        return None
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        if info["schema"] != SCHEMA:
            raise ResultsError(
                f"{_shown(path)} has schema {info['schema']}, not {SCHEMA}; start the run anew"
            )
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ResultsError):
            raise
        raise ResultsError(f"{_shown(path)} is no run description; start the run anew with --fresh") from None
    return info


def describe(recipe: str, settings: str = "", data_dir: str = "") -> dict:
    """A new run's run.json: every resolved field, and everything else the results depend on."""
    overrides = recipes.parse_settings(settings)
    resolved = recipes.get(recipe, overrides)
    seeds = {"data": resolved.data.seed, "stage1": resolved.stage1.seed, "stage2": resolved.stage2.seed}
    return {
        "schema": SCHEMA,
        "status": "running",
        "recipe": _plain(resolved),
        "settings": overrides,
        "seeds": {**seeds, "consumer": resolved.consumer.seed},
        "data": {"origin": "folder" if data_dir else resolved.data.origin, "hashes": {}},
        "versions": machine.versions(),
        "git": machine.git(),
        "hardware": machine.hardware(),
        "started": now(),
        "notebooks": {},
    }


def check_same(place: Path, info: dict, other: dict) -> None:
    """ResultsError naming the first field in which the run in `place` and the one described differ."""
    ours, theirs = _identity(info), _identity(other)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ResultsError(
                f"{_shown(place)} is a run with {name}={ours.get(name)}, not {theirs.get(name)}; "
                "set it so, take another run name, or replace the run (medkit run --fresh)"
            )


def _identity(info: dict) -> dict:
    """What makes two runs the same: the recipe's fields and where the rows come from (their hashes: use_data)."""
    fields = {"data origin": info["data"]["origin"]}
    for part, value in info["recipe"].items():
        if isinstance(value, dict):
            fields.update({f"{part}.{name}": item for name, item in value.items()})
        elif part != "about":
            fields[part] = value
    return fields


def _check_origin(place: Path, info: dict, data_dir: str) -> None:
    from_folder = info["data"]["origin"] == "folder"
    if from_folder and not data_dir:
        raise ResultsError(f"{_shown(place)} read its rows from a folder; name it again in data_dir")
    if data_dir and not from_folder:
        raise ResultsError(
            f"{_shown(place)} read its rows from the {info['data']['origin']}; leave data_dir empty"
        )


def _recipe_of(place: Path, info: dict):
    recipe = recipes.get(info["recipe"]["name"], info["settings"])
    check_same(place, info, {**info, "recipe": _plain(recipe)})
    return recipe


def _under_runner() -> bool:
    return "MEDKIT_RUNNER" in os.environ


def now() -> str:
    """UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
