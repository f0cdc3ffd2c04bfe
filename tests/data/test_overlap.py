"""Duplicates and overlaps on texts whose similarity can be counted by hand."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit import pubmedqa
from medkit.data import contamination
from medkit.data.contamination import (
    METHODS,
    contaminated,
    counts,
    duplicates,
    find,
)
from medkit.records import ConsumerQuery, Dialogue, MCQItem, Turn
from medkit.text_keys import content_key, normalize, note_key, text_of

OPTIONS = ("w1", "w2", "w3", "w4")


def words(start, n):
    return " ".join(f"word{i}" for i in range(start, start + n))


def item(id, question, options=OPTIONS, context="", source="medqa"):
    return MCQItem(id, source, question, options, "A", context)


def query(id, text):
    return ConsumerQuery(id, "icliniq", text, " ".join(OPTIONS))


def found(train, evaluation):
    return {(m.eval_id, m.method): m for m in find(train, evaluation, progress=False)}


def test_normalize():
    assert normalize("  The Patient's\u00a0BP: 120/80,\n\n(\ufb01ne_) ") == "the patient s bp 120 80 fine"


@given(st.text(alphabet=st.characters(max_codepoint=0x17F)))
def test_normalize_knows_neither_case_nor_space(text):
    assert normalize(f"\n {text}\t") == normalize(text)
    assert "  " not in normalize(text)


@pytest.mark.parametrize(
    "hidden",
    [
        "Which hormone lowers\u200b glu\u200bcose in the naive pa\u00adtient?",
        "\ufeffWhich hor\u200dmone lowers glu\u2060cose in the naive patient?",
        "Which hormone lowers glucose in the na\u00efve patient?",  # one character
        "Which hormone lowers glucose in the nai\u0308ve patient?",  # two
        "Which hormone lowers glu\u034fcose in the naive pati\ufe00ent?",  # joiner, variation selector
        "\uff37\uff48\uff49\uff43\uff48 hormone lowers \uff47lucose in the naive patient\uff1f",  # full width
        "Which hor-\nmone lowers glucose in the na\u00ad\nive patient?",
        "Which hormone lowers glu\u2010 \n  cose in the naive patient?",
        "Which hormone lowers&nbsp;glu&shy;cose in the na&iuml;ve patient&quest;",
        "Which hormone lowers glu&amp;shy;cose in the naive&#160;patient?",
        "<p>Which <b>hormone</b> lowers<br/>glu<sub>cose</sub> in the <span class='x'>naive</span> patient?",
        "\u201cWhich hormone\u201d lowers\u00a0glucose\u2014in the\u2003naive\u2028patient\u2026",
        "WHICH HORMONE LOWERS GLUCOSE IN THE NA\u0130VE PATIENT?",
    ],
)
def test_what_cannot_be_seen_hides_no_copy(hidden):
    question = "Which hormone lowers glucose in the naive patient?"
    assert normalize(hidden) == normalize(question)
    assert found([item("t", hidden)], [item("e", question)])["e", "exact"].score == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the \ufb01fth o\ufb03ce", "the fifth office"),
        ("stra\u00dfe", "STRASSE"),
        ("5 \u00b5g of H\u2082O", "5 \u03bcg of H2O"),
        ("x\u00b2", "x2"),
        ("the patient\u2019s", "the patient's"),
        ("CO<sub>2</sub> &lt; 35", "CO2 < 35"),
    ],
)
def test_forms_of_the_same_characters(one, other):
    assert normalize(one) == normalize(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("X-\nray", "Xray"),
        ("grade 1-\n2", "grade 12"),
        ("a < b and c > d", "a d"),
        ("R&D", "RD"),
        ("\u03b1 receptor", "a receptor"),
    ],
)
def test_what_is_read_differently_stays_different(one, other):
    assert normalize(one) != normalize(other)


def test_exact_means_after_normalization():
    got = found([item("t", "Which  BONE is it")], [item("e", "which bone is it?")])
    assert got["e", "exact"].score == 1 and got["e", "exact"].train_id == "t"
    assert got["e", "near-duplicate"].score == 1
    assert ("e", "13-gram") not in got  # 4 + 4 words have no 13-gram


@pytest.mark.parametrize(("shared", "hit"), [(12, False), (13, True)])
def test_thirteen_words_make_a_13_gram(shared, hit):
    evaluation = [item("e", words(0, shared) + " " + words(1000, 20))]
    train = [item("t", words(2000, 20) + " " + words(0, shared), options=("a", "b", "c", "d"))]
    got = found(train, evaluation)
    assert set(got) == ({("e", "13-gram")} if hit else set())
    if hit:  # 13 + 20 + 4 = 37 words are 25 13-grams, one of them shared
        assert got["e", "13-gram"].score == pytest.approx(1 / 25, abs=1e-4)


def test_a_changed_word_is_a_near_duplicate():
    # 26 + 4 = 30 words are 28 shingles; a changed word changes 3: 25 / (28 + 28 - 25) = 25/31.
    train = [query("t", words(0, 10) + " other " + words(11, 15))]
    got = found(train, [query("e", words(0, 26))])
    assert got["e", "near-duplicate"].score == pytest.approx(25 / 31, abs=1e-4)
    assert ("e", "exact") not in got


def test_below_the_threshold_is_no_near_duplicate():
    # Two changed words, far apart: 22 / (28 + 28 - 22) = 22/34 = 0.65 < 0.7.
    train = [query("t", words(0, 6) + " other " + words(7, 9) + " another " + words(17, 9))]
    assert ("e", "near-duplicate") not in found(train, [query("e", words(0, 26))])


def test_a_short_question_is_found_in_other_words_and_another_order():
    # Words: drug, for, pain, in, pregnancy of {drug, of choice, for, pain, in, pregnancy} and {best, ...}:
    # 5 shared of 8; all 4 options shared: (5 + 4) / (8 + 4) = 0.75.
    train = item("t", "Drug of choice for pain in pregnancy", ("one", "two", "three", "four"))
    again = item("e", "The drug for pain in pregnancy?", ("four", "two", "one", "three"))
    got = found([train], [again])
    assert set(got) == {("e", "near-duplicate")} and got["e", "near-duplicate"].score == 0.75
    # With two other options, (5 + 2) / (8 + 6) = 0.5.
    assert not found([train], [item("e", again.question, ("four", "two", "five", "six"))])


@pytest.mark.parametrize("shared", [("yes", "all of the above"), ("one", "none of the above")])
def test_one_specific_option_is_not_enough(shared):
    question = "Which is the one first sign of this?"
    train = item("t", f"{question} Please", (*shared, "b c", "d e"))
    evaluation = item("e", f"{question} Now", ("f g", *shared, "h i"))
    assert not found([train], [evaluation])


def test_the_abstracts_of_pubmedqa_are_compared_in_their_order():
    one, other = words(0, 40), " ".join(reversed(words(0, 40).split()))
    pair = [item(id, "Does it help?", pubmedqa.OPTIONS, text) for id, text in (("t", one), ("e", other))]
    assert not found(pair[:1], pair[1:])


def test_near_duplicates_are_those_of_a_plain_comparison():
    """150 texts and their copies with 0 to 6 words changed, against sets compared one by one."""
    rng = random.Random(0)
    originals = [[f"v{rng.randrange(4000)}" for _ in range(rng.randrange(3, 60))] for _ in range(150)]
    copies = []
    for text in originals:
        copy = list(text)
        for _ in range(rng.randrange(7)):
            copy[rng.randrange(len(copy))] = f"new{rng.randrange(4000)}"
        copies.append(copy)
    evaluation = [ConsumerQuery(f"e{i}", "icliniq", " ".join(text), "x") for i, text in enumerate(originals)]
    train = [ConsumerQuery(f"t{i}", "icliniq", " ".join(text), "x") for i, text in enumerate(copies)]

    def shingles(record):
        text = [*record.query.split(), "x"]
        return {tuple(text[i : i + 3]) for i in range(len(text) - 2)}

    expected = {}
    for e in evaluation:
        similarity = max(len(shingles(e) & shingles(t)) / len(shingles(e) | shingles(t)) for t in train)
        if similarity >= contamination.NEAR:
            expected[e.id] = round(similarity, 4)
    got = {
        m.eval_id: m.score for m in find(train, evaluation, progress=False) if m.method == "near-duplicate"
    }
    assert got == expected and 30 < len(expected) < 120


def test_best_row_is_named_and_all_are_counted():
    question = words(0, 30)
    train = [item("far", words(0, 15) + " x y z"), item("near", question), item("again", question)]
    got = found(train, [item("e", question)])
    assert (got["e", "13-gram"].train_id, got["e", "13-gram"].rows) == ("near", 3)
    assert (got["e", "exact"].train_id, got["e", "exact"].rows) == ("near", 2)


def test_training_rows_may_be_a_generator_and_of_another_kind():
    talk = Dialogue("d", "notechat", (Turn("user", words(0, 20)), Turn("assistant", "rest")))
    got = found((row for row in [talk]), [item("e", words(0, 20))])
    assert got["e", "13-gram"].train_source == "notechat"


def test_degenerate_sides():
    assert find([], [item("e", "q")], progress=False) == []
    assert find([item("t", "q")], [], progress=False) == []
    marks = item("m", "???", options=("!", "?", ".", ";"))
    assert find([marks], [marks], progress=False) == []  # no word, so nothing that could be the same
    short = ConsumerQuery("s", "icliniq", "a", "b")
    assert {m.method for m in find([short], [short], progress=False)} == {"exact", "near-duplicate"}


def test_contaminated_and_counts():
    train = [item("t1", words(0, 30)), item("t2", words(100, 13) + " end")]
    evaluation = [
        item("e1", words(0, 30)),
        item("e2", words(100, 13) + " " + words(500, 40)),
        item("e3", words(900, 30)),
    ]
    matches = find(train, evaluation, progress=False)
    assert contaminated(matches) == {("medqa", "e1")}  # e2 shares 1 of 45 13-grams
    assert contaminated(matches, share=0.01) == {("medqa", "e1"), ("medqa", "e2")}
    assert counts(matches) == {
        "medqa": {"exact": 1, "any 13-gram": 2, "50% of 13-grams": 1, "near-duplicate": 1}
    }
    assert {m.method for m in matches} == set(METHODS) - {"same question", "short question"}
    assert counts([*matches, *matches]) == counts(matches)  # found in two sets of rows, and one item


SCURVY = "Which of the following vitamins is deficient in scurvy?"  # nine words


def test_the_order_of_the_options_hides_nothing():
    """Too short for a 13-gram, and in another order too unlike for the shingles."""
    options = ("Vitamin A", "Vitamin B1", "Vitamin C", "Vitamin D")
    got = found([item("t", SCURVY, tuple(reversed(options)))], [item("e", SCURVY, options)])
    assert got["e", "exact"].train_id == "t" and ("e", "same question") not in got


def test_the_same_question_with_other_options():
    other = ("Thiamine", "Ascorbic acid", "Biotin", "Folate")
    train = [item("t", f"{SCURVY.upper()} ", other), item("u", "Except?", ("w", "x", "y", "z"))]
    evaluation = [item("e", SCURVY), item("f", "Except?")]  # one word is nobody's own question
    matches = find(train, evaluation, progress=False)
    assert [(m.eval_id, m.method, m.train_id, m.score) for m in matches] == [("e", "same question", "t", 1)]
    assert contaminated(matches) == {("medqa", "e")}
    # the same words under another abstract are another question
    pair = [item(name, SCURVY, context=text) for name, text in (("t", "Ten men."), ("e", "Ten women."))]
    assert ("e", "same question") not in found(pair[:1], pair[1:])


SHORT = "True about the liver?"  # four words


def short(id, options, answer="A", question=SHORT):
    return MCQItem(id, "medmcqa", question, options, answer)


@pytest.mark.parametrize(
    "other",
    [
        short("t", ("It makes tears", "It makes bile", "It has no lobes", "It beats"), "B"),
        short("t", ("b) It filters urine", "It makes bile", "It sees", "It hears"), "B"),
        short("t", ("a) It sees", "b) It makes bile", "c) It hears", "d) It moves"), "B"),
        short("t", ("it makes b\u200bile.", "It sees", "It hears", "It moves"), "A", "true ABOUT the liver"),
    ],
)
def test_a_short_question_with_the_same_answer(other):
    asked = short("e", ("It makes bile", "It pumps", "It digests air", "It is a bone"))
    matches = find([other], [asked], progress=False)
    assert [(m.method, m.score) for m in matches] == [("short question", 1)]
    assert contaminated(matches) == {("medmcqa", "e")}


@pytest.mark.parametrize(
    "options",
    [
        ("a) It makes bile", "b) It pumps", "c) It hears", "d) It is a bone"),
        ("(1) It makes bile", "(2) It pumps", "(3) It hears", "(4) It is a bone"),
        ("i. It pumps", "ii. It makes bile", "iii. It is a bone", "iv. It hears"),
    ],
)
def test_option_labels_and_their_order_hide_no_short_question(options):
    asked = short("e", ("It makes bile", "It pumps", "It hears", "It is a bone"))
    assert found([short("t", options, "B")], [asked])["e", "exact"].score == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("Bile", "Tears", "Air", "Bone"), ("Tears", "Sweat", "Milk", "Wax")),  # another answer
        (("All of the above", "x", "y", "z"), ("all of the above", "k", "l", "m")),
        (("None", "x", "y", "z"), ("None.", "k", "l", "m")),
        (("Both a and b", "x", "y", "z"), ("both A and B", "k", "l", "m")),
        (("a, b and c", "x", "y", "z"), ("A,B and C", "k", "l", "m")),
        (("Only 1, 2 & 4 are correct", "x", "y", "z"), ("only 1,2,4 are correct", "k", "l", "m")),
        (("True", "x", "y", "z"), ("true", "k", "l", "m")),
    ],
)
def test_a_short_question_alone_or_with_a_generic_answer_is_nobodys_own(one, other):
    question = "All are true except"
    assert not find([short("t", other, "A", question)], [short("e", one, "A", question)], progress=False)


def test_decimals_are_no_labels():
    decimals = tuple(f"{n}.5 mm" for n in (1, 2, 3, 4))
    assert text_of(short("e", decimals)).endswith("1.5 mm\n2.5 mm\n3.5 mm\n4.5 mm")
    assert text_of(short("e", ("b. x", "a. y", "c. z", "d. w"))).endswith("b. x\na. y\nc. z\nd. w")


def test_pubmedqa_options_are_no_text():
    same = [item(id, "Does it help?", pubmedqa.OPTIONS, "Ten adults.", "pubmedqa") for id in "ab"]
    assert text_of(same[0]) == "Ten adults.\nDoes it help?"
    assert content_key(same[0]) == content_key(same[1])


def talk(id, said, note=""):
    return Dialogue(
        id, "notechat", (Turn("assistant", "Hello."), Turn("user", said), Turn("assistant", "I see.")), note
    )


def test_duplicates_come_in_groups():
    rows = [
        talk("a", "I cough."),
        talk("b", "My ear hurts."),
        talk("c", "i cough"),
        talk("d", "I COUGH!"),
        talk("e", "No."),
    ]
    assert duplicates(rows) == [["a", "c", "d"]]
    assert duplicates([]) == []


def test_note_key_is_the_notes_or_else_the_consultations():
    assert note_key(talk("a", "One.", "A note")) == note_key(talk("b", "Two.", "a NOTE."))
    assert note_key(talk("a", "One.", "A note")) != note_key(talk("b", "One.", "Other"))
    assert note_key(talk("a", "One.")) == note_key(talk("b", "one"))
    assert note_key(talk("a", "One.")) != note_key(talk("b", "Two."))


def test_a_hyphen_at_the_end_of_a_question_joins_it_to_no_option():
    question = "The first sign of this is"
    assert duplicates([item("a", question), item("b", f"{question}-"), item("c", f"{question} -")]) == [
        ["a", "b", "c"]
    ]


def test_hashes_do_not_change_between_processes():
    assert content_key(ConsumerQuery("x", "icliniq", "A b", "c")).hex() == "bf20797f12a991ed2a5ddfdaef9283f6"


def test_stock_phrases_of_real_exams_are_13_grams_but_no_contamination(real_data):
    """Why `contaminated` asks for half of an item's 13-grams: a fifth of the items share one with 425."""
    from medkit.data.sources import load

    train, evaluation = (load("medqa", part, real_data, progress=False).records for part in ("train", "eval"))
    matches = find(train, evaluation, progress=False)
    assert 0.15 < counts(matches)["medqa"]["any 13-gram"] / len(evaluation) < 0.25
    # One training vignette was edited, in a few words and one option, into a test item with another answer.
    assert contaminated(matches) == {("medqa", "medqa-eval-001229")}
