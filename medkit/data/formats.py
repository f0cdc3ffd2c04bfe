"""The files of a data folder: which may hold rows, what their first bytes say, and how messages name them."""

import bz2
import gzip
import hashlib
import lzma
import os
import reprlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

from medkit import MedkitError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# What a hub snapshot or a save_to_disk folder holds besides its rows.
NOT_ROWS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "package.json")


class SourceError(MedkitError):
    """A data set that cannot be used as a whole: one line with the file, the row, expected and found."""


def data_files(folder: Path, above: tuple[str, ...] = ()) -> list[Path]:
    """Every file under `folder` that may hold rows, sorted by path; a save_to_disk folder counts as one.

    Links to folders are followed, except back to a folder they lie in (`above`); hidden files are skipped.
    Raises SourceError for a folder that cannot be listed.
    """
    if (here := os.path.realpath(folder)) in above:
        return []
    if is_saved(folder):
        return [folder]
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder.name, error) from None
    found = []
    for path in paths:
        if path.name.startswith("."):
            continue
        if os.path.isdir(path):
            found += data_files(path, (*above, here))
        # A pipe or a device would be read for ever; a link to nothing is refused when it is read.
        elif (os.path.isfile(path) or not os.path.exists(path)) and may_hold_rows(path):
            found.append(path)
    return found


def may_hold_rows(path: Path) -> bool:
    return ending_of(path) in ENDINGS and path.name not in NOT_ROWS


def is_saved(path: Path) -> bool:
    """Whether it is a folder written by datasets.Dataset.save_to_disk."""
    return os.path.isfile(path / "state.json") and os.path.isfile(path / "dataset_info.json")


def digest(path: Path, name: str = "") -> str:
    """SHA-256 in hex: of the file, or of a save_to_disk folder's Arrow files one after the other."""
    total = hashlib.sha256()
    try:
        for part in sorted(path.glob("data*.arrow")) if path.is_dir() else [path]:
            with part.open("rb") as file:
                while block := file.read(2**20):
                    total.update(block)
    except OSError as error:
        raise unreadable(name or path.name, error) from None
    return total.hexdigest()


def shown(value: object) -> str:
    """The value's type and the beginning of the value, printable, in about 60 characters."""
    short = reprlib.Repr()  # also where brackets are nested too deep for repr
    short.maxstring = short.maxother = short.maxlong = 50
    return f"{type(value).__name__} {shortened(short.repr(value))}"


def shortened(text: str, room: int = 60) -> str:
    """The text on one line, its end replaced by "..." where it is longer than `room` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= room else text[: room - 3] + "..."


def printable(text: str) -> str:
    """The text with line ends, control characters and undecoded bytes escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def listed(names: Iterable[object], room: int = 60) -> str:
    """The names in one line of about `room` characters; of those left out, how many."""
    texts, kept = [shortened(str(name), room) for name in names], []
    for name in texts:
        if kept and len(", ".join([*kept, name])) > room:
            break
        kept.append(name)
    left = len(texts) - len(kept)
    return ", ".join(kept) + (f" and {left:,} more" if left else "")


def ending_of(path: Path) -> str:
    """The lower-case ending of the file's name, before that of a compression."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in COMPRESSED else ending


def unreadable(name: str, error: Exception) -> SourceError:
    """The refusal of what the system would not open, list or read, or what cannot be decompressed."""
    fix = "fetch it again"
    if isinstance(error, PermissionError):
        fix = "allow this user to read it (chmod)"
    elif isinstance(error, NotADirectoryError):
        fix = "put the files into a folder of that name"
    elif os.path.islink(getattr(error, "filename", None) or ""):
        fix = "it is a link to something that is not there: fetch that, or remove the link"
    reason = shortened(getattr(error, "strerror", None) or str(error), 80)
    return SourceError(f"{printable(name)}: cannot be read ({reason}); {fix}")


def _open_zstd(path: Path, mode: str) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(path.open(mode), "zstd")


DECOMPRESS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
POINTER = b"version https://git-lfs"
# First bytes -> what was found and the way out.
NOT_DATA = {
    POINTER: "a Git LFS pointer, not the data; run `git lfs pull` in its clone",
    b"PK\x03\x04": "a zip archive (or an Excel sheet); unpack it, or save it as CSV",
    b"<!doctype": "a web page, not the data; download the file itself, logged in where that is needed",
    b"<html": "a web page, not the data; download the file itself, logged in where that is needed",
    b"<?xml": "an XML page, not the data; download the file itself, logged in where that is needed",
}
NOT_TEXT = {
    b"\xff\xfe": "UTF-16 text; save the file as UTF-8",
    b"\xfe\xff": "UTF-16 text; save the file as UTF-8",
    b"PAR1": "a Parquet file; name it .parquet",
    b"ARROW1": "an Arrow file; name it .arrow",
}


def open_decompressed(path: Path) -> BinaryIO:
    """The file's bytes, decompressed where its first bytes, whatever its name, say so."""
    with path.open("rb") as file:
        start = file.read(8)
    opener: Callable[..., BinaryIO] = next(
        (way for magic, way in DECOMPRESS.items() if start.startswith(magic)), open
    )
    return opener(path, "rb")


def check_start(path: Path, name: str, text: bool = True) -> None:
    """SourceError where the first bytes are those of something else than rows; of text, decompressed."""
    with open_decompressed(path) if text else path.open("rb") as file:
        start = file.read(512)
    said = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, found in (NOT_DATA | NOT_TEXT if text else NOT_DATA).items():
        if said.startswith(magic.lower()):
            raise SourceError(f"{name}: expected rows, found {found}")
    if text and start[257:262] == b"ustar":
        raise SourceError(f"{name}: expected rows, found a tar archive; unpack it")
    if text and b"\0" in start:
        raise SourceError(f"{name}: expected UTF-8 text, found zero bytes; fetch it again, or save as UTF-8")
