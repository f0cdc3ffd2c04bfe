"""Declares the data sets (splits, licences, revisions, columns) and loads their rows as records."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm.auto import tqdm

from medkit import MedkitError
from medkit.data import converters
from medkit.data.converters import Form
from medkit.data.formats import shortened, unexpected
from medkit.data.loading import ONLY_SPLIT, RawFile, from_folder, from_hub
from medkit.records import ConsumerQuery, Dialogue, MCQItem, RecordError
from medkit.text_keys import content_key, text_of


@dataclass(frozen=True)
class Part:
    """The rows of a source used for one purpose, such as training or evaluation."""

    split: str  # on the hub; ONLY_SPLIT if mirrors disagree on its name
    rows: int  # on the hub at the revision
    why: str
    config: str | None = None
    named: str = ""  # regular expression for the lower-case paths of its files; "" matches every path
    not_named: str = "(?!)"  # the same, for excluded files
    # PubMedQA: rows inside (True) or outside (False) the official test fold; None: both
    fold: bool | None = None

    def includes(self, path: str) -> bool:
        """Whether a file belongs to the part; `path` is lower case and relative to the source's folder."""
        return bool(re.search(self.named, path)) and not re.search(self.not_named, path)


@dataclass(frozen=True)
class Source:
    """One data set."""

    name: str
    title: str
    kind: type  # class of its records
    licence: str  # SPDX identifier if there is one
    parts: dict[str, Part]  # "train", "eval", and those that DataSpec.source_part may return instead
    forms: tuple[Form, ...]
    hub_id: str = ""  # "" if it is published only at `home`
    revision: str = "main"  # commit of the hub repository; "main" if no commit could be determined
    home: str = ""

    @property
    def card(self) -> str:
        """Path of its data card in the repository."""
        return f"data_cards/{self.name}.md"

    @property
    def pinned(self) -> bool:
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None


TRAIN_FILE = r"(?<![a-z])train(ing)?(set)?(?![a-z])"
TEST_FILE = r"(?<![a-z])test(set)?(?![a-z])"
VALIDATION_FILE = r"(?<![a-z])(dev|val|valid|validation)(set)?(?![a-z])"

MEDQA = Source(
    name="medqa",
    title="MedQA (USMLE, four options)",
    kind=MCQItem,
    hub_id="GBaker/MedQA-USMLE-4-options",
    revision="0fb93dd23a7339b6dcd27e241cb9b5eca62d4d18",
    licence="cc-by-4.0",  # of the hub repository; the original files are MIT
    parts={
        "train": Part("train", 10_178, "the official training questions", named=TRAIN_FILE),
        "eval": Part("test", 1_273, "the official test questions, labels public", named=TEST_FILE),
    },
    forms=(
        Form(("question", "options", "answer_idx"), converters.medqa, optional=("answer", "meta_info")),
        Form(  # the -hf variant
            ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3", "label"),
            converters.medqa_hf,
            id_column="id",
            optional=("ending4",),
        ),
    ),
)

MEDMCQA = Source(
    name="medmcqa",
    title="MedMCQA",
    kind=MCQItem,
    hub_id="openlifescienceai/medmcqa",
    revision="91c6572c454088bf71b679ad90aa8dffcd0d5868",
    licence="apache-2.0",  # of the hub repository; the original files are MIT
    parts={
        "train": Part("train", 182_822, "the official training questions", named=TRAIN_FILE),
        # The test split's answers are not public (cop is -1), so every published score is on validation.
        "eval": Part("validation", 4_183, "the test answers are not public", named=VALIDATION_FILE),
    },
    forms=(
        Form(
            ("question", "opa", "opb", "opc", "opd", "cop"),
            converters.medmcqa,  # `base` is set for each file: see _converter
            id_column="id",
            optional=("subject_name", "ope"),
        ),
    ),
)

ARTIFICIAL = r"pqa_?a(rtificial)?(?![a-z])"
LABELLED = r"pqa_?l(abell?ed)?(?![a-z])"
OTHER_PQA = r"pqa_?u(nlabell?ed)?(?![a-z])"
EXPERT = Part(
    "train",
    1_000,
    "expert-labelled; the official 500-row test fold is marked by the record's group",
    config="pqa_labeled",
    named=f"{LABELLED}|^(?!.*pqa).*({TEST_FILE}|{VALIDATION_FILE})",
    not_named=OTHER_PQA,
)

PUBMEDQA = Source(
    name="pubmedqa",
    title="PubMedQA",
    kind=MCQItem,
    hub_id="qiaojin/PubMedQA",
    revision="9001f2853fb87cab8d220904e0de81ac6973b318",
    licence="mit",
    # Both configurations have a single split, called train.
    parts={
        "train": Part(
            "train",
            211_269,
            "machine-labelled, for training only; never says maybe",
            config="pqa_artificial",
            named=f"{ARTIFICIAL}|^(?!.*pqa).*{TRAIN_FILE}",
            not_named=OTHER_PQA,
        ),
        "eval": EXPERT,
        # Used together: training on the first, evaluation on the second.
        "labelled_outside_fold": replace(EXPERT, fold=False, why="expert-labelled, outside the test fold"),
        "official_fold": replace(EXPERT, fold=True, why="the official 500-row test fold"),
    },
    forms=(
        Form(("question", "context", "final_decision"), converters.pubmedqa_item, id_column="pubid"),
        Form(("QUESTION", "CONTEXTS", "final_decision"), converters.pubmedqa_item, id_column="key"),
    ),
)

