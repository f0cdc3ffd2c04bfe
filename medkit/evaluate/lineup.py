"""The models that a run compares. They share a base that is loaded once; adapters are switched.

A model's identity is a hash of its weights (base, adapter, dtype, quantization), so that stored results of
one model are never used for another.
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

    name: str  # in mcq/items.csv and the tables
    spec: ModelSpec  # the base
    adapter: Path | None = None  # adapter folder; None for the base itself
    labels: tuple[str, str] = ("", "")  # base and adapter in tables, without local paths


@dataclass(frozen=True)
class Active:
    """One loaded model."""

    name: str
    model: Any
    tokenizer: Any
    identity: str  # 32 hexadecimal digits


class Lineup:
    """The models of a comparison, in order. Iterating yields each one as Active while it is loaded.

    A base is loaded when first needed and freed when a member needs another one (after handover "merge", the
    stage-2 arms have a merged base).
    """

    def __init__(self, members: Sequence[Member]):
        self.members = {member.name: member for member in members}
        self._loaded: ModelSpec | None = None
        self._base_changed = False  # whether an adapter has replaced modules of the base
        self._model = self._tokenizer = None

    def __iter__(self) -> Iterator[Active]:
        for name in self.members:
            with self.as_model(name) as active:
                yield active

    @contextmanager
    def as_model(self, name: str) -> Iterator[Active]:
        """Context manager: the member `name`, loaded, in evaluation mode and with a key-value cache.

        Raises AdapterError if an adapter does not fit its base.
        """
        if name not in self.members:
            raise MedkitError(f"no model {name!r} in this comparison; it has {', '.join(self.members)}")
        member = self.members[name]
        model = self._with_adapter(member)
        with training.for_inference(model):
            yield Active(name, model, self._tokenizer, identity(member, model))

    def table(self) -> pd.DataFrame:
        """Base and adapter of each member."""
        rows = {
            member.name: {"base": member.labels[0], "adapter": member.labels[1] or "none"}
            for member in self.members.values()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def close(self) -> None:
        """Free the base."""
        self._loaded = self._model = self._tokenizer = None
        self._base_changed = False
        gc.collect()
        if cpu.on_gpu():
            import torch

            torch.cuda.empty_cache()

    def _with_adapter(self, member: Member):
        if self._loaded != member.spec or self._base_changed:
            self.close()
            self._model, self._tokenizer = training.load(member.spec)
            self._loaded = member.spec
        self._model = adapters.detach(self._model)
        if member.adapter is not None:
            self._base_changed = adapters.replaces_modules(member.adapter)
            try:
                self._model = adapters.attach(self._model, member.adapter)
            except adapters.AdapterError:
                self.close()  # a partly loaded adapter must not affect the next member
                raise
        return self._model


def arm_names(arms: str) -> list[str]:
    """Parse a comma-separated list such as "base, med-mix"."""
    storage.check_text("arms", arms)
    return [name.strip() for name in arms.split(",") if name.strip()]


def of_run(run: Run, names: Sequence[str] = ()) -> Lineup:
    """The arms `names` of a run, in that order; by default the required arms and others that were trained.

    Raises ResultsError, naming the notebook to run, if an arm has not been trained, and MedkitError for an
    unknown arm.
    """
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


def single(run: Run, model: str, adapter: str = "") -> Lineup:
    """A single model (Hub id, folder, "smollm2") with an optional adapter folder."""
    name = Path(model).name + (f" + {Path(adapter).name}" if adapter else "")
    folder = Path(adapter).expanduser().resolve() if adapter else None
    if folder:
        adapters.read_config(folder)  # raises AdapterError before the model is loaded
    labels = (Path(model).name if Path(model).is_dir() else model, Path(adapter).name)
    return Lineup([Member(name, replace(run.recipe.model, base=model), folder, labels)])


def identity(member: Member, model) -> str:
    """Hash of the files of base and adapter (for a Hub id, of its commit) and of their dtype in memory."""
    files = identities.of_model(
        training.base_folder(member.spec.base), member.adapter or "", member.spec.revision
    )
    dtype = [member.spec.load_in_4bit, str(letter_scoring.compute_dtype(model))]
    return hashlib.sha256(repr([files, *dtype]).encode()).hexdigest()[:32]
