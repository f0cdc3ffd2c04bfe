"""Raw rows -> records, one converter per form that a data set is published in.

A converter raises RecordError for a row that cannot be used: it is dropped and counted under the error's
reason. The error's detail goes into manifests and so quotes no text of the row. Where the row shows that
the file as a whole is wrong, it raises ValueError with "expected ..., found ...".
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from medkit import pubmedqa
from medkit.data import references
from medkit.data.transcript import turns_of
from medkit.records import LETTERS, ConsumerQuery, Dialogue, MCQItem, RecordError


@dataclass(frozen=True)
class Form:
    """One set of columns a source comes in.

    `convert(row, id, notes)` returns a record or raises; it adds to `notes`, a Counter, what it changed.
    `own_id` names the column that holds the upstream's id; without one the id is counted up.
    """

    name: str
    columns: tuple[str, ...]  # a row of this form has all of these
    convert: Callable[..., Any]
    own_id: str = ""
    also: tuple[str, ...] = ()  # columns read where the file has them

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.columns, *self.also, *filter(None, [self.own_id]))

    def fits(self, row: dict) -> bool:
        return all(column in row for column in self.columns)


def text(row: dict, column: str) -> str:
    """The column's text, stripped; RecordError where it is null or anything but text."""
    value = row.get(column)
    if not isinstance(value, str):
        raise RecordError(f"{column} is not text", type(value).__name__)
    return value.strip()


def without_nan(value: object, depth: int = 3) -> object:
    """The value with None for every NaN, down to a list of structs' cells, the deepest that is read."""
    if isinstance(value, float):
        return None if math.isnan(value) else value
    if depth and isinstance(value, dict):
        return {key: without_nan(cell, depth - 1) for key, cell in value.items()}
    if depth and isinstance(value, list):
        return [without_nan(cell, depth - 1) for cell in value]
    return value


