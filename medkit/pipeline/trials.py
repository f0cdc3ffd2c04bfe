"""Executes one trial of a sweep in its own process, as an ordinary run, and keeps its outcome.

    python -m medkit.pipeline.trials '{"sweep": ..., "name": ..., ...}'

The process ends when its parent does, so that no trial runs twice: standard input is a pipe that the parent
holds open.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medkit import MedkitError, recipes
from medkit.pipeline import runner
from medkit.runs import run_json, storage

LOCK_SECONDS = 60  # to wait for the process of a lost node to end
# The run's files that the study reads. Paths stay the same, so that an outcome can be read like a run.
OUTCOMES = ("mcq/*.csv", "mcq/summary.json", "consumer/*.csv", "consumer/summary.json", "stage*/loss.csv")


@dataclass(frozen=True)
class Job:
    """A trial's description, passed to its process as JSON."""

    sweep: str  # the sweep's folder
    recipe: str
    name: str
    settings: tuple[str, ...]
    stage1: str  # name of the stage 1 it continues from, if any
    is_stage1: bool
    measure: tuple[str, ...]
    data_dir: str = ""
    about: dict | None = None  # arm, seed and axes, for the outcome's run.json
    notebooks: str = str(runner.NOTEBOOK_FOLDER)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "medkit.pipeline.trials", json.dumps(asdict(self))]

    @property
    def folder(self) -> Path:
        return trials_folder(Path(self.sweep)) / self.name


def trials_folder(sweep: Path) -> Path:
    return sweep / "trials"


def outcome_folder(sweep: Path, name: str) -> Path:
    return sweep / "outcomes" / name


def error_file(job: Job) -> Path:
    """The file with the reason of the trial's failure, in one line."""
    return job.folder.with_name(f".{job.name}.error")


def steps(job: Job) -> list[runner.Step]:
    """Notebook 01 for a stage 1, else 02; then those that measure its models."""
    if job.is_stage1:
        models, trained = {"03": "base,med-mix", "04": "base"}, "stage1/adapter"
    else:
        models, trained = {"03": "med-nirvana", "04": "med-nirvana"}, "stage2/adapter"
        if recipes.get(job.recipe, "\n".join(job.settings)).dmt.relearn_steps:
            models["03"] += ",relearned"
    measures = {"03": "mcq", "04": "consumer"}
    chosen = []
    for step in runner.NOTEBOOKS:
        if step.number == "01" and job.is_stage1:
            chosen.append(step)
        elif step.number == "02" and step.fixed["replay"] and not job.is_stage1:
            chosen.append(step if job.stage1 else replace(step, needs=()))
        elif measures.get(step.number) in job.measure:
            fixed = step.fixed | {"models": models[step.number]}
            chosen.append(replace(step, fixed=fixed, needs=(trained,)))
    return chosen


def run(job: Job) -> None:
    """Execute the trial, or continue it, and keep its outcome. Raises the same errors as runner.run."""
    os.environ["MEDKIT_RESULTS"] = str(trials_folder(Path(job.sweep)))
    _wait_for_lock(job.folder)
    if job.stage1:
        share_stage1(job)
    runner.run(
        job.recipe,
        name=job.name,
        data_dir=job.data_dir,
        settings=job.settings,
        resume=(job.folder / "run.json").exists(),
        steps=steps(job),
        folder=Path(job.notebooks),
    )
    keep_outcome(job)


def adapter_hash(run_folder: Path) -> str:
    """SHA-256 of stage 1's adapter; "" if there is none."""
    path = run_folder / "stage1" / "adapter" / "adapter_model.safetensors"
    return storage.sha256(path) if path.is_file() else ""


def share_stage1(job: Job) -> None:
    """Link the shared run's stage 1 into the trial's folder. Hard links keep the two identical.

    A trial that continued from another stage 1 is removed first.
    """
    shared = trials_folder(Path(job.sweep)) / job.stage1
    adapter = adapter_hash(shared)
    if previous := run_json.read(job.folder):
        if previous.get("shared_stage1", {}).get("adapter") == adapter:
            return
        shutil.rmtree(job.folder)
    shared_info = run_json.read(shared) or {}
    info = run_json.describe(job.recipe, "\n".join(job.settings), job.data_dir)
    info["shared_stage1"] = {"run": job.stage1, "adapter": adapter}
    info["data"]["hashes"] = shared_info["data"]["hashes"]
    info["notebooks"]["01_stage1"] = shared_info["notebooks"]["01_stage1"]
    new = job.folder.with_name(f".{job.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    files = [path for folder in ("stage1", "data") for path in (shared / folder).rglob("*")]
    for path in [*files, shared / "notebooks" / "01_stage1.ipynb"]:
        if path.is_file() and "checkpoints" not in path.relative_to(shared).parts:
            link = new / path.relative_to(shared)
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, link)
    storage.write_json(new / "run.json", info)
    new.rename(job.folder)


def keep_outcome(job: Job) -> Path:
    """Write outcomes/TRIAL: the run's files that the study reads, small enough to commit. It is replaced as a
    whole."""
    outcome = outcome_folder(Path(job.sweep), job.name)
    new = outcome.with_name(f".{job.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    for pattern in OUTCOMES:
        for path in sorted(job.folder.glob(pattern)):
            if job.is_stage1 or not path.is_relative_to(job.folder / "stage1"):
                storage.write_bytes(new / path.relative_to(job.folder), path.read_bytes())
    if (manifest := job.folder / "data" / "manifest.json").is_file():
        storage.write_json(new / "data" / "manifest.json", _without_ids(json.loads(manifest.read_text())))
    info = run_json.read(job.folder) or {}
    info["trial"] = {"name": job.name, "is_stage1": job.is_stage1, **(job.about or {})}
    info["trial"]["stage1_adapter"] = adapter_hash(job.folder)
    storage.write_json(new / "run.json", info)
    shutil.rmtree(outcome, ignore_errors=True)
    new.rename(outcome)
    return outcome


def _without_ids(value):
    """A manifest without its lists of row ids, which can be drawn again from the seed."""
    if isinstance(value, dict):
        return {key: _without_ids(item) for key, item in value.items() if not key.endswith("_ids")}
    return value


def _wait_for_lock(folder: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while (folder.parent / f".{folder.name}.lock").exists() and time.monotonic() < deadline:
        with contextlib.suppress(storage.ResultsError), storage.lock(folder):
            return
        time.sleep(0.5)


def _end_with_parent() -> None:
    def watch():
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)  # the kernel notices this, and ends too

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    fields = json.loads(sys.argv[1])
    tuples = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    job = Job(**fields | tuples)
    _end_with_parent()
    error_file(job).unlink(missing_ok=True)
    try:
        run(job)
    except (MedkitError, runner.RunFailed, OSError) as error:
        print(f"medkit: {job.name}: {error}", file=sys.stderr)
        storage.write_text(error_file(job), f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
