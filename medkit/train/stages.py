"""A run's two stages, step by step as notebooks 01 and 02 take them: rows in, adapter and manifest out."""

import functools
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from medkit import dmt, recipes
from medkit.data import builtin, contamination, sources
from medkit.runs import arms, inputs, run_json, storage
from medkit.runs import loss as loss_file
from medkit.runs.run_json import Run
from medkit.train import checkpoints, models, tokenization
from medkit.train.merging import check_merge, merge_adapter


@functools.cache
def _builtin(part: str) -> tuple[Path, tempfile.TemporaryDirectory]:
    """The built-in corpus with the evaluation rows of `part`, written once a process."""
    scratch = tempfile.TemporaryDirectory(prefix="medkit-corpus-")
    return builtin.write(scratch.name, part=part), scratch


def load(run: Run, name: str, part: str, progress: bool = True) -> sources.Loaded:
    """One part of a source ("dialogues": stage 2's), from where the run takes its rows, cut to the recipe's
    limits and noted.

    Raises SourceError, and ResultsError where a file is not the one the run began with.
    """
    data = run.recipe.data
    where = run.data_dir or (_builtin(data.builtin_part)[0] if data.origin == "builtin" else None)
    limit = getattr(data, f"rows_{name}", 0) if part == "train" else 0
    source, which = data.reads(name, part)
    loaded = sources.load(source, which, where, limit=limit, progress=progress)
    run.use_data({f"{source}/{file}": digest for file, digest in loaded.files.items()})
    return loaded


def load_exams(run: Run, part: str) -> dict[str, sources.Loaded]:
    return {name: load(run, name, part) for name in sources.EXAMS}


@dataclass(frozen=True)
class Records:
    """What one arm trains and validates on, and where it was read."""

    arm: str  # its folder: "stage1", "stage2" or "stage2_noreplay"
    sources: dict[str, sources.Loaded]  # training parts; stage 2's consultations as "dialogues"
    first: dmt.Stage1
    second: dmt.Stage2 | None = None  # of the arms of stage 2

    @property
    def stage(self) -> str:
        """The part of the recipe that trains it."""
        return self.arm.partition("_")[0]

    @property
    def train(self) -> list:
        return self.second.train if self.second else self.first.part("train")

    @property
    def validation(self) -> list:
        return self.second.validation if self.second else self.first.part("validation")


def mix(recipe: recipes.Recipe, exams: dict[str, Sequence]) -> dmt.Stage1:
    """Stage 1's mixture of a recipe. exams: rows by source, None for a dropped one (Loaded.by_row)."""
    return dmt.mix_exams(exams, recipe.data.validation_share, recipe.data.seed)


