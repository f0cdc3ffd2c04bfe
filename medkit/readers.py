"""Data files -> raw rows, each with the place it came from; refuses what is not what it should be."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from medkit import MedkitError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
# What a hub snapshot holds besides its rows.
NOT_ROWS = ("dataset_infos.json", "dataset_info.json", "package.json")


class SourceError(MedkitError):
    """A data set that cannot be used as a whole: one line with the file, the row, expected and found."""


def data_files(folder: Path) -> list[Path]:
    """Every file under `folder` that may hold rows, sorted by path; hidden ones are passed over."""
    found = []
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and path.suffix.lower() in ENDINGS and path.name not in NOT_ROWS and not hidden:
            found.append(path)
    return found


def digest(path: Path) -> str:
    """SHA-256 of the file, in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path.name, error) from None


def read_rows(path: Path, name: str = "") -> Iterator[tuple[str, dict]]:
    """Yield (place, row) for each row of a .jsonl, .json, .csv or .parquet file.

    `place` names the row for a reader of error messages: "line 7", "row 7" (both from 1) or "key 123".
    A .json file may hold JSON Lines, a list of rows, or one object keyed by id, whose rows then get the
    id under "key". Raises SourceError for what is not UTF-8, not JSON, cut off, empty, or not rows.
    """
    name = name or path.name
    reader = {".jsonl": _json, ".json": _json, ".csv": _csv, ".parquet": _parquet}[path.suffix.lower()]
    empty = True
    try:
        for place, row in reader(path, name):
            if not isinstance(row, dict):
                raise SourceError(f"{name}, {place}: expected a row of named columns, found {_shown(row)}")
            empty = False
            yield place, row
    except UnicodeDecodeError:
        raise SourceError(f"{name}, {_not_utf8(path)}; save the file as UTF-8") from None
    except OSError as error:
        raise _unreadable(name, error) from None
    except csv.Error as error:
        raise SourceError(f"{name}: expected comma-separated cells, found {error}") from None
    if empty:
        raise SourceError(f"{name}: expected rows, found an empty file")


def _unreadable(name: str, error: OSError) -> SourceError:
    return SourceError(f"{name}: cannot be read ({error.strerror or error})")


def _json(path: Path, name: str) -> Iterator[tuple[str, object]]:
    # utf-8-sig: a byte-order mark is no part of the first row. Universal newlines take CRLF.
    with path.open(encoding="utf-8-sig") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if path.suffix.lower() == ".jsonl" or _is_json_lines(first):
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"line {number}", _parse(line, name, number)
            return
        whole = _parse(file.read(), name)
    if isinstance(whole, dict) and whole and all(isinstance(row, dict) for row in whole.values()):
        for key, row in whole.items():
            yield f"key {key}", {"key": key, **row}
    elif isinstance(whole, list):
        yield from ((f"row {number}", row) for number, row in enumerate(whole, 1))
    else:
        raise SourceError(
            f"{name}: expected JSON Lines, a list of rows or an object of rows, found {_shown(whole)}"
        )


def _is_json_lines(first: str) -> bool:
    """Whether a .json file whose first line is `first` holds one row a line."""
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    # One line holding an object of objects is a keyed document written without line breaks.
    return isinstance(row, dict) and not (row and all(isinstance(value, dict) for value in row.values()))


def _parse(text: str, name: str, line: int = 0) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {line or error.lineno}"
        raise SourceError(
            f"{name}, {place}: expected whole JSON, found {error.msg} (column {error.colno}); "
            "if it was cut off, fetch it again"
        ) from None
    except RecursionError:
        raise SourceError(
            f"{name}, line {line or 1}: expected a row, found brackets nested too deep"
        ) from None
    except ValueError:  # Python reads whole numbers of up to 4,300 digits
        raise SourceError(
            f"{name}, line {line or 1}: expected a row, found a number of too many digits"
        ) from None


def _csv(path: Path, name: str) -> Iterator[tuple[str, object]]:
    csv.field_size_limit(2**27)  # a consultation and its note outgrow the default of 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 1):
            if None in row or None in row.values():
                raise SourceError(f"{name}, row {number}: expected as many cells as the header has")
            yield f"row {number}", row


def _parquet(path: Path, name: str) -> Iterator[tuple[str, object]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches(batch_size=4096):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except pyarrow.ArrowInvalid as error:
        message = " ".join(str(error).split())[:120]
        raise SourceError(f"{name}: expected a Parquet file, found {message}") from None


def _not_utf8(path: Path) -> str:
    """Where the first byte that is not UTF-8 stands; the error of a buffered read does not know."""
    content = path.read_bytes()
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return f"line {line}: expected UTF-8, found byte 0x{content[error.start]:02x}"
    return "expected UTF-8, and found it: the file changed while it was read"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    kind = type(value).__name__
    return f"{kind} {text[:60]}" + ("..." if len(text) > 60 else "")
