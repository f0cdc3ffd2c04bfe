"""`medkit sweep`: executes the missing trials of a sweep.

results/NAME/trials/ has the runs of the trials. results/NAME/outcomes/ has the files that the study reads;
another machine needs nothing else to continue the sweep.
"""

import sys
import time
from pathlib import Path
from statistics import fmean

from medkit import MedkitError, recipes
from medkit.pipeline import engines, runner, sweep_costs, sweep_file, trials
from medkit.pipeline.status import minutes
from medkit.pipeline.sweep_file import Sweep, Trial
from medkit.pipeline.trials import Job
from medkit.preflight import inputs
from medkit.runs import machine, run_json, storage
from medkit.runs.inputs import check_data_dir


class Plan:
    """Which of a sweep's trials are done, and which are to be executed on this machine."""

    def __init__(self, sweep: Sweep, data_dir: str = "", notebook_folder: Path = runner.NOTEBOOK_FOLDER):
        self.sweep, self.data_dir, self.notebook_folder = sweep, data_dir, notebook_folder
        self.folder = storage.root() / sweep.name
        self.by_name = {trial.name: trial for trial in sweep.trials}
        self.stages = {trial.stage1 for trial in sweep.trials} - {""}  # names of the shared stages 1
        self.outcomes = {trial.name: self.read_outcome(trial) for trial in sweep.trials}

    def read_outcome(self, trial: Trial) -> dict | None:
        """run.json of a finished trial; None if there is none. Raises MedkitError if its settings differ."""
        folder = trials.outcome_folder(self.folder, trial.name)
        info = run_json.read(folder)
        if info is None:
            return None
        # Fields that are newer than the outcome get their defaults.
        finished, planned = recipes.flat(recipes.from_dict(info["recipe"])), recipes.flat(trial.recipe)
        for field in planned.keys() - {"about"}:
            if finished[field] != planned[field]:
                raise MedkitError(
                    f"{storage.relpath(folder)} was run with {field}={finished[field]}, the sweep has "
                    f"{planned[field]}; give the sweep another name, or remove that folder"
                )
        return info

    def job(self, trial: Trial) -> Job:
        return Job(
            sweep=str(self.folder),
            recipe=self.sweep.recipe,
            name=trial.name,
            settings=tuple(trial.lines),
            stage1=trial.stage1,
            is_stage1=trial.name in self.stages,
            measure=self.sweep.measure,
            data_dir=self.data_dir and str(Path(self.data_dir).expanduser().resolve()),
            about={"arm": trial.arm, "seed": trial.seed, "axes": trial.axes},
            notebooks=str(self.notebook_folder),
        )

    def _local_hash(self, stage1: str) -> str:
        """Hash of a finished stage 1's adapter on this machine; "" if there is none."""
        run_folder = trials.trials_folder(self.folder) / stage1
        info = run_json.read(run_folder)
        return trials.adapter_hash(run_folder) if info and info["status"] == "complete" else ""

    def stage1_hash(self, stage1: str) -> str:
        """Hash of a stage 1's adapter on this machine, else the one recorded in its outcome."""
        recorded = (self.outcomes[stage1] or {}).get("trial") or {}
        return self._local_hash(stage1) or recorded.get("stage1_adapter", "")

    def can_continue_from(self, stage1: str) -> bool:
        """Whether a stage 1 is complete, with its adapter on this machine."""
        return self.outcomes[stage1] is not None and bool(self._local_hash(stage1))

    def done(self, trial: Trial) -> bool:
        """Whether the trial has an outcome, and continued from the current stage 1 if it has one."""
        info = self.outcomes[trial.name]
        if info is None or not trial.stage1:
            return info is not None
        return info["trial"]["stage1_adapter"] == self.stage1_hash(trial.stage1)

    def description(self) -> dict:
        """The content of outcomes/sweep.json, from which the study knows which trials are missing."""
        listed = [
            {"name": trial.name, "arm": trial.arm, "seed": trial.seed, "is_stage1": trial.name in self.stages}
            for trial in self.sweep.trials
        ]
        return {"name": self.sweep.name, "recipe": self.sweep.recipe, "trials": listed}

    def missing(self) -> list[Trial]:
        """The trials to execute, in order. A stage 1 is missing if its outcome is, or if a missing trial
        needs its adapter on this machine."""
        missing = [t for t in self.sweep.trials if t.name not in self.stages and not self.done(t)]
        names = {trial.name for trial in missing}
        names |= {t.stage1 for t in missing if t.stage1 and not self.can_continue_from(t.stage1)}
        names |= {name for name in self.stages if self.outcomes[name] is None}
        return [trial for trial in self.sweep.trials if trial.name in names]


def run(
    path: str,
    *,
    resume: bool = False,
    engine: str = "local",
    data_dir: str = "",
    notebook_folder: Path = runner.NOTEBOOK_FOLDER,
    out=None,
) -> int:
    """Execute the missing trials of the sweep in `path`.

    Returns 0, or 1 if a trial failed or a signal stopped the sweep. Raises MedkitError before anything is
    written if the sweep, its data or an earlier sweep of its name does not allow it.
    """
    out = out or sys.stderr
    plan = Plan(sweep_file.read(path), data_dir, notebook_folder)
    check(plan, resume)
    with engines.choose(engine, plan.sweep.cpus) as executor, storage.lock(plan.folder):
        missing, total = plan.missing(), len(plan.sweep.trials)
        storage.write_json(plan.folder / "outcomes" / "sweep.json", plan.description())
        print(f"{storage.relpath(plan.folder)}: {total} runs, {len(missing)} to do", file=out)
        failed = _Execution(plan, executor, out).run(missing)
    if failed is None:
        print(f"stopped; continue with medkit sweep {path} --resume", file=out)
        return 1
    for name, reason in failed.items():
        print(f"failed: {name}: {reason}", file=out)
    return 1 if failed else 0


