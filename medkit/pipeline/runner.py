"""The pipeline: executes the numbered notebooks in order into a run's folder."""

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
DEFAULT_NAMES = {"cpu": "demo"}  # recipe -> name of its run; for other recipes the recipe's name


class RunFailed(Exception):
    """A notebook failed; the message names the notebook and the cell."""


@dataclass(frozen=True)
class Step:
    """One execution of a notebook. Steps of the same notebook differ in `fixed`."""

    number: str  # for --only
    notebook: str  # notebooks/NOTEBOOK.ipynb
    takes: tuple[str, ...]  # parameters it takes from the run: recipe, run_dir, data_dir, settings
    fixed: dict = field(default_factory=dict)  # its other parameters
    needs: tuple[str, ...] = ()  # files it reads in the run's folder
    reads: tuple[str, ...] = ()  # parts of sources, as preflight.inputs.check takes them
    writes: tuple[str, ...] = ()  # files in the run's folder that later steps need
    suffix: str = ""  # added to the name of the executed notebook

    @property
    def name(self) -> str:
        return self.notebook + self.suffix


_TRAINING = ("recipe", "run_dir", "data_dir", "settings")
_EVALUATION = ("run_dir", "data_dir")
_ADAPTERS = tuple(f"{arms.ARMS[name].folder}/adapter" for name in ("med-mix", "med-nirvana", "control"))
_EXAMS_TRAIN = tuple(f"{name} train" for name in sources.EXAMS)
_EXAMS_EVAL = tuple(f"{name} eval" for name in sources.EXAMS)
_CASES = ("icliniq eval", "healthcaremagic eval")
_STAGE2_ROWS = (*_EXAMS_TRAIN, "dialogues train")
_STAGE2: dict = {"takes": _TRAINING, "needs": _ADAPTERS[:1]}

