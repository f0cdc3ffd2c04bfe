"""lm-evaluation-harness's samples_*.jsonl as outcomes item by item: a model evaluated elsewhere, to compare.

Source of the format: `lm_eval --log_samples`, version 0.4: one JSON object a question, with doc_id, doc,
target, filtered_resps (of a multiple-choice task log-likelihood and greedy flag per option) and the metric.
"""

import json
import re
from pathlib import Path

import pandas as pd

from medkit import MedkitError, pubmedqa
from medkit.records import LETTERS

FILE = re.compile(r"samples_(?P<task>.+?)(_\d{4}-\d\d-\d\dT[\d.:-]+)?\.jsonl")
COLUMNS = ["model", "dataset", "item_id", "gold", "predicted", "correct"]


class SamplesError(MedkitError):
    """A samples file that is missing, damaged or of a task that is none of the kit's benchmarks."""


def sample_files(place: Path) -> list[Path]:
    """The samples files that `place` is or holds; [] where it is neither."""
    if place.is_file():
        return [place] if FILE.fullmatch(place.name) else []
    return sorted(path for path in place.glob("**/samples_*.jsonl") if FILE.fullmatch(path.name))


def read_samples(place: Path) -> pd.DataFrame:
    """One model's outcomes (COLUMNS) from a samples file or a folder of them, a file a benchmark.

    `predicted` is the option with the highest log-likelihood, "" where the task generates text; `correct` is
    the harness's own metric. Raises SamplesError, one line, naming file and line.
    """
    frames = [_outcomes(path) for path in sample_files(place)]
    if not frames or not sum(map(len, frames)):
        raise SamplesError(f"{place} holds no samples; evaluate with lm_eval --log_samples")
    outcomes = pd.concat(frames, ignore_index=True)
    twice = outcomes[outcomes.duplicated(["dataset", "item_id"])]
    if len(twice):
        raise SamplesError(
            f"{place} answers {twice.iloc[0]['item_id']} twice; name one samples file a benchmark"
        )
    name = place.parent.name if place.is_file() else place.name
    return outcomes.assign(model=name or "harness")[COLUMNS]


def dataset_of(task: str) -> str | None:
    """The kit's benchmark that a harness task asks ("medqa_4options" -> "medqa"); None for any other."""
    return next((name for name in ("medmcqa", "pubmedqa", "medqa") if name in task.lower()), None)


def _outcomes(path: Path) -> pd.DataFrame:
    """The outcomes in one samples file, without the model's name."""
    task = next(FILE.finditer(path.name))["task"]
    dataset = dataset_of(task)
    if dataset is None:
        raise SamplesError(f"{path.name}: task {task} is not MedQA, MedMCQA or PubMedQA; leave its file out")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SamplesError(f"{path} cannot be read ({type(error).__name__}); log the samples again") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            metric = next(row[name] for name in ("acc", "exact_match") if name in row)
            outcome = _item_id(dataset, row), _letter(row["target"]), _predicted(row["filtered_resps"])
            rows.append((dataset, *outcome, bool(float(metric))))
        except (ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
            reason = f"{type(error).__name__}: {error}"[:80]
            raise SamplesError(
                f"{path.name}, line {number}: no sample of the harness ({reason}); log the samples again"
            ) from None
    return pd.DataFrame(rows, columns=COLUMNS[1:])


def _letter(target) -> str:
    """A target as the tasks write it: an option's number from 0, a letter, or yes, no, maybe."""
    text = str(target).strip()
    if text.lower() in pubmedqa.OPTIONS:
        return pubmedqa.to_letter(text.lower())
    return LETTERS[int(text)] if text.isdecimal() else LETTERS[LETTERS.index(text)]


def _item_id(dataset: str, row: dict) -> str:
    """As the kit's readers name the row (data.sources): its own id or, in MedQA without one, its place."""
    field = {"medmcqa": "id", "pubmedqa": "pubid"}.get(dataset)
    return str(row["doc"][field]) if field else f"{dataset}-eval-{int(row['doc_id']):06d}"


def _predicted(responses: list) -> str:
    if not isinstance(responses[0], (list, tuple)):
        return ""  # a generated text: the harness's metric says whether it was right
    likelihoods = [float(response[0]) for response in responses]
    return LETTERS[likelihoods.index(max(likelihoods))]
