"""Checks before a GPU hour is spent: the machine, the data, and a sample of the rows to train on.

`machine` loads nothing, `base_runs` runs a small base; `check` does everything for a recipe.
"""

import json
import math
import shutil
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
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
from medkit.train import merging, models, stages

LARGE = 1e9  # parameters from which a model is trained on a GPU only
SAMPLE = 400  # rows of each stage tokenized by `check`


def check(recipe: recipes.Recipe, data_dir: str = "") -> list[Check]:
    """All checks of a recipe: reads the data, tokenizes a sample of the mixture, and runs a base that is
    small and local. Writes only caches.

    Raises HubError where the hub is needed and does not answer, MachineError where results or caches cannot
    be written.
    """
    connect(recipe, data_dir)
    this_machine.check_writable(storage.root(), "MEDKIT_RESULTS")
    this_machine.check_writable(this_machine.cache_dir(), "MEDKIT_CACHE")
    with tempfile.TemporaryDirectory() as scratch:
        found, loaded = read_sources(recipe, data_dir, Path(scratch))
        shape = base_shape(recipe.model.base) or estimate.LLAMA_8B
        checks = machine(recipe, shape) + found
        if failed([*(one for one in checks if one.name == "model"), *found]):
            return [*checks, Check("rows", "warn", "not looked at", "see to the model and the data first")]
        try:
            return checks + _rows_and_model(recipe, shape, loaded, data_dir, Path(scratch))
        except MedkitError as error:  # a template that cannot be masked, sources too small to be split
            return [*checks, Check("rows", "fail", *error.problem_and_fix())]


def _rows_and_model(recipe, shape, loaded: dict, data_dir: str, scratch: Path) -> list[Check]:
    tokenizer, prepared = models.load_tokenizer(recipe.model), None
    asked = [record for name in sources.EXAMS for record in loaded[name, "eval"][:SAMPLE]]
    checks = [_context(recipe, tokenizer, asked)]
    for stage, records, total, validation in stage_samples(recipe, loaded, data_dir):
        prepared = stages.tokenize(recipe, stage, tokenizer, records, cache=scratch, progress=False)
        checks += rows(recipe, tokenizer, records, prepared)
        tokens = total * float(np.mean(prepared["length"]))
        of_rows = (shape, total, tokens, validation, max(prepared["length"]))
        checks += _course(recipe, stage, *of_rows)
        if stage == "stage1" and recipe.dmt.relearn_steps:
            probe = _course(replace(recipe, stage1=stages.relearning(recipe)), stage, *of_rows)[0]
            checks.append(replace(probe, name="relearned: course"))
    checks += _evaluation(recipe, tokenizer, shape, loaded, data_dir or recipe.data.origin == "builtin")
    return checks + base_runs(recipe, tokenizer, prepared)


def _context(recipe, tokenizer, questions: list) -> Check:
    """Whether rows, and questions with answers in words, fit in the model's positions."""
    places, most = models.context_length(recipe.model), recipe.model.max_length
    if places and most > places:
        message = f"rows of up to {most:,} tokens, and the model has {places:,} positions"
        return Check("context", "fail", message, f"--set model.max_length={places}")
    chat, new = prompts.ChatFormat.from_tokenizer(tokenizer), recipe.mcq.max_new_tokens
    lengths = [len(prompts.prompt_ids(tokenizer, chat, one)) for one in questions]
    message = f"the longest of {len(lengths)} questions has {max(lengths):,} tokens, its answer up to {new:,}"
    message += f"; the model's context {f'{places:,} tokens' if places else 'is not stated'}"
    longer = sum(length + new > (places or math.inf) for length in lengths)
    if longer:
        room = (places or 0) - max(lengths)
        fix = f"--set mcq.max_new_tokens={room}" if room > 0 else "take a model with a longer context"
        return Check("context", "warn", f"{message}; {longer} are too long and count as wrong", fix)
    return Check("context", "pass", message)


