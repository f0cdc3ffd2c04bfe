"""Which rows a stage trains on: the stage-1 mixture and its split, NoteChat's split, and the DMT replay."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from medkit import MedkitError
from medkit.recipes import DmtSpec
from medkit.records import Dialogue
from medkit.text_keys import content_key, note_key


class MixtureError(MedkitError):
    """Rows that cannot be mixed or split as the recipe asks."""


def shuffled(count: int, seed: int) -> np.ndarray:
    """The order `datasets.Dataset.shuffle(seed)` gives, which the released notebooks use throughout."""
    return np.random.default_rng(seed).permutation(count)


@dataclass(frozen=True)
class Stage1:
    """The union of the exam sources, split for training and validation.

    Rows are drawn before unusable ones are dropped, as in the released notebooks: dropping a row first would
    change the whole permutation.
    """

    records: Sequence  # the usable rows, source after source
    train_drawn: np.ndarray  # indices into `records` in the order of the draw; -1 where the row was dropped
    validation_drawn: np.ndarray
    seed: int

    @property
    def train(self) -> np.ndarray:
        """Indices into `records`."""
        return self.train_drawn[self.train_drawn >= 0]

    @property
    def validation(self) -> np.ndarray:
        """Indices into `records`."""
        return self.validation_drawn[self.validation_drawn >= 0]

    def part(self, name: str) -> list:
        return [self.records[i] for i in getattr(self, name)]


def mix_exams(sources: dict[str, Sequence], validation_share: float, seed: int) -> Stage1:
    """Mix the sources and hold out `validation_share` of all rows, rounded up, by `seed`.

    sources: the rows of each in their order, None for a dropped one (sources.Loaded.by_row). With the paper's
    sizes (Table 1): 10,178 + 182,822 + 211,269 = 404,269 rows, of which 40,427 validate and 363,842 train.
    Raises MixtureError where one of the two parts would be empty.
    """
    rows = [row for part in sources.values() for row in part]
    usable = np.array([row is not None for row in rows], dtype=bool)
    drawn = np.where(usable, np.cumsum(usable) - 1, -1)[shuffled(len(rows), seed)]
    held_out = math.ceil(round(validation_share * len(rows), 6))
    split = Stage1([row for row in rows if row is not None], drawn[held_out:], drawn[:held_out], seed)
    if not len(split.train) or not len(split.validation):
        raise MixtureError(
            f"{len(split.records)} rows cannot be split with validation_share={validation_share}"
        )
    return split


@dataclass(frozen=True)
class Dialogues:
    """NoteChat as stage 2 uses it; `asked` is larger than what there is where rows were short."""

    train: list[Dialogue]
    validation: list[Dialogue]
    further: list[Dialogue]  # those that a larger training draw would add, in order
    rows: int  # conversations read
    kept: int  # usable ones among them
    distinct: int  # different conversations among those
    with_note: int  # usable ones that have their clinical note
    validation_verbatim_in_train: int  # validation conversations that are training conversations too
    notes_on_both_sides: int  # clinical notes, as far as rows have them
    asked: tuple[int, int]  # training and validation rows that the recipe names


def split_notechat(
    rows: Sequence[Dialogue | None],
    train: int,
    validation: int,
    *,
    deduplicate: bool,
    by_note: bool,
    seed: int,
) -> Dialogues:
    """Draw training and validation conversations by `seed`.

    rows: in their order, None for a dropped one (sources.Loaded.by_row). With neither `deduplicate` nor
    `by_note` the dropped ones are drawn too and then left out, so that the rest are those that the released
    notebooks draw: rows 1 to 100,000 of the shuffle train and the next 10,000 validate. `by_note`: all
    conversations of one clinical note fall on the same side. Where there are fewer conversations than asked
    for, all are used, in the asked proportion. Raises MixtureError where one side would be empty.
    """
    records = [row for row in rows if row is not None]
    by_text: dict[bytes, Dialogue] = {}
    for record in records:
        by_text.setdefault(content_key(record), record)
    distinct = list(by_text.values())
    pool = distinct if deduplicate else records if by_note else list(rows)
    scale = min(1.0, len(pool) / (train + validation))
    to_train, to_validate = math.floor(train * scale), max(1, math.floor(validation * scale))
    drawn = [pool[i] for i in shuffled(len(pool), seed)]
    if by_note:
        notes: dict[bytes, list] = {}
        for dialogue in drawn:
            notes.setdefault(note_key(dialogue), []).append(dialogue)
        held_out, training = [], []
        for dialogues in notes.values():
            (held_out if len(held_out) < to_validate else training).extend(dialogues)
    else:
        held_out = drawn[to_train : to_train + to_validate]
        training = drawn[:to_train] + drawn[to_train + to_validate :]
    parts = held_out[:to_validate], training[:to_train], training[to_train:]
    held_out, training, further = ([row for row in part if row is not None] for part in parts)
    if not training or not held_out:
        raise MixtureError(
            f"{len(records)} conversations give {len(training)} for training and {len(held_out)} for "
            "validation; NoteChat needs at least two notes"
        )
    in_train = {content_key(dialogue) for dialogue in training}
    with_note = [{note_key(dialogue) for dialogue in part if dialogue.note} for part in (training, held_out)]
    return Dialogues(
        train=training,
        validation=held_out,
        further=further,
        rows=len(rows),
        kept=len(records),
        distinct=len(distinct),
        with_note=sum(bool(record.note) for record in records),
        validation_verbatim_in_train=sum(content_key(dialogue) in in_train for dialogue in held_out),
        notes_on_both_sides=len(with_note[0] & with_note[1]),
        asked=(train, validation),
    )


@dataclass(frozen=True)
class Replay:
    """Stage-1 rows that stage 2 trains and validates on again."""

    train: list
    validation: list

    @staticmethod
    def ids(records) -> list[str]:
        return [f"{record.source}/{record.id}" for record in records]


def sample_replay(first: Stage1, share: float, train: int, validation: int) -> Replay:
    """Draw `share` replayed rows per NoteChat row (paper: 1/3) from stage 1's own parts, never across.

    100,000 and 10,000 conversations at 1/3 give 33,333 and 3,333. The draw is the first rows of the
    parts shuffled by stage 1's seed, without the dropped ones among them. Raises MixtureError where a part
    has fewer rows than that.
    """

    def draw(name: str, drawn: np.ndarray, rows: int) -> list:
        count, have = math.floor(round(share * rows, 6)), len(drawn)
        if count > have:
            raise MixtureError(f"dmt.replay_share asks for {count} of stage 1's {have} {name} rows; lower it")
        return [first.records[i] for i in drawn[shuffled(have, first.seed)[:count]] if i >= 0]

    return Replay(
        draw("train", first.train_drawn, train), draw("validation", first.validation_drawn, validation)
    )


@dataclass(frozen=True)
class Stage2:
    """What one arm of stage 2 trains and validates on: consultations first, exam rows after them."""

    split: Dialogues
    further: list[Dialogue]  # consultations instead of replayed rows (dmt.fill)
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
    """The consultations, and what the recipe adds to them: replayed rows; as many further consultations
    (`fill`); or, in one stage for everything (`handover` joint), all of stage 1's training rows.

    Without the replay nothing is added. All arms validate on the same rows, so that their loss curves can be
    compared. Raises MixtureError where there are too few rows of either kind.
    """
    drawn = sample_replay(first, spec.replay_share, len(split.train), len(split.validation))
    if not with_replay:
        return Stage2(split, [], replace(drawn, train=[]))
    if spec.handover == "joint":
        return Stage2(split, [], replace(drawn, train=first.part("train")))
    if spec.fill == "stage1":
        return Stage2(split, [], drawn)
    count = len(drawn.train)
    if count > len(split.further):
        raise MixtureError(
            f"dmt.fill=dialogues asks for {count:,} further consultations of {len(split.further):,} left; "
            "lower dmt.notechat_train or dmt.replay_share"
        )
    return Stage2(split, split.further[:count], replace(drawn, train=[]))


def replay_shares(first: Stage1, second: Stage2, rows) -> dict[str, float]:
    """The replay's share of several things. `rows`: the tokenized training rows of `second.train`.

    With the loss on answers a replayed exam row brings two supervised tokens and a consultation some
    hundreds, so that a quarter of the rows can be a hundredth of what is learned from.
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
