"""`medkit sweep`: the trials of a sweep's file that are missing, and what is known before they start.

results/NAME/trials/ has the trials' runs; results/NAME/outcomes/ what the study reads of them, which is all
that a clone needs to go on with the sweep on another machine.
"""

import shutil
import sys
import time
from pathlib import Path
from statistics import fmean

from medkit import recipes
from medkit.pipeline import engines, runner, sweep_costs, sweep_file, trials
from medkit.pipeline.status import minutes
from medkit.pipeline.sweep_file import Sweep, SweepError, Trial
from medkit.pipeline.trials import Job
from medkit.preflight import inputs
from medkit.runs import machine, run_json, storage
from medkit.runs.inputs import check_data_dir


class Plan:
    """Which of a sweep's trials are done, and which are to be executed, here and now."""

    def __init__(self, sweep: Sweep, data_dir: str = "", notebook_folder: Path = runner.NOTEBOOK_FOLDER):
        self.sweep, self.data_dir, self.notebook_folder = sweep, data_dir, notebook_folder
        self.folder = storage.root() / sweep.name
        self.by_name = {trial.name: trial for trial in sweep.trials}
        self.stages = {trial.stage1 for trial in sweep.trials} - {""}
        self.outcomes = {trial.name: self._outcome(trial) for trial in sweep.trials}

    def _outcome(self, trial: Trial) -> dict | None:
        """run.json of a finished trial; SweepError where it is that of another trial of this name."""
        place = trials.outcome_folder(self.folder, trial.name)
        info = run_json.read(place)
        if info is None:
            return None
        # A field that has come since has its default in the finished trial: it knew no other way.
        finished, wanted = recipes.flat(recipes.from_dict(info["recipe"])), recipes.flat(trial.recipe)
        for field in wanted.keys() - {"about"}:
            if finished[field] != wanted[field]:
                raise SweepError(
                    f"{storage.relpath(place)} was run with {field}={finished[field]}, the sweep has "
                    f"{wanted[field]}; give the sweep another name, or remove that folder"
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

    def _hash_here(self, name: str) -> str:
        """Of a finished stage 1's adapter on this machine; "" for none."""
        info = run_json.read(place := trials.trials_folder(self.folder) / name)
        return trials.adapter_hash(place) if info and info["status"] == "complete" else ""

    def stage1_hash(self, name: str) -> str:
        """The same, else that of its outcome."""
        kept = (self.outcomes[name] or {}).get("trial") or {}
        return self._hash_here(name) or kept.get("stage1_adapter", "")

    def here(self, name: str) -> bool:
        """Whether a stage 1 can be gone on from on this machine."""
        return self.outcomes[name] is not None and bool(self._hash_here(name))

    def done(self, trial: Trial) -> bool:
        """Whether its outcome is there and, where it has a stage 1, is that of the stage 1 there is now."""
        info = self.outcomes[trial.name]
        if info is None or not trial.stage1:
            return info is not None
        return info["trial"]["stage1_adapter"] == self.stage1_hash(trial.stage1)

    def described(self) -> dict:
        """outcomes/sweep.json: by which the study knows what is missing."""
        listed = [
            {"name": trial.name, "arm": trial.arm, "seed": trial.seed, "is_stage1": trial.name in self.stages}
            for trial in self.sweep.trials
        ]
        return {"name": self.sweep.name, "recipe": self.sweep.recipe, "trials": listed}

    def missing(self) -> list[Trial]:
        """In order; a stage 1 only where a trial that goes on from it is missing, or its outcome is."""
        missing = [one for one in self.sweep.trials if one.name not in self.stages and not self.done(one)]
        names = {trial.name for trial in missing}
        names |= {trial.stage1 for trial in missing if not (trial.stage1 and self.here(trial.stage1))}
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
    """Execute the missing trials of the sweep in `path`; 0, or 1 where a trial failed or a signal came.

    Raises MedkitError before anything is written where the sweep, its data or an earlier sweep of its name
    refuses it.
    """
    out = out or sys.stderr
    plan = Plan(sweep_file.read(path), data_dir, notebook_folder)
    check(plan, resume)
    with engines.choose(engine, plan.sweep.cpus) as executor, storage.lock(plan.folder):
        missing = plan.missing()
        storage.write_json(plan.folder / "outcomes" / "sweep.json", plan.described())
        print(
            f"{storage.relpath(plan.folder)}: {len(plan.sweep.trials)} runs, {len(missing)} to do", file=out
        )
        failed = _Execution(plan, executor, out).run(missing)
    if failed is None:
        print(f"stopped; medkit sweep {path} --resume goes on", file=out)
        return 1
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=out)
    return 1 if failed else 0


