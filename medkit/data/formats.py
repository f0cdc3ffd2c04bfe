"""Which files of a data folder may contain rows, how they are opened, and how errors describe them."""

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

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".arrow")
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
# JSON files without rows: in a hub snapshot, in a save_to_disk folder, and PubMedQA's list of its test fold.
METADATA_FILES = (
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "package.json",
    "test_ground_truth.json",
)


def unexpected(location: str, expected: str, found: object, fix: str) -> MedkitError:
    return MedkitError(f"{location}: expected {expected}, found {found}; {fix}")


def data_files(folder: Path, parents: tuple[str, ...] = ()) -> list[Path]:
    """Every file under `folder` that may contain rows, sorted by path; a save_to_disk folder counts as one.

    Links to folders are followed unless they lead back to one of their own `parents`. Hidden files are
    skipped. Raises MedkitError for a folder that cannot be listed.
    """
    real_path = os.path.realpath(folder)
    if real_path in parents:
        return []
    if is_saved_dataset(folder):
        return [folder]
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise unreadable(folder.name, error) from None
    files = []
    for path in paths:
        if os.path.isdir(path):
            files += data_files(path, (*parents, real_path))
            continue
        # Pipes and devices are skipped, as reading them may never end. A broken link is kept, so that reading
        # it raises an error.
        is_file_or_broken = os.path.isfile(path) or not os.path.exists(path)
        if is_file_or_broken and suffix_of(path) in SUFFIXES and path.name not in METADATA_FILES:
            files.append(path)
    return files


def is_saved_dataset(path: Path) -> bool:
    """Whether the path is a folder written by datasets.Dataset.save_to_disk."""
    return os.path.isfile(path / "state.json") and os.path.isfile(path / "dataset_info.json")


def shards_of(path: Path) -> list[Path]:
    """The Arrow files of a save_to_disk folder; a file is its only shard."""
    return sorted(path.glob("data*.arrow")) if path.is_dir() else [path]


def digest(path: Path, name: str) -> str:
    """SHA-256 in hex of a file, or of a save_to_disk folder's concatenated Arrow files."""
    sha256 = hashlib.sha256()
    try:
        for shard in shards_of(path):
            with shard.open("rb") as file:
                while block := file.read(2**20):
                    sha256.update(block)
    except OSError as error:
        raise unreadable(name, error) from None
    return sha256.hexdigest()


def preview(value: object) -> str:
    """The value's type and the beginning of its repr. Works for nesting too deep for repr()."""
    return f"{type(value).__name__} {shortened(reprlib.repr(value))}"


def shortened(text: str, max_length: int = 60) -> str:
    """The text on one line, cut to `max_length` characters with "..." at the end."""
    text = printable(" ".join(text.split()))
    return text if len(text) <= max_length else text[: max_length - 3] + "..."


def printable(text: str) -> str:
    """The text with line ends, control characters and undecoded bytes escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def suffix_of(path: Path) -> str:
    """The file name's suffix in lower case, without that of a compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in COMPRESSED_SUFFIXES else suffix


FIXES: dict[type, str] = {
    PermissionError: "allow this user to read it (chmod)",
    NotADirectoryError: "put the files into a folder of that name",
    FileNotFoundError: "it is missing, or a link to something missing: fetch that, or remove the link",
}


def unreadable(name: str, error: Exception) -> MedkitError:
    """The error for a file or folder that cannot be opened, listed, read or decompressed."""
    reason = shortened(getattr(error, "strerror", None) or str(error), 80)
    fix = FIXES.get(type(error), "fetch it again")
    return MedkitError(f"{printable(name)}: cannot be read ({reason}); {fix}")


def _open_zstd(path: Path, mode: str) -> BinaryIO:
    import pyarrow

    return pyarrow.CompressedInputStream(path.open(mode), "zstd")


DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zstd,
}
POINTER = b"version https://git-lfs"
PAGE = "page, not the data; download the file itself, after logging in if necessary"
# First bytes -> what the file is; how to fix it.
WRONG_STARTS = {
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
    """Open a file for reading bytes, decompressed. The compression is detected from its first bytes."""
    with path.open("rb") as file:
        start = file.read(8)
    opener = next((opener for magic, opener in DECOMPRESSORS.items() if start.startswith(magic)), open)
    return opener(path, "rb")


def check_start(path: Path, name: str) -> None:
    """Raise MedkitError if the first bytes, after decompressing, show that the file contains no rows."""
    own_magic = {".parquet": b"PAR1", ".arrow": b"ARROW1"}.get(suffix_of(path))
    with path.open("rb") if own_magic else open_decompressed(path) as file:
        start = file.read(512)
    lowered = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for magic, problem in WRONG_STARTS.items():
        if lowered.startswith(magic.lower()) and magic != own_magic:
            raise MedkitError(f"{name}: expected rows, found {problem}")
    if not own_magic and b"\0" in start:
        is_tar = start[257:262] == b"ustar"
        problem = "a tar archive; unpack it" if is_tar else "zero bytes, so not UTF-8 text; fetch it again"
        raise MedkitError(f"{name}: expected rows, found {problem}")
