"""Data files -> raw rows, each with the place it came from; refuses what is not what it should be.

JSON, CSV and Parquet are read here and not by `datasets`' builders, whose errors name no line, whose CSV
reader makes null of the options "None" and "NA", and which take PubMedQA's keyed file for a single row;
its own format, save_to_disk, is read by `datasets`.
"""

import csv
import io
import json
import lzma
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
    listed,
    open_decompressed,
    shortened,
    shown,
    unreadable,
)

DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)  # what reading raises, compressed files included
BATCH = 4096  # rows of Arrow and Parquet made Python objects at a time


def read_rows(path: Path, name: str = "") -> Iterator[tuple[str, dict]]:
    """Yield (place, row) for each row of a JSON, CSV, Parquet or Arrow file or a save_to_disk folder.

    `place` names the row for a reader of error messages: "line 7", "row 7" (both from 1) or "key 123".
    A .json or .jsonl file may hold JSON Lines, a list of rows, pandas' to_json() by columns, or one object
    keyed by id, whose rows then get the id under "key". Text files may be compressed by gzip, bzip2, xz or
    zstd. Raises SourceError for what is not UTF-8, not JSON, cut off, empty, or not rows.
    """
    name, ending, empty = name or path.name, ending_of(path), True
    reader = {".csv": _csv, ".parquet": _parquet, ".arrow": _arrow}.get(ending, _json)
    try:
        if path.is_dir():
            reader = _saved
        else:
            check_start(path, name, text=reader in (_json, _csv))
        for place, row in reader(path, name):
            if not isinstance(row, dict):
                raise SourceError(
                    f"{name}, {place}: expected a row of named columns, found {shown(row)}; "
                    "write one JSON object a row"
                )
            empty = False
            yield place, row
    except UnicodeDecodeError:
        raise _not_utf8(path, name) from None
    except DAMAGED as error:
        raise unreadable(name, error) from None
    if empty:
        raise SourceError(f"{name}: expected rows, found an empty file; fetch or write it again")


