"""Tasks of lm-evaluation-harness by name, checked before anything is written."""

import difflib
import importlib.util
from pathlib import Path

from medkit import MedkitError, first_line


class HarnessError(MedkitError):
    """lm-evaluation-harness, a task or its data is missing."""


def check(tasks: str) -> None:
    """HarnessError, in one line, unless every task of `tasks` ("hellaswag,piqa"; "" for none) and its data
    can be loaded. A name that ends in .yaml is a task's file."""
    wanted = names(tasks)
    if not wanted:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise HarnessError(
            f"mcq.lm_eval_tasks={tasks} needs lm-evaluation-harness, which is not installed; "
            "pip install 'medkit[bench]', or leave the tasks out"
        )
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in wanted:
        is_file = name.endswith(".yaml")
        if Path(name).is_file() if is_file else name in manager.all_tasks:
            _load(manager, name)
            continue
        near = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists those there are"
        kind = "file" if is_file else "task of lm-evaluation-harness"
        raise HarnessError(f"mcq.lm_eval_tasks: there is no {kind} {name!r}; {hint}")


def names(tasks: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))


def _load(manager, name: str) -> None:
    try:
        manager.load([name])
    except Exception as error:  # whatever a task's own code, `datasets` or the hub raise
        raise HarnessError(
            f"the task {name} of lm-evaluation-harness cannot be loaded ({first_line(error)}); leave it out"
        ) from error
