"""PubMedQA in medkit: yes, no, maybe as options A, B, C, and the official test fold."""

from pathlib import Path

from medkit import MedkitError

OPTIONS = ("yes", "no", "maybe")  # in letter order (paper, 3.1.1)
LETTERS = "ABC"


def to_letter(decision: str) -> str:
    """yes, no, maybe -> A, B, C. Raises MedkitError for anything else."""
    if decision not in OPTIONS:
        raise MedkitError(f"{decision!r} is not a PubMedQA decision; use one of {', '.join(OPTIONS)}")
    return LETTERS[OPTIONS.index(decision)]


def to_decision(letter: str) -> str:
    """A, B, C -> yes, no, maybe. Raises MedkitError for anything else."""
    if letter not in tuple(LETTERS):
        raise MedkitError(f"{letter!r} is not a PubMedQA letter; use one of {', '.join(LETTERS)}")
    return OPTIONS[LETTERS.index(letter)]


# PMIDs of the official 500-row test fold. The Hub's copy of PubMedQA does not mark it.
# Source: the keys of data/test_ground_truth.json in github.com/pubmedqa/pubmedqa.
_FOLD = Path(__file__).with_name("pubmedqa_test_fold.csv").read_text(encoding="utf-8")
OFFICIAL_TEST_PMIDS = frozenset(map(int, _FOLD.split()[1:]))
