"""Converts raw rows to records, with one converter for each set of columns in which a data set is published.

A converter raises RecordError for a row that cannot be used. The row is dropped and counted under the error's
reason. The error's detail is written to manifests, so it never quotes the row's text. If a row shows that the
whole file is wrong, the converter raises ValueError with "expected ..., found ...".
"""

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from medkit import pubmedqa
from medkit.data import references
from medkit.data.formats import preview
from medkit.data.transcript import turns_of
from medkit.records import LETTERS, ConsumerQuery, Dialogue, MCQItem, RecordError


@dataclass(frozen=True)
class Form:
    """One set of columns in which a source is published.

    `convert(row, id, notes)` returns a record or raises. It counts what it changed in `notes`, a Counter.
    """

    columns: tuple[str, ...]  # required in every row
    convert: Callable[..., Any]
    id_column: str = ""  # the upstream's id; "" numbers the rows instead
    optional: tuple[str, ...] = ()  # read if the file has them

    @property
    def all_columns(self) -> tuple[str, ...]:
        return (*self.columns, *self.optional, *filter(None, [self.id_column]))


def text(row: dict, column: str) -> str:
    """The column's text, stripped. Raises RecordError if it is null or not a string."""
    value = row.get(column)
    if not isinstance(value, str):
        raise RecordError(f"{column} is not text", type(value).__name__)
    return value.strip()


def without_nan(value: object, depth: int = 3) -> object:
    """The value with every NaN replaced by None, by default down to the cells of a list of structs."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if depth and isinstance(value, dict):
        return {key: without_nan(cell, depth - 1) for key, cell in value.items()}
    if depth and isinstance(value, list):
        return [without_nan(cell, depth - 1) for cell in value]
    return value


def whole_number(value: object) -> Any:
    """3 for 3, 3.0 or "3": CSV cells are text, and Parquet columns with nulls are floats.

    Any other number or text is returned as it is, and any other value as its shortened repr.
    """
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}(\.0)?", value.strip()):
        return int(float(value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    is_scalar = isinstance(value, str | int | float) and not isinstance(value, bool)
    return value if is_scalar else reprlib.repr(value)


def identifier(value: object) -> str:
    """The upstream's id as text, without the ".0" that nulls in the column add to whole numbers."""
    text = "" if value is None or isinstance(value, list | dict) else str(value).strip()
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text


def medqa(row: dict, id: str, notes: Counter) -> MCQItem:
    """Columns question, options ({A..D} or a list of {key, value}) and answer_idx."""
    options = _cell(row["options"])
    if options is None:
        raise RecordError("not four options", f"{id} has none")
    try:
        if isinstance(options, dict):
            pairs = list(options.items())
        else:
            pairs = [(option["key"], option.get("value")) for option in options if option]
    except (TypeError, KeyError, AttributeError):
        raise ValueError(
            f"expected options as a struct or a list of key and value, found {preview(options)}; "
            "write them as {A: ..., B: ..., C: ..., D: ...}"
        ) from None
    # Arrow pads all structs of a file to the same keys.
    pairs = [(key, value) for key, value in pairs if key in tuple(LETTERS) or value not in (None, "")]
    letters = "".join(sorted(str(key) for key, _ in pairs))
    if len(pairs) > 4:
        raise ValueError(
            f"expected the four options A-D, found {len(pairs)} ({letters[:20]}); use the 4-option files"
        )
    if letters != LETTERS:
        raise RecordError("not four options", f"{id} has {letters[:20] or 'none'}")
    choices = tuple(_option(value) for _, value in sorted(pairs))
    answer = text(row, "answer_idx")
    item = _medqa_item(id, text(row, "question"), choices, answer, str(row.get("meta_info") or ""))
    answer_text = row.get("answer")
    if isinstance(answer_text, str) and answer_text.strip() != choices[LETTERS.index(answer)]:
        raise RecordError("answer text is not the option of its letter", id)
    return item


def medqa_hf(row: dict, id: str, notes: Counter) -> MCQItem:
    """Columns of the -hf variant: sent1, sent2 (usually empty), ending0-3 and label 0-3."""
    if row.get("ending4") not in (None, ""):
        raise ValueError("expected ending0 to ending3, found a fifth option; use the 4-option files")
    label = whole_number(row["label"])
    if label == -1:
        raise ValueError("expected a label of 0-3, found -1: a test file without answers; use another split")
    if label not in range(4):
        raise RecordError("label is not 0-3", id)
    sentences = (text(row, column) for column in ("sent1", "sent2") if row[column] is not None)
    choices = tuple(_option(row[f"ending{i}"]) for i in range(4))
    return _medqa_item(id, " ".join(filter(None, sentences)), choices, LETTERS[label], "")


def _medqa_item(id: str, question: str, options: tuple[str, ...], answer: str, group: str) -> MCQItem:
    item = MCQItem(id, "medqa", question, options, answer, group=group)
    if item.repeats_an_option:
        raise RecordError("repeated option", id)
    return item


def cop_base(cells: Sequence[tuple[str, object]]) -> int:
    """What `cop` counts from, 0 (hub) or 1 (original files), given (location, cop) of all rows of a file.

    Raises ValueError if the values are mixed, withheld (-1), or consistent with both.
    """
    first_location: dict[Any, str] = {}  # of each value
    for location, cell in cells:
        first_location.setdefault(whole_number(cell), location)
    if invalid := [value for value in first_location if value not in range(5)]:
        value = invalid[0]
        fix = (
            "the test answers are not public; use the validation file" if -1 in invalid else "correct the row"
        )
        raise ValueError(f"expected cop 0-3 or 1-4, found {value!r:.60} ({first_location[value]}); {fix}")
    if {0, 4} <= first_location.keys():
        raise ValueError(
            f"expected one cop convention in the file, found both 0 ({first_location[0]}) and 4 "
            f"({first_location[4]}); separate the hub's rows (0-3) from the original ones (1-4)"
        )
    if not {0, 4} & first_location.keys():
        raise ValueError(
            "expected cop to reach 0 (hub, 0-3) or 4 (original, 1-4), found only "
            f"{sorted(first_location)}: the convention cannot be told; use a larger piece of the file"
        )
    return 0 if 0 in first_location else 1


