"""The steps of notebooks 01 and 02: from rows to a trained adapter and the manifest."""

import functools
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medkit import dmt, recipes
from medkit.data import builtin, contamination, sources
from medkit.runs import arms, inputs, run_json, storage
from medkit.runs.run_json import Run
from medkit.train import checkpoints, fitting, manifest, models, tokenization
from medkit.train.manifest import Records
from medkit.train.merging import check_merge, merge_adapter


@functools.cache
def _builtin(part: str) -> tuple[Path, tempfile.TemporaryDirectory]:
    """Write the built-in corpus with the evaluation rows of `part`, once per process."""
    scratch = tempfile.TemporaryDirectory(prefix="medkit-corpus-")
    return builtin.write(scratch.name, part=part), scratch


def load_source(run: Run, name: str, part: str, progress: bool = True) -> sources.Loaded:
    """Load one part of a source, up to the recipe's limit, and record its hashes in run.json.

    name: a source, or "dialogues" for stage 2's. Raises MedkitError, and ResultsError if a file has changed
    since the run started.
    """
    data = run.recipe.data
    folder = run.data_dir or (_builtin(data.builtin_part)[0] if data.origin == "builtin" else None)
    source, source_part = data.source_part(name, part)
    loaded = sources.load(source, source_part, folder, limit=data.row_limit(name, part), progress=progress)
    run.use_data({f"{source}/{file}": digest for file, digest in loaded.files.items()})
    return loaded


def load_exams(run: Run, part: str) -> dict[str, sources.Loaded]:
    return {name: load_source(run, name, part) for name in sources.EXAMS}


def mix_stage1(recipe: recipes.Recipe, exams: dict[str, Sequence]) -> dmt.Stage1:
    """Stage 1's mixture. exams: source -> records by row, None for dropped rows (Loaded.by_row)."""
    return dmt.mix_exams(exams, recipe.data.validation_share, recipe.data.seed)


def mix_stage2(
    recipe: recipes.Recipe, stage1: dmt.Stage1, dialogues: Sequence, with_replay: bool = True
) -> dmt.Stage2:
    """Stage 2's mixture, with or without the replay. dialogues: records by row, as in `mix_stage1`."""
    split = dmt.split_notechat(
        dialogues,
        recipe.dmt.notechat_train,
        recipe.dmt.notechat_validation,
        deduplicate=recipe.data.deduplicate,
        by_note=recipe.data.notechat_split == "note",
        seed=recipe.data.seed,
    )
    return dmt.mix_stage2(stage1, split, recipe.dmt, with_replay)


def read_records(run: Run, arm: str) -> Records:
    """The records of one arm ("stage1", "stage2", "stage2_noreplay").

    Raises MedkitError for unusable or too few rows, ResultsError if a file has changed since the run started.
    """
    loaded = load_exams(run, "train")
    stage1 = mix_stage1(run.recipe, {name: source.by_row() for name, source in loaded.items()})
    if arm == "stage1":
        return Records(arm, loaded, stage1)
    loaded["dialogues"] = load_source(run, "dialogues", "train")
    stage2 = mix_stage2(run.recipe, stage1, loaded["dialogues"].by_row(), with_replay=arm == "stage2")
    return Records(arm, loaded, stage1, stage2)


def write_manifest(run: Run, records: Records, rows, queries: Sequence = ()) -> dict:
    """Write the arm's part of data/manifest.json, data/overlap_STAGE.csv and, in stage 2, ARM/replay.csv.

    rows: the tokenized training rows. queries: the patients' queries that stage 2 is evaluated on. Returns
    the arm's description; {} for the arm without replay, which has the same consultations.
    """
    if records.stage2:
        manifest.write_replay(run, records.arm, records.stage2.replay)
    if records.arm not in ("stage1", "stage2"):
        return {}
    evaluation = load_exams(run, "eval")
    items = [record for source in evaluation.values() for record in source.records]
    if records.stage2:
        joint = run.recipe.dmt.handover == "joint"
        matches, validation_matches = manifest.find_overlaps(
            records.stage2, records.stage1, items, list(queries), joint
        )
        description = manifest.describe_stage2(records, rows, matches, validation_matches)
        manifest.update_manifest(run, {"stage2": description})
    else:
        matches = contamination.find(records.stage1.records, items)
        description = manifest.describe_stage1(records.sources, evaluation, records.stage1, matches)
        manifest.update_manifest(run, description)
    manifest.write_overlap(run, records.stage, matches)
    return description


