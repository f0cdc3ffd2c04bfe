"""The columns of loss.csv, and how it is written and read."""

import csv
import io
from pathlib import Path

import pandas as pd

from medkit.runs import storage

# Stage 2's validation loss by source: means over the supervised tokens of the consultations and of stage 1's
# exam questions. Empty if the validation rows have only one source.
BY_SOURCE = ("eval_loss_dialogues", "eval_loss_stage1")
COLUMNS = ("step", "epoch", "tokens", "train_loss", "eval_loss", "learning_rate")
COLUMNS += ("tokens_per_s", "samples_per_s", "mfu", "padding_share", "peak_memory_gb", "batch")
COLUMNS += ("eval_seconds", *BY_SOURCE)


def read(folder: Path, arm: str) -> pd.DataFrame:
    """A run's ARM/loss.csv: one row per step, with all COLUMNS. ResultsError if it is missing."""
    rows = pd.read_csv(storage.file(folder, f"{arm}/loss.csv"))
    return rows.reindex(columns=[*COLUMNS, *(name for name in rows if name not in COLUMNS)])


def format_row(fields: dict) -> str:
    """One line of loss.csv."""
    text = io.StringIO()
    csv.DictWriter(text, COLUMNS, lineterminator="\n").writerow(fields)
    return text.getvalue()


def parse_last_row(text: str) -> dict:
    """The last row of loss.csv's text, its fields as strings."""
    return list(csv.DictReader(io.StringIO(text)))[-1]
