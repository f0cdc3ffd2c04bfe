"""medkit: two-stage QLoRA of a medical chat model, from rows to tables, in numbered notebooks."""

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

__version__ = "0.1.0"


class MedkitError(ValueError):
    """Base class of all expected errors. The message is one line: the problem and, after "; ", the fix."""

    def problem_and_fix(self) -> tuple[str, str]:
        problem, _, fix = str(self).rpartition("; ")
        return (problem, fix) if problem else (fix, "")


def first_line(error: BaseException) -> str:
    """The first line of another library's error message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


# Libraries read these switches when they are imported. Values set by the user are kept.
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # a download per model load, for usage counts
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # huggingface_hub, transformers and TRL's trainer
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")  # datasets
os.environ.setdefault("DO_NOT_TRACK", "1")  # huggingface_hub and others
# Use a token from the environment only, never one that an earlier login stored on this machine.
if not os.environ.get("HF_TOKEN") and not os.environ.get("HUGGING_FACE_HUB_TOKEN"):
    os.environ.setdefault("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
# On a CPU PyTorch caches a compiled kernel per matrix shape, 1,024 by default. Batches differ in length, so
# the cache grew to a gigabyte; 64 kernels are enough for a layer.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def lazy_exports(package: str, modules: dict[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports nothing until a name is used.

    modules: exported name -> the module that defines it, or MODULE.NAME where it has another name there.
    Submodules of the package are available under their own names.
    """

    def load(name: str) -> Any:
        module, _, attribute = modules.get(name, name).partition(".")
        if name not in modules and find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        loaded = import_module(f"{package}.{module}")
        return getattr(loaded, attribute or name) if name in modules else loaded

    return load