def _text(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    # utf-8-sig: a byte-order mark is no part of the first row. Universal newlines take CRLF and CR.
    return io.TextIOWrapper(open_decompressed(path), encoding="utf-8-sig", newline=newline)


def _json(path: Path, name: str) -> Iterator[tuple[str, object]]:
    with _text(path) as file:
        number, first = next(((n, line) for n, line in enumerate(file, 1) if line.strip()), (0, ""))
        if not first:
            return
        if _is_json_lines(first, ending_of(path)):
            for at, line in enumerate(chain([first], file), number):
                if line.strip():
                    yield f"line {at}", _parse(line, name, at)
            return
        whole = _parse("\n" * (number - 1) + first + file.read(), name)
    yield from _document(whole, name)


def _is_json_lines(first: str, ending: str) -> bool:
    """Whether a file whose first line is `first` holds one row a line."""
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return ending == ".jsonl" and first.startswith("{") and first.strip() != "{"
    # One line holding an object of objects is a keyed document written without line breaks.
    return isinstance(row, dict) and not _is_keyed(row) and not _orient(row)


def _is_keyed(whole: Any) -> bool:
    return isinstance(whole, dict) and bool(whole) and all(isinstance(row, dict) for row in whole.values())


def _orient(whole: Any) -> str:
    """Which of pandas' orients, other than records and index, a document was written in; "" for none."""
    if not isinstance(whole, dict) or not whole:
        return ""
    if set(whole) == {"columns", "index", "data"}:
        return "split"
    if set(whole) == {"schema", "data"}:
        return "table"
    if all(isinstance(column, list) for column in whole.values()):
        return "list"
    indices = [index for column in whole.values() if isinstance(column, dict) for index in column]
    numbered = all(index.isdecimal() for index in indices) and not all(name.isdecimal() for name in whole)
    return "columns" if _is_keyed(whole) and indices and numbered else ""


def _document(whole: Any, name: str) -> Iterator[tuple[str, object]]:
    orient = _orient(whole)
    if orient == "columns":  # {column: {index: cell}}, what to_json() writes unless told otherwise
        indices = list(next(iter(whole.values())))
        if any(set(column) != set(indices) for column in whole.values()):
            raise SourceError(f"{name}: expected columns of the same rows, found some of other lengths; "
                              'write it again with to_json(orient="records", lines=True)')  # fmt: skip
        for number, index in enumerate(indices, 1):
            yield f"row {number}", {column: cells[index] for column, cells in whole.items()}
    elif orient:
        raise SourceError(
            f'{name}: expected rows, found a table in the orient "{orient}" ({listed(whole)}); '
            'write it with to_json(orient="records", lines=True)'
        )
    elif _is_keyed(whole):
        yield from ((f"key {shortened(key, 40)}", {"key": key, **row}) for key, row in whole.items())
    elif isinstance(whole, list):
        yield from ((f"row {number}", row) for number, row in enumerate(whole, 1))
    elif whole != {}:
        raise SourceError(
            f"{name}: expected JSON Lines, a list of rows or an object of rows, found {shown(whole)}; "
            "write one JSON object a line"
        )


class _RepeatedName(ValueError):
    """An object that names a column twice, of which Python would keep the last alone."""


def _object(pairs: list[tuple[str, object]]) -> dict:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise _RepeatedName(_repeated(name for name, _ in pairs))
    return row


def _repeated(names: Iterable[str]) -> str:
    """The first name that is there twice; "" where there is none. A column without a name is no one's."""
    return next((name for name, count in Counter(names).items() if count > 1 and name), "")


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parse(text: str, name: str, line: int = 0) -> object:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}"
        near = text[max(0, error.pos - 10) : error.pos + 20].strip()
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            near, fix = text[-20:].strip(), "the row is cut off: fetch it again, or write it on one line"
        elif text[error.pos] == "\0":
            near, fix = "zero bytes", "it was not fetched to its end: fetch it again"
        elif text[error.pos :].strip() == ",":
            fix = "remove the comma that ends the line"
        else:
            fix = "correct the file"
        raise SourceError(
            f"{name}, {place}: expected whole JSON, found {error.msg} (column {error.colno}, "
            f"near {near!r}); {fix}"
        ) from None
    except RecursionError:
        found, fix = "brackets nested too deep", "correct the file"
    except _RepeatedName as error:
        found, fix = f"the name {shortened(str(error), 40)!r} twice in one object", "keep one of the two"
    except ValueError:  # Python reads whole numbers of up to 4,300 digits
        found, fix = "a number of too many digits", "correct the file"
    place = f", line {line or 1}" if line or "\n" not in text.strip() else ""
    raise SourceError(f"{name}{place}: expected a row, found {found}; {fix}")


def _csv(path: Path, name: str) -> Iterator[tuple[str, object]]:
    """Cells separated by commas, or by semicolons or tabs where the header has no comma."""
    csv.field_size_limit(2**27)  # a consultation and its note outgrow the default of 128 KiB
    with _text(path, newline="") as file:
        first = next((line for line in file if line.strip()), "")
        between = next((mark for mark in ",;\t" if mark in first), ",")
        # strict: a quote that is never closed would swallow the rest of the file without a word
        reader = csv.reader(chain([first], file), delimiter=between, strict=True)
        number = 0
        try:
            header = next(reader, [])
            _once(header, name)
            for number, cells in enumerate(filter(None, reader), 1):
                if len(cells) != len(header):
                    raise SourceError(
                        f"{name}, row {number}: expected {len(header)} cells as in the header, found "
                        f"{len(cells)}; quote the cells that hold separators or line ends"
                    )
                # A table's missing number is written nan; "None" and "NA" are options of real questions.
                values = (None if cell in ("nan", "NaN") else cell for cell in cells)
                yield f"row {number}", dict(zip(header, values, strict=True))
        except csv.Error as error:
            raise SourceError(
                f"{name}, row {number + 1}: expected separated cells, found {error}; "
                "close and double the quotes inside cells, or fetch the file again"
            ) from None
        if header and not number:
            raise SourceError(
                f"{name}: expected rows, found only the line {shortened(first)!r}; fetch it again"
            )


