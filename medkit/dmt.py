"""Training rows of both stages: the stage-1 mixture, the NoteChat split, and the DMT replay."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medkit import MedkitError
from medkit.recipes import DmtSpec
from medkit.records import Dialogue
from medkit.text_keys import content_key, note_key


def shuffled(count: int, seed: int) -> np.ndarray:
    """The permutation of `datasets.Dataset.shuffle(seed)`, which the released notebooks use throughout."""
    return np.random.default_rng(seed).permutation(count)


@dataclass(frozen=True)
class Stage1:
    """The union of the exam sources, split into training and validation.

    As in the released notebooks, rows are shuffled before unusable ones are dropped. Dropping them first
    would change the permutation.
    """

    records: Sequence  # the usable rows of all sources, concatenated
    train_order: np.ndarray  # indices into `records` in shuffled order; -1 for dropped rows
    validation_order: np.ndarray
    seed: int

    @property
    def train(self) -> np.ndarray:
        """Indices into `records`."""
        return self.train_order[self.train_order >= 0]

    @property
    def validation(self) -> np.ndarray:
        """Indices into `records`."""
        return self.validation_order[self.validation_order >= 0]

    def part(self, name: str) -> list:
        """The records of "train" or "validation"."""
        return [self.records[i] for i in getattr(self, name)]


def mix_exams(sources: dict[str, Sequence], validation_share: float, seed: int) -> Stage1:
    """Mix the sources and hold out `validation_share` of all rows (rounded up).

    sources: the rows of each source in order, None for a dropped row (sources.Loaded.by_row). The paper's
    sizes (Table 1) give 10,178 + 182,822 + 211,269 = 404,269 rows: 40,427 for validation and 363,842 for
    training. Raises MedkitError if either would be empty.
    """
    rows = [row for source_rows in sources.values() for row in source_rows]
    usable = np.array([row is not None for row in rows], dtype=bool)
    order = np.where(usable, np.cumsum(usable) - 1, -1)[shuffled(len(rows), seed)]
    held_out = math.ceil(round(validation_share * len(rows), 6))
    split = Stage1([row for row in rows if row is not None], order[held_out:], order[:held_out], seed)
    if not len(split.train) or not len(split.validation):
        raise MedkitError(
            f"{len(split.records)} rows cannot be split with validation_share={validation_share}"
        )
    return split


@dataclass(frozen=True)
class Dialogues:
    """NoteChat split for stage 2, with counts of conversations."""

    train: list[Dialogue]
    validation: list[Dialogue]
    further: list[Dialogue]  # unused conversations, in the order in which a larger training set adds them
    rows: int  # read
    kept: int  # usable
    distinct: int  # usable and different
    with_note: int  # usable with a clinical note
    validation_verbatim_in_train: int  # validation conversations that also occur in training
    notes_on_both_sides: int  # clinical notes that occur in both training and validation
    requested: tuple[int, int]  # training and validation rows in the recipe; may exceed the rows available


def split_notechat(
    rows: Sequence[Dialogue | None],
    train: int,
    validation: int,
    *,
    deduplicate: bool,
    by_note: bool,
    seed: int,
) -> Dialogues:
    """Sample `train` and `validation` conversations.

    rows: in file order, None for a dropped row (sources.Loaded.by_row).
    by_note: keep all conversations of a clinical note on the same side.

    Without `deduplicate` and `by_note`, dropped rows are shuffled too and removed afterwards, which gives the
    rows of the released notebooks: the first 100,000 of the shuffle train and the next 10,000 validate. If
    there are too few conversations, all are used in the requested proportion. Raises MedkitError if a side
    would be empty.
    """
    records = [row for row in rows if row is not None]
    keys = {id(record): content_key(record) for record in records}
    by_text = _one_per_text(records, keys)
    distinct = list(by_text.values())
    pool = distinct if deduplicate else records if by_note else list(rows)
    scale = min(1.0, len(pool) / (train + validation))
    n_train, n_validation = math.floor(train * scale), max(1, math.floor(validation * scale))
    order = [pool[i] for i in shuffled(len(pool), seed)]
    if by_note:
        notes: dict[bytes, list] = {}
        for dialogue in order:
            notes.setdefault(note_key(by_text[keys[id(dialogue)]]), []).append(dialogue)
        held_out, training = [], []
        for dialogues in notes.values():
            (held_out if len(held_out) < n_validation else training).extend(dialogues)
    else:
        held_out = order[n_train : n_train + n_validation]
        training = order[:n_train] + order[n_train + n_validation :]
    parts = held_out[:n_validation], training[:n_train], training[n_train:]
    held_out, training, further = ([row for row in part if row is not None] for part in parts)
    if not training or not held_out:
        raise MedkitError(
            f"{len(records)} conversations give {len(training)} for training and {len(held_out)} for "
            "validation; NoteChat needs at least two notes"
        )
    training_keys = {keys[id(dialogue)] for dialogue in training}
    side_notes = [{note_key(dialogue) for dialogue in side if dialogue.note} for side in (training, held_out)]
    return Dialogues(
        train=training,
        validation=held_out,
        further=further,
        rows=len(rows),
        kept=len(records),
        distinct=len(distinct),
        with_note=sum(bool(record.note) for record in records),
        validation_verbatim_in_train=sum(keys[id(dialogue)] in training_keys for dialogue in held_out),
        notes_on_both_sides=len(side_notes[0] & side_notes[1]),
        requested=(train, validation),
    )


def _one_per_text(records: Sequence[Dialogue], keys: dict[int, bytes]) -> dict[bytes, Dialogue]:
    """The first record with each key, or the first of them with a note. keys: by the record's id()."""
    chosen: dict[bytes, Dialogue] = {}
    for record in records:
        first = chosen.setdefault(keys[id(record)], record)
        if record.note and not first.note:
            chosen[keys[id(record)]] = record
    return chosen


