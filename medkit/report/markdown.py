"""One table as CSV, Markdown and plain text; and numbers with their intervals as text."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkit.runs import run_json

BUILT_IN = (
    "This run read the built-in corpus instead of the data sets: its figures say nothing about medicine, and "
    "none may be compared with a published one."
)

ALPHA = 0.05  # of every test, after Holm's correction
WIDTH = 100  # columns of a terminal


@dataclass(frozen=True)
class Table:
    name: str  # "table3"
    title: str
    figures: pd.DataFrame  # tidy: one figure with its n and interval a row, or one source a row
    page: pd.DataFrame  # the same as strings, laid out for reading
    text: str  # computed: what the table shows, and which differences are significant
    note: str = ""  # above the table: what its figures must not be taken for
    short: pd.DataFrame | None = None  # what a terminal shows of the page; None: all of it

    def markdown(self) -> str:
        above = f"**{self.note}**\n\n" if self.note else ""
        return f"# {self.title}\n\n{above}{grid(self.page)}\n\n{self.text}\n"

    def terminal(self) -> str:
        """The short page, and how it is read: the first paragraph of the text; at most WIDTH columns."""
        cells = fitted(self.page if self.short is None else self.short)
        first, _, _ = self.text.partition("\n\n")
        return f"{self.title}\n\n{cells}\n\n{wrapped(first)}"


def significance(rows: Sequence[tuple[str, bool]], of: str = "") -> str:
    """Which differences are significant and which are not: (what differs, whether it does), in two sentences.
    `of` names whose differences they are."""
    yes, no = ("; ".join(text for text, differs in rows if differs == group) for group in (True, False))
    start = f"{of}. " if of else ""
    return f"{start}Significantly different: {yes or 'none'}. Not significantly different: {no or 'none'}."


def listed(parts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def grid(cells: pd.DataFrame) -> str:
    """Strings as a Markdown table; a bar in a cell (`<|im_start|>`) does not end it."""
    escaped = cells.map(lambda cell: str(cell).replace("|", r"\|"))
    return escaped.to_markdown(index=False, disable_numparse=True)


def fitted(cells: pd.DataFrame, width: int = WIDTH) -> str:
    """Strings as a plain table of at most `width` columns: where it would be wider, the longest cells and
    titles are broken into lines."""
    plain = cells.map(lambda cell: _unmarked(str(cell)))
    longest = max(map(len, [*plain.columns, *plain.to_numpy().ravel()]), default=0)
    text = ""
    for limit in range(longest, 0, -1):
        # Not tabulate's maxcolwidths, which takes "10,178" for a number and fails on it.
        broken = plain.map(lambda cell, most=limit: textwrap.fill(cell, most))
        broken.columns = [textwrap.fill(title, limit) for title in plain.columns]
        text = broken.to_markdown(index=False, disable_numparse=True, tablefmt="simple")
        if max(map(len, text.splitlines())) <= width:
            break
    return text


def wrapped(text: str, width: int = WIDTH) -> str:
    """Paragraphs of Markdown in lines of at most `width` characters, without marks of emphasis."""
    parts = (textwrap.fill(_unmarked(part), width, break_on_hyphens=False) for part in text.split("\n\n"))
    return "\n\n".join(parts)


def _unmarked(text: str) -> str:
    return text.replace("**", "").replace("`", "")


def number(value: float | None, digits: int = 1) -> str:
    """ "" for None and NaN."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def interval(own: Mapping, key: str = "mean", digits: int = 1, factor: float = 1) -> str:
    """`0.84 [0.82, 0.86]`: own[key] with own["low"] and own["high"], or KEY_low and KEY_high where these are
    there; without an interval the value alone, "" for no value."""
    ends = (own.get(f"{key}_{end}", own.get(end)) for end in ("low", "high"))
    value, low, high = (
        number(None if one is None else factor * one, digits) for one in (own.get(key), *ends)
    )
    return f"{value} [{low}, {high}]" if value and low else value


def percent(own: Mapping, key: str = "accuracy") -> str:
    """A share with its interval, in percent with one decimal."""
    return interval(own, key, 1, 100)


def in_percent(share: float | None) -> str:
    """A share without an interval, in percent with one decimal; "" for no value."""
    return percent({"share": share}, "share")


def points(row: Mapping) -> str:
    """A difference of shares with its interval, in points: `+1.0, -2.0 to +4.0`."""
    return "{:+.1f}, {:+.1f} to {:+.1f}".format(*(100 * row[key] for key in ("difference", "low", "high")))


def origin_note(run_dir: str | Path) -> str:
    """What a table or figure of a run on the built-in corpus has to say of itself; "" for any other run."""
    info = run_json.read(Path(run_dir))
    return BUILT_IN if info and info["data"]["origin"] == "builtin" else ""


def inside(markdown: str) -> str:
    """A page as a part of a notebook: its headings two levels down."""
    return re.sub(r"^(#+ )", r"##\1", markdown, flags=re.MULTILINE)
