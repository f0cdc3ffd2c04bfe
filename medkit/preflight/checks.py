"""Checks of a recipe before training: the machine, the data, and a sample of the training rows.

`machine` loads no model, `base_runs` runs a small base, and `check` does everything.
"""

import json
import math
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError

from medkit import MedkitError, prompts, recipes
from medkit.data import hub, sources
from medkit.preflight import estimate, evaluation_costs
from medkit.preflight.findings import Check, failed
from medkit.preflight.inputs import check_model
from medkit.preflight.rows import model, rows
from medkit.runs import machine as this_machine
from medkit.runs import storage
from medkit.runs.inputs import connect, is_local
from medkit.train import cpu, merging, models, stages

LARGE = 1e9  # parameters; a model of this size or larger needs a GPU
SAMPLE = 400  # rows of each stage that `check` tokenizes


def check(recipe: recipes.Recipe, data_dir: str = "") -> list[Check]:
    """Run all checks of a recipe. Writes nothing but caches.

    Reads the data, tokenizes a sample of the mixture, and runs the base if it is small and local.
    Raises HubError if the hub is needed and does not answer, and MedkitError if results or caches cannot be
    written.
    """
    connect(recipe, data_dir)
    this_machine.check_writable(storage.root(), "MEDKIT_RESULTS")
    this_machine.check_writable(this_machine.cache_dir(), "MEDKIT_CACHE")
    with tempfile.TemporaryDirectory() as scratch:
        data_checks, loaded = read_sources(recipe, data_dir, Path(scratch))
        shape = base_shape(recipe.model) or estimate.LLAMA_8B
        checks = machine(recipe, shape) + data_checks
        if failed([*(check for check in checks if check.name == "model"), *data_checks]):
            return [*checks, Check("rows", "warn", "not checked", "fix the model and the data first")]
        try:
            return checks + _rows_and_model(recipe, shape, loaded, data_dir, Path(scratch))
        except MedkitError as error:  # e.g. a template that cannot be masked, sources too small to split
            return [*checks, Check("rows", "fail", *error.problem_and_fix())]


def _rows_and_model(recipe, shape, loaded: dict, data_dir: str, scratch: Path) -> list[Check]:
    tokenizer, prepared = models.load_tokenizer(recipe.model), None
    questions = [record for name in sources.EXAMS for record in loaded[name, "eval"][:SAMPLE]]
    checks = [_context(recipe, tokenizer, questions)]
    for stage, records, train_count, validation_count in stage_samples(recipe, loaded, data_dir):
        prepared = stages.tokenize(recipe, stage, tokenizer, records, cache=scratch, progress=False)
        checks += rows(recipe, tokenizer, records, prepared)
        tokens = train_count * float(np.mean(prepared["length"]))
        sizes = (shape, train_count, tokens, validation_count, max(prepared["length"]))
        checks += _course(recipe, stage, *sizes)
        if stage == "stage1" and recipe.dmt.relearn_steps:
            probe = _course(replace(recipe, stage1=stages.relearning(recipe)), stage, *sizes)[0]
            checks.append(replace(probe, name="relearned: course"))
    all_questions_loaded = bool(data_dir) or recipe.data.origin == "builtin"
    checks += _evaluation(recipe, tokenizer, shape, loaded, all_questions_loaded)
    return checks + base_runs(recipe, tokenizer, prepared)


def _context(recipe, tokenizer, questions: list) -> Check:
    """Do rows, and questions with generated answers, fit into the model's context?"""
    context, max_length = models.context_length(recipe.model), recipe.model.max_length
    if context and max_length > context:
        message = f"rows have up to {max_length:,} tokens, and the model has {context:,} positions"
        return Check("context", "fail", message, f"--set model.max_length={context}")
    chat, new_tokens = prompts.ChatFormat.from_tokenizer(tokenizer), recipe.mcq.max_new_tokens
    lengths = [len(prompts.prompt_ids(tokenizer, chat, question)) for question in questions]
    message = f"the longest of {len(lengths)} questions has {max(lengths):,} tokens, its answer up to "
    message += f"{new_tokens:,}; the model's context {f'{context:,} tokens' if context else 'is unknown'}"
    too_long = sum(length + new_tokens > (context or math.inf) for length in lengths)
    if too_long:
        room = (context or 0) - max(lengths)
        fix = f"--set mcq.max_new_tokens={room}" if room > 0 else "take a model with a longer context"
        return Check("context", "warn", f"{message}; {too_long} are too long and count as wrong", fix)
    return Check("context", "pass", message)


