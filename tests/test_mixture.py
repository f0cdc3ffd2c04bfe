"""Mixture and DMT: the paper's counts, splits that keep apart what must be, replay that never crosses."""

from collections import Counter
from typing import NamedTuple

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from medkit import MedkitError, dmt
from medkit.recipes import DmtSpec
from medkit.records import Dialogue, Turn
from medkit.text_keys import content_key

PAPER = {"medqa": 10_178, "medmcqa": 182_822, "pubmedqa": 211_269}  # Table 1


class Row(NamedTuple):
    source: str
    id: str


def exams(**sizes):
    return {name: [Row(name, str(i)) for i in range(count)] for name, count in sizes.items()}


@pytest.fixture(scope="module")
def paper():
    return dmt.mix_exams(exams(**PAPER), 0.1, 42)


def talk(number, note="", text="It hurts."):
    turns = (Turn("user", text), Turn("assistant", f"Answer {number}."))
    return Dialogue(str(number), "notechat", turns, note=note)


def test_the_papers_counts(paper):
    # 10,178 + 182,822 + 211,269 = 404,269; a tenth, rounded up, is 40,427; 404,269 - 40,427 = 363,842
    assert len(paper.records) == 404_269
    assert len(paper.validation) == 40_427
    assert len(paper.train) == 363_842
    assert sorted([*paper.train, *paper.validation]) == list(range(404_269))
    assert Counter(row.source for row in paper.records) == PAPER


def test_every_source_is_on_both_sides_in_its_share(paper):
    held_out = Counter(row.source for row in paper.part("validation"))
    for name, rows in PAPER.items():
        assert held_out[name] == pytest.approx(rows / 10, rel=0.1)  # a random draw, no stratified one


