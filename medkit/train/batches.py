"""Which rows make which batch: their order, packing, and what a batch says about its rows."""

import numpy as np

from medkit.recipes import TrainSpec

# Rows are sorted by length no finer than this many tokens: rows of just one length are of one kind, and
# questions of one kind have one answer.
LENGTH_STEP = 60


def row_order(lengths, stage: TrainSpec) -> np.ndarray:
    """The order in which rows are trained on, all epochs after one another, from the stage's seed alone.

    With `group_by_length` rows of like length share an optimizer step: sorted by length within random blocks
    of 50 steps, steps then shuffled. Drawn up front rather than by a sampler, so that a resumed run has
    nothing to restore.
    """
    lengths, rng = np.asarray(lengths), np.random.default_rng(stage.seed)
    batch = stage.batch_size * stage.accumulation
    epochs = []
    for _ in range(int(np.ceil(stage.epochs))):
        order = rng.permutation(len(lengths))
        if stage.group_by_length:
            blocks = [order[i : i + 50 * batch] for i in range(0, len(order), 50 * batch)]
            coarse = lengths // LENGTH_STEP
            order = np.concatenate([block[np.argsort(-coarse[block], kind="stable")] for block in blocks])
            whole = len(order) // batch * batch  # a short last batch stays last
            order = np.concatenate([rng.permutation(order[:whole].reshape(-1, batch)).ravel(), order[whole:]])
        epochs.append(order)
    return np.concatenate(epochs)[: round(stage.epochs * len(lengths))]


def as_read(dataset, stage: TrainSpec, max_length: int, packed: bool):
    """The dataset as the trainer reads it: ids and labels, packed into rows of `max_length` where asked.

    Wrapped rows have `samples` too: how many end in the row, as a cut one counts where its last token is.
    """
    rows = dataset.select_columns(["input_ids", "labels"])
    if not packed:
        return rows
    from datasets import Features, List, Value
    from trl import pack_dataset

    if stage.packing == "isolated":
        return pack_dataset(rows, max_length, "bfd")
    marked = Features(rows.features | {"ends": List(Value("int8"))})  # 1 at a sample's last token
    rows = rows.map(lambda row: {"ends": [0] * (len(row["labels"]) - 1) + [1]}, features=marked)
    rows = pack_dataset(rows, max_length, "wrapped")
    return rows.map(lambda row: {"samples": sum(row["ends"])}, remove_columns="ends")


def training_rows(dataset, stage: TrainSpec, max_length: int, packed: bool):
    """The training rows in the order of `row_order`; packed rows are shuffled once more, since best-fit
    packing leaves the long samples first."""
    rows = as_read(dataset.select(row_order(dataset["length"], stage)), stage, max_length, packed)
    return rows.select(np.random.default_rng(stage.seed).permutation(len(rows))) if packed else rows


def subsample(dataset, rows: int, seed: int):
    """`rows` rows drawn by seed, in the dataset's order; 0 or more than there are gives all."""
    if rows == 0 or rows >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).choice(len(dataset), rows, replace=False)))


def with_samples(collate):
    """`collate`, which makes a batch of rows, with how many samples the rows hold (as_read) in the batch."""
    import torch

    def collate_and_count(rows):
        batch = collate(rows)
        if "samples" in rows[0]:
            batch["samples"] = torch.tensor([sum(row["samples"] for row in rows)])
        return batch

    return collate_and_count
