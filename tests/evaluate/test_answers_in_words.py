"""Answers in words in the styles of many models: what they claim is read, what they do not is not.

Every style is written once and filled in for several items and every letter of theirs; so the letter that is
read is the one put in, whichever it is and whatever the options say.
"""

import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medkit.evaluate.answer_parsing import parse
from medkit.records import MCQItem

DRUGS = MCQItem(
    "1",
    "medqa",
    "A man has a fresh clot. Which drug is the most appropriate next step in management?",
    ("Aspirin", "Warfarin", "Heparin", "Clot removal by a catheter"),
    "C",
)
# options that hold letters, one another, numbers
FIELDS = MCQItem(
    "2",
    "medmcqa",
    "Which vitamins does the diet lack?",
    ("Vitamin C", "Vitamin C and D", "Both A and E", "None of the above"),
    "B",
)
DOSES = MCQItem("3", "medmcqa", "How many doses are given?", ("1", "2", "1 to 2", "12"), "D")
LETTERS = MCQItem("8", "medqa", "Which curve?", ("B", "C", "D", "E"), "A")
RATIOS = MCQItem("7", "medmcqa", "Which ratio?", ("1/2", "1/3", "(1/2) / (1/3)", "2/3"), "C")
EXCEPT = MCQItem(
    "4",
    "medmcqa",
    "All of the following are features of the syndrome except",
    ("Oedema", "Proteinuria", "Hematuria", "Low albumin"),
    "C",
)
NOT_TRUE = MCQItem(
    "5",
    "medmcqa",
    "A child swells up. She does not eat. Which of these is not true of her disease?",
    ("It relapses", "It needs surgery", "Steroids help", "Albumin is low"),
    "B",
)
STUDY = MCQItem(
    "6", "pubmedqa", "Does the reminder help?", ("yes", "no", "maybe"), "A", context="An abstract."
)
ITEMS = (DRUGS, FIELDS, DOSES, EXCEPT, NOT_TRUE, STUDY)

NEXT = (
    "Question: Which is the largest organ?\nA) The skin\nB) The liver\nC) The lung\nD) The gut\nAnswer: {x}"
)


def fill(style: str, item: MCQItem, letter: str) -> str:
    """L: the letter (l: in lower case), T: its option's text, X: another letter; the rest is around them."""
    texts = {key: text.rstrip(" .") for key, text in zip(item.letters, item.options, strict=True)}
    other = item.letters[(item.letters.index(letter) + 1) % len(item.letters)]
    parts = {
        "L": letter,
        "T": texts[letter],
        "X": other,
        "l": letter.lower(),
        "list": "\n".join(f"{key}) {text}" for key, text in texts.items()),
        "others": "\n".join(f"{key}) {text} is incorrect." for key, text in texts.items() if key != letter),
        "analysis": "\n\n".join(f"**{key}. {text}** occurs in some patients." for key, text in texts.items()),
        "letters": ", ".join(item.letters[:-1]) + f", or {item.letters[-1]}",
        "next": NEXT.format(x=other),
        "question": item.question,
    }
    for name, value in parts.items():
        style = style.replace("{" + name + "}", value)
    return style


