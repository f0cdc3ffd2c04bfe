"""The real rows, where they are beside the checkout: the counts that are documented for them."""

import re
from collections import Counter, defaultdict

import pytest

from medkit.data.sources import load
from medkit.records import LETTERS
from medkit.text_keys import normalize, options_of


@pytest.fixture(scope="module")
def loaded(real_data):
    """load() over the real rows, each part read once."""
    cache = {}

    def get(name, part):
        if (name, part) not in cache:
            cache[name, part] = load(name, part, real_data, progress=False)
        return cache[name, part]

    return get


@pytest.mark.parametrize(
    ("name", "part", "rows", "records"),
    [
        ("medqa", "train", 425, 425),  # 400 in hub columns + 25 of the -hf variant
        ("medqa", "eval", 1_273, 1_273),
        ("medmcqa", "train", 750, 749),  # 150 hub + 600 original, one row in both
        ("medmcqa", "eval", 4_183, 4_183),
        ("pubmedqa", "train", 250, 250),
        ("pubmedqa", "eval", 1_200, 1_000),  # 1,000 original + 200 of the same in hub columns
    ],
)
def test_every_exam_row_is_used_or_counted(loaded, name, part, rows, records):
    got = loaded(name, part)
    assert (got.rows, len(got.records)) == (rows, records)
    assert sum(got.dropped.values()) == rows - records
    assert set(got.dropped) <= {"repeated in another file"}
    assert len({item.id for item in got.records}) == records


def test_medmcqa_dev(loaded):
    dev = loaded("medmcqa", "eval")
    assert dev.notes["rows that repeat an option's text"] == 21
    assert dev.notes["rows that repeat the correct option's text"] == 4
    assert len({item.group for item in dev.records}) >= 20  # subjects


def test_medmcqa_options_that_a_spreadsheet_changed(loaded):
    dates = re.compile(r"\d+-[A-Z][a-z]{2}|\d+:0\d|\d+:\d\d:00")  # "15-Oct", "1:04", "60:40:00"
    rows = [item for item in loaded("medmcqa", "eval").records if any(map(dates.fullmatch, item.options))]
    correct = [item for item in rows if dates.fullmatch(item.options[LETTERS.index(item.answer)])]
    assert (len(rows), len(correct)) == (9, 5)


def test_medmcqa_options_with_labels(loaded):
    assert sum(options_of(item) != item.options for item in loaded("medmcqa", "eval").records) == 2


def test_medmcqa_questions_asked_twice(loaded):
    answers = defaultdict(list)
    for item in loaded("medmcqa", "eval").records:
        options = tuple(map(normalize, item.options))
        content = (normalize(item.question), frozenset(options))
        answers[content].append(options[LETTERS.index(item.answer)])
    repeated = [given for given in answers.values() if len(given) > 1]
    assert Counter(map(len, repeated)) == {2: 13}
    assert sum(len(set(given)) > 1 for given in repeated) == 1


def test_medqa_questions_about_a_picture(loaded):
    picture = re.compile(
        r"(?i)\bis shown\.|\bsee image\b|\bin the( accompanying)? (image|picture|exhibit|photograph)\b|"
        r"\bimage (a|below)\b|\bfigures? [1ab]\b"
    )
    assert sum(bool(picture.search(item.question)) for item in loaded("medqa", "eval").records) == 94


def test_medmcqa_conventions_agree_on_the_row_that_both_files_hold(loaded, real_data, tmp_path):
    """The hub's 0-3 and the original 1-4 give the same letters: the shared row was seen as the same."""
    assert loaded("medmcqa", "train").dropped == {"repeated in another file": 1}


def test_medqa_steps(loaded):
    assert set(Counter(item.group for item in loaded("medqa", "eval").records)) == {"step1", "step2&3"}


def test_pubmedqa_labels_and_the_official_fold(loaded):
    items = loaded("pubmedqa", "eval").records
    assert Counter(item.answer for item in items) == {"A": 552, "B": 338, "C": 110}
    fold = Counter(item.answer for item in items if item.group == "fold")
    assert fold == {"A": 276, "B": 169, "C": 55}  # 276 + 169 + 55 = 500


def test_the_shipped_fold_is_the_upstreams(real_data):
    import json

    from medkit.pubmedqa import OFFICIAL_TEST_PMIDS

    truth = json.loads((real_data / "pubmedqa" / "test_ground_truth.json").read_text())
    assert set(map(int, truth)) == OFFICIAL_TEST_PMIDS


def test_pubmedqa_hub_and_original_columns_give_the_same_items(real_data, tmp_path):
    both = {}
    for file in ("ori_pqal.json", "pqa_labeled_sample_hub.jsonl"):
        folder = tmp_path / file / "pubmedqa"
        folder.mkdir(parents=True)
        (folder / file).symlink_to(real_data / "pubmedqa" / file)
        both[file] = {
            item.id: item for item in load("pubmedqa", "eval", tmp_path / file, progress=False).records
        }
    original, hub = both.values()
    assert len(hub) == 200 and all(original[id] == item for id, item in hub.items())


def test_pqa_artificial_never_says_maybe(loaded):
    assert {item.answer for item in loaded("pubmedqa", "train").records} == {"A", "B"}


def test_notechat(loaded):
    got = loaded("notechat", "train")
    assert (got.rows, len(got.records), +got.dropped) == (13, 13, {})
    assert got.notes["rows cut at the generator's leaked instruction"] == 2
    assert [len(got.records[row].turns) for row in (6, 8)] == [15, 15]  # all turns before it
    assert got.notes["rows without a note"] == 12  # only row 0 has one
    assert all(dialogue.turns[0].role == "assistant" for dialogue in got.records)  # the physician opens


LOST, GREETS = "words lost to the site's name", "greets or signs in the site's name"


@pytest.mark.parametrize(
    ("name", "kept", "dropped"),
    [
        ("icliniq", 39, {LOST: 27, GREETS: 32, "answer without substance": 2}),  # 39 + 27 + 32 + 2 = 100
        ("healthcaremagic", 27, {LOST: 30, GREETS: 37, "words replaced by a spelling corrector": 6}),
    ],
)
def test_consumer_rows_that_are_skipped_are_counted(loaded, name, kept, dropped):
    got = loaded(name, "eval")
    assert (len(got.records), got.dropped) == (kept, dropped)
    assert not any("chat doctor" in f"{r.query} {r.reference}".lower() for r in got.records)
    assert not any(r.reference.endswith("online") for r in got.records)


@pytest.mark.parametrize(
    ("part", "rows", "records", "dropped"),
    [("train", 1_201, 1_016, 185), ("validation", 100, 77, 23), ("test", 400, 323, 77)],
)
def test_mts_dialog(loaded, part, rows, records, dropped):
    got = loaded("mts_dialog", part)
    assert (got.rows, len(got.records), got.dropped.total()) == (rows, records, dropped)
    assert got.dropped["fewer than two turns"] + got.dropped["a second clinician speaks"] > 0.9 * dropped
    assert all(dialogue.note and dialogue.group.isupper() for dialogue in got.records)
    assert not any("cut at" in note for note in got.notes)  # real speech ends at no stage line


def test_pubmedqas_labelled_rows_are_half_fold_and_half_outside(loaded):
    outside, fold = (loaded("pubmedqa", part).records for part in ("labelled_outside_fold", "official_fold"))
    assert (len(outside), len(fold)) == (500, 500)
    assert not {item.id for item in outside} & {item.id for item in fold}
