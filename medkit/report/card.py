"""A run's adapter as the hub has one: model card, metadata on the hub's schema, results with n and interval.

Schema of the metadata: huggingface_hub's ModelCardData and EvalResult (model-index), and EvalResultEntry
(`.eval_results/*.yaml`). Every figure is read from the run's folder.
"""

import json
import os
from pathlib import Path

import pandas as pd
import yaml
from huggingface_hub import (
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)

from medkit import MedkitError, recipes
from medkit.data.sources import SOURCES
from medkit.recipes import Recipe
from medkit.report import published
from medkit.report.markdown import BUILT_IN, grid, in_percent, with_interval
from medkit.runs import run_json, storage

MODEL = "med-nirvana"
HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# Of the base models that the recipes name; any other licence is for its user to state.
LICENCES = {
    "smollm2": {"license": "apache-2.0"},
    "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit": {"license": "llama3.1"},
}
UNSTATED = {"license": "other", "license_name": "that-of-the-base-model-and-the-data"}
PROTOCOL = (
    "zero-shot; the answer is the letter of the highest log-probability at the place where training puts it"
)


class CardError(MedkitError):
    """A run without an adapter or results to write a card of."""


def write(run: str) -> Path:
    """results/RUN/hub: README.md, .eval_results/*.yaml and Med-Nirvana's adapter, ready to be uploaded.

    The adapter's files are hard links; its configuration names the base as the hub does, not as a folder of
    this machine. Raises CardError for no run or no results of Med-Nirvana, ResultsError where a file is
    missing or the run is part of the repository.
    """
    place = storage.folder(run)
    info = run_json.read(place)
    if info is None:
        raise CardError(f"{storage.shown(place)} holds no run; name one that was trained")
    storage.require(place, ["stage2/adapter/adapter_model.safetensors"])
    storage.check_own(place)
    recipe = recipes.from_dict(info["recipe"])
    summary = storage.load(place, "mcq/summary.json", ("models", "datasets"))
    hub = place / "hub"
    _link_adapter(place / "stage2" / "adapter", hub, recipe)
    storage.write_text(hub / "README.md", str(card(place, info, recipe, summary)))
    for name, entry in _entries(info, summary).items():
        text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True)
        storage.write_text(hub / ".eval_results" / f"{name}.yaml", text)
    return hub


def card(place: Path, info: dict, recipe: Recipe, summary: dict) -> ModelCard:
    """The model card; its metadata is refused by ModelCardData where the hub would refuse it."""
    builtin = info["data"]["origin"] == "builtin"
    trained_on = [SOURCES[name] for name in _training_sources(recipe)]
    data = ModelCardData(
        base_model=HUB_NAMES.get(recipe.model.base, recipe.model.base),
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        tags=["medical", "qlora", "not-for-clinical-use"],
        datasets=None if builtin else [source.hub_id for source in trained_on if source.hub_id],
        model_name=f"Med-Nirvana ({place.name})",
        eval_results=None if builtin else _model_index(summary),
        **LICENCES.get(recipe.model.base, UNSTATED),
    )
    body = "\n\n".join(_sections(place, info, recipe, summary, trained_on, builtin))
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")


def _link_adapter(adapter: Path, hub: Path, recipe: Recipe) -> None:
    hub.mkdir(parents=True, exist_ok=True)
    for file in sorted(adapter.iterdir()):
        if file.name in ("README.md", "adapter_config.json") or not file.is_file():
            continue
        (hub / file.name).unlink(missing_ok=True)
        os.link(file, hub / file.name)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = HUB_NAMES.get(recipe.model.base, recipe.model.base)
    storage.write_json(hub / "adapter_config.json", config)


def _training_sources(recipe: Recipe) -> list[str]:
    return ["medqa", "medmcqa", "pubmedqa", recipe.data.dialogues]


def _rows(summary: dict) -> dict[str, dict]:
    """Benchmark -> Med-Nirvana's accuracy with n and interval, and the benchmark's chance."""
    rows = {}
    for name, dataset in summary["datasets"].items():
        if own := dataset["models"].get(MODEL):
            rows[name] = own | {"chance": dataset["chance"]}
    if not rows:
        raise CardError("mcq/summary.json has no results of Med-Nirvana; run notebook 03_mcq_eval first")
    return rows


def _note(own: dict) -> str:
    interval = f"[{100 * own['low']:.1f}, {100 * own['high']:.1f}]"
    return f"n = {own['n']}, Wilson 95% {interval}; {PROTOCOL}; medkit"


def _model_index(summary: dict) -> list[EvalResult]:
    results = []
    for name, own in _rows(summary).items():
        source, part = SOURCES[name], SOURCES[name].parts["eval"]
        results.append(
            EvalResult(
                task_type="question-answering",
                task_name="multiple choice",
                dataset_type=source.hub_id,
                dataset_name=source.title,
                dataset_config=part.config,
                dataset_split=part.split,
                dataset_revision=source.revision if source.pinned else None,
                metric_type="accuracy",
                metric_name=f"accuracy, % ({_note(own)})",
                metric_value=round(100 * own["accuracy"], 2),
            )
        )
    return results


