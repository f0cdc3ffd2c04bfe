"""Where a consultation ends: stage lines, scenes, and words that are not for the patient."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit.data.transcript import turns_of
from medkit.records import RecordError, Turn

TALK = "Doctor: What brings you?\nPatient: My ankle is sore.\nDoctor: Keep it high, and see me on Friday."
HEARD = (
    Turn("assistant", "What brings you?"),
    Turn("user", "My ankle is sore."),
    Turn("assistant", "Keep it high, and see me on Friday."),
)
NOTICE = "I am sorry to tell you that your husband passed away this morning."
STAGE, OTHERS = "rows cut at a stage line", "rows cut at words to others than the patient"
LEAK = "rows cut at the generator's leaked instruction"


def dropped(text) -> str:
    with pytest.raises(RecordError) as error:
        turns_of(text)
    return error.value.reason


@pytest.mark.parametrize(
    "line",
    [
        "[The patient's state worsens overnight]",
        "(The doctor leaves and finds the family.)",
        "{Two days later}",
        "<i>Later, in the corridor</i>",
        "【Ward, evening】",
        "（病房）",
        "*The doctor goes out*",
        "**Two weeks later**",
        "***",
        "_The doctor turns to the wife_",
        "~ the next morning ~",
        "---",
        "--- Scene 2 ---",
        "— some hours later —",
        "=====",
        "### In the waiting room",
        "> The doctor leaves",
        "- (The doctor leaves)",
        "* The doctor leaves *",
        "[Scene: a corridor]",
        "(Doctor: leaves the room)",
        "[The doctor leaves",  # goes on in the next line
        "Doctor: [leaves the room]",
        "Doctor: *steps out*",
        "Patient: (The patient dies.)",
        "Doctor (two days later): Welcome back.",
    ],
)
def test_a_stage_line_ends_the_consultation(line):
    """Whatever its brackets: a line that is cut must not join the speeches before and after it."""
    turns, changed = turns_of(f"{TALK}\n{line}\nDoctor: {NOTICE}\nPatient: Oh.\nDoctor: We are here for you.")
    assert turns == HEARD and changed == {STAGE: 1}


@pytest.mark.parametrize(
    "line",
    [
        "Doctor (to the wife): He has died.",
        "Doctor [to the patient's family]: He has died.",
        "**Doctor (turning to the nurse):** Give her two tablets.",
        "Doctor to family: He has died.",
        "Doctor, speaking to the daughter: He has died.",
        "Doctor: To the family: he has died.",
        "Doctor: Turning to the patient's mother, he fell asleep for ever.",
        f"Doctor: {NOTICE}",
        "Doctor: My condolences.",
        "Doctor: I am sorry for your loss.",
        "Doctor: We did all we could, but your loved one is gone.",
        "Doctor: Despite all efforts, the patient died at noon.",
        "Doctor: Unfortunately, he did not make it.",
        "Doctor: We lost her at noon.",
        "Doctor: Your son has just died.",
        "Doctor: The patient was given adrenaline and expired at noon.",
        "Doctor: We were unable to revive your father.",
        "Doctor: Our deepest sympathies.",
        "Doctor: The death certificate lies with the nurse.",
        "Doctor: To the patient's family, I can only say that we tried.",
        f"Wife: How is he?\nDoctor: {NOTICE}",
    ],
)
def test_words_to_others_than_the_patient_end_the_consultation(line):
    turns, changed = turns_of(f"{TALK}\n{line}\nDoctor: Ask for me when you need me.")
    assert turns == HEARD and changed == {OTHERS: 1}


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("(The doctor later calls the family) Your father has died.", STAGE),
        ("[to his wife] Please sit down.", STAGE),
        ("(quietly turning to the nurse) Two tablets.", STAGE),
        ("(calls a colleague) Come in.", STAGE),
        ("*turns to the nurse* Two tablets.", OTHERS),
        (NOTICE, OTHERS),
        ("Turning to your wife, you may come in.", OTHERS),
    ],
)
def test_a_line_is_kept_up_to_where_the_scene_changes_in_it(more, why):
    assert turns_of(f"{TALK} {more}") == (HEARD, {why: 1})


@pytest.mark.parametrize(
    "answer",
    [
        "Take one (after a meal) for two days.",
        "It is swollen (your family history matters), so rest it.",
        "Your mother died of the same disease, I read.",
        "*Rest* is what it needs.",
        "Two things:\n1. Rest.\n(2) Keep it high.\n- Drink.\na) Sleep.",
        "(smiling) It will heal.",
        "You can bring your loved ones.",
        "To your family I would say the same: rest it.",
        "Family: none. Mother: healthy.",
        "Unfortunately, the prescription has expired.",
        "We lost no time, and you had a loss of blood.",
        "You will survive it.",
        "I will tell your family how to wrap it.",
        "The test was repeated (two days later).",
        "Talking to your family can help.",
        "Your mother has passed the gene to you, or your father has passed it on.",
        "The patient's prescription has expired.",
        "It runs in families (mother has diabetes).",
        "Take this (discuss it with your family). Rest.",
        "You should see a colleague (we will refer you to a surgeon).",
        "He wrote a note (patient needs rest).",
        "The patient in that study died, but you are well.",
        "The nurse wrote it down (patient was free of fever).",
    ],
)
def test_brackets_and_relatives_in_speech_end_nothing(answer):
    turns, changed = turns_of(f"Doctor: Yes?\nPatient: My ankle.\nDoctor: {answer}")
    assert turns[-1].text == answer and not +changed


@pytest.mark.parametrize(
    "leak",
    [
        " (If the patient dies, console the family.)",
        " And if the patient dies, console the family.",
        "\nIn case the patient passes away:",
        "\nshould patient eventually die",
        "\nIf the patient eventually dies:\nDoctor: I am sorry for your loss.\nNarrator: The end.",
        "\nDoctor: If the patient dies, I will call.",
        "\nPatient: Thanks.\nWhen the patient expires, end here.",
    ],
)
def test_the_consultation_ends_before_the_sentence_with_the_leaked_instruction(leak):
    assert turns_of(TALK + leak) == (HEARD, {LEAK: 1})


def test_the_first_end_counts():
    text = f"{TALK}\n[Later]\nDoctor: Hm.\nIf the patient dies, console the family."
    assert turns_of(text) == (HEARD, {STAGE: 1})


def test_a_death_that_the_patient_tells_of_is_answered():
    turns, changed = turns_of(
        "Patient: I cannot sleep since my mother died.\nDoctor: I am sorry for your loss. Since when?"
    )
    assert turns[-1].text == "I am sorry for your loss. Since when?" and not +changed


def test_a_death_in_the_family_history_hides_no_notice():
    family = "Doctor: Any illness in the family?\nPatient: My father died of a stroke.\n"
    turns, changed = turns_of(f"{family}{TALK}\nDoctor: We regret to inform you that he has died.")
    assert turns[-1] == HEARD[-1] and changed == {OTHERS: 1}
    # condolences two turns later are for the patient
    kept, changed = turns_of(f"{family}Doctor: When?\nPatient: In May.\nDoctor: My condolences. I see.")
    assert kept[-1].text == "My condolences. I see." and not +changed


def test_the_family_may_be_told_where_no_patient_has_spoken():
    turns, changed = turns_of(f"Doctor: Please sit.\nWife: How is he?\nDoctor: {NOTICE}")
    assert turns[-1].text == NOTICE and not +changed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Doctor: Yes?\n[A pause]\nPatient: My ankle.\nDoctor: Rest.", "nothing left before a stage line"),
        ("Doctor: Yes?\nPatient: My ankle.\n(He looks)\nDoctor: Rest.", "nothing left before a stage line"),
        (
            f"Patient: My ankle.\nDoctor: {NOTICE}",
            "nothing left before words to others than the patient",
        ),
        (TALK + "\nThe doctor leaves the room", "line without a speaker"),
        (TALK + "\nNarrator: Later that day", "speaker not known"),
        (TALK + "\nDoctor 2: I agree.", "a second clinician speaks"),
        (TALK + "\nGuest_clinician: I agree.", "a second clinician speaks"),
        (
            "Doctor: Yes?\nPatient: If the patient dies, say so.\nDoctor: Rest.",
            "nothing left before the generator's leaked instruction",
        ),
        ("If the patient dies, say so.", "nothing left before the generator's leaked instruction"),
    ],
)
def test_what_cannot_be_kept_is_dropped_under_its_reason(text, reason):
    assert dropped(text) == reason


@pytest.mark.parametrize(
    "label",
    ["Doctor", "**Doctor**", "*Doctor*", "[Doctor]", "Dr. Low", "The doctor", '"Doctor', "Doctor (smiling)"],
)
def test_the_physician_is_known_under_any_label(label):
    turns, _ = turns_of(f"Patient: My ankle.\n{label}: Rest it.")
    assert turns == (Turn("user", "My ankle."), Turn("assistant", "Rest it."))


def test_other_speakers_of_mts_dialog_are_the_users():
    turns, _ = turns_of(
        "Doctor: Who is here?\nGuest_family: His wife.\nGuest_family_2: And I.\nDoctor: Good."
    )
    assert turns[1] == Turn("user", "His wife.\nAnd I.")


PIECES = st.sampled_from(
    [
        "Doctor: Rest.",
        "Patient: It hurts.",
        "[Later]",
        "*leaves*",
        "(to the wife)",
        f"Doctor: {NOTICE}",
        "- x",
    ]
)


@given(st.lists(PIECES, max_size=9))
def test_nothing_after_a_stage_line_or_a_notice_is_kept(pieces):
    try:
        turns, changed = turns_of("\n".join([TALK, *pieces]))  # whole before the pieces
    except RecordError as error:
        assert error.reason
        return
    said = "\n".join(turn.text for turn in turns)
    assert not any(text in said for text in ("Later", "leaves", "wife", "husband"))
    assert isinstance(changed, Counter) and changed[STAGE] + changed[OTHERS] <= 1
