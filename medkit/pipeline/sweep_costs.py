"""What a sweep's missing trials may take: hours, and room on the disk."""

from statistics import fmean

from medkit.pipeline.sweep_file import Trial
from medkit.preflight import checks, estimate

NOTEBOOKS_GB = 0.005  # a run's executed notebooks, figures and items


def lines(plan, missing: list[Trial], free: int) -> list[str]:
    """Two lines. plan: sweep.Plan; free: bytes."""
    stages = sum(one.name in plan.stages for one in missing)
    head = f"to do: {stages} stage 1, {len(missing) - stages} trials"
    needed = sum(disk(one, one.name in plan.stages) for one in missing)
    return [f"{head}; {hours(plan, missing)}", f"disk: {needed:.2g} GB of {free / 1e9:.0f} GB free"]


def disk(one: Trial, is_stage1: bool) -> float:
    """10^9 bytes that a run leaves, with the checkpoints that it has on the way. A trial's stage 1 is that of
    the shared run, by another name."""
    shape = checks.base_shape(one.recipe.model.base) or estimate.LLAMA_8B
    parts = estimate.disk(shape, one.recipe, tokens=0)
    merged = parts["merged model"] if is_stage1 else 0.0
    return parts["adapters"] / 3 + parts["checkpoints"] + merged + NOTEBOOKS_GB


def hours(plan, missing: list[Trial]) -> str:
    """Mean hours of the sweep's finished runs of the same kind; else the training's, by arithmetic."""
    known: dict[bool, list[float]] = {True: [], False: []}
    for name, info in plan.outcomes.items():
        if info:
            known[name in plan.stages].append(seconds(info, name in plan.stages))
    if not missing:
        return "nothing to run"
    if all(known[one.name in plan.stages] for one in missing):
        total = sum(fmean(known[one.name in plan.stages]) for one in missing)
        return f"about {total / 3600:.2g} h one after another (as the finished ones took)"
    return "hours unknown until a stage 1 and a trial are finished"


def seconds(info: dict, is_stage1: bool) -> float:
    """What a run took, from its run.json; a trial's shared stage 1 is not its own time."""
    own = (entry for name, entry in info["notebooks"].items() if is_stage1 or name != "01_stage1")
    return sum(entry.get("seconds", 0.0) for entry in own)
