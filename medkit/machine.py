"""What a result depends on beside its recipe: library versions, the code's commit, the machine."""

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import psutil

CHECKOUT = Path(__file__).resolve().parents[1]

# Those of which another version may move a number.
LIBRARIES = """
medkit torch transformers trl peft unsloth unsloth_zoo bitsandbytes accelerate datasets tokenizers
bert-score papermill numpy pandas scipy statsmodels scikit-learn datasketch
""".split()


def versions() -> dict[str, str | None]:
    """Library -> installed version, None where it is not installed; nothing is imported for it."""
    found = {"python": platform.python_version()}
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
    # Results are what a run changes, so they do not make the code another one.
    status = _output("git", "-C", str(CHECKOUT), "status", "--porcelain", "--", ".", ":!results")
    return {"commit": commit, "modified": sorted(line[3:] for line in status.splitlines())}


def hardware() -> dict:
    """Processor, usable cores, memory in GiB, and each GPU with memory in GiB and driver; no host name."""
    query = "--query-gpu=name,memory.total,driver_version"
    gpus = []
    for line in _output("nvidia-smi", query, "--format=csv,noheader,nounits").splitlines():
        name, mebibytes, driver = (part.strip() for part in line.split(","))
        gpus.append({"name": name, "memory_gb": round(int(mebibytes) / 1024, 1), "driver": driver})
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": cores,
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": gpus,
    }


def cache_dir() -> Path:
    """Where prepared data and converted models are kept: $MEDKIT_CACHE, else ~/.cache/medkit."""
    return Path(os.environ.get("MEDKIT_CACHE") or Path.home() / ".cache" / "medkit")


def peak_memory() -> dict[str, float]:
    """The most memory this process, or a child it waited for, has held, and the GPU's share; 10^9 bytes."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there and in KiB on Linux
    held = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peak = {"peak_memory_gb": round(held * unit / 1e9, 3)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["peak_gpu_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 3)
    return peak


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _output(*command: str) -> str:
    """A command's standard output; empty where there is no such command or it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
