"""Runs lm-evaluation-harness tasks on a loaded model, through the harness's Python API.

Prompts, few-shot examples and scoring are the task's own, without a chat template, as for its published
numbers. The harness's cache (use_cache) does not distinguish models, so results are saved in a Store instead.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from medkit.evaluate.lineup import Active
from medkit.evaluate.store import Store
from medkit.runs import lm_eval_tasks


@dataclass(frozen=True, slots=True)
class Measured:
    """One task's results: the harness's metrics ("acc,none", "acc_stderr,none"), "n" and "version"."""

    results: dict


def measure(active: Active, tasks: str, cache: Path) -> dict[str, dict]:
    """One model's results by task; {} for no tasks. A group's tasks are listed next to the group."""
    names = lm_eval_tasks.names(tasks)
    if not names:
        return {}
    version = importlib.metadata.version("lm_eval")
    store = Store(cache / "lm_eval.jsonl", Measured, active.identity)
    keys = {name: store.key("lm_eval", version, name, _task_yaml(name)) for name in names}
    saved = store.read()
    for name, key in keys.items():  # one at a time: an interruption loses one task at most
        if key not in saved:
            new = {key: Measured(_evaluate_task(active, name))}
            store.add(new)
            saved |= new
    results = {}
    for key in keys.values():
        results |= saved[key].results
    return results


def _task_yaml(name: str) -> str:
    return Path(name).read_text(encoding="utf-8") if name.endswith(".yaml") else ""


def _evaluate_task(active: Active, name: str) -> dict[str, dict]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=active.model, tokenizer=active.tokenizer, batch_size=8)
    output = simple_evaluate(model=model, tasks=[name], log_samples=False, bootstrap_iters=1000)
    results = {}
    for task, metrics in output["results"].items():
        numbers = {key: value for key, value in metrics.items() if "," in key and isinstance(value, float)}
        results[task] = numbers | {"n": output["n-samples"].get(task, {}).get("effective")}
        results[task]["version"] = output["versions"].get(task)
    return results
