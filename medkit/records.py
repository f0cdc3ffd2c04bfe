"""Immutable, validated records: exam questions, consultations, patient queries."""

from dataclasses import dataclass
from itertools import pairwise

LETTERS = "ABCD"


class RecordError(ValueError):
    """A row that cannot become a record. `reason` is the key under which dropped rows are counted."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class MCQItem:
    """An exam question, or a PubMedQA abstract with yes/no/maybe as its three options.

    Raises RecordError for empty texts, other than three or four options, or an answer that is not an option
    letter. Two options may have the same text (21 MedMCQA dev rows), so scoring uses letters only.
    """

    id: str  # unique within its source
    source: str  # a key of sources.SOURCES, or "general" (builtin.general)
    question: str
    options: tuple[str, ...]  # in letter order
    answer: str  # one of "A".."D"
    context: str = ""  # PubMedQA: the abstract without its conclusion
    group: str = ""  # MedMCQA: subject; MedQA: USMLE step; otherwise empty

    def __post_init__(self):
        if not self.question.strip():
            raise RecordError("empty question", self.id)
        if len(self.options) not in (3, 4):
            raise RecordError("not 3 or 4 options", f"{self.id} has {len(self.options)}")
        if not all(option.strip() for option in self.options):
            raise RecordError("empty option", self.id)
        if self.answer not in self.letters:
            raise RecordError("answer is no option", self.id)

    @property
    def letters(self) -> str:
        """The option letters: "ABC" or "ABCD"."""
        return LETTERS[: len(self.options)]

    @property
    def repeats_an_option(self) -> bool:
        return len({option.strip().lower() for option in self.options}) < len(self.options)


@dataclass(frozen=True, slots=True)
class Turn:
    role: str  # "assistant" for the physician, "user" for everyone else
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A consultation of at least two alternating turns that ends with the assistant.

    Either role may start. NoteChat's physicians open nearly every conversation, and their greeting is a turn
    to learn from.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    note: str = ""  # the clinical note behind the consultation; the model never sees it
    group: str = ""  # MTS-Dialog: the note section that the consultation covers; otherwise empty

    def __post_init__(self):
        roles = [turn.role for turn in self.turns]
        if len(roles) < 2:
            raise RecordError("fewer than two turns", self.id)
        if any(role not in ("user", "assistant") for role in roles):
            raise RecordError("a turn is neither user nor assistant", self.id)
        if any(role == next_role for role, next_role in pairwise(roles)):
            raise RecordError("turns do not alternate", self.id)
        if roles[-1] != "assistant":
            raise RecordError("no physician turn at the end", self.id)
        if not all(turn.text.strip() for turn in self.turns):
            raise RecordError("empty turn", self.id)


@dataclass(frozen=True, slots=True)
class ConsumerQuery:
    """A patient's question and the physician's answer to compare with."""

    id: str
    source: str
    query: str
    reference: str

    def __post_init__(self):
        if not self.query.strip():
            raise RecordError("empty query", self.id)
        if not self.reference.strip():
            raise RecordError("empty reference", self.id)
