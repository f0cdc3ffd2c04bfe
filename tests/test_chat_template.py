"""Chat templates: on each family's template and on real tokenizers, text and tokens are the template's, a
prompt is its training row's beginning, and no content forges a control token."""

import datetime
from copy import copy
from dataclasses import replace
from functools import cache

import chat_templates
import pytest
from conftest import make_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama3 import llama3_tokenizer

from medkit import chat_template, prompts
from medkit.records import ConsumerQuery, Dialogue, MCQItem, Turn
from medkit.train import smollm2

REAL = {
    "tiny": make_tokenizer,
    "llama3": llama3_tokenizer,
    "smollm2-real": lambda: smollm2._tokenizer(smollm2.gguf_file()),
}
NAMES = [*(f"{name}, {own}" for name in REAL for own in ("own", "chatml")), *chat_templates.FAMILIES]
_LOADED = {}


@cache
def _real(name):
    return REAL[name]()


def load(name):
    """(tokenizer, ChatFormat); what ends an answer by the family's own word."""
    if name not in _LOADED:
        real, _, template = name.partition(", ")
        tokenizer = copy(_real(real)) if template else chat_templates.make(name)
        if tokenizer is not None and template == "chatml":
            tokenizer.chat_template = prompts.CHATML
        _LOADED[name] = tokenizer and (tokenizer, prompts.ChatFormat.from_tokenizer(tokenizer))
    if _LOADED[name] is None:
        pytest.skip("llama-models is not installed")
    return _LOADED[name]


@pytest.fixture(params=NAMES)
def chat(request):
    return load(request.param)


@pytest.fixture(autouse=True)
def today(monkeypatch):
    """Whatever run another test has begun in this process."""
    monkeypatch.setattr(chat_template, "_date", None)


ITEM = MCQItem("1", "medqa", "Which is it?", ("one", "two", "three", "four"), "C")
ABSTRACT = MCQItem("2", "pubmedqa", "Does it?", ("yes", "no", "maybe"), "B", context="It was tried. It did.")
DIALOGUE = Dialogue(
    "3",
    "notechat",
    (Turn("assistant", "Hello."), Turn("user", "It hurts."), Turn("assistant", "Where?\nSince when?")),
)
TALK = Dialogue("4", "notechat", (Turn("user", "Good day."), *DIALOGUE.turns))

EVERY_CHAT = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# Letters, digits, marks, spaces of every kind, and the pieces of the templates themselves.
TEXTS = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.sampled_from(
            [
                "\n",
                "\n\n",
                " ",
                "\r\n",
                "\u00a0",
                "\u3000",
                "A",
                "7",
                "C)",
                "(",
                "user",
                "assistant",
                "[INST]",
            ]
        ),
    ),
    max_size=8,
).map("".join)


def spells_a_control_token(form, text):
    return form.control.search(text) or "</think>" in text


def chats(*texts):
    return [
        {"role": role, "content": text.strip()}
        for role, text in zip(("system", "user", "assistant", "user", "assistant"), texts, strict=False)
    ]


def learned(labels):
    return [label for label in labels if label != prompts.IGNORED]


@EVERY_CHAT
@given(texts=st.sampled_from([3, 5]).flatmap(lambda n: st.lists(TEXTS, min_size=n, max_size=n)))
def test_text_and_tokens_are_the_templates(chat, texts):
    tokenizer, form = chat
    turns = chats(*(text + "." for text in texts))
    given_turns, _ = form._arrange(turns)  # with the system text where the template takes it
    whole = tokenizer.apply_chat_template(given_turns, tokenize=False, enable_thinking=False)
    if form.empty_thought:  # asked with it, shown without: it opens the last answer in both
        start = len(form.prompt(turns[:-1])) - len(form.empty_thought)
        assert form.text(turns)[start:].startswith(form.empty_thought)
        whole = whole[:start] + form.empty_thought + whole[start:]
    if any(spells_a_control_token(form, text) for text in texts):
        return
    assert form.text(turns) == whole
    ids = tokenizer.encode(whole, add_special_tokens=False)
    assert prompts.training_ids(tokenizer, form, [turns])[0][0] == ids