def tokenize(recipe: recipes.Recipe, stage: str, tokenizer, records: Sequence, **options):
    """Tokenize records as the stage trains on them, with exam questions marked. options: of
    tokenization.prepare."""
    rows = tokenization.prepare(
        records,
        tokenizer,
        target=recipe.data.mcq_target,
        loss_on=getattr(recipe, stage).loss_on,
        max_length=recipe.model.max_length,
        **options,
    )
    return tokenization.with_exams(rows, records)


def prepare(run: Run, records: Records, tokenizer, queries: Sequence = ()):
    """Tokenize an arm's training and validation rows, and write its part of the manifest.

    queries: the patients' queries that stage 2 is evaluated on, to find those that occur in its rows.
    """
    train = tokenize(run.recipe, records.stage, tokenizer, records.train)
    validation = tokenize(run.recipe, records.stage, tokenizer, records.validation)
    if models.first_process():
        write_manifest(run, records, train, queries)
    return train, validation


def load_base(run: Run, stage: str):
    """(model, tokenizer) before the stage's adapter is added: the base or, in stage 2 with handover `merge`,
    stage 1's merged model, quantized again."""
    recipe, spec = run.recipe, getattr(run.recipe, stage)
    inputs.check_tracker(spec.report_to)
    model_spec = recipe.model
    if stage == "stage2" and recipe.dmt.handover == "merge":
        storage.require(run.folder, ["stage1/merged/config.json"])
        model_spec = replace(model_spec, base=str(run.folder / "stage1" / "merged"))
    model, tokenizer = models.load(model_spec, gradient_checkpointing=spec.gradient_checkpointing)
    run.use_data({"base model": models.base_identity(recipe.model)})
    return model, tokenizer


def begin_adapter(run: Run, stage: str, model) -> None:
    """Initialize the model's new adapter. With handover `continue`, stage 2 starts from stage 1's adapter.

    With handover `merge`, raises MedkitError before stage 1 is trained, if the model cannot be merged later.
    """
    recipe = run.recipe
    if stage == "stage2" and recipe.dmt.handover == "continue":
        storage.require(run.folder, arms.adapter_files("med-mix"))
        _stage1_optimizer(run)
        models.use_adapter(model, run.folder / "stage1" / "adapter")
    if stage == "stage1" and recipe.dmt.handover == "merge":
        check_merge(model, run.folder / "stage1" / "merged")


def load_for_stage(run: Run, stage: str):
    """(model, tokenizer) at the start of a stage, with its adapter."""
    spec = getattr(run.recipe, stage)
    model, tokenizer = load_base(run, stage)
    model = models.attach_lora(
        model, run.recipe.lora, seed=spec.seed, gradient_checkpointing=spec.gradient_checkpointing
    )
    begin_adapter(run, stage, model)
    return model, tokenizer


