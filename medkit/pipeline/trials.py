"""One trial of a sweep, in a process of its own: an ordinary run, and what is kept of it.

    python -m medkit.pipeline.trials '{"sweep": ..., "name": ..., ...}'

The process ends with the one that started it, so that a trial is never at work twice: its standard input is
a pipe that the starter holds open.
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

LOCK_SECONDS = 60  # that a process of a lost node may need to end
# Of a run's files, those that the study reads; at the same places, so that whoever reads a run reads these.
OUTCOMES = ("mcq/*.csv", "mcq/summary.json", "consumer/*.csv", "consumer/summary.json", "stage*/loss.csv")


@dataclass(frozen=True)
class Job:
    """What the process is told of its trial."""

    sweep: str  # the sweep's folder
    recipe: str
    name: str
    settings: tuple[str, ...]
    stage1: str  # the run whose stage 1 it goes on from; "" where it has none, or is one
    is_stage1: bool
    measure: tuple[str, ...]
    data_dir: str = ""
    about: dict | None = None  # into the outcome's run.json: arm, seed, axes
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
    """Why the trial failed, in one line; there while it has."""
    return job.folder.with_name(f".{job.name}.error")


def steps(job: Job) -> list[runner.Step]:
    """Notebook 01 and its models for a stage 1; else 02, and Med-Nirvana alone."""
    exams, patients = ("base,med-mix", "base") if job.is_stage1 else ("med-nirvana", "med-nirvana")
    if not job.is_stage1 and recipes.get(job.recipe, "\n".join(job.settings)).dmt.relearn_steps:
        exams += ",relearned"
    models = {"03": exams, "04": patients}
    measured = {"03": "mcq", "04": "consumer"}
    chosen = []
    for step in runner.NOTEBOOKS:
        if step.number == "01" and job.is_stage1:
            chosen.append(step)
        elif step.number == "02" and step.fixed["replay"] and not job.is_stage1:
            chosen.append(step if job.stage1 else replace(step, needs=()))
        elif measured.get(step.number) in job.measure:
            trained = "stage1/adapter" if job.is_stage1 else "stage2/adapter"
            fixed = step.fixed | {"models": models[step.number]}
            chosen.append(replace(step, fixed=fixed, needs=(trained,)))
    return chosen


def run(job: Job) -> None:
    """Execute the trial, or what of it is missing, and keep its outcome. RunFailed and MedkitError as of
    `runner.run`."""
    os.environ["MEDKIT_RESULTS"] = str(trials_folder(Path(job.sweep)))
    _wait_until_free(job.folder)
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
    """SHA-256 of stage 1's adapter; "" where there is none."""
    path = run_folder / "stage1" / "adapter" / "adapter_model.safetensors"
    return storage.sha256(path) if path.is_file() else ""


def share_stage1(job: Job) -> None:
    """Put the shared run's stage 1 into the trial's folder: the same files by another name (hard links), so
    that neither can become another than the other's.

    A trial that had gone on from another stage 1 begins again.
    """
    shared = trials_folder(Path(job.sweep)) / job.stage1
    weights = adapter_hash(shared)
    if before := run_json.read(job.folder):
        if before.get("shared_stage1", {}).get("adapter") == weights:
            return
        shutil.rmtree(job.folder)
    ours = run_json.read(shared) or {}
    info = run_json.describe(job.recipe, "\n".join(job.settings), job.data_dir)
    info["shared_stage1"] = {"run": job.stage1, "adapter": weights}
    info["data"]["hashes"] = ours["data"]["hashes"]
    info["notebooks"]["01_stage1"] = ours["notebooks"]["01_stage1"]
    aside = job.folder.with_name(f".{job.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    linked = [path for part in ("stage1", "data") for path in (shared / part).rglob("*")]
    for path in [*linked, shared / "notebooks" / "01_stage1.ipynb"]:
        if path.is_file() and "checkpoints" not in path.relative_to(shared).parts:
            to = aside / path.relative_to(shared)
            to.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, to)
    storage.write_json(aside / "run.json", info)
    aside.rename(job.folder)


def keep_outcome(job: Job) -> Path:
    """outcomes/TRIAL: what the study reads of the run, small enough to be committed, whole or not there."""
    to = outcome_folder(Path(job.sweep), job.name)
    aside = to.with_name(f".{job.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    for pattern in OUTCOMES:
        for path in sorted(job.folder.glob(pattern)):
            if job.is_stage1 or not path.is_relative_to(job.folder / "stage1"):
                storage.write_bytes(aside / path.relative_to(job.folder), path.read_bytes())
    if (manifest := job.folder / "data" / "manifest.json").is_file():
        storage.write_json(aside / "data" / "manifest.json", _without_ids(json.loads(manifest.read_text())))
    info = run_json.read(job.folder) or {}
    info["trial"] = {"name": job.name, "is_stage1": job.is_stage1, **(job.about or {})}
    info["trial"]["stage1_adapter"] = adapter_hash(job.folder)
    storage.write_json(aside / "run.json", info)
    shutil.rmtree(to, ignore_errors=True)
    aside.rename(to)
    return to


def _without_ids(part):
    """A manifest without its lists of rows, which a clone draws again by the seed."""
    if isinstance(part, dict):
        return {key: _without_ids(value) for key, value in part.items() if not key.endswith("_ids")}
    return part


def _wait_until_free(place: Path) -> None:
    deadline = time.monotonic() + LOCK_SECONDS
    while (place.parent / f".{place.name}.lock").exists() and time.monotonic() < deadline:
        with contextlib.suppress(storage.ResultsError), storage.lock(place):
            return
        time.sleep(0.5)


def _end_with_starter() -> None:
    def watch():
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)  # our kernel sees that we are gone, and ends too

    threading.Thread(target=watch, daemon=True).start()


def main() -> int:
    fields = json.loads(sys.argv[1])
    lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
    job = Job(**fields | lists)
    _end_with_starter()
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