CLAIMED = """
{L}
 {L}
{L}.
({L})
[[{L}]]
**{L}**
__{L}__
`{L}`
"{L}"
{l}
{l})
\u200b{L}
{L}) {T}
{L}. {T}
{L}: {T}
{L} - {T}
{L} – {T}
{L} ({T})
{L}, {T}.
{L} {T}
({L}) {T}
**{L}) {T}**
**{L}.** {T}
- {L}) {T}
> {L}) {T}
Option {L}
Option {L}: {T}
Choice ({L})
Answer: {L}
Answer : {L}
ANSWER: {L}
ANSWER {L}
Answer - {L}
Answer-{L}. {T}
Ans: {L}
Ans. {L}
Ans. {L}. {T}
Ans. is '{l}' i.e., {T}
Answer: ({L})
Answer: {L}) {T}
Answer: Option {L}
**Answer:** {L}
**Answer**: **{L}**
**Answer: {L}. {T}**
### Answer\\n\\n{L}
## Final Answer:\\n**{L}) {T}**
**Final Answer**\\n\\n{L}. {T}
Correct answer: {L}
Correct Answer: Option {L}\\n\\nReason: it fits.
The correct option is: {L}
Selected answer: {L}
Final answer: {L}
Final Answer: {L}\\n```\\n{L}\\n```
Final answer: $\\boxed{{L}}$
The final answer is: $\\boxed{\\text{{L}}}$
$\\boxed{{L}}$
\\boxed{\\text{{L}) {T}}}
\\[\\boxed{\\mathbf{{L}}}\\]
We weigh the findings, so $\\boxed{{L}}$.
<answer>{L}</answer>
<answer>\\n{L}\\n</answer>
<final_answer>{L}) {T}</final_answer>
{"answer": "{L}"}
{"answer_choice": "{L}"}
{'final_answer': '{L}'}
{"reasoning": "The answer is {X} at first sight.", "answer": "{L}"}
```json\\n{\\n  "step_by_step_thinking": "{X} is correct in part.",\\n  "answer_choice": "{L}"\\n}\\n```
Here it is: {"explanation": "it fits", "correct_option": "{L}) {T}"}
The answer is {L}.
The answer is {L}
The answer is ({L}).
The answer is "{L}".
The answer is **{L}**.
The answer is {L}) {T}.
The answer is {L}: {T}
The answer is {L}, which fits.
The answer is {L} because it fits.
The answer is {L}, as the others do not fit.
The answer is {L} - {T}
The answer is option {L}.
The answer would be {L}.
The answer must be {L}).
The answer is most likely {L}.
The answer is therefore {L} ({T}).
The answer is not {X} but {L}.
The answer to this question is {L}.
The answer in this case is clearly {L}.
The correct answer is {L}.
The correct answer is:\\n\\n{L}) {T}
The correct answer is:\\n\\n**Option {L}: {T}**
The correct answer is {L}, not {X}.
The correct answer is {L}. The others are wrong.
The correct answer is {L}.\\n\\n{others}
The best answer is choice {L}.
The single best answer is {L}.
The most appropriate answer is {L}) {T}.
The most appropriate choice is {L}).
The most likely diagnosis is {L}. {T}.
The most appropriate next step in management is {L}) {T}.
The best next step is **{L}. {T}**.
My answer is {L}.
So the answer is {L}.
Therefore, the answer is {L}.
Therefore, among {letters}, the answer is {L}.
Among A through D, the answer is {L}.
Based on the findings, the correct answer is option {L}: {T}.
I would choose {L}.
I would choose option {L}, {T}.
I'd go with {L}.
I'll go with option {L}.
I choose {L}.
We select {L}.
I think the answer is {L}, but more tests may help.
I think it is {L}.
I believe the correct answer is {L}.
I'm not sure, but the answer is {L}.
As a language model I give no advice, but the answer is {L}.
Even if untreated, the answer is {L}.
It's {L}.
So it must be {L}.
Hence, {L}.
So, option {L}.
Therefore ({L}).
Option {L} is the correct answer.
Option {L} ({T}) is the correct answer.
{L} is the correct answer.
{L} is the best choice.
{L}) {T} is the correct answer.
Thus {L} is the right choice.
Based on the information, ({L}) {T} is the best answer.
Neither {X} nor the rest fits; {L} is the correct answer.
The findings fit well, which corresponds to option {L}.
The findings fit well.\\n\\n{L}
The findings fit well.\\n\\n**{L}) {T}**
A patient like this needs care. A drug helps.\\n\\nThe answer is {L}.
{L}\\n\\nExplanation: it fits.
{L}\\nRationale: A patient with this needs care.
{L} Explanation: it fits.
{L} because it fits.
{L}, because it fits.
{L}\\n\\nNo further explanation.
{L}\\n\\n{others}
{L}\\n\\nThe answer is {L}.
{L}\\n{L}\\n{L}
{L}) {T}\\n\\n{others}
{L}) {T}\\n\\nWhy the others are wrong:\\n{others}
**{L}) {T}** - This is the correct answer.\\n{others}
{L}) {T} is the correct answer. Rationale: Option {X}) is incorrect because it comes later.
{list}\\n\\nAnswer: {L}
{list}\\n\\nThe correct answer is {L}.
{list}\\n\\n{L}) {T}
Question: {question}\\n\\nOptions:\\n{list}\\n\\nAnswer: {L}
Let's analyze each option:\\n\\n{analysis}\\n\\nTherefore, the correct answer is **{L}) {T}**.
Let me go through them.\\n\\n{analysis}\\n\\nBased on this, the most likely answer is {L}.
Please answer with one letter ({letters}).\\n\\nAnswer: {L}
Final Answer: {L}\\n\\nPlease select the single best answer ({letters}).
{L}\\n\\n{next}
{L}. {T}\\n\\n{next}
{L}) {T}\\n\\n### {next}
Answer: {L}\\nFinal Answer: {L}\\n---\\n\\n{next}
The answer is {L}.\\n\\nQuestion 2: Which organ pumps?\\nAnswer: {X}
Answer: {L}\\n\\nQ: Which organ pumps?\\nA: {X}
{L}\\nHuman: Why?\\nAssistant: The answer is {X}.
{L}\\nUser: Answer: {X}
{L}\\n### Instruction:\\nName it. Answer: {X}
{L}\\n\\nA 45-year-old man comes in. What is it?\\nAnswer: {X}
{L}\\nYou are an assistant. Answer: {X}
{L}<|im_end|>\\n<|im_start|>user\\nAnswer: {X}
{L}<|eot_id|><|start_header_id|>user<|end_header_id|>\\n\\nNo, the answer is {X}.
{L}</s>\\n[INST] Answer: {X} [/INST]
<|start_header_id|>assistant<|end_header_id|>\\n\\n{L}
Assistant: {L}
<think>The answer is {X}.</think>\\n\\n{L}
<think>Is the answer {X}? No.</think>\\nThe answer is {L}.
<think></think>\\n\\n{L}) {T}
<think>\\nAnswer: {X}\\n</think>\\n<answer>{L}</answer>
<think>a<think>b</think>Answer: {X}</think>{L}
The answer is {X}? Or so.\\nThe answer is {X}.\\n</think>\\n\\nThe answer is {L}.
The answer is {L}.\\n<think>Answer: {X}</think>
The answer is {L}.\\n<think>Answer: {X}
<thinking>Option {X} is correct.</thinking>**Answer: {L}**
<reasoning>Answer: {X}</reasoning>{L}
[THINK]Answer: {X}[/THINK]{L}
◁think▷Answer: {X}◁/think▷{L}
<unused94>thought\\nThe answer is {X}.<unused95>**{L}**
<|begin_of_thought|>Answer: {X}<|end_of_thought|>\\n\\n{L}
<|channel|>analysis<|message|>Answer: {X}<|channel|>final<|message|>{L}
analysisWe say the answer is {X}.assistantfinal{L}
## Thinking\\n\\nThe answer is {X}.\\n\\n## Final Response\\n\\nThe answer is {L}.
"""