NOTECHAT = Source(
    name="notechat",
    title="NoteChat",
    kind=Dialogue,
    hub_id="akemiH/NoteChat",
    licence="unknown",
    parts={"train": Part("train", 207_001, "the only split; validation rows are drawn from it")},
    forms=(Form(("conversation",), converters.notechat, optional=("data",)),),
)

OTHER_MTS = "augmented|summaries|scores"  # back-translations, and the output of models and judges

MTS_DIALOG = Source(
    name="mts_dialog",
    title="MTS-Dialog",
    kind=Dialogue,
    licence="cc-by-4.0",
    parts={
        "train": Part("train", 1_201, "the official training rows", None, TRAIN_FILE, OTHER_MTS),
        "validation": Part("validation", 100, "the official rows", None, VALIDATION_FILE, OTHER_MTS),
        "test": Part("test", 400, "both challenges' test rows", None, TEST_FILE, OTHER_MTS),
    },
    forms=(Form(("section_header", "section_text", "dialogue"), converters.mts_dialog),),
    home="https://github.com/abachaa/MTS-Dialog",
)

ICLINIQ = Source(
    name="icliniq",
    title="iCliniq (ChatDoctor)",
    kind=ConsumerQuery,
    hub_id="lavita/ChatDoctor-iCliniq",
    licence="unknown",
    parts={"eval": Part(ONLY_SPLIT, 7_321, "the only split, called train in one mirror and test in another")},
    forms=(Form(("input", "answer_icliniq"), converters.icliniq),),
)

HEALTHCAREMAGIC = Source(
    name="healthcaremagic",
    title="HealthCareMagic-100k (ChatDoctor)",
    kind=ConsumerQuery,
    hub_id="lavita/ChatDoctor-HealthCareMagic-100k",
    revision="505443eac4e99ccedeffbb6f640061223d1d4bb3",
    licence="unknown",
    parts={"eval": Part("train", 112_165, "the only split")},
    forms=(Form(("instruction", "input", "output"), converters.healthcaremagic),),
)

SOURCES: dict[str, Source] = {
    source.name: source
    for source in (MEDQA, MEDMCQA, PUBMEDQA, NOTECHAT, MTS_DIALOG, ICLINIQ, HEALTHCAREMAGIC)
}
EXAMS = ("medqa", "medmcqa", "pubmedqa")  # for training in stage 1 and evaluation in notebook 03


@dataclass
class Loaded:
    """The records of one part of a source, and how they were obtained."""

    records: list = field(default_factory=list)
    row_numbers: list[int] = field(default_factory=list)  # of each record among the rows read, from 0
    rows: int = 0  # rows read, until the limit if there is one
    dropped: Counter = field(default_factory=Counter)  # reason -> rows
    first_dropped: dict[str, str] = field(default_factory=dict)  # reason -> file, row: detail
    origin: str = ""  # "files" or "hub"
    files: dict[str, str] = field(default_factory=dict)  # file name -> SHA-256, or hub id -> commit
    notes: Counter = field(default_factory=Counter)  # changes to rows that were kept, and irregularities

    def by_row(self) -> list:
        """The record of each row read, in order; None for a dropped row."""
        rows = [None] * self.rows
        for number, record in zip(self.row_numbers, self.records, strict=True):
            rows[number] = record
        return rows