def identifier(value: object) -> str:
    """The upstream's id as text; whole numbers that nulls in the column made floats lose ".0"."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = "" if value is None else str(value).strip()
    return text[:-2] if re.fullmatch(r"\d+\.0", text) else text


def medqa(row: dict, id: str, notes: Counter) -> MCQItem:
    """Hub and original columns: question, options ({A..D} or a list of {key, value}), answer_idx."""
    options = row["options"]
    if isinstance(options, str):  # a CSV cell
        options = _cell_of_json(options)
    if options is None:
        raise RecordError("not four options", f"{id} has none")
    if isinstance(options, dict):
        options = [{"key": letter, "value": option} for letter, option in options.items()]
    if isinstance(options, list):  # Arrow pads the structs of a file to the same letters
        options = [pair for pair in options if not _is_padding(pair)]
    if not isinstance(options, list) or not all(isinstance(pair, dict) for pair in options):
        raise ValueError(
            f"expected options as a struct or a list of key and value, found {str(options)[:60]!r}; "
            "write them as {A: ..., B: ..., C: ..., D: ...}"
        )
    letters = "".join(sorted(str(pair.get("key")) for pair in options))
    if len(options) > 4:
        raise ValueError(
            f"expected the four options A-D, found {len(options)} ({letters[:20]}); use the 4-option files"
        )
    if letters != LETTERS:
        raise RecordError("not four options", f"{id} has {letters[:20] or 'none'}")
    by_letter = {pair["key"]: pair.get("value") for pair in options}
    choices = tuple(_option(by_letter[letter]) for letter in LETTERS)
    answer = text(row, "answer_idx")
    item = _medqa_item(id, text(row, "question"), choices, answer, str(row.get("meta_info") or ""))
    stated = row.get("answer")
    if isinstance(stated, str) and stated.strip() != choices[LETTERS.index(answer)]:
        raise RecordError("answer text is not the option of its letter", id)
    return item


def _is_padding(pair: object) -> bool:
    """Whether it is no option at all: null, or nothing under another key than A to D."""
    return pair is None or (
        isinstance(pair, dict) and pair.get("value") in (None, "") and pair.get("key") not in tuple(LETTERS)
    )


def medqa_hf(row: dict, id: str, notes: Counter) -> MCQItem:
    """Columns of the -hf variant: sent1, sent2 (mostly empty), ending0-3, label 0-3."""
    if row.get("ending4") not in (None, ""):
        raise ValueError("expected ending0 to ending3, found a fifth option; use the 4-option files")
    label = whole_number(row["label"])
    if label == -1:
        raise ValueError("expected a label of 0-3, found -1: a test file without answers; use another split")
    if label not in range(4):
        raise RecordError("label is not 0-3", id)
    parts = (text(row, column) for column in ("sent1", "sent2") if row[column] is not None)
    question = " ".join(filter(None, parts))
    choices = tuple(_option(row[f"ending{i}"]) for i in range(4))
    return _medqa_item(id, question, choices, LETTERS[label], "")


def _medqa_item(id: str, question: str, options: tuple[str, ...], answer: str, group: str) -> MCQItem:
    item = MCQItem(id, "medqa", question, options, answer, group=group)
    if item.repeats_an_option:
        raise RecordError("repeated option", id)
    return item


class CopError(ValueError):
    """A `cop` column whose convention cannot be told; `value`: the one that stands against it, if any."""

    def __init__(self, message: str, value: object = None):
        super().__init__(message)
        self.value = value


def cop_base(values: Counter) -> int:
    """What `cop` counts from, 0 (hub) or 1 (original files), judged from all values of one file.

    `values` counts each value of the column. Raises CopError where the values are mixed, withheld (-1), or
    too few to tell.
    """
    known = {value for value in values if isinstance(value, int) and 0 <= value <= 4}
    if -1 in values:
        raise CopError(
            f"expected cop 0-3 or 1-4, found -1 in {values[-1]} rows: the test answers are not public; "
            "use the validation file",
            -1,
        )
    if odd := [value for value in values if value not in known]:
        raise CopError(f"expected cop 0-3 or 1-4, found {odd[0]!r:.60}; correct or remove the row", odd[0])
    if {0, 4} <= known:
        later = [value for value in values if value in (0, 4)][1]  # a Counter keeps the order of appearance
        raise CopError(
            f"expected one cop convention in the file, found both 0 ({values[0]} rows) and 4 ({values[4]} "
            "rows); separate the hub's rows (0-3) from the original ones (1-4)",
            later,
        )
    if not {0, 4} & known:
        raise CopError(
            f"expected cop to reach 0 (hub, 0-3) or 4 (original, 1-4), found only {sorted(known)}: the "
            "convention cannot be told; use a larger piece of the file"
        )
    return 0 if 0 in known else 1


def medmcqa(base: int) -> Callable[[dict, str, Counter], MCQItem]:
    """The converter for a file whose `cop` counts from `base`. `exp` holds the answer and is never read."""

    def convert(row: dict, id: str, notes: Counter) -> MCQItem:
        if row.get("ope") not in (None, ""):
            raise ValueError("expected the four options opa to opd, found a fifth (ope); use a 4-option file")
        subject = row.get("subject_name")
        options = tuple(_option(row[column]) for column in ("opa", "opb", "opc", "opd"))
        answer = LETTERS[whole_number(row["cop"]) - base]
        group = subject if isinstance(subject, str) else ""
        item = MCQItem(id, "medmcqa", text(row, "question"), options, answer, group=group)
        if item.repeats_an_option:
            notes["rows that repeat an option's text"] += 1
            gold = options[LETTERS.index(answer)].lower()
            notes["rows that repeat the correct option's text"] += (
                sum(option.lower() == gold for option in options) > 1
            )
        return item

    return convert


def pubmedqa_hub(row: dict, id: str, notes: Counter) -> MCQItem:
    context = row["context"]
    if isinstance(context, str):  # a CSV cell
        context = _cell_of_json(context)
    if isinstance(context, dict):
        context = context.get("contexts")
    elif context is not None:
        raise ValueError(f"expected context.contexts, found {context!r:.60}; write it as {{contexts: [...]}}")
    return _pubmedqa_item(row, id, text(row, "question"), context)


def pubmedqa_original(row: dict, id: str, notes: Counter) -> MCQItem:
    return _pubmedqa_item(row, id, text(row, "QUESTION"), row["CONTEXTS"])


def _pubmedqa_item(row: dict, id: str, question: str, contexts: object) -> MCQItem:
    """The conclusion (long_answer) stays out: it gives the decision away (reasoning-required setting)."""
    decision = text(row, "final_decision").lower()
    if decision not in pubmedqa.OPTIONS:
        raise RecordError("decision is not yes, no or maybe", id)
    if contexts is not None and not isinstance(contexts, list):
        raise ValueError(f"expected contexts as a list of texts, found {contexts!r:.60}; write a list")
    parts = [part for part in contexts or () if part is not None]
    if not all(isinstance(part, str) for part in parts):
        raise RecordError("no context", id)
    context = "\n".join(part.strip() for part in parts)
    if not context.strip():
        raise RecordError("no context", id)
    answer = pubmedqa.to_letter(decision)
    fold = "fold" if re.fullmatch("[0-9]{1,9}", id) and int(id) in pubmedqa.OFFICIAL_TEST_PMIDS else ""
    return MCQItem(id, "pubmedqa", question, pubmedqa.OPTIONS, answer, context, fold)


def notechat(row: dict, id: str, notes: Counter) -> Dialogue:
    """Columns conversation and data, the note, which is mostly empty."""
    turns, changed = turns_of(text(row, "conversation"))
    note = "" if row.get("data") is None else text(row, "data")
    dialogue = Dialogue(id, "notechat", turns, note)
    notes.update(changed)
    notes["rows without a note"] += not dialogue.note
    return dialogue


def mts_dialog(row: dict, id: str, notes: Counter) -> Dialogue:
    """Columns dialogue, section_text (the section of a note that it was written for) and section_header."""
    turns, changed = turns_of(text(row, "dialogue"))
    header = text(row, "section_header")
    dialogue = Dialogue(id, "mts_dialog", turns, text(row, "section_text"), header)
    notes.update(changed)
    return dialogue


def icliniq(row: dict, id: str, notes: Counter) -> ConsumerQuery:
    """The physician is answer_icliniq; the other two answer columns were written by models."""
    return _consumer("icliniq", id, text(row, "input"), text(row, "answer_icliniq"), notes)


# "If you are a doctor, ..." in every row: what an Alpaca file of other tasks does not say.
AS_A_DOCTOR = re.compile(r"(?=.*\b(doctor|physician)).*\bpatient", re.IGNORECASE | re.DOTALL)


def healthcaremagic(row: dict, id: str, notes: Counter) -> ConsumerQuery:
    """Columns instruction, the same in every row, input and output, the physician's answer."""
    if not AS_A_DOCTOR.match(instruction := text(row, "instruction")):
        raise ValueError(
            f"expected an instruction to answer a patient as a doctor, found {instruction[:60]!r}: not a "
            "HealthCareMagic row"
        )
    query, reference = text(row, "input"), text(row, "output")
    record = _consumer("healthcaremagic", id, query, reference, notes)
    if references.words_replaced(query, reference):
        raise RecordError("words replaced by a spelling corrector", id)
    return record


def _consumer(source: str, id: str, query: str, reference: str, notes: Counter) -> ConsumerQuery:
    if why := references.names_site(query, reference):
        raise RecordError(why, id)
    without, cut = references.without_advertising(reference)
    if reference and references.says_nothing(without):
        raise RecordError("answer without substance", id)
    record = ConsumerQuery(id, source, query, without)
    notes["references with an advertisement cut"] += cut
    return record


def whole_number(value: object) -> Any:
    """3 for 3, 3.0 or "3" (CSV cells are text, Parquet columns with nulls floats); else the value itself."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,9}(\.0)?", value.strip()):
        return int(float(value))
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else repr(value)


def _option(value: object) -> str:
    """An option's text; a number is one (1.5 mg), a struct or a list is not."""
    if value is None:
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool) or value in (math.inf, -math.inf):
        raise RecordError("option is not text", type(value).__name__)
    return str(value).strip()


def _cell_of_json(cell: str) -> object:
    try:
        return without_nan(json.loads(cell))
    except (ValueError, RecursionError):
        raise ValueError(
            f"expected JSON in the cell, found {cell[:60]!r}; use JSON Lines or Parquet"
        ) from None