TEXTS = """
{T}
{T}.
**{T}**
"{T}"
The answer is {T}.
The correct answer is **{T}**.
The correct answer is:\\n\\n{T}
The answer is {T}, because it fits.
Answer: {T}
Final answer: {T}\\n\\n{next}
<think>Answer: {X}</think>{T}
\\boxed{\\text{{T}}}
{"answer": "{T}"}
The correct answer is {T} ({L}).
Therefore, the correct answer is {T}, option {L}.
{T}\\n\\nExplanation: it fits.
"""

WRONG_ONE_ASKED_FOR = """
The answer is {L}. {T} is not a feature of it.
The answer is {L}. {T} is not used, since it harms.
The answer is {L}, since it is false.
{L}. {T} is not a feature of it.
{L}. {T} is contraindicated because of the risk.
{L}. {T} does not apply.
{L}) {T} is incorrect.
{L}) {T} - this is wrong.
Answer: {L}) {T}. This is not true.
{L} ({T}) is the exception.
Option {L} is the false statement.
The incorrect statement is {L}.
The exception is {L}.
The option that is not a feature is {L}.
All fit except {L}) {T}. So the answer is {L}.
Option {X} is correct. The answer is {L}.
Option {L} is incorrect. Therefore, the answer is {L}.
"""

