"""Data files -> raw rows, each with the place it came from.

JSON, CSV and Parquet are read here and not by `datasets`' builders, whose errors name no line, whose CSV
reader makes null of the options "None" and "NA", and which take PubMedQA's keyed file for a single row;
its own format, save_to_disk, is read by `datasets`.
"""

import csv
import io
import json
import lzma
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from medkit import MedkitError
from medkit.data.formats import (
    SourceError,
    check_start,
    ending_of,
    open_decompressed,
    parts_of,
    shortened,
    shown,
    unexpected,
    unreadable,
)

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading raises, compressed files included
BATCH = 4096  # rows of Arrow and Parquet turned into Python objects at a time


def read_rows(path: Path, name: str = "") -> Iterator[tuple[str, dict]]:
    """Yield (place, row) for each row of a JSON, CSV, Parquet or Arrow file or a save_to_disk folder.

    `place` names the row in error messages: "line 7", "row 7" (both from 1) or "key 123". A .json or .jsonl
    file may hold JSON Lines, a list of rows, pandas' to_json() by columns, or one object keyed by id, whose
    rows then get the id under "key". Text files may be compressed by gzip, bzip2, xz or zstd. Raises
    SourceError for what is not UTF-8, not JSON, cut off, empty, or not rows.
    """
    name, empty = name or path.name, True
    binary = path.is_dir() or ending_of(path) in (".parquet", ".arrow")
    reader = _arrow if binary else _csv if ending_of(path) == ".csv" else _json
    try:
        for part in parts_of(path):
            check_start(part, name if part == path else f"{name}/{part.name}")
        for place, row in reader(path, name):
            if not isinstance(row, dict):
                expected = "a row of named columns"
                raise unexpected(f"{name}, {place}", expected, shown(row), "write one JSON object a row")
            empty = False
            yield place, row
    except DAMAGED as error:
        raise unreadable(name, error) from None
    if empty:
        raise unexpected(name, "rows", "none", "fetch or write it again")