def machine(recipe: recipes.Recipe, shape: estimate.Shape | None = None) -> list[Check]:
    """Whether the model can be read; device, driver, library versions; memory and disk against the estimate.

    shape: the base's sizes; by default of its config.json where it is local, else of Llama 3.1 8B.
    """
    hardware, shape = this_machine.hardware(), shape or base_shape(recipe.model.base) or estimate.LLAMA_8B
    return [
        _model_there(recipe),
        *_handover(recipe),
        _device(recipe, shape, hardware),
        _versions(hardware),
        *[_memory(recipe, name, shape, hardware) for name in ("stage1", "stage2")],
        _disk(recipe, shape),
    ]


def base_shape(base: str) -> estimate.Shape | None:
    """The sizes in the base's config.json; None where it is not on this machine."""
    if base == "smollm2":  # a cache that cannot be written is refused here
        models.base_folder(base)
    try:
        return estimate.Shape.read(Path(models.base_folder(base)) / "config.json")
    except (OSError, KeyError, ValueError):  # a hub id, or no such folder: `check` says which
        return None


def _device(recipe, shape, hardware) -> Check:
    gpus = hardware["gpus"]
    found = ", ".join(f"{g['name']}, {g['memory_gb'] or 'unknown'} GiB, driver {g['driver']}" for g in gpus)
    found = found or f"no GPU; {hardware['cores']} cores, {hardware['memory_gb']} GiB"
    wrong = [n for n in ("stage1", "stage2") if not gpus and "8bit" in getattr(recipe, n).optimizer]
    if gpus:
        import torch

        if not torch.cuda.is_available():
            fix = "install a torch built for CUDA, or a newer driver"
            return Check("device", "fail", f"{found}; torch {torch.__version__} cannot use it", fix)
        return Check("device", "pass", found)
    if shape.parameters >= LARGE:
        fix = "use a GPU, or the recipe cpu"
        return Check("device", "fail", f"{found}; {shape.parameters / 1e9:.1f}e9 parameters need one", fix)
    if wrong:
        fix = f"--set {wrong[0]}.optimizer=adamw_torch"
        return Check("device", "fail", f"{found}; 8-bit optimizers need a GPU", fix)
    return Check("device", "pass", f"{found}; rows are not packed here")