def load(
    name: str, part: str, data_dir: str | Path | None = None, limit: int = 0, progress: bool = True
) -> Loaded:
    """Read one of the source's `parts` and check every row.

    data_dir: a folder whose subfolder `name` contains a hub snapshot or the upstream's files; None reads the
    hub at the pinned revision. All files of the part are read, and their columns determine the format.
    limit: stop after this many records; 0 reads all.

    Record ids are unique. Raises MedkitError if the source, or a file as a whole, cannot be used.
    """
    if name not in SOURCES:
        raise MedkitError(f"unknown source {name!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    if part not in source.parts:
        raise MedkitError(f"{name} has no part {part!r}: expected {' or '.join(source.parts)}")
    loaded = Loaded(origin="hub" if data_dir is None else "files")
    if data_dir is None:
        file, row_count = from_hub(source, part)
        files = [file]
        if row_count != (declared := source.parts[part].rows):
            loaded.notes[f"rows served, where {declared} are declared"] = row_count
    else:
        files = from_folder(source, part, Path(data_dir).expanduser())
    loaded.files = {file.name: file.fingerprint for file in files}
    for record in _records(source, part, files, loaded, progress):
        loaded.records.append(record)
        loaded.row_numbers.append(loaded.rows - 1)
        if limit and len(loaded.records) >= limit:
            break
    loaded.notes = +loaded.notes  # drops zero counts
    if not loaded.records:
        first = next(iter(loaded.first_dropped.values()), "the files").split(": ")[0]
        reasons = ", ".join(f"{reason} ({count})" for reason, count in loaded.dropped.items())
        raise MedkitError(f"{name} {part}: no usable row among {loaded.rows}: {reasons}; look at {first}")
    return loaded


def _records(source: Source, part: str, files: list[RawFile], loaded: Loaded, progress: bool) -> Iterator:
    """Yield the usable rows as records with unique ids; count the others in `loaded`.

    Rows that repeat one of an earlier file are dropped, since the files are then copies in several formats.
    Repeated consultations are kept: removing them is up to the mixture.
    """
    compare_files = len(files) > 1 and source.kind is not Dialogue
    title, ids = f"{source.name} {part}", set()
    earlier_answers: dict[bytes, str] = {}  # content -> answer
    for file in files:
        form, convert, rows = _converter(source, file)
        answers: dict[bytes, str] = {}
        # No total: with a limit the bar would stop early, and Jupyter keeps unfinished bars, in red.
        for location, row in tqdm(iter(rows), desc=title, unit=" rows", disable=not progress, leave=False):
            number = f"{loaded.rows:06d}"
            loaded.rows += 1
            id = converters.identifier(row.get(form.id_column)) or f"{source.name}-{part}-{number}"
            notes: Counter = Counter()  # added once the row is kept
            try:
                record = convert(row, id, notes)
                _check_record(source.parts[part], record)
                if compare_files:
                    key, answer = content_key(record), getattr(record, "answer", "")
                    if key in earlier_answers:
                        suffix = "" if earlier_answers[key] == answer else ", other answer"
                        raise RecordError(f"repeated in another file{suffix}", id)
                    answers[key] = answer
            except RecordError as error:
                loaded.dropped[error.reason] += 1
                loaded.first_dropped.setdefault(error.reason, f"{file.name}, {location}: {error}")
                continue
            except ValueError as error:
                raise MedkitError(f"{file.name}, {location}: {error}") from None
            if record.id in ids:
                loaded.notes["rows whose id repeats an earlier one's"] += 1
                record = replace(record, id=f"{record.id}-{number}")
            ids.add(record.id)
            loaded.notes.update(notes)
            yield record
        earlier_answers |= answers


def _check_record(part: Part, record) -> None:
    """Raise RecordError for text that cannot be encoded, or a row on the wrong side of PubMedQA's test fold.

    Raises ValueError if the side is unknown, so that no evaluation row can be used for training.
    """
    try:
        f"{record.id}{text_of(record)}{getattr(record, 'group', '')}".encode()
    except UnicodeEncodeError:  # JSON can contain half a surrogate pair
        raise RecordError("text is not valid Unicode", ascii(record.id)[1:-1]) from None
    if part.fold is None:
        return
    if not record.id.isdigit():
        raise ValueError(
            "expected a PMID (pubid, or the row's key), which decides whether a row is in the official test "
            f"fold, found {record.id!r:.40}"
        )
    if (record.group == "fold") != part.fold:
        raise RecordError("outside the official test fold" if part.fold else "in the official test fold")


def _converter(source: Source, file: RawFile):
    """The file's form, judged by its first row, its converter, and its rows with the columns of the form."""
    raw = iter(file.rows)
    if (first := next(raw, None)) is None:
        raise unexpected(file.name, "rows", "none", "fetch or write it again")
    columns = set(first[1])
    # If no form matches, the error names the columns of the closest one.
    closest = max(source.forms, key=lambda form: len(set(form.columns) & columns))
    form = next((form for form in source.forms if set(form.columns) <= columns), closest)
    rows = _read_columns(source, form, file, chain([first], raw))
    if form.convert is not converters.medmcqa:
        return form, form.convert, rows
    rows = list(rows)  # the convention of cop can only be told from the whole file
    try:
        base = converters.cop_base([(location, row["cop"]) for location, row in rows])
    except ValueError as error:
        raise MedkitError(f"{file.name}: {error}") from None
    return form, partial(converters.medmcqa, base=base), rows


def _read_columns(source: Source, form: Form, file: RawFile, raw) -> Iterator[tuple[str, dict]]:
    """The rows with only the form's columns and None for NaN. Raises MedkitError if a row lacks a column."""
    for location, row in raw:
        if not set(form.columns) <= row.keys():
            raise MedkitError(
                f"{file.name}, {location}: expected the columns {', '.join(sorted(form.columns))}, found "
                f"{shortened(', '.join(sorted(row)), 40) or 'none'}: not a {source.title} file; see "
                f"{source.card}"
            )
        columns = [column for column in form.all_columns if column in row]
        yield location, {column: converters.without_nan(row[column]) for column in columns}
