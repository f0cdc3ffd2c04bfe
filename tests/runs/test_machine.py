"""What the machine says of itself, and the refusals where it cannot do what a run needs."""

import os
import sys
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.runs import machine


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts a program of that name first in PATH, which prints `text` and ends with `code`."""

    def put(text: str | bytes, code: int = 0):
        text = text.encode() if isinstance(text, str) else text
        (tmp_path / "answer").write_bytes(text)
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\ncat {tmp_path}/answer\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return put


H100 = {"name": "NVIDIA H100 80GB HBM3", "memory_gb": 79.6, "driver": "550.54.15"}  # 81559 / 1024 = 79.65


@pytest.mark.parametrize(
    ("answer", "gpus"),
    [
        ("NVIDIA H100 80GB HBM3, 81559, 550.54.15\n", [H100]),
        ("NVIDIA H100 80GB HBM3, 81559, 550.54.15\n" * 2, [H100, H100]),
        (
            "NVIDIA GB10, [N/A], 580.95.05",
            [{"name": "NVIDIA GB10", "memory_gb": None, "driver": "580.95.05"}],
        ),
        (
            "Orin (nvgpu), [Not Supported], [N/A]",
            [{"name": "Orin (nvgpu)", "memory_gb": None, "driver": "[N/A]"}],
        ),
        ("A, B, and C, 1024, 1.2", [{"name": "A, B, and C", "memory_gb": 1.0, "driver": "1.2"}]),
        ("H100, [GPU requires reset], 1.2", [{"name": "H100", "memory_gb": None, "driver": "1.2"}]),
        ("No devices were found\n", []),
        ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54\n", []),
        (
            "WARNING: infoROM is corrupted at gpu 0000:1A:00.0\nNVIDIA H100 80GB HBM3, 81559, 550.54.15\n",
            [H100],
        ),
        (b"NVIDIA \xff\xfe, 2048, 1.2", [{"name": "NVIDIA \ufffd\ufffd", "memory_gb": 2.0, "driver": "1.2"}]),
        ("", []),
        (",,", []),
    ],
)
def test_what_nvidia_smi_answers(nvidia_smi, answer, gpus):
    nvidia_smi(answer)
    assert machine.hardware()["gpus"] == gpus


def test_an_nvidia_smi_that_fails_or_may_not_be_run(nvidia_smi, tmp_path):
    nvidia_smi("NVIDIA H100, 81559, 1.2", code=6)
    assert machine.hardware()["gpus"] == []
    (tmp_path / "nvidia-smi").write_text("not a program")
    assert machine.hardware()["gpus"] == []


@given(st.text())
def test_no_answer_of_nvidia_smi_raises(text):
    for line in text.splitlines():
        if found := machine._GPU.fullmatch(line):
            assert found[2].isdigit() or found[2].startswith("[")


def test_preflight_says_that_a_memory_is_not_known(nvidia_smi):
    from medkit import recipes
    from medkit.preflight import checks, estimate

    nvidia_smi("NVIDIA GB10, [N/A], 580.95.05")
    found = checks._device(recipes.get("recommended"), estimate.LLAMA_8B, machine.hardware())
    assert "NVIDIA GB10, unknown GiB, driver 580.95.05" in found.message


GIB = 2**30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V1 = "sys/fs/cgroup/memory/"
V2 = "sys/fs/cgroup/"
UNLIMITED = "9223372036854771712\n"  # version 1's "no limit"


@pytest.mark.parametrize(
    ("files", "total", "available"),
    [
        ({}, None, None),  # no control groups at all
        ({"proc/self/cgroup": "0::/\n", f"{V2}memory.max": "max\n"}, None, None),
        # Version 2: of 2^29 bytes 2^28 are used, 2^27 of these by files: 2^28 + 2^27 are left.
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}memory.max": f"{2**29}\n",
                f"{V2}memory.current": f"{2**28}\n",
                f"{V2}memory.stat": f"anon 5\ninactive_file {2**27}\nactive_file 9\n",
            },
            2**29,
            2**28 + 2**27,
        ),
        # The limit is that of a group above; its own is higher, or none.
        (
            {
                "proc/self/cgroup": "0::/system.slice/job.scope\n",
                f"{V2}system.slice/memory.max": f"{2**28}\n",
                f"{V2}system.slice/job.scope/memory.max": "max\n",
            },
            2**28,
            2**28,
        ),
        # Version 1, seen from inside a container: the path is the host's, what is mounted is the group.
        (
            {
                "proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/docker/1f\n1:cpu:/\n0::/\n",
                f"{V1}memory.limit_in_bytes": f"{2**28}\n",
                f"{V1}memory.usage_in_bytes": f"{2**27}\n",
                f"{V1}memory.stat": f"inactive_file 1\ntotal_inactive_file {2**20}\n",
            },
            2**28,
            2**27 + 2**20,
        ),
        ({"proc/self/cgroup": "4:memory:/a\n", f"{V1}a/memory.limit_in_bytes": UNLIMITED}, None, None),
        # More used than the limit allows, as after it was lowered; files that say nothing of use.
        (
            {
                "proc/self/cgroup": "0::/\n",
                f"{V2}memory.max": "4096\n",
                f"{V2}memory.current": "8192\n",
                f"{V2}memory.stat": "inactive_file\n",
            },
            4096,
            0,
        ),
        ({"proc/self/cgroup": "nonsense\n\n0::/../../up\n", f"{V2}memory.max": "4096"}, 4096, 4096),
    ],
)
def test_memory_is_the_containers(tmp_path, files, total, available):
    host = psutil.virtual_memory()
    found = machine.memory(tree(tmp_path, files))
    assert found.total == (host.total if total is None else total)
    if available is None:  # the host's, which moves while we look
        assert abs(found.available - host.available) < 0.2 * host.total
    else:
        assert found.available == available


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", f"{V2}cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", f"{V2}cpu.max": "50000 100000\n"}, 1),  # half a core is one thread
        ({"proc/self/cgroup": "0::/a\n", f"{V2}cpu.max": "100000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", f"{V2}cpu.max": "6400000 100000\n"}, None),  # 64 of fewer
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            {
                "proc/self/cgroup": "1:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
    ],
)
def test_cores_are_the_containers(tmp_path, files, cores):
    assert machine.cores(tree(tmp_path, files)) == (cores or min(64, machine.cores(tmp_path / "nothing")))


def test_the_estimate_of_memory_is_held_against_the_containers_limit(monkeypatch):
    from medkit import recipes
    from medkit.preflight import checks, estimate

    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(2 * GIB, 10**9))
    hardware = machine.hardware() | {"gpus": []}
    assert hardware["memory_gb"] == 2.0
    found = checks._memory(recipes.get("cpu"), "stage1", estimate.LLAMA_8B, hardware)
    assert found.status == "fail" and "1.0 GB of memory free" in found.message


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(MedkitError, match=r"the working folder is gone .*; change to another"):
        machine.working_folder()


def test_no_home_folder(monkeypatch):
    def none(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MEDKIT_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", classmethod(none))
    with pytest.raises(MedkitError, match="set MEDKIT_CACHE"):
        machine.cache_dir()


def test_folders_that_cannot_be_written(tmp_path, monkeypatch):
    machine.check_writable(tmp_path / "new" / "er", "MEDKIT_RESULTS")
    assert list(tmp_path.iterdir()) == []  # nothing is written to find out
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/below", "dangling", "dangling/below"):
        with pytest.raises(MedkitError, match=r"is not a folder; set MEDKIT_RESULTS to a writable folder"):
            machine.check_writable(tmp_path / name, "MEDKIT_RESULTS")
    # As on a file system mounted read-only, for root too.
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(MedkitError, match=f"{tmp_path} is not writable; set MEDKIT_CACHE"):
        machine.check_writable(tmp_path / "new", "MEDKIT_CACHE")


@pytest.mark.skipif(os.geteuid() == 0 or sys.platform == "win32", reason="root writes anywhere")
def test_a_folder_of_somebody_elses(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(MedkitError, match="is not writable"):
        machine.check_writable(tmp_path / "new", "MEDKIT_CACHE")
