"""The models a run compares, on one base loaded once: each is an adapter switched in, or none.

A model's identity distinguishes its weights from all others (base, adapter, dtype, quantization), so that
what is stored of one model can never be read for another.
"""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medkit import MedkitError
from medkit.evaluate import letter_scoring
from medkit.recipes import ModelSpec
from medkit.runs import arms, storage
from medkit.runs.run_json import Run
from medkit.train import adapters, cpu, identities
from medkit.train import models as training


@dataclass(frozen=True)
class Member:
    """One model before it is loaded."""

    name: str  # as mcq/items.csv and the tables call it
    spec: ModelSpec  # its base
    adapter: Path | None = None  # folder of its adapter; None is the base itself
    shown: tuple[str, str] = ("", "")  # base and adapter in tables, without this machine's paths


@dataclass(frozen=True)
class Active:
    """One model as it answers."""

    name: str
    model: Any
    tokenizer: Any
    identity: str  # 32 hexadecimal digits


class Lineup:
    """The models of a comparison, in order. Iterating gives each as Active while it is switched in.

    A base is loaded when a member first needs it, and freed when a member needs another ("merge" puts the
    stage-2 arms on a base of their own).
    """

    def __init__(self, members: Sequence[Member]):
        self.members = {member.name: member for member in members}
        self._loaded: ModelSpec | None = None
        self._replaced = False  # whether an adapter has left weights of its own in the base
        self._model = self._tokenizer = None

    def __iter__(self) -> Iterator[Active]:
        for name in self.members:
            with self.as_model(name) as active:
                yield active

    @contextmanager
    def as_model(self, name: str) -> Iterator[Active]:
        """The member `name`, in evaluation mode and with a key-value cache, as long as the context lasts.
        Raises AdapterError where an adapter does not fit its base."""
        if name not in self.members:
            raise MedkitError(f"no model {name!r} in this comparison; it has {', '.join(self.members)}")
        member = self.members[name]
        model = self._with_adapter(member)
        with training.for_inference(model):
            yield Active(name, model, self._tokenizer, identity(member, model))

    def table(self) -> pd.DataFrame:
        """Base and adapter of each member."""
        rows = {m.name: {"base": m.shown[0], "adapter": m.shown[1] or "none"} for m in self.members.values()}
        return pd.DataFrame.from_dict(rows, orient="index")

    def close(self) -> None:
        """Free the base."""
        self._loaded = self._model = self._tokenizer = None
        self._replaced = False
        gc.collect()
        if cpu.on_gpu():
            import torch

            torch.cuda.empty_cache()

    def _with_adapter(self, member: Member):
        if self._loaded != member.spec or self._replaced:
            self.close()
            self._model, self._tokenizer = training.load(member.spec)
            self._loaded = member.spec
        self._model = adapters.detach(self._model)
        if member.adapter is not None:
            self._replaced = adapters.replaces_modules(member.adapter)
            try:
                self._model = adapters.attach(self._model, member.adapter)
            except adapters.AdapterError:
                self.close()  # what was loaded of it must not act on the next member's answers
                raise
        return self._model


def arm_names(arms: str) -> list[str]:
    """The names in "base, med-mix"."""
    storage.check_text("arms", arms)
    return [name.strip() for name in arms.split(",") if name.strip()]


def of_run(run: Run, names: Sequence[str] = ()) -> Lineup:
    """The arms `names` of a run, in that order; ResultsError, naming the notebook to run, where one has not
    been trained, ArmError for a name that is no arm's. Without names all that are there; only the control arm
    may be missing."""
    names = names or arms.present(run.folder, run.recipe)
    needed, members = arms.adapter_files(*names), []
    for arm in map(arms.ARMS.__getitem__, names):
        spec, base = run.recipe.model, run.recipe.model.base
        if arm.stage == "stage2" and run.recipe.dmt.handover == "merge":
            needed.append("stage1/merged/config.json")
            spec, base = replace(spec, base=str(run.folder / "stage1" / "merged")), "stage1/merged"
        adapter = f"{arm.folder}/adapter" if arm.folder else ""
        members.append(Member(arm.id, spec, run.folder / adapter if adapter else None, (base, adapter)))
    storage.require(run.folder, needed)
    return Lineup(members)


def alone(run: Run, model: str, adapter: str = "") -> Lineup:
    """Any model (hub id, folder, "smollm2"), with an adapter folder or without, named after them."""
    name = Path(model).name + (f" + {Path(adapter).name}" if adapter else "")
    folder = Path(adapter).expanduser().resolve() if adapter else None
    if folder:
        adapters.read_config(folder)  # raises AdapterError before a model is loaded
    shown = (Path(model).name if Path(model).is_dir() else model, Path(adapter).name)
    return Lineup([Member(name, replace(run.recipe.model, base=model), folder, shown)])


def identity(member: Member, model) -> str:
    """Hash of the base's and the adapter's files (of a hub id: its commit) and of their form in memory."""
    files = identities.of_model(
        training.base_folder(member.spec.base), member.adapter or "", member.spec.revision
    )
    form = [member.spec.load_in_4bit, str(letter_scoring.compute_dtype(model))]
    return hashlib.sha256(repr([files, *form]).encode()).hexdigest()[:32]
