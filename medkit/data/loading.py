"""Where a source's rows come from: a folder of files, or the hub at the pinned revision."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medkit.data import hub
from medkit.data.files import read_rows
from medkit.data.formats import (
    SourceError,
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

ONLY_SPLIT = "*"  # the one split the repository has, whatever it is called


@dataclass(frozen=True)
class RawFile:
    """A file, or a split of the hub, that serves a part."""

    name: str  # its path in the data folder, or the hub id
    rows: Iterable[tuple[str, dict]]  # (place, row), read when iterated
    fingerprint: str  # SHA-256, or the commit


def from_folder(source: Source, part: str, data_dir: Path) -> list[RawFile]:
    """The files under data_dir/NAME that serve the part: the path's split name decides which those are.

    Raises SourceError where there is none, or where a path speaks for training and for evaluation.
    """
    folder = _folder(source, data_dir)
    wanted = source.parts[part]
    others = [other for other in source.parts.values() if other.named != wanted.named]
    paths = {printable(path.relative_to(data_dir).as_posix()): path for path in data_files(folder)}
    # A folder of the hub's cache may hold several revisions of the same rows.
    revisions = sorted({found[1] for name in paths if (found := re.search("/snapshots/([^/]+)/", name))})
    if len(revisions) > 1:
        fix = f"link the one you mean (snapshots/REVISION) as {source.name}"
        raise unexpected(
            f"{source.name}/snapshots", "one revision", ", ".join(revision[:7] for revision in revisions), fix
        )
    chosen = []
    for name, path in paths.items():
        labels = _labels(source, path, folder)
        if not wanted.takes(labels):
            continue
        if any(other.takes(labels) for other in others):
            raise SourceError(f"{name}: cannot tell whether it is for training or evaluation; rename it")
        chosen.append(RawFile(name, read_rows(path, name), digest(path, name)))
    if not chosen:
        if paths:
            instead = f"{shortened(', '.join(paths))}; rename the file or its folder"
        else:
            files = sorted(path.name for path in folder.rglob("[!.]*") if os.path.isfile(path))
            but = f" but {shortened(', '.join(files))}" if files else ""
            instead = f"no .jsonl, .json, .csv or .parquet file{but}; put the files there, unpacked"
        raise SourceError(
            f"{source.name} {part}: expected a file of the {wanted.config or wanted.split} split, named so "
            f"in its path ({wanted.why}), found {instead}"
        )
    return chosen


def _folder(source: Source, data_dir: Path) -> Path:
    """The source's folder: its name itself, or as its authors spell it (MTS-Dialog for mts_dialog)."""
    try:
        names = [name for name in os.listdir(data_dir) if name.lower().replace("-", "_") == source.name]
    except OSError as error:
        raise unreadable(str(data_dir), error) from None
    if not names:
        raise SourceError(
            f"no folder {source.name} in {printable(str(data_dir))}; put {source.title}'s files into one"
        )
    return data_dir / (source.name if source.name in names else min(names))


def _labels(source: Source, path: Path, folder: Path) -> str:
    """What decides the part, lower case: the path inside the source's folder; of a save_to_disk folder also
    the configuration it was loaded with and, where its path names no split, the split."""
    labels = path.relative_to(folder).as_posix().lower()
    if not is_saved_dataset(path):
        return labels
    config, split = _noted(path / "dataset_info.json", "config_name"), _noted(path / "state.json", "_split")
    labels = f"{config}/{labels}"
    return labels if any(part.takes(labels) for part in source.parts.values()) else f"{labels}/{split}"


def _noted(file: Path, key: str) -> str:
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))[key] or "").lower()
    except (OSError, ValueError, LookupError, TypeError):  # reading its rows will say what is wrong
        return ""


def from_hub(source: Source, part: str) -> tuple[RawFile, int]:
    """The part's split on the hub at the pinned revision, and its number of rows.

    A revision that is no commit is resolved to the commit that was read. Raises SourceError where the hub
    does not have what is declared, HubError where it does not answer and the cache does not have it.
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
        hub.refuse(name, error)
        reason = shortened(f"{type(error).__name__}: {error}", 200)
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
    return RawFile(source.hub_id, rows, commit), len(data)