def _lines(path: Path, name: str, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file; SourceError for the first that is not UTF-8."""
    # utf-8-sig: a byte-order mark is not part of the first row. newline=None takes CRLF and CR as line ends.
    with io.TextIOWrapper(open_decompressed(path), "utf-8-sig", "surrogateescape", newline) as file:
        for number, line in enumerate(file, 1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = f"byte 0x{ord(line[error.start]) - 0xDC00:02x}"
                raise unexpected(f"{name}, line {number}", "UTF-8", byte, "save the file as UTF-8") from None
            yield line


def _json(path: Path, name: str) -> Iterator[tuple[str, object]]:
    lines = _lines(path, name)
    number, first = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
    if not first:
        return
    if _is_json_lines(first, ending_of(path)):
        for at, line in enumerate(chain([first], lines), number):
            if line.strip():
                yield f"line {at}", _parse(line, name, at)
        return
    whole = _parse("\n" * (number - 1) + first + "".join(lines), name)
    keyed = _keyed(whole)
    if keyed == "columns":
        indices = dict.fromkeys(index for column in whole.values() for index in column)
        for at, index in enumerate(indices, 1):
            yield f"row {at}", {column: cells.get(index) for column, cells in whole.items()}
    elif keyed:
        yield from ((f"key {shortened(key, 40)}", {"key": key, **row}) for key, row in whole.items())
    elif isinstance(whole, list):
        yield from ((f"row {at}", row) for at, row in enumerate(whole, 1))
    elif whole != {}:
        expected = "JSON Lines, a list of rows or an object of rows"
        raise unexpected(name, expected, shown(whole), "write one JSON object a line")


def _is_json_lines(first: str, ending: str) -> bool:
    """Whether a file whose first line is `first` holds one row a line."""
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return ending == ".jsonl" and first.startswith("{") and first.strip() != "{"
    return isinstance(row, dict) and not _keyed(row)  # else a whole document without line breaks


def _keyed(whole: Any) -> str:
    """What the keys of an object of objects are: "ids" of rows, or "columns" of cells by number, as pandas'
    to_json() writes them unless told otherwise; "" for anything else."""
    if not isinstance(whole, dict) or not whole or not all(isinstance(row, dict) for row in whole.values()):
        return ""
    numbered = all(index.isdecimal() for row in whole.values() for index in row)
    return "columns" if numbered and not all(key.isdecimal() for key in whole) else "ids"


def _once(pairs: list[tuple[str, Any]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):  # Python would keep the last alone
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shortened(twice, 40)!r} twice in one object")
    return row


def _parse(text: str, name: str, line: int = 0) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 10) : error.pos + 15].strip()
        found, line = f"{error.msg} (column {error.colno}, near {near!r})", line or error.lineno
    except RecursionError:
        found = "brackets nested too deep"
    except ValueError as error:  # Python reads whole numbers of up to 4,300 digits
        found = shortened(str(error))
    raise unexpected(f"{name}, line {line or 1}", "whole JSON", found, "correct it, or fetch the file again")


def _csv(path: Path, name: str) -> Iterator[tuple[str, object]]:
    """Cells separated by commas, or by semicolons or tabs where the header has no comma."""
    csv.field_size_limit(2**27)  # a consultation and its note outgrow the default of 128 KiB
    lines = _lines(path, name, newline="")
    first = next((line for line in lines if line.strip()), "")
    between = next((mark for mark in ",;\t" if mark in first), ",")
    # strict: a quote that is never closed would swallow the rest of the file without a word
    reader = csv.reader(chain([first], lines), delimiter=between, strict=True)
    number = 0
    try:
        header = next(reader, [])
        _check_names(header, name)
        for number, cells in enumerate(filter(None, reader), 1):
            if len(cells) != len(header):
                expected = f"{len(header)} cells as in the header"
                fix = "quote the cells that hold separators or line ends"
                raise unexpected(f"{name}, row {number}", expected, len(cells), fix)
            # A table's missing number is written nan; "None" and "NA" are options of real questions.
            values = (None if cell in ("nan", "NaN") else cell for cell in cells)
            yield f"row {number}", dict(zip(header, values, strict=True))
    except csv.Error as error:
        fix = "close and double the quotes inside cells, or fetch the file again"
        raise unexpected(f"{name}, row {number + 1}", "separated cells", error, fix) from None


def _check_names(columns: Iterable[str], name: str) -> None:
    for column, count in Counter(columns).items():
        if count > 1 and column:  # a column without a name is not read
            raise SourceError(f"{name}: two columns are called {shortened(column)!r}; rename or remove one")


def _arrow(path: Path, name: str) -> Iterator[tuple[str, object]]:
    number = 0
    try:
        for batch in _batches(path):
            if not number:
                _check_names(batch.schema.names, name)
            for row in _python_rows(batch, number, name):
                number += 1
                yield f"row {number}", row
    except MedkitError:
        raise
    except Exception as error:  # pyarrow and datasets raise dozens of kinds
        place = f"{name}, after row {number}" if number else name
        reason = shortened(str(error) or type(error).__name__, 80)
        expected = "whole Parquet or Arrow data"
        raise unexpected(place, expected, reason, "fetch or write it again") from None


def _batches(path: Path) -> Iterator:
    """The Arrow batches of a save_to_disk folder, a Parquet file, or an Arrow file: a stream, as in the cache
    of `datasets`, or with an index at its end."""
    import pyarrow.ipc
    import pyarrow.parquet

    if path.is_dir():
        import datasets

        for table in datasets.load_from_disk(str(path)).with_format("arrow").iter(batch_size=BATCH):
            yield from table.to_batches()
        return
    with path.open("rb") as file:
        if ending_of(path) == ".parquet":
            yield from pyarrow.parquet.ParquetFile(file).iter_batches(BATCH)
        elif file.peek(6).startswith(b"ARROW1"):
            table = pyarrow.ipc.open_file(file)
            yield from (table.get_batch(number) for number in range(table.num_record_batches))
        else:
            yield from pyarrow.ipc.open_stream(file)


def _python_rows(batch, before: int, name: str) -> list[dict]:
    """The batch's rows. `before` counts the rows ahead of it.

    Raises SourceError with row and column for text that is not UTF-8, and pyarrow.ArrowInvalid for damaged
    offsets, by which reading cells would end the process.
    """
    for title, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except ValueError as error:
            if not (found := re.search(r"Invalid UTF8 sequence at string index (\d+)", str(error))):
                raise
            # Within lists and dictionaries, texts are counted and not rows.
            row = (
                f"after row {before}"
                if re.search("List|Dictionary", str(error))
                else f"row {before + int(found[1]) + 1}"
            )
            raise SourceError(
                f"{name}, {row}, column {shortened(title, 40)}: expected UTF-8; write the column's text again"
            ) from None
    return batch.to_pylist()
