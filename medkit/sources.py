"""The six data sets: which split is used and why, under which licence, and how its rows become records."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm.auto import tqdm

from medkit import rows
from medkit.overlap import content_key, text_of
from medkit.readers import SourceError, data_files, digest, read_rows
from medkit.records import ConsumerQuery, Dialogue, MCQItem, RecordError

ONLY_SPLIT = "*"  # the one split the repository has, whatever it is called


@dataclass(frozen=True)
class Part:
    """What serves training or evaluation."""

    split: str  # on the hub; ONLY_SPLIT where mirrors disagree on its name
    rows: int  # as served at the revision
    why: str
    config: str | None = None
    named: str = ""  # regular expression over a file's path, lower case; "" takes every file
    not_named: str = "(?!)"  # the same, for files left out


@dataclass(frozen=True)
class Source:
    """One data set. `card` is the path of its card in the repository."""

    name: str
    title: str
    kind: type  # of its records
    hub_id: str
    revision: str  # commit of the hub repository; "main" where no commit could be found to pin
    licence: str  # SPDX identifier where there is one
    parts: dict[str, Part]  # keys "train" and "eval"
    forms: tuple[rows.Form, ...]

    @property
    def card(self) -> str:
        return f"data_cards/{self.name}.md"

    @property
    def pinned(self) -> bool:
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None


TRAIN_FILE = r"(?<![a-z])train(ing)?(?![a-z])"
TEST_FILE = r"(?<![a-z])test(?![a-z])"
VALIDATION_FILE = r"(?<![a-z])(dev|val|valid|validation)(?![a-z])"

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
        rows.Form("hub", ("question", "options", "answer_idx"), rows.medqa, also=("answer", "meta_info")),
        rows.Form(
            "-hf variant",
            ("sent1", "sent2", "ending0", "ending1", "ending2", "ending3", "label"),
            rows.medqa_hf,
            own_id="id",
            also=("ending4",),
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
        # The converter depends on the file: see _converter.
        rows.Form(
            "hub or original",
            ("question", "opa", "opb", "opc", "opd", "cop"),
            rows.medmcqa,
            own_id="id",
            also=("subject_name",),
        ),
    ),
)

ARTIFICIAL = r"pqa_?a(rtificial)?(?![a-z])"
LABELLED = r"pqa_?l(abell?ed)?(?![a-z])"
OTHER_PQA = r"pqa_?u(nlabell?ed)?(?![a-z])"

PUBMEDQA = Source(
    name="pubmedqa",
    title="PubMedQA",
    kind=MCQItem,
    hub_id="qiaojin/PubMedQA",
    revision="9001f2853fb87cab8d220904e0de81ac6973b318",
    licence="mit",
    # Both configurations have one split called train: the configuration decides, not the split.
    parts={
        "train": Part(
            "train",
            211_269,
            "machine-labelled, for training only; never says maybe",
            config="pqa_artificial",
            named=f"{ARTIFICIAL}|^(?!.*pqa).*{TRAIN_FILE}",
            not_named=OTHER_PQA,
        ),
        "eval": Part(
            "train",
            1_000,
            "expert-labelled; the official 500-row test fold is marked by the record's group",
            config="pqa_labeled",
            named=f"{LABELLED}|^(?!.*pqa).*({TEST_FILE}|{VALIDATION_FILE})",
            not_named=OTHER_PQA,
        ),
    },
    forms=(
        rows.Form("hub", ("question", "context", "final_decision"), rows.pubmedqa_hub, own_id="pubid"),
        rows.Form(
            "original", ("QUESTION", "CONTEXTS", "final_decision"), rows.pubmedqa_original, own_id="key"
        ),
    ),
)

NOTECHAT = Source(
    name="notechat",
    title="NoteChat",
    kind=Dialogue,
    hub_id="akemiH/NoteChat",
    revision="main",
    licence="unknown",
    parts={"train": Part("train", 207_001, "the only split; validation rows are drawn from it")},
    forms=(rows.Form("hub", ("conversation",), rows.notechat, also=("data",)),),
)

ICLINIQ = Source(
    name="icliniq",
    title="iCliniq (ChatDoctor)",
    kind=ConsumerQuery,
    hub_id="lavita/ChatDoctor-iCliniq",
    revision="main",
    licence="unknown",
    parts={"eval": Part(ONLY_SPLIT, 7_321, "the only split, called train in one mirror and test in another")},
    forms=(rows.Form("hub", ("input", "answer_icliniq"), rows.icliniq),),
)

HEALTHCAREMAGIC = Source(
    name="healthcaremagic",
    title="HealthCareMagic-100k (ChatDoctor)",
    kind=ConsumerQuery,
    hub_id="lavita/ChatDoctor-HealthCareMagic-100k",
    revision="505443eac4e99ccedeffbb6f640061223d1d4bb3",
    licence="unknown",
    parts={"eval": Part("train", 112_165, "the only split")},
    forms=(rows.Form("hub", ("input", "output"), rows.healthcaremagic),),
)

SOURCES: dict[str, Source] = {
    source.name: source for source in (MEDQA, MEDMCQA, PUBMEDQA, NOTECHAT, ICLINIQ, HEALTHCAREMAGIC)
}


@dataclass
class Loaded:
    """What one part of a source gave."""

    records: list = field(default_factory=list)
    rows: int = 0  # rows read; with a limit, those read until it was reached
    dropped: Counter = field(default_factory=Counter)  # reason -> rows
    first_dropped: dict[str, str] = field(default_factory=dict)  # reason -> file, row: detail
    origin: str = ""
    files: dict[str, str] = field(default_factory=dict)  # file name -> SHA-256, or hub id -> commit
    notes: Counter = field(default_factory=Counter)  # what was changed or is odd in rows that were kept


def load(
    name: str, part: str, data_dir: str | Path | None = None, limit: int = 0, progress: bool = True
) -> Loaded:
    """Read one part ("train" or "eval") of a source and check every row.

    `data_dir`: a folder with a folder `name` in it that holds a hub snapshot or the upstream's files (all
    files of the part are read; the columns decide the format); None reads the hub at the pinned revision.
    `limit`: stop after so many records (0: all). Ids are unique. Raises SourceError, one line, where the
    source, or a file as a whole, cannot be used.
    """
    if name not in SOURCES:
        raise SourceError(f"unknown source {name!r}: expected one of {', '.join(SOURCES)}")
    source = SOURCES[name]
    if part not in source.parts:
        raise SourceError(f"{name} has no part {part!r}: expected {' or '.join(source.parts)}")
    loaded = Loaded()
    files = list(
        _hub(source, part, loaded) if data_dir is None else _folder(source, part, Path(data_dir), loaded)
    )
    # NoteChat's repeated files are the mixture's to count; elsewhere they are one set in several forms.
    compare = len(files) > 1 and source.kind is not Dialogue
    ids: set[str] = set()
    seen: set[bytes] = set()  # content of the files before this one
    for file, raw in files:
        content: set[bytes] = set()
        form, convert, raw = _converter(source, file, raw)
        for place, row in tqdm(raw, desc=f"{name} {part}", unit=" rows", disable=not progress, leave=False):
            loaded.rows += 1
            id = _id(form, row, f"{name}-{part}-{loaded.rows - 1:06d}")
            try:
                record = convert(row, id, loaded.notes)
                _check_encodable(record)
            except RecordError as error:
                loaded.dropped[error.reason] += 1
                loaded.first_dropped.setdefault(error.reason, f"{file}, {place}: {error}")
                continue
            except KeyError as error:
                raise SourceError(
                    f"{file}, {place}: expected the columns {_names(form.columns)}, found none called {error}"
                ) from None
            except ValueError as error:
                raise SourceError(f"{file}, {place}: {error}") from None
            if compare:
                this = content_key(record)
                if this in seen:
                    loaded.dropped["repeated in another file"] += 1
                    continue
                content.add(this)
            if record.id in ids:
                loaded.notes["rows whose id repeats an earlier one's"] += 1
                record = replace(record, id=f"{record.id}-{loaded.rows - 1:06d}")
            ids.add(record.id)
            loaded.records.append(record)
            if limit and len(loaded.records) >= limit:
                loaded.notes = +loaded.notes
                return loaded
        seen |= content
    loaded.notes = +loaded.notes  # without the zeros
    if not loaded.records:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in loaded.dropped.items())
        raise SourceError(f"{name} {part}: no usable row among {loaded.rows}: {reasons}")
    return loaded


def _id(form: rows.Form, row: dict, counted: str) -> str:
    own = row.get(form.own_id) if form.own_id else None
    return str(own).strip() if own not in (None, "") else counted


def _check_encodable(record) -> None:
    """JSON can spell half a surrogate pair, which no file and no tokenizer takes."""
    try:
        text_of(record).encode()
    except UnicodeEncodeError:
        raise RecordError("text is not valid Unicode", record.id) from None


def _converter(source: Source, file: str, raw: Iterable[tuple[str, dict]]):
    """The form of the file, judged by its first row; its converter; the rows, with what that reads."""
    raw = iter(raw)
    first = next(raw, None)
    if first is None:
        raise SourceError(f"{file}: expected rows, found none")
    form = next((form for form in source.forms if form.fits(first[1])), None)
    if form is None:
        expected = "; or ".join(_names(form.columns) for form in source.forms)
        raise SourceError(
            f"{file}, {first[0]}: expected the columns {expected}; found {_names(first[1])}: "
            f"not a {source.title} file"
        )
    read = (*form.columns, *form.also, form.own_id)
    slim = ((place, {k: row[k] for k in read if k in row}) for place, row in _chain(first, raw))
    if form.convert is not rows.medmcqa:
        return form, form.convert, slim
    kept = list(slim)  # cop's convention is the whole file's, so the whole file is looked at first
    try:
        base = rows.cop_base(Counter(rows.whole_number(row.get("cop")) for _, row in kept))
    except ValueError as error:
        raise SourceError(f"{file}: {error}") from None
    return form, rows.medmcqa(base), kept


def _chain(first: tuple[str, dict], rest: Iterator) -> Iterator[tuple[str, dict]]:
    yield first
    yield from rest


def _names(columns: Iterable[str]) -> str:
    return ", ".join(sorted(map(str, columns)))


def _folder(source: Source, part: str, data_dir: Path, loaded: Loaded) -> Iterator[tuple[str, Iterable]]:
    """(name, rows) of each file under data_dir/NAME that serves the part."""
    folder = data_dir / source.name
    if not folder.is_dir():
        raise SourceError(
            f"no folder {source.name} in {data_dir}: expected it to hold {source.title}'s files"
        )
    wanted = source.parts[part]
    paths = {path.relative_to(data_dir).as_posix(): path for path in data_files(folder)}
    inside = {name: name.split("/", 1)[1].lower() for name in paths}
    chosen = [
        name
        for name in paths
        if re.search(wanted.named, inside[name])
        and not re.search(wanted.not_named, inside[name])
        and not _is_fold_file(source, paths[name])
    ]
    others = [re.compile(other.named) for key, other in source.parts.items() if key != part]
    if unclear := [name for name in chosen if any(other.search(inside[name]) for other in others)]:
        raise SourceError(f"{unclear[0]}: cannot tell whether it is for training or evaluation; rename it")
    if not chosen:
        found = ", ".join(paths) or "no .jsonl, .json, .csv or .parquet file"
        raise SourceError(
            f"{source.name} {part}: expected a file with the {wanted.split} split's name in its path "
            f"({wanted.why}), found {found}"
        )
    loaded.origin = "files"
    for name in chosen:
        loaded.files[name] = digest(paths[name])
        yield name, read_rows(paths[name], name)


def _is_fold_file(source: Source, path: Path) -> bool:
    """Whether it is PubMedQA's test_ground_truth.json: PMID -> decision, no rows in it."""
    with path.open("rb") as file:
        start = file.read(200)
    return source is PUBMEDQA and re.match(rb'\s*\{\s*"\d+"\s*:\s*"(yes|no|maybe)"', start) is not None