def machine(recipe: recipes.Recipe, shape: estimate.Shape | None = None) -> list[Check]:
    """Check the model, device, driver and library versions, and memory and disk against the estimate.

    shape: the base's sizes. Defaults to its config.json if that is local, else to Llama 3.1 8B.
    """
    hardware, shape = this_machine.hardware(), shape or base_shape(recipe.model) or estimate.LLAMA_8B
    usable = usable_hardware()
    return [
        _model(recipe),
        *_handover(recipe),
        _device(recipe, shape, hardware),
        _versions(usable),
        *[_memory(recipe, name, shape, usable) for name in ("stage1", "stage2")],
        _disk(recipe, shape),
    ]


def usable_hardware() -> dict:
    """machine.hardware() with only the GPUs that PyTorch can use, the one that trains first."""
    hardware = this_machine.hardware()
    if not hardware["gpus"]:
        return hardware
    import torch

    if not torch.cuda.is_available():
        return hardware | {"gpus": []}
    name = torch.cuda.get_device_name()
    return hardware | {"gpus": sorted(hardware["gpus"], key=lambda gpu: gpu["name"] != name)}


def base_shape(model: recipes.ModelSpec) -> estimate.Shape | None:
    """The sizes in the base's configuration; None if it cannot be read, which `check_model` reports."""
    if model.base == "smollm2":  # outside the try: an unwritable cache is an error
        models.base_folder(model.base)
    try:
        return estimate.Shape.of(models.text_config(model))
    except (MedkitError, AttributeError):
        return None


def _device(recipe, shape, hardware) -> Check:
    if device := this_machine.gpu_names(hardware):
        import torch

        if torch.cuda.is_available():
            return Check("device", "pass", device)
        message, fix = f"{device}; torch {torch.__version__} cannot use it", "install a torch built for CUDA"
        if shape.parameters >= LARGE:
            return Check("device", "fail", message, f"{fix}, or a newer driver")
        if not _needs_gpu(recipe):
            return Check("device", "warn", f"{message}: the CPU is used", f"{fix}, or a newer driver")
    device = f"no GPU; {hardware['cores']} cores, {hardware['memory_gb']} GiB"
    if shape.parameters >= LARGE:
        fix = "use a GPU, or the recipe cpu"
        return Check("device", "fail", f"{device}; {shape.parameters / 1e9:.1f}e9 parameters need one", fix)
    if stage := _needs_gpu(recipe):
        fix = f"--set {stage}.optimizer=adamw_torch"
        return Check("device", "fail", f"{device}; 8-bit optimizers need a GPU", fix)
    return Check("device", "pass", f"{device}; rows are not packed on a CPU")


def _needs_gpu(recipe) -> str:
    """The first stage whose optimizer needs a GPU; "" for none."""
    stages_with_8bit = (name for name in ("stage1", "stage2") if "8bit" in getattr(recipe, name).optimizer)
    return next(stages_with_8bit, "")


