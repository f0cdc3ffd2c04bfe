"""samples.md: best, median and worst answers next to the physician's, as in the paper's Figures 3 to 10.

The paper shows eight hand-picked cases. Here the scores select the cases, including the worst ones.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from medkit.evaluate.style import word_count
from medkit.records import ConsumerQuery
from medkit.report.markdown import grid, origin_note
from medkit.runs import arms, storage
from medkit.runs.run_json import Run, may_show

if TYPE_CHECKING:  # imports torch, which a report does not need
    from medkit.evaluate.generation import Answer

MAX_CHARACTERS = 4_000  # shown of a text; a model that repeats itself would fill the page
# Control characters, zero-width characters and marks of text direction
_INVISIBLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_MARKUP = {ord(character): f"&#{ord(character)};" for character in "&<>\"'\\`*_[]#|~$:@"}


def render(
    cases: Sequence[ConsumerQuery],
    answers: Mapping[str, Sequence["Answer"]],
    scores: pd.DataFrame,
    *,
    first: str,
    second: str,
    include_text: bool,
    note: str = "",
) -> str:
    """Markdown with up to two best, median and worst cases by F1 of `second` minus `first`.

    scores: from consumer.evaluate. answers: the greedy ones, per model. Without `include_text` the page has
    only ids, scores and lengths, so that it may be committed for real data sets. With it, texts are escaped:
    no answer can become markup, a link or a formula. note: a warning at the top (markdown.origin_note).
    """
    f1 = scores[scores["sample"] == 0].pivot(index=["source", "case"], columns="model", values="f1")
    gains = [f1.loc[(case.source, case.id), second] - f1.loc[(case.source, case.id), first] for case in cases]
    parts = [
        "# Answers side by side\n",
        *([f"**{note}**\n"] if note else []),
        f"Selected from {len(cases)} cases by F1 of {_name(second)} minus {_name(first)} (BERTScore against "
        "the physician's answer). Similar wording does not make an answer correct or safe.\n",
    ]
    for title, positions in select_cases(gains, 2).items():
        if positions:
            parts.append(f"## {title}\n")
        for i in positions:
            case = cases[i]
            case_answers = {model: answers[model][i] for model in (first, second)}
            case_f1 = {model: f1.loc[(case.source, case.id), model] for model in case_answers}
            parts.append(f"### {escape(case.source)} {escape(case.id)}: {gains[i]:+.4f}\n")
            show = _texts if include_text else _numbers
            parts.append(show(case, case_answers, case_f1))
    return "\n".join(parts)


def write(
    run: Run,
    cases: Sequence[ConsumerQuery],
    answers: Mapping[str, Sequence[Sequence["Answer"]]],
    scores: pd.DataFrame,
    show_text: bool,
) -> str:
    """Write figures/samples.md with the greedy answers of the two models of `pair`, and return its text.

    answers: per model and case, the greedy answer followed by the sampled ones.
    """
    first, second = pair(list(answers))
    if first == second:
        return "One model only: there is nothing to show side by side."
    greedy = {model: [case_answers[0] for case_answers in by_case] for model, by_case in answers.items()}
    include_text, note = may_show(run, show_text), origin_note(run.folder)
    page = render(cases, greedy, scores, first=first, second=second, include_text=include_text, note=note)
    storage.write_text(run.folder / "figures" / "samples.md", page)
    return page


def pair(models: Sequence[str]) -> tuple[str, str]:
    """The two models to compare: the first, and Med-Nirvana or, without it, the last."""
    return models[0], "med-nirvana" if "med-nirvana" in models else models[-1]


def select_cases(gains: Sequence[float], count: int) -> dict[str, list[int]]:
    """Positions of up to `count` best, median and worst gains, best first, without repetition."""
    order = sorted(range(len(gains)), key=lambda i: (-gains[i], i))
    count = min(count, max(1, len(order) // 3))
    best, rest = order[:count], order[count:]
    worst, middle = rest[max(0, len(rest) - count) :], rest[: max(0, len(rest) - count)]
    start = (len(middle) - count + 1) // 2 if len(middle) > count else 0
    return {"Best": best, "Median": middle[start : start + count], "Worst": worst}


def escape(text: str) -> str:
    """Escape a text so that Markdown, HTML and notebooks display it literally."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} [{len(text) - MAX_CHARACTERS:,} more characters]"
    lines = _INVISIBLE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    return "<br>".join(line.translate(_MARKUP) for line in lines)


def _texts(case: ConsumerQuery, answers: dict[str, "Answer"], f1: dict[str, float]) -> str:
    """An HTML table, as Markdown tables have no paragraphs. It has no blank lines, which would end it."""
    width = 100 // (len(answers) + 1)
    heads = [
        "Physician",
        *(f"{_name(model)}, F1 {f1[model]:.4f}{_finish_note(answers[model])}" for model in answers),
    ]
    texts = [case.reference, *(answer.text for answer in answers.values())]
    lines = [
        "<table>",
        f'<tr><td colspan="{len(texts)}"><b>Patient</b><br>{escape(case.query)}</td></tr>',
        "<tr>" + "".join(f'<th width="{width}%">{head}</th>' for head in heads) + "</tr>",
        '<tr valign="top">'
        + "".join(f"<td>{escape(text) or '<i>nothing</i>'}</td>" for text in texts)
        + "</tr>",
        "</table>\n",
    ]
    return "\n".join(lines)


def _numbers(case: ConsumerQuery, answers: dict[str, "Answer"], f1: dict[str, float]) -> str:
    rows = [{"answer by": "physician", "F1": "", "words": f"{word_count(case.reference):,}"}]
    for model, answer in answers.items():
        name = f"{_name(model)}{_finish_note(answer)}"
        rows.append({"answer by": name, "F1": f"{f1[model]:.4f}", "words": f"{word_count(answer.text):,}"})
    return grid(pd.DataFrame(rows)) + "\n"


def _name(model: str) -> str:
    return escape(arms.title(model))


def _finish_note(answer: "Answer") -> str:
    return {"cut": ", cut off", "too long": ", skipped: query too long"}.get(answer.finish, "")
