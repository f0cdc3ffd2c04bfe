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
    """The built-in corpus with the evaluation rows of `part`, written once a process."""
    scratch = tempfile.TemporaryDirectory(prefix="medkit-corpus-")
    return builtin.write(scratch.name, part=part), scratch


def load_source(run: Run, name: str, part: str, progress: bool = True) -> sources.Loaded:
    """One part of a source ("dialogues": stage 2's), cut to the recipe's limits; its hashes go to run.json.

    Raises SourceError, and ResultsError where a file is not the one the run began with.
    """
    data = run.recipe.data
    where = run.data_dir or (_builtin(data.builtin_part)[0] if data.origin == "builtin" else None)
    limit = data.row_limit(name, part)
    source, which = data.source_part(name, part)
    loaded = sources.load(source, which, where, limit=limit, progress=progress)
    run.use_data({f"{source}/{file}": digest for file, digest in loaded.files.items()})
    return loaded


def load_exams(run: Run, part: str) -> dict[str, sources.Loaded]:
    return {name: load_source(run, name, part) for name in sources.EXAMS}


def mix_stage1(recipe: recipes.Recipe, exams: dict[str, Sequence]) -> dmt.Stage1:
    """Stage 1's mixture of a recipe. exams: rows by source, None for a dropped one (Loaded.by_row)."""
    return dmt.mix_exams(exams, recipe.data.validation_share, recipe.data.seed)


def mix_stage2(
    recipe: recipes.Recipe, first: dmt.Stage1, dialogues: Sequence, with_replay: bool = True
) -> dmt.Stage2:
    """Stage 2's rows of a recipe, of the arm with or without the replay. dialogues: as `mix` takes rows."""
    split = dmt.split_notechat(
        dialogues,
        recipe.dmt.notechat_train,
        recipe.dmt.notechat_validation,
        deduplicate=recipe.data.deduplicate,
        by_note=recipe.data.notechat_split == "note",
        seed=recipe.data.seed,
    )
    return dmt.mix_stage2(first, split, recipe.dmt, with_replay)


def read_records(run: Run, arm: str) -> Records:
    """The records of one arm ("stage1", "stage2", "stage2_noreplay").

    Raises SourceError, MixtureError, and ResultsError where a file is not the one the run began with.
    """
    loaded = load_exams(run, "train")
    first = mix_stage1(run.recipe, {name: one.by_row() for name, one in loaded.items()})
    if arm == "stage1":
        return Records(arm, loaded, first)
    loaded["dialogues"] = load_source(run, "dialogues", "train")
    return Records(
        arm, loaded, first, mix_stage2(run.recipe, first, loaded["dialogues"].by_row(), arm == "stage2")
    )


def write_manifest(run: Run, records: Records, rows, queries: Sequence = ()) -> dict:
    """Write the arm's part of data/manifest.json (returned, too), data/overlap_STAGE.csv and, in stage 2,
    ARM/replay.csv.

    rows: the tokenized training rows. queries: the patients' queries that stage 2 is evaluated on. The arm
    without replay reads the same consultations and adds nothing to the manifest.
    """
    if records.stage2:
        manifest.write_replay(run, records.arm, records.stage2.replay)
    if records.arm not in ("stage1", "stage2"):
        return {}
    evaluation = load_exams(run, "eval")
    items = [record for one in evaluation.values() for record in one.records]
    if records.stage2:
        joint = run.recipe.dmt.handover == "joint"
        matches, validation = manifest.find_overlaps(
            records.stage2, records.stage1, items, list(queries), joint
        )
        described = manifest.describe_stage2(records, rows, matches, validation)
        manifest.update_manifest(run, {"stage2": described})
    else:
        matches = contamination.find(records.stage1.records, items)
        described = manifest.describe_stage1(records.sources, evaluation, records.stage1, matches)
        manifest.update_manifest(run, described)
    manifest.write_overlap(run, records.stage, matches)
    return described


def tokenize(recipe: recipes.Recipe, stage: str, tokenizer, records: Sequence, **more):
    """The records as the stage's training rows (tokenization.prepare, which takes `more`), exam questions
    marked."""
    rows = tokenization.prepare(
        records,
        tokenizer,
        target=recipe.data.mcq_target,
        loss_on=getattr(recipe, stage).loss_on,
        max_length=recipe.model.max_length,
        **more,
    )
    return tokenization.with_exams(rows, records)


def prepare(run: Run, records: Records, tokenizer, queries: Sequence = ()):
    """(training rows, validation rows) of an arm, tokenized; writes its part of the manifest.

    queries: the patients' queries that stage 2 is evaluated on, to be looked for in its rows.
    """
    parts = (records.train, records.validation)
    train, validation = (tokenize(run.recipe, records.stage, tokenizer, part) for part in parts)
    if models.first_process():
        write_manifest(run, records, train, queries)
    return train, validation


def load_base(run: Run, stage: str):
    """(model, tokenizer) before the stage's adapter is added: the base or, in stage 2 after `merge`, the
    merged model, quantized again."""
    recipe, spec = run.recipe, getattr(run.recipe, stage)
    inputs.check_tracker(spec.report_to)
    merged = stage == "stage2" and recipe.dmt.handover == "merge"
    wanted = recipe.model
    if merged:
        storage.require(run.folder, ["stage1/merged/config.json"])
        wanted = replace(wanted, base=str(run.folder / "stage1" / "merged"))
    model, tokenizer = models.load(wanted, gradient_checkpointing=spec.gradient_checkpointing)
    run.use_data({"base model": models.base_identity(recipe.model)})
    return model, tokenizer