def _versions(hardware) -> Check:
    """The installed libraries against the versions that pyproject.toml pins for such a machine."""
    from packaging.requirements import Requirement

    project = tomllib.loads((this_machine.CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    both = extras["cpu"] + extras["gpu"] if hardware["gpus"] else extras["gpu"] + extras["cpu"]
    asked = {one.name: one.specifier for one in map(Requirement, project["dependencies"] + both)}
    installed = {name: version or "" for name, version in this_machine.versions().items() if name in asked}
    if missing := [name for name, version in installed.items() if not version]:
        message = f"not installed: {', '.join(missing)}"
        return Check("versions", "fail", message, "make setup, or environment.yml")
    other = [
        f"{name} {version} (tested: {asked[name]})"
        for name, version in installed.items()
        if version.partition("+")[0] not in asked[name]
    ]
    if other:
        fix = "install the tested versions, or expect other numbers"
        return Check("versions", "warn", ", ".join(other), fix)
    return Check("versions", "pass", "as tested together")


def _memory(recipe, name, shape, hardware, longest: int = 0) -> Check:
    """longest: tokens of the longest row, which a CPU's memory depends on."""
    parts = estimate.memory(shape, recipe, getattr(recipe, name), bool(hardware["gpus"]), longest)
    free, where = _free_memory(hardware)
    title = f"{name}: memory of rows up to {longest:,} tokens" if longest else f"memory {name}"
    smaller = "model.max_length" if longest else f"{name}.batch_size"
    fix = f"--set {name}.gradient_checkpointing=true or a smaller {smaller}"
    return _against(title, parts, free, where, fix)


def _free_memory(hardware) -> tuple[float, str]:
    """(10^9 bytes, of what)."""
    if hardware["gpus"]:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.mem_get_info()[0] / 1e9, "GPU memory"
    return this_machine.memory().available / 1e9, "memory"


def _disk(recipe, shape) -> Check:
    rows = (recipe.data.rows_medqa or 10_178) + (recipe.data.rows_medmcqa or 182_822)
    rows += recipe.data.rows_pubmedqa or 211_269
    tokens = rows * 320 + (recipe.dmt.notechat_train + recipe.dmt.notechat_validation) * 800
    parts = estimate.disk(shape, recipe, tokens)
    places = {this_machine.cache_dir(), storage.root()}
    if not is_local(recipe.model.base):
        places.add(Path(constants.HF_HUB_CACHE))
        small = recipe.model.base.endswith("bnb-4bit")
        weights = estimate.memory(shape, recipe, recipe.stage1, gpu=True)["weights"]
        parts["base model"] = weights if small else 2 * shape.parameters / 1e9
    free = min(shutil.disk_usage(_existing(place)).free for place in places) / 1e9
    fix = "make room, or set MEDKIT_CACHE, MEDKIT_RESULTS or HF_HOME to a larger disk"
    return _against("disk", parts, free, "disk", fix)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _against(name, parts, free, where, fix) -> Check:
    need, listed = sum(parts.values()), ", ".join(f"{n} {v:.2f}" for n, v in parts.items() if v)
    message = f"{need:.1f} GB ({listed}) expected, {free:.1f} GB of {where} free"
    if need > free:
        return Check(name, "fail", message, fix)
    return Check(name, "warn", message, fix) if need > 0.9 * free else Check(name, "pass", message)


def _model_there(recipe) -> Check:
    base = recipe.model.base
    try:
        check_model(base, recipe.model.revision)
    except hub.HubError:
        raise
    except MedkitError as error:
        return Check("model", "fail", *error.problem_and_fix())
    return Check("model", "pass", f"{base} can be read")


def _handover(recipe) -> list[Check]:
    """Whether stage 1's adapter can be merged, by the base's config.json (fetched by `_model_there`)."""
    if recipe.dmt.handover != "merge":
        return []
    base = recipe.model.base
    try:
        folder = Path(models.base_folder(base))
        file = folder / "config.json"
        if not folder.is_dir():
            file = Path(str(try_to_load_from_cache(base, "config.json", revision=recipe.model.revision)))
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, MedkitError):  # `_model_there` says what is wrong with it
        return []
    if reason := merging.why_unmergeable(config):
        message = f"the adapter cannot be merged into {base}: {reason}"
        return [Check("hand-over", "fail", message, "--set dmt.handover=continue")]
    return [Check("hand-over", "pass", "stage 1's adapter is merged into the weights it is trained against")]


def read_sources(recipe, data_dir: str, scratch: Path) -> tuple[list[Check], dict]:
    """(a check for each source, records by source and part). A folder is read whole; of the hub, the first
    rows."""
    where = data_dir or None
    if not data_dir and recipe.data.origin == "builtin":
        from medkit.data import builtin

        where = builtin.write(scratch / "corpus", part=recipe.data.builtin_part)
    checks, loaded = [], {}
    parts = [(name, part) for name in sources.EXAMS for part in ("train", "eval")]
    for name, part in [*parts, ("dialogues", "train"), ("icliniq", "eval"), ("healthcaremagic", "eval")]:
        limit = recipe.data.row_limit(name, part)
        source, which = recipe.data.source_part(name, part)
        title = f"data {source} {which}"
        try:
            read = sources.load(source, which, where, limit=limit if where else SAMPLE, progress=False)
        except hub.HubError:  # one line for all that comes from there
            raise
        except MedkitError as error:
            checks.append(Check(title, "fail", *error.problem_and_fix()))
            continue
        dropped = ", ".join(f"{count} {reason}" for reason, count in read.dropped.items()) or "none"
        message = f"{len(read.records):,} of {read.rows:,} rows read; dropped: {dropped}"
        declared = sources.SOURCES[source].parts[which].rows
        if data_dir and not limit and read.rows != declared:
            message, fix = (
                f"{message}; the data set has {declared:,}",
                "fetch a whole file, if it should be one",
            )
            checks.append(Check(title, "warn", message, fix))
        else:
            checks.append(Check(title, "pass", message))
        loaded[name, part] = read.records
    return checks, loaded


def stage_samples(recipe, loaded: dict, data_dir: str):
    """(stage, sample of its training rows, number of training rows, of validation rows) of both stages."""
    data, dmt = recipe.data, recipe.dmt
    first = stages.mix_stage1(recipe, {name: loaded[name, "train"] for name in sources.EXAMS})
    some, share = first.part("train")[:SAMPLE], dmt.replay_share
    if not data_dir and data.origin == "hub":  # a sample was read; the sizes are those of the declarations
        sizes = {n: sources.SOURCES[n].parts[data.source_part(n, "train")[1]].rows for n in sources.EXAMS}
        total = sum(data.row_limit(name, "train") or size for name, size in sizes.items())
        held_out = round(total * data.validation_share)
        yield "stage1", some, total - held_out, held_out
        asked = replace(recipe, dmt=replace(dmt, fill="stage1", replay_share=0.0))
        talks = stages.mix_stage2(asked, first, loaded["dialogues", "train"]).split.train[:SAMPLE]
        beside = total - held_out if dmt.handover == "joint" else round(dmt.notechat_train * share)
        train, validation = dmt.notechat_train + beside, round(dmt.notechat_validation * (1 + share))
    else:
        yield "stage1", some, len(first.train), len(first.validation)
        second = stages.mix_stage2(recipe, first, loaded["dialogues", "train"])  # refuses too large a share
        talks, train, validation = second.dialogues[:SAMPLE], len(second.train), len(second.validation)
        beside = len(second.replay.train)
    replayed = 0 if dmt.fill == "dialogues" else beside
    # The sample has the stage's own share of exam rows.
    per_talk = replayed / (train - replayed)
    if per_talk * len(talks) > len(some):
        talks = talks[: max(1, round(len(some) / per_talk))]
    yield "stage2", talks + some[: round(len(talks) * per_talk)], train, validation


def _course(recipe, stage, shape, total, tokens, validation, longest) -> list[Check]:
    hardware = this_machine.hardware()
    plan = estimate.plan(recipe, stage, shape, total, tokens, validation, hardware)
    hours = "hours unknown" if plan.hours is None else f"{plan.hours:.2g} h"
    message = f"{total:,} rows, {plan.steps:,} steps, {plan.tokens / 1e6:.3g}M tokens, {hours} ({plan.basis})"
    checks = [Check(f"{stage}: course", "pass", message)]
    return checks if hardware["gpus"] else [*checks, _memory(recipe, stage, shape, hardware, longest)]


def course(recipe: recipes.Recipe, stage: str, train, validation) -> list[Check]:
    """Steps, tokens and hours of a stage's prepared rows; on a CPU their memory, too."""
    shape = base_shape(recipe.model.base) or estimate.LLAMA_8B
    longest = max([*train["length"], *validation["length"]])
    return _course(recipe, stage, shape, len(train), sum(train["length"]), len(validation), longest)


def _evaluation(recipe, tokenizer, shape, loaded: dict, whole) -> list[Check]:
    """Prompts, tokens, hours and memory of notebooks 03 and 04."""
    hardware, checks = this_machine.hardware(), []
    for notebook, passes in evaluation_costs.asked(recipe, tokenizer, loaded, whole).items():
        course = evaluation_costs.course(recipe, shape, passes, hardware)
        checks.append(Check(f"{notebook}: course", "pass", course))
        parts = evaluation_costs.memory(recipe, shape, passes, bool(hardware["gpus"]))
        fewer = "mcq.max_batch_tokens" if notebook == "03_mcq_eval" else "consumer.batch_size"
        title, fix = f"{notebook}: memory", f"--set a smaller {fewer}"
        checks.append(_against(title, parts, *_free_memory(hardware), fix))
    return checks


def base_runs(recipe: recipes.Recipe, tokenizer, prepared) -> list[Check]:
    """rows.model on the base itself, in float32, where it is small and local."""
    shape, folder = base_shape(recipe.model.base), Path(models.base_folder(recipe.model.base))
    if shape is None or shape.parameters >= LARGE or not folder.is_dir():
        message = f"not run: {recipe.model.base} is large or not here; training asserts that packing stays on"
        return [Check("model run", "warn", message, "call preflight.model on the loaded model")]
    import torch
    from transformers import AutoModelForCausalLM

    try:
        net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise models.load_error(recipe.model.base, error) from None
    return model(net, tokenizer, prepared)