def _versions(hardware) -> Check:
    """Compare the installed libraries with the versions that pyproject.toml pins for this kind of machine."""
    from packaging.requirements import Requirement

    project = tomllib.loads((this_machine.CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    cpu, gpu = (project["optional-dependencies"][name] for name in ("cpu", "gpu"))
    pinned = project["dependencies"] + (cpu + gpu if hardware["gpus"] else gpu + cpu)  # the last one counts
    tested = {requirement.name: requirement.specifier for requirement in map(Requirement, pinned)}
    installed = {name: version or "" for name, version in this_machine.versions().items() if name in tested}
    if missing := [name for name, version in installed.items() if not version]:
        message = f"not installed: {', '.join(missing)}"
        return Check("versions", "fail", message, "make setup, or environment.yml")
    untested = [
        f"{name} {version} (tested: {tested[name]})"
        for name, version in installed.items()
        if version.partition("+")[0] not in tested[name]
    ]
    if untested:
        fix = "install the tested versions, or expect other numbers"
        return Check("versions", "warn", ", ".join(untested), fix)
    return Check("versions", "pass", "the tested versions")


def _memory(recipe, stage, shape, hardware, longest: int = 0, loaded: bool = False) -> Check:
    """longest: tokens of the longest row, which determines the memory on a CPU. loaded: this process already
    has the libraries and the model, which are parts of the estimate."""
    parts = estimate.memory(shape, recipe, getattr(recipe, stage), bool(hardware["gpus"]), longest)
    name = f"{stage}: memory of rows up to {longest:,} tokens" if longest else f"memory {stage}"
    size = "model.max_length" if longest else f"{stage}.batch_size"
    fix = f"--set {stage}.gradient_checkpointing=true or a smaller {size}"
    free, kind = _free_memory(hardware)
    if loaded:
        own = psutil.Process().memory_info().rss
        free = min(free + own / 1e9, this_machine.memory().total / 1e9)
    return _compare(name, parts, free, kind, fix)


def _free_memory(hardware) -> tuple[float, str]:
    """(free memory in 10^9 bytes, its kind)."""
    if hardware["gpus"]:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0] / 1e9, "GPU memory"
    return this_machine.memory().available / 1e9, "memory"


def _disk(recipe, shape) -> Check:
    exams = (recipe.data.rows_medqa or 10_178) + (recipe.data.rows_medmcqa or 182_822)
    exams += recipe.data.rows_pubmedqa or 211_269
    tokens = exams * 320 + (recipe.dmt.notechat_train + recipe.dmt.notechat_validation) * 800
    parts = estimate.disk(shape, recipe, tokens)
    folders = {this_machine.cache_dir(), storage.root()}
    if not is_local(recipe.model.base):
        folders.add(Path(constants.HF_HUB_CACHE))
        quantized = recipe.model.base.endswith("bnb-4bit")
        weights = estimate.memory(shape, recipe, recipe.stage1, gpu=True)["weights"]
        parts["base model"] = weights if quantized else 2 * shape.parameters / 1e9
    fix = "make room, or set MEDKIT_CACHE, MEDKIT_RESULTS or HF_HOME to a larger disk"
    return _compare("disk", parts, this_machine.free_disk(*folders) / 1e9, "disk", fix)


def _compare(name, parts: dict[str, float], free: float, kind: str, fix: str) -> Check:
    """Compare the sum of the estimated parts with what is free, both in 10^9 bytes."""
    needed, listed = sum(parts.values()), ", ".join(f"{n} {v:.2f}" for n, v in parts.items() if v)
    message = f"{needed:.1f} GB ({listed}) expected, {free:.1f} GB of {kind} free"
    if needed > free:
        return Check(name, "fail", message, fix)
    return Check(name, "warn", message, fix) if needed > 0.9 * free else Check(name, "pass", message)


def _model(recipe) -> Check:
    base = recipe.model.base
    try:
        check_model(base, recipe.model.revision)
    except hub.HubError:
        raise
    except MedkitError as error:
        return Check("model", "fail", *error.problem_and_fix())
    return Check("model", "pass", f"{base} can be read")


def _handover(recipe) -> list[Check]:
    """Can stage 1's adapter be merged? Reads the base's config.json, which `_model` has fetched."""
    if recipe.dmt.handover != "merge":
        return []
    base = recipe.model.base
    try:
        folder = Path(models.base_folder(base))
        file = folder / "config.json"
        if not folder.is_dir():
            file = Path(str(try_to_load_from_cache(base, "config.json", revision=recipe.model.revision)))
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, MedkitError):  # reported by `_model`
        return []
    if reason := merging.why_unmergeable(config):
        message = f"the adapter cannot be merged into {base}: {reason}"
        return [Check("hand-over", "fail", message, "--set dmt.handover=continue")]
    return [Check("hand-over", "pass", "stage 1's adapter is merged into the weights it is trained against")]


def read_sources(recipe, data_dir: str, scratch: Path) -> tuple[list[Check], dict]:
    """(one check per source, records by source and part). Reads whole folders, but only the first SAMPLE rows
    of a data set on the hub."""
    folder = data_dir or None
    if not data_dir and recipe.data.origin == "builtin":
        from medkit.data import builtin

        folder = builtin.write(scratch / "corpus", part=recipe.data.builtin_part)
    checks, loaded = [], {}
    parts = [(name, part) for name in sources.EXAMS for part in ("train", "eval")]
    for name, part in [*parts, ("dialogues", "train"), ("icliniq", "eval"), ("healthcaremagic", "eval")]:
        limit = recipe.data.row_limit(name, part)
        source, source_part = recipe.data.source_part(name, part)
        title = f"data {source} {source_part}"
        try:
            result = sources.load(
                source, source_part, folder, limit=limit if folder else SAMPLE, progress=False
            )
        except hub.HubError:  # one line for everything that comes from the hub
            raise
        except MedkitError as error:
            checks.append(Check(title, "fail", *error.problem_and_fix()))
            continue
        dropped = ", ".join(f"{count} {reason}" for reason, count in result.dropped.items()) or "none"
        message = f"{len(result.records):,} of {result.rows:,} rows read; dropped: {dropped}"
        declared = sources.SOURCES[source].parts[source_part].rows
        if data_dir and not limit and result.rows != declared:
            message += f"; the data set has {declared:,}"
            checks.append(Check(title, "warn", message, "fetch the whole file, unless a part is intended"))
        else:
            checks.append(Check(title, "pass", message))
        loaded[name, part] = result.records
    return checks, loaded