def check(plan: Plan, resume: bool) -> None:
    """Everything that can be refused before the first trial starts."""
    storage.check_not_committed(plan.folder)
    machine.check_writable(storage.root(), "MEDKIT_RESULTS")
    check_data_dir(plan.data_dir)
    begun = any(
        place.is_dir() and any(place.iterdir())
        for place in (plan.folder / "outcomes", trials.trials_folder(plan.folder))
    )
    if begun and not resume:
        raise SweepError(
            f"{storage.relpath(plan.folder)} holds a sweep; go on with --resume, or name it otherwise"
        )
    reads: dict[tuple, tuple] = {}
    placeholders = dict.fromkeys(("recipe", "run_dir", "data_dir", "settings"), "")
    for trial in plan.sweep.trials:
        steps = trials.steps(plan.job(trial))
        runner.step_parameters(steps, plan.notebook_folder, placeholders)
        parts = tuple(part for step in steps for part in step.reads)
        reads[trial.recipe.model, trial.recipe.data, trial.recipe.consumer.scorer, parts] = (
            trial.recipe,
            parts,
        )
    for recipe, parts in reads.values():
        inputs.check(recipe, plan.data_dir, parts)


class _Execution:
    """The sweep while it runs: what may start, what has ended, and how long the rest may take."""

    def __init__(self, plan: Plan, engine, out):
        self.plan, self.engine, self.out = plan, engine, out
        self.began: dict[str, float] = {}
        self.rank = {trial.name: rank for rank, trial in enumerate(plan.sweep.trials)}
        self.seconds: dict[bool, list[float]] = {True: [], False: []}  # of a stage 1; of another trial
        for name, info in plan.outcomes.items():
            if info:
                is_stage1 = name in plan.stages
                self.seconds[is_stage1].append(sweep_costs.seconds(info, is_stage1))
        self.failed: dict[str, str] = {}

    def run(self, missing: list[Trial]) -> dict[str, str] | None:
        """Trial -> why it failed; None where a signal stopped the sweep."""
        self.left = {trial.name for trial in missing}
        pending = {trial.name for trial in missing if trial.name in self.plan.stages}
        for trial in missing:
            if trial.stage1 not in pending:
                self._submit(trial)
        try:
            while self.at_work:
                job, why = self.engine.next()
                self._ended(job, why)
        except engines.Stopped:
            return None
        return self.failed

    @property
    def at_work(self) -> int:
        return len(self.began)

    def _submit(self, trial: Trial) -> None:
        self.began[trial.name] = time.monotonic()
        self.left.add(trial.name)
        self.engine.submit(self.rank[trial.name], self.plan.job(trial))

    def _ended(self, job: Job, why: str) -> None:
        # Of an engine that runs one at a time all were submitted at once: it took since the last one ended.
        began = max(self.began.pop(job.name), getattr(self, "last", 0.0) if self.engine.at_once == 1 else 0.0)
        self.last = time.monotonic()
        self.left.discard(job.name)
        self.plan.outcomes[job.name] = self.plan._outcome(self.plan.by_name[job.name])
        if why:
            self.failed[job.name] = why
        else:
            self.seconds[job.is_stage1].append(self.last - began)
        if job.is_stage1:
            self._after_stage1(job.name, why)
        state = "failed" if why else "complete"
        print(f"{job.name:<22} {minutes(self.last - began)}  {state}  {self._time_left()}", file=self.out)

    def _after_stage1(self, name: str, why: str) -> None:
        followers = [
            trial for trial in self.plan.sweep.trials if trial.stage1 == name and trial.name not in self.began
        ]
        if why:
            for trial in followers:
                if trial.name in self.left:
                    self.failed[trial.name] = f"{name}, which it goes on from, failed"
                    self.left.discard(trial.name)
            return
        again = [trial for trial in followers if trial.name not in self.left and not self.plan.done(trial)]
        if again:
            print(
                f"{name} came out different from the one that {len(again)} finished trials went on from; "
                "they are done again",
                file=self.out,
            )
        for trial in followers:
            if self.plan.done(trial):
                self.left.discard(trial.name)
            else:
                self._submit(trial)

    def _time_left(self) -> str:
        total = len(self.plan.sweep.trials)
        progress = f"{total - len(self.left)} of {total}"
        if not self.left:
            return progress
        seconds = 0.0
        for name in self.left:
            known = self.seconds[name in self.plan.stages]
            if not known:
                return progress
            seconds += fmean(known) / min(self.engine.at_once, len(self.left))
        return f"{progress}, about {minutes(seconds).strip()} left"


def dry_run(path: str, data_dir: str = "", notebook_folder: Path = runner.NOTEBOOK_FOLDER) -> str:
    """The trials with their settings, hours and disk, as text; nothing is executed."""
    plan = Plan(sweep_file.read(path), data_dir, notebook_folder)
    check(plan, resume=True)
    missing = plan.missing()
    common = set.intersection(
        *(set(trial.lines) for trial in plan.sweep.trials if trial.name not in plan.stages)
    )
    lines = [f"{plan.sweep.name}: recipe {plan.sweep.recipe}; every trial: {', '.join(sorted(common))}"]
    for trial in plan.sweep.trials:
        settings = [line for line in trial.lines if line not in common]
        state = "to do" if trial in missing else "done"
        source = f" from {trial.stage1}" if trial.stage1 else ""
        lines.append(f"  {trial.name:<26} {state:<6}{source}  {' '.join(settings)}")
    free = shutil.disk_usage(_existing(plan.folder)).free
    return "\n".join([*lines, *sweep_costs.lines(plan, missing, free)])


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())
