"""lm-evaluation-harness's tasks, by name, on a model that is loaded already, through its Python API.

Prompts, scoring and few-shot examples are the task's, without a chat template, as for its published numbers.
The harness's cache (use_cache) does not look at which model asked, so results are kept in a Store instead.
"""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from medkit.evaluate.lineup import Active
from medkit.evaluate.store import Store
from medkit.runs import lm_eval_tasks


@dataclass(frozen=True, slots=True)
class Measured:
    """One task's results: metrics by the harness's names ("acc,none", "acc_stderr,none"), "n", "version"."""

    results: dict


def measure(active: Active, tasks: str, cache: Path) -> dict[str, dict]:
    """{task: Measured.results} of one model; a group's tasks are listed beside it. {} for no tasks."""
    names = lm_eval_tasks.names(tasks)
    if not names:
        return {}
    version = importlib.metadata.version("lm_eval")
    kept = Store(cache / "lm_eval.jsonl", Measured, active.identity)
    keys = {name: kept.key("lm_eval", version, name, _content(name)) for name in names}
    done = kept.read()
    missing = [name for name in names if keys[name] not in done]
    for name in missing:  # one after another: a kill interrupts one task
        found = {keys[name]: Measured(_evaluated(active, name))}
        kept.add(found)
        done |= found
    together = {}
    for name in names:
        together |= done[keys[name]].results
    return together


def _content(name: str) -> str:
    return Path(name).read_text(encoding="utf-8") if name.endswith(".yaml") else ""


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