@EVERY_CHAT
@given(question=TEXTS, spaces=st.text(alphabet=" \n\t\u00a0", max_size=4))
def test_the_prompt_is_the_training_rows_beginning(chat, question, spaces):
    tokenizer, form = chat
    item = MCQItem("1", "medqa", spaces + question + "?" + spaces, (" a", "b ", "c", "d"), "D")
    ids, labels = prompts.training_ids(tokenizer, form, [prompts.messages(item)])
    prompt, place = prompts.prompt_ids(tokenizer, form, item), prompts.letter_position(tokenizer, "letter")
    assert place["encode"](item) == prompt  # a letter is the first token of its answer in all of these
    letter = place["letter_tokens"][3]
    assert ids[0][: len(prompt) + 1] == [*prompt, letter]
    end = tokenizer.convert_tokens_to_ids(form.ends[0])
    assert learned(labels[0]) == [letter, end]
    assert labels[0][: len(prompt)] == [prompts.IGNORED] * len(prompt)


@EVERY_CHAT
@given(answer=TEXTS)
def test_whatever_the_answer_its_prompt_is_the_same(chat, answer):
    """Also where an answer's first characters would join with the text before it."""
    tokenizer, form = chat
    turns = chats("Help.", "Which?", answer + ".")
    ids, labels = prompts.training_ids(tokenizer, form, [turns])
    prompt = chat_template.prompt_ids(tokenizer, form, turns[:2])
    assert ids[0][: len(prompt)] == prompt
    assert labels[0][: len(prompt)] == [prompts.IGNORED] * len(prompt)
    assert labels[0][len(prompt)] == ids[0][len(prompt)]


@pytest.mark.parametrize("name", chat_templates.FAMILIES)
def test_each_family_ends_answers_with_its_own_token(name):
    family = chat_templates.FAMILIES[name]
    assert load(name)[1].ends == (family.ends or family.eos,)


