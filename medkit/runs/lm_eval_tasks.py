"""Checks the names of lm-evaluation-harness tasks before a run starts."""

import difflib
import importlib.util
from pathlib import Path

from medkit import MedkitError, first_line


def check(tasks: str) -> None:
    """MedkitError unless every task in `tasks` and its data can be loaded.

    tasks: "hellaswag,piqa", or "" for none. A name that ends in .yaml is a task file.
    """
    requested = names(tasks)
    if not requested:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise MedkitError(
            f"mcq.lm_eval_tasks={tasks} needs lm-evaluation-harness, which is not installed; "
            "run pip install -e '.[bench]' in medkit's checkout, or leave the tasks out"
        )
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in requested:
        is_file = name.endswith(".yaml")
        exists = Path(name).is_file() if is_file else name in manager.all_tasks
        if not exists:
            close = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {close[0]}?" if close else "`lm-eval ls tasks` lists all tasks"
            kind = "file" if is_file else "lm-evaluation-harness task"
            raise MedkitError(f"mcq.lm_eval_tasks: there is no {kind} {name!r}; {hint}")
        _load(manager, name)


def names(tasks: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))


def _load(manager, name: str) -> None:
    try:
        manager.load([name])
    except Exception as error:  # raised by a task's code, `datasets` or the hub
        raise MedkitError(
            f"the task {name} of lm-evaluation-harness cannot be loaded ({first_line(error)}); leave it out"
        ) from error