def test_the_papers_replay(paper):
    drawn = dmt.sample_replay(paper, 1 / 3, 100_000, 10_000)
    assert (len(drawn.train), len(drawn.validation)) == (33_333, 3_333)
    ids = {name: set(drawn.ids(getattr(drawn, name))) for name in ("train", "validation")}
    assert len(ids["train"]) == 33_333  # no row twice
    assert ids["train"] <= set(drawn.ids(paper.part("train")))
    assert ids["validation"] <= set(drawn.ids(paper.part("validation")))
    assert not ids["train"] & ids["validation"]


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 3),
    held_out=st.sampled_from([0.1, 0.25, 0.5]),
    share=st.sampled_from([0.0, 1 / 3, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_row_is_lost_doubled_or_replayed_across(sizes, held_out, share, seed):
    sources = exams(**{f"s{i}": size for i, size in enumerate(sizes)})
    first = dmt.mix_exams(sources, held_out, seed)
    train, validation = first.part("train"), first.part("validation")
    assert Counter(train + validation) == Counter(row for rows in sources.values() for row in rows)
    drawn = dmt.sample_replay(first, share, len(train), len(validation))
    assert set(drawn.train) <= set(train)
    assert set(drawn.validation) <= set(validation)
    assert len(set(drawn.train)) == len(drawn.train) == int(share * len(train) + 1e-6)
    again = dmt.mix_exams(sources, held_out, seed)
    assert again.part("train") == train
    assert dmt.sample_replay(again, share, len(train), len(validation)) == drawn


def test_another_seed_is_another_split_and_replay():
    sources = exams(a=60, b=40)
    one, other = (dmt.mix_exams(sources, 0.1, seed) for seed in (42, 43))
    assert set(one.validation) != set(other.validation)
    drawn = [dmt.sample_replay(stage, 0.5, 90, 10) for stage in (one, other)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_shuffle_is_that_of_datasets(count):
    theirs = Dataset.from_dict({"row": list(range(count))}).shuffle(seed=42)["row"][:]
    assert dmt.shuffled(count, 42).tolist() == theirs


def test_rows_that_cannot_be_split_or_replayed():
    with pytest.raises(MedkitError, match="1 rows cannot be split"):
        dmt.mix_exams(exams(a=1), 0.1, 42)
    with pytest.raises(MedkitError, match="0 rows cannot be split"):
        dmt.mix_exams(exams(a=0), 0.1, 42)
    small = dmt.mix_exams(exams(a=20), 0.1, 42)  # 18 + 2
    with pytest.raises(MedkitError, match="asks for 19 of stage 1's 18 train rows"):
        dmt.sample_replay(small, 1.0, 19, 2)
    with pytest.raises(MedkitError, match="asks for 3 of stage 1's 2 validation rows"):
        dmt.sample_replay(small, 1.0, 18, 3)


def dropping(rows, gone):
    """The rows with None in the place of those that are dropped."""
    return [None if i in gone else row for i, row in enumerate(rows)]


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(20, 120), gone=st.sets(st.integers(0, 119), max_size=4), seed=st.integers(0, 2**32 - 1)
)
def test_a_dropped_row_moves_no_other(size, gone, seed):
    """Splits and replay are those of the whole file, without the dropped rows."""
    gone = {i for i in gone if i < size}
    rows = [Row("a", str(i)) for i in range(size)]
    whole = dmt.mix_exams({"a": rows}, 0.25, seed)
    some = dmt.mix_exams({"a": dropping(rows, gone)}, 0.25, seed)
    assert len(some.records) == size - len(gone)
    for part in ("train", "validation"):
        assert some.part(part) == [row for row in whole.part(part) if int(row.id) not in gone]
    replayed = [
        dmt.sample_replay(stage, 0.5, len(whole.train), len(whole.validation)) for stage in (whole, some)
    ]
    for part in ("train", "validation"):
        kept = [row for row in getattr(replayed[0], part) if int(row.id) not in gone]
        assert getattr(replayed[1], part) == kept
    talks = [talk(i) for i in range(size)]
    one, other = (
        split(rows, size // 2, size // 4, deduplicate=False, by_note=False, seed=seed)
        for rows in (talks, dropping(talks, gone))
    )
    assert other.train == [d for d in one.train if int(d.id) not in gone]
    assert other.validation == [d for d in one.validation if int(d.id) not in gone]
    assert (other.rows, other.kept) == (size, size - len(gone))


def test_a_dropped_row_would_change_the_permutation():
    """What one dropped row in 207,001 would do if the rest alone were shuffled: of the release's first
    100,000 rows about 57% would be left."""
    whole, rest = dmt.shuffled(207_001, 42)[:100_000], dmt.shuffled(207_000, 42)[:100_000]
    assert len(set(whole.tolist()) & set((rest + (rest >= 5)).tolist())) < 60_000


def test_rows_that_are_all_dropped_cannot_be_split():
    with pytest.raises(MedkitError, match="0 rows cannot be split"):
        dmt.mix_exams({"a": [None] * 20}, 0.1, 42)
    validate = set(dmt.shuffled(20, 42)[:2].tolist())
    with pytest.raises(MedkitError, match="18 rows cannot be split"):
        dmt.mix_exams({"a": dropping([Row("a", str(i)) for i in range(20)], validate)}, 0.1, 42)


def test_notes_are_counted_where_they_are():
    """Two of six conversations have a note, the same one; conversations without one share none."""
    talks = [talk(i, note="n" if i in (0, 1) else "") for i in range(6)]
    order = dmt.shuffled(6, 42).tolist()
    made = split(talks, 4, 2, deduplicate=False, by_note=False)
    crossed = (0 in order[:4]) != (1 in order[:4])
    assert (made.with_note, made.notes_on_both_sides) == (2, int(crossed))
    made = split([talk(i, text="Equal.") for i in range(6)], 4, 2, deduplicate=False, by_note=False)
    assert (made.with_note, made.notes_on_both_sides) == (0, 0)
    same = [Dialogue(str(i), "notechat", talk(0).turns) for i in range(6)]
    made = split(same, 4, 2, deduplicate=False, by_note=False)  # equal texts are no notes
    assert (made.validation_verbatim_in_train, made.notes_on_both_sides) == (2, 0)


def split(records, train, validation, *, deduplicate=True, by_note=True, seed=42):
    return dmt.split_notechat(records, train, validation, deduplicate=deduplicate, by_note=by_note, seed=seed)


@settings(deadline=None, max_examples=60)
@given(
    notes=st.lists(st.integers(0, 9), min_size=4, max_size=60).filter(lambda notes: len(set(notes)) > 2),
    train=st.integers(1, 40),
    validation=st.integers(1, 10),
    seed=st.integers(0, 1000),
)
def test_by_note_no_note_is_on_both_sides(notes, train, validation, seed):
    records = [talk(i, note=f"note {note}") for i, note in enumerate(notes)]
    try:
        made = split(records, train, validation, seed=seed)
    except MedkitError:
        return  # one note held so many of the conversations that nothing was left for training
    sides = [{d.note for d in side} for side in (made.train, made.validation)]
    assert not sides[0] & sides[1]
    assert made.notes_on_both_sides == 0
    assert made.validation_verbatim_in_train == 0
    assert len(made.train) <= train
    assert len(made.validation) <= validation
    assert set(made.train) | set(made.validation) <= set(records)
    again = split(records, train, validation, seed=seed)
    assert (again.train, again.validation) == (made.train, made.validation)


def test_duplicates_are_dropped_and_counted():
    # 30 conversations, of which 10 twice more with other spacing and case: 50 rows, 30 distinct.
    records = [talk(i, note=f"n{i}") for i in range(30)]
    copies = [
        Dialogue(f"{d.id}-{k}", "notechat", (Turn("user", "IT  hurts"), d.turns[1]), d.note)
        for k in range(2)
        for d in records[:10]
    ]
    made = split(records + copies, 20, 5)
    assert (made.rows, made.distinct) == (50, 30)
    assert (len(made.train), len(made.validation)) == (20, 5)
    keys = [content_key(d) for d in made.train + made.validation]
    assert len(set(keys)) == 25


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_a_copy_without_its_note_is_on_the_side_of_the_note(deduplicate, seed):
    """Rows 0 and 1 are one text, the second with the note of row 2."""
    records = [talk(0), Dialogue("1", "notechat", talk(0).turns, "n"), talk(2, note="n")]
    made = split([*records, *map(talk, range(3, 20))], 9, 9, deduplicate=deduplicate, seed=seed)
    sides = [
        {dialogue.id for dialogue in side} & {"0", "1", "2"}
        for side in (made.train + made.further, made.validation)
    ]
    assert not all(sides) and any(sides)
    assert (made.validation_verbatim_in_train, made.notes_on_both_sides) == (0, 0)


def test_as_released_the_duplicates_cross_and_are_counted():
    records = [talk(i, note=f"n{i}") for i in range(20)]
    made = split(records * 4, 60, 20, deduplicate=False, by_note=False)
    # 80 rows of 20 conversations: a conversation's 4 copies miss the 60 training rows with p = 0.3%.
    assert made.distinct == 20
    assert made.validation_verbatim_in_train == sum(d in made.train for d in made.validation) > 15
    assert made.notes_on_both_sides == len({d.note for d in made.validation} & {d.note for d in made.train})


def test_as_released_rows_are_the_first_of_the_shuffle():
    records = [talk(i) for i in range(50)]
    made = split(records, 30, 10, deduplicate=False, by_note=False)
    theirs = Dataset.from_dict({"row": list(range(50))}).shuffle(seed=42)["row"][:]
    assert [int(d.id) for d in made.train] == theirs[:30]
    assert [int(d.id) for d in made.validation] == theirs[30:40]


def test_where_conversations_are_short_the_proportion_stays():
    # 110 asked for, 55 there: half of each, 50 and 5.
    made = split([talk(i, note=f"n{i}") for i in range(55)], 100, 10)
    assert (len(made.train), len(made.validation), made.requested) == (50, 5, (100, 10))
    # 13 there: 100 * 13/110 = 11.8 and 10 * 13/110 = 1.2
    made = split([talk(i, note=f"n{i}") for i in range(13)], 100, 10)
    assert (len(made.train), len(made.validation)) == (11, 1)


@pytest.mark.parametrize("records", [[], [talk(1)], [talk(1, note="n"), talk(2, note="n")]])
def test_too_few_notes_are_refused(records):
    with pytest.raises(MedkitError, match="NoteChat needs at least two notes"):
        split(records, 10, 1)


def small_study(consultations=20, notes=False):
    """Stage 1 of 40 rows (36 + 4) and a draw of 8 consultations for training and 4 for validation."""
    talks = [talk(i, note=f"note {i}" if notes else "") for i in range(consultations)]
    return dmt.mix_exams(exams(a=40), 0.1, 42), split(talks, 8, 4, by_note=notes)


def mixed(fill="stage1", handover="continue", share=0.5, with_replay=True, study=None):
    first, talks = study or small_study()
    spec = DmtSpec(notechat_train=8, notechat_validation=4, replay_share=share, fill=fill, handover=handover)
    return dmt.mix_stage2(first, talks, spec, with_replay)


@pytest.mark.parametrize("notes", [False, True])
def test_pad_has_the_replay_arms_rows_with_further_consultations_in_their_place(notes):
    study = small_study(notes=notes)
    replayed, padded, control = (
        mixed(study=study),
        mixed("dialogues", study=study),
        mixed(with_replay=False, study=study),
    )
    assert len(replayed.train) == len(padded.train) == 8 + 4  # 0.5 x 8 = 4
    assert (len(replayed.replay.train), len(padded.replay.train), len(padded.further)) == (4, 0, 4)
    assert padded.train[:8] == replayed.train[:8] == control.train
    assert len(set(padded.train)) == 12 and all(isinstance(row, Dialogue) for row in padded.train)
    assert not set(padded.train) & set(padded.split.validation)
    assert replayed.validation == padded.validation == control.validation
    assert len(replayed.validation) == 4 + 2


@settings(deadline=None, max_examples=40)
@given(share=st.sampled_from([0.0, 0.25, 0.5, 1.0]), consultations=st.integers(13, 30))
def test_pad_is_the_draw_of_more_consultations(share, consultations):
    """As if notechat_train had asked for them all, with the same ones held out."""
    first, talks = small_study(consultations)
    extra = int(share * 8)
    if extra > consultations - 12:
        with pytest.raises(MedkitError, match=rf"asks for {extra} further .* {consultations - 12} left"):
            mixed("dialogues", share=share, study=(first, talks))
        return
    padded = mixed("dialogues", share=share, study=(first, talks))
    order = [talk(i) for i in dmt.shuffled(consultations, 42)]
    assert padded.train == order[:8] + order[12 : 12 + extra]
    assert padded.split.validation == order[8:12]


def test_joint_has_all_of_stage_1_beside_the_consultations():
    study = small_study()
    joint = mixed(handover="joint", study=study)
    assert joint.train == study[1].train + study[0].part("train")  # 8 + 36
    assert joint.validation == mixed(study=study).validation
    assert mixed(handover="joint", with_replay=False, study=study).train == study[1].train


def test_shares_of_each_arm():
    study = small_study()
    for arm, replayed, beside in (
        (mixed(study=study), 4, 0),
        (mixed("dialogues", study=study), 0, 4),
        (mixed(handover="joint", study=study), 36, 0),
    ):
        rows = Dataset.from_dict(
            {
                "length": [30] * (8 + beside) + [10] * replayed,
                "supervised": [9] * (8 + beside) + [2] * replayed,
            }
        )
        shares = dmt.replay_shares(study[0], arm, rows)
        assert shares["rows_per_stage2_row"] == replayed / (8 + beside)
        assert shares["share_of_stage1"] == replayed / 36
        assert shares["share_of_rows"] == replayed / (8 + beside + replayed)
        assert shares["share_of_tokens"] == 10 * replayed / (30 * (8 + beside) + 10 * replayed)
        assert shares["share_of_supervised_tokens"] == 2 * replayed / (9 * (8 + beside) + 2 * replayed)