def stage_samples(recipe, loaded: dict, data_dir: str):
    """Yield (stage, sample of its training rows, number of training rows, of validation rows) of both stages.

    Stage 2's sample has the same share of exam rows as stage 2.
    """
    data, dmt = recipe.data, recipe.dmt
    first = stages.mix_stage1(recipe, {name: loaded[name, "train"] for name in sources.EXAMS})
    exams, share = first.part("train")[:SAMPLE], dmt.replay_share
    if not data_dir and data.origin == "hub":  # only a sample was read: take the declared sizes
        sizes = {n: sources.SOURCES[n].parts[data.source_part(n, "train")[1]].rows for n in sources.EXAMS}
        total = sum(data.row_limit(name, "train") or size for name, size in sizes.items())
        held_out = round(total * data.validation_share)
        yield "stage1", exams, total - held_out, held_out
        without_replay = replace(recipe, dmt=replace(dmt, fill="stage1", replay_share=0.0))
        second = stages.mix_stage2(without_replay, first, loaded["dialogues", "train"])
        dialogues = second.split.train[:SAMPLE]
        added = total - held_out if dmt.handover == "joint" else round(dmt.notechat_train * share)
        train, validation = dmt.notechat_train + added, round(dmt.notechat_validation * (1 + share))
    else:
        yield "stage1", exams, len(first.train), len(first.validation)
        second = stages.mix_stage2(recipe, first, loaded["dialogues", "train"])  # checks the replay share
        dialogues, train, validation = second.dialogues[:SAMPLE], len(second.train), len(second.validation)
        added = len(second.replay.train)
    replayed = 0 if dmt.fill == "dialogues" else added
    exams_per_dialogue = replayed / (train - replayed)
    if exams_per_dialogue * len(dialogues) > len(exams):
        dialogues = dialogues[: max(1, round(len(exams) / exams_per_dialogue))]
    yield "stage2", dialogues + exams[: round(len(dialogues) * exams_per_dialogue)], train, validation


def _course(recipe, stage, shape, train, tokens, validation, longest, loaded=False) -> list[Check]:
    """train, validation: numbers of rows; tokens: of all training rows; longest: tokens of a row; loaded: as
    for `_memory`."""
    hardware = usable_hardware()
    plan = estimate.plan(recipe, stage, shape, train, tokens, validation, hardware)
    hours = "hours unknown" if plan.hours is None else f"{plan.hours:.2g} h"
    message = f"{train:,} rows, {plan.steps:,} steps, {plan.tokens / 1e6:.3g}M tokens, {hours} ({plan.basis})"
    checks = [Check(f"{stage}: course", "pass", message)]
    return checks if hardware["gpus"] else [*checks, _memory(recipe, stage, shape, hardware, longest, loaded)]


def course(recipe: recipes.Recipe, stage: str, train, validation) -> list[Check]:
    """Steps, tokens and hours for a stage's prepared rows; on a CPU also the memory (model loaded)."""
    shape = base_shape(recipe.model) or estimate.LLAMA_8B
    longest = max([*train["length"], *validation["length"]])
    sizes = (shape, len(train), sum(train["length"]), len(validation), longest)
    return _course(recipe, stage, *sizes, loaded=True)


def _evaluation(recipe, tokenizer, shape, loaded: dict, all_loaded: bool) -> list[Check]:
    """Prompts, tokens, hours and memory of notebooks 03 and 04."""
    hardware, checks = usable_hardware(), []
    for notebook, passes in evaluation_costs.notebook_passes(recipe, tokenizer, loaded, all_loaded).items():
        message = evaluation_costs.course(recipe, shape, passes, hardware)
        checks.append(Check(f"{notebook}: course", "pass", message))
        parts = evaluation_costs.memory(recipe, shape, passes, bool(hardware["gpus"]))
        field = "mcq.max_batch_tokens" if notebook == "03_mcq_eval" else "consumer.batch_size"
        fix = f"--set a smaller {field}"
        checks.append(_compare(f"{notebook}: memory", parts, *_free_memory(hardware), fix))
    return checks


def base_runs(recipe: recipes.Recipe, tokenizer, prepared) -> list[Check]:
    """Run `rows.model` on the base in float32, if it is small and local and there is no GPU.

    On a GPU, Unsloth replaces parts of Transformers' models, which then no longer run on the CPU.
    """
    shape, folder = base_shape(recipe.model), Path(models.base_folder(recipe.model.base))
    if cpu.on_gpu() or shape is None or shape.parameters >= LARGE or not folder.is_dir():
        message = (
            f"not run: {recipe.model.base} is large, not local, or there is a GPU; training asserts that "
            "packing stays on"
        )
        return [Check("model run", "warn", message, "call medkit.preflight.rows.model on the loaded model")]
    import torch
    from transformers import AutoModelForCausalLM

    try:
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise models.load_error(recipe.model.base, error) from None
    return model(net, tokenizer, prepared)
