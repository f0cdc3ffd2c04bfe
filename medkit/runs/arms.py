"""The arms of the study: the models that a run trains and compares, with title, folder and notebook."""

from dataclasses import dataclass
from pathlib import Path

from medkit import MedkitError
from medkit.recipes import Recipe

ADAPTER = "adapter/adapter_model.safetensors"


class ArmError(MedkitError):
    """A name that no arm of the study has."""


@dataclass(frozen=True)
class Arm:
    id: str  # in mcq/items.csv, consumer/answers.jsonl and the summaries
    title: str  # in tables, figures and texts
    folder: str = ""  # of the run's folder: its adapter, loss.csv and checkpoints; "" for the base
    notebook: str = ""  # the entry of run.json under which it is trained

    @property
    def stage(self) -> str:
        """The part of the recipe that it is trained by: "stage1" or "stage2"; "" for the base."""
        return self.folder.partition("_")[0]

    @property
    def adapter(self) -> str:
        """Its weights, relative to the run's folder."""
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
    """What a reader knows a model by; a model that is no arm of the study keeps its name."""
    return ARMS[name].title if name in ARMS else name


def of_folder(folder: str) -> Arm:
    """The arm that is trained in a folder of the run; KeyError where there is none."""
    return {arm.folder: arm for arm in ARMS.values()}[folder]


def required(recipe: Recipe) -> list[str]:
    """The arms without which there is nothing to compare in a run of the recipe. The control arm is compared
    where it has been trained, and so is Med-Mix where one stage learns everything at once."""
    optional = {"control": True, "med-mix": recipe.dmt.handover == "joint"}
    optional["relearned"] = not recipe.dmt.relearn_steps
    return [name for name in ARMS if not optional.get(name)]


def present(place: Path, recipe: Recipe) -> list[str]:
    """The arms that a run compares: those it must have, and those of the others that it has trained."""
    return [name for name in ARMS if name in required(recipe) or trained(place, name)]


def begins_with(notebook: str, recipe: Recipe) -> list[str]:
    """The files of a run that a training notebook goes on from: stage 1's adapter in stage 2, unless one
    stage learns everything."""
    later = [arm.notebook for arm in ARMS.values() if arm.stage == "stage2"]
    return needs("med-mix") if notebook in later and recipe.dmt.handover != "joint" else []


def trained(place: Path, name: str) -> bool:
    """Whether the arm's adapter is in the run's folder; of the base, True."""
    arm = ARMS[name]
    return not arm.folder or (place / arm.adapter).is_file()


def needs(*names: str) -> list[str]:
    """The files of a run that these of its arms are loaded from; ArmError for a name that no arm has."""
    if unknown := [name for name in names if name not in ARMS]:
        raise ArmError(f"a run has no arm {unknown[0]!r}; its arms are {', '.join(ARMS)}")
    return [ARMS[name].adapter for name in names if ARMS[name].folder]
