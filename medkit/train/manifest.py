"""data/manifest.json and related files: a stage's sources, mixture and overlaps with evaluation data."""

import json
from collections import Counter
from dataclasses import asdict, dataclass, fields

import pandas as pd

from medkit import dmt
from medkit.data import contamination, sources
from medkit.runs import storage
from medkit.runs.run_json import Run


@dataclass(frozen=True)
class Records:
    """The records of one arm, and the sources they come from."""

    arm: str  # "stage1", "stage2" or "stage2_noreplay"
    sources: dict[str, sources.Loaded]  # training sources; stage 2's consultations are "dialogues"
    stage1: dmt.Stage1
    stage2: dmt.Stage2 | None = None  # for arms of stage 2

    @property
    def stage(self) -> str:
        """The section of the recipe that applies: "stage1" or "stage2"."""
        return self.arm.partition("_")[0]

    @property
    def train(self) -> list:
        return self.stage2.train if self.stage2 else self.stage1.part("train")

    @property
    def validation(self) -> list:
        return self.stage2.validation if self.stage2 else self.stage1.part("validation")


def describe_stage1(train: dict, evaluation: dict, mixed: dmt.Stage1, matches: list) -> dict:
    """Notebook 01's part of data/manifest.json."""
    return {
        "sources": {
            name: {"train": _describe_source(train[name]), "eval": _describe_source(evaluation[name])}
            for name in train
        },
        "stage1": {
            "counts": dict(Counter(record.source for record in mixed.records)),
            "total": len(mixed.records),
            "train": len(mixed.train),
            "validation": len(mixed.validation),
            "seed": mixed.seed,
        },
        "overlap": _describe_overlap(matches),
    }


def _describe_overlap(matches: list) -> dict:
    return {
        "counts": contamination.counts(matches),
        "contaminated": sorted(f"{source}/{item}" for source, item in contamination.contaminated(matches)),
    }


def write_overlap(run: Run, stage: str, matches: list) -> None:
    """Write data/overlap_STAGE.csv: the evaluation items found in the stage's training rows."""
    columns = [field.name for field in fields(contamination.Match)]
    rows = pd.DataFrame([asdict(match) for match in matches], columns=columns)
    storage.write_csv(run.folder / "data" / f"overlap_{stage}.csv", rows)


def _describe_source(loaded: sources.Loaded) -> dict:
    return {
        "rows": loaded.rows,
        "records": len(loaded.records),
        "dropped": dict(loaded.dropped),
        "notes": dict(loaded.notes),
        "origin": loaded.origin,
        "files": loaded.files,
    }


def find_overlaps(
    stage2: dmt.Stage2, stage1: dmt.Stage1, questions: list, queries: list, joint: bool = False
) -> tuple[list, list]:
    """Evaluation items in training rows, and validation consultations in training consultations.

    Searches the consultations for exam questions and patients' queries, and stage 1's rows for queries.
    joint: search stage 1's rows for questions too, instead of in notebook 01. Returns two lists of matches.
    """
    validation = stage2.split.validation
    matches = contamination.find(stage2.dialogues, [*questions, *queries, *validation])
    validation_sources = {record.source for record in validation}
    validation_matches = [match for match in matches if match.eval_source in validation_sources]
    matches = [match for match in matches if match.eval_source not in validation_sources]
    in_stage1 = contamination.find(stage1.records, [*questions, *queries] if joint else queries)
    return matches + in_stage1, validation_matches


def describe_stage2(records: Records, rows, matches: list, validation_matches: list) -> dict:
    """The manifest's stage2: counts, duplicates, the ids of replayed rows, and the share of the replay.

    Duplicates are files with the same bytes, conversations with the same text, and validation conversations
    that also occur in the training rows. matches, validation_matches: from `find_overlaps`.
    """
    loaded, stage2 = records.sources["dialogues"], records.stage2
    assert stage2 is not None, "rows of an arm of stage 2"
    split, replay = stage2.split, stage2.replay
    groups = contamination.duplicates(loaded.records)
    copies = Counter(loaded.files.values())
    return {
        "notechat": {
            "source": split.train[0].source,
            "rows": split.rows,
            "dropped": dict(loaded.dropped),
            "notes": dict(loaded.notes),
            "kept": split.kept,
            "distinct": split.distinct,
            "train": len(split.train),
            "further": len(stage2.further),
            "validation": len(split.validation),
            "asked": list(split.requested),
            "validation_verbatim_in_train": split.validation_verbatim_in_train,
            "rows_with_a_note": split.with_note,
            "notes_on_both_sides": split.notes_on_both_sides if split.with_note else None,
            "files": loaded.files,
            "files_of_the_same_bytes": sum(n for n in copies.values() if n > 1),
            "duplicate_groups": {"groups": len(groups), "rows": sum(map(len, groups)), "first": groups[:20]},
            "validation_found_in_train": contamination.counts(validation_matches).get(
                split.train[0].source, {}
            ),
        },
        "replay": {
            "train": len(replay.train),
            "validation": len(replay.validation),
            **dmt.replay_shares(records.stage1, stage2, rows),
            "train_ids": replay.ids(replay.train),
            "validation_ids": replay.ids(replay.validation),
        },
        "overlap": _describe_overlap(matches),
    }


def update_manifest(run: Run, entries: dict) -> None:
    """Add `entries` to data/manifest.json."""
    path = run.folder / "data" / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    storage.write_json(path, content | {"recipe": run.recipe.name, **entries})


def write_replay(run: Run, arm: str, replay: dmt.Replay) -> None:
    """Write ARM/replay.csv: the source and id of every replayed row."""
    rows = [
        {"part": part, "source": record.source, "id": record.id}
        for part in ("train", "validation")
        for record in getattr(replay, part)
    ]
    storage.write_csv(run.folder / arm / "replay.csv", pd.DataFrame(rows, columns=["part", "source", "id"]))
