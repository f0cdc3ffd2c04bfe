"""What a sweep's missing trials may take: hours, and room on the disk."""

import tempfile
from pathlib import Path
from statistics import fmean

from medkit.pipeline.sweep_file import Trial
from medkit.preflight import checks, estimate
from medkit.runs import machine
from medkit.train import models, tokenization

NOTEBOOKS_GB = 0.005  # a run's executed notebooks, figures and items


def lines(plan, missing: list[Trial], free: int) -> list[str]:
    """Two lines. plan: sweep.Plan; free: bytes."""
    stages = sum(one.name in plan.stages for one in missing)
    head = f"to do: {stages} stage 1, {len(missing) - stages} trials"
    sizes = [disk(one, one.name in plan.stages) for one in missing]
    needed = sum(one["left"] for one in sizes) + max((one["checkpoints"] for one in sizes), default=0.0)
    return [f"{head}; {hours(plan, missing)}", f"disk: {needed:.2g} GB of {free / 1e9:.0f} GB free"]


def disk(one: Trial, is_stage1: bool) -> dict[str, float]:
    """10^9 bytes of a run: what it leaves, and its checkpoints, which go when it is complete. A trial's
    stage 1 is that of the shared run, by another name."""
    shape = checks.base_shape(one.recipe.model.base) or estimate.LLAMA_8B
    parts = estimate.disk(shape, one.recipe, tokens=0)
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
    if all(known[one.name in plan.stages] for one in missing):
        total = sum(fmean(known[one.name in plan.stages]) for one in missing)
        return f"about {total / 3600:.2g} h one after another, as the finished ones took"
    found: dict[str, list[estimate.Plan]] = {}  # seeds do not change the arithmetic: once an arm
    total, basis = 0.0, ""
    for one in missing:
        is_stage1 = one.name in plan.stages
        arm = one.name.removesuffix(f"-s{one.seed}")
        if arm not in found:
            found[arm] = _training(one, is_stage1, plan.data_dir)
        for made in found[arm]:
            if made.hours is None:
                return f"hours unknown ({made.basis})"
            total, basis = total + made.hours, made.basis
    return f"about {total:.2g} h one after another in training alone ({basis}); evaluation comes on top"


def _training(one: Trial, is_stage1: bool, data_dir: str) -> list[estimate.Plan]:
    """The stages that the run trains: its stage 1 or its stage 2; a joint arm has the rows of both."""
    wanted = ("stage1",) if is_stage1 else ("stage2",) if one.stage1 else ("stage1", "stage2")
    shape = checks.base_shape(one.recipe.model.base) or estimate.LLAMA_8B
    hardware, plans = machine.hardware(), []
    with tempfile.TemporaryDirectory() as scratch:
        _, loaded = checks.read_sources(one.recipe, data_dir, Path(scratch))
        tokenizer = models.load_tokenizer(one.recipe.model)
        for stage, records, total, validation in checks.stage_samples(one.recipe, loaded, data_dir):
            if stage in wanted:
                prepared = tokenization.prepare(
                    records,
                    tokenizer,
                    target=one.recipe.data.mcq_target,
                    loss_on=getattr(one.recipe, stage).loss_on,
                    max_length=one.recipe.model.max_length,
                    cache=Path(scratch),
                    progress=False,
                )
                tokens = total * fmean(prepared["length"])
                plans.append(estimate.plan(one.recipe, stage, shape, total, tokens, validation, hardware))
    return plans


def seconds(info: dict, is_stage1: bool) -> float:
    """What a run took, from its run.json; a trial's shared stage 1 is not its own time."""
    own = (entry for name, entry in info["notebooks"].items() if is_stage1 or name != "01_stage1")
    return sum(entry.get("seconds", 0.0) for entry in own)
