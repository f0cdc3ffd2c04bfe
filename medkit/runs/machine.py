"""What a result depends on besides its recipe: library versions, the code's commit, the machine."""

import importlib.metadata
import math
import os
import platform
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from medkit import MedkitError

CHECKOUT = Path(__file__).resolve().parents[2]

# Another version of these may change a number.
LIBRARIES = """
medkit torch transformers trl peft unsloth unsloth_zoo bitsandbytes accelerate datasets tokenizers
bert-score papermill numpy pandas scipy statsmodels scikit-learn
""".split()

# A line of nvidia-smi's CSV. Names may contain commas; an unknown value is "[N/A]" or similar.
_GPU = re.compile(r"(.+?),\s*(\d+|\[.*?\]),\s*([\d.]+|\[.*?\])\s*")


class MachineError(MedkitError):
    """A folder that is gone or cannot be written to."""


class Memory(NamedTuple):
    total: int  # bytes
    available: int  # bytes


def versions() -> dict[str, str | None]:
    """Library -> installed version, None where it is not installed; imports nothing."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def git() -> dict:
    """{"commit": ..., "modified": [paths that differ from it]}; commit None outside a checkout."""
    commit = _output("git", "-C", str(CHECKOUT), "rev-parse", "HEAD").strip()
    if not commit:
        return {"commit": None, "modified": []}
    # Results change with every run, and are not part of the code.
    status = _output("git", "-C", str(CHECKOUT), "status", "--porcelain", "--", ".", ":!results")
    return {"commit": commit, "modified": sorted(line[3:] for line in status.splitlines())}


def hardware() -> dict:
    """Processor, usable cores, memory in GiB, and each GPU with memory in GiB (None where the driver does not
    say) and driver; no host name. In a container its limits count."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(memory().total / 2**30, 1),
        "gpus": _gpus(),
    }


def _gpus() -> list[dict]:
    query = "--query-gpu=name,memory.total,driver_version"
    gpus = []
    for line in _output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines():
        if found := _GPU.fullmatch(line):  # else a message, such as "No devices were found"
            name, mebibytes, driver = found.groups()
            size = round(int(mebibytes) / 1024, 1) if mebibytes.isdigit() else None
            gpus.append({"name": name.strip(), "memory_gb": size, "driver": driver})
    return gpus


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use: those it is bound to, or fewer where its container has less time.

    root: the folder that holds proc and sys.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups(root, "cpu"):
        quota, period = (*_words(folder / "cpu.max"), "", "")[:2]  # version 2
        if not quota:  # version 1
            quota, period = ("".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            bound = min(bound, max(1, math.ceil(int(quota) / int(period))))
    return bound


def memory(root: Path = Path("/")) -> Memory:
    """Memory this process may use: the machine's, or less in a container (cgroup 1 or 2).

    Pages of files that were not used lately count as available, since the kernel frees them first.
    root: the folder that holds proc and sys. Source: docs.kernel.org, admin-guide/cgroup-v2.rst and
    cgroup-v1/memory.rst.
    """
    total, available = psutil.virtual_memory().total, psutil.virtual_memory().available
    first = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
    second = ("max", "current", "inactive_file")
    for folder in _cgroups(root, "memory"):
        for limit_name, used_name, idle_name in (first, second):
            limit = _number(_words(folder / f"memory.{limit_name}"))
            if limit is None:  # no such file, or no limit ("max")
                continue
            used = _number(_words(folder / f"memory.{used_name}")) or 0
            stat = _words(folder / "memory.stat")
            idle = _number(stat[stat.index(idle_name) + 1 :]) or 0 if idle_name in stat else 0
            total, available = min(total, limit), min(available, max(0, limit - used + idle))
    return Memory(total, available)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those above it, each of which may set a limit.

    Inside a container the group's path often does not exist, and its folder is what is mounted.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
        below = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(below), -1, -1):
            yield mounted.joinpath(*below[:depth])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(words: list[str]) -> int | None:
    """The first word as a number; None where it is no number."""
    return int(words[0]) if words and words[0].isdigit() else None


def cache_dir() -> Path:
    """Where prepared data and converted models are kept: $MEDKIT_CACHE, else ~/.cache/medkit.

    Raises MachineError where neither is known.
    """
    if set_by_user := os.environ.get("MEDKIT_CACHE"):
        return Path(set_by_user)
    try:
        return Path.home() / ".cache" / "medkit"
    except RuntimeError:
        raise MachineError("no home folder is known; set MEDKIT_CACHE to a folder for the cache") from None


def working_folder() -> Path:
    """Path.cwd(); MachineError where that folder has been deleted or may not be entered."""
    try:
        return Path.cwd()
    except OSError as error:
        raise MachineError(f"the working folder is gone ({error.strerror}); change to another (cd)") from None


def check_writable(folder: Path, variable: str) -> None:
    """MachineError unless files can be written in `folder`, or it can be created. Writes nothing. variable:
    the environment variable that names another folder."""
    place = folder.absolute()
    while not os.path.lexists(place):
        place = place.parent
    if not os.path.isdir(place):
        reason = "is not a folder"
    elif not os.access(place, os.W_OK | os.X_OK):  # also where the file system is mounted read-only
        reason = "cannot be written to"
    else:
        return
    raise MachineError(f"{place} {reason}; set {variable} to a folder that can be written to")


def peak_memory() -> dict[str, float]:
    """Peak memory of this process, or of a child it waited for, and of the GPU; 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there and in KiB on Linux
    held = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = {"peak_memory_gb": round(held * unit / 1e9, 3)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return peak


def _processor() -> str:
    lines = _lines(Path("/proc/cpuinfo"))
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, "") if lines else platform.processor()


def _output(*command: str) -> str:
    """A command's standard output; empty where it is missing or fails."""
    try:
        ended = subprocess.run(command, capture_output=True, timeout=20, check=True)
        return ended.stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