def _once(columns: Iterable[str], name: str) -> None:
    if again := _repeated(columns):
        raise SourceError(
            f"{name}: two columns are called {shortened(again)!r}; rename or remove one of them"
        )


def _parquet(path: Path, name: str) -> Iterator[tuple[str, object]]:
    import pyarrow.parquet

    with path.open("rb") as file:
        if (start := file.read(40))[:4] != b"PAR1":
            raise SourceError(
                f"{name}: expected a Parquet file, found {shortened(repr(start))}; unpack or fetch it"
            )
        yield from _arrow_rows(lambda: pyarrow.parquet.ParquetFile(file).iter_batches(BATCH), name)


def _arrow(path: Path, name: str) -> Iterator[tuple[str, object]]:
    """An Arrow file on its own, such as one of `datasets`' cache: a stream, or with an index at its end."""
    import pyarrow.ipc

    def batches():
        with path.open("rb") as file:
            indexed = file.read(6) == b"ARROW1"
            file.seek(0)
            if not indexed:
                yield from pyarrow.ipc.open_stream(file)
                return
            table = pyarrow.ipc.open_file(file)
            yield from (table.get_batch(number) for number in range(table.num_record_batches))

    yield from _arrow_rows(batches, name)


def _saved(path: Path, name: str) -> Iterator[tuple[str, object]]:
    import datasets

    for part in sorted(path.glob("data*.arrow")):
        check_start(part, f"{name}/{shortened(part.name)}", text=False)

    def batches():
        for table in datasets.load_from_disk(str(path)).with_format("arrow").iter(batch_size=BATCH):
            yield from table.to_batches()

    yield from _arrow_rows(batches, name)


def _arrow_rows(open_batches, name: str) -> Iterator[tuple[str, object]]:
    """The rows of Arrow batches, counted from 1; what the libraries raise becomes one line."""
    number = 0
    try:
        for batch in open_batches():
            if not number:
                _once(batch.schema.names, name)
            for row in _python_rows(batch, number, name):
                number += 1
                yield f"row {number}", row
    except MedkitError:
        raise
    except Exception as error:  # pyarrow and datasets raise dozens of kinds
        reason = shortened(str(error) or type(error).__name__, 80)
        after = f", after row {number}" if number else ""
        raise SourceError(
            f"{name}{after}: expected whole Parquet or Arrow data, found: {reason}; fetch or write it again"
        ) from None


def _python_rows(batch, before: int, name: str) -> list[dict]:
    """The batch's rows. `before` counts the rows ahead of it.

    Raises SourceError with row and column for text that is not UTF-8, and pyarrow.ArrowInvalid for damaged
    offsets, by which reading cells would end the process.
    """
    for column in batch.columns:
        column.view(_as_bytes(column.type)).validate(full=True)
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        pass
    for title, column in zip(batch.schema.names, batch.columns, strict=True):
        for number, cell in enumerate(column, before + 1):
            try:
                cell.as_py()
            except UnicodeDecodeError as error:
                raise SourceError(
                    f"{name}, row {number}, column {shortened(title, 40)}: expected UTF-8, found byte "
                    f"0x{error.object[error.start]:02x}; write the column's text again as UTF-8"
                ) from None
    raise SourceError(f"{name}: expected UTF-8; the file changed while it was read")


def _as_bytes(kind):
    """The Arrow type with bytes for text: what can be checked apart from the text's encoding."""
    import pyarrow

    if pyarrow.types.is_string(kind):
        return pyarrow.binary()
    if pyarrow.types.is_large_string(kind):
        return pyarrow.large_binary()
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


def _not_utf8(path: Path, name: str) -> SourceError:
    """Names the line of the first byte that is not UTF-8; the error of a buffered read does not know it."""
    try:
        with open_decompressed(path) as file:
            content = file.read()
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        before = content[: error.start].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        line, byte = before.count(b"\n") + 1, content[error.start]
        return SourceError(
            f"{name}, line {line}: expected UTF-8, found byte 0x{byte:02x}; save the file as UTF-8"
        )
    except DAMAGED as error:
        return unreadable(name, error)
    return SourceError(f"{name}: expected UTF-8; the file changed while it was read")
