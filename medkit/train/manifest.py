"""data/manifest.json and the files beside it: a stage's sources, mixture, and overlaps with evaluation."""

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
    """The records of one arm, and the sources they were read from."""

    arm: str  # its folder: "stage1", "stage2" or "stage2_noreplay"
    sources: dict[str, sources.Loaded]  # training parts; stage 2's consultations as "dialogues"
    stage1: dmt.Stage1
    stage2: dmt.Stage2 | None = None  # of the arms of stage 2

    @property
    def stage(self) -> str:
        """The part of the recipe that applies to it."""
        return self.arm.partition("_")[0]

    @property
    def train(self) -> list:
        return self.stage2.train if self.stage2 else self.stage1.part("train")

    @property
    def validation(self) -> list:
        return self.stage2.validation if self.stage2 else self.stage1.part("validation")


def describe_stage1(train: dict, evaluation: dict, mixed: dmt.Stage1, matches: list) -> dict:
    """data/manifest.json of notebook 01."""
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


def find_overlaps(
    second: dmt.Stage2, first: dmt.Stage1, questions: list, queries: list, joint: bool = False
) -> tuple[list, list]:
    """Two lists of matches (contamination.find): of exam questions and patients' queries in consultations and
    of the queries in stage 1's rows; and of validation consultations in training ones. joint: look for the
    questions in stage 1's rows, too, which notebook 01 does otherwise."""
    held_out = second.split.validation
    found = contamination.find(second.dialogues, [*questions, *queries, *held_out])
    talks = {record.source for record in held_out}
    validation = [match for match in found if match.eval_source in talks]
    others = [match for match in found if match.eval_source not in talks]
    sought = [*questions, *queries] if joint else queries
    return others + contamination.find(first.records, sought), validation


def describe_stage2(records: Records, rows, matches: list, validation_matches: list) -> dict:
    """The manifest's stage2: counts, duplicates, the ids of replayed rows, and the share of the replay.

    Duplicates: files of the same bytes, conversations of the same text, and validation conversations found in
    training ones. matches, validation_matches: of `find_overlaps`.
    """
    loaded, second = records.sources["dialogues"], records.stage2
    assert second is not None, "rows of an arm of stage 2"
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
            "asked": list(split.requested),
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
            **dmt.replay_shares(records.stage1, second, rows),
            "train_ids": drawn.ids(drawn.train),
            "validation_ids": drawn.ids(drawn.validation),
        },
        "overlap": _found(matches),
    }


def update_manifest(run: Run, part: dict) -> dict:
    """Add `part` to data/manifest.json; returns the whole."""
    path = run.folder / "data" / "manifest.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content |= {"recipe": run.recipe.name, **part}
    storage.write_json(path, content)
    return content


def write_replay(run: Run, arm: str, drawn: dmt.Replay) -> None:
    """ARM/replay.csv: every replayed row, by part."""
    rows = [
        {"part": part, "source": record.source, "id": record.id}
        for part in ("train", "validation")
        for record in getattr(drawn, part)
    ]
    storage.write_csv(run.folder / arm / "replay.csv", pd.DataFrame(rows, columns=["part", "source", "id"]))
