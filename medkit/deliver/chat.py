"""One question, and the answers of a run's models side by side, as they are written.

In a terminal `medkit chat RUN`; in a notebook `chat.widget(run)`. The models are adapters switched in on one
base (evaluate.lineup), so they answer one after another; each is asked as it was trained, with the paper's
instruction and its own chat template, and answers greedily.
"""

import html
import math
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping

from medkit import MedkitError, prompts
from medkit.chat_template import ChatFormat
from medkit.evaluate import generation, inference, lineup
from medkit.records import ConsumerQuery
from medkit.runs import run_json
from medkit.runs.arms import title
from medkit.runs.run_json import Run
from medkit.train import models

NOT_FOR_PATIENTS = "Not for clinical use: nothing here was examined for safety. See a physician."
SHOWN = ("base", "med-mix", "med-nirvana")
COLUMN = 32  # characters; a terminal with less for each model gets the answers below one another

Texts = Mapping[str, str]  # model -> what it has answered so far, in the order of the models


class ChatError(MedkitError):
    """A question that is none."""


def _streamer(tokenizer, show: Callable[[str], None]):
    """For Transformers' generate: hands the answer on as far as its words are whole."""
    from transformers import TextStreamer

    class Streamer(TextStreamer):
        answer = ""

        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            self.answer += text
            show(self.answer)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def open_run(name: str) -> tuple[Run, lineup.Lineup]:
    """(run, its base, Med-Mix and Med-Nirvana, none loaded yet); ResultsError where one is missing."""
    run = run_json.for_reading(name)
    models.unsloth()  # before the libraries that it changes are loaded
    return run, lineup.of_run(run, SHOWN)


def ask(
    run: Run,
    team: lineup.Lineup,
    question: str,
    show: Callable[[Texts], None] = lambda texts: None,
) -> dict[str, str]:
    """Every model's whole answer; `show` is given all answers so far whenever one of them grows.

    Raises ChatError for an empty question, and for one longer than the models read.
    """
    if not question.strip():
        raise ChatError("the question is empty; write one")
    query = ConsumerQuery("asked", "chat", question.strip(), "not known")
    limit = run.recipe.consumer.max_new_tokens
    texts: dict[str, str] = {}
    for active in team:
        chat = ChatFormat.from_tokenizer(active.tokenizer)
        ids = prompts.prompt_ids(active.tokenizer, chat, query)
        room = (inference.context_length(active.model) or math.inf) - limit
        if len(ids) > room:
            raise ChatError(
                f"the question takes {len(ids):,} tokens and the models read {room:,}; shorten it"
            )
        texts[active.name] = ""

        def grown(text: str, name: str = active.name) -> None:
            texts[name] = text
            show(texts)

        texts[active.name] = _generate(active, ids, limit, grown)
        show(texts)
    return texts


def _generate(active, ids: list[int], limit: int, grown: Callable[[str], None]) -> str:
    import torch

    prompt = torch.tensor([ids], device=active.model.device)
    ends = generation.stop_ids(active.model, active.tokenizer)
    with torch.inference_mode():
        written = active.model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=limit,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=ends,
            pad_token_id=ends[0],  # one row: never used, and generate asks for one
            streamer=_streamer(active.tokenizer, grown),
        )
    # A streamer decodes each line apart, where some tokenizers drop the line's first space.
    return active.tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True).strip()


def columns(texts: Texts, width: int) -> str:
    """The answers side by side in lines of at most `width` characters; below one another where that leaves a
    model less than COLUMN."""
    each = (width - 3 * (len(SHOWN) - 1)) // len(SHOWN)
    if each < COLUMN:
        return "\n\n".join(f"{title(name)}\n{textwrap.fill(text, width)}" for name, text in texts.items())
    cells = [
        [title(name), "-" * len(title(name)), *textwrap.wrap(text, each)] for name, text in texts.items()
    ]
    lines = range(max(map(len, cells), default=0))
    rows = [[cell[n] if n < len(cell) else "" for cell in cells] for n in lines]
    return "\n".join("   ".join(f"{text:<{each}}" for text in row).rstrip() for row in rows)


class Terminal:
    """Draws the growing answers over what it drew before; into a pipe or a file, the end alone."""

    def __init__(self, out=None):
        self._out, self._drawn = out or sys.stdout, 0

    def show(self, texts: Texts, done: bool = False) -> None:
        live = self._out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        if not live and not done:
            return
        size = shutil.get_terminal_size((100, 40))
        lines = columns(texts, size.columns - 1).splitlines()
        if not done:
            lines = lines[-(size.lines - 2) :]  # more cannot be drawn over
        if self._drawn:
            self._out.write(f"\x1b[{self._drawn}A\x1b[J")
        self._out.write("\n".join(lines) + "\n")
        self._out.flush()
        self._drawn = 0 if done else len(lines)


def talk(name: str, question: str = "", lines: Iterable[str] | None = None) -> None:
    """`medkit chat`: answers `question`, or every line that is typed until the input ends."""
    run, team = open_run(name)
    print(NOT_FOR_PATIENTS)
    typed = [question] if question else _typed() if lines is None else lines
    for line in typed:
        if not line.strip():
            continue
        terminal = Terminal()
        terminal.show(ask(run, team, line, terminal.show), done=True)
        print(NOT_FOR_PATIENTS)


def _typed() -> Iterable[str]:
    while True:
        try:
            yield input("\nquestion: " if sys.stdin.isatty() else "")
        except EOFError:
            return


def widget(name: str):
    """The same in a notebook: a field for the question, a button, and a column a model."""
    import ipywidgets as widgets

    run, team = open_run(name)
    question = widgets.Textarea(placeholder="A patient's question", layout={"width": "100%"})
    button = widgets.Button(description="Ask", button_style="primary")
    warning = widgets.HTML(f"<b>{html.escape(NOT_FOR_PATIENTS)}</b>")
    answers = {name: widgets.HTML(layout={"width": "33%", "padding": "0 1em 0 0"}) for name in team.members}

    def show(texts: Texts) -> None:
        for name, text in texts.items():
            shown = html.escape(text).replace("\n", "<br>")
            answers[name].value = f"<b>{html.escape(title(name))}</b><br>{shown}"

    def asked(_) -> None:
        button.disabled = True
        try:
            ask(run, team, question.value, show)
        except MedkitError as error:
            show({next(iter(answers)): str(error)})
        finally:
            button.disabled = False

    button.on_click(asked)
    return widgets.VBox([warning, question, button, widgets.HBox(list(answers.values()))])
