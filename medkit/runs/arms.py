"""The arms of the study: the models that a run trains and compares, with title, folder and notebook."""

from dataclasses import dataclass
from pathlib import Path

from medkit import MedkitError

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
    )
}


def title(name: str) -> str:
    """What a reader knows a model by; a model that is no arm of the study keeps its name."""
    return ARMS[name].title if name in ARMS else name


def of_folder(folder: str) -> Arm:
    """The arm that is trained in a folder of the run; KeyError where there is none."""
    return {arm.folder: arm for arm in ARMS.values()}[folder]


OPTIONAL = ("control",)  # compared where they have been trained; without the others there is no comparison


def trained(place: Path, name: str) -> bool:
    """Whether the arm's adapter is in the run's folder; of the base, True."""
    arm = ARMS[name]
    return not arm.folder or (place / arm.adapter).is_file()


def needs(*names: str) -> list[str]:
    """The files of a run that these of its arms are loaded from; ArmError for a name that no arm has."""
    if unknown := [name for name in names if name not in ARMS]:
        raise ArmError(f"a run has no arm {unknown[0]!r}; its arms are {', '.join(ARMS)}")
    return [ARMS[name].adapter for name in names if ARMS[name].folder]
