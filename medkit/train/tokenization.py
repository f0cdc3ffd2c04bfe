"""Tokenizes records into an Arrow dataset, cached under the hash of everything it depends on."""

import hashlib
import json
import marshal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import int32, list_

from medkit import prompts
from medkit.records import Dialogue, MCQItem
from medkit.runs import machine
from medkit.train.checkpoints import atomic_folder

BATCH = 1000  # rows tokenized at a time
LAYOUT = 1  # increment when other code gives other rows, to invalidate older caches
ROWS = "rows.arrow"  # the file in a dataset's folder
SCHEMA = pyarrow.schema(
    [("input_ids", list_(int32())), ("labels", list_(int32()))]
    + [(name, int32()) for name in ("length", "cut", "supervised")]
)


def prepare(
    records: Sequence[MCQItem | Dialogue],
    tokenizer,
    *,
    target: str,
    loss_on: str,
    max_length: int,
    cache: Path | None = None,
    progress: bool = True,
):
    """Tokenize `records`, in order, into a datasets.Dataset with one row per record.

    Columns: input_ids and labels (lists of int32, truncated to `max_length` tokens), length (tokens kept),
    cut (tokens removed by the truncation), supervised (labels that count). The dataset is cached in `cache`,
    by default machine.cache_dir(), under the hash of records, tokenizer, template and settings.
    """
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    key = _key(records, tokenizer, chat, target, loss_on, max_length)
    folder = (cache or machine.cache_dir()) / "prepared" / key
    if not (folder / ROWS).is_file():
        _write(folder, records, tokenizer, chat, target, loss_on, max_length, progress)
    # With the key as fingerprint, datasets also caches its transformations of these rows under the key.
    return Dataset(MemoryMappedTable.from_file(str(folder / ROWS)), fingerprint=key)


def with_exams(dataset, records: Sequence[MCQItem | Dialogue]):
    """Add a column `exam` to the dataset of these records: 1 for an exam question, else 0.

    Training weights replayed rows by it (batches.replay_weight), and validation separates the sources.
    """
    return dataset.add_column("exam", np.array([isinstance(record, MCQItem) for record in records], np.int8))


def key(dataset) -> str:
    """The cache key of a dataset of `prepare`, which is equal for equal rows, tokens and settings."""
    return Path(dataset.cache_files[0]["filename"]).parent.name


def _key(records, tokenizer, chat, target, loss_on, max_length) -> str:
    """The hash of everything that the rows depend on, with the messages as prompts.py writes them."""
    digest = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([LAYOUT, chat.identity, loss_on, max_length]).encode())
    for record in records:
        turns = [tuple(turn.values()) for turn in prompts.messages(record, target)]
        digest.update(marshal.dumps(turns, 2))  # version 2 encodes equal values equally
    return digest.hexdigest()[:32]


def _write(folder, records, tokenizer, chat, target, loss_on, max_length, progress):
    """Tokenize into the file ROWS, in batches so that memory does not grow with the number of rows."""
    from tqdm.auto import tqdm

    with (
        atomic_folder(folder, keep=ROWS) as temporary,
        tqdm(total=len(records), desc="tokenizing", unit="rows", disable=not progress, leave=False) as bar,
        pyarrow.ipc.new_stream(str(temporary / ROWS), SCHEMA) as file,
    ):
        for start in range(0, len(records), BATCH):
            chats = [prompts.messages(record, target) for record in records[start : start + BATCH]]
            file.write_batch(_batch(*prompts.token_arrays(tokenizer, chat, chats, loss_on), max_length))
            bar.update(len(chats))


def _batch(ids, labels, lengths, max_length):
    """The rows of prompts.token_arrays, truncated to `max_length`, as a record batch of SCHEMA."""
    kept = np.minimum(lengths, max_length)
    if (lengths > max_length).any():
        positions = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ids, labels = ids[positions < max_length], labels[positions < max_length]
    offsets = np.concatenate([[0], np.cumsum(kept)])
    supervised = np.concatenate([[0], np.cumsum(labels != prompts.IGNORED)])
    lists = [pyarrow.ListArray.from_arrays(offsets.astype(np.int32), values) for values in (ids, labels)]
    counts = (kept, lengths - kept, np.diff(supervised[offsets]))
    return pyarrow.record_batch([*lists, *(pyarrow.array(n.astype(np.int32)) for n in counts)], SCHEMA)
