"""A run's two stages, step by step as notebooks 01 and 02 take them: rows in, adapter and manifest out."""

import functools
import json
import tempfile
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

import pandas as pd

from medkit import dmt as mixture
from medkit import recipes
from medkit.data import builtin, contamination, sources
from medkit.runs import inputs, run_json, storage
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


def stage1_mixture(run: Run, loaded: dict[str, sources.Loaded]) -> mixture.Stage1:
    data = run.recipe.data
    return mixture.mix_exams({n: one.by_row() for n, one in loaded.items()}, data.validation_share, data.seed)


def describe_stage1(train: dict, evaluation: dict, mixed: mixture.Stage1, matches: list) -> dict:
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


def stage2_rows(run: Run, first: mixture.Stage1, loaded: sources.Loaded, with_replay: bool):
    """(dmt.Dialogues, dmt.Replay) of one arm. The control arm replays nothing in training; both
    arms validate on the same rows, so that their loss curves can be compared."""
    dmt, data = run.recipe.dmt, run.recipe.data
    split = mixture.split_notechat(
        loaded.by_row(),
        dmt.notechat_train,
        dmt.notechat_validation,
        deduplicate=data.deduplicate,
        by_note=data.notechat_split == "note",
        seed=data.seed,
    )
    drawn = mixture.sample_replay(first, dmt.replay_share, len(split.train), len(split.validation))
    return split, drawn if with_replay else replace(drawn, train=[])


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


def evaluated_in_training(
    split: mixture.Dialogues, first: mixture.Stage1, questions: list, queries: list
) -> tuple[list, list]:
    """Matches (contamination.find) of what evaluates stage 2 in what it has been trained on, besides those of
    notebook 01: exam questions and patients' queries in the consultations, and the queries in stage 1's rows;
    and, apart, of the consultations that validate in those that train."""
    found = contamination.find(split.train, [*questions, *queries, *split.validation])
    talks = {record.source for record in split.validation}
    validation = [match for match in found if match.eval_source in talks]
    others = [match for match in found if match.eval_source not in talks]
    return others + contamination.find(first.records, queries), validation


def describe_stage2(
    loaded: sources.Loaded,
    split: mixture.Dialogues,
    drawn: mixture.Replay,
    first: mixture.Stage1,
    rows,
    matches: list,
    validation_matches: list,
) -> dict:
    """The manifest's stage2: counts, duplicates, every replayed row's id, and replay's share three ways; with
    the two lists of `evaluated_in_training`.

    Duplicates three ways: files of the same bytes, conversations of the same text, and validation
    conversations found in training ones as evaluation items are (contamination.find).
    """
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
            **replay_shares(split, drawn, first, rows),
            "train_ids": drawn.ids(drawn.train),
            "validation_ids": drawn.ids(drawn.validation),
        },
        "overlap": _found(matches),
    }


def replay_shares(split: mixture.Dialogues, drawn: mixture.Replay, first: mixture.Stage1, rows) -> dict:
    """What share of what the replay is. `rows`: the tokenized training rows, conversations first.

    With the loss on answers a replayed exam row brings two supervised tokens and a conversation some
    hundreds, so that a quarter of the rows can be a hundredth of what is learned from.
    """
    start, tokens, supervised = len(split.train), rows["length"], rows["supervised"]
    return {
        "rows_per_stage2_row": len(drawn.train) / start,
        "share_of_stage1": len(drawn.train) / len(first.train),
        "share_of_rows": len(drawn.train) / len(rows),
        "share_of_tokens": sum(tokens[start:]) / sum(tokens),
        "share_of_supervised_tokens": sum(supervised[start:]) / sum(supervised),
    }


def update_manifest(run: Run, part: dict) -> dict:
    """data/manifest.json with `part` put in, written whole; returns it."""
    path = run.folder / "data" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    manifest |= {"recipe": run.recipe.name, **part}
    storage.write_json(path, manifest)
    return manifest


def load_for_stage(run: Run, stage: str):
    """(model, tokenizer) as the stage begins: stage 1 with a fresh adapter on the base; stage 2 with
    stage 1's adapter ("continue"), or with a fresh one on the merged and re-quantized model ("merge")."""
    recipe, spec = run.recipe, getattr(run.recipe, stage)
    inputs.check_tracker(spec.report_to)
    merged = stage == "stage2" and recipe.dmt.handover == "merge"
    wanted = recipe.model
    if merged:
        storage.require(run.folder, ["stage1/merged/config.json"])
        wanted = replace(wanted, base=str(run.folder / "stage1" / "merged"))
    model, tokenizer = models.load(wanted, gradient_checkpointing=spec.gradient_checkpointing)
    run.use_data({"base model": models.base_identity(recipe.model)})
    model = models.attach_lora(
        model, recipe.lora, seed=spec.seed, gradient_checkpointing=spec.gradient_checkpointing
    )
    if stage == "stage2" and not merged:
        storage.require(run.folder, ["stage1/adapter/adapter_model.safetensors"])
        _stage1s_optimizer(run)
        models.use_adapter(model, run.folder / "stage1" / "adapter")
    if stage == "stage1" and recipe.dmt.handover == "merge":  # not after hours of training
        check_merge(model, run.folder / "stage1" / "merged")
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


def _stage1s_optimizer(run: Run) -> Path | None:
    """The file of its state, where stage 2 begins with it; ResultsError where it is missing."""
    if run.recipe.dmt.optimizer_state != "carried":
        return None
    storage.require(run.folder, [f"stage1/{checkpoints.OPTIMIZER}"])
    return run.folder / "stage1" / checkpoints.OPTIMIZER


def arm_of(replay: bool) -> str:
    """The arm of stage 2: with the replay or, for False, without."""
    inputs.check_truth("replay", replay)
    return "stage2" if replay else "stage2_noreplay"


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
    if stage == "stage2":
        begins = run.folder / "stage1" / "adapter" / "adapter_model.safetensors"
        identity["stage 1's adapter"] = storage.sha256(begins)[:16]
        if moments := _stage1s_optimizer(run):
            identity["stage 1's optimizer"] = storage.sha256(moments)[:16]
    return identity


def loss(run: Run, arm: str) -> pd.DataFrame:
    """ARM/loss.csv (loss.read)."""
    return loss_file.read(run.folder, arm)


def write_replay(run: Run, arm: str, drawn: mixture.Replay) -> None:
    """ARM/replay.csv: every replayed row, by part."""
    rows = [
        {"part": part, "source": record.source, "id": record.id}
        for part in ("train", "validation")
        for record in getattr(drawn, part)
    ]
    storage.write_csv(run.folder / arm / "replay.csv", pd.DataFrame(rows, columns=["part", "source", "id"]))
