"""Estimates for a sweep's missing trials: hours and disk space."""

import tempfile
from pathlib import Path
from statistics import fmean

from medkit.pipeline.sweep_file import Trial
from medkit.preflight import checks, estimate
from medkit.runs import machine
from medkit.train import models
from medkit.train.stages import tokenize

NOTEBOOKS_GB = 0.005  # a run's executed notebooks, figures and items


def lines(plan, missing: list[Trial]) -> list[str]:
    """Two lines of text. plan: sweep.Plan."""
    stages = sum(trial.name in plan.stages for trial in missing)
    counts = f"to do: {stages} stage 1, {len(missing) - stages} trials"
    sizes = [disk(trial, trial.name in plan.stages) for trial in missing]
    needed = sum(size["kept"] for size in sizes) + max((size["checkpoints"] for size in sizes), default=0.0)
    free = machine.free_disk(plan.folder) / 1e9
    return [f"{counts}; {hours(plan, missing)}", f"disk: {needed:.2g} GB of {free:.0f} GB free"]


def disk(trial: Trial, is_stage1: bool) -> dict[str, float]:
    """10^9 bytes of a run: what is kept, and the checkpoints, which are removed at its end.

    A trial's stage 1 takes no space: its files are hard links.
    """
    shape = checks.base_shape(trial.recipe.model) or estimate.LLAMA_8B
    parts = estimate.disk(shape, trial.recipe, tokens=0)
    merged = parts["merged model"] if is_stage1 else 0.0
    return {"kept": parts["adapters"] / 3 + merged + NOTEBOOKS_GB, "checkpoints": parts["checkpoints"]}


def durations(plan) -> dict[bool, list[float]]:
    """Seconds of the finished runs: stages 1 under True, the other trials under False."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for name, info in plan.outcomes.items():
        if info:
            is_stage1 = name in plan.stages  # a trial's shared stage 1 is not its own time
            entries = (e for n, e in info["notebooks"].items() if is_stage1 or n != "01_stage1")
            seconds[is_stage1].append(sum(entry.get("seconds", 0.0) for entry in entries))
    return seconds


def hours(plan, missing: list[Trial]) -> str:
    """Hours of all missing runs, one after another.

    From the finished runs of the same kind. Without these it estimates the training only, from a sample of
    the rows (preflight.estimate).
    """
    if not missing:
        return "nothing to run"
    measured = durations(plan)
    if all(measured[trial.name in plan.stages] for trial in missing):
        total = sum(fmean(measured[trial.name in plan.stages]) for trial in missing)
        return f"about {total / 3600:.2g} h one after another, as long as the finished ones"
    by_arm: dict[str, list[estimate.Plan]] = {}  # the seed does not change the estimate
    total, basis = 0.0, ""
    for trial in missing:
        arm = trial.name.removesuffix(f"-s{trial.seed}")
        if arm not in by_arm:
            by_arm[arm] = _training(trial, trial.name in plan.stages, plan.data_dir)
        for stage_plan in by_arm[arm]:
            if stage_plan.hours is None:
                return f"hours unknown ({stage_plan.basis})"
            total, basis = total + stage_plan.hours, stage_plan.basis
    return f"about {total:.2g} h one after another in training alone ({basis}), plus the evaluation"


def _training(trial: Trial, is_stage1: bool, data_dir: str) -> list[estimate.Plan]:
    """Estimates of the stages that the run trains. A joint arm trains on the rows of both stages."""
    trained = ("stage1",) if is_stage1 else ("stage2",) if trial.stage1 else ("stage1", "stage2")
    shape = checks.base_shape(trial.recipe.model) or estimate.LLAMA_8B
    hardware, plans = checks.usable_hardware(), []
    with tempfile.TemporaryDirectory() as scratch:
        _, loaded = checks.read_sources(trial.recipe, data_dir, Path(scratch))
        tokenizer = models.load_tokenizer(trial.recipe.model)
        for stage, records, total, validation in checks.stage_samples(trial.recipe, loaded, data_dir):
            if stage in trained:
                options = {"cache": Path(scratch), "progress": False}
                prepared = tokenize(trial.recipe, stage, tokenizer, records, **options)
                tokens = total * fmean(prepared["length"])
                plans.append(estimate.plan(trial.recipe, stage, shape, total, tokens, validation, hardware))
    return plans
