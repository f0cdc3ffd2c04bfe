"""Reads data files into raw rows, each with its location for error messages.

JSON, CSV and Parquet are not read with the builders of `datasets`: their errors give no line number, their
CSV reader turns the options "None" and "NA" into null, and they read PubMedQA's keyed file as a single row.
Only save_to_disk folders are read with `datasets`.
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
    check_start,
    open_decompressed,
    preview,
    shards_of,
    shortened,
    suffix_of,
    unexpected,
    unreadable,
)

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)  # also those of compressed files
BATCH = 4096  # rows of Arrow and Parquet turned into Python objects at a time


def read_rows(path: Path, name: str = "") -> Iterator[tuple[str, dict]]:
    """Yield (location, row) for each row of a JSON, CSV, Parquet or Arrow file or a save_to_disk folder.

    `location` names the row in error messages: "line 7", "row 7" (both from 1) or "key 123". A .json or
    .jsonl file may contain JSON Lines, a list of rows, the columns that pandas' to_json() writes, or one
    object keyed by id; the rows of the last get the id under "key". Text files may be compressed with gzip,
    bzip2, xz or zstd. Raises MedkitError for a file that is not UTF-8, invalid, cut off or empty, or that
    contains something other than rows.
    """
    name, empty = name or path.name, True
    is_binary = path.is_dir() or suffix_of(path) in (".parquet", ".arrow")
    reader = _read_arrow if is_binary else _read_csv if suffix_of(path) == ".csv" else _read_json
    try:
        for shard in shards_of(path):
            check_start(shard, name if shard == path else f"{name}/{shard.name}")
        for location, row in reader(path, name):
            if not isinstance(row, dict):
                expected = "a row of named columns"
                raise unexpected(
                    f"{name}, {location}", expected, preview(row), "write one JSON object per row"
                )
            empty = False
            yield location, row
    except READ_ERRORS as error:
        raise unreadable(name, error) from None
    if empty:
        raise unexpected(name, "rows", "none", "fetch or write it again")


def _read_lines(path: Path, name: str, newline: str | None = None) -> Iterator[str]:
    """The lines of a text file. Raises MedkitError at the first one that is not UTF-8."""
    # utf-8-sig drops a byte-order mark. newline=None also accepts CRLF and CR as line ends.
    with io.TextIOWrapper(open_decompressed(path), "utf-8-sig", "surrogateescape", newline) as file:
        for number, line in enumerate(file, 1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = f"byte 0x{ord(line[error.start]) - 0xDC00:02x}"
                raise unexpected(f"{name}, line {number}", "UTF-8", byte, "save the file as UTF-8") from None
            yield line


def _read_json(path: Path, name: str) -> Iterator[tuple[str, object]]:
    lines = _read_lines(path, name)
    first_number, first_line = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
    if not first_line:
        return
    if _is_json_lines(first_line, suffix_of(path)):
        for number, line in enumerate(chain([first_line], lines), first_number):
            if line.strip():
                yield f"line {number}", _parse_json(line, name, number)
        return
    document = _parse_json("\n" * (first_number - 1) + first_line + "".join(lines), name)
    keys = _kind_of_keys(document)
    if keys == "columns":
        indices = dict.fromkeys(index for cells in document.values() for index in cells)
        for number, index in enumerate(indices, 1):
            yield f"row {number}", {column: cells.get(index) for column, cells in document.items()}
    elif keys == "ids":
        yield from ((f"key {shortened(key, 40)}", {"key": key, **row}) for key, row in document.items())
    elif isinstance(document, list):
        yield from ((f"row {number}", row) for number, row in enumerate(document, 1))
    elif document != {}:
        expected = "JSON Lines, a list of rows or an object of rows"
        raise unexpected(name, expected, preview(document), "write one JSON object per line")


def _is_json_lines(first_line: str, suffix: str) -> bool:
    """Whether the file has one row per line. A document may also be on a single line."""
    try:
        row = json.loads(first_line)
    except (ValueError, RecursionError):
        return suffix == ".jsonl" and first_line.startswith("{") and first_line.strip() != "{"
    return isinstance(row, dict) and not _kind_of_keys(row)


def _kind_of_keys(document: Any) -> str:
    """The meaning of the keys of an object of objects; "" for anything else.

    "ids": each value is a row. "columns": each value has a column's cells by row number, as written by
    pandas' to_json().
    """
    if not isinstance(document, dict) or not document:
        return ""
    if not all(isinstance(value, dict) for value in document.values()):
        return ""
    numbered = all(key.isdecimal() for value in document.values() for key in value)
    return "columns" if numbered and not all(key.isdecimal() for key in document) else "ids"


def _unique_names(pairs: list[tuple[str, Any]]) -> dict:
    """The object of (name, value) pairs. Raises ValueError for a repeated name, where json keeps the last."""
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {shortened(repeated, 40)!r} twice in one object")
    return row


def _parse_json(text: str, name: str, line: int = 0) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique_names)
    except json.JSONDecodeError as error:
        near = text[max(0, error.pos - 10) : error.pos + 15].strip()
        problem, line = f"{error.msg} (column {error.colno}, near {near!r})", line or error.lineno
    except RecursionError:
        problem = "brackets nested too deep"
    except ValueError as error:  # a repeated name, or a whole number of more than 4,300 digits
        problem = shortened(str(error))
    raise unexpected(
        f"{name}, line {line or 1}", "valid JSON", problem, "correct it, or fetch the file again"
    )


def _read_csv(path: Path, name: str) -> Iterator[tuple[str, object]]:
    """Cells are separated by commas, or by semicolons or tabs if the header has no comma."""
    csv.field_size_limit(2**27)  # a consultation with its note can exceed the default of 128 KiB
    lines = _read_lines(path, name, newline="")
    header_line = next((line for line in lines if line.strip()), "")
    delimiter = next((mark for mark in ",;\t" if mark in header_line), ",")
    # Without strict, a quote that is never closed would silently swallow the rest of the file.
    reader = csv.reader(chain([header_line], lines), delimiter=delimiter, strict=True)
    number = 0
    try:
        header = next(reader, [])
        _check_column_names(header, name)
        for number, cells in enumerate(filter(None, reader), 1):
            if len(cells) != len(header):
                expected = f"{len(header)} cells as in the header"
                fix = "quote the cells that contain separators or line ends"
                raise unexpected(f"{name}, row {number}", expected, len(cells), fix)
            # pandas writes a missing number as nan. "None" and "NA" are options of real questions.
            values = (None if cell in ("nan", "NaN") else cell for cell in cells)
            yield f"row {number}", dict(zip(header, values, strict=True))
    except csv.Error as error:
        fix = "close and double the quotes inside cells, or fetch the file again"
        raise unexpected(f"{name}, row {number + 1}", "separated cells", error, fix) from None


def _check_column_names(columns: Iterable[str], name: str) -> None:
    for column, count in Counter(columns).items():
        if count > 1 and column:  # columns without a name are not read
            raise MedkitError(f"{name}: two columns are called {shortened(column)!r}; rename or remove one")


def _read_arrow(path: Path, name: str) -> Iterator[tuple[str, object]]:
    number = 0
    try:
        for batch in _arrow_batches(path):
            if not number:
                _check_column_names(batch.schema.names, name)
            for row in _python_rows(batch, number, name):
                number += 1
                yield f"row {number}", row
    except MedkitError:
        raise
    except Exception as error:  # pyarrow and datasets raise dozens of types
        location = f"{name}, after row {number}" if number else name
        reason = shortened(str(error) or type(error).__name__, 80)
        expected = "valid Parquet or Arrow data"
        raise unexpected(location, expected, reason, "fetch or write it again") from None


def _arrow_batches(path: Path) -> Iterator:
    """The Arrow batches of a save_to_disk folder, a Parquet file, or an Arrow file in either IPC format."""
    import pyarrow.ipc
    import pyarrow.parquet

    if path.is_dir():
        import datasets

        for table in datasets.load_from_disk(str(path)).with_format("arrow").iter(batch_size=BATCH):
            yield from table.to_batches()
        return
    with path.open("rb") as file:
        if suffix_of(path) == ".parquet":
            yield from pyarrow.parquet.ParquetFile(file).iter_batches(BATCH)
        elif file.peek(6).startswith(b"ARROW1"):
            table = pyarrow.ipc.open_file(file)
            yield from (table.get_batch(number) for number in range(table.num_record_batches))
        else:  # a stream, as in the cache of `datasets`
            yield from pyarrow.ipc.open_stream(file)


def _python_rows(batch, rows_before: int, name: str) -> list[dict]:
    """The batch as a list of rows; `rows_before` is the number of rows in earlier batches.

    Raises MedkitError with row and column for text that is not UTF-8, and pyarrow.ArrowInvalid for damaged
    offsets, which would otherwise crash the process when cells are read.
    """
    for column, cells in zip(batch.schema.names, batch.columns, strict=True):
        try:
            cells.validate(full=True)
        except ValueError as error:
            if not (match := re.search(r"Invalid UTF8 sequence at string index (\d+)", str(error))):
                raise
            # In lists and dictionaries, the index counts strings and not rows.
            nested = re.search("List|Dictionary", str(error))
            row = f"after row {rows_before}" if nested else f"row {rows_before + int(match[1]) + 1}"
            location = f"{name}, {row}, column {shortened(column, 40)}"
            raise MedkitError(f"{location}: expected UTF-8; write the column's text again") from None
    return batch.to_pylist()
