"""The pipeline: the numbered notebooks in their order, into one run's folder, told line by line."""

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medkit import MedkitError, recipes, report
from medkit.data import hub, sources
from medkit.pipeline import notebooks
from medkit.pipeline.status import Status
from medkit.preflight import inputs
from medkit.runs import arms, machine, run_json, storage
from medkit.runs.inputs import check_data_dir
from medkit.train import adapters, models

NOTEBOOK_FOLDER = machine.CHECKOUT / "notebooks"
DEFAULT_NAMES = {"cpu": "demo"}  # of a recipe's run; every other is the recipe's own


class RunFailed(Exception):
    """A notebook failed on the way; the message names it and its cell."""


@dataclass(frozen=True)
class Step:
    """One execution of a notebook. Arms of an experiment are steps of one notebook that differ in `fixed`."""

    number: str  # what --only names
    notebook: str  # notebooks/NOTEBOOK.ipynb
    takes: tuple[str, ...]  # which of the run's recipe, run_dir, data_dir and settings are its parameters
    fixed: dict = field(default_factory=dict)  # its other parameters
    needs: tuple[str, ...] = ()  # files in the run's folder
    reads: tuple[str, ...] = ()  # as DataSpec.source_part names them: "NAME train" or "NAME eval"
    writes: tuple[str, ...] = ()  # in the run's folder: what later steps need
    suffix: str = ""  # of the executed copy

    @property
    def name(self) -> str:
        return self.notebook + self.suffix


_TRAINING = ("recipe", "run_dir", "data_dir", "settings")
_EVALUATION = ("run_dir", "data_dir")
_ADAPTERS = tuple(f"{arms.ARMS[name].folder}/adapter" for name in ("med-mix", "med-nirvana", "control"))
_EXAMS_TRAIN = tuple(f"{name} train" for name in sources.EXAMS)
_EXAMS_EVAL = tuple(f"{name} eval" for name in sources.EXAMS)
_CASES = ("icliniq eval", "healthcaremagic eval")
_ROWS2 = (*_EXAMS_TRAIN, "dialogues train")
_STAGE2: dict = {"takes": _TRAINING, "needs": _ADAPTERS[:1]}

NOTEBOOKS = (
    Step("01", "01_stage1", _TRAINING, reads=_EXAMS_TRAIN + _EXAMS_EVAL, writes=_ADAPTERS[:1]),
    Step(
        "02",
        "02_stage2",
        **_STAGE2,
        fixed={"replay": True},
        reads=_ROWS2 + _EXAMS_EVAL + _CASES,  # what evaluates it is looked for in what trains it
        writes=_ADAPTERS[1:2],
    ),
    Step(
        "02",
        "02_stage2",
        **_STAGE2,
        fixed={"replay": False},
        reads=_ROWS2,
        writes=_ADAPTERS[2:],
        suffix="_noreplay",
    ),
    Step("03", "03_mcq_eval", _EVALUATION, needs=_ADAPTERS, reads=_EXAMS_EVAL, writes=("mcq/summary.json",)),
    Step(
        "04",
        "04_consumer_eval",
        _EVALUATION,
        needs=_ADAPTERS[1:2],
        reads=(*_CASES, inputs.SCORER),
        writes=("consumer/summary.json",),
    ),
    Step("05", "05_report", ("run_dir",), needs=("mcq/summary.json", "consumer/summary.json")),
)


def model_alone(model: str, adapter: str = "") -> Step:
    """Notebook 03 on any model, with an adapter or without, in place of a run's own."""
    return Step("03", "03_mcq_eval", _EVALUATION, {"model": model, "adapter": adapter}, reads=_EXAMS_EVAL)


