"""Finds the rows of a source in a folder of files, or on the hub at the pinned revision."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkit import MedkitError
from medkit.data import hub
from medkit.data.files import read_rows
from medkit.data.formats import (
    data_files,
    digest,
    is_saved_dataset,
    printable,
    shortened,
    unexpected,
    unreadable,
)

if TYPE_CHECKING:
    from medkit.data.sources import Source

ONLY_SPLIT = "*"  # the only split of the repository, under any name


@dataclass(frozen=True)
class RawFile:
    """A file or a hub split that belongs to a part."""

    name: str  # its path in the data folder, or the hub id
    rows: Iterable[tuple[str, dict]]  # (location, row), read during iteration
    fingerprint: str  # SHA-256 of the file, or commit on the hub


def from_folder(source: Source, part: str, data_dir: Path) -> list[RawFile]:
    """The files under data_dir/NAME whose paths name the part's split.

    Raises MedkitError if there is none, or if a path matches both training and evaluation.
    """
    folder = _folder(source, data_dir)
    wanted_part = source.parts[part]
    other_parts = [other for other in source.parts.values() if other.named != wanted_part.named]
    paths = {printable(path.relative_to(data_dir).as_posix()): path for path in data_files(folder)}
    # A folder of the hub's cache may contain several revisions of the same rows.
    matches = (re.search("/snapshots/([^/]+)/", name) for name in paths)
    revisions = sorted({match[1] for match in matches if match})
    if len(revisions) > 1:
        listing = ", ".join(revision[:7] for revision in revisions)
        fix = f"link the one you mean (snapshots/REVISION) as {source.name}"
        raise unexpected(f"{source.name}/snapshots", "one revision", listing, fix)
    chosen = []
    for name, path in paths.items():
        label = _split_label(source, path, folder)
        if not wanted_part.includes(label):
            continue
        if any(other.includes(label) for other in other_parts):
            raise MedkitError(f"{name}: cannot tell whether it is for training or evaluation; rename it")
        chosen.append(RawFile(name, read_rows(path, name), digest(path, name)))
    if not chosen:
        if paths:
            problem = f"{shortened(', '.join(paths))}; rename the file or its folder"
        else:
            files = sorted(path.name for path in folder.rglob("[!.]*") if os.path.isfile(path))
            others = f" but {shortened(', '.join(files))}" if files else ""
            problem = f"no .jsonl, .json, .csv or .parquet file{others}; put the files there, unpacked"
        raise MedkitError(
            f"{source.name} {part}: expected a file of the {wanted_part.config or wanted_part.split} split, "
            f"judged by its path ({wanted_part.why}), found {problem}"
        )
    return chosen


def _folder(source: Source, data_dir: Path) -> Path:
    """The source's folder, under its name here or its authors' spelling (MTS-Dialog for mts_dialog)."""
    try:
        names = [name for name in os.listdir(data_dir) if name.lower().replace("-", "_") == source.name]
    except OSError as error:
        raise unreadable(str(data_dir), error) from None
    if not names:
        raise MedkitError(
            f"no folder {source.name} in {printable(str(data_dir))}; put {source.title}'s files into one"
        )
    return data_dir / (source.name if source.name in names else min(names))


def _split_label(source: Source, path: Path, folder: Path) -> str:
    """The lower-case text that decides a file's part: its path inside the source's folder.

    For a save_to_disk folder the configuration it was loaded with comes first, and the split it was loaded as
    is added if the path names none.
    """
    label = path.relative_to(folder).as_posix().lower()
    if not is_saved_dataset(path):
        return label
    label = f"{_json_value(path / 'dataset_info.json', 'config_name')}/{label}"
    if any(part.includes(label) for part in source.parts.values()):
        return label
    return f"{label}/{_json_value(path / 'state.json', '_split')}"


def _json_value(file: Path, key: str) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))[key] or "").lower()
    except (OSError, ValueError, LookupError, TypeError):  # reading the rows will report the problem
        return ""


def from_hub(source: Source, part: str) -> tuple[RawFile, int]:
    """The part's split on the hub at the pinned revision, and its number of rows.

    The fingerprint of an unpinned revision is the commit that was read. Raises MedkitError if the hub lacks
    what is declared, and HubError if it cannot be reached and the data is not in the cache.
    """
    import datasets

    declared = source.parts[part]
    if not source.hub_id:
        raise MedkitError(
            f"{source.name} is not read from the hub; get it from {source.home} and give --data-dir"
        )
    split = None if declared.split == ONLY_SPLIT else declared.split
    name = f"{source.hub_id}@{source.revision[:7]}"
    try:
        data = datasets.load_dataset(source.hub_id, declared.config, split=split, revision=source.revision)
    except Exception as error:  # the libraries raise dozens of types
        hub.raise_if_hub_error(name, error)
        reason = shortened(f"{type(error).__name__}: {error}", 200)
        raise MedkitError(
            f"{name}: cannot be read from the hub ({reason}); check the connection, or give --data-dir"
        ) from None
    if split is None:
        if len(data) != 1:
            raise MedkitError(f"{name}: expected one split, found {', '.join(sorted(data))}")
        data = next(iter(data.values()))
    urls = data.info.download_checksums or ()
    commits = sorted({commit for url in urls for commit in re.findall("@([0-9a-f]{40})/", url)})
    commit = source.revision if source.pinned else " ".join(commits) or source.revision
    columns = {column for form in source.forms for column in form.all_columns}
    data = data.select_columns([column for column in data.column_names if column in columns])
    rows = ((f"row {number}", row) for number, row in enumerate(data, 1))
    return RawFile(source.hub_id, rows, commit), len(data)
