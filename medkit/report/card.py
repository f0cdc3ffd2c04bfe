"""Publish a run's adapter: model card, hub metadata, and results with n and interval.

The metadata follows huggingface_hub's ModelCardData, EvalResult (model-index) and EvalResultEntry
(`.eval_results/*.yaml`). All figures are read from the run's folder.
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
from medkit.report.markdown import BUILT_IN, grid, in_percent, interval, percent
from medkit.runs import inputs, machine, run_json, storage

MODEL = "med-nirvana"
HUB_NAMES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
# Of the base models in the recipes. Users state the licence of any other base.
LICENCES = {
    "smollm2": {"license": "apache-2.0"},
    "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit": {"license": "llama3.1"},
}
UNSTATED = {"license": "other", "license_name": "that-of-the-base-model-and-the-data"}
PROTOCOL = (
    "zero-shot; the answer is the letter with the highest log-probability where the trained answer begins"
)
# Jinja2. The backslashes join lines.
TEMPLATE = """---
{{ card_data }}
---

# {{ title }}

A LoRA adapter for medical questions, trained by medkit {{ course }}, after *Multi-Stage QLoRA with \
Augmented Structured Dialogue Corpora*. Recipe `{{ recipe.name }}`: {{ recipe.about }}.

{% if builtin %}**{{ built_in }}**

{% endif %}## Intended use, and what it is not for

Research on fine-tuning and on evaluation. **Not for clinical use**: nothing here was examined for safety, \
no clinician read its answers, and it may confidently state falsehoods.

## Use

