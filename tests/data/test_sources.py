"""Every form a data set comes in, and every defect: on rows written for these tests."""

import csv
import json
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.data import converters
from medkit.data.files import read_rows
from medkit.data.formats import data_files
from medkit.data.sources import SOURCES, load
from medkit.pubmedqa import OFFICIAL_TEST_PMIDS
from medkit.records import Dialogue, MCQItem, RecordError, Turn

OPTIONS = {"A": "the tibia", "B": "the ulna", "C": "the sacrum", "D": "the scapula"}
MEDQA = {
    "question": "Which bone lies in the forearm?",
    "options": OPTIONS,
    "answer_idx": "B",
    "answer": "the ulna",
}
MEDMCQA = {
    "id": "q-1",
    "question": "Which gas do erythrocytes carry?",
    "opa": "oxygen",
    "opb": "argon",
    "opc": "xenon",
    "opd": "neon",
    "cop": 0,
    "exp": "A. written here to see that it is never read",
    "subject_name": "Physiology",
}
PUBMEDQA = {
    "pubid": 7,
    "question": "Does walking help?",
    "context": {"contexts": ["Forty adults walked.", "Half felt better."], "labels": ["AIM", "RESULTS"]},
    "long_answer": "Walking helps.",
    "final_decision": "maybe",
}
ORIGINAL = {
    "QUESTION": "Does rest help?",
    "CONTEXTS": ["Ten adults rested."],
    "LONG_ANSWER": "It does.",
    "final_decision": "no",
}
TALK = "Doctor: Good day.\nPatient: I cough.\nDoctor: Since when?\nPatient: Monday.\nDoctor: Rest well."
ICLINIQ = {
    "input": "My ear hurts.",
    "answer_icliniq": "Hello. Keep it dry.",
    "answer_chatgpt": "model text",
    "answer_chatdoctor": "model text",
}
MAGIC = {
    "instruction": "As a doctor, answer the patient.",
    "input": "My knee clicks.",
    "output": "Hello, that is common.",
}


