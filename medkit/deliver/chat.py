"""Ask one question and show the answers of a run's models side by side while they are generated.

In a terminal: `medkit chat RUN`. In a notebook: `chat.widget(run)`. The models are adapters on one base
(evaluate.lineup) and answer one after another, each with the prompt it was trained on, by greedy decoding.
"""

import html
import itertools
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from medkit import MedkitError, evaluate, prompts
from medkit.chat_template import ChatFormat
from medkit.records import ConsumerQuery
from medkit.runs import run_json
from medkit.runs.arms import title
from medkit.runs.run_json import Run
from medkit.train import models

if TYPE_CHECKING:
    from medkit.evaluate.lineup import Lineup

NOT_FOR_PATIENTS = "Not for clinical use: nothing here was examined for safety. See a physician."
MODELS = ("base", "med-mix", "med-nirvana")
MIN_COLUMN = 32  # characters; with less room per model the answers are printed one below the other

Answers = Mapping[str, str]  # model -> its answer so far


def open_run(name: str) -> tuple[Run, "Lineup"]:
    """The run and its models, which are loaded later. Raises ResultsError if one of them is missing."""
    run = run_json.for_reading(name)
    models.unsloth()  # patches Transformers, so it has to be imported before `evaluate` imports that
    return run, evaluate.lineup.of_run(run, MODELS)


def ask(
    run: Run,
    lineup: "Lineup",
    question: str,
    show: Callable[[Answers], None] = lambda answers: None,
) -> dict[str, str]:
    """Return every model's answer. `show` receives all answers so far whenever one of them grows.

    Raises MedkitError for an empty question, or one longer than the models read.
    """
    if not question.strip():
        raise MedkitError("the question is empty; write one")
    query = ConsumerQuery("question", "chat", question.strip(), "not known")
    max_new_tokens = run.recipe.consumer.max_new_tokens
    answers: dict[str, str] = {}
    for active in lineup:
        chat = ChatFormat.from_tokenizer(active.tokenizer)
        prompt_ids = prompts.prompt_ids(active.tokenizer, chat, query)
        limit = (evaluate.inference.context_length(active.model) or math.inf) - max_new_tokens
        if len(prompt_ids) > limit:
            raise MedkitError(
                f"the question takes {len(prompt_ids):,} tokens and the models read {limit:,}; shorten it"
            )

        def update(text: str, name: str = active.name) -> None:
            answers[name] = text
            show(answers)

        update(_generate(active, prompt_ids, max_new_tokens, update))
    return answers


def _generate(active, prompt_ids: list[int], max_new_tokens: int, update: Callable[[str], None]) -> str:
    import torch

    prompt = torch.tensor([prompt_ids], device=active.model.device)
    stop_ids = evaluate.generation.stop_ids(active.model, active.tokenizer)
    with torch.inference_mode():
        output = active.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            generation_config=evaluate.generation.greedy(max_new_tokens, stop_ids),
            return_dict_in_generate=False,
            streamer=_streamer(active.tokenizer, update),
        )
    # The streamer decodes line by line, where some tokenizers drop a line's leading space.
    return active.tokenizer.decode(output[0, len(prompt_ids) :], skip_special_tokens=True).strip()


def _streamer(tokenizer, update: Callable[[str], None]):
    """A streamer for `generate` that passes on the answer so far, up to its last complete word."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        answer = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.answer += text
            update(self.answer)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def columns(answers: Answers, width: int) -> str:
    """The answers side by side in lines of at most `width` characters, or one below the other if a column
    would be narrower than MIN_COLUMN."""
    column = (width - 3 * (len(MODELS) - 1)) // len(MODELS)
    if column < MIN_COLUMN:
        return "\n\n".join(f"{title(name)}\n{textwrap.fill(text, width)}" for name, text in answers.items())
    cells = [
        [title(name), "-" * len(title(name)), *textwrap.wrap(text, column)] for name, text in answers.items()
    ]
    rows = itertools.zip_longest(*cells, fillvalue="")
    return "\n".join("   ".join(f"{text:<{column}}" for text in row).rstrip() for row in rows)


class Terminal:
    """Redraws the growing answers in place. Writes only the final ones to a pipe or a file."""

    def __init__(self, out=None):
        self._out, self._drawn_lines = out or sys.stdout, 0

    def show(self, answers: Answers, done: bool = False) -> None:
        live = self._out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        if not live and not done:
            return
        size = shutil.get_terminal_size((100, 40))
        lines = columns(answers, size.columns - 1).splitlines()
        if not done:
            lines = lines[-(size.lines - 2) :]  # what has scrolled off cannot be redrawn
        if self._drawn_lines:
            self._out.write(f"\x1b[{self._drawn_lines}A\x1b[J")
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()
        self._drawn_lines = 0 if done else len(lines)


def talk(name: str, question: str = "") -> None:
    """`medkit chat`: answer `question` or, without one, each line of the input."""
    run, lineup = open_run(name)
    print(NOT_FOR_PATIENTS)
    for text in [question] if question else _input_lines():
        if not text.strip():
            continue
        terminal = Terminal()
        terminal.show(ask(run, lineup, text, terminal.show), done=True)
        print(NOT_FOR_PATIENTS)


def _input_lines() -> Iterable[str]:
    while True:
        try:
            yield input("\nquestion: " if sys.stdin.isatty() else "")
        except EOFError:
            return


def widget(name: str):
    """A notebook widget: a question field, a button, and one column per model."""
    import ipywidgets as widgets

    run, lineup = open_run(name)
    question = widgets.Textarea(placeholder="A patient's question", layout={"width": "100%"})
    button = widgets.Button(description="Ask", button_style="primary")
    warning = widgets.HTML(f"<b>{html.escape(NOT_FOR_PATIENTS)}</b>")
    cells = {name: widgets.HTML(layout={"width": "33%", "padding": "0 1em 0 0"}) for name in lineup.members}

    def show(answers: Answers) -> None:
        for name, text in answers.items():
            body = html.escape(text).replace("\n", "<br>")
            cells[name].value = f"<b>{html.escape(title(name))}</b><br>{body}"

    def on_click(_) -> None:
        button.disabled = True
        try:
            ask(run, lineup, question.value, show)
        except MedkitError as error:
            show({next(iter(cells)): str(error)})
        finally:
            button.disabled = False

    button.on_click(on_click)
    return widgets.VBox([warning, question, button, widgets.HBox(list(cells.values()))])
