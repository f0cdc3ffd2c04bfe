"""What a sweep's missing trials may take: hours, and room on the disk."""

import tempfile
from pathlib import Path
from statistics import fmean

from medkit.pipeline.sweep_file import Trial
from medkit.preflight import checks, estimate
from medkit.runs import machine
from medkit.train import models
from medkit.train.stages import tokenize

NOTEBOOKS_GB = 0.005  # a run's executed notebooks, figures and items


def lines(plan, missing: list[Trial], free: int) -> list[str]:
    """Two lines. plan: sweep.Plan; free: bytes."""
    stages = sum(trial.name in plan.stages for trial in missing)
    head = f"to do: {stages} stage 1, {len(missing) - stages} trials"
    sizes = [disk(trial, trial.name in plan.stages) for trial in missing]
    needed = sum(size["left"] for size in sizes) + max((size["checkpoints"] for size in sizes), default=0.0)
    return [f"{head}; {hours(plan, missing)}", f"disk: {needed:.2g} GB of {free / 1e9:.0f} GB free"]


def disk(trial: Trial, is_stage1: bool) -> dict[str, float]:
    """10^9 bytes of a run: what it leaves, and its checkpoints, which go when it is complete. A trial's
    stage 1 is that of the shared run, by another name."""
    shape = checks.base_shape(trial.recipe.model.base) or estimate.LLAMA_8B
    parts = estimate.disk(shape, trial.recipe, tokens=0)
    merged = parts["merged model"] if is_stage1 else 0.0
    return {"left": parts["adapters"] / 3 + merged + NOTEBOOKS_GB, "checkpoints": parts["checkpoints"]}


def hours(plan, missing: list[Trial]) -> str:
    """Of all missing runs one after another: by the sweep's finished runs of the same kind; without any, of
    the training alone, by arithmetic on a sample of the rows (preflight.estimate)."""
    known: dict[bool, list[float]] = {True: [], False: []}
    for name, info in plan.outcomes.items():
        if info:
            known[name in plan.stages].append(seconds(info, name in plan.stages))
    if not missing:
        return "nothing to run"
    if all(known[trial.name in plan.stages] for trial in missing):
        total = sum(fmean(known[trial.name in plan.stages]) for trial in missing)
        return f"about {total / 3600:.2g} h one after another, as the finished ones took"
    by_arm: dict[str, list[estimate.Plan]] = {}  # seeds do not change the arithmetic: once an arm
    total, basis = 0.0, ""
    for trial in missing:
        is_stage1 = trial.name in plan.stages
        arm = trial.name.removesuffix(f"-s{trial.seed}")
        if arm not in by_arm:
            by_arm[arm] = _training(trial, is_stage1, plan.data_dir)
        for stage_plan in by_arm[arm]:
            if stage_plan.hours is None:
                return f"hours unknown ({stage_plan.basis})"
            total, basis = total + stage_plan.hours, stage_plan.basis
    return f"about {total:.2g} h one after another in training alone ({basis}); evaluation comes on top"


def _training(trial: Trial, is_stage1: bool, data_dir: str) -> list[estimate.Plan]:
    """The stages that the run trains: its stage 1 or its stage 2; a joint arm has the rows of both."""
    wanted = ("stage1",) if is_stage1 else ("stage2",) if trial.stage1 else ("stage1", "stage2")
    shape = checks.base_shape(trial.recipe.model.base) or estimate.LLAMA_8B
    hardware, plans = machine.hardware(), []
    with tempfile.TemporaryDirectory() as scratch:
        _, loaded = checks.read_sources(trial.recipe, data_dir, Path(scratch))
        tokenizer = models.load_tokenizer(trial.recipe.model)
        for stage, records, total, validation in checks.stage_samples(trial.recipe, loaded, data_dir):
            if stage in wanted:
                cache = {"cache": Path(scratch), "progress": False}
                prepared = tokenize(trial.recipe, stage, tokenizer, records, **cache)
                tokens = total * fmean(prepared["length"])
                plans.append(estimate.plan(trial.recipe, stage, shape, total, tokens, validation, hardware))
    return plans


def seconds(info: dict, is_stage1: bool) -> float:
    """What a run took, from its run.json; a trial's shared stage 1 is not its own time."""
    entries = (entry for name, entry in info["notebooks"].items() if is_stage1 or name != "01_stage1")
    return sum(entry.get("seconds", 0.0) for entry in entries)
