"""The records that rows become: checked and immutable."""

from dataclasses import dataclass
from itertools import pairwise

LETTERS = "ABCD"


class RecordError(ValueError):
    """A row that cannot become a record; `reason` is the name it is counted under."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class MCQItem:
    """One exam question, or one PubMedQA abstract with yes/no/maybe as its three options.

    Raises RecordError where a text is empty, the options are not three or four, or the answer
    is not the letter of one of them. Options may repeat a text (21 MedMCQA dev rows do), which is
    why scoring goes by letter and never by option text.
    """

    id: str  # unique within its source
    source: str  # a key of sources.SOURCES, or "general" (builtin.general)
    question: str
    options: tuple[str, ...]  # in letter order
    answer: str  # one of "A".."D"
    context: str = ""  # PubMedQA: the abstract without its conclusion
    group: str = ""  # MedMCQA: subject; MedQA: USMLE step; else empty

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
        """The letters this item may be answered with: "ABC" or "ABCD"."""
        return LETTERS[: len(self.options)]

    @property
    def repeats_an_option(self) -> bool:
        return len({option.strip().lower() for option in self.options}) < len(self.options)


@dataclass(frozen=True, slots=True)
class Turn:
    role: str  # "user" (patient and everyone who is not the physician) or "assistant"
    text: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One consultation: turns alternate, there is at least one of each role, the last is the assistant's.

    Either may speak first: NoteChat's physicians open nearly every conversation, and cutting that greeting
    off would throw away a turn that the model should learn.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]
    note: str = ""  # the clinical note the consultation was written from; never shown to the model
    group: str = ""  # MTS-Dialog: the section of the note that the consultation is about; else empty

    def __post_init__(self):
        roles = [turn.role for turn in self.turns]
        if len(roles) < 2:
            raise RecordError("fewer than two turns", self.id)
        if any(role not in ("user", "assistant") for role in roles):
            raise RecordError("a turn is neither user nor assistant", self.id)
        if any(one == next_one for one, next_one in pairwise(roles)):
            raise RecordError("turns do not alternate", self.id)
        if roles[-1] != "assistant":
            raise RecordError("no physician turn at the end", self.id)
        if not all(turn.text.strip() for turn in self.turns):
            raise RecordError("empty turn", self.id)


@dataclass(frozen=True, slots=True)
class ConsumerQuery:
    """A patient's question and the physician's answer it is compared with."""

    id: str
    source: str
    query: str
    reference: str

    def __post_init__(self):
        if not self.query.strip():
            raise RecordError("empty query", self.id)
        if not self.reference.strip():
            raise RecordError("empty reference", self.id)