def _hub(source: Source, part: str, loaded: Loaded) -> Iterator[tuple[str, Iterable]]:
    """(name, rows) of the split on the hub, at the pinned revision."""
    import datasets

    wanted = source.parts[part]
    split = None if wanted.split == ONLY_SPLIT else wanted.split
    name = f"{source.hub_id}@{source.revision[:7]}"
    try:
        data = datasets.load_dataset(source.hub_id, wanted.config, split=split, revision=source.revision)
    except Exception as error:  # the libraries below raise dozens of kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise SourceError(
            f"{name}: cannot be read from the hub ({reason}); check the connection, or give --data-dir"
        ) from None
    if split is None:
        if len(data) != 1:
            raise SourceError(f"{name}: expected one split, found {_names(data)}")
        data = next(iter(data.values()))
    if len(data) != wanted.rows:
        loaded.notes[f"rows served, where {wanted.rows} are declared"] = len(data)
    commits = {c for url in data.info.download_checksums or () for c in re.findall("@([0-9a-f]{40})/", url)}
    loaded.origin = "hub"
    loaded.files[source.hub_id] = source.revision if source.pinned else " ".join(sorted(commits)) or "main"
    read = {c for form in source.forms for c in (*form.columns, *form.also, form.own_id)}
    data = data.select_columns([column for column in data.column_names if column in read])
    yield name, ((f"row {number}", row) for number, row in enumerate(data, 1))
