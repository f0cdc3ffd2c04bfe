"""What results depend on besides the recipe: library versions, the code's commit, the machine."""

import importlib.metadata
import math
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from medkit import MedkitError

CHECKOUT = Path(__file__).resolve().parents[2]

# Libraries whose version may change results.
LIBRARIES = """
medkit torch transformers trl peft unsloth unsloth_zoo bitsandbytes accelerate datasets tokenizers
bert-score papermill numpy pandas scipy statsmodels scikit-learn
""".split()

# A line of nvidia-smi's CSV output. Names may contain commas; unknown values are "[N/A]" or similar.
_GPU = re.compile(r"(.+?),\s*(\d+|\[.*?\]),\s*([\d.]+|\[.*?\])\s*")


class Memory(NamedTuple):
    total: int  # bytes
    available: int  # bytes


def versions() -> dict[str, str | None]:
    """Library -> installed version, or None if it is not installed. Imports none of them."""
    installed: dict[str, str | None] = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            installed[name] = None
    return installed


def git() -> dict:
    """{"commit": ..., "modified": [changed paths]}; the commit is None outside a checkout."""
    commit = _output("git", "-C", str(CHECKOUT), "rev-parse", "HEAD").strip()
    if not commit:
        return {"commit": None, "modified": []}
    # results/ changes with every run and is not code.
    status = _output("git", "-C", str(CHECKOUT), "status", "--porcelain", "--", ".", ":!results")
    return {"commit": commit, "modified": sorted(line[3:] for line in status.splitlines())}


def hardware() -> dict:
    """Processor, usable cores, memory and GPUs, without the host name. Memory is in GiB, None where a driver
    does not report it. Container limits apply."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores(),
        "memory_gb": round(memory().total / 2**30, 1),
        "gpus": _gpus(),
    }


def gpu_names(hardware: dict) -> str:
    """The GPUs of `hardware` as text: name, memory and driver of each; "" without a GPU."""
    return ", ".join(
        f"{gpu['name']}, {gpu['memory_gb'] or 'unknown'} GiB, driver {gpu['driver']}"
        for gpu in hardware["gpus"]
    )


def as_text(hardware: dict) -> dict[str, str]:
    """`hardware` with every value as text."""
    return {
        name: gpu_names(hardware) or "none" if name == "gpus" else str(value)
        for name, value in hardware.items()
    }


def _gpus() -> list[dict]:
    query = "--query-gpu=name,memory.total,driver_version"
    gpus = []
    for line in _output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines():
        if match := _GPU.fullmatch(line):  # other lines are messages, such as "No devices were found"
            name, mebibytes, driver = match.groups()
            size = round(int(mebibytes) / 1024, 1) if mebibytes.isdigit() else None
            gpus.append({"name": name.strip(), "memory_gb": size, "driver": driver})
    return gpus


def cores(root: Path = Path("/")) -> int:
    """Cores this process may use: those in its CPU affinity, or fewer if its container has a CPU quota.

    root: the parent folder of proc and sys.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in _cgroups(root, "cpu"):
        quota, period = (*_words(folder / "cpu.max"), "", "")[:2]  # version 2
        if not quota:  # version 1
            quota, period = ("".join(_words(folder / f"cpu.cfs_{name}_us")) for name in ("quota", "period"))
        if quota.isdigit() and period.isdigit() and int(period):
            usable = min(usable, max(1, math.ceil(int(quota) / int(period))))
    return usable


def memory(root: Path = Path("/")) -> Memory:
    """Memory this process may use: the machine's, or less in a container (cgroup v1 or v2).

    Inactive file pages count as available, since the kernel frees them first. root: the parent folder of proc
    and sys. Source: docs.kernel.org, admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst.
    """
    total, available = psutil.virtual_memory().total, psutil.virtual_memory().available
    v1 = ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")
    v2 = ("max", "current", "inactive_file")
    for folder in _cgroups(root, "memory"):
        for limit_name, used_name, inactive_name in (v1, v2):
            limit = _number(_words(folder / f"memory.{limit_name}"))
            if limit is None:  # no such file, or no limit ("max")
                continue
            used = _number(_words(folder / f"memory.{used_name}")) or 0
            stat = _words(folder / "memory.stat")
            inactive = _number(stat[stat.index(inactive_name) + 1 :]) or 0 if inactive_name in stat else 0
            total, available = min(total, limit), min(available, max(0, limit - used + inactive))
    return Memory(total, available)


def _cgroups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's control group and its parents, each of which may set a limit.

    Inside a container the group's path often does not exist; the mounted root is then the container's group.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (*line.split(":", 2), "", "", "")[:3]
        if controllers and controller not in controllers.split(","):
            continue
        mounted = root / "sys/fs/cgroup" / (controller if controllers else "")
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            yield mounted.joinpath(*parts[:depth])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _number(words: list[str]) -> int | None:
    """The first word as a number, or None if it is not one."""
    return int(words[0]) if words and words[0].isdigit() else None


def cache_dir() -> Path:
    """The cache for prepared data and converted models: $MEDKIT_CACHE, else ~/.cache/medkit.

    Raises MedkitError if there is no home folder either.
    """
    if cache := os.environ.get("MEDKIT_CACHE"):
        return Path(cache).expanduser()
    try:
        return Path.home() / ".cache" / "medkit"
    except RuntimeError:
        raise MedkitError("no home folder is known; set MEDKIT_CACHE to a folder for the cache") from None


def working_folder() -> Path:
    """Path.cwd(); MedkitError if the folder was deleted or is not accessible."""
    try:
        return Path.cwd()
    except OSError as error:
        raise MedkitError(f"the working folder is gone ({error.strerror}); change to another (cd)") from None


def check_writable(folder: Path, variable: str) -> None:
    """MedkitError unless `folder` is writable or can be created. Writes nothing. variable: the environment
    variable that sets another folder, for the message."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    if not os.path.isdir(existing):
        reason = "is not a folder"
    elif not os.access(existing, os.W_OK | os.X_OK):  # also false on a read-only file system
        reason = "is not writable"
    else:
        return
    raise MedkitError(f"{existing} {reason}; set {variable} to a writable folder")


def free_disk(*folders: Path) -> int:
    """The smallest free space on the folders' disks, in bytes. A folder need not exist yet."""
    existing = (next(p for p in (path, *path.absolute().parents) if p.exists()) for path in folders)
    return min(shutil.disk_usage(path).free for path in existing)


def peak_memory() -> dict[str, float]:
    """Peak memory in 10^9 bytes: the larger of this process and its finished children, and of the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    resident = max(resource.getrusage(which).ru_maxrss for which in processes)
    peak = {"peak_memory_gb": round(resident * unit / 1e9, 3)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return peak


def _processor() -> str:
    lines = _lines(Path("/proc/cpuinfo"))
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, "") if lines else platform.processor()


def _output(*command: str) -> str:
    """A command's standard output; empty if the command is missing or fails."""
    try:
        completed = subprocess.run(command, capture_output=True, timeout=20, check=True)
        return completed.stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError):
        return ""
