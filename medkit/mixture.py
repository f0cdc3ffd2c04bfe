"""Which rows a stage trains on: the stage-1 mixture and its split, NoteChat's split, and the DMT replay."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from medkit import MedkitError, overlap
from medkit.records import Dialogue


class MixtureError(MedkitError):
    """Rows that cannot be mixed or split as the recipe asks."""


def shuffled(count: int, seed: int) -> np.ndarray:
    """The order `datasets.Dataset.shuffle(seed)` gives, which the released notebooks use throughout."""
    return np.random.default_rng(seed).permutation(count)


@dataclass(frozen=True)
class Stage1:
    """The union of the exam sources, split for training and validation; indices into `records`."""

    records: Sequence  # source after source
    train: np.ndarray
    validation: np.ndarray
    seed: int

    def part(self, name: str) -> list:
        return [self.records[i] for i in getattr(self, name)]


def stage1(sources: dict[str, Sequence], validation_share: float, seed: int) -> Stage1:
    """Mix the sources and hold out `validation_share` of all rows, rounded up, by `seed`.

    On the paper's sizes (Table 1): 10,178 + 182,822 + 211,269 = 404,269 rows, of which 40,427 validate
    and 363,842 train. Raises MixtureError where one of the two parts would be empty.
    """
    records = [record for rows in sources.values() for record in rows]
    held_out = math.ceil(round(validation_share * len(records), 6))
    if not 0 < held_out < len(records):
        raise MixtureError(f"{len(records)} rows cannot be split with validation_share={validation_share}")
    order = shuffled(len(records), seed)
    return Stage1(records, order[held_out:], order[:held_out], seed)


@dataclass(frozen=True)
class Dialogues:
    """NoteChat as stage 2 uses it; `asked` is larger than what is there where rows were short."""

    train: list[Dialogue]
    validation: list[Dialogue]
    rows: int  # conversations read
    distinct: int  # different conversations among them
    validation_verbatim_in_train: int  # validation conversations that also stand in training
    notes_on_both_sides: int
    asked: tuple[int, int]  # training and validation rows the recipe names


def dialogues(
    records: Sequence[Dialogue], train: int, validation: int, *, deduplicate: bool, by_note: bool, seed: int
) -> Dialogues:
    """Draw training and validation conversations by `seed`.

    `by_note`: all conversations of one clinical note fall on the same side. Where there are fewer
    conversations than asked for, all are used, in the asked proportion. Raises MixtureError where one
    side would be empty.
    """
    keys = [overlap.content_key(record) for record in records]
    first = {}
    for index, key in enumerate(keys):
        first.setdefault(key, index)
    pool = [records[i] for i in first.values()] if deduplicate else list(records)
    scale = min(1.0, len(pool) / (train + validation))
    want_train, want_validation = math.floor(train * scale), max(1, math.floor(validation * scale))
    group = overlap.note_key if by_note else None
    right, left = _draw(pool, want_validation, want_train, group, seed)
    if not left or not right:
        raise MixtureError(
            f"{len(pool)} conversations give {len(left)} for training and {len(right)} for validation; "
            "NoteChat needs at least two notes"
        )
    in_train, notes = {overlap.content_key(d) for d in left}, {overlap.note_key(d) for d in left}
    return Dialogues(
        train=left,
        validation=right,
        rows=len(records),
        distinct=len(first),
        validation_verbatim_in_train=sum(overlap.content_key(d) in in_train for d in right),
        notes_on_both_sides=len(notes & {overlap.note_key(d) for d in right}),
        asked=(train, validation),
    )


def _draw(pool, want_validation: int, want_train: int, group: Callable | None, seed: int):
    """(validation, training). Without `group` training comes first, as in the released notebooks:
    rows 1 to 100,000 of the shuffle train and the next 10,000 validate."""
    order = shuffled(len(pool), seed)
    if group is None:
        return (
            [pool[i] for i in order[want_train : want_train + want_validation]],
            [pool[i] for i in order[:want_train]],
        )
    members: dict[bytes, list] = {}
    for i in order:
        members.setdefault(group(pool[i]), []).append(pool[i])
    right: list = []
    left: list = []
    for rows in members.values():
        (right if len(right) < want_validation else left).extend(rows)
    return right[:want_validation], left[:want_train]


@dataclass(frozen=True)
class Replay:
    """Stage-1 rows that stage 2 trains and validates on again."""

    train: list
    validation: list

    @staticmethod
    def ids(records) -> list[str]:
        return [f"{record.source}/{record.id}" for record in records]


def replay(first: Stage1, share: float, train: int, validation: int) -> Replay:
    """Draw `share` replayed rows per NoteChat row (paper: 1/3) from stage 1's own parts, never across.

    100,000 and 10,000 conversations at 1/3 give 33,333 and 3,333. The draw is the first rows of the
    parts shuffled by stage 1's seed. Raises MixtureError where a part has fewer rows than that.
    """
    drawn = {}
    for name, rows in (("train", train), ("validation", validation)):
        count, have = math.floor(round(share * rows, 6)), len(getattr(first, name))
        if count > have:
            raise MixtureError(f"dmt.replay_share asks for {count} of stage 1's {have} {name} rows; lower it")
        part = first.part(name)
        drawn[name] = [part[i] for i in shuffled(have, first.seed)[:count]]
    return Replay(**drawn)
