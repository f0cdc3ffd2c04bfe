"""medkit: two-stage QLoRA of a medical chat model, from rows to tables, in numbered notebooks."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


class MedkitError(ValueError):
    """Base of all refusals: one line that names what is wrong and, after "; ", the fix."""

    def problem_and_fix(self) -> tuple[str, str]:
        """(what is wrong, fix)."""
        thing, _, fix = str(self).rpartition("; ")
        return (thing, fix) if thing else (fix, "")


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


# The only thing that happens at import: switches that the libraries read when they are imported in turn.
# What the user has set already is kept.
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # a file that each model load fetches, to be counted
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # huggingface_hub, transformers and TRL's trainer
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # datasets
os.environ.setdefault("DO_NOT_TRACK", "1")  # huggingface_hub and whatever else honours it
# A token is taken from the environment only: what a login left on this machine is not sent.
if not os.environ.get("HF_TOKEN") and not os.environ.get("HUGGING_FACE_HUB_TOKEN"):
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
# On a CPU PyTorch keeps a compiled kernel for each shape of a product, 1,024 by default. Batches differ in
# length, and that grew to a gigabyte; 64 are enough for a layer.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def lazy_exports(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: names in `homes` are loaded from their module, or MODULE.NAME, when first
    asked for, and its modules by their own names. Importing the package loads none."""

    def find(name: str) -> Any:
        module, _, its_name = homes.get(name, name).partition(".")
        if name not in homes and find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        loaded = import_module(f"{package}.{module}")
        return getattr(loaded, its_name or name) if name in homes else loaded

    return find