def put(folder, name, content, ending="\n"):
    """Write rows (as JSON Lines) or a given text under folder/name."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, list):
        content = ending.join(json.dumps(row) for row in content) + ending
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def parquet(folder, name, table):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path)


def medmcqa(n, base):
    """n rows whose answers go round A, B, C, D, in the convention that counts from base."""
    return [
        {**MEDMCQA, "id": f"q-{i}", "question": f"{MEDMCQA['question']} ({i})", "cop": i % 4 + base}
        for i in range(n)
    ]


def refused(data_dir, name, part="train") -> str:
    with pytest.raises(MedkitError) as error:
        load(name, part, data_dir, progress=False)
    message = str(error.value)
    assert "\n" not in message
    return message


def one(data_dir, name, part="train"):
    loaded = load(name, part, data_dir, progress=False)
    assert len(loaded.records) == 1
    return loaded.records[0]


# MedQA


@pytest.mark.parametrize(
    "options",
    [OPTIONS, [{"key": k, "value": v} for k, v in OPTIONS.items()]],
    ids=["struct", "list of key and value"],
)
def test_medqa_options_come_as_struct_or_list(tmp_path, options):
    put(tmp_path, "medqa/train.jsonl", [{**MEDQA, "options": options, "meta_info": "step1"}])
    item = one(tmp_path, "medqa")
    assert (item.options, item.answer, item.group) == (tuple(OPTIONS.values()), "B", "step1")


def test_medqa_hf_variant(tmp_path):
    row = {"id": "t-9", "sent1": "Which bone?", "sent2": "", "label": 3} | {
        f"ending{i}": f"bone {i}" for i in range(4)
    }
    put(tmp_path, "medqa/train.jsonl", [row])
    assert one(tmp_path, "medqa") == MCQItem(
        "t-9", "medqa", "Which bone?", ("bone 0", "bone 1", "bone 2", "bone 3"), "D"
    )


def test_medqa_in_parquet_and_csv(tmp_path):
    parquet(tmp_path / "p", "medqa/data/train-00000-of-00001.parquet", [MEDQA])
    with put(tmp_path / "c", "medqa/train.csv", "").open("w", newline="") as file:
        writer = csv.DictWriter(file, MEDQA)
        writer.writeheader()
        writer.writerow({**MEDQA, "options": json.dumps(OPTIONS)})
    assert one(tmp_path / "p", "medqa") == one(tmp_path / "c", "medqa")


def test_five_options_refuse_the_file(tmp_path):
    put(tmp_path, "medqa/train.jsonl", [MEDQA, {**MEDQA, "options": OPTIONS | {"E": "the femur"}}])
    assert refused(tmp_path, "medqa") == (
        "medqa/train.jsonl, line 2: expected the four options A-D, found 5 (ABCDE); use the 4-option files"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"options": {"A": "x", "B": "y", "C": "z"}}, "not four options"),
        ({"options": OPTIONS | {"D": " "}}, "empty option"),
        ({"options": OPTIONS | {"D": None}}, "empty option"),
        ({"options": OPTIONS | {"D": {"text": "the femur"}}}, "option is not text"),
        ({"options": OPTIONS | {"D": "the Tibia"}}, "repeated option"),
        ({"answer_idx": "E"}, "answer is no option"),
        ({"answer_idx": None}, "answer_idx is not text"),
        ({"answer": "the tibia"}, "answer text is not the option of its letter"),
        ({"question": "  "}, "empty question"),
        ({"question": "half a pair \ud83d"}, "text is not valid Unicode"),
    ],
)
def test_a_medqa_row_that_cannot_be_used_is_dropped_by_name_and_number(tmp_path, change, reason):
    put(tmp_path, "medqa/train.jsonl", [MEDQA, MEDQA | change])
    loaded = load("medqa", "train", tmp_path, progress=False)
    assert (loaded.rows, len(loaded.records), loaded.dropped) == (2, 1, {reason: 1})
    assert loaded.first_dropped[reason] in (
        f"medqa/train.jsonl, line 2: {reason}: medqa-train-000001",
        f"medqa/train.jsonl, line 2: {reason}: medqa-train-000001 has ABC",
        f"medqa/train.jsonl, line 2: {reason}: NoneType",
        f"medqa/train.jsonl, line 2: {reason}: dict",
    )  # and nothing of the row's text, since it goes into manifests


def test_medqa_evaluates_on_test_and_passes_over_validation(tmp_path):
    put(tmp_path, "medqa/validation.jsonl", [MEDQA | {"question": "From validation?"}])
    put(tmp_path, "medqa/phrases_no_exclude_test.jsonl", [MEDQA])
    assert one(tmp_path, "medqa", "eval").question == MEDQA["question"]


# MedMCQA


@pytest.mark.parametrize("base", [0, 1])
def test_cop_convention_is_the_files(tmp_path, base):
    put(tmp_path, "medmcqa/train.json", medmcqa(6, base))  # answers A B C D A B: both 0 and 4 can be reached
    loaded = load("medmcqa", "train", tmp_path, progress=False)
    assert "".join(item.answer for item in loaded.records) == "ABCDAB"
    assert {item.group for item in loaded.records} == {"Physiology"}


def test_two_files_of_different_conventions_are_judged_apart(tmp_path):
    put(tmp_path, "medmcqa/train_a.jsonl", medmcqa(4, 0))
    put(
        tmp_path,
        "medmcqa/train_b.jsonl",
        [row | {"question": "Other: " + row["question"]} for row in medmcqa(4, 1)],
    )
    loaded = load("medmcqa", "train", tmp_path, progress=False)
    assert "".join(item.answer for item in loaded.records) == "ABCDABCD"
    assert len({item.id for item in loaded.records}) == 8  # the upstream's ids repeat, ours may not
    assert loaded.notes["rows whose id repeats an earlier one's"] == 4


@pytest.mark.parametrize(
    ("cops", "found"),
    [
        ([0, 1, 4], "found both 0 (line 1) and 4 (line 3)"),
        ([-1, -1], "found -1 (line 1)"),
        ([0, 5], "found 5 (line 2)"),
        ([1, 2, 3], "found only [1, 2, 3]"),
        ([0, None], "found 'None' (line 2)"),
        ([0, "a"], "found 'a' (line 2)"),
        ([0, True], "found 'True' (line 2)"),
        ([0, [1]], "found '[1]' (line 2)"),
        ([0, 1.5], "found 1.5 (line 2)"),
    ],
)
def test_cop_that_cannot_be_told_refuses_the_file(tmp_path, cops, found):
    put(tmp_path, "medmcqa/dev.json", [MEDMCQA | {"cop": cop} for cop in cops])
    message = refused(tmp_path, "medmcqa", "eval")
    assert message.startswith("medmcqa/dev.json: expected") and found in message


def test_a_fifth_option_refuses_a_medmcqa_file(tmp_path):
    put(tmp_path, "medmcqa/dev.json", [row | {"ope": "a fifth"} for row in medmcqa(4, 0)])
    assert refused(tmp_path, "medmcqa", "eval").endswith(
        "line 1: expected the four options opa to opd, found a fifth (ope); use a 4-option file"
    )


def test_a_note_that_is_no_text_is_no_note(tmp_path):
    rows_ = [{"conversation": TALK, "data": note} for note in ("", None, 5)]
    put(tmp_path, "notechat/a.jsonl", rows_)
    assert load("notechat", "train", tmp_path, progress=False).dropped == {"data is not text": 1}


def test_a_file_that_fits_a_form_may_have_other_columns_too(tmp_path):
    endings = {f"ending{number}": "x" for number in range(4)}  # of the other form, whose label is missing
    put(tmp_path, "medqa/train.jsonl", [MEDQA | endings])
    assert len(load("medqa", "train", tmp_path, progress=False).records) == 1


@given(st.lists(st.integers(0, 3), min_size=1, max_size=50))
def test_cop_base_never_guesses(letters):
    for base in (0, 1):
        values = [(f"line {n}", letter + base) for n, letter in enumerate(letters, 1)]
        telling = 0 if base == 0 else 3
        if telling in letters:
            assert converters.cop_base(values) == base
        else:
            with pytest.raises(ValueError, match="cannot be told"):
                converters.cop_base(values)


def test_repeated_options_are_kept_and_counted(tmp_path):
    rows_ = medmcqa(4, 0)
    rows_[0] |= {"opb": "Oxygen"}  # the gold text of A again
    rows_[1] |= {"opc": "neon"}  # gold is B; C and D are the same
    put(tmp_path, "medmcqa/dev.json", rows_)
    loaded = load("medmcqa", "eval", tmp_path, progress=False)
    assert len(loaded.records) == 4
    assert loaded.notes == {
        "rows that repeat an option's text": 2,
        "rows that repeat the correct option's text": 1,
    }


def test_medmcqa_explanation_never_enters_a_record(tmp_path):
    put(tmp_path, "medmcqa/dev.json", medmcqa(4, 0))
    assert "written here to see" not in repr(load("medmcqa", "eval", tmp_path, progress=False).records)


def test_medmcqa_test_file_is_not_for_evaluation(tmp_path):
    put(tmp_path, "medmcqa/test.json", [MEDMCQA | {"cop": -1}])
    assert "the test answers are not public" in refused(tmp_path, "medmcqa", "eval")


def test_medmcqa_csv_and_parquet_numbers(tmp_path):
    parquet(
        tmp_path / "p", "medmcqa/train.parquet", [row | {"cop": float(row["cop"])} for row in medmcqa(4, 0)]
    )
    with put(tmp_path / "c", "medmcqa/train.csv", "").open("w", newline="") as file:
        writer = csv.DictWriter(file, MEDMCQA)
        writer.writeheader()
        writer.writerows(medmcqa(4, 0))
    both = [load("medmcqa", "train", tmp_path / kind, progress=False).records for kind in "pc"]
    assert both[0] == both[1] and [item.answer for item in both[0]] == list("ABCD")


# PubMedQA


def test_pubmedqa_two_schemas(tmp_path):
    put(tmp_path, "pubmedqa/pqa_labeled/train-00000.jsonl", [PUBMEDQA])
    put(
        tmp_path,
        "pubmedqa/ori_pqaa.json",
        json.dumps({"11": ORIGINAL, "12": ORIGINAL | {"QUESTION": "Again?"}}, indent=1),
    )
    hub = one(tmp_path, "pubmedqa", "eval")
    assert (hub.id, hub.answer, hub.context) == ("7", "C", "Forty adults walked.\nHalf felt better.")
    original = load("pubmedqa", "train", tmp_path, progress=False).records
    assert [(item.id, item.answer, item.group) for item in original] == [("11", "B", ""), ("12", "B", "")]
    assert "Walking helps" not in repr(hub) and "It does" not in repr(original)


def test_pubmedqa_keyed_document_on_one_line(tmp_path):
    put(tmp_path, "pubmedqa/ori_pqal.json", json.dumps({"11": ORIGINAL}))
    assert one(tmp_path, "pubmedqa", "eval").id == "11"


def test_pubmedqa_fold_is_known_without_the_ground_truth_file(tmp_path):
    inside = min(OFFICIAL_TEST_PMIDS)
    put(
        tmp_path,
        "pubmedqa/ori_pqal.json",
        json.dumps({str(inside): ORIGINAL, "1": ORIGINAL | {"QUESTION": "Other?"}}),
    )
    put(tmp_path, "pubmedqa/test_ground_truth.json", json.dumps({str(inside): "no"}))
    loaded = load("pubmedqa", "eval", tmp_path, progress=False)
    assert [item.group for item in loaded.records] == ["fold", ""]
    assert list(loaded.files) == ["pubmedqa/ori_pqal.json"]  # the ground truth holds no rows
    assert len(OFFICIAL_TEST_PMIDS) == 500


def test_pubmedqa_parts_go_by_configuration_not_by_split_name(tmp_path):
    put(tmp_path, "pubmedqa/pqa_artificial/train-0.jsonl", [PUBMEDQA | {"final_decision": "yes"}])
    put(tmp_path, "pubmedqa/pqa_labeled/train-0.jsonl", [PUBMEDQA])
    put(tmp_path, "pubmedqa/pqa_unlabeled/train-0.jsonl", [{"question": "never read"}])
    assert one(tmp_path, "pubmedqa", "train").answer == "A"
    assert one(tmp_path, "pubmedqa", "eval").answer == "C"


def test_pubmedqa_plain_split_names(tmp_path):
    put(tmp_path, "pubmedqa/train.jsonl", [PUBMEDQA | {"final_decision": "yes"}])
    put(tmp_path, "pubmedqa/test.jsonl", [PUBMEDQA])
    assert (one(tmp_path, "pubmedqa", "train").answer, one(tmp_path, "pubmedqa", "eval").answer) == ("A", "C")


def test_pubmedqa_rows_without_decision_or_context_are_dropped(tmp_path):
    bad = [PUBMEDQA | {"final_decision": "unclear"}, PUBMEDQA | {"context": {"contexts": []}}]
    put(tmp_path, "pubmedqa/pqa_labeled.jsonl", [PUBMEDQA, *bad])
    dropped = load("pubmedqa", "eval", tmp_path, progress=False).dropped
    assert dropped == {"decision is not yes, no or maybe": 1, "no context": 1}


def test_the_same_rows_in_two_forms_count_once(tmp_path):
    twin = {
        "QUESTION": "Does walking help?",
        "CONTEXTS": PUBMEDQA["context"]["contexts"],
        "final_decision": "maybe",
    }
    put(tmp_path, "pubmedqa/ori_pqal.json", json.dumps({"7": twin}))
    put(tmp_path, "pubmedqa/pqa_labeled.jsonl", [PUBMEDQA, PUBMEDQA | {"pubid": 8, "question": "Another?"}])
    loaded = load("pubmedqa", "eval", tmp_path, progress=False)
    assert (loaded.rows, len(loaded.records)) == (3, 2)  # 1 + 2 - 1 = 2
    assert loaded.dropped == {"repeated in another file": 1}


def test_another_answer_to_the_same_question_is_named(tmp_path):
    put(tmp_path, "medqa/train_a.jsonl", [MEDQA])
    put(tmp_path, "medqa/train_b.jsonl", [MEDQA | {"answer_idx": "C", "answer": "the sacrum"}])
    loaded = load("medqa", "train", tmp_path, progress=False)
    assert loaded.dropped == {"repeated in another file, other answer": 1}


# NoteChat


def talk(conversation, note=""):
    notes = Counter()
    return converters.notechat({"conversation": conversation, "data": note}, "n-1", notes), +notes


@pytest.mark.parametrize("text", [TALK, "\n" + TALK.replace("\n", "\n\n"), TALK.replace("\n", "  \n \n")])
def test_notechat_blank_lines_and_leading_newline_make_no_difference(text):
    dialogue, _ = talk(text, "A note.")
    assert dialogue.turns == (
        Turn("assistant", "Good day."),
        Turn("user", "I cough."),
        Turn("assistant", "Since when?"),
        Turn("user", "Monday."),
        Turn("assistant", "Rest well."),
    )
    assert dialogue.note == "A note."


def test_notechat_lines_of_one_role_become_one_turn():
    dialogue, _ = talk(
        "Patient: I cough.\nPatient's wife: All night.\nNurse: Noted.\nDoctor: I see.\nDr. Low: Rest."
    )
    assert dialogue.turns == (
        Turn("user", "I cough.\nAll night.\nNoted."),
        Turn("assistant", "I see.\nRest."),
    )


def test_notechat_continues_a_turn_only_where_the_speaker_is_plain():
    dialogue, _ = talk(
        "Patient: What now?\nDoctor: Three things:\n1. Rest.\n- Drink.\nPatient:\nFine.\n**Doctor:** Good."
    )
    assert [turn.text for turn in dialogue.turns] == [
        "What now?",
        "Three things:\n1. Rest.\n- Drink.",
        "Fine.",
        "Good.",
    ]


@pytest.mark.parametrize(
    ("text", "note", "turns"),
    [
        ("Here is the talk you asked for.\n\n" + TALK, "rows with a preamble cut", 5),
        ("The talk you asked:\n" + TALK, "rows with a preamble cut", 5),
        (
            TALK.replace("\nPatient: Monday", "\n[He examines her]\nPatient: Monday"),
            "rows cut at a stage line",
            3,
        ),
        (TALK + "\nPatient: Thank you.", "rows with a last patient turn cut", 5),
    ],
)
def test_notechat_what_is_cut_is_counted(text, note, turns):
    dialogue, notes = talk(text, "A note.")
    assert notes == {note: 1}
    assert len(dialogue.turns) == turns and "asked" not in repr(dialogue) and "examines" not in repr(dialogue)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Doctor: Good day.\nDoctor: Nobody here.", "no patient turn"),
        ("Patient: Hello?\nPatient: Hello?", "no physician turn"),
        (TALK + "\nThey shake hands", "line without a speaker"),
        (TALK + "\nDiagnosis: cough", "speaker not known"),
        (TALK + "\nFamily history: none", "speaker not known"),
        ("Doctor: Hello. Patient: Hi.\nPatient: I cough.\nDoctor: Rest.", "two speakers on one line"),
        ("No label at all.", "no patient turn"),
        (
            "Doctor: Hello.\nPatient: Hi.",
            "fewer than two turns",
        ),  # nothing left after the physician's last turn
        ("", "no patient turn"),
    ],
)
def test_notechat_rows_that_would_need_a_guess_are_dropped(text, reason):
    with pytest.raises(RecordError) as error:
        talk(text)
    assert error.value.reason == reason


@given(
    st.lists(st.sampled_from(["Doctor", "Patient", "Mother"]), min_size=1, max_size=12), st.text(max_size=20)
)
def test_notechat_gives_a_checked_dialogue_or_a_named_reason(speakers, said):
    text = "\n".join(f"{speaker}: {said} {i}." for i, speaker in enumerate(speakers))
    try:
        dialogue, _ = talk(text)
    except RecordError as error:
        assert error.reason
    else:
        assert isinstance(dialogue, Dialogue) and dialogue.turns[-1].role == "assistant"


def test_notechat_keeps_repeated_files_for_the_mixture_to_count(tmp_path):
    for name in ("round1.jsonl", "round2.jsonl"):
        put(tmp_path, f"notechat/{name}", [{"data": "", "conversation": TALK}])
    loaded = load("notechat", "train", tmp_path, progress=False)
    assert (len(loaded.records), len({d.id for d in loaded.records}), loaded.dropped) == (2, 2, {})
    assert len(set(loaded.files.values())) == 1  # one hash: the files are the same


# MTS-Dialog

SECTION = {"ID": "0", "section_header": "CC", "section_text": "Sore ankle."}


def mts(folder, name, *dialogues):
    path = put(folder, f"mts_dialog/{name}", "")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*SECTION, "dialogue"])
        writer.writeheader()
        writer.writerows({**SECTION, "ID": i, "dialogue": text} for i, text in enumerate(dialogues))
    return path


def test_mts_dialog_rows_become_dialogues_with_note_and_section(tmp_path):
    mts(
        tmp_path,
        "MTS-Dialog-TrainingSet.csv",
        f"{TALK} \r\nPatient: I will.",
        "Doctor: Where?\nPatient: Here.",
    )
    loaded = load("mts_dialog", "train", tmp_path, progress=False)
    assert (loaded.rows, loaded.dropped) == (2, {"fewer than two turns": 1})
    assert loaded.notes == {"rows with a last patient turn cut": 1}
    (dialogue,) = loaded.records
    assert (dialogue.note, dialogue.group, dialogue.source) == ("Sore ankle.", "CC", "mts_dialog")
    assert [turn.text for turn in dialogue.turns][-1] == "Rest well."


def test_mts_dialogs_files_serve_the_part_that_they_are_named_after(tmp_path):
    for n, name in enumerate(("TrainingSet", "ValidationSet", "TestSet-1-A-2023", "TestSet-2-B-2023")):
        mts(
            tmp_path,
            f"Main-Dataset/MTS-Dialog-{name}.csv",
            *[TALK.replace("Monday", f"{name} {i}") for i in range(n + 1)],
        )
    mts(tmp_path, "Augmented-Data/MTS-Dialog-Augmented-TrainingSet-3.csv", TALK)
    mts(tmp_path, "ManualScores/MTS-Dialog-Automatic-Summaries-ValidationSet.csv", TALK)
    counts = {
        part: load("mts_dialog", part, tmp_path, progress=False).rows for part in SOURCES["mts_dialog"].parts
    }
    assert counts == {"train": 1, "validation": 2, "test": 7}  # 3 + 4 = 7


def test_mts_dialogs_folder_may_have_its_authors_name(tmp_path):
    mts(tmp_path, "train.csv", TALK).parent.rename(tmp_path / "MTS-Dialog")
    loaded = load("mts_dialog", "train", tmp_path, progress=False)
    assert list(loaded.files) == ["MTS-Dialog/train.csv"]


def test_mts_dialog_is_not_on_the_hub():
    assert refused(None, "mts_dialog") == (
        "mts_dialog is not read from the hub; get it from https://github.com/abachaa/MTS-Dialog "
        "and give --data-dir"
    )


# PubMedQA's official fold

INSIDE, OUTSIDE = min(OFFICIAL_TEST_PMIDS), min(OFFICIAL_TEST_PMIDS) + 1


@pytest.mark.parametrize(
    ("part", "kept", "reason"),
    [
        ("labelled_outside_fold", OUTSIDE, "in the official test fold"),
        ("official_fold", INSIDE, "outside the official test fold"),
    ],
)
def test_the_labelled_rows_are_split_by_the_official_fold(tmp_path, part, kept, reason):
    assert OUTSIDE not in OFFICIAL_TEST_PMIDS
    labelled = [PUBMEDQA | {"pubid": INSIDE}, PUBMEDQA | {"pubid": OUTSIDE, "question": "Does rest help?"}]
    put(tmp_path, "pubmedqa/pqa_labeled.jsonl", labelled)
    put(tmp_path, "pubmedqa/pqa_artificial.jsonl", [PUBMEDQA])
    loaded = load("pubmedqa", part, tmp_path, progress=False)
    assert [record.id for record in loaded.records] == [str(kept)] and loaded.dropped == {reason: 1}


@pytest.mark.parametrize("part", ["labelled_outside_fold", "official_fold"])
def test_a_row_whose_side_cannot_be_told_is_refused(tmp_path, part):
    put(tmp_path, "pubmedqa/pqa_labeled.jsonl", [{k: v for k, v in PUBMEDQA.items() if k != "pubid"}])
    message = refused(tmp_path, "pubmedqa", part)
    assert message.startswith("pubmedqa/pqa_labeled.jsonl, line 1: expected a PMID (pubid, or the row's key)")


# Consumer queries


@pytest.mark.parametrize("split", ["train", "test"])
def test_icliniq_reference_is_the_physicians_whatever_the_split_is_called(tmp_path, split):
    put(tmp_path, f"icliniq/{split}-00000.jsonl", [ICLINIQ])
    record = one(tmp_path, "icliniq", "eval")
    assert (record.query, record.reference) == ("My ear hurts.", "Hello. Keep it dry.")


@pytest.mark.parametrize(
    ("reference", "kept"),
    [
        ("Rest it. For more information consult a dentist online ", "Rest it."),
        (
            "Rest it. For further information consult an eye care ophthalmologist online --> https://x.y/z",
            "Rest it.",
        ),
        ("Rest it. Revert with more information to a dermatologist online", "Rest it."),
        ("Rest it. For more information consult a dentist online  Take care.", "Rest it. Take care."),
        (
            "Rest it. For more information, ask your own dentist.",
            "Rest it. For more information, ask your own dentist.",
        ),
    ],
)
def test_advertising_tail_is_cut_where_it_is_one(tmp_path, reference, kept):
    put(tmp_path, "icliniq/a.jsonl", [ICLINIQ | {"answer_icliniq": reference}])
    loaded = load("icliniq", "eval", tmp_path, progress=False)
    assert loaded.records[0].reference == kept
    assert loaded.notes["references with an advertisement cut"] == (kept != reference.strip())


def test_what_was_done_to_a_row_is_counted_for_kept_rows_only(tmp_path):
    advertised = ICLINIQ | {"answer_icliniq": "Rest it. For more information consult a dentist online "}
    # 2 rows were cut, 1 of them repeats the other file's: 2 - 1 = 1.
    put(tmp_path, "icliniq/a.jsonl", [advertised])
    put(tmp_path, "icliniq/b.jsonl", [advertised, ICLINIQ | {"input": "My foot hurts."}])
    loaded = load("icliniq", "eval", tmp_path, progress=False)
    assert loaded.dropped == {"repeated in another file": 1}
    assert loaded.notes == {"references with an advertisement cut": 1}


BOTH = pytest.mark.parametrize(
    ("name", "row", "column"), [("icliniq", ICLINIQ, "answer_icliniq"), ("healthcaremagic", MAGIC, "output")]
)


@BOTH
def test_rows_are_dropped_and_counted_by_what_is_wrong_with_them(tmp_path, name, row, column):
    lost = [
        row | {column: text} for text in ("Take the ChatDoctor.  Then rest.", "a rash whicChatDoctorpresses")
    ]
    lost.append(row | {"input": "cougChatDoctores"})
    greets = [row | {column: "Thanks for using Chat Doctor. Rest it."}]
    empty = [row | {column: "Hello. Thank you."}, row | {column: ""}]
    put(tmp_path, f"{name}/data.jsonl", [*lost, *greets, *empty, row])
    assert load(name, "eval", tmp_path, progress=False).dropped == {
        "words lost to the site's name": 3,
        "greets or signs in the site's name": 1,
        "answer without substance": 1,
        "empty reference": 1,
    }


def test_a_corrected_healthcaremagic_answer_is_dropped(tmp_path):
    row = MAGIC | {"input": "I take the Numirex pill.", "output": "The Numirex pill is safe."}
    changed = MAGIC | {"output": "Degree understand your worry. Rest it."}
    put(
        tmp_path,
        "healthcaremagic/data.jsonl",
        [row, changed, row | {"output": "The Lumirex pill is safe."}],
    )
    loaded = load("healthcaremagic", "eval", tmp_path, progress=False)
    assert loaded.dropped == {"words replaced by a spelling corrector": 2}


@pytest.mark.parametrize(
    "instruction", ["Give three tips for sleep.", "", "Act as a doctor.", "Name the patient's bones."]
)
def test_any_other_alpaca_file_is_refused(tmp_path, instruction):
    put(tmp_path, "healthcaremagic/data.jsonl", [MAGIC, MAGIC | {"instruction": instruction}])
    message = refused(tmp_path, "healthcaremagic", "eval")
    assert message.startswith(
        "healthcaremagic/data.jsonl, line 2: expected an instruction to answer a patient as"
    )
    assert message.endswith("not a HealthCareMagic row")


def test_a_file_without_instructions_is_not_healthcaremagics(tmp_path):
    put(tmp_path, "healthcaremagic/data.jsonl", [{"input": "A list.", "output": "A sorted list."}])
    assert "expected the columns input, instruction, output" in refused(tmp_path, "healthcaremagic", "eval")


# Files as a whole


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte-order mark"])
@pytest.mark.parametrize("name", ["train.json", "train.jsonl"])
def test_line_ends_and_json_lines_under_either_name(tmp_path, name, ending, start):
    path = put(tmp_path, f"medqa/{name}", [MEDQA, MEDQA | {"question": "Which other bone?"}], ending)
    path.write_bytes(start + path.read_bytes() + ending.encode())
    assert [item.question for item in load("medqa", "train", tmp_path, progress=False).records] == [
        MEDQA["question"],
        "Which other bone?",
    ]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "train.jsonl",
            json.dumps(MEDQA) + "\n" + json.dumps(MEDQA)[:30],
            "train.jsonl, line 2: expected valid JSON",
        ),
        ("train.json", '[{"question": "cut', "train.json, line 1: expected valid JSON"),
        ("train.json", json.dumps([MEDQA], indent=1)[:-1], "expected valid JSON"),
        ("train.jsonl", b'{"question": "caf\xe9"}\n', "line 1: expected UTF-8, found byte 0xe9"),
        ("train.jsonl", "[1, 2]\n", "row 1: expected a row of named columns, found int 1"),
        ("train.jsonl", "3\n", "found int 3; write one JSON object per line"),
        ("train.json", "3", "expected JSON Lines, a list of rows or an object of rows, found int 3"),
        ("train.jsonl", "", "expected rows, found none"),
        ("train.jsonl", "\n \n", "expected rows, found none"),
        ("train.json", "", "expected rows, found none"),
        (
            "train.parquet",
            "not parquet",
            "expected valid Parquet or Arrow data, found Parquet magic bytes not",
        ),
        ("train.csv", "question,options\nonly one\n", "row 1: expected 2 cells as in the header, found 1"),
        ("train.jsonl", '{"prompt": "x", "completion": "y"}\n', "found completion, prompt: not a MedQA"),
        ("train.jsonl", json.dumps(MEDQA) + '\n{"question": "x"}\n', "line 2: expected the columns"),
        (
            "train.jsonl",
            '{"question": "x", "options": 3, "answer_idx": "A"}\n',
            "line 1: expected options as a struct",
        ),
        ("train.jsonl", "[" * 100_000, "nested too deep"),
        (
            "train.jsonl",
            '{"question": ' + "9" * 5_000 + "}",
            "line 1: expected valid JSON, found Exceeds the",
        ),
        ("train.json", '{"question": ' + "9" * 5_000 + "}", "line 1: expected valid JSON, found Exceeds the"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused_in_one_line(tmp_path, name, content, expected):
    put(tmp_path, f"medqa/{name}", content)
    message = refused(tmp_path, "medqa")
    assert message.startswith(f"medqa/{name}") and expected in message and len(message) < 250


def test_missing_folder_missing_split_and_unclear_name(tmp_path):
    assert refused(tmp_path, "medqa").startswith("no folder medqa in ")
    put(tmp_path, "medqa/questions.jsonl", [MEDQA])
    assert "found medqa/questions.jsonl" in refused(tmp_path, "medqa")
    put(tmp_path, "medqa/train_test.jsonl", [MEDQA])
    assert "cannot tell whether it is for training or evaluation" in refused(tmp_path, "medqa")


def test_pickles_and_hidden_files_are_never_read(tmp_path):
    put(tmp_path, "medqa/train.pkl", b"\x80\x04")
    put(tmp_path, "medqa/.cache/train.jsonl", [MEDQA])
    assert "found no .jsonl, .json, .csv or .parquet file" in refused(tmp_path, "medqa")
    assert data_files(tmp_path) == []


def test_nothing_usable_is_refused_with_the_reasons(tmp_path):
    put(tmp_path, "healthcaremagic/a.jsonl", [MAGIC | {"output": "Take Chat Doctor."}])
    assert refused(tmp_path, "healthcaremagic", "eval").endswith(
        "no usable row among 1: words lost to the site's name (1); look at healthcaremagic/a.jsonl, line 1"
    )


def test_unknown_source_and_part():
    assert "unknown source 'medqq': expected one of medqa, medmcqa" in refused(None, "medqq")
    assert refused(None, "icliniq", "train") == "icliniq has no part 'train': expected eval"


def test_limit_counts_usable_rows(tmp_path):
    put(
        tmp_path,
        "medqa/train.jsonl",
        [MEDQA | {"question": ""}] + [MEDQA | {"question": f"Bone {i}?"} for i in range(9)],
    )
    loaded = load("medqa", "train", tmp_path, limit=4, progress=False)
    assert (len(loaded.records), loaded.rows, loaded.dropped) == (4, 5, {"empty question": 1})  # 1 + 4 = 5


def test_files_are_hashed(tmp_path):
    import hashlib

    path = put(tmp_path, "medqa/train.jsonl", [MEDQA])
    loaded = load("medqa", "train", tmp_path, progress=False)
    assert loaded.files == {"medqa/train.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_long_csv_cells(tmp_path):
    path = put(tmp_path, "a.csv", "data,conversation\n" + "x" * 200_000 + ",y\n")
    assert len(next(read_rows(path))[1]["data"]) == 200_000


# The hub


@pytest.fixture
def hub(monkeypatch):
    """Stands for datasets.load_dataset: returns or raises what the test puts in, and keeps the call."""
    import datasets

    calls = {}

    def load_dataset(hub_id, config, *, split, revision):
        calls.update(hub_id=hub_id, config=config, split=split, revision=revision)
        if isinstance(calls["gives"], Exception):
            raise calls["gives"]
        return calls["gives"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_the_hub_is_asked_for_the_pinned_revision_and_the_declared_split(hub):
    import datasets

    hub["gives"] = datasets.Dataset.from_list([PUBMEDQA, PUBMEDQA | {"pubid": 8}])
    loaded = load("pubmedqa", "eval", progress=False)
    source = SOURCES["pubmedqa"]
    assert hub["config"] == "pqa_labeled" and hub["split"] == "train" and hub["revision"] == source.revision
    assert loaded.files == {"qiaojin/PubMedQA": source.revision} and loaded.origin == "hub"
    assert loaded.notes == {"rows served, where 1000 are declared": 2}
    assert [item.answer for item in loaded.records] == ["C", "C"]


def test_an_unpinned_revision_is_resolved_to_the_commit_that_was_read(hub):
    import datasets

    data = datasets.Dataset.from_list([ICLINIQ])
    commit = "0123456789abcdef0123456789abcdef01234567"
    data.info.download_checksums = {f"hf://datasets/lavita/ChatDoctor-iCliniq@{commit}/data/x.parquet": {}}
    hub["gives"] = datasets.DatasetDict({"whatever": data})
    loaded = load("icliniq", "eval", progress=False)
    assert hub["split"] is None  # mirrors call the only split train or test
    assert loaded.files == {"lavita/ChatDoctor-iCliniq": commit}


def test_an_unreachable_hub_is_one_line(hub):
    hub["gives"] = ConnectionError("no route\nto host")
    message = refused(None, "medmcqa")
    assert message.startswith(
        "openlifescienceai/medmcqa@91c6572: cannot be read from the hub (ConnectionError: no route to"
    )
    assert message.endswith("check the connection, or give --data-dir")


def test_declarations_hold_together():
    for name, source in SOURCES.items():
        assert source.name == name and (source.hub_id.count("/") == 1 or source.home)
        assert source.pinned or source.revision == "main"
        assert {"train", "eval"} & set(source.parts) and all(part.why for part in source.parts.values())
    # The paper's stage 1: 10,178 + 182,822 + 211,269 = 404,269 training rows.
    assert sum(SOURCES[name].parts["train"].rows for name in ("medqa", "medmcqa", "pubmedqa")) == 404_269
    assert sum(SOURCES[name].parts["eval"].rows for name in ("medqa", "medmcqa", "pubmedqa")) == 6_456


def test_by_row_has_none_where_a_row_was_dropped(tmp_path):
    silent = "Doctor: Nobody is here."
    for name, texts in {"a": [silent, TALK, silent], "b": [TALK, silent]}.items():
        put(tmp_path / "notechat", f"{name}.jsonl", [{"conversation": text, "data": ""} for text in texts])
    loaded = load("notechat", "train", tmp_path, progress=False)
    assert [record and record.id[-6:] for record in loaded.by_row()] == [None, "000001", None, "000003", None]
    assert (loaded.rows, sum(loaded.dropped.values())) == (5, 3)
    limited = load("notechat", "train", tmp_path, limit=1, progress=False)
    assert [record is None for record in limited.by_row()] == [True, False]


def test_medqas_options_are_in_the_order_of_their_letters(tmp_path):
    row = {column: value for column, value in MEDQA.items() if column != "answer"}
    row["options"] = dict(reversed(OPTIONS.items()))
    put(tmp_path, "medqa/train.jsonl", [row])
    assert one(tmp_path, "medqa").options == tuple(OPTIONS.values())