NOTEBOOKS = (
    Step("01", "01_stage1", _TRAINING, reads=_EXAMS_TRAIN + _EXAMS_EVAL, writes=_ADAPTERS[:1]),
    Step(
        "02",
        "02_stage2",
        **_STAGE2,
        fixed={"replay": True},
        reads=_STAGE2_ROWS + _EXAMS_EVAL + _CASES,  # searches the training rows for evaluation items
        writes=_ADAPTERS[1:2],
    ),
    Step(
        "02",
        "02_stage2",
        **_STAGE2,
        fixed={"replay": False},
        reads=_STAGE2_ROWS,
        writes=_ADAPTERS[2:],
        suffix="_noreplay",
    ),
    Step(
        "03", "03_mcq_eval", _EVALUATION, needs=_ADAPTERS[:2], reads=_EXAMS_EVAL, writes=("mcq/summary.json",)
    ),
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
    """Notebook 03 on any model, with an optional adapter, instead of a run's models."""
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
    """Execute the steps, or those with a number in `only`, into results/NAME. Returns that folder.

    name: defaults to the recipe's name, for `cpu` to `demo`. resume: continue the run of that name and skip
    finished notebooks. only: execute steps again in an existing run. fresh: replace the run. Without any of
    these the folder must not contain a run.
    Raises MedkitError before anything is written, and RunFailed if a notebook fails.
    """
    settings = "\n".join(settings)
    resolved = recipes.get(recipe, settings)
    run_folder = storage.folder(name or DEFAULT_NAMES.get(recipe, recipe))
    storage.check_not_committed(run_folder)
    machine.check_writable(storage.root(), "MEDKIT_RESULTS")
    steps = _select(steps, only)
    check_data_dir(data_dir)
    run_values = {"recipe": recipe, "run_dir": f"results/{run_folder.name}", "data_dir": data_dir}
    parameters = step_parameters(steps, folder, run_values | {"settings": settings})
    inputs.check(resolved, data_dir, [part for step in steps for part in step.reads])
    adapter = steps[0].fixed.get("adapter", "")
    if adapter:
        adapters.read_config(Path(adapter).expanduser())
    description = run_json.describe(recipe, settings, data_dir, adapter)
    with storage.lock(run_folder):
        _check_replaceable(run_folder)
        info = None if fresh else _previous_run(run_folder, description, resume, bool(only))
        finished = _finished(run_folder, info) if resume else set()
        remaining = [step for step in steps if step.name not in finished]
        _check_needs(run_folder, remaining, fresh, joint=resolved.dmt.handover == "joint")
        if fresh:
            _remove(run_folder)
        opened = run_json.Run(run_folder, info or description, resolved, data_dir)
        if info:
            _record_resumption(info, description)
        opened.info["status"] = "running"
        storage.write_json(run_folder / "run.json", opened.info)
        with Status(out or sys.stderr) as status, _environment(hub.offline()) as environment:
            status.line(f"{storage.relpath(run_folder)}: recipe {recipe}, {len(steps)} notebooks")
            for step, values in zip(steps, parameters, strict=True):
                if step not in remaining:
                    status.line(f"{step.name:<22} finished before")
                    continue
                try:
                    _execute(opened, step, values, folder, environment, status)
                except (MedkitError, OSError) as error:  # e.g. a full disk
                    raise RunFailed(f"{step.name}: {error}") from None
    return run_folder


def step_parameters(steps: Sequence[Step], folder: Path, run_values: dict[str, str]) -> list[dict]:
    """Each step's parameters: those it takes of the run's, and its fixed ones. Raises MedkitError if a
    notebook does not accept them."""
    parameters = [{key: run_values[key] for key in step.takes} | step.fixed for step in steps]
    for step, values in zip(steps, parameters, strict=True):
        notebooks.check_parameters(folder / f"{step.notebook}.ipynb", values)
    return parameters


def _execute(opened, step: Step, parameters: dict, folder: Path, environment: dict, status) -> None:
    opened.note(step.name, status="running", started=run_json.utc_now())
    status.start(step.name)
    start = time.monotonic()
    notebook, output = folder / f"{step.notebook}.ipynb", opened.folder / "notebooks" / f"{step.name}.ipynb"
    failure = notebooks.execute(notebook, output, parameters, environment, on_cell=status.cell, stream=status)
    seconds = round(time.monotonic() - start, 1)
    if failure:
        opened.info = run_json.read(opened.folder) or opened.info
        opened.info["failure"] = {"notebook": step.name, **failure._asdict()}
        storage.write_json(opened.folder / "run.json", opened.info)
        opened.note(step.name, status="failed", seconds=seconds)
        status.end("failed")
        raise RunFailed(
            f"{step.name}, cell {failure.cell}: {failure.error} (see {storage.relpath(output)}); "
            "finished notebooks are kept; continue with medkit run --resume, without --fresh"
        )
    opened.note(step.name, status="complete", seconds=seconds)
    if step.notebook == "05_report":
        report.write_page(opened.folder)
    for adapter in set(step.writes) & set(_ADAPTERS):
        models.remove_checkpoints(opened.folder / Path(adapter).parent)
    peaks = {"peak_memory_gb": "", "peak_gpu_memory_gb": " of GPU"}
    entry = opened.info["notebooks"][step.name]
    used = [f"{entry[key]:.2f} GB{kind}" for key, kind in peaks.items() if entry.get(key)]
    status.end("complete" + (f"  peak memory {', '.join(used)}" if used else ""))


def _select(steps: Sequence[Step], only: Sequence[str]) -> list[Step]:
    numbers = dict.fromkeys(step.number for step in steps)
    for number in only:
        if number not in numbers:
            raise MedkitError(f"--only {number} is not a notebook; choose from {', '.join(numbers)}")
    return [step for step in steps if not only or step.number in only]


def _check_replaceable(run_folder: Path) -> None:
    """Raise MedkitError if the folder has files but no run. Not even --fresh may remove these."""
    if (run_folder / "run.json").exists() or not run_folder.exists():
        return
    if run_folder.is_file() or any(run_folder.iterdir()):
        raise MedkitError(
            f"{storage.relpath(run_folder)} is not a run and not empty; move it or choose another --run"
        )


def _previous_run(run_folder: Path, description: dict, resume: bool, only: bool) -> dict | None:
    """run.json of the run to continue, or None. Raises MedkitError if it has other settings."""
    info = run_json.read(run_folder)
    if info is None:
        if resume:
            raise MedkitError(f"{storage.relpath(run_folder)} contains no run to resume; omit --resume")
        return None
    if not (resume or only):
        state, fix = "an unfinished run", "continue it with --resume, replace it with --fresh"
        if info["status"] == "complete":
            state, fix = "a complete run", "replace it with --fresh"
        raise MedkitError(
            f"{storage.relpath(run_folder)} contains {state}; {fix}, or choose another name with --run"
        )
    run_json.check_same(run_folder, info, description)
    return info


def _record_resumption(info: dict, description: dict) -> None:
    """Note in run.json when, where and with which versions the run continues."""
    for entry in info["notebooks"].values():
        if entry["status"] == "running":  # we hold the lock, so its process has ended
            entry["status"] = "failed"
    resumption = {key: description[key] for key in ("started", "git", "versions", "hardware")}
    info.setdefault("continued", []).append(resumption)


def _finished(run_folder: Path, info: dict | None) -> set[str]:
    """Names of the complete notebooks with an executed copy."""
    return {
        name
        for name, entry in (info or {}).get("notebooks", {}).items()
        if entry["status"] == "complete" and (run_folder / "notebooks" / f"{name}.ipynb").exists()
    }


def _check_needs(run_folder: Path, steps: Sequence[Step], fresh: bool, joint: bool) -> None:
    """Raise MedkitError unless the files each step needs exist or an earlier step writes them."""
    written: set[str] = set()
    for step in steps:
        needed = [name for name in step.needs if name not in written]
        if joint:  # one stage trains on everything, so stage 1 may be missing
            needed = [name for name in needed if not name.startswith("stage1/")]
        if fresh and needed:
            raise MedkitError(f"{step.name} needs {needed[0]}, which --fresh removes; omit --fresh or --only")
        storage.require(run_folder, needed)
        written.update(step.writes)


def _remove(run_folder: Path) -> None:
    """Rename the old run in one step, so that it is never half deleted, and then delete it."""
    for leftover in run_folder.parent.glob(f".{run_folder.name}.old-*"):
        shutil.rmtree(leftover)
    if run_folder.exists():
        old = run_folder.with_name(f".{run_folder.name}.old-{os.getpid()}")
        run_folder.rename(old)
        shutil.rmtree(old)


@contextlib.contextmanager
def _environment(offline: bool):
    """The kernels' environment variables, in addition to this process's."""
    with tempfile.TemporaryDirectory(prefix="medkit-") as scratch:
        environment = {
            "MEDKIT_RUNNER": str(os.getpid()),
            "MEDKIT_RESULTS": str(storage.root()),
            "PYTHONPATH": os.pathsep.join(
                filter(None, (str(machine.CHECKOUT), os.environ.get("PYTHONPATH")))
            ),
            "IPYTHONDIR": f"{scratch}/ipython",  # without the user's start-up files
            # Unsloth imports the code it compiles from here. The default is the working folder.
            "UNSLOTH_COMPILE_LOCATION": f"{scratch}/unsloth",
            # tqdm detects Spyder by such a variable and draws text bars. Elsewhere it draws widgets, which
            # neither a terminal nor a log can show.
            "SPYDER_TEXT_BARS": "1",
        }
        if offline:
            environment |= hub.OFFLINE
        yield environment