SHOWN = {  # what comes between the system text and the question, and before the answer; to be read by eye
    "llama-3.1": ("<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n", "assistant<|end_header_id|>\n\n"),
    "gemma-2": ("\n\n", "<end_of_turn>\n<start_of_turn>model\n"),
    "gemma-3": ("\n\n", "<end_of_turn>\n<start_of_turn>model\n"),
    "mistral-v0.1": ("\n\n", " [/INST] "),
    "mistral-v0.3": ("\n\n", "[/INST] "),
    "mistral-nemo": ("\n\n", "[/INST]"),
    "mistral-tekken": ("[/SYSTEM_PROMPT][INST]", "[/INST]"),
    "qwen2.5": ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "qwen3": ("<|im_end|>\n<|im_start|>user\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "hybrid": ("<|im_end|>\n<|im_start|>user\n", "<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "phi-3": ("<|end|>\n<|user|>\n", "<|end|>\n<|assistant|>\n"),
    "phi-3-old": ("\n\n", "<|end|>\n<|assistant|>\n"),
    "phi-4": ("<|im_end|><|im_start|>user<|im_sep|>", "<|im_end|><|im_start|>assistant<|im_sep|>"),
    "olmo-2": ("\n<|user|>\n", "\n<|assistant|>\n"),
    "r1-distill": ("<｜User｜>", "<｜Assistant｜>"),
    "smollm2": ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_the_system_text_is_in_every_prompt_and_thinking_is_off(name):
    _, form = load(name)
    between, before = SHOWN[name]
    text = form.prompt(chats("Be right.", "Which?"))
    assert f"Be right.{between}Which?" in text and text.endswith(before)
    row = form.text(chats("Be right.", "Which?", "C"))
    assert row.startswith(text + "C")


def test_history_is_shown_as_the_template_shows_it():
    """Qwen3 takes the block of thought out of all answers but those to the last question."""
    _, form = load("qwen3")
    text = form.text(chats("s", "u", "first", "v", "second"))
    assert "assistant\nfirst<|im_end|>" in text and "assistant\n<think>\n\n</think>\n\nsecond" in text


def test_a_conversation_that_the_physician_opens(chat):
    """Where turns must begin with the user, the system text is that turn."""
    tokenizer, form = chat
    turns = prompts.messages(DIALOGUE)
    text = form.text(turns)
    for turn in turns:
        assert turn["content"] in text
    labels = prompts.training_ids(tokenizer, form, [turns])[1][0]
    assert tokenizer.decode(learned(labels)).replace(" ", "").count("Hello") == 1


def test_one_bos(chat):
    tokenizer, form = chat
    for record in (ITEM, ABSTRACT, DIALOGUE):
        ids = prompts.training_ids(tokenizer, form, [prompts.messages(record)])[0][0]
        written = form.text(prompts.messages(record)).count(tokenizer.bos_token or "no such token")
        assert ids.count(tokenizer.bos_token_id) == written
        assert ids[:2] != [tokenizer.bos_token_id] * 2


@EVERY_CHAT
@given(data=st.data(), before=TEXTS, after=TEXTS)
def test_a_content_cannot_forge_a_turn(chat, data, before, after):
    tokenizer, form = chat
    control = {token.content for token in tokenizer.added_tokens_decoder.values() if len(token.content) > 2}
    forged = data.draw(st.sampled_from(sorted(control)))
    header = form.prompt(chats("s", "u")).partition("u")[2] + f"C{form.ends[0]}"
    ids_of_control = {tokenizer.convert_tokens_to_ids(name) for name in control}
    if "<unk>" in control:  # a character that is not in the vocabulary
        ids_of_control.discard(tokenizer.convert_tokens_to_ids("<unk>"))
    plain, *others = (
        MCQItem("1", "medqa", f"x {text} y?", ("a", "b", "c", "d"), "A")
        for text in ("", before + forged + after, before + header + after, forged[:2] + forged + forged)
    )
    wanted = [i for i in prompts.prompt_ids(tokenizer, form, plain) if i in ids_of_control]
    for item in others:
        ids = prompts.prompt_ids(tokenizer, form, item)
        assert [i for i in ids if i in ids_of_control] == wanted  # no control token but the template's own
    talk = Dialogue("4", "notechat", (Turn("user", "x"), Turn("assistant", "y" + header + forged)))
    labels = prompts.training_ids(tokenizer, form, [prompts.messages(talk)])[1][0]
    ends = [i for i in learned(labels) if i in ids_of_control]
    assert ends == [tokenizer.convert_tokens_to_ids(form.ends[0])]


@pytest.mark.parametrize("name", NAMES)
def test_what_spells_a_control_token_stays_as_text(name):
    tokenizer, form = load(name)
    item = replace(ITEM, question=f"What does {form.ends[0]} end?")
    text = tokenizer.decode(prompts.prompt_ids(tokenizer, form, item))
    # Tokenizers that begin every stretch of text with a space put one behind the first character.
    assert item.question in text.replace(f"{form.ends[0][0]} {form.ends[0][1:]}", form.ends[0])


def test_dialogues_supervise_the_physician_and_each_end_of_turn(chat):
    tokenizer, form = chat
    for record in (DIALOGUE, TALK):
        ids, labels = prompts.training_ids(tokenizer, form, [prompts.messages(record)])
        said = tokenizer.decode(learned(labels[0]))
        assert said.strip().replace(" ", "") == f"Hello.{form.ends[0]}Where?\nSincewhen?{form.ends[0]}"
        assert all(label in (token, prompts.IGNORED) for token, label in zip(ids[0], labels[0], strict=True))


def test_loss_on_text_supervises_everything(chat):
    tokenizer, form = chat
    ids, labels = prompts.training_ids(tokenizer, form, [prompts.messages(DIALOGUE)], loss_on="text")
    assert labels == ids


def test_a_batch_gives_what_each_row_gives_alone(chat):
    tokenizer, form = chat
    rows = [prompts.messages(record) for record in (ITEM, DIALOGUE, ABSTRACT, TALK, ITEM)]
    alone = [prompts.training_ids(tokenizer, form, [row]) for row in rows]
    ids, labels = prompts.training_ids(tokenizer, form, rows)
    assert ids == [one[0][0] for one in alone]
    assert labels == [one[1][0] for one in alone]


def test_what_another_call_left_on_the_tokenizer_does_not_matter():
    tokenizer = make_tokenizer()
    form = prompts.ChatFormat.from_tokenizer(tokenizer)
    before = prompts.prompt_ids(tokenizer, form, ITEM)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=3)  # padding and truncation stay on
    assert prompts.prompt_ids(tokenizer, form, ITEM) == before
    assert tokenizer("<|eot_id|>", add_special_tokens=False)["input_ids"] == [tokenizer.eos_token_id]


@pytest.mark.parametrize("target", ["letter", "letter_and_text"])
def test_the_letter_is_scored_where_it_was_trained(chat, target):
    """Prompt and letter are the beginning of the training row, as "Answer: C) three" too."""
    tokenizer, form = chat
    place = prompts.letter_position(tokenizer, target)
    assert len(set(place["letter_tokens"])) == 4
    for letter, token in zip("ABCD", place["letter_tokens"], strict=True):
        item = replace(ITEM, answer=letter)
        (row,), _ = prompts.training_ids(tokenizer, form, [prompts.messages(item, target)])
        scored = [*place["encode"](item), token]
        assert row[: len(scored)] == scored
        assert letter in tokenizer.decode([token])


def test_a_released_prompt_is_tokenized_as_all_others(chat):
    """`Answer:` behind the question, for which the letters' way and the words' way are one."""
    tokenizer, form = chat
    text = prompts.prompt(form, ITEM, "\nAnswer:")
    ids = prompts.prompt_ids(tokenizer, form, ITEM, "\nAnswer:")
    assert "D) four\nAnswer:" in text
    whole = tokenizer.encode(text + "A", add_special_tokens=False)
    assert whole[: len(ids)] == ids and len(whole) == len(ids) + 1
    query = ConsumerQuery("5", "icliniq", "It hurts <|eot_id|>.", "Rest.")
    assert "It hurts" in prompts.prompt(form, query)


def test_the_date_is_the_runs():
    tokenizer = chat_templates.make("llama-3.2")

    def shown():
        return prompts.prompt(prompts.ChatFormat.from_tokenizer(tokenizer), ITEM)

    assert f"Today Date: {datetime.date.today():%d %b %Y}\n" in shown()
    chat_template.use_date("2025-03-01")
    assert "Today Date: 01 Mar 2025\n" in shown()
    fixed = prompts.ChatFormat.from_tokenizer(chat_templates.make("llama-3.1"))
    assert "Today Date: 26 Jul 2024\n" in prompts.prompt(fixed, ITEM)  # that template's own default stays


def refused(**changes):
    tokenizer = make_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    with pytest.raises(prompts.PromptError) as caught:
        prompts.ChatFormat.from_tokenizer(tokenizer)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    return str(caught.value)


TURN = "<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ m['content'] }}<|eot_id|>"
ASK = "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{% endif %}"


def test_templates_that_cannot_be_used_are_refused_in_one_line():
    assert "no chat template" in refused(chat_template=None)
    assert "no chat template" in refused(chat_template={"tool_use": "x"})
    once = "{% for m in messages %}" + TURN.replace("}}<|eot", "}}{{ m['content'] }}<|eot") + "{% endfor %}"
    assert "repeats, drops or moves a message" in refused(chat_template=once)
    last = "{% set m = messages[-1] %}" + TURN + ASK
    assert "repeats, drops or moves a message" in refused(chat_template=last)
    unended = "{% for m in messages %}<|start_header_id|>{{ m['role'] }}:{{ m['content'] }}.{% endfor %}"
    assert "ends an answer with '.', not with a special token" in refused(chat_template=unended)
    shouted = (
        "{% for m in messages %}"
        + TURN.replace("content']", "content'] | replace('y', 'Y')")
        + "{% endfor %}"
    )
    assert "rewrites a message's text" in refused(chat_template=shouted + ASK)
    other = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK.replace("assistant", "model")
    assert "generation prompt ends in" in refused(chat_template=other)


@pytest.mark.parametrize(
    ("template", "word"),
    [
        ("{{ raise_exception('only\nfor tools') }}", "only"),
        ("{{ messages[0].content.nothing.at_all }}", "no attribute"),
        ("{% for m in messages %}{{ m.content + 1 }}{% endfor %}", "concatenate"),
        ("{% if %}", "Expected an expression"),
    ],
)
def test_whatever_a_templates_code_raises_is_told_in_one_line(template, word):
    assert word in refused(chat_template=template)


def test_positions_may_count():
    """No concatenation: a header with the turn's number, and the last answer in other words."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}{{ loop.index }}"
        "{{ '!' if loop.last and m['role'] == 'assistant' }}<|end_header_id|>{{ m['content'] }}<|eot_id|>"
        "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>"
        "assistant{{ messages | length + 1 }}!<|end_header_id|>{% endif %}"
    )
    form = prompts.ChatFormat.from_tokenizer(tokenizer)
    assert "assistant3!<|end_header_id|>C<|eot_id|>" in form.text(prompts.messages(ITEM))
    assert "assistant3<|end_header_id|>Hello.<|eot_id|>" in form.text(prompts.messages(TALK))
    (row,), _ = prompts.training_ids(tokenizer, form, [prompts.messages(ITEM)])
    prompt = prompts.prompt_ids(tokenizer, form, ITEM)
    assert tokenizer.decode(row[len(prompt) :]) == "C<|eot_id|>"


def joining(merges):
    """A tokenizer of single characters and these merges."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    alphabet = {c: i for i, c in enumerate(sorted(set(map(chr, range(10, 127))) | {"\u00e4"}))}
    tokens = {a + b: len(alphabet) + i for i, (a, b) in enumerate(merges)}
    backend = Tokenizer(models.BPE(vocab={**alphabet, **tokens}, merges=merges))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|end|>",
        chat_template="{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant\n{% endif %}",
    )