def fit(run: Run, stage: str, arm: str, model, tokenizer, train, validation, config=None) -> fitting.Fit:
    """Train one arm ("stage1", "stage2", "stage2_noreplay"), from its newest complete checkpoint if there is
    one. Writes ARM/adapter, ARM/loss.csv and, with handover `merge`, stage1/merged.

    config: from train.sft_config, possibly changed; None for the recipe's. The last checkpoint is kept until
    the notebook is complete (`finish`, or the runner), so that a crash does not lose the training.
    """
    folder = run.folder / arm
    result = fitting.fit(
        model,
        tokenizer,
        train,
        validation,
        getattr(run.recipe, stage),
        folder=folder,
        max_length=run.recipe.model.max_length,
        config=config,
        replay_token_share=run.recipe.dmt.replay_token_share if stage == "stage2" else 0.0,
        optimizer_state=_stage1_optimizer(run) if stage == "stage2" else None,
        identity=_identity(run, stage, train, validation),
        resume=True,
    )
    if models.first_process():
        models.save_adapter(model, tokenizer, folder / "adapter")
        if stage == "stage1" and run.recipe.dmt.optimizer_state == "carried":
            checkpoints.keep_optimizer(folder)
        if stage == "stage1" and run.recipe.dmt.handover == "merge":
            merge_adapter(model, tokenizer, folder / "merged")
    return result


def relearning(recipe: recipes.Recipe) -> recipes.TrainSpec:
    """The relearning probe's TrainSpec: stage 1's with a constant learning rate, since ten steps of warmup
    would hardly change the weights."""
    steps = recipe.dmt.relearn_steps
    return replace(recipe.stage1, max_steps=steps, warmup_steps=0, scheduler="constant")


def relearn(run: Run, records: Records, model, tokenizer) -> fitting.Fit | None:
    """Train the arm "stage2" for dmt.relearn_steps more steps on stage 1's rows, into stage2_relearned. It
    shows whether stage 1's skill is lost or only hidden. Returns None for other arms, and for 0 steps."""
    if not run.recipe.dmt.relearn_steps or records.arm != "stage2":
        return None
    spec = relearning(run.recipe)
    train, validation = (
        tokenize(run.recipe, "stage1", tokenizer, records.stage1.part(part))
        for part in ("train", "validation")
    )
    folder = run.folder / arms.ARMS["relearned"].folder
    result = fitting.fit(
        model, tokenizer, train, validation, spec, folder=folder, max_length=run.recipe.model.max_length
    )
    if models.first_process():
        models.save_adapter(model, tokenizer, folder / "adapter")
        models.remove_checkpoints(folder)  # a few steps, which are cheap to repeat
    return result


def _stage1_optimizer(run: Run) -> Path | None:
    """Stage 1's optimizer.pt if the recipe carries it over, else None; ResultsError if it is missing."""
    if run.recipe.dmt.optimizer_state != "carried":
        return None
    storage.require(run.folder, [f"stage1/{checkpoints.OPTIMIZER}"])
    return run.folder / "stage1" / checkpoints.OPTIMIZER


def finish(run: Run, arm: str, result: fitting.Fit) -> None:
    """Write a training notebook's numbers to run.json and remove the checkpoints. `medkit run` removes them
    itself, when the notebook is complete.

    The notebook's own duration and peak memory, which include loading and preparing, keep their names.
    """
    numbers = dict(vars(result))
    numbers["training_seconds"] = numbers.pop("seconds")
    del numbers["peak_memory_gb"]
    run.finish(**numbers)
    if not run_json.under_runner():
        models.remove_checkpoints(run.folder / arm)


def _identity(run: Run, stage: str, train, validation) -> dict:
    """The fields that must be equal in a checkpoint and in the run that resumes from it."""
    sections = ("model", "data", "lora", "dmt", stage)
    fields = {k: v for k, v in recipes.flat(run.recipe).items() if k.partition(".")[0] in sections}
    identity = storage.plain(fields) | {
        "training rows": tokenization.key(train),
        "validation rows": tokenization.key(validation),
        "base weights": models.base_identity(run.recipe.model),
    }
    if stage == "stage2":
        for adapter in arms.prerequisites("02_stage2", run.recipe):
            identity["stage 1's adapter"] = storage.sha256(run.folder / adapter)[:16]
        if optimizer := _stage1_optimizer(run):
            identity["stage 1's optimizer"] = storage.sha256(optimizer)[:16]
    return identity
