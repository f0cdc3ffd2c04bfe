"""medkit: two-stage QLoRA of a medical chat model, from rows to tables, out of numbered notebooks."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


class MedkitError(ValueError):
    """What every refusal of medkit derives from: one line that names the thing and the fix."""

    def halves(self) -> tuple[str, str]:
        """(thing, fix)."""
        thing, _, fix = str(self).rpartition("; ")
        return (thing, fix) if thing else (fix, "")


def first_line(error: BaseException) -> str:
    """What another library's error says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


# The one thing that happens at import. The libraries read these switches when they are imported
# themselves, so they have to stand before that; whoever has set one already keeps his choice.
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else each model load fetches a file, to be counted
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # huggingface_hub, transformers and TRL's trainer
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # datasets
os.environ.setdefault("DO_NOT_TRACK", "1")  # huggingface_hub and whatever else honours it
# A token comes from the environment or not at all: one that a login left on this machine is not sent.
if not os.environ.get("HF_TOKEN") and not os.environ.get("HUGGING_FACE_HUB_TOKEN"):
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
# PyTorch's products on a CPU keep a compiled kernel for each shape they meet, 1,024 of them unless told:
# batches are of ever new lengths, and that grew to a gigabyte. Those of one layer are enough.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def offered(package: str, homes: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__`: names in `homes` are loaded from their module, or MODULE.NAME, when first
    asked for, and its modules by their own names. Importing the package loads none."""

    def find(name: str) -> Any:
        module, _, its_name = homes.get(name, name).partition(".")
        if name not in homes and find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        loaded = import_module(f"{package}.{module}")
        return getattr(loaded, its_name or name) if name in homes else loaded

    return find
