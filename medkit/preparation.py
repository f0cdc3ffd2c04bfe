"""From records to token ids: an Arrow dataset per stage, cached by the hash of everything it depends on."""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from medkit import prompts
from medkit.records import Dialogue, MCQItem

BATCH = 1000  # rows tokenized at a time


def cache_dir() -> Path:
    """Where prepared data and converted models are kept: $MEDKIT_CACHE, else ~/.cache/medkit."""
    return Path(os.environ.get("MEDKIT_CACHE") or Path.home() / ".cache" / "medkit")


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
    dataset, named by the hash of records, tokenizer, template and settings; None takes cache_dir().
    """
    from datasets import Dataset, load_from_disk

    chat = prompts.ChatFormat.from_tokenizer(tokenizer)
    key = _key(records, tokenizer, chat, target, loss_on, max_length)
    folder = (cache or cache_dir()) / "prepared" / key
    if not (folder / "state.json").is_file():
        _write(folder, records, tokenizer, chat, target, loss_on, max_length, progress)
    dataset = load_from_disk(str(folder))
    assert isinstance(dataset, Dataset) and len(dataset) == len(records)
    return dataset


def key(dataset) -> str:
    """The hash a dataset of `prepare` is kept under: equal for equal rows, tokens and settings."""
    return Path(dataset.cache_files[0]["filename"]).parent.name


def _key(records, tokenizer, chat, target, loss_on, max_length) -> str:
    digest = hashlib.sha256()
    digest.update(tokenizer.backend_tokenizer.to_str().encode())
    digest.update(json.dumps([repr(chat), prompts.INSTRUCTION, target, loss_on, max_length]).encode())
    for record in records:
        digest.update(repr(record).encode())
    return digest.hexdigest()[:32]


def _write(folder, records, tokenizer, chat, target, loss_on, max_length, progress):
    """Written aside and renamed, so that a folder with the final name is always whole."""
    from datasets import Dataset
    from tqdm.auto import tqdm

    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)
    tables = []
    with tqdm(total=len(records), desc="tokenizing", unit="rows", disable=not progress) as bar:
        for start in range(0, len(records), BATCH):
            batch = records[start : start + BATCH]
            chats = [prompts.messages(record, target) for record in batch]
            tables.append(_table(*prompts.training_ids(tokenizer, chat, chats, loss_on), max_length))
            bar.update(len(batch))
    import pyarrow

    table = pyarrow.concat_tables(tables) if tables else _table([], [], max_length)
    Dataset(table).save_to_disk(str(aside))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def _table(input_ids, labels, max_length):
    import pyarrow

    ints = pyarrow.list_(pyarrow.int32())
    kept = [row[:max_length] for row in labels]
    return pyarrow.table(
        {
            "input_ids": pyarrow.array([row[:max_length] for row in input_ids], ints),
            "labels": pyarrow.array(kept, ints),
            "length": pyarrow.array([len(row) for row in kept], pyarrow.int32()),
            "cut": pyarrow.array([max(0, len(row) - max_length) for row in input_ids], pyarrow.int32()),
            "supervised": pyarrow.array(
                [len(row) - row.count(prompts.IGNORED) for row in kept], pyarrow.int32()
            ),
        }
    )
