"""Which checkpoint is whole, and whether it belongs to this run."""

import hashlib
import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from medkit import MedkitError

MARKER = "whole.json"  # written last: the identity of the run and the hash of every other file
PARTS = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json")


class CheckpointError(MedkitError):
    """A checkpoint that cannot be resumed from, and why."""


@contextmanager
def appears_whole(folder: Path):
    """A folder to write into that takes the name `folder` only when the block has ended well."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        _flush(aside)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def publish(written: Path, folder: Path, identity: dict | None) -> None:
    """Mark the checkpoint in `written` as whole and give it its final name."""
    hashes = {path.name: _sha256(path) for path in sorted(written.iterdir()) if path.is_file()}
    (written / MARKER).write_text(json.dumps({"identity": identity, "sha256": hashes}, indent=1))
    _flush(written)
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)


def newest(folder: Path, identity: dict | None) -> Path | None:
    """The newest whole checkpoint; None where there is none. A newer one that is not whole is passed over
    with a line that says why. Raises CheckpointError, naming the field, where it is another run's."""
    for path in sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True):
        flaw = _flaw(path)
        if flaw:
            print(f"{path.name} is passed over: {flaw}")
            continue
        saved = json.loads((path / MARKER).read_text())["identity"]
        for field in sorted({*(saved or {}), *(identity or {})}):
            ours, theirs = (identity or {}).get(field), (saved or {}).get(field)
            if ours != theirs:
                raise CheckpointError(
                    f"{path.name} was written with {field}={theirs!r}, this run has {ours!r}; "
                    "resume with the same settings or start a new run"
                )
        return path
    return None


def keep(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints."""
    for path in sorted(folder.glob("checkpoint-*"), key=step_of)[:-count]:
        shutil.rmtree(path)


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _flaw(path: Path) -> str:
    marker = path / MARKER
    if not marker.is_file():
        return "it was not finished (no marker)"
    hashes = json.loads(marker.read_text())["sha256"]
    for name in PARTS:
        if name not in hashes:
            return f"{name} is missing"
    for name, expected in hashes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != expected:
            return f"{name} is not as it was written"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