def begin_adapter(run: Run, stage: str, model) -> None:
    """Give the model's fresh adapter its first weights: with `continue`, stage 2 begins with stage 1's. With
    `merge`, stage 1 is refused here, not after hours of training, where it could not be merged."""
    recipe = run.recipe
    if stage == "stage2" and recipe.dmt.handover == "continue":
        storage.require(run.folder, arms.adapter_files("med-mix"))
        _stage1s_optimizer(run)
        models.use_adapter(model, run.folder / "stage1" / "adapter")
    if stage == "stage1" and recipe.dmt.handover == "merge":
        check_merge(model, run.folder / "stage1" / "merged")


def load_for_stage(run: Run, stage: str):
    """(model, tokenizer) at the beginning of a stage, with its adapter."""
    spec = getattr(run.recipe, stage)
    model, tokenizer = load_base(run, stage)
    model = models.attach_lora(
        model, run.recipe.lora, seed=spec.seed, gradient_checkpointing=spec.gradient_checkpointing
    )
    begin_adapter(run, stage, model)
    return model, tokenizer


def fit(run: Run, stage: str, arm: str, model, tokenizer, train, validation, config=None) -> fitting.Fit:
    """Train one arm ("stage1", "stage2", "stage2_noreplay") from its newest whole checkpoint on; writes
    ARM/adapter and ARM/loss.csv and, for a hand-over by `merge`, stage1/merged.

    config: of train.sft_config, changed or not; None for the recipe's. The last checkpoint stays until the
    notebook is complete (`finish`, or the runner), so that a crash before does not cost the training.
    """
    folder = run.folder / arm
    done = fitting.fit(
        model,
        tokenizer,
        train,
        validation,
        getattr(run.recipe, stage),
        folder=folder,
        max_length=run.recipe.model.max_length,
        config=config,
        replay_token_share=run.recipe.dmt.replay_token_share if stage == "stage2" else 0.0,
        optimizer_state=_stage1s_optimizer(run) if stage == "stage2" else None,
        identity=_identity(run, stage, train, validation),
        resume=True,
    )
    if models.first_process():
        models.save_adapter(model, tokenizer, folder / "adapter")
        if stage == "stage1" and run.recipe.dmt.optimizer_state == "carried":
            checkpoints.keep_optimizer(folder)
        if stage == "stage1" and run.recipe.dmt.handover == "merge":
            merge_adapter(model, tokenizer, folder / "merged")
    return done


def relearning(recipe: recipes.Recipe) -> recipes.TrainSpec:
    """The relearning probe's TrainSpec: stage 1's, at its full learning rate throughout, since ten steps of
    warmup would hardly move a weight."""
    steps = recipe.dmt.relearn_steps
    return replace(recipe.stage1, max_steps=steps, warmup_steps=0, scheduler="constant")


def relearn(run: Run, records: Records, model, tokenizer) -> fitting.Fit | None:
    """Train the model of the arm "stage2" for dmt.relearn_steps more steps on stage 1's rows, into
    stage2_relearned: is stage 1's skill gone, or only hidden? None where the recipe does not ask for it.
    """
    if not run.recipe.dmt.relearn_steps or records.arm != "stage2":
        return None
    spec = relearning(run.recipe)
    parts = (records.stage1.part(part) for part in ("train", "validation"))
    train, validation = (tokenize(run.recipe, "stage1", tokenizer, part) for part in parts)
    folder = run.folder / arms.ARMS["relearned"].folder
    done = fitting.fit(
        model, tokenizer, train, validation, spec, folder=folder, max_length=run.recipe.model.max_length
    )
    if models.first_process():
        models.save_adapter(model, tokenizer, folder / "adapter")
        models.remove_checkpoints(folder)  # a few steps, from an adapter that is saved
    return done


def _stage1s_optimizer(run: Run) -> Path | None:
    """The file of its state, if stage 2 begins with it; ResultsError where it is missing."""
    if run.recipe.dmt.optimizer_state != "carried":
        return None
    storage.require(run.folder, [f"stage1/{checkpoints.OPTIMIZER}"])
    return run.folder / "stage1" / checkpoints.OPTIMIZER


def finish(run: Run, arm: str, done: fitting.Fit) -> None:
    """Write a training notebook's numbers to run.json and remove the checkpoints; the runner removes them
    itself once the notebook is complete."""
    run.finish(**vars(done))
    if not run_json.under_runner():
        models.remove_checkpoints(run.folder / arm)


def _identity(run: Run, stage: str, train, validation) -> dict:
    """The fields that a checkpoint must share with the run that resumes from it."""
    parts = ("model", "data", "lora", "dmt", stage)
    fields = {k: v for k, v in recipes.flat(run.recipe).items() if k.partition(".")[0] in parts}
    identity = storage.plain(fields) | {
        "training rows": tokenization.key(train),
        "validation rows": tokenization.key(validation),
        "base weights": models.base_identity(run.recipe.model),
    }
    for begins in arms.prerequisites("02_stage2", run.recipe) if stage == "stage2" else ():
        identity["stage 1's adapter"] = storage.sha256(run.folder / begins)[:16]
    if stage == "stage2" and (moments := _stage1s_optimizer(run)):
        identity["stage 1's optimizer"] = storage.sha256(moments)[:16]
    return identity
