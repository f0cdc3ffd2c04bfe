"""A run's folder: its path, atomic file writes, and its lock."""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from medkit import MedkitError
from medkit.runs import machine

# Folders committed in results/. The README and the tests depend on them, so runs cannot overwrite them.
COMMITTED = ("benchmarks", "cpu", "smollm2-real")
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

# The notebook that writes each file or folder, for messages about missing files.
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
    "notebooks": "05_report",
}


class ResultsError(MedkitError):
    """A folder that is not a run, belongs to another run, is being written, or lacks a file."""


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file atomically: after a crash it has either its old or its new content.

    Raises ResultsError, and keeps the old content, if the disk is full or the folder is read-only.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}; its previous content is kept") from error
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 atomically; line ends are not changed."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, content) -> Path:
    """Write strict JSON atomically, converted by `plain`."""
    return write_text(path, json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, frame) -> Path:
    """Write a pandas frame without its index; floats get the shortest text that round-trips."""
    return write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def append_jsonl(path: str | Path, *rows) -> None:
    """Append rows, one JSON object per line, in one write. Drops an incomplete last line, left by a crash."""
    path, text = Path(path), _jsonl(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}") from error


def write_jsonl(path: str | Path, rows: Iterable) -> Path:
    """Write rows atomically, one JSON object per line."""
    return write_text(path, _jsonl(rows))


def _jsonl(rows: Iterable) -> str:
    return "".join(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)


def read_jsonl(path: str | Path) -> list:
    """The complete rows of a JSONL file; [] if there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file or a folder's entries to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(value):
    """Convert a value to JSON types: dataclasses to objects, arrays and sets to lists, NaN to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy arrays and scalars, torch tensors
        return plain(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def root() -> Path:
    """The folder of all runs: MEDKIT_RESULTS, or else results/ in the working folder or, inside the checkout,
    in the checkout."""
    if results := os.environ.get("MEDKIT_RESULTS"):
        path = Path(results).expanduser()
        return (path if path.is_absolute() else machine.working_folder() / path).resolve()
    working = machine.working_folder().resolve()
    return (machine.CHECKOUT if working.is_relative_to(machine.CHECKOUT) else working) / "results"


def folder(run_dir: str | Path) -> Path:
    """The absolute folder of run NAME, results/NAME or a path to it; ResultsError for any other path."""
    check_text("run_dir", run_dir)
    path = Path(run_dir)
    if not RUN_NAME.fullmatch(path.name):
        raise ResultsError(
            f"{str(run_dir)!r} is not a valid run name; use at most 64 lower-case letters, digits, '.', '_' "
            "and '-', beginning with a letter or digit"
        )
    if str(path.parent) in (".", "results"):
        path = root() / path.name
    if path.resolve() != root().resolve() / path.name:
        raise ResultsError(
            f"{run_dir} is outside {relpath(root())}; give only the run's name, or set MEDKIT_RESULTS"
        )
    return path.resolve()


def check_text(name: str, value) -> None:
    """ResultsError unless a notebook's parameter is text: papermill's -p parses 2026 as a number."""
    if not isinstance(value, str | os.PathLike):
        raise ResultsError(
            f"{name}={value!r} is {type(value).__name__}, not text; quote it, or pass it to papermill with -r"
        )


def check_not_committed(run_folder: Path) -> None:
    """ResultsError if a run's folder is one of the committed ones, which are read-only."""
    is_committed = run_folder.name in COMMITTED and run_folder.parent == machine.CHECKOUT / "results"
    if is_committed and run_folder.exists():
        raise ResultsError(f"{relpath(run_folder)} is part of the repository; choose another run name")


def slug(text: str) -> str:
    """A run name made from any text; a name that is cut ends in a hash of the text."""
    name = re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")
    return name if len(name) <= 64 else f"{name[:55]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def require(run_dir: str | Path, names: Iterable[str]) -> Path:
    """The run's folder; ResultsError for the first of its files `names` that is missing."""
    run_folder = folder(run_dir)
    for name in names:
        file(run_folder, name)
    return run_folder


def file(run_folder: str | Path, name: str) -> Path:
    """The path of a run's file. If it is missing, a ResultsError names the notebook that writes it."""
    path = Path(run_folder) / name
    if not path.exists():
        notebook = WRITTEN_BY.get(Path(name).parts[0])
        fix = f"run notebook {notebook} first" if notebook else "start a new run"
        raise ResultsError(f"{relpath(path)} is missing; {fix}")
    return path


def load(run_folder: str | Path, name: str, keys: Iterable[str], writer: str = "") -> dict:
    """Read a run's JSON file. If it lacks any of `keys`, a ResultsError names the notebook that writes it."""
    path = file(run_folder, name)
    writer = writer or WRITTEN_BY[Path(name).parts[0]]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ResultsError(f"{relpath(path)} is not JSON; run notebook {writer} again") from None
    missing = [key for key in keys if not isinstance(content, dict) or content.get(key) is None]
    if missing:
        raise ResultsError(f"{relpath(path)} lacks {', '.join(missing)}; run notebook {writer} again")
    return content


def relpath(path: Path) -> str:
    """A path for messages: relative to the working folder if it is inside it, else unchanged."""
    try:
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    except OSError:  # the working folder was deleted
        return str(path)


@contextlib.contextmanager
def lock(run_folder: Path) -> Iterator[None]:
    """Lock a run's folder; ResultsError, with the process's id, if another process has locked it.

    The lock file is next to the folder, so that the folder can be replaced. The kernel releases the lock
    (flock) when the process ends.
    """
    check_not_committed(run_folder)
    path = run_folder.parent / f".{run_folder.name}.lock"
    file = _open_locked(path, run_folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _open_locked(path: Path, run_folder: Path):
    """Open and lock the lock file at `path`, and write this process's id into it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by `lock`
        except OSError as error:
            raise ResultsError(
                f"cannot write in {relpath(path.parent)} ({error.strerror}); set MEDKIT_RESULTS to a "
                "writable folder"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode().strip() or "unknown"
            file.close()
            raise ResultsError(
                f"{relpath(run_folder)} is being written by process {holder}; wait for it, or choose another "
                "run name"
            ) from None
        except OSError as error:  # a network file system that does not support locks
            file.close()
            path.unlink(missing_ok=True)
            raise ResultsError(
                f"files cannot be locked in {relpath(path.parent)} ({error.strerror}); set MEDKIT_RESULTS to "
                "a folder on another file system"
            ) from None
        # Another process may have removed the file after we opened it and before we locked it.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    with contextlib.suppress(OSError):  # on a full disk the id is missing in other processes' messages
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file