Load the base{{ " in 4 bit (NF4), as it was trained" if recipe.model.load_in_4bit }}, then the adapter. Use \
the tokenizer and the chat template of this folder.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{{ base_model }}")
model = PeftModel.from_pretrained(base, "FOLDER")
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```

## Training data

{{ "The built-in corpus, written for medkit (Apache-2.0)." if builtin else licences }}

## Training

{{ stages }}

LoRA r {{ recipe.lora.r }}, alpha {{ recipe.lora.alpha }}{{ ", rank-stabilized" if recipe.lora.rslora }}, on \
{{ recipe.lora.target_modules | join(", ") }}; hand-over between the stages: {{ recipe.dmt.handover }}; \
replayed rows per consultation: {{ "%.4f" | format(recipe.dmt.replay_share) }}. \
{{ versions | join(", ") }}. On {{ machine }}. The run's ledger.md compares every setting with the paper's.

## Evaluation

{{ accuracies }}

Protocol: {{ protocol }}; Wilson's 95% intervals.

{% if consumer %}Patients' queries (n = {{ consumer.n }}): BERTScore F1 against one physician's answer \
{{ f1 }}, `{{ consumer.scorer.hash }}`. Similarity to a physician's wording is not safety.

{% endif %}{% if contaminated %}{{ contaminated }} of the evaluation questions were found in the training \
rows.

{% endif %}## Not tested

Safety, harm, bias by group of patients, other languages, several turns with a real patient, robustness to \
wording, and everything else not in the tables above. One training seed: the intervals cover the \
choice of questions, not the variation between training runs.
"""


def write(run: str) -> Path:
    """Write README.md, .eval_results/*.yaml and Med-Nirvana's adapter to results/RUN/hub, ready to upload.

    The adapter's files are hard links, and its configuration names the base by its hub id (a local base by
    its folder's name). Raises MedkitError if there is no run, it has no results of Med-Nirvana, or its
    adapter belongs to a merged model; ResultsError if a file is missing or the run is committed.
    """
    folder = storage.folder(run)
    info = run_json.read(folder)
    if info is None:
        raise MedkitError(f"{storage.relpath(folder)} is not a run; name one that was trained")
    storage.require(folder, ["stage2/adapter/adapter_model.safetensors"])
    storage.check_not_committed(folder)
    recipe = recipes.from_dict(info["recipe"])
    if recipe.dmt.handover == "merge":
        raise MedkitError(
            f"{storage.relpath(folder)}: stage 2's adapter belongs to stage 1's merged model, which is not "
            f"on the hub; publish the whole model with medkit export {folder.name} --to merged"
        )
    base = recipe.model.base
    base = HUB_NAMES.get(base) or (Path(base).name if inputs.is_path(base) else base)
    summary = storage.load(folder, "mcq/summary.json", ("models", "datasets"))
    hub = folder / "hub"
    _link_adapter(folder / "stage2" / "adapter", hub, base)
    storage.write_text(hub / "README.md", f"{_card(folder, info, recipe, base, summary)}\n")
    if info["data"]["origin"] != "builtin":  # the built-in corpus has no page on the hub
        for name, accuracy in _accuracies(summary).items():
            entry = eval_result_entries_to_yaml([_entry(name, accuracy, info)])
            text = yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)
            storage.write_text(hub / ".eval_results" / f"{name}.yaml", text)
    return hub


def _link_adapter(adapter: Path, hub: Path, base: str) -> None:
    hub.mkdir(parents=True, exist_ok=True)
    for file in sorted(adapter.iterdir()):
        if file.name not in ("README.md", "adapter_config.json") and file.is_file():
            (hub / file.name).unlink(missing_ok=True)
            os.link(file, hub / file.name)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    storage.write_json(hub / "adapter_config.json", config | {"base_model_name_or_path": base})


def _card(folder: Path, info: dict, recipe: Recipe, base: str, summary: dict) -> ModelCard:
    """The model card. ModelCardData validates its metadata as the hub does."""
    builtin, title = info["data"]["origin"] == "builtin", f"Med-Nirvana ({folder.name})"
    sources = [SOURCES[name] for name in ("medqa", "medmcqa", "pubmedqa", recipe.data.dialogues)]
    accuracies = _accuracies(summary)
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        pipeline_tag="text-generation",
        language="en",
        tags=["medical", "qlora", "not-for-clinical-use"],
        datasets=None if builtin else [source.hub_id for source in sources if source.hub_id],
        model_name=title,
        eval_results=None if builtin else [_result(name, accuracy) for name, accuracy in accuracies.items()],
        **LICENCES.get(recipe.model.base, UNSTATED),
    )
    path = folder / "consumer" / "summary.json"
    consumer = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    left_out = (summary.get("without_contaminated") or {}).get("left_out") or {}
    return ModelCard.from_template(
        data,
        template_str=TEMPLATE,
        title=title,
        course=_course(recipe),
        recipe=recipe,
        builtin=builtin,
        built_in=BUILT_IN,
        licences=_licences(sources),
        stages=_stages(info, recipe),
        versions=[
            f"{name} {info['versions'][name]}"
            for name in ("unsloth", "trl", "peft")
            if info["versions"].get(name)
        ],
        machine=machine.gpu_names(info["hardware"]) or info["hardware"]["processor"],
        accuracies=_evaluation(accuracies),
        protocol=PROTOCOL,
        consumer=consumer,
        f1=interval(consumer["models"][MODEL]["f1"], digits=3) if consumer else "",
        contaminated=f"{sum(left_out.values()):,}" if summary.get("contamination_known") else "",
    )


def _course(recipe: Recipe) -> str:
    """What the adapter was trained on, in which stages."""
    if recipe.dmt.handover == "joint":
        return "in one stage on multiple-choice exams and consultations"
    added = " with a replayed share of the exams (dual-stage mixed fine-tuning)"
    if recipe.dmt.fill == "dialogues" or not recipe.dmt.replay_share:
        added = ""
    return f"in two stages: multiple-choice exams, then consultations{added}"


def _accuracies(summary: dict) -> dict[str, dict]:
    """Benchmark -> Med-Nirvana's accuracy with n and interval, and the chance level."""
    accuracies = {
        name: dataset["models"][MODEL] | {"chance": dataset["chance"]}
        for name, dataset in summary["datasets"].items()
        if MODEL in dataset["models"]
    }
    if not accuracies:
        raise MedkitError("mcq/summary.json has no results of Med-Nirvana; run notebook 03_mcq_eval first")
    return accuracies


def _note(accuracy: dict) -> str:
    bounds = f"[{100 * accuracy['low']:.1f}, {100 * accuracy['high']:.1f}]"
    return f"n = {accuracy['n']}, Wilson 95% {bounds}; {PROTOCOL}; medkit"


def _result(name: str, accuracy: dict) -> EvalResult:
    """A benchmark's entry in the card's model-index."""
    source, part = SOURCES[name], SOURCES[name].parts["eval"]
    return EvalResult(
        task_type="question-answering",
        task_name="multiple choice",
        dataset_type=source.hub_id,
        dataset_name=source.title,
        dataset_config=part.config,
        dataset_split=part.split,
        dataset_revision=source.revision if source.pinned else None,
        metric_type="accuracy",
        metric_name=f"accuracy, % ({_note(accuracy)})",
        metric_value=round(100 * accuracy["accuracy"], 2),
    )


def _entry(name: str, accuracy: dict, info: dict) -> EvalResultEntry:
    """A benchmark's entry in `.eval_results`."""
    source = SOURCES[name]
    return EvalResultEntry(
        dataset_id=source.hub_id,
        task_id=source.parts["eval"].config or "default",
        value=round(100 * accuracy["accuracy"], 2),
        dataset_revision=source.revision if source.pinned else None,
        date=info["notebooks"]["03_mcq_eval"]["started"],
        notes=_note(accuracy),
    )


def _licences(sources) -> str:
    rows = [
        {
            "source": source.title,
            "where": source.hub_id or source.home,
            "licence": "**none stated**" if source.licence == "unknown" else source.licence,
        }
        for source in sources
    ]
    return grid(pd.DataFrame(rows))


def _stages(info: dict, recipe: Recipe) -> str:
    rows = []
    for stage, notebook in (("stage1", "01_stage1"), ("stage2", "02_stage2")):
        spec, notes = getattr(recipe, stage), info["notebooks"].get(notebook, {})
        rows.append(
            {
                "stage": stage[-1],
                "samples": f"{notes.get('samples', 0):,}",
                "steps": f"{notes.get('steps', 0):,}",
                "learning rate": f"{spec.learning_rate:g}",
                "samples per step": str(spec.batch_size * spec.accumulation),
                "loss on": spec.loss_on,
                "hours": f"{notes.get('seconds', 0) / 3600:.2f}",
            }
        )
    return grid(pd.DataFrame(rows))


def _evaluation(accuracies: dict[str, dict]) -> str:
    rows = [
        {
            "benchmark": published.TITLES.get(name, name),
            "n": f"{accuracy['n']:,}",
            "accuracy, %": percent(accuracy),
            "chance, %": in_percent(accuracy["chance"]),
            "no readable answer": str(accuracy["unparsed"]),
        }
        for name, accuracy in accuracies.items()
    ]
    return grid(pd.DataFrame(rows))
