"""Rows and estimates of a full run of an 8B recipe on the complete data sets."""

from medkit.data.sources import EXAMS, SOURCES
from medkit.preflight import estimate
from medkit.recipes import Recipe


def rows(recipe: Recipe, stage: str, part: str = "train") -> dict[str, float]:
    """Rows of a stage by source, on the complete data sets, as in Tables 1 and 2 of the paper.

    part: "train" or "validation".
    """
    exams = {source: SOURCES[source].parts["train"].rows for source in EXAMS}
    held_out, dmt = recipe.data.validation_share, recipe.dmt
    if stage == "stage1":
        share = held_out if part == "validation" else 1 - held_out
        return {source: share * count for source, count in exams.items()}
    dialogues = dmt.notechat_validation if part == "validation" else dmt.notechat_train
    added = dmt.replay_share * dialogues
    if part == "train" and dmt.handover == "joint":
        added = (1 - held_out) * sum(exams.values())
    elif part == "train" and dmt.fill == "dialogues":
        dialogues, added = dialogues + added, 0.0
    added_by_source = {source: added * count / sum(exams.values()) for source, count in exams.items()}
    return {"notechat": dialogues, **added_by_source}


def plan(recipe: Recipe, stage: str, mean_length: dict[str, float], hardware: dict) -> estimate.Plan:
    """estimate.plan for Llama 3.1 8B. mean_length: tokens per row by source."""
    train, validation = (rows(recipe, stage, part) for part in ("train", "validation"))
    tokens = sum(mean_length[source] * count for source, count in train.items())
    train_count, validation_count = (round(sum(counts.values())) for counts in (train, validation))
    return estimate.plan(recipe, stage, estimate.LLAMA_8B, train_count, tokens, validation_count, hardware)
