"""What an answer's text shows to be wrong with it. All answers are ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit.data.references import is_autocorrected, lacks_substance, site_name_problem, without_advertising

LOST, GREETS = "words lost to the site's name", "greets or signs in the site's name"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("Use a nasal Chat Doctor. Rest then.", LOST),
        ("Use a hy ChatDoctor.  Rest then.", LOST),
        ("Take rest, sleep, ChatDoctor. See me then.", LOST),
        ("1. Rest. 2. ChatDoctor. Do it daily.", LOST),
        ("Start using ChatDoctor. Do it daily.", LOST),
        ("It must come from the ChatDoctor. ", LOST),
        ("a nerve whicChatDoctorpresses it", LOST),
        ("the tootChatDoctore in spring", LOST),
        ("Welcome to Chat Doctor. Keep your groin clean and Chat Doctor.", LOST),
        ("Hello, Welcome to Chat Doctor forum. Rest.", GREETS),
        ("HelloWelcome to ChatDoctorYou may rest.", GREETS),
        ("Thank you for your question on Chat Doctor. Rest.", GREETS),
        ("I am Chat Doctor. Rest.", GREETS),
        ("Rest. Best wishes, Chat Doctor. ", GREETS),
        ("Rest and wish you good health Chat Doctor.", GREETS),
        ("Stay HealthyChatDoctor, MD", GREETS),
        ("Rest, doctor's orders. I like to chat.", ""),
    ],
)
def test_what_the_sites_name_was_put_over(answer, why):
    assert site_name_problem("It hurts.", answer) == why
    assert site_name_problem(answer, "Rest.") == why


@pytest.mark.parametrize(
    "tail",
    [
        "For more information consult a foot surgeon online -->",
        "For further doubts, please consult a foot surgeon online",
        "For further follow up consult an ENT - otolaryngologist online --> https://x.example/ask-a-doctor",
        "Revert with the photos to a foot surgeon online",
        "Kindly get back with the reports to an eye surgeon online.",
        "You can book an appointment with a foot surgeon online",
        "Please post a direct question to me on this website.",
        "You may ask me through our premium question service.",
        "To ask me again, contact me directly at http://bit.example/foot",
        "For counselling visit www.foot.example.",
        "If you have a doubt, please use this URL. http://bit.example/foot",
    ],
)
@pytest.mark.parametrize("end", ["", "  Take care."])
def test_sentences_that_sell_are_cut(tail, end):
    left, cut = without_advertising(f"Keep it high. {tail}{end}")
    assert cut and left.split() == f"Keep it high.{end}".split()


@pytest.mark.parametrize(
    "answer",
    [
        "Consult a foot surgeon if it swells.",
        "For more information, ask your own dentist.",
        "Buy it online, and read the leaflet.",
        "Read the article at https://x.example/feet for the doses.",
        "Send the photos again. They did not arrive.",
    ],
)
def test_advice_is_not_cut(answer):
    assert without_advertising(answer) == (answer, False)


@pytest.mark.parametrize(
    "answer",
    [
        "Thank you.",
        "Hello.",
        "Hi, thanks for your query.",
        "Hello and welcome. I have read your question (attachment removed to protect patient identity).",
        "Hi. I read your complaint, along with the photos. I hope this answer helps you. Take care.",
        "Dear Sir, thank you for writing.\nRegards, Dr. Anna Low",
        "I understand your concern. Feel free to ask if you have more questions.",
        "Good morning! All the best.",
        "Is there anything else I can help you with?",
        "Hope your question has been answered.",
        "Hi. I hope it is useful and my answer has helped you.",
        "...",
        "",
    ],
)
def test_an_answer_of_formulas_says_nothing(answer):
    assert lacks_substance(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "Rest.",
        "Yes.",
        "Hello. Rest it.",
        "I have gone through your reports and you are well.",
        "I understand your concern and would explain that it will heal.",
        "Please send a photo of the foot.",
        "Take two tablets.",
        "Thank you. It is broken.",
        "Hi. Since when does it hurt?",
        "Hope you stopped running, as it needs rest.",
        "I hope this helps you, but rest alone heals it.",
        "I have seen your X-ray and it has a fracture.",
        "I have seen your scan: no disc bulge.",
        "I have read it all, but rest alone heals this.",
    ],
)
def test_an_answer_that_says_something_is_kept(answer):
    assert not lacks_substance(answer)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("I take the Noliday pill.", "The Holiday pill is safe."),  # the same place
        ("My father has cardivex at home.", "He may go on with Bardivet for a week."),  # a capital inside
        ("It hurts.", "Degree understand your worry. Rest."),
        ("It hurts.", "HiT hanks for asking. Rest."),
        ("It hurts.", "Cellophane You for contacting us. Rest."),
        ("It hurts.", "You ask about ch elation, which is of no use."),
        ("It hurts.", "Tab For can 150\u00a0mg, and tab The will 5 ml."),
    ],
)
def test_signs_of_a_spelling_corrector(query, answer):
    assert is_autocorrected(query, answer)


@pytest.mark.parametrize(
    ("query", "answer"),
    [
        ("I take the Noliday pill.", "The Noliday pill is safe. A holiday would help."),
        ("I take tablets.", "The tablet is safe, take one 5 mg tablet."),
        ("I am sprained and spreading.", "It was sustained, a sprain."),
        ("It hurts.", "I can understand your worry. Which one? Such a thing heals."),
        ("It hurts.", "Dear Anna, I understand your worry. Take 150 mg."),
        ("It hurts.", "Your GH level and the SH group are normal."),
        ("I have sinusitis.", "That is called Rhinosinusitis."),  # a longer word, not another one
    ],
)
def test_ordinary_answers_show_none(query, answer):
    assert not is_autocorrected(query, answer)


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_text_is_judged(query, answer):
    left, cut = without_advertising(answer)
    assert cut or left == answer.strip()
    assert isinstance(lacks_substance(answer), bool) and isinstance(is_autocorrected(query, answer), bool)
    assert site_name_problem(query, answer) in ("", LOST, GREETS)
