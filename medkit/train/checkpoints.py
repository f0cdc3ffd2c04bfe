"""Checkpoints: whether a checkpoint is complete, and whether it belongs to this run."""

import json
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from medkit import MedkitError
from medkit.runs import storage

OPTIMIZER = "optimizer.pt"  # as Transformers names it
MARKER = "whole.json"  # written last, with the run's identity and the hash of every other file
# Required to resume exactly, as prefixes: with several processes, each saves its own rng_state.
PARTS = ("adapter_model.safetensors", OPTIMIZER, "scheduler.pt", "rng_state", "trainer_state.json")
PARTS += ("meter.json", "loss.csv")


@contextmanager
def atomic_folder(folder: Path, keep: str = ""):
    """Yield a temporary folder and rename it to `folder` if the block ends without an error.

    keep: for a folder that other processes may write too, a file that it has when complete. If one of them
    was first, its folder is kept, since it may be in use.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's mode would exclude other users of a shared cache
        _flush(temporary)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            if not keep or not (folder / keep).is_file():
                shutil.rmtree(folder)
                temporary.rename(folder)
        storage.sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(written: Path, folder: Path, identity: dict | None) -> None:
    """Mark the checkpoint in `written` as complete and rename it to `folder`."""
    hashes = {path.name: storage.sha256(path) for path in sorted(written.iterdir()) if path.is_file()}
    (written / MARKER).write_text(json.dumps({"identity": identity, "sha256": hashes}, indent=1))
    _flush(written)
    _rename(written, folder)


def find_resumable(folder: Path, identity: dict | None, report=print) -> Path | None:
    """The newest complete checkpoint in `folder`; None if there are no checkpoints.

    Damaged checkpoints are skipped and passed to `report`, one line each. Raises MedkitError if all are
    damaged, or if the newest complete one was written with another `identity`.
    """
    skipped = []
    for path in reversed(_all(folder)):
        if not (damage := _damage(path)):
            _check_identity(path, identity)
            return path
        skipped.append(f"{path.name} is skipped: {damage}")
        report(skipped[-1])
    if skipped:
        raise MedkitError(
            f"no checkpoint is complete ({skipped[0]}); restore it, or remove {folder.name}/ of "
            f"{folder.parent.name} to train from the start"
        )
    return None


def prune(folder: Path, step: int, count: int) -> None:
    """Keep only the newest `count` checkpoints up to `step`, which was just written. Later ones are damaged,
    from an earlier attempt."""
    candidates = [path for path in _all(folder) if step_of(path) <= step]
    for path in set(_all(folder)) - set(candidates[-count:]):
        shutil.rmtree(path)


def keep_optimizer(stage_folder: Path) -> None:
    """Copy the final optimizer state from the last checkpoint into the stage's folder, for the next stage."""
    last = newest_complete(stage_folder / "checkpoints")
    assert last is not None, "a finished stage has its last checkpoint"
    storage.write_bytes(stage_folder / OPTIMIZER, (last / OPTIMIZER).read_bytes())


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that is not damaged; None if there is none."""
    return next((path for path in reversed(_all(folder)) if not _damage(path)), None)


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def finished(path: Path) -> bool:
    """Whether a checkpoint was written after the last training step."""
    state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]


def _all(folder: Path) -> list[Path]:
    """All checkpoints, oldest first."""
    paths = (path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal())
    return sorted(paths, key=step_of)


def _check_identity(path: Path, identity: dict | None) -> None:
    """MedkitError naming the first field in which the checkpoint differs from `identity`."""
    saved = (_read_marker(path) or {}).get("identity") or {}
    current = json.loads(json.dumps(identity or {}))  # turns tuples into lists, like the saved ones
    for field in sorted(saved.keys() | current.keys()):
        if saved.get(field) != current.get(field):
            raise MedkitError(
                f"{path.name} was written with {field}={saved.get(field)!r}, this run has "
                f"{current.get(field)!r}; resume with the same settings or start a new run"
            )


def _read_marker(path: Path) -> dict | None:
    """The marker's content; None if it is missing or invalid."""
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        return marker if isinstance(marker["sha256"], dict) and "identity" in marker else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _damage(path: Path) -> str:
    """What is missing or damaged in a checkpoint; "" if it is complete."""
    if (marker := _read_marker(path)) is None:
        return f"it was not finished (no valid {MARKER})"
    for part in PARTS:
        if not any(name.startswith(part) for name in marker["sha256"]):
            return f"{part} is missing"
    for name, expected in marker["sha256"].items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if storage.sha256(path / name) != expected:
            return f"{name} has changed since it was written"
    return ""


def _rename(written: Path, folder: Path) -> None:
    """Rename `written` to `folder`, replacing an existing one, and flush the change to disk."""
    shutil.rmtree(folder, ignore_errors=True)
    written.rename(folder)
    storage.sync(folder.parent)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        storage.sync(path)