def mix_second(
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
    """The records of one arm ("stage1", "stage2", "stage2_noreplay"), read from where the run takes its rows.

    Raises SourceError, MixtureError, and ResultsError where a file is not the one the run began with.
    """
    loaded = load_exams(run, "train")
    first = mix(run.recipe, {name: one.by_row() for name, one in loaded.items()})
    if arm == "stage1":
        return Records(arm, loaded, first)
    loaded["dialogues"] = load(run, "dialogues", "train")
    return Records(
        arm, loaded, first, mix_second(run.recipe, first, loaded["dialogues"].by_row(), arm == "stage2")
    )


def write_manifest(run: Run, records: Records, rows, queries: Sequence = ()) -> dict:
    """The arm's part of data/manifest.json, returned too, with data/overlap_STAGE.csv and, of stage 2,
    ARM/replay.csv.

    rows: the tokenized training rows. queries: the patients' queries that stage 2 is evaluated on. The arm
    without the replay adds nothing to the manifest: it reads the consultations of the arm with it.
    """
    if records.second:
        write_replay(run, records.arm, records.second.replay)
    if records.arm not in ("stage1", "stage2"):
        return {}
    evaluation = load_exams(run, "eval")
    items = [record for one in evaluation.values() for record in one.records]
    if records.second:
        matches, validation = evaluated_in_training(records.second, records.first, items, list(queries))
        described = describe_stage2(records, rows, matches, validation)
        update_manifest(run, {"stage2": described})
    else:
        matches = contamination.find(records.first.records, items)
        described = describe_stage1(records.sources, evaluation, records.first, matches)
        update_manifest(run, described)
    write_overlap(run, records.stage, matches)
    return described


def describe_stage1(train: dict, evaluation: dict, mixed: dmt.Stage1, matches: list) -> dict:
    """data/manifest.json as notebook 01 writes it."""
    described = {
        name: {"train": _described(train[name]), "eval": _described(evaluation[name])} for name in train
    }
    return {
        "sources": described,
        "stage1": {
            "counts": dict(Counter(record.source for record in mixed.records)),
            "total": len(mixed.records),
            "train": len(mixed.train),
            "validation": len(mixed.validation),
            "seed": mixed.seed,
        },
        "overlap": _found(matches),
    }


def _found(matches: list) -> dict:
    found = contamination.contaminated(matches)
    return {
        "counts": contamination.counts(matches),
        "contaminated": sorted(f"{source}/{item}" for source, item in found),
    }


def write_overlap(run: Run, stage: str, matches: list) -> None:
    """data/overlap_STAGE.csv: every evaluation item found in the stage's training rows, how, and where."""
    columns = [field.name for field in fields(contamination.Match)]
    rows = pd.DataFrame([asdict(match) for match in matches], columns=columns)
    storage.write_csv(run.folder / "data" / f"overlap_{stage}.csv", rows)


def _described(loaded: sources.Loaded) -> dict:
    return {
        "rows": loaded.rows,
        "records": len(loaded.records),
        "dropped": dict(loaded.dropped),
        "notes": dict(loaded.notes),
        "origin": loaded.origin,
        "files": loaded.files,
    }


def tokenize(run: Run, stage: str, tokenizer, records: list):
    """The records as the stage's training rows (tokenization.prepare), which tell exam questions apart."""
    rows = tokenization.prepare(
        records,
        tokenizer,
        target=run.recipe.data.mcq_target,
        loss_on=getattr(run.recipe, stage).loss_on,
        max_length=run.recipe.model.max_length,
    )
    return tokenization.with_exams(rows, records)


def prepare(run: Run, records: Records, tokenizer, queries: Sequence = ()):
    """(training rows, validation rows) of an arm, tokenized; its part of the manifest is written.

    queries: the patients' queries that stage 2 is evaluated on, which are looked for in its rows.
    """
    train, validation = (
        tokenize(run, records.stage, tokenizer, part) for part in (records.train, records.validation)
    )
    if models.first_process():
        write_manifest(run, records, train, queries)
    return train, validation


def evaluated_in_training(
    second: dmt.Stage2, first: dmt.Stage1, questions: list, queries: list
) -> tuple[list, list]:
    """Matches (contamination.find) of what evaluates stage 2 in what it has been trained on, besides those of
    notebook 01: exam questions and patients' queries in the consultations, and the queries in stage 1's rows;
    and, apart, of the consultations that validate in those that train."""
    held_out = second.split.validation
    found = contamination.find(second.dialogues, [*questions, *queries, *held_out])
    talks = {record.source for record in held_out}
    validation = [match for match in found if match.eval_source in talks]
    others = [match for match in found if match.eval_source not in talks]
    return others + contamination.find(first.records, queries), validation


def describe_stage2(records: Records, rows, matches: list, validation_matches: list) -> dict:
    """The manifest's stage2: counts, duplicates, every replayed row's id, and replay's share three ways; with
    the two lists of `evaluated_in_training`.

    Duplicates three ways: files of the same bytes, conversations of the same text, and validation
    conversations found in training ones as evaluation items are (contamination.find).
    """
    loaded, second = records.sources["dialogues"], records.second
    split, drawn = second.split, second.replay
    groups = contamination.duplicates(loaded.records)
    same_bytes = Counter(loaded.files.values())
    return {
        "notechat": {
            "source": split.train[0].source,
            "rows": split.rows,
            "dropped": dict(loaded.dropped),
            "kept": split.kept,
            "distinct": split.distinct,
            "train": len(split.train),
            "further": len(second.further),
            "validation": len(split.validation),
            "asked": list(split.asked),
            "validation_verbatim_in_train": split.validation_verbatim_in_train,
            "rows_with_a_note": split.with_note,
            "notes_on_both_sides": split.notes_on_both_sides if split.with_note else None,
            "files": loaded.files,
            "files_of_the_same_bytes": sum(n for n in same_bytes.values() if n > 1),
            "duplicate_groups": {"groups": len(groups), "rows": sum(map(len, groups)), "first": groups[:20]},
            "validation_found_in_train": contamination.counts(validation_matches).get(
                split.train[0].source, {}
            ),
        },
        "replay": {
            "train": len(drawn.train),
            "validation": len(drawn.validation),
            **dmt.replay_shares(records.first, second, rows),
            "train_ids": drawn.ids(drawn.train),
            "validation_ids": drawn.ids(drawn.validation),
        },
        "overlap": _found(matches),
    }


def update_manifest(run: Run, part: dict) -> dict:
    """data/manifest.json with `part` put in, written whole; returns it."""
    path = run.folder / "data" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    manifest |= {"recipe": run.recipe.name, **part}
    storage.write_json(path, manifest)
    return manifest


def load_base(run: Run, stage: str):
    """(model, tokenizer) that the stage's adapter is put on: the base, or, for a stage 2 that is handed over
    by `merge`, the merged model, quantized again."""
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
    """The model's fresh adapter as the stage begins: stage 1's weights go into stage 2's by `continue`. Where
    stage 1 is handed over by `merge`, refuses now, not after hours of training, what cannot be merged."""
    recipe = run.recipe
    if stage == "stage2" and recipe.dmt.handover == "continue":
        storage.require(run.folder, arms.needs("med-mix"))
        _stage1s_optimizer(run)
        models.use_adapter(model, run.folder / "stage1" / "adapter")
    if stage == "stage1" and recipe.dmt.handover == "merge":
        check_merge(model, run.folder / "stage1" / "merged")


def load_for_stage(run: Run, stage: str):
    """(model, tokenizer) as the stage begins, with its adapter (load_base, begin_adapter)."""
    spec = getattr(run.recipe, stage)
    model, tokenizer = load_base(run, stage)
    model = models.attach_lora(
        model, run.recipe.lora, seed=spec.seed, gradient_checkpointing=spec.gradient_checkpointing
    )
    begin_adapter(run, stage, model)
    return model, tokenizer


def fit(run: Run, stage: str, arm: str, model, tokenizer, train, validation, config=None) -> models.Fit:
    """Train one arm ("stage1", "stage2", "stage2_noreplay"), going on from its newest whole checkpoint, and
    leave ARM/adapter and ARM/loss.csv; after a stage 1 that is handed over merged, stage1/merged too.

    config: what train.sft_config gave, changed or not; None for the recipe's own.

    The last checkpoint stays until the notebook is complete (`finish`, or the runner): until then a crash
    must not cost the training that is done.
    """
    folder = run.folder / arm
    done = models.fit(
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
    """How the relearning probe trains: as stage 1, but at its full learning rate from the first step to the
    last, since ten steps of its warmup would hardly move a weight."""
    steps = recipe.dmt.relearn_steps
    return replace(recipe.stage1, max_steps=steps, warmup_steps=0, scheduler="constant")


def relearn(run: Run, records: Records, model, tokenizer) -> models.Fit | None:
    """Train the model, which has just been trained as the arm "stage2", for dmt.relearn_steps optimizer steps
    on stage 1's rows, and leave stage2_relearned/adapter and its loss.csv: whether stage 1's skill is gone or
    only hidden. None, and nothing is done, where the recipe does not ask for it.
    """
    if not run.recipe.dmt.relearn_steps or records.arm != "stage2":
        return None
    spec = relearning(run.recipe)
    train, validation = (
        tokenize(run, "stage1", tokenizer, records.first.part(part)) for part in ("train", "validation")
    )
    folder = run.folder / arms.ARMS["relearned"].folder
    done = models.fit(
        model, tokenizer, train, validation, spec, folder=folder, max_length=run.recipe.model.max_length
    )
    if models.first_process():
        models.save_adapter(model, tokenizer, folder / "adapter")
        models.remove_checkpoints(folder)  # a few steps, from an adapter that is saved
    return done


def _stage1s_optimizer(run: Run) -> Path | None:
    """The file of its state, where stage 2 begins with it; ResultsError where it is missing."""
    if run.recipe.dmt.optimizer_state != "carried":
        return None
    storage.require(run.folder, [f"stage1/{checkpoints.OPTIMIZER}"])
    return run.folder / "stage1" / checkpoints.OPTIMIZER


def finish(run: Run, arm: str, done: models.Fit) -> None:
    """The last act of a training notebook: its numbers into run.json; under the runner it is for that to say
    that the notebook is complete, and to remove the checkpoints."""
    run.finish(**vars(done))
    if not run_json.under_runner():
        models.remove_checkpoints(run.folder / arm)


def _identity(run: Run, stage: str, train, validation) -> dict:
    """What a checkpoint must share with the run that resumes from it."""
    parts = ("model", "data", "lora", "dmt", stage)
    fields = {k: v for k, v in recipes.flat(run.recipe).items() if k.partition(".")[0] in parts}
    identity = storage.plain(fields) | {
        "training rows": tokenization.key(train),
        "validation rows": tokenization.key(validation),
        "base weights": models.base_identity(run.recipe.model),
    }
    for begins in arms.begins_with("02_stage2", run.recipe) if stage == "stage2" else ():
        identity["stage 1's adapter"] = storage.sha256(run.folder / begins)[:16]
    if stage == "stage2" and (moments := _stage1s_optimizer(run)):
        identity["stage 1's optimizer"] = storage.sha256(moments)[:16]
    return identity


def loss(run: Run, arm: str) -> pd.DataFrame:
    """ARM/loss.csv (loss.read)."""
    return loss_file.read(run.folder, arm)


def write_replay(run: Run, arm: str, drawn: dmt.Replay) -> None:
    """ARM/replay.csv: every replayed row, by part."""
    rows = [
        {"part": part, "source": record.source, "id": record.id}
        for part in ("train", "validation")
        for record in getattr(drawn, part)
    ]
    storage.write_csv(run.folder / arm / "replay.csv", pd.DataFrame(rows, columns=["part", "source", "id"]))
