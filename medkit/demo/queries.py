"""Consumer queries with a physician's answer, in the columns of iCliniq and HealthCareMagic."""

import tomllib
from pathlib import Path

INSTRUCTION = "Answer this patient's question as a careful physician would."


def consumer() -> dict[str, list[dict]]:
    """Both sets as they stand in queries.toml; what models answered upstream is left empty."""
    sets = tomllib.loads((Path(__file__).parent / "queries.toml").read_text(encoding="utf-8"))
    icliniq = [
        {
            "input": pair["query"],
            "answer_icliniq": pair["answer"],
            "answer_chatgpt": "",
            "answer_chatdoctor": "",
        }
        for pair in sets["icliniq"]
    ]
    healthcaremagic = [
        {"instruction": INSTRUCTION, "input": pair["query"], "output": pair["answer"]}
        for pair in sets["healthcaremagic"]
    ]
    return {"icliniq/train.jsonl": icliniq, "healthcaremagic/train.jsonl": healthcaremagic}
