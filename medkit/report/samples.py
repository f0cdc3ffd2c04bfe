"""samples.md: best, median and worst answers beside the physician's, as in Figures 3 to 10 of the paper.

The paper shows eight cases that it picked; here the scores pick them, and the worst are among them.
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

if TYPE_CHECKING:  # it imports torch, which a report does without
    from medkit.evaluate.generation import Answer

SHOWN_CHARACTERS = 4_000  # of a text; a model that repeats itself can fill a page otherwise
# Control characters, and those that turn the direction of the text that follows them
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_MARKUP = {ord(character): f"&#{ord(character)};" for character in "&<>\"'\\`*_[]#|~$:@"}


def samples(
    cases: Sequence[ConsumerQuery],
    answers: Mapping[str, Sequence["Answer"]],
    scores: pd.DataFrame,
    *,
    first: str,
    second: str,
    include_text: bool,
    note: str = "",
    each: int = 2,
) -> str:
    """Markdown with up to `each` best, median and worst cases by F1 of `second` minus `first`.

    `scores` is that of consumer.evaluate, `answers` the greedy ones. Without `include_text` only ids, scores
    and lengths are printed: what rows of a real dataset may be committed as. With it every text is escaped,
    so that no answer can become markup, a link or a formula. `note` goes above (markdown.origin_note).
    """
    f1 = scores[scores["sample"] == 0].pivot(index=["source", "case"], columns="model", values="f1")
    gains = [f1.loc[(case.source, case.id), second] - f1.loc[(case.source, case.id), first] for case in cases]
    parts = [
        "# Answers side by side\n",
        *([f"**{note}**\n"] if note else []),
        f"Of {len(cases)} cases, by the F1 of {_name(second)} minus that of {_name(first)} (BERTScore "
        "against the physician's answer). Nearer to the physician's wording is neither right nor safe.\n",
    ]
    for title, picked in choose(gains, each).items():
        if picked:
            parts.append(f"## {title}\n")
        for i in picked:
            case, beside = cases[i], {model: answers[model][i] for model in (first, second)}
            rows = {model: f1.loc[(case.source, case.id), model] for model in beside}
            parts.append(f"### {escape(case.source)} {escape(case.id)}: {gains[i]:+.4f}\n")
            parts.append(_texts(case, beside, rows) if include_text else _numbers(case, beside, rows))
    return "\n".join(parts)


def write(
    run: Run,
    cases: Sequence[ConsumerQuery],
    answers: Mapping[str, Sequence[Sequence["Answer"]]],
    scores: pd.DataFrame,
    show_text: bool,
) -> str:
    """Write figures/samples.md, the first model's greedy answers beside Med-Nirvana's (without it the last
    model's), and return it. answers: per model and case the greedy answer and, after it, the sampled ones."""
    first, second = pair(list(answers))
    if first == second:
        return "One model only: there is nothing to show side by side."
    greedy = {model: [tries[0] for tries in by_case] for model, by_case in answers.items()}
    shown, note = may_show(run, show_text), origin_note(run.folder)
    page = samples(cases, greedy, scores, first=first, second=second, include_text=shown, note=note)
    storage.write_text(run.folder / "figures" / "samples.md", page)
    return page


def pair(models: Sequence[str]) -> tuple[str, str]:
    """The two models to show side by side: the first, and Med-Nirvana or, without it, the last."""
    return models[0], "med-nirvana" if "med-nirvana" in models else models[-1]


def choose(gains: Sequence[float], each: int) -> dict[str, list[int]]:
    """Positions of the best, median and worst `each` gains, best first, none of them twice."""
    order = sorted(range(len(gains)), key=lambda i: (-gains[i], i))
    each = min(each, max(1, len(order) // 3))
    best, rest = order[:each], order[each:]
    worst, middle = rest[max(0, len(rest) - each) :], rest[: max(0, len(rest) - each)]
    start = (len(middle) - each + 1) // 2 if len(middle) > each else 0
    return {"Best": best, "Median": middle[start : start + each], "Worst": worst}


def escape(text: str) -> str:
    """The text as it is read, in Markdown, in HTML and in a notebook alike."""
    if len(text) > SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} [{len(text) - SHOWN_CHARACTERS:,} more characters]"
    lines = _UNSEEN.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n")).split("\n")
    return "<br>".join(line.translate(_MARKUP) for line in lines)


def _texts(case: ConsumerQuery, answers: dict[str, "Answer"], f1: dict[str, float]) -> str:
    """An HTML table without a blank line in it: a Markdown table has no room for paragraphs."""
    width = 100 // (len(answers) + 1)
    heads = ["Physician", *(f"{_name(model)}, F1 {f1[model]:.4f}{_cut(answers[model])}" for model in answers)]
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
    rows = [{"whose": "physician", "F1": "", "words": f"{word_count(case.reference):,}"}]
    for model, answer in answers.items():
        name = f"{_name(model)}{_cut(answer)}"
        rows.append({"whose": name, "F1": f"{f1[model]:.4f}", "words": f"{word_count(answer.text):,}"})
    return grid(pd.DataFrame(rows)) + "\n"


def _name(model: str) -> str:
    return escape(arms.title(model))


def _cut(answer: "Answer") -> str:
    return {"cut": ", cut off", "too long": ", not asked: too long"}.get(answer.finish, "")
