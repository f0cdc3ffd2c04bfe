"""Consumer queries with physicians' answers, in the columns of iCliniq and HealthCareMagic."""

import tomllib
from pathlib import Path

INSTRUCTION = "Answer this patient's question as a careful physician would."


def pairs(part: str) -> dict[str, list[dict]]:
    """The {"query", "answer"} entries of "tune" or "report" in queries.toml, by source."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))[part]


def files(part: str) -> dict[str, list[dict]]:
    """The rows of both files for "tune" or "report"; the columns with answers of models are empty."""
    entries, empty_answers = pairs(part), {"answer_chatgpt": "", "answer_chatdoctor": ""}
    return {
        "icliniq/train.jsonl": [
            {"input": pair["query"], "answer_icliniq": pair["answer"], **empty_answers}
            for pair in entries["icliniq"]
        ],
        "healthcaremagic/train.jsonl": [
            {"instruction": INSTRUCTION, "input": pair["query"], "output": pair["answer"]}
            for pair in entries["healthcaremagic"]
        ],
    }
