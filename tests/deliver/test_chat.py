"""One question, three models: answers side by side, as they grow."""

import io
import types

import chat_templates
import pytest
import torch

from medkit import MedkitError
from medkit.__main__ import main
from medkit.deliver import chat
from medkit.evaluate import generation
from medkit.prompts import prompt_ids

QUESTION = "I have a headache."


@pytest.fixture(autouse=True)
def results(tiny_run_folder, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tiny_run_folder.parent))


def test_every_model_answers_as_it_does_when_it_is_evaluated():
    run, team = chat.open_run("tiny")
    seen = []
    texts = chat.ask(run, team, QUESTION, lambda texts: seen.append(dict(texts)))
    assert list(texts) == ["base", "med-mix", "med-nirvana"] and len(set(texts.values())) == 3
    for active in team:
        own = chat.ChatFormat.from_tokenizer(active.tokenizer)
        query = chat.ConsumerQuery("q", "chat", QUESTION, "-")
        ((answer,),) = generation.generate_answers(
            active.model,
            active.tokenizer,
            [prompt_ids(active.tokenizer, own, query)],
            max_new_tokens=8,
            batch_size=1,
            store=None,
            key="",
            progress=False,
        )
        assert texts[active.name] == answer.text
    # Streamed: a model's answer grew while those before it were whole, and later ones not yet there.
    assert len(seen) > 8 and "med-mix" not in seen[0]
    assert [step["base"] for step in seen if "med-mix" not in step][-1] == texts["base"]


def test_what_is_no_question_is_refused():
    run, team = chat.open_run("tiny")
    with pytest.raises(MedkitError, match="the question is empty"):
        chat.ask(run, team, " \n")
    with pytest.raises(MedkitError, match="shorten it"):
        chat.ask(run, team, "ache " * 2000)


TEXTS = {"base": "one two three " * 5, "med-mix": "short", "med-nirvana": ""}


def test_side_by_side_where_there_is_room():
    lines = chat.columns(TEXTS, 120).splitlines()
    assert lines[0].split() == ["base", "Med-Mix", "Med-Nirvana"]
    assert max(map(len, lines)) <= 120 and "short" in lines[2]
    each = (120 - 2 * 3) // 3  # 38 characters a model
    assert lines[2].index("short") == each + 3


def test_below_one_another_in_a_narrow_terminal():
    text = chat.columns(TEXTS, 60)
    assert text.split("\n\n")[1] == "Med-Mix\nshort" and max(map(len, text.splitlines())) <= 60


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_is_drawn_over_and_a_pipe_gets_the_end_only(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Screen()
    terminal = chat.Terminal(screen)
    terminal.show({"base": "one"})
    terminal.show({"base": "one two"}, done=True)
    first, second = screen.getvalue().split("\x1b[3A\x1b[J")  # title, rule and one line were drawn
    assert "one" in first and "one two" in second
    pipe = io.StringIO()
    terminal = chat.Terminal(pipe)
    terminal.show({"base": "one"})
    assert pipe.getvalue() == ""
    terminal.show({"base": "one two"}, done=True)
    assert "one two" in pipe.getvalue() and "\x1b" not in pipe.getvalue()


def test_the_command(capsys, monkeypatch):
    assert main(["chat", "tiny", QUESTION]) == 0
    shown = capsys.readouterr().out
    assert shown.count(chat.NOT_FOR_PATIENTS) == 2 and "Med-Nirvana" in shown
    monkeypatch.setattr("sys.stdin", io.StringIO("first question\n\nsecond question\n"))
    assert main(["chat", "tiny"]) == 0  # the input ends: so does it
    assert capsys.readouterr().out.count("Med-Mix") == 2
    assert main(["chat", "no-such-run"]) == 2
    assert "is not a run" in capsys.readouterr().err


def test_the_widget():
    box = chat.widget("tiny")
    warning, question, button, answers = box.children
    assert chat.NOT_FOR_PATIENTS in warning.value
    question.value = QUESTION
    button.click()
    assert all(cell.value.startswith("<b>") for cell in answers.children) and not button.disabled
    question.value = ""
    button.click()
    assert "the question is empty" in answers.children[0].value


def test_an_answer_keeps_the_spaces_that_its_lines_begin_with(monkeypatch):
    """SentencePiece's tokenizers drop a line's first space where each line is decoded apart."""
    tokenizer = chat_templates.make("mistral-v0.3")
    said = "Take two:\n - rest\n   - walk"
    ids = tokenizer(said, add_special_tokens=False).input_ids

    def generate(input_ids, streamer, **_):
        streamer.put(input_ids)
        for id in ids:
            streamer.put(torch.tensor([id]))
        streamer.end()
        return torch.cat([input_ids, torch.tensor([ids])], dim=1)

    monkeypatch.setattr(generation, "stop_ids", lambda model, tokenizer: [2])
    model = types.SimpleNamespace(device="cpu", generate=generate)
    active = types.SimpleNamespace(model=model, tokenizer=tokenizer)
    assert chat._generate(active, [1], 50, lambda text: None) == said
