"""Formats tables as Markdown and plain text, and numbers with their intervals as strings."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from medkit.runs import run_json

BUILT_IN = (
    "This run used the built-in corpus instead of the data sets. Its results say nothing about medicine and "
    "must not be compared with published ones."
)

ALPHA = 0.05  # significance level of every test, after Holm's correction
WIDTH = 100  # terminal columns


@dataclass(frozen=True)
class Table:
    name: str  # "table3"
    title: str
    figures: pd.DataFrame  # tidy numbers for the CSV: per row a result with n and interval, or a source
    page: pd.DataFrame  # the same as formatted strings
    text: str  # computed summary below the table
    note: str = ""  # warning above the table
    short: pd.DataFrame | None = None  # the page for a terminal; None: the whole page

    def markdown(self) -> str:
        note = f"**{self.note}**\n\n" if self.note else ""
        return f"# {self.title}\n\n{note}{grid(self.page)}\n\n{self.text}\n"

    def terminal(self) -> str:
        """The short page and the first paragraph of the text, at most WIDTH columns wide."""
        cells = plain_table(self.page if self.short is None else self.short)
        first, _, _ = self.text.partition("\n\n")
        return f"{self.title}\n\n{cells}\n\n{wrap(first)}"


def significance(results: Sequence[tuple[str, bool]], subject: str = "") -> str:
    """List the significant differences, then the others. results: (description, is significant)."""
    yes, no = ("; ".join(text for text, differs in results if differs == group) for group in (True, False))
    start = f"{subject}. " if subject else ""
    return f"{start}Significantly different: {yes or 'none'}. Not significantly different: {no or 'none'}."


def listed(items: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


def grid(cells: pd.DataFrame) -> str:
    """Strings as a Markdown table. Vertical bars in cells (`<|im_start|>`) are escaped."""
    escaped = cells.map(lambda cell: str(cell).replace("|", r"\|"))
    return escaped.to_markdown(index=False, disable_numparse=True)


def plain_table(cells: pd.DataFrame, width: int = WIDTH) -> str:
    """Strings as a plain-text table. The longest cells and titles are wrapped to fit `width` columns."""
    plain = cells.map(lambda cell: _strip_emphasis(str(cell)))
    longest = max(map(len, [*plain.columns, *plain.to_numpy().ravel()]), default=0)
    text = ""
    for limit in range(longest, 0, -1):
        # Not tabulate's maxcolwidths, which takes "10,178" for a number and fails on it.
        wrapped = plain.map(lambda cell, limit=limit: textwrap.fill(cell, limit))
        wrapped.columns = [textwrap.fill(title, limit) for title in plain.columns]
        text = wrapped.to_markdown(index=False, disable_numparse=True, tablefmt="simple")
        if max(map(len, text.splitlines())) <= width:
            break
    return text


def wrap(text: str, width: int = WIDTH) -> str:
    """Wrap Markdown paragraphs at `width` characters and remove emphasis marks."""
    paragraphs = _strip_emphasis(text).split("\n\n")
    return "\n\n".join(textwrap.fill(paragraph, width, break_on_hyphens=False) for paragraph in paragraphs)


def _strip_emphasis(text: str) -> str:
    return text.replace("**", "").replace("`", "")


def number(value: float | None, digits: int = 1) -> str:
    """A number with fixed decimals; "" for None and NaN."""
    return "" if value is None or value != value else f"{value:.{digits}f}"


def interval(row: Mapping, key: str = "mean", digits: int = 1, factor: float = 1) -> str:
    """A value with its interval, as in `0.84 [0.82, 0.86]`; "" if there is no value.

    The bounds are row["KEY_low"] and row["KEY_high"], else row["low"] and row["high"]; they may be missing.
    """
    bounds = (row.get(f"{key}_{bound}", row.get(bound)) for bound in ("low", "high"))
    value, low, high = (number(None if x is None else factor * x, digits) for x in (row.get(key), *bounds))
    return f"{value} [{low}, {high}]" if value and low else value


def percent(row: Mapping, key: str = "accuracy") -> str:
    """A share with its interval, in percent with one decimal."""
    return interval(row, key, 1, 100)


def in_percent(share: float | None) -> str:
    """A share without an interval, in percent with one decimal; "" for None and NaN."""
    return percent({"share": share}, "share")


def points(row: Mapping) -> str:
    """A difference of shares with its interval, in percentage points: `+1.0, -2.0 to +4.0`."""
    return "{:+.1f}, {:+.1f} to {:+.1f}".format(*(100 * row[key] for key in ("difference", "low", "high")))


def origin_note(run_dir: str | Path) -> str:
    """The warning for a run on the built-in corpus; "" for any other run."""
    info = run_json.read(Path(run_dir))
    return BUILT_IN if info and info["data"]["origin"] == "builtin" else ""


def demote_headings(markdown: str) -> str:
    """Move headings two levels down, so that a page fits into a notebook section."""
    return re.sub(r"^(#+ )", r"##\1", markdown, flags=re.MULTILINE)