def medmcqa(row: dict, id: str, notes: Counter, base: int = 0) -> MCQItem:
    """`cop` counts from `base` (see cop_base). `exp` contains the answer and is never read."""
    if row.get("ope") not in (None, ""):
        raise ValueError("expected the four options opa to opd, found a fifth (ope); use a 4-option file")
    options = tuple(_option(row[column]) for column in ("opa", "opb", "opc", "opd"))
    index = whole_number(row["cop"]) - base
    subject = row.get("subject_name")
    group = subject if isinstance(subject, str) else ""
    item = MCQItem(id, "medmcqa", text(row, "question"), options, LETTERS[index], group=group)
    if item.repeats_an_option:
        notes["rows that repeat an option's text"] += 1
        same = [option.lower() for option in options].count(options[index].lower())
        notes["rows that repeat the correct option's text"] += same > 1
    return item


def pubmedqa_item(row: dict, id: str, notes: Counter) -> MCQItem:
    """Columns question, context.contexts and final_decision, or the original QUESTION and CONTEXTS.

    The conclusion (long_answer) is left out because it reveals the decision (reasoning-required setting).
    """
    question = text(row, "QUESTION" if "QUESTION" in row else "question")
    contexts = row["CONTEXTS"] if "CONTEXTS" in row else _cell(row["context"])
    if isinstance(contexts, dict):
        contexts = contexts.get("contexts")
    decision = text(row, "final_decision").lower()
    if decision not in pubmedqa.OPTIONS:
        raise RecordError("decision is not yes, no or maybe", id)
    if contexts is not None and not isinstance(contexts, list):
        raise ValueError(f"expected contexts as a list of texts, found {preview(contexts)}; write a list")
    sections = [section for section in contexts or () if section is not None]
    context = "\n".join(section.strip() for section in sections if isinstance(section, str))
    if not context.strip() or not all(isinstance(section, str) for section in sections):
        raise RecordError("no context", id)
    fold = "fold" if re.fullmatch("[0-9]{1,9}", id) and int(id) in pubmedqa.OFFICIAL_TEST_PMIDS else ""
    return MCQItem(id, "pubmedqa", question, pubmedqa.OPTIONS, pubmedqa.to_letter(decision), context, fold)


def notechat(row: dict, id: str, notes: Counter) -> Dialogue:
    """Columns conversation and data, which is the note and mostly empty."""
    note = "" if row.get("data") is None else text(row, "data")
    dialogue = _dialogue("notechat", id, text(row, "conversation"), note, "", notes)
    notes["rows without a note"] += not dialogue.note
    return dialogue


def mts_dialog(row: dict, id: str, notes: Counter) -> Dialogue:
    """Columns dialogue, section_text (the section of the note it was written from) and section_header."""
    note, header = text(row, "section_text"), text(row, "section_header")
    return _dialogue("mts_dialog", id, text(row, "dialogue"), note, header, notes)


def _dialogue(source: str, id: str, conversation: str, note: str, group: str, notes: Counter) -> Dialogue:
    turns, cuts = turns_of(conversation)
    dialogue = Dialogue(id, source, turns, note, group)
    notes.update(cuts)
    return dialogue


def icliniq(row: dict, id: str, notes: Counter) -> ConsumerQuery:
    """Columns input and answer_icliniq, the physician's answer. Models wrote the other two answer columns."""
    return _consumer("icliniq", id, text(row, "input"), text(row, "answer_icliniq"), notes)


# Every row has "If you are a doctor, ...", unlike Alpaca files of other tasks.
AS_A_DOCTOR = re.compile(r"(?=.*\b(doctor|physician)).*\bpatient", re.IGNORECASE | re.DOTALL)


def healthcaremagic(row: dict, id: str, notes: Counter) -> ConsumerQuery:
    """Columns instruction (the same in every row), input, and output, the physician's answer."""
    if not AS_A_DOCTOR.match(instruction := text(row, "instruction")):
        raise ValueError(
            f"expected an instruction to answer a patient as a doctor, found {instruction[:60]!r}: not a "
            "HealthCareMagic row"
        )
    query, reference = text(row, "input"), text(row, "output")
    record = _consumer("healthcaremagic", id, query, reference, notes)
    if references.is_autocorrected(query, reference):
        raise RecordError("words replaced by a spelling corrector", id)
    return record


def _consumer(source: str, id: str, query: str, reference: str, notes: Counter) -> ConsumerQuery:
    if reason := references.site_name_problem(query, reference):
        raise RecordError(reason, id)
    cleaned, advertised = references.without_advertising(reference)
    if reference and references.lacks_substance(cleaned):
        raise RecordError("answer without substance", id)
    record = ConsumerQuery(id, source, query, cleaned)
    notes["references with an advertisement cut"] += advertised
    return record


def _option(value: object) -> str:
    """An option's text. Numbers are accepted; structs and lists are not."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value in (math.inf, -math.inf):
        raise RecordError("option is not text", type(value).__name__)
    return str(value).strip()


def _cell(value: object) -> Any:
    """A struct or list. In a CSV cell it is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return without_nan(json.loads(value))
    except (ValueError, RecursionError):
        raise ValueError(
            f"expected JSON in the cell, found {value[:60]!r}; use JSON Lines or Parquet"
        ) from None
