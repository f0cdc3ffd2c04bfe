"""From records to token ids: an Arrow dataset, cached by the hash of everything it depends on."""

import hashlib
import json
import marshal
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import int32, list_

from medkit import prompts
from medkit.records import Dialogue, MCQItem
from medkit.runs import machine
from medkit.train.checkpoints import atomic_folder

BATCH = 1000  # rows tokenized at a time
ROWS = "rows.arrow"  # in a prepared folder
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
    """Tokenize `records`, in order, into a datasets.Dataset of one row each.

    Columns: input_ids and labels (lists of int32, cut at `max_length` tokens), length (tokens kept),
    cut (tokens lost to `max_length`), supervised (labels that count). `cache`: folder for the finished
    dataset, named by the hash of records, tokenizer, template and settings; None takes
    machine.cache_dir().
    """
    from datasets import Dataset
    from datasets.table import MemoryMappedTable

    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    key = _key(records, tokenizer, chat, target, loss_on, max_length)
    folder = (cache or machine.cache_dir()) / "prepared" / key
    if not (folder / ROWS).is_file():
        _write(folder, records, tokenizer, chat, target, loss_on, max_length, progress)
    # The key as fingerprint: what datasets derives from these rows is then cached under it too.
    return Dataset(MemoryMappedTable.from_file(str(folder / ROWS)), fingerprint=key)


def with_exams(dataset, records: Sequence[MCQItem | Dialogue]):
    """The dataset of `prepare` for these records with a column `exam`: 1 for an exam question, else 0.

    Training weighs replayed rows by it (batches.replay_weight), and validation separates the sources.
    """
    return dataset.add_column("exam", np.array([isinstance(one, MCQItem) for one in records], np.int8))


def key(dataset) -> str:
    """The hash of a dataset of `prepare`: equal for equal rows, tokens and settings."""
    return Path(dataset.cache_files[0]["filename"]).parent.name


def _key(records, tokenizer, chat, target, loss_on, max_length) -> str:
    digest = hashlib.sha256()
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([chat.identity, prompts.INSTRUCTION, target, loss_on, max_length]).encode())
    for record in records:
        digest.update(marshal.dumps(_plain(record), 2))  # format 2 writes equal values equally
    return digest.hexdigest()[:32]


_FIELDS = attrgetter("id", "source", "question", "options", "answer", "context", "group")


def _plain(record) -> tuple:
    if isinstance(record, MCQItem):
        return _FIELDS(record)
    return record.id, record.source, tuple((turn.role, turn.text) for turn in record.turns), record.note


def _write(folder, records, tokenizer, chat, target, loss_on, max_length, progress):
    """Batch after batch into a file, so that memory does not grow with the rows."""
    from tqdm.auto import tqdm

    with (
        atomic_folder(folder) as aside,
        tqdm(total=len(records), desc="tokenizing", unit="rows", disable=not progress) as bar,
        pyarrow.ipc.new_stream(str(aside / ROWS), SCHEMA) as file,
    ):
        for start in range(0, len(records), BATCH):
            chats = [prompts.messages(record, target) for record in records[start : start + BATCH]]
            file.write_batch(_batch(*prompts.token_arrays(tokenizer, chat, chats, loss_on), max_length))
            bar.update(len(chats))


def _batch(ids, labels, lengths, max_length):
    """The rows of prompts.token_arrays, each cut at `max_length`, as a record batch of SCHEMA."""
    kept = np.minimum(lengths, max_length)
    if (lengths > max_length).any():
        place = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ids, labels = ids[place < max_length], labels[place < max_length]
    ends = np.concatenate([[0], np.cumsum(kept)])
    counted = np.concatenate([[0], np.cumsum(labels != prompts.IGNORED)])
    columns = [pyarrow.ListArray.from_arrays(ends.astype(np.int32), one) for one in (ids, labels)]
    columns += [n.astype(np.int32) for n in (kept, lengths - kept, np.diff(counted[ends]))]
    return pyarrow.record_batch(
        [pyarrow.array(c) if isinstance(c, np.ndarray) else c for c in columns], SCHEMA
    )
