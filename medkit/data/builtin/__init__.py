"""The built-in corpus: small versions of the six sources, written for medkit and used by the cpu recipe."""

import json
import random
from pathlib import Path

from medkit.data.builtin import abstracts, consultations, exams, queries


def write(folder: str | Path, seed: int = 0, part: str = "report") -> Path:
    """Write the corpus under `folder` as a data directory with the hub's columns, and return the folder.

    There is one subfolder per source (medqa/, medmcqa/, pubmedqa/, notechat/, icliniq/, healthcaremagic/),
    with JSON Lines files. `part` selects the evaluation rows: "report", or "tune" for choosing settings. The
    training rows are the same for both. The same seed writes the same bytes; the consumer queries do not
    depend on it. data_cards/demo.md has the row counts and how each part is built.
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
        **queries.files(part),
    }
    for name, rows in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