def run(
    recipe: str,
    *,
    name: str = "",
    data_dir: str = "",
    settings: Sequence[str] = (),
    only: Sequence[str] = (),
    resume: bool = False,
    fresh: bool = False,
    steps: Sequence[Step] = NOTEBOOKS,
    folder: Path = NOTEBOOK_FOLDER,
    out=None,
) -> Path:
    """Execute the steps (those of `only`) into results/NAME, and return that folder.

    A run without a name has its recipe's; that of `cpu` is `demo`, since results/cpu is the repository's.
    Without resume, fresh or only, the folder must not hold a run. resume leaves out what is finished and
    only executes its steps again, both in a run that must be the same; fresh replaces the run.
    Raises MedkitError before anything is written, RunFailed where a notebook failed.
    """
    settings = "\n".join(settings)
    resolved = recipes.get(recipe, settings)
    place = storage.folder(name or DEFAULT_NAMES.get(recipe, recipe))
    storage.check_not_committed(place)
    machine.check_writable(storage.root(), "MEDKIT_RESULTS")
    steps = _chosen(steps, only)
    check_data_dir(data_dir)
    known = {"recipe": recipe, "run_dir": f"results/{place.name}", "data_dir": data_dir, "settings": settings}
    parameters = step_parameters(steps, folder, known)
    parts = [part for step in steps for part in step.reads]
    inputs.check(resolved, data_dir, parts)
    adapter = steps[0].fixed.get("adapter", "")
    if adapter:
        adapters.read_config(Path(adapter).expanduser())
    described = run_json.describe(recipe, settings, data_dir, adapter)
    with storage.lock(place):
        _refuse_others_files(place)
        info = None if fresh else _earlier(place, described, resume, bool(only))
        done = _finished(place, info) if resume else set()
        _refuse_missing(place, steps, fresh, done, joint=resolved.dmt.handover == "joint")
        if fresh:
            _remove(place)
        opened = run_json.Run(place, info or described, resolved, data_dir)
        if info:
            _note_resumption(info, described)
        opened.info["status"] = "running"
        storage.write_json(place / "run.json", opened.info)
        with Status(out or sys.stderr) as status, _environment(hub.offline()) as environment:
            status.line(f"{storage.relpath(place)}: recipe {recipe}, {len(steps)} notebooks")
            for step, values in zip(steps, parameters, strict=True):
                if step.name in done:
                    status.line(f"{step.name:<22} finished before")
                    continue
                try:
                    _execute(opened, step, values, folder, environment, status)
                except (MedkitError, OSError) as error:  # a full disk, say: too late for a refusal
                    raise RunFailed(f"{step.name}: {error}") from None
    return place


def step_parameters(steps: Sequence[Step], folder: Path, known: dict[str, str]) -> list[dict]:
    """Each step's parameters, out of the run's `known` ones. NotebookError where its notebook lacks one."""
    parameters = [{key: known[key] for key in step.takes} | step.fixed for step in steps]
    for step, values in zip(steps, parameters, strict=True):
        notebooks.check_parameters(folder / f"{step.notebook}.ipynb", values)
    return parameters


def _execute(opened, step: Step, values: dict, folder: Path, environment: dict, status) -> None:
    opened.note(step.name, status="running", started=run_json.utc_now())
    status.start(step.name)
    began = time.monotonic()
    output = opened.folder / "notebooks" / f"{step.name}.ipynb"
    failure = notebooks.execute(
        folder / f"{step.notebook}.ipynb", output, values, environment, on_cell=status.cell, stream=status
    )
    seconds = round(time.monotonic() - began, 1)
    if failure:
        opened.info = run_json.read(opened.folder) or opened.info
        opened.info["failure"] = {"notebook": step.name, **failure._asdict()}
        storage.write_json(opened.folder / "run.json", opened.info)
        opened.note(step.name, status="failed", seconds=seconds)
        status.end("failed")
        raise RunFailed(
            f"{step.name}, cell {failure.cell}: {failure.error} (see {storage.relpath(output)}); "
            "what was finished is kept; medkit run with --resume, and without --fresh, goes on"
        )
    opened.note(step.name, status="complete", seconds=seconds)
    if step.notebook == "05_report":
        report.write_page(opened.folder)
    for adapter in set(step.writes) & set(_ADAPTERS):
        models.remove_checkpoints(opened.folder / Path(adapter).parent)
    peak = opened.info["notebooks"][step.name].get("peak_memory_gb")
    status.end("complete" + (f"  peak {peak:.2f} GB" if peak else ""))


