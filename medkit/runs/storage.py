"""A run's folder: its place, files that are written whole or not at all, and its lock."""

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

# Committed in results/: README and the tests depend on them, and no run is written there.
COMMITTED = ("benchmarks", "cpu", "smollm2-real")
RUN_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

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
    "notebooks": "05_report",
}


class ResultsError(MedkitError):
    """A folder that is no run's, belongs to another run, is being written, or lacks a file."""


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write `content` so that `path` has either its old content or all of the new, whenever a kill comes.

    Raises ResultsError, and keeps the old content, where the disk is full or the folder read-only.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o644)
            os.replace(aside, path)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
        sync(path.parent)
    except OSError as error:
        raise ResultsError(f"cannot write {path}: {error.strerror}; what it held before is kept") from error
    return path


def write_text(path: str | Path, text: str) -> Path:
    """`write_bytes` of UTF-8; line ends are not changed."""
    return write_bytes(path, text.encode())


def write_json(path: str | Path, content) -> Path:
    """Strict JSON: dataclasses become objects, numpy's numbers plain ones, not-a-number null."""
    return write_text(path, json.dumps(plain(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: str | Path, frame) -> Path:
    """A pandas frame without its index; floats as the shortest text that gives the same number."""
    return write_text(path, frame.to_csv(index=False, lineterminator="\n"))


def append_jsonl(path: str | Path, *rows) -> None:
    """Append rows, one JSON text a line, in one write; drops a line that a kill cut short before."""
    path = Path(path)
    text = "".join(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
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
    """`write_text` of rows, one JSON text a line."""
    lines = (json.dumps(plain(row), ensure_ascii=False, allow_nan=False) for row in rows)
    return write_text(path, "".join(f"{line}\n" for line in lines))


def read_jsonl(path: str | Path) -> list:
    """The rows that were written whole; [] without a file."""
    path = Path(path)
    if not path.exists():
        return []
    text = path.read_bytes()
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(value):
    """The same value in JSON's types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's arrays and numbers, torch's tensors
        return plain(value.tolist())
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def root() -> Path:
    """MEDKIT_RESULTS; else results/ of the checkout when the working folder is in it, else of the latter."""
    if set_by_user := os.environ.get("MEDKIT_RESULTS"):
        path = Path(set_by_user)
        return (path if path.is_absolute() else machine.working_folder() / path).resolve()
    here = machine.working_folder().resolve()
    return (machine.CHECKOUT if here.is_relative_to(machine.CHECKOUT) else here) / "results"


def folder(run_dir: str | Path) -> Path:
    """The absolute folder of `NAME`, `results/NAME` or a path to it; ResultsError for any other place."""
    check_text("run_dir", run_dir)
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
            f"{run_dir} lies outside {relpath(root())}; name the run alone, or set MEDKIT_RESULTS"
        )
    return path.resolve()


def check_text(name: str, value) -> None:
    """ResultsError unless a notebook's parameter is text: papermill's -p reads 2026 as a number."""
    if not isinstance(value, str | os.PathLike):
        raise ResultsError(
            f"{name}={value!r} is {type(value).__name__}, not text; quote it, or give it to papermill with -r"
        )


def check_not_committed(place: Path) -> None:
    """ResultsError where a run's folder is a committed one, which is only read."""
    if place.name in COMMITTED and place.parent == machine.CHECKOUT / "results" and place.exists():
        raise ResultsError(f"{relpath(place)} is part of the repository and stays as it is; name another run")


def slug(text: str) -> str:
    """A run name from any text."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-._")[:64]


def require(run_dir: str | Path, names: Iterable[str]) -> Path:
    """The run's folder, if it has all files `names`; else ResultsError for the first that is missing."""
    place = folder(run_dir)
    for name in names:
        file(place, name)
    return place


def file(place: str | Path, name: str) -> Path:
    """The path of a run's file; ResultsError, naming the notebook that writes it, where it is missing."""
    path = Path(place) / name
    if not path.exists():
        notebook = WRITTEN_BY.get(Path(name).parts[0])
        fix = f"run notebook {notebook} first" if notebook else "start the run anew"
        raise ResultsError(f"{relpath(path)} is missing; {fix}")
    return path


def load(place: str | Path, name: str, keys: Iterable[str], writer: str = "") -> dict:
    """A JSON file of the run with all of `keys`; else ResultsError, naming the file and its notebook."""
    path = file(place, name)
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
    """A path for messages: relative to the working folder when it lies below."""
    try:
        return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
    except OSError:  # the working folder is gone
        return str(path)


@contextlib.contextmanager
def lock(place: Path) -> Iterator[None]:
    """Lock a run's folder; ResultsError, naming the process, where another one has it.

    The lock file lies beside the folder, so that the folder can be replaced. The lock is the kernel's (flock)
    and ends with the process.
    """
    check_not_committed(place)
    path = place.parent / f".{place.name}.lock"
    file = _locked(path, place)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def _locked(path: Path, place: Path):
    """The open lock file at `path`, locked and with this process's number in it."""
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+b", buffering=0)  # noqa: SIM115 - closed by `lock`
        except OSError as error:
            raise ResultsError(
                f"cannot write in {relpath(path.parent)} ({error.strerror}); set MEDKIT_RESULTS to a folder "
                "that can be written to"
            ) from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().decode().strip() or "unknown"
            file.close()
            raise ResultsError(
                f"{relpath(place)} is being written by process {holder}; wait for it, or choose another name"
            ) from None
        except OSError as error:  # a network file system without locks, or without its lock daemon
            file.close()
            path.unlink(missing_ok=True)
            raise ResultsError(
                f"files cannot be locked in {relpath(path.parent)} ({error.strerror}); set MEDKIT_RESULTS to "
                "a folder on another file system"
            ) from None
        # Another process may have removed the file between our open and our lock.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()
    with contextlib.suppress(OSError):  # on a full disk others' messages lack the number
        file.truncate(0)
        file.write(str(os.getpid()).encode())
    return file
