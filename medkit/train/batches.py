"""Row order, packing, and the marks that batches carry about their rows."""

import numpy as np

from medkit.recipes import TrainSpec

# Batch entries in addition to those of TRL's collator; see collate_with_marks.
MARKS = ("samples", "exams")

# Resolution, in tokens, of sorting by length: rows of exactly the same length are often variants of one
# question, with the same answer.
LENGTH_STEP = 60


def row_order(lengths, stage: TrainSpec) -> np.ndarray:
    """The indices of the training rows over all epochs, drawn with the stage's seed.

    With `group_by_length`, rows of similar length share an optimizer step: rows are sorted by length within
    random blocks of 50 steps, then the steps are shuffled. The order is fixed in advance, so that a resumed
    run has no sampler state to restore.
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
            full = len(order) // batch * batch  # an incomplete last batch stays last
            order = np.concatenate([rng.permutation(order[:full].reshape(-1, batch)).ravel(), order[full:]])
        epochs.append(order)
    return np.concatenate(epochs)[: round(stage.epochs * len(lengths))]


def trainer_rows(dataset, stage: TrainSpec, max_length: int, packed: bool, exams: bool = False):
    """The dataset as the trainer reads it: ids and labels, with `packed` in rows of `max_length` tokens.

    Wrapped rows have a column `samples`, the number of samples that end in the row. exams: add a column
    `exams` that marks each token of an exam question (see tokenization.with_exams).
    """
    rows = dataset.select_columns(["input_ids", "labels", *(["exam"] if exams else [])])
    if exams:
        rows = _with_token_column(rows, "exams", lambda row: [row["exam"]] * len(row["labels"]))
        rows = rows.remove_columns("exam")
    if not packed:
        return rows
    from trl import pack_dataset

    if stage.packing == "isolated":
        return pack_dataset(rows, max_length, "bfd")
    rows = _with_token_column(rows, "ends", lambda row: [0] * (len(row["labels"]) - 1) + [1])
    rows = pack_dataset(rows, max_length, "wrapped")
    return rows.map(lambda row: {"samples": sum(row["ends"])}, remove_columns="ends")


def _with_token_column(rows, name: str, values):
    """Add a column with one integer per token. values: a function of the row."""
    from datasets import Features, List, Value

    features = Features(rows.features | {name: List(Value("int8"))})
    return rows.map(lambda row: {name: values(row)}, features=features)


def training_rows(dataset, stage: TrainSpec, max_length: int, packed: bool, exams: bool = False):
    """The training rows in the order of `row_order`. Packed rows are shuffled again, since best-fit packing
    puts the long samples first."""
    ordered = dataset.select(row_order(dataset["length"], stage))
    rows = trainer_rows(ordered, stage, max_length, packed, exams)
    return rows.select(np.random.default_rng(stage.seed).permutation(len(rows))) if packed else rows


def subsample(dataset, rows: int, seed: int):
    """A random sample of `rows` rows, in the dataset's order. All rows for 0, or if there are no more."""
    if rows == 0 or rows >= len(dataset):
        return dataset
    return dataset.select(np.sort(np.random.default_rng(seed).choice(len(dataset), rows, replace=False)))


def is_mixed(dataset) -> bool:
    """Whether the dataset has both exam questions and consultations."""
    return "exam" in dataset.column_names and 0 < sum(dataset["exam"]) < len(dataset)


def replay_weight(dataset, share: float, loss_on: str) -> float:
    """The loss weight of replayed exam tokens that makes them `share` of the supervised tokens.

    With R replayed and D other tokens, w R / (w R + D) = share, so w = share / (1 - share) * D / R. It is 1
    if `share` is 0 or the dataset is not mixed.
    """
    if not share or not is_mixed(dataset):
        return 1.0
    others, replayed = supervised_tokens(dataset, loss_on)
    return share / (1 - share) * others / replayed


def supervised_tokens(dataset, loss_on: str) -> tuple[int, int]:
    """The supervised tokens of the consultations, and of the exam questions."""
    exam = np.array(dataset["exam"], bool)
    tokens = np.array(dataset["supervised"]) - (loss_on == "text")  # a row's first token is not predicted
    return int(tokens[~exam].sum()), int(tokens[exam].sum())


def collate_with_marks(collate):
    """Extend `collate` with MARKS: `samples`, the number of samples in the batch, and `exams`, a mask of the
    labels' shape (see trainer_rows)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def collate_and_mark(rows):
        batch = collate(rows)
        if "samples" in rows[0]:
            batch["samples"] = torch.tensor([sum(row["samples"] for row in rows)])
        if "exams" in rows[0]:
            marks = [torch.tensor(row["exams"], dtype=torch.bool) for row in rows]
            padding_free = len(batch["labels"]) != len(rows) or "position_ids" in batch
            batch["exams"] = torch.cat(marks)[None] if padding_free else pad_sequence(marks, batch_first=True)
        return batch

    return collate_and_mark