UNCLAIMED = """

...
I cannot give medical advice.
As a language model, I cannot answer this. Please see a doctor.
{list}
The options are:\\n{list}
The answer choices are:\\n{list}
Which of these is it?\\n{list}
Let's analyze each answer choice:\\n\\n{analysis}
Explanation of each answer:\\n\\nA) It
Answer explanation:\\n\\nA) It occurs
Answer: [letter]
Please answer with one letter ({letters}).
{letters}
The answer is {letters}.
<think>\\nThe answer is {L}.
<think>The answer is {L}.</think>
The answer is {L}.\\n</think>
Is it {L}?
Is it {L}? I am not sure.
Is the answer {L}?
{L}?
The answer is {L}? No.
The answer could be {L}.
The answer might be {L}, or not.
It may be {L}.
The answer is either {L} or {X}.
The answer is {L} or {X}.
The answer is {L} and {X}.
Answer: {L}, {X}
Answer: {L}/{X}
{L} or {X}
{L}) {T} or {X})
{L} and {X} are both reasonable.
Both {L} and {X} are correct.
Neither {L} nor {X} is correct.
None of {letters} is correct.
The correct answers are {L} and {X}.
The answer is {L}. The answer is {X}.
The answer is {L}. Wait, no. The answer is {X}.
The answer is {L}. Hmm, wait. Let me re-check.
The answer is {L}. On second thought, something else fits.
{L}\\n\\nThe answer is {X}.
{L}\\n{X}
$\\boxed{{L}}$ or $\\boxed{{X}}$
{"answer": "{L}", "final_answer": "{X}"}
{"answer": null, "reasoning": "the answer is {L}"}
The answer is not {L}.
The answer isn't {L}.
The wrong answer is {L}.
The answer is {L}, but this is not the correct answer.
The answer is {L}. This is not the right answer.
I don't think the answer is {L}.
I doubt that option {L} is the correct answer.
If the answer is {L}, she would have pain.
If they ask for the first, then the answer is {L}.
At first the answer is {L}, but the history speaks against it.
Some would say the answer is {L}.
Another possible answer is {L}.
For example, the answer is {L}
Choose {L} if she is stable.
A patient like this should see a doctor.
Vitamin {L} and hepatitis {X} are discussed.
The most common blood group is {L}.
The best choice depends on the patient.
The correct answer is
{next}
The correct answer to the question
"""

# (answer ended by its limit of tokens, whether the letter is claimed)
CUT = [
    ("The answer is {L}. The rea", True),
    ("{L}\n\nExplanation: The fin", True),
    ("{L}) {T}. The oth", None),  # A may be the first of a list
    ("Answer: {L}) {T}\n\nExpl", True),
    ("Answer: {L}\n\n{next}", True),
    ("<think>No.</think>The answer is {L}, as it fi", True),
    ("The answer is {L}.\n\n<think>But", True),
    ("The answer is {L}", False),
    ("The correct answer is", False),
    ("{L}\n\nThe correct answer is", False),
    ("Answer: {L},", False),
    ("Answer: {L} and", False),
    ("The answer is a", False),
    ("<think>The answer is {L}. But", False),
    ("Okay, I need to find it. The answer is {L}, but let me ch", False),
    ("Hmm. The answer is {L}? The answer is {L}, or", False),
    ("We need to pick. Probably the answer is {L}, since", False),
    ("A) It occurs in some pati", False),
    ("A patient", False),
    ("{L}) {T}\n\nExplanation: it fi", True),
    ("{L}. {T}\n\nQuestion: Whi", True),
    ("Option {L} i", False),
    ("The answer is {L}.\n</thi", False),
    ("analysisWe say the answer is {L}.assistant", False),
    ("{L}\n\nEx", True),
    ("**A) It occurs** and", False),
    ("Let's look at each answer choice:\n\nA) It oc", False),
]


def lines(styles: str) -> list[str]:
    return [line.replace("\\n", "\n") for line in styles[1:-1].split("\n")]


def filled(styles, items=ITEMS):
    for style in styles:
        for item in items:
            for letter in item.letters:
                yield item, letter, fill(style, item, letter)


def fits(style: str, item: MCQItem) -> bool:
    """Whether the style speaks to the item: "C is wrong" answers no question for what is right."""
    plain_verdict = "is correct" in style or "is incorrect" in style
    return not (plain_verdict and item in (EXCEPT, NOT_TRUE))