def _entries(info: dict, summary: dict) -> dict[str, EvalResultEntry]:
    """Benchmark -> entry of `.eval_results`; none for the built-in corpus, which the hub does not have."""
    if info["data"]["origin"] == "builtin":
        return {}
    return {
        name: EvalResultEntry(
            dataset_id=SOURCES[name].hub_id,
            task_id=SOURCES[name].parts["eval"].config or "default",
            value=round(100 * own["accuracy"], 2),
            dataset_revision=SOURCES[name].revision if SOURCES[name].pinned else None,
            date=info["notebooks"]["03_mcq_eval"]["started"],
            notes=_note(own),
        )
        for name, own in _rows(summary).items()
    }


def _sections(place, info, recipe, summary, trained_on, builtin: bool):
    yield f"# Med-Nirvana ({place.name})"
    yield (
        "A LoRA adapter for medical questions, trained in two stages by medkit: multiple-choice exams, then "
        "consultations with a replayed share of the exams (dual-stage mixed fine-tuning), after *Multi-Stage "
        f"QLoRA with Augmented Structured Dialogue Corpora*. Recipe `{recipe.name}`: {recipe.about}."
    )
    if builtin:
        yield f"**{BUILT_IN}**"
    yield (
        "## Intended use, and what it is not for\n\n"
        "Research on fine-tuning and on evaluation. **Not for clinical use**: nothing here was examined for "
        "safety, no clinician read its answers, and it may state falsehoods with confidence."
    )
    yield _use(recipe)
    yield f"## Training data\n\n{_licences(trained_on, builtin)}"
    yield f"## Training\n\n{_training(info, recipe)}"
    yield f"## Evaluation\n\n{_evaluation(place, summary)}"
    yield (
        "## Not tested\n\nSafety, harm, bias by group of patients, other languages, several turns with a "
        "real patient, robustness to wording, and everything else that is not in the tables above. One "
        "training seed: the intervals cover the draw of questions, not the draw of training runs."
    )


def _use(recipe: Recipe) -> str:
    base = HUB_NAMES.get(recipe.model.base, recipe.model.base)
    quantized = " in 4 bit (NF4), as it was trained" if recipe.model.load_in_4bit else ""
    return (
        "## Use\n\nLoad the base"
        f"{quantized}, then the adapter; ask with the tokenizer and the chat template of this folder.\n\n"
        "```python\n"
        "from peft import PeftModel\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}")\n'
        'model = PeftModel.from_pretrained(base, "FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("FOLDER")\n'
        "```"
    )


def _licences(trained_on, builtin: bool) -> str:
    if builtin:
        return "The corpus that medkit ships, written for it (Apache-2.0)."
    rows = [
        {
            "source": source.title,
            "where": source.hub_id or source.home,
            "licence": "**none stated**" if source.licence == "unknown" else source.licence,
        }
        for source in trained_on
    ]
    return grid(pd.DataFrame(rows))


def _training(info: dict, recipe: Recipe) -> str:
    rows = []
    for stage, notebook in (("stage1", "01_stage1"), ("stage2", "02_stage2")):
        spec, done = getattr(recipe, stage), info["notebooks"].get(notebook, {})
        rows.append(
            {
                "stage": stage[-1],
                "samples": f"{done.get('samples', 0):,}",
                "steps": f"{done.get('steps', 0):,}",
                "learning rate": f"{spec.learning_rate:g}",
                "samples a step": str(spec.batch_size * spec.accumulation),
                "loss on": spec.loss_on,
                "hours": f"{done.get('seconds', 0) / 3600:.2f}",
            }
        )
    lora, versions = recipe.lora, info["versions"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("unsloth", "trl", "peft") if versions.get(name))
    hardware = info["hardware"]
    machine = ", ".join(str(gpu) for gpu in hardware["gpus"]) or hardware["processor"]
    return (
        f"{grid(pd.DataFrame(rows))}\n\nLoRA r {lora.r}, alpha {lora.alpha}"
        f"{', rank-stabilized' if lora.rslora else ''}, on {', '.join(lora.target_modules)}; hand-over "
        f"between the stages: {recipe.dmt.handover}; replayed rows per consultation: "
        f"{recipe.dmt.replay_share:.4f}. "
        f"{named}. On {machine}. The run's ledger.md sets every choice beside the paper's."
    )


def _evaluation(place: Path, summary: dict) -> str:
    rows = [
        {
            "benchmark": published.TITLES.get(name, name),
            "n": f"{own['n']:,}",
            "accuracy, %": in_percent(own["accuracy"], own["low"], own["high"]),
            "chance, %": in_percent(own["chance"]),
            "no readable answer": str(own["unparsed"]),
        }
        for name, own in _rows(summary).items()
    ]
    parts = [f"{grid(pd.DataFrame(rows))}\n\nProtocol: {PROTOCOL}; Wilson's 95% intervals."]
    consumer = place / "consumer" / "summary.json"
    if consumer.is_file():
        found = json.loads(consumer.read_text(encoding="utf-8"))
        f1 = found["models"][MODEL]["f1"]
        parts.append(
            f"Patients' queries (n = {found['n']}): BERTScore F1 against one physician's answer "
            f"{with_interval(f1['mean'], f1['low'], f1['high'], 3)}, `{found['scorer']['hash']}`. "
            "Likeness to a physician's wording is not safety."
        )
    without = summary.get("without_contaminated") or {}
    if summary.get("contamination_known"):
        found = sum((without.get("left_out") or {}).values())
        parts.append(f"{found:,} of the evaluation questions were found in the training rows.")
    return "\n\n".join(parts)