def check(plan: Plan, resume: bool) -> None:
    """Raise MedkitError for anything that would make a trial fail later."""
    storage.check_not_committed(plan.folder)
    machine.check_writable(storage.root(), "MEDKIT_RESULTS")
    check_data_dir(plan.data_dir)
    folders = (plan.folder / "outcomes", trials.trials_folder(plan.folder))
    if not resume and any(folder.is_dir() and any(folder.iterdir()) for folder in folders):
        raise MedkitError(
            f"{storage.relpath(plan.folder)} contains a sweep; continue it with --resume, or choose another "
            "name"
        )
    by_inputs: dict[tuple, recipes.Recipe] = {}  # the same inputs are checked only once
    placeholders = dict.fromkeys(("recipe", "run_dir", "data_dir", "settings"), "")
    for trial in plan.sweep.trials:
        steps = trials.steps(plan.job(trial))
        runner.step_parameters(steps, plan.notebook_folder, placeholders)
        parts, recipe = tuple(part for step in steps for part in step.reads), trial.recipe
        by_inputs[recipe.model, recipe.data, recipe.consumer.scorer, parts] = recipe
    for (*_, parts), recipe in by_inputs.items():
        inputs.check(recipe, plan.data_dir, parts)


class _Execution:
    """A running sweep: which trials may start, which have ended, and how long the others may take."""

    def __init__(self, plan: Plan, engine, out):
        self.plan, self.engine, self.out = plan, engine, out
        self.rank = {trial.name: rank for rank, trial in enumerate(plan.sweep.trials)}
        self.seconds = sweep_costs.durations(plan)
        self.submitted: dict[str, float] = {}  # trial -> time
        self.last_end = 0.0
        self.failed: dict[str, str] = {}  # trial -> reason

    def run(self, missing: list[Trial]) -> dict[str, str] | None:
        """Returns the failed trials with the reason; None if a signal stopped the sweep."""
        self.remaining = {trial.name for trial in missing}
        for trial in missing:
            if trial.stage1 not in self.remaining:
                self._submit(trial)
        try:
            while self.submitted:
                self._finish(*self.engine.next())
        except engines.Stopped:
            return None
        return self.failed

    def _submit(self, trial: Trial) -> None:
        self.submitted[trial.name] = time.monotonic()
        self.remaining.add(trial.name)
        self.engine.submit(self.rank[trial.name], self.plan.job(trial))

    def _finish(self, job: Job, failure: str) -> None:
        start = self.submitted.pop(job.name)
        if self.engine.at_once == 1:  # submitted trials wait until the previous one ends
            start = max(start, self.last_end)
        self.last_end = time.monotonic()
        self.remaining.discard(job.name)
        self.plan.outcomes[job.name] = self.plan.read_outcome(self.plan.by_name[job.name])
        if failure:
            self.failed[job.name] = failure
        else:
            self.seconds[job.is_stage1].append(self.last_end - start)
        if job.is_stage1:
            self._after_stage1(job.name, failure)
        state = "failed" if failure else "complete"
        print(f"{job.name:<22} {minutes(self.last_end - start)}  {state}  {self._time_left()}", file=self.out)

    def _after_stage1(self, name: str, failure: str) -> None:
        """Submit the trials that continue from this stage 1, or mark them as failed."""
        followers = [t for t in self.plan.sweep.trials if t.stage1 == name and t.name not in self.submitted]
        if failure:
            for trial in followers:
                if trial.name in self.remaining:
                    self.failed[trial.name] = f"{name}, which it continues from, failed"
                    self.remaining.discard(trial.name)
            return
        outdated = [t for t in followers if t.name not in self.remaining and not self.plan.done(t)]
        if outdated:
            print(
                f"{name} differs from the one that {len(outdated)} finished trials continued from; they are "
                "repeated",
                file=self.out,
            )
        for trial in followers:
            if self.plan.done(trial):
                self.remaining.discard(trial.name)
            else:
                self._submit(trial)

    def _time_left(self) -> str:
        total = len(self.plan.sweep.trials)
        progress = f"{total - len(self.remaining)} of {total}"
        durations = [self.seconds[name in self.plan.stages] for name in self.remaining]
        if not self.remaining or not all(durations):
            return progress
        seconds = sum(map(fmean, durations)) / min(self.engine.at_once, len(self.remaining))
        return f"{progress}, about {minutes(seconds).strip()} left"


def dry_run(path: str, data_dir: str = "", notebook_folder: Path = runner.NOTEBOOK_FOLDER) -> str:
    """The trials with their settings, hours and disk space, as text. Executes nothing."""
    plan = Plan(sweep_file.read(path), data_dir, notebook_folder)
    check(plan, resume=True)
    missing, sweep = plan.missing(), plan.sweep
    common = set.intersection(*(set(t.lines) for t in sweep.trials if t.name not in plan.stages))
    lines = [f"{sweep.name}: recipe {sweep.recipe}; every trial: {', '.join(sorted(common))}"]
    for trial in sweep.trials:
        settings = [line for line in trial.lines if line not in common]
        state = "to do" if trial in missing else "done"
        source = f" from {trial.stage1}" if trial.stage1 else ""
        lines.append(f"  {trial.name:<26} {state:<6}{source}  {' '.join(settings)}")
    return "\n".join([*lines, *sweep_costs.lines(plan, missing)])
