"""The arms of the study: the models that a run trains and compares."""

from dataclasses import dataclass
from pathlib import Path

from medkit import MedkitError
from medkit.recipes import Recipe

ADAPTER = "adapter/adapter_model.safetensors"


@dataclass(frozen=True)
class Arm:
    id: str  # in mcq/items.csv, consumer/answers.jsonl and the summaries
    title: str  # in tables, figures and texts
    folder: str = ""  # subfolder of the run, with adapter, loss.csv and checkpoints; "" for the base
    notebook: str = ""  # its entry in run.json

    @property
    def stage(self) -> str:
        """The section of the recipe that applies: "stage1" or "stage2"; "" for the base."""
        return self.folder.partition("_")[0]

    @property
    def adapter(self) -> str:
        """The path of its weights, relative to the run's folder."""
        return f"{self.folder}/{ADAPTER}"


ARMS = {
    arm.id: arm
    for arm in (
        Arm("base", "base"),
        Arm("med-mix", "Med-Mix", "stage1", "01_stage1"),
        Arm("med-nirvana", "Med-Nirvana", "stage2", "02_stage2"),
        Arm("control", "control (no replay)", "stage2_noreplay", "02_stage2_noreplay"),
        Arm("relearned", "Med-Nirvana, relearned", "stage2_relearned", "02_stage2"),
    )
}


def title(name: str) -> str:
    """A model's name in tables and figures. Models outside the study keep their names."""
    return ARMS[name].title if name in ARMS else name


def of_folder(folder: str) -> Arm:
    """The arm that `folder` belongs to; KeyError if there is none."""
    return {arm.folder: arm for arm in ARMS.values()}[folder]


def required(recipe: Recipe) -> list[str]:
    """The arms that every run of the recipe has. The control arm is optional, and so is Med-Mix if stage 2 is
    a joint stage."""
    optional = {"control"}
    if recipe.dmt.handover == "joint":
        optional.add("med-mix")
    if not recipe.dmt.relearn_steps:
        optional.add("relearned")
    return [name for name in ARMS if name not in optional]


def present(run_folder: Path, recipe: Recipe) -> list[str]:
    """The arms that a run compares: the required ones, and optional ones that were trained."""
    return [name for name in ARMS if name in required(recipe) or is_trained(run_folder, name)]


def prerequisites(notebook: str, recipe: Recipe) -> list[str]:
    """The files that a training notebook needs: stage 1's adapter in stage 2, unless it is a joint stage."""
    stage2_notebooks = [arm.notebook for arm in ARMS.values() if arm.stage == "stage2"]
    return adapter_files("med-mix") if notebook in stage2_notebooks and recipe.dmt.handover != "joint" else []


def is_trained(run_folder: Path, name: str) -> bool:
    """Whether the arm's adapter is in the run's folder; always true for the base."""
    arm = ARMS[name]
    return not arm.folder or (run_folder / arm.adapter).is_file()


def adapter_files(*names: str) -> list[str]:
    """The adapter weights of these arms, relative to the run's folder; MedkitError for an unknown arm."""
    if unknown := [name for name in names if name not in ARMS]:
        raise MedkitError(f"a run has no arm {unknown[0]!r}; its arms are {', '.join(ARMS)}")
    return [ARMS[name].adapter for name in names if ARMS[name].folder]
