"""lm-evaluation-harness's tasks, by name, on a model that is loaded already, through its Python API.

Prompts, scoring and few-shot examples are the task's own and without a chat template, as its published
numbers are made. Its own cache (use_cache) does not look at which model asked, so it stays off, and results
are kept in a Store instead.
"""

import difflib
import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from medkit import MedkitError
from medkit.evaluate.lineup import Active
from medkit.evaluate.store import Store


class HarnessError(MedkitError):
    """A task that cannot be run: lm-evaluation-harness, the task or its data is not there."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One task's results: metrics by the harness's names ("acc,none", "acc_stderr,none"), "n", "version"."""

    results: dict


def check(tasks: str) -> None:
    """HarnessError, in one line, unless every task of `tasks` ("hellaswag,piqa"; "" for none) and its data
    can be loaded. A name that ends in .yaml is a task's file."""
    names = _names(tasks)
    if not names:
        return
    if importlib.util.find_spec("lm_eval") is None:
        raise HarnessError(
            f"mcq.lm_eval_tasks={tasks} needs lm-evaluation-harness, which is not installed; "
            "pip install 'medkit[bench]', or leave the tasks out"
        )
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for name in names:
        is_file = name.endswith(".yaml")
        if Path(name).is_file() if is_file else name in manager.all_tasks:
            _load(manager, name)
            continue
        near = difflib.get_close_matches(name, manager.all_tasks, n=1)
        hint = f"did you mean {near[0]}?" if near else "`lm-eval ls tasks` lists those there are"
        kind = "file" if is_file else "task of lm-evaluation-harness"
        raise HarnessError(f"mcq.lm_eval_tasks: there is no {kind} {name!r}; {hint}")


def measure(active: Active, tasks: str, cache: Path) -> dict[str, dict]:
    """{task: Measured.results} of one model; a group's tasks are listed beside it. {} for no tasks."""
    names = _names(tasks)
    if not names:
        return {}
    version = importlib.metadata.version("lm_eval")
    kept = Store(cache / "lm_eval.jsonl", Measured, active.identity)
    keys = {name: kept.key("lm_eval", version, name, _content(name)) for name in names}
    done = kept.read()
    missing = [name for name in names if keys[name] not in done]
    for name in missing:  # one after another: what a kill interrupts is one task
        found = {keys[name]: Measured(_evaluated(active, name))}
        kept.add(found)
        done |= found
    together = {}
    for name in names:
        together |= done[keys[name]].results
    return together


def _names(tasks: str) -> list[str]:
    return list(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))


def _content(name: str) -> str:
    return Path(name).read_text(encoding="utf-8") if name.endswith(".yaml") else ""


def _load(manager, name: str) -> None:
    try:
        manager.load([name])
    except Exception as error:  # whatever a task's own code, `datasets` or the hub raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:150]
        raise HarnessError(
            f"the task {name} of lm-evaluation-harness cannot be loaded ({reason}); leave it out"
        ) from error


def _evaluated(active: Active, name: str) -> dict[str, dict]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=active.model, tokenizer=active.tokenizer, batch_size=8)
    found = simple_evaluate(model=model, tasks=[name], log_samples=False, bootstrap_iters=1000)
    results = {}
    for task, metrics in found["results"].items():
        numbers = {key: value for key, value in metrics.items() if "," in key and isinstance(value, float)}
        results[task] = numbers | {"n": found["n-samples"].get(task, {}).get("effective")}
        results[task]["version"] = found["versions"].get(task)
    return results