@dataclass(frozen=True)
class Replay:
    """Stage-1 rows that stage 2 reuses for training and validation."""

    train: list
    validation: list

    @staticmethod
    def ids(records) -> list[str]:
        return [f"{record.source}/{record.id}" for record in records]


def sample_replay(first: Stage1, share: float, train: int, validation: int) -> Replay:
    """Sample `share` stage-1 rows per NoteChat row (paper: 1/3).

    `train` and `validation` are the numbers of NoteChat rows: 100,000 and 10,000 at 1/3 give 33,333 and
    3,333. Training rows come from stage 1's training rows, validation rows from its validation rows. The
    sample is the start of their permutation by stage 1's seed, without dropped rows. Raises MedkitError if
    stage 1 has too few rows.
    """

    def sample(name: str, order: np.ndarray, rows: int) -> list:
        count, available = math.floor(round(share * rows, 6)), len(order)
        if count > available:
            raise MedkitError(
                f"dmt.replay_share asks for {count} of stage 1's {available} {name} rows; lower it"
            )
        return [first.records[i] for i in order[shuffled(available, first.seed)[:count]] if i >= 0]

    return Replay(
        sample("train", first.train_order, train), sample("validation", first.validation_order, validation)
    )


@dataclass(frozen=True)
class Stage2:
    """Rows of a stage-2 arm: consultations first, then exam rows."""

    split: Dialogues
    further: list[Dialogue]  # additional consultations in place of replayed rows (dmt.fill)
    replay: Replay

    @property
    def dialogues(self) -> list[Dialogue]:
        return self.split.train + self.further

    @property
    def train(self) -> list:
        return self.dialogues + self.replay.train

    @property
    def validation(self) -> list:
        return self.split.validation + self.replay.validation


def mix_stage2(first: Stage1, split: Dialogues, spec: DmtSpec, with_replay: bool = True) -> Stage2:
    """The consultations and the rows that the recipe adds to them.

    These are replayed rows, the same number of further consultations (`fill` dialogues), or all of stage 1's
    training rows (`handover` joint). Without replay nothing is added. All arms validate on the same rows, so
    their loss curves are comparable. Raises MedkitError if there are too few rows.
    """
    replay = sample_replay(first, spec.replay_share, len(split.train), len(split.validation))
    if not with_replay:
        return Stage2(split, [], replace(replay, train=[]))
    if spec.handover == "joint":
        return Stage2(split, [], replace(replay, train=first.part("train")))
    if spec.fill == "stage1":
        return Stage2(split, [], replay)
    count = len(replay.train)
    if count > len(split.further):
        raise MedkitError(
            f"dmt.fill=dialogues asks for {count:,} further consultations of {len(split.further):,} left; "
            "lower dmt.notechat_train or dmt.replay_share"
        )
    return Stage2(split, split.further[:count], replace(replay, train=[]))


def replay_shares(first: Stage1, second: Stage2, rows) -> dict[str, float]:
    """The replay's share of rows and tokens. `rows` are the tokenized rows of `second.train`.

    With the loss on answers, a replayed exam row has two supervised tokens and a consultation has hundreds. A
    quarter of the rows can thus be a hundredth of the supervised tokens.
    """
    replayed, start = len(second.replay.train), len(second.dialogues)
    tokens, supervised = rows["length"], rows["supervised"]
    return {
        "rows_per_stage2_row": replayed / start,
        "share_of_stage1": replayed / len(first.train),
        "share_of_rows": replayed / len(rows),
        "share_of_tokens": sum(tokens[start:]) / sum(tokens),
        "share_of_supervised_tokens": sum(supervised[start:]) / sum(supervised),
    }
