"""The built-in corpus: the six sources in miniature, written for medkit, for the CPU default."""

import json
import random
from pathlib import Path

from medkit.data.builtin import abstracts, consultations, exams, queries


def write(folder: str | Path, seed: int = 0, part: str = "report") -> Path:
    """Write the corpus under `folder` as a data directory, in the columns the hub serves, and return it.

    One folder a source (medqa/, medmcqa/, pubmedqa/, notechat/, icliniq/, healthcaremagic/), one JSON
    object a line. `part` is what evaluates: "report", or "tune" to choose settings on; the training rows are
    the same. The same seed writes the same bytes; the consumer queries do not depend on it.
    Row counts and how each part is built: data_cards/demo.md.
    """

    def rng(source: str, rows: str) -> random.Random:
        return random.Random(f"{source} {rows} {seed}")

    folder = Path(folder)
    files = {
        "medqa/train.jsonl": exams.medqa("train", rng("medqa", "train")),
        "medqa/test.jsonl": exams.medqa(part, rng("medqa", part)),
        "medmcqa/train.jsonl": exams.medmcqa("train", rng("medmcqa", "train")),
        "medmcqa/validation.jsonl": exams.medmcqa(part, rng("medmcqa", part)),
        "pubmedqa/pqa_artificial.jsonl": abstracts.pubmedqa("train", rng("pubmedqa", "train")),
        "pubmedqa/pqa_labeled.jsonl": abstracts.pubmedqa(part, rng("pubmedqa", part)),
        "notechat/train.jsonl": consultations.notechat(rng("notechat", "train")),
        **queries.consumer(part),
    }
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
