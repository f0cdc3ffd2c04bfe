"""Consumer queries with a physician's answer, in the columns of iCliniq and HealthCareMagic."""

import tomllib
from pathlib import Path

INSTRUCTION = "Answer this patient's question as a careful physician would."


def pairs(part: str) -> dict[str, list[dict]]:
    """{"query", "answer"} of "tune" or "report" by source, as they are written in queries.toml."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))[part]


def consumer(part: str) -> dict[str, list[dict]]:
    """Both files of "tune" or "report"; the columns of what models answered upstream are left empty."""
    written, no_models = pairs(part), {"answer_chatgpt": "", "answer_chatdoctor": ""}
    return {
        "icliniq/train.jsonl": [
            {"input": pair["query"], "answer_icliniq": pair["answer"], **no_models}
            for pair in written["icliniq"]
        ],
        "healthcaremagic/train.jsonl": [
            {"instruction": INSTRUCTION, "input": pair["query"], "output": pair["answer"]}
            for pair in written["healthcaremagic"]
        ],
    }
