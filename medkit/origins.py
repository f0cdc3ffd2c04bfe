"""Where a source's rows come from: a folder of files, or the hub at the pinned revision."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.readers import SourceError, data_files, digest, read_rows

if TYPE_CHECKING:
    from medkit.sources import Source

ONLY_SPLIT = "*"  # the one split the repository has, whatever it is called


@dataclass(frozen=True)
class RawFile:
    """A file, or a split of the hub, that serves a part."""

    name: str  # as messages show it
    rows: Iterable[tuple[str, dict]]  # (place, row), read when iterated
    key: str  # file name or hub id
    fingerprint: str  # SHA-256, or the commit


def from_folder(source: Source, part: str, data_dir: Path) -> list[RawFile]:
    """The files under data_dir/NAME that serve the part: the path's split name decides which those are.

    Raises SourceError where there is none, or where a path speaks for training and for evaluation.
    """
    folder = _folder(data_dir, source.name)
    if not folder.is_dir():
        raise SourceError(
            f"no folder {source.name} in {data_dir}: expected it to hold {source.title}'s files"
        )
    wanted = source.parts[part]
    others = [other for other in source.parts.values() if other.named != wanted.named]
    paths = {path.relative_to(data_dir).as_posix(): path for path in data_files(folder)}
    chosen = []
    for name, path in paths.items():
        inside = path.relative_to(folder).as_posix().lower()
        if not wanted.takes(inside) or _is_fold_file(path):
            continue
        if any(other.takes(inside) for other in others):
            raise SourceError(f"{name}: cannot tell whether it is for training or evaluation; rename it")
        chosen.append(RawFile(name, read_rows(path, name), name, digest(path)))
    if not chosen:
        found = ", ".join(paths) or "no .jsonl, .json, .csv or .parquet file"
        raise SourceError(
            f"{source.name} {part}: expected a file of the {wanted.config or wanted.split} split, named so "
            f"in its path ({wanted.why}), found {found}"
        )
    return chosen


def _folder(data_dir: Path, name: str) -> Path:
    """The source's folder: `name` itself, or as its authors spell it (MTS-Dialog for mts_dialog)."""
    exact = data_dir / name
    if exact.is_dir() or not data_dir.is_dir():
        return exact
    spelt = (path for path in sorted(data_dir.iterdir()) if path.name.lower().replace("-", "_") == name)
    return next(spelt, exact)


def _is_fold_file(path: Path) -> bool:
    """Whether it is PubMedQA's test_ground_truth.json: PMID -> decision, no rows in it."""
    with path.open("rb") as file:
        start = file.read(200)
    return re.match(rb'\s*\{\s*"\d+"\s*:\s*"(yes|no|maybe)"', start) is not None


def from_hub(source: Source, part: str) -> tuple[RawFile, int]:
    """The part's split on the hub at the pinned revision, and its number of rows.

    A revision that is no commit is resolved to the commit that was read. Raises SourceError where the hub
    cannot be reached or does not have what is declared.
    """
    import datasets

    wanted = source.parts[part]
    if not source.hub_id:
        raise SourceError(
            f"{source.name} is not read from the hub; get it from {source.home} and give --data-dir"
        )
    split = None if wanted.split == ONLY_SPLIT else wanted.split
    name = f"{source.hub_id}@{source.revision[:7]}"
    try:
        data = datasets.load_dataset(source.hub_id, wanted.config, split=split, revision=source.revision)
    except Exception as error:  # the libraries below raise dozens of kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SourceError(
            f"{name}: cannot be read from the hub ({reason}); check the connection, or give --data-dir"
        ) from None
    if split is None:
        if len(data) != 1:
            raise SourceError(f"{name}: expected one split, found {', '.join(sorted(data))}")
        data = next(iter(data.values()))
    commits = {c for url in data.info.download_checksums or () for c in re.findall("@([0-9a-f]{40})/", url)}
    commit = source.revision if source.pinned else " ".join(sorted(commits)) or source.revision
    read = {column for form in source.forms for column in form.reads}
    data = data.select_columns([column for column in data.column_names if column in read])
    rows = ((f"row {number}", row) for number, row in enumerate(data, 1))
    return RawFile(name, rows, source.hub_id, commit), len(data)
