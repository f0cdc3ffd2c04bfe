"""Checkpoints: whether one is complete, and whether it belongs to this run."""

import json
import os
import shutil
from contextlib import contextmanager
from pathlib import Path

from medkit import MedkitError
from medkit.runs import storage

OPTIMIZER = "optimizer.pt"  # as Transformers names it
MARKER = "whole.json"  # written last: the run's identity and the hash of every other file
# Needed to resume exactly. Each of several processes saves its own rng_state.
PARTS = ("adapter_model.safetensors", OPTIMIZER, "scheduler.pt", "rng_state", "trainer_state.json")
PARTS += ("meter.json", "loss.csv")


class CheckpointError(MedkitError):
    """A checkpoint that cannot be resumed from, and why."""


@contextmanager
def atomic_folder(folder: Path):
    """A temporary folder that is renamed to `folder` when the block ends without an error."""
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
    _rename(aside, folder)


def publish(written: Path, folder: Path, identity: dict | None) -> None:
    """Mark the checkpoint in `written` as whole and give it its final name."""
    hashes = {path.name: storage.sha256(path) for path in sorted(written.iterdir()) if path.is_file()}
    (written / MARKER).write_text(json.dumps({"identity": identity, "sha256": hashes}, indent=1))
    _flush(written)
    _rename(written, folder)


def find_resumable(folder: Path, identity: dict | None, say=print) -> Path | None:
    """The newest whole checkpoint of `folder`; None where there are no checkpoints.

    Damaged ones are skipped, each with a line to `say`. Raises CheckpointError where all are damaged, and
    where the newest whole one was written by another run, naming the first field that differs.
    """
    skipped = []
    for path in reversed(_all(folder)):
        if not (flaw := _flaw(path)):
            _refuse_another(path, identity)
            return path
        skipped.append(f"{path.name} is skipped: {flaw}")
        say(skipped[-1])
    if skipped:
        raise CheckpointError(
            f"no checkpoint is whole ({skipped[0]}); restore it, or remove {folder.name}/ of "
            f"{folder.parent.name} to train from the start"
        )
    return None


def prune(folder: Path, step: int, count: int) -> None:
    """Remove all but the newest `count` up to `step`, which was just written; later ones are damaged, from an
    earlier attempt."""
    until = [path for path in _all(folder) if step_of(path) <= step]
    for path in set(_all(folder)) - set(until[-count:]):
        shutil.rmtree(path)


def keep_optimizer(stage: Path) -> None:
    """Copy the final state of the optimizer beside the stage's adapter, for the next stage
    (trainer.carry_over)."""
    whole = newest_complete(stage / "checkpoints")
    assert whole is not None, "a stage that has ended has its last checkpoint"
    storage.write_bytes(stage / OPTIMIZER, (whole / OPTIMIZER).read_bytes())


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that could be resumed from."""
    return next((path for path in reversed(_all(folder)) if not _flaw(path)), None)


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def finished(path: Path) -> bool:
    """Whether it was written after the last step."""
    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]


def _all(folder: Path) -> list[Path]:
    """Oldest first."""
    named = (path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal())
    return sorted(named, key=step_of)


def _refuse_another(path: Path, identity: dict | None) -> None:
    saved = (_marker(path) or {}).get("identity") or {}
    own = json.loads(json.dumps(identity or {}))  # tuples as the lists they were saved as
    for field in sorted(saved.keys() | own.keys()):
        if saved.get(field) != own.get(field):
            raise CheckpointError(
                f"{path.name} was written with {field}={saved.get(field)!r}, this run has "
                f"{own.get(field)!r}; resume with the same settings or start a new run"
            )


def _marker(path: Path) -> dict | None:
    """The marker's content; None where it is missing or unreadable."""
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return marker if isinstance(marker["sha256"], dict) and "identity" in marker else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _flaw(path: Path) -> str:
    """Why the checkpoint cannot be resumed from; empty where it can."""
    if (marker := _marker(path)) is None:
        return f"it was not finished (no readable {MARKER})"
    for part in PARTS:
        if not any(name.startswith(part) for name in marker["sha256"]):
            return f"{part} is missing"
    for name, expected in marker["sha256"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if storage.sha256(path / name) != expected:
            return f"{name} is not as it was written"
    return ""


def _rename(written: Path, folder: Path) -> None:
    """Replaces an earlier folder of that name; on the disk when this returns."""
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)
    storage.sync(folder.parent)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        storage.sync(path)
