"""A full run of an 8B recipe on the whole data sets: rows of each stage, and what they take."""

from medkit.data.sources import EXAMS, SOURCES
from medkit.preflight import estimate
from medkit.recipes import Recipe


def rows(recipe: Recipe, name: str, part: str = "train") -> dict[str, float]:
    """Rows of stage `name` by source in a full run: the data sets whole, as Tables 1 and 2 of the paper.

    part: "train" or "validation".
    """
    exams = {source: SOURCES[source].parts["train"].rows for source in EXAMS}
    held_out, dmt = recipe.data.validation_share, recipe.dmt
    if name == "stage1":
        share = held_out if part == "validation" else 1 - held_out
        return {source: share * rows for source, rows in exams.items()}
    talks = dmt.notechat_validation if part == "validation" else dmt.notechat_train
    beside = dmt.replay_share * talks
    if part == "train" and dmt.handover == "joint":
        beside = (1 - held_out) * sum(exams.values())
    elif part == "train" and dmt.fill == "dialogues":
        talks, beside = talks + beside, 0.0
    return {
        "notechat": talks,
        **{source: beside * rows / sum(exams.values()) for source, rows in exams.items()},
    }


def plan(recipe: Recipe, name: str, mean: dict[str, float], hardware: dict) -> estimate.Plan:
    """estimate.plan of stage `name` of a full run of Llama 3.1 8B; mean: tokens of a row by source."""
    train, validation = (rows(recipe, name, part) for part in ("train", "validation"))
    tokens = sum(mean[source] * count for source, count in train.items())
    counts = (round(sum(part.values())) for part in (train, validation))
    return estimate.plan(recipe, name, estimate.LLAMA_8B, next(counts), tokens, next(counts), hardware)