def _chosen(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    known = dict.fromkeys(step.number for step in steps)
    for number in only:
        if number not in known:
            raise MedkitError(f"--only {number} is no notebook; they are {', '.join(known)}")
    return [step for step in steps if not only or step.number in only]


def _refuse_others_files(place: Path) -> None:
    """What is no run is never replaced, not even with --fresh."""
    if place.exists() and not (place / "run.json").exists() and (place.is_file() or any(place.iterdir())):
        raise MedkitError(
            f"{storage.relpath(place)} is no run and not empty; move it away or take another --run"
        )


def _earlier(place: Path, described: dict, resume: bool, only: bool) -> dict | None:
    """run.json of the run to go on with, None where there is none; MedkitError where it is another one."""
    info = run_json.read(place)
    if info is None:
        if resume:
            raise MedkitError(f"{storage.relpath(place)} holds no run to resume; leave --resume out")
        return None
    if not (resume or only):
        state, fix = "an unfinished run", "go on with --resume, replace it with --fresh"
        if info["status"] == "complete":
            state, fix = "a complete run", "replace it with --fresh"
        raise MedkitError(f"{storage.relpath(place)} holds {state}; {fix}, or name another with --run")
    run_json.check_same(place, info, described)
    return info


def _note_resumption(info: dict, described: dict) -> None:
    """That the run goes on here and now; what ran in a process that is no more has failed, as we hold the
    lock."""
    for entry in info["notebooks"].values():
        if entry["status"] == "running":
            entry["status"] = "failed"
    again = {key: described[key] for key in ("started", "git", "versions", "hardware")}
    info.setdefault("continued", []).append(again)


def _finished(place: Path, info: dict | None) -> set[str]:
    """Notebooks that are complete and whose executed copy is there."""
    entries = (info or {}).get("notebooks", {})
    copies = place / "notebooks"
    return {
        n
        for n, entry in entries.items()
        if entry["status"] == "complete" and (copies / f"{n}.ipynb").exists()
    }


def _refuse_missing(place: Path, steps: Sequence[Step], fresh: bool, done: set[str], joint: bool) -> None:
    """Before a kernel starts: what a step needs is there, or an earlier step of this call writes it."""
    coming: set[str] = set()
    for step in steps:
        if step.name in done:
            continue
        needed = [name for name in step.needs if name not in coming]
        if joint:  # one stage learns everything: there may be no other
            needed = [name for name in needed if not name.startswith("stage1/")]
        if fresh and needed:
            raise MedkitError(
                f"{step.name} needs {needed[0]}, and --fresh starts with nothing; leave one of them out"
            )
        storage.require(place, needed)
        coming.update(step.writes)


def _remove(place: Path) -> None:
    """Put the old run out of the way in one step, so that no moment shows half of it, and then delete it."""
    for left in place.parent.glob(f".{place.name}.old-*"):
        shutil.rmtree(left)
    if place.exists():
        aside = place.with_name(f".{place.name}.old-{os.getpid()}")
        place.rename(aside)
        shutil.rmtree(aside)


@contextlib.contextmanager
def _environment(offline: bool):
    """What the kernels' environment has beside this process's."""
    with tempfile.TemporaryDirectory(prefix="medkit-") as scratch:
        environment = {
            "MEDKIT_RUNNER": str(os.getpid()),
            "MEDKIT_RESULTS": str(storage.root()),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(machine.CHECKOUT), os.environ.get("PYTHONPATH")))
            ),
            "IPYTHONDIR": f"{scratch}/ipython",
            # Unsloth imports what it compiled from here: never from where the user happens to stand.
            "UNSLOTH_COMPILE_LOCATION": f"{scratch}/unsloth",
            # tqdm draws its bars as text in Spyder's kernels, told by such a name; in all others as
            # widgets, which neither a terminal nor a log can show.
            "SPYDER_TEXT_BARS": "1",
        }
        if offline:
            environment |= hub.OFFLINE
        yield environment