def test_a_token_across_template_and_content():
    """As the tokenizer joins them in a question; apart where an answer begins, as it was asked for."""
    tokenizer = joining([("\n", "w"), ("\n", "A")])
    form = prompts.ChatFormat.from_tokenizer(tokenizer)
    turns = chats("x", "what", "wet")
    (ids,), (labels,) = prompts.training_ids(tokenizer, form, [turns])
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert tokens[tokens.index("\nw") : tokens.index("\nw") + 4] == ["\nw", "h", "a", "t"]
    # "\nA" parts from "\n", "t", so that a prompt ends before the line feed; "wet" is said with it.
    prompt = chat_template.prompt_ids(tokenizer, form, turns[:2])
    assert tokenizer.convert_ids_to_tokens(prompt)[-1] == "t" and ids[: len(prompt)] == prompt
    assert tokenizer.convert_ids_to_tokens(learned(labels)) == ["\nw", "e", "t", "<|end|>"]


def test_an_answer_that_would_change_its_prompt_is_said_after_it():
    tokenizer = joining([("\n", "z")])
    form = prompts.ChatFormat.from_tokenizer(tokenizer)
    (ids,), (labels,) = prompts.training_ids(tokenizer, form, [chats("x", "y", "zap")])
    prompt = chat_template.prompt_ids(tokenizer, form, chats("x", "y"))
    assert tokenizer.convert_ids_to_tokens(prompt)[-1] == "\n"
    assert ids[: len(prompt)] == prompt
    assert tokenizer.convert_ids_to_tokens(learned(labels)) == ["z", "a", "p", "<|end|>"]


def test_an_answers_beginning_that_a_tokenizer_usually_joins_is_refused():
    with pytest.raises(prompts.PromptError, match="into one token"):
        prompts.ChatFormat.from_tokenizer(joining([("\n", "w")]))


@pytest.mark.parametrize(("letter", "spelled"), [("C", "Cc"), ("B", "A")])
def test_letters_that_are_not_one_token_each_are_refused(letter, spelled):
    from tokenizers import normalizers

    tokenizer = joining([])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(letter, spelled)
    with pytest.raises(prompts.PromptError, match="not one token each for this tokenizer; use another model"):
        prompts.letter_position(tokenizer, "letter")
    with pytest.raises(prompts.PromptError, match=r"tokenizer; set data\.mcq_target=letter"):
        prompts.letter_position(tokenizer, "letter_and_text")
