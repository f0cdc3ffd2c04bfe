"""The built-in corpus: the six sources in miniature, written for medkit, for the CPU default."""

import json
import random
from pathlib import Path

from medkit.demo import abstracts, consultations, exams, queries


def write(folder: str | Path, seed: int = 0) -> Path:
    """Write the corpus under `folder` as a data directory, in the columns the hub serves, and return it.

    One folder a source (medqa/, medmcqa/, pubmedqa/, notechat/, icliniq/, healthcaremagic/), one JSON
    object a line. The same seed writes the same bytes; the consumer queries do not depend on it.
    Row counts and how each part is built: data_cards/demo.md.
    """
    folder = Path(folder)
    parts = {
        **exams.medqa(random.Random(f"medqa {seed}")),
        **exams.medmcqa(random.Random(f"medmcqa {seed}")),
        **abstracts.pubmedqa(random.Random(f"pubmedqa {seed}")),
        **consultations.notechat(random.Random(f"notechat {seed}")),
        **queries.consumer(),
    }
    for name, rows in parts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder
