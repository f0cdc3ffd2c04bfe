"""The files of a data folder: which may hold rows, what their first bytes say, and how messages name them."""

import bz2
import gzip
import hashlib
import lzma
import os
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from medkit import MedkitError

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# JSON files without rows: a hub snapshot's, a save_to_disk folder's and PubMedQA's list of its test fold.
NOT_ROWS = (
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "package.json",
    "test_ground_truth.json",
)


class SourceError(MedkitError):
    """A data set that cannot be used as a whole: one line with the file, the row, expected and found."""


def unexpected(place: str, expected: str, found: object, fix: str) -> SourceError:
    return SourceError(f"{place}: expected {expected}, found {found}; {fix}")


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
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise unreadable(folder.name, error) from None
    files = []
    for path in paths:
        if os.path.isdir(path):
            files += data_files(path, (*above, here))
        # A pipe or a device would be read for ever; a link to nothing is refused when it is read.
        elif ending_of(path) in ENDINGS and path.name not in NOT_ROWS:
            files += [path] if os.path.isfile(path) or not os.path.exists(path) else []
    return files


def is_saved(path: Path) -> bool:
    """Whether it is a folder written by datasets.Dataset.save_to_disk."""
    return os.path.isfile(path / "state.json") and os.path.isfile(path / "dataset_info.json")


def parts_of(path: Path) -> list[Path]:
    """The file itself, or a save_to_disk folder's Arrow files."""
    return sorted(path.glob("data*.arrow")) if path.is_dir() else [path]


def digest(path: Path, name: str) -> str:
    """SHA-256 in hex: of the file, or of a save_to_disk folder's Arrow files one after the other."""
    total = hashlib.sha256()
    try:
        for part in parts_of(path):
            with part.open("rb") as file:
                while block := file.read(2**20):
                    total.update(block)
    except OSError as error:
        raise unreadable(name, error) from None
    return total.hexdigest()


def shown(value: object) -> str:
    """The value's type and the beginning of the value, also where brackets are nested too deep for repr."""
    return f"{type(value).__name__} {shortened(reprlib.repr(value))}"


def shortened(text: str, room: int = 60) -> str:
    """The text on one line, its end replaced by "..." where it is longer than `room` characters."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= room else text[: room - 3] + "..."


def printable(text: str) -> str:
    """The text with line ends, control characters and undecoded bytes escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def ending_of(path: Path) -> str:
    """The lower-case ending of the file's name, before that of a compression."""
    ending = path.suffix.lower()
    return Path(path.stem).suffix.lower() if ending in COMPRESSED else ending


FIXES: dict[type, str] = {
    PermissionError: "allow this user to read it (chmod)",
    NotADirectoryError: "put the files into a folder of that name",
    FileNotFoundError: "it is missing, or a link to something missing: fetch that, or remove the link",
}


def unreadable(name: str, error: Exception) -> SourceError:
    """The refusal of what the system would not open, list or read, or what cannot be decompressed."""
    reason = shortened(getattr(error, "strerror", None) or str(error), 80)
    fix = FIXES.get(type(error), "fetch it again")
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
PAGE = "page, not the data; download the file itself, logged in where that is needed"
# First bytes -> what was found and the way out.
OTHER_STARTS = {
    POINTER: "a Git LFS pointer, not the data; run `git lfs pull` in its clone",
    b"PK\x03\x04": "a zip archive (or an Excel sheet); unpack it, or save it as CSV",
    b"<!doctype": f"a web {PAGE}",
    b"<html": f"a web {PAGE}",
    b"<?xml": f"an XML {PAGE}",
    b"\xff\xfe": "UTF-16 text; save the file as UTF-8",
    b"\xfe\xff": "UTF-16 text; save the file as UTF-8",
    b"PAR1": "a Parquet file; name it .parquet",
    b"ARROW1": "an Arrow file; name it .arrow",
}


def open_decompressed(path: Path) -> BinaryIO:
    """The file's bytes, decompressed where its first bytes, whatever its name, say so."""
    with path.open("rb") as file:
        start = file.read(8)
    return next((way for magic, way in DECOMPRESS.items() if start.startswith(magic)), open)(path, "rb")


def check_start(path: Path, name: str) -> None:
    """SourceError where the first bytes, of text once it is decompressed, are not those of rows."""
    binary = {".parquet": b"PAR1", ".arrow": b"ARROW1"}.get(ending_of(path))
    with path.open("rb") if binary else open_decompressed(path) as file:
        start = file.read(512)
    said = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, found in OTHER_STARTS.items():
        if said.startswith(magic.lower()) and magic != binary:
            raise SourceError(f"{name}: expected rows, found {found}")
    if not binary and b"\0" in start:
        archive = start[257:262] == b"ustar"
        found = (
            "a tar archive; unpack it" if archive else "zero bytes, which no UTF-8 text has; fetch it again"
        )
        raise SourceError(f"{name}: expected rows, found {found}")
