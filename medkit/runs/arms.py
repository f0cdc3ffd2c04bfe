"""The arms of the study: the models that a run trains and compares."""

from dataclasses import dataclass
from pathlib import Path

from medkit import MedkitError
from medkit.recipes import Recipe

ADAPTER = "adapter/adapter_model.safetensors"


class ArmError(MedkitError):
    """An unknown arm."""


@dataclass(frozen=True)
class Arm:
    id: str  # in mcq/items.csv, consumer/answers.jsonl and the summaries
    title: str  # in tables, figures and texts
    folder: str = ""  # in the run's folder, with adapter, loss.csv and checkpoints; "" for the base
    notebook: str = ""  # its entry in run.json

    @property
    def stage(self) -> str:
        """The part of the recipe that applies: "stage1" or "stage2"; "" for the base."""
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
    """A model's name in tables and figures; that of a model outside the study is unchanged."""
    return ARMS[name].title if name in ARMS else name


def of_folder(folder: str) -> Arm:
    """The arm of a folder; KeyError where there is none."""
    return {arm.folder: arm for arm in ARMS.values()}[folder]


def required(recipe: Recipe) -> list[str]:
    """The arms that a run of the recipe must have. The control arm is compared if it was trained, and so is
    Med-Mix beside a joint stage."""
    optional = {"control": True, "med-mix": recipe.dmt.handover == "joint"}
    optional["relearned"] = not recipe.dmt.relearn_steps
    return [name for name in ARMS if not optional.get(name)]


def present(place: Path, recipe: Recipe) -> list[str]:
    """The arms that a run compares: the required ones, and others that were trained."""
    return [name for name in ARMS if name in required(recipe) or trained(place, name)]


def prerequisites(notebook: str, recipe: Recipe) -> list[str]:
    """The files that a training notebook needs: in stage 2 stage 1's adapter, unless it is a joint stage."""
    later = [arm.notebook for arm in ARMS.values() if arm.stage == "stage2"]
    return adapter_files("med-mix") if notebook in later and recipe.dmt.handover != "joint" else []


def trained(place: Path, name: str) -> bool:
    """Whether the arm's adapter is in the run's folder; of the base, True."""
    arm = ARMS[name]
    return not arm.folder or (place / arm.adapter).is_file()


def adapter_files(*names: str) -> list[str]:
    """The files of a run that these arms are loaded from; ArmError for an unknown arm."""
    if unknown := [name for name in names if name not in ARMS]:
        raise ArmError(f"a run has no arm {unknown[0]!r}; its arms are {', '.join(ARMS)}")
    return [ARMS[name].adapter for name in names if ARMS[name].folder]
