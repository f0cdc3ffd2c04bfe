"""Read lm-evaluation-harness's samples_*.jsonl, to compare a model that was evaluated elsewhere.

The format is that of `lm_eval --log_samples`, version 0.4: one JSON object per question, with doc_id, doc,
target, filtered_resps (in multiple-choice tasks log-likelihood and greedy flag per option) and a metric.
"""

import json
import re
from pathlib import Path

import pandas as pd

from medkit import MedkitError, pubmedqa
from medkit.records import LETTERS

FILE = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")
COLUMNS = ["model", "dataset", "item_id", "gold", "predicted", "correct"]


def sample_files(path: Path) -> list[Path]:
    """`path` itself if it is a samples file, or the samples files in the folder `path`."""
    if path.is_file():
        return [path] if FILE.fullmatch(path.name) else []
    return sorted(file for file in path.glob("**/samples_*.jsonl") if FILE.fullmatch(file.name))


def read_samples(path: Path) -> pd.DataFrame:
    """One model's outcomes (COLUMNS) from a samples file, or a folder with one file per benchmark.

    `predicted` is the option with the highest log-likelihood, or "" if the task generates text; `correct` is
    the harness's own metric. Raises MedkitError with the file and line.
    """
    frames = [_outcomes(file) for file in sample_files(path)]
    if not frames or not sum(map(len, frames)):
        raise MedkitError(f"{path} contains no samples; evaluate with lm_eval --log_samples")
    outcomes = pd.concat(frames, ignore_index=True)
    repeated = outcomes[outcomes.duplicated(["dataset", "item_id"])]
    if len(repeated):
        raise MedkitError(
            f"{path} answers {repeated.iloc[0]['item_id']} twice; name one samples file per benchmark"
        )
    name = path.parent.name if path.is_file() else path.name
    return outcomes.assign(model=name or "harness")[COLUMNS]


def dataset_of(task: str) -> str | None:
    """The benchmark of a harness task ("medqa_4options" -> "medqa"), or None."""
    return next((name for name in ("medmcqa", "pubmedqa", "medqa") if name in task.lower()), None)


def _outcomes(path: Path) -> pd.DataFrame:
    """The outcomes of one samples file, without the model."""
    task = next(FILE.finditer(path.name))["task"]
    dataset = dataset_of(task)
    if dataset is None:
        raise MedkitError(f"{path.name}: task {task} is not MedQA, MedMCQA or PubMedQA; leave out its file")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MedkitError(f"{path} cannot be read ({type(error).__name__}); log the samples again") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            metric = next(row[name] for name in ("acc", "exact_match") if name in row)
            outcome = _item_id(dataset, row), _letter(row["target"]), _predicted(row["filtered_resps"])
            rows.append((dataset, *outcome, bool(float(metric))))
        except (ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
            reason = f"{type(error).__name__}: {error}"[:80]
            raise MedkitError(
                f"{path.name}, line {number}: not a sample of the harness ({reason}); log the samples again"
            ) from None
    return pd.DataFrame(rows, columns=COLUMNS[1:])


def _letter(target) -> str:
    """The letter of a target: an option's index, a letter, or yes, no or maybe."""
    text = str(target).strip()
    if text.lower() in pubmedqa.OPTIONS:
        return pubmedqa.to_letter(text.lower())
    return LETTERS[int(text)] if text.isdecimal() else LETTERS[LETTERS.index(text)]


def _item_id(dataset: str, row: dict) -> str:
    """The id that the data readers give the row: its own or, in MedQA, its position."""
    field = {"medmcqa": "id", "pubmedqa": "pubid"}.get(dataset)
    return str(row["doc"][field]) if field else f"{dataset}-eval-{int(row['doc_id']):06d}"


def _predicted(responses: list) -> str:
    if not isinstance(responses[0], (list, tuple)):
        return ""  # generated text; see the harness's metric
    likelihoods = [float(response[0]) for response in responses]
    return LETTERS[likelihoods.index(max(likelihoods))]
