"""Notebooks 01 to 05 on tiny models in this process, which spares them a kernel's start each.

python tests/one_process.py NAME=BASE ... runs the study of every BASE into MEDKIT_RESULTS/NAME.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent / "pipeline"))

import nbformat
from IPython.core.interactiveshell import InteractiveShell
from test_study import SMALL

from medkit.pipeline import runner


def execute(path: Path, parameters: dict) -> None:
    """Every cell in a fresh namespace, the parameters put in behind the first; raises what a cell raises."""
    shell = InteractiveShell.instance()
    shell.reset(new_session=False)
    first, *others = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    shell.run_cell(first.source).raise_error()
    shell.user_ns.update(parameters)
    for cell in others:
        shell.run_cell(cell.source).raise_error()


def main(named: list[str]) -> None:
    for name, base in (one.split("=") for one in named):
        settings = ";".join(f"{field}={value}" for field, value in (SMALL | {"model.base": base}).items())
        given = {"recipe": "cpu", "run_dir": name, "data_dir": "", "settings": settings}
        for step in runner.NOTEBOOKS:
            path = runner.NOTEBOOK_FOLDER / f"{step.notebook}.ipynb"
            execute(path, {key: given[key] for key in step.takes} | step.fixed)


if __name__ == "__main__":
    main(sys.argv[1:])