@pytest.mark.parametrize("style", lines(CLAIMED), ids=range(len(lines(CLAIMED))))
def test_a_claimed_letter_is_read(style):
    for item, letter, text in filled([style]):
        if item is STUDY and "A through D" in style:
            continue
        assert parse(text, item).letter == letter, (item.options, text)


@pytest.mark.parametrize("style", lines(TEXTS), ids=range(len(lines(TEXTS))))
def test_an_options_text_is_read(style):
    for item, letter, text in filled([style]):
        assert parse(text, item).letter == letter, (item.options, text)


@pytest.mark.parametrize("style", lines(WRONG_ONE_ASKED_FOR), ids=range(len(lines(WRONG_ONE_ASKED_FOR))))
def test_a_negation_does_not_take_the_answer_to_a_not_question_back(style):
    for item, letter, text in filled([style], (EXCEPT, NOT_TRUE)):
        assert parse(text, item).letter == letter, (item.options, text)


@pytest.mark.parametrize("style", lines(UNCLAIMED), ids=range(len(lines(UNCLAIMED))))
def test_what_claims_no_letter_is_unparsed(style):
    for item, _, text in filled([style]):
        assert parse(text, item).tier == "unparsed", (item.options, text)


@pytest.mark.parametrize(("style", "claimed"), CUT, ids=range(len(CUT)))
def test_an_answer_cut_by_its_limit(style, claimed):
    for item, letter, text in filled([style], (DRUGS, EXCEPT, STUDY)):
        expected = letter if claimed or (claimed is None and letter != "A") else ""
        assert parse(text, item, True).letter == expected, (item.options, text)


def test_there_are_several_hundred_answers():
    styles = lines(CLAIMED) + lines(TEXTS) + lines(UNCLAIMED)
    assert len(styles) > 250 and len(set(styles)) == len(styles)


CASES = [json.loads(line) for line in Path(__file__).with_name("answers.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_answers_that_were_read_wrongly(case):
    source = "pubmedqa" if len(case["options"]) == 3 else "medqa"
    for gold in "ABC":
        item = MCQItem(case["id"], source, case["question"], tuple(case["options"]), gold)
        assert parse(case["answer"], item, False).letter == case["letter"], case["why"]


# (question, options, answer, letter): what one style cannot hold
SINGLE = [
    (DRUGS, "The most appropriate next step in management is heparin.", "C"),
    (DRUGS, "Heparin is the most appropriate next step in management.", "C"),
    (DRUGS, "The most likely diagnosis is heparin.", ""),  # not what was asked for
    (DRUGS, "The drug of choice is heparin.", ""),
    (DRUGS, "The most appropriate next step in management is heparin. Thus, the answer is A.", "A"),
    (DRUGS, "While aspirin (A) helps and warfarin (B) is slow, heparin (C) is the correct answer.", "C"),
    (DRUGS, "The correct answer is Aspirin (C).", ""),  # text and letter differ
    (DRUGS, "Answer A is wrong. Answer B is wrong. Answer C is correct.", "C"),
    (DRUGS, "Answer A: Incorrect because it is slow", ""),
    (DRUGS, "Option A is aspirin. Option B is warfarin. Option C is heparin.", ""),
    (DRUGS, "Let us see each option.\nOption (c): Heparin\nIt acts at once.", ""),
    (
        DRUGS,
        "Option A: Aspirin is slow.\nOption B: Warfarin is slow.\nThe correct answer is Option C: Heparin.",
        "C",
    ),
    (DRUGS, "A. Incorrect.\nB. Incorrect.\nC. Correct.\nD. Incorrect.", "C"),
    (DRUGS, "A) Aspirin is slow.\n\nC) Heparin acts at once. This is the best choice.", "C"),
    (DRUGS, "A) Aspirin is not the best choice.\n\nC) Heparin is the correct answer.\n\nD) Not that.", "C"),
    (DRUGS, "Aspirin: slow.\nWarfarin: slow.\nHeparin: fast.", ""),
    (DRUGS, "Aspirin: slow.\nWarfarin: slow.\nHeparin: fast.\n\nThe answer is C.", "C"),
    (DRUGS, "Aspirin, heparin and warfarin thin the blood.", ""),
    (DRUGS, "B) Warfarin\nC) Heparin", ""),
    (DRUGS, "A) Aspirin\n\nA) Aspirin is best.\nB) Warfarin is slow.", "A"),
    (DRUGS, "C) Heparin, not A) Aspirin", "C"),
    (DRUGS, "Student's answer: A\nCorrect answer: C", ""),
    (DRUGS, "I apologize for the confusion. The correct answer is C.", "C"),
    (DRUGS, "1. A is slow.\n2. B is slow.\n3. Thus C is correct.", "C"),
    (DRUGS, "The answer is C. Difficile is not seen here.", "C"),
    (DRUGS, "A) Heparin or a later decision\nD) Clot removal by a catheter", ""),
    (LETTERS, "B is the correct answer.", ""),  # option B, or option A, whose text is "B"?
    (LETTERS, "B) C is the correct answer.", "B"),
    (DRUGS, "Stimulus response theory is a", ""),
    (DRUGS, "The result of the choice is a", ""),
    (FIELDS, "The diet lacks vitamin C.", ""),
    (FIELDS, "Vitamin C is the correct answer.", "A"),
    (FIELDS, "The answer is vitamin C and D.", "B"),
    (FIELDS, "The answer is both A and E.", "C"),
    (FIELDS, "The most important vitamin is C.", ""),
    (FIELDS, "A is correct. D is correct.", ""),
    (DOSES, "1. The patient is ill.\n2. She needs 12 mg.", ""),
    (DOSES, "1. The patient is ill.\n2. She needs care.\n\nThe answer is 12.", "D"),
    (DOSES, "The answer is 1.5", ""),
    (RATIOS, "The correct answer is (1/2) / (1/3) (C).", "C"),
    (RATIOS, "(1/2) / (1/3)", "C"),
    (EXCEPT, "A) Oedema is a feature. B) Proteinuria is a feature. C) Hematuria is not a feature.", ""),
    (EXCEPT, "Option A is correct. Option B is correct. Option D is correct. The answer is C.", "C"),
    (EXCEPT, "Option A is correct. Option B is correct.", ""),  # true statements, not the answer
    (EXCEPT, "Option C is correct.", "C"),
    (EXCEPT, "The correct statement is A.", ""),
    (EXCEPT, "C) Hematuria is not the correct answer.", ""),
    (
        EXCEPT,
        "A) Oedema - Incorrect.\nB) Proteinuria - Incorrect.\nC) Hematuria - Correct.\nD) Not albumin.",
        "C",
    ),
    (
        EXCEPT,
        "A) Oedema - Correct.\nB) Proteinuria - Correct.\nC) Hematuria - Incorrect.\nD) Correct.",
        "",
    ),
    (EXCEPT, "Hematuria is not a feature of the syndrome.", ""),
    (EXCEPT, "Hematuria", "C"),
    (STUDY, "The final decision is: no", "B"),
    (STUDY, "Conclusion: Yes.", "A"),
    (STUDY, "Yes, the reminder helped.", "A"),
    (STUDY, "No significant difference was seen.", ""),
    (STUDY, "The answer is not clear.", ""),
    (STUDY, "The answer is no longer clear.", ""),
    (STUDY, "Yes. However, the answer is maybe.", ""),
    (STUDY, "yes/no/maybe", ""),
    (STUDY, "Answer (yes/no/maybe): no", "B"),
    (STUDY, "Answer: yes (B)", ""),
    (STUDY, "B) no, it does not.", "B"),
]


@pytest.mark.parametrize(("item", "text", "letter"), SINGLE, ids=range(len(SINGLE)))
def test_single_answers(item, text, letter):
    assert parse(text, item).letter == letter


# --- what must not change what is read

styles = st.sampled_from(lines(CLAIMED)[:150])
items = st.sampled_from([DRUGS, EXCEPT, NOT_TRUE])
words = st.lists(
    st.sampled_from("the answer is A B C D not option correct wait Answer: heparin \n so ( ) .".split(" ")),
    max_size=15,
).map(" ".join)


@settings(max_examples=100, deadline=None)
@given(styles, items, st.sampled_from("ABCD"), words)
def test_a_thought_before_the_answer_changes_nothing(style, item, letter, thought):
    text = fill(style, item, letter)
    for opening, closing in (("<think>", "</think>"), ("", "</think>"), ("[THINK]", "[/THINK]")):
        assert parse(f"{opening}{thought}{closing}\n\n{text}", item).letter == letter
    assert parse(f"<think>{thought}", item).letter == ""
    assert parse(f"{text}\n\n<think>{thought}", item).letter == letter


@settings(max_examples=100, deadline=None)
@given(styles, items, st.sampled_from("ABCD"), st.sampled_from("ABCD"), words)
def test_an_invented_next_question_changes_nothing(style, item, letter, other, invented):
    text = fill(style, item, letter)
    for heading in (
        "Question: Which organ?",
        "### Question 2: Which?",
        "<|im_start|>user",
        "Human:",
        "Q: Which?",
    ):
        assert parse(f"{text}\n\n{heading}\n{invented}\nAnswer: {other}", item).letter == letter


@settings(max_examples=100, deadline=None)
@given(styles, items, st.sampled_from("ABCD"), st.sampled_from("ABCD"))
def test_a_list_of_rejected_options_changes_nothing(style, item, letter, first):
    """In whichever order the others are listed after the answer."""
    text = fill(style, item, letter)
    keys = sorted(set(item.letters) - {letter}, key=lambda key: (key < first, key))
    for verdict in ("is incorrect.", "is not the correct answer.", "is wrong, as it is rare."):
        rejected = "\n".join(f"- Option {key} {verdict}" for key in keys)
        assert parse(f"The answer is {letter}.\n\n{rejected}", item).letter == letter
        if not {"\n", "<", "{", "["} & set(text) and "?" not in text:
            assert parse(f"{text}\n\nWhy the others do not fit:\n\n{rejected}", item).letter in ("", letter)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(lines(CLAIMED) + lines(TEXTS)), items, st.permutations("ABCD"), st.sampled_from("ABCD")
)
def test_relabelled_options_permute_the_letter(style, item, order, letter):
    """The option that was `letter` is `order`'s place of it; an answer that claims it claims that letter."""
    texts = dict(zip("ABCD", item.options, strict=True))
    relabelled = MCQItem("1", item.source, item.question, tuple(texts[old] for old in order), "A")
    new = "ABCD"[order.index(letter)]
    assert parse(fill(style, item, letter), item).letter == letter
    assert parse(fill(style, relabelled, new), relabelled).letter == new


@settings(max_examples=100, deadline=None)
@given(items, st.sampled_from("ABCD"), st.integers(25, 200), st.booleans())
def test_an_explanation_that_is_cut_before_it_claims_is_unparsed(item, letter, length, bold):
    listed = "\n\n".join(
        f"{'**' * bold}{key}) {text}:{'**' * bold} It occurs in some patients and is seen at times"
        for key, text in zip(item.letters, item.options, strict=True)
    )
    for opening in ("Let's go through the options.\n\n", "Explanation of each answer:\n\n", ""):
        assert parse((opening + listed)[: len(opening) + length], item, True).letter == ""


# --- real questions

SAFE = [style for style in lines(CLAIMED) if fits(style, EXCEPT)]


def test_real_questions(real_data):
    """Each style on real options, which hold letters, numbers, lists and one another: none is read wrongly,
    at most 1 in 100 not at all (texts of two options, options that are letters)."""
    rows = (real_data / "medqa/phrases_no_exclude_test.jsonl").read_text().splitlines()
    options = [(row["question"], row["options"].values()) for row in map(json.loads, rows)]
    rows = (real_data / "medmcqa/dev.json").read_text().splitlines()
    options += [(row["question"], [row[f"op{key}"] for key in "abcd"]) for row in map(json.loads, rows)]
    draw, unread = random.Random(0), 0
    for number, (question, texts) in enumerate(draw.sample(options, 200)):
        item = MCQItem(str(number), "medmcqa", question, tuple(texts), "A")
        letter, style = draw.choice("ABCD"), draw.choice(SAFE)
        read = parse(fill(style, item, letter), item).letter
        assert read in ("", letter), (number, style)
        unread += read == ""
        style = draw.choice(lines(UNCLAIMED))
        assert parse(fill(style, item, letter), item).letter == "", (number, style)
    assert unread <= 2
