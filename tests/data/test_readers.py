"""Files as people have them: each is read, or refused by one short line that names the place and the fix."""

import bz2
import gzip
import io
import json
import lzma
import math
import os
import tarfile
import zipfile
from decimal import Decimal

import datasets
import pandas
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medkit import MedkitError
from medkit.__main__ import main
from medkit.data import converters
from medkit.data.files import read_rows
from medkit.data.formats import data_files
from medkit.data.sources import load
from medkit.pubmedqa import OFFICIAL_TEST_PMIDS

OPTIONS = {"A": "the tibia", "B": "the ulna", "C": "the sacrum", "D": "the scapula"}
MEDQA = [
    {"question": f"Which bone, {i}?", "options": OPTIONS, "answer_idx": "B", "answer": "the ulna"}
    for i in range(5)
]
LINES = "".join(json.dumps(row) + "\n" for row in MEDQA)
TABLE = pandas.DataFrame(MEDQA)
CSV = TABLE.assign(options=json.dumps(OPTIONS)).to_csv(index=False)
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4cac19\nsize 123\n"


def put(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def questions(folder, part="train"):
    return [record.question for record in load("medqa", part, folder, progress=False).records]


EXPECTED = [row["question"] for row in MEDQA]


def refused(folder, name="medqa", part="train") -> str:
    with pytest.raises(MedkitError) as error:
        load(name, part, folder, progress=False)
    message = str(error.value)
    assert message.isprintable() and "; " in message and len(message) <= 205
    return message


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


def parquet(table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table) if isinstance(table, list) else table, sink)
    return sink.getvalue()


def archive(kind) -> bytes:
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as file:
            file.writestr("train.jsonl", LINES)
    else:
        with tarfile.open(fileobj=sink, mode="w:gz") as file:
            member = tarfile.TarInfo("train.jsonl")
            member.size = len(LINES)
            file.addfile(member, io.BytesIO(LINES.encode()))
    return sink.getvalue()


def undecoded(texts: list[bytes]) -> pyarrow.Array:
    """A column that says it is text, of any bytes."""
    return pyarrow.Array.from_buffers(pyarrow.string(), len(texts), pyarrow.array(texts).buffers())


# Read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl.gz", gzip.compress(LINES.encode())),
        ("train.jsonl", gzip.compress(LINES.encode())),  # as a browser or curl may leave it
        ("train.json.gz", gzip.compress(json.dumps(MEDQA).encode())),
        ("train.csv.bz2", bz2.compress(CSV.encode())),
        ("train.jsonl.xz", lzma.compress(LINES.encode())),
        ("train.jsonl.zst", zstd(LINES.encode())),
        ("train.jsonl", LINES.encode("utf-8-sig")),
        ("train.jsonl", LINES.replace("\n", "\r")),
        ("train.jsonl", json.dumps(MEDQA)),
        ("train.jsonl", json.dumps(MEDQA, indent=1)),
        ("train.jsonl/part-0000.json", LINES),  # a folder that Spark wrote
        ("train.json", TABLE.to_json()),
        ("train.jsonl", TABLE.to_json(indent=2)),
        ("train.json", TABLE.to_json(orient="records")),
        ("train.json", TABLE.to_json(orient="records", lines=True)),
        ("train.json", TABLE.to_json(orient="index")),
        ("train.csv", CSV.encode("utf-8-sig")),
        ("train.csv", TABLE.assign(options=json.dumps(OPTIONS)).to_csv(index=False, sep=";")),
        ("train.csv", TABLE.assign(options=json.dumps(OPTIONS)).to_csv(sep="\t")),
        ("train.csv", CSV.replace("\n", "\r")),
        ("train.csv", "\n" + CSV.replace("\n", "\n\n")),
        ("train.parquet", parquet(MEDQA)),
        (
            "train.parquet",
            parquet([r | {"options": [{"key": k, "value": v} for k, v in OPTIONS.items()]} for r in MEDQA]),
        ),
    ],
)
def test_what_is_whole_is_read_whatever_it_is_packed_in(tmp_path, name, content):
    put(tmp_path, f"medqa/{name}", content)
    assert questions(tmp_path) == EXPECTED


def test_line_ends_inside_csv_cells(tmp_path):
    put(tmp_path, "medqa/train.csv", CSV.replace("Which bone, 3?", 'Which ""bone"",\n3?'))
    assert questions(tmp_path)[3] == 'Which "bone",\n3?'


def test_none_and_na_are_options_in_csv_and_nan_is_none(tmp_path):
    """What `datasets` and pandas make of a CSV: null of all four."""
    put(tmp_path, "a.csv", "opa,opb,opc,opd\nNone,NA,nan,NaN\n")
    assert [row for _, row in read_rows(tmp_path / "a.csv")] == [
        {"opa": "None", "opb": "NA", "opc": None, "opd": None}
    ]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.dictionaries(st.sampled_from("abc"), st.text() | st.none() | st.integers(), min_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_the_forms_of_json_give_the_same_rows(tmp_path, table):
    frame = pandas.DataFrame(table, dtype=object)
    forms = [
        "\n".join(map(json.dumps, table)),
        json.dumps(table, indent=1),
        frame.to_json(),
        "\r\n".join(json.dumps(row, ensure_ascii=True) for row in table),
    ]
    for form in forms:
        assert [row for _, row in read_rows(put(tmp_path, "a.json", form))] == table


# save_to_disk, Arrow files and the hub's cache


def test_a_save_to_disk_folder_is_read_with_its_splits(tmp_path):
    train, test = datasets.Dataset.from_list(MEDQA[:3]), datasets.Dataset.from_list(MEDQA[3:])
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "medqa")
    assert (questions(tmp_path), questions(tmp_path, "eval")) == (EXPECTED[:3], EXPECTED[3:])
    loaded = load("medqa", "train", tmp_path, progress=False)
    assert list(loaded.files) == ["medqa/train"] and len(loaded.files["medqa/train"]) == 64
    # What map() and filter() leave beside the data is no part of it.
    (tmp_path / "medqa/train/cache-0123.arrow").write_bytes(
        (tmp_path / "medqa/test/data-00000-of-00001.arrow").read_bytes()
    )
    assert questions(tmp_path) == EXPECTED[:3]
    assert load("medqa", "train", tmp_path, progress=False).files == loaded.files


def test_a_saved_data_set_alone_is_of_the_split_it_was_loaded_as(tmp_path):
    data = datasets.Dataset.from_list(MEDQA, split="test")
    data.save_to_disk(tmp_path / "medqa", num_shards=2)
    assert questions(tmp_path, "eval") == EXPECTED
    assert refused(tmp_path).endswith("found medqa; rename the file or its folder")


def test_expert_labelled_rows_saved_as_train_do_not_train(tmp_path):
    """Both configurations of PubMedQA have one split, train; the configuration is noted in the folder."""
    row = {"question": "Does it?", "context": {"contexts": ["It did."]}, "final_decision": "yes", "pubid": 7}
    info = datasets.DatasetInfo(config_name="pqa_labeled")
    data = datasets.Dataset.from_list([row], info=info, split="train")
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "pubmedqa")
    assert [record.id for record in load("pubmedqa", "eval", tmp_path, progress=False).records] == ["7"]
    assert "expected a file of the pqa_artificial split" in refused(tmp_path, "pubmedqa")


@pytest.mark.parametrize("write", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_an_arrow_file_of_either_kind(tmp_path, write):
    table = pyarrow.Table.from_pylist(MEDQA)
    with write(put(tmp_path, "medqa/med_qa-train.arrow", b""), table.schema) as file:
        file.write_table(table, max_chunksize=2)
    assert questions(tmp_path) == EXPECTED


def test_a_saved_folder_that_is_not_whole_is_one_line(tmp_path):
    datasets.Dataset.from_list(MEDQA, split="train").save_to_disk(tmp_path / "medqa", num_shards=2)
    last = tmp_path / "medqa/data-00001-of-00002.arrow"
    content = last.read_bytes()
    last.write_bytes(POINTER)
    assert "data-00001-of-00002.arrow: expected rows, found a Git LFS pointer" in refused(tmp_path)
    last.write_bytes(content[:-300])
    assert refused(tmp_path).endswith("fetch or write it again")
    last.unlink()
    assert refused(tmp_path).endswith("fetch or write it again")
    (tmp_path / "medqa/state.json").write_text("{")
    load_message = refused(tmp_path)
    assert "expected a file of the train split" in load_message


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow", "gz"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(tmp_path, kind, data):
    """Any bytes overwritten and the end cut off; damaged Arrow offsets once ended the process."""
    table = pyarrow.Table.from_pylist(MEDQA)
    stream = io.BytesIO()
    with pyarrow.ipc.new_stream(stream, table.schema) as file:
        file.write_table(table)
    content = {
        "jsonl": LINES.encode(),
        "json": json.dumps(MEDQA, indent=1).encode(),
        "csv": CSV.encode(),
        "parquet": parquet(table),
        "arrow": stream.getvalue(),
        "gz": gzip.compress(LINES.encode()),
    }[kind]
    damaged = bytearray(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)))):
        damaged[place] = byte
    name = {"gz": "train.jsonl.gz"}.get(kind, f"train.{kind}")
    put(tmp_path, f"medqa/{name}", bytes(damaged))
    try:
        assert questions(tmp_path)
    except MedkitError:
        assert refused(tmp_path).startswith(("medqa/train.", "medqa train: no usable row among"))


def test_damaged_offsets_in_arrow_are_refused_and_end_no_process(tmp_path):
    table = pyarrow.table({"question": ["a" * 7, "b" * 11]})
    stream = io.BytesIO()
    with pyarrow.ipc.new_stream(stream, table.schema) as file:
        file.write_table(table)
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 7, 18))  # 7, 7 + 11 = 18
    assert stream.getvalue().count(offsets) == 1
    far = offsets[:4] + (2**30).to_bytes(4, "little") + offsets[8:]
    put(tmp_path, "medqa/train.arrow", stream.getvalue().replace(offsets, far))
    assert "expected valid Parquet or Arrow data, found Offset invariant failure" in refused(tmp_path)


def test_json_columns_of_datasets_are_read(tmp_path):
    """`datasets` keeps what it cannot give one type, such as options of several kinds, as JSON text."""
    features = datasets.Features(
        {name: datasets.Value("string") for name in MEDQA[0]} | {"options": datasets.Json()}
    )
    datasets.Dataset.from_list(MEDQA, features=features).save_to_disk(tmp_path / "medqa/train")
    assert questions(tmp_path) == EXPECTED


def snapshot(folder, revision, content):
    """The layout of the hub's cache: snapshots hold links to blobs."""
    blob = put(folder, f"blobs/{revision}", content)
    link = folder / f"snapshots/{revision}/data/train-00000-of-00001.parquet"
    link.parent.mkdir(parents=True)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return blob


def test_a_linked_folder_of_the_hubs_cache_is_read(tmp_path):
    cache, data = tmp_path / "hub/datasets--GBaker--MedQA", tmp_path / "data"
    blob = snapshot(cache, "0fb93dd", parquet(MEDQA))
    put(cache, "refs/main", "0fb93dd")
    data.mkdir()
    (data / "medqa").symlink_to(cache)
    assert questions(data) == EXPECTED
    snapshot(cache, "1ab93dd", parquet(MEDQA))
    assert refused(data) == (
        "medqa/snapshots: expected one revision, found 0fb93dd, 1ab93dd; "
        "link the one you mean (snapshots/REVISION) as medqa"
    )
    (data / "medqa").unlink()
    (data / "medqa").symlink_to(cache / "snapshots/0fb93dd")
    blob.unlink()
    assert "cannot be read (No such file or directory); it is missing, or a link" in refused(data)


def test_a_linked_sub_folder_is_followed_and_a_circle_is_not(tmp_path):
    put(tmp_path, "elsewhere/rows.jsonl", LINES)
    (tmp_path / "medqa").mkdir()
    (tmp_path / "medqa/train").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "medqa")
    (tmp_path / "medqa/self").symlink_to(tmp_path / "medqa")
    assert data_files(tmp_path / "medqa") == [tmp_path / "medqa/train/rows.jsonl"]
    assert questions(tmp_path) == EXPECTED


# Refused


LATIN = '{"question": "café"}\n'.encode("latin-1")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "train.parquet",
            POINTER,
            ": expected rows, found a Git LFS pointer, not the data; run `git lfs pull`",
        ),
        (
            "train.jsonl",
            POINTER,
            ": expected rows, found a Git LFS pointer, not the data; run `git lfs pull`",
        ),
        (
            "train.jsonl.gz",
            gzip.compress(LINES.encode())[:-9],
            ": cannot be read (Compressed file ended before",
        ),
        (
            "train.jsonl.xz",
            lzma.compress(LINES.encode())[:-9],
            ": cannot be read (Compressed file ended before",
        ),
        (
            "train.jsonl.zst",
            zstd(LINES.encode())[:-9],
            ": cannot be read (Truncated compressed stream); fetch",
        ),
        (
            "train.jsonl.gz",
            gzip.compress(LINES.encode() + LATIN),
            ", line 6: expected UTF-8, found byte 0xe9",
        ),
        ("train.jsonl", LINES.replace("\n", "\r").encode() + LATIN, ", line 6: expected UTF-8, found byte"),
        ("train.csv", CSV.encode() + b"caf\xe9,a,b,c\n", ", line 7: expected UTF-8, found byte 0xe9; save"),
        ("train.parquet.gz", gzip.compress(parquet(MEDQA)), ": expected valid Parquet or Arrow data"),
        (
            "train.jsonl",
            archive("zip"),
            ": expected rows, found a zip archive (or an Excel sheet); unpack it",
        ),
        ("train.jsonl.gz", archive("tar"), ": expected rows, found a tar archive; unpack it"),
        (
            "train.jsonl",
            "<!DOCTYPE html>\n<html>" + "x" * 9_000,
            ": expected rows, found a web page, not the data",
        ),
        (
            "train.parquet",
            "\n<html>" + "x" * 9_000,
            ": expected rows, found a web page, not the data; download",
        ),
        ("train.csv", '<?xml version="1.0"?><Error>', ": expected rows, found an XML page, not the data"),
        (
            "train.jsonl",
            "Entry not found",
            ", line 1: expected valid JSON, found Expecting value (column 1, near",
        ),
        (
            "train.csv",
            "404: Not Found",
            ": expected rows, found none; fetch or write it again",
        ),
        ("train.parquet", "Entry not found", ": expected valid Parquet or Arrow data, found"),
        ("train.jsonl", LINES.encode("utf-16"), ": expected rows, found UTF-16 text; save the file as UTF-8"),
        (
            "train.jsonl",
            LINES.encode("utf-16-le"),
            ": expected rows, found zero bytes, so not UTF-8 text",
        ),
        ("train.jsonl", parquet(MEDQA), ": expected rows, found a Parquet file; name it .parquet"),
        (
            "train.jsonl",
            LINES + "\0" * 900,
            ", line 6: expected valid JSON, found Expecting value (column 1, near",
        ),
        ("train.jsonl", LINES.replace("\n", ",\n"), "found Extra data (column 159, near"),
        (
            "train.json",
            json.dumps(MEDQA)[:-1] + ",]",
            ", line 1: expected valid JSON, found Expecting value (col",
        ),
        ("train.jsonl", LINES[:-30], ", line 5: expected valid JSON, found Unterminated string starting at"),
        (
            "train.json",
            json.dumps(MEDQA)[:-30],
            "found Unterminated string starting at (column 760, near",
        ),
        (
            "train.jsonl",
            LINES + "y" * 500_000,
            ", line 6: expected valid JSON, found Expecting value (column 1",
        ),
        (
            "train.jsonl",
            str(MEDQA[0]),
            "found Expecting property name enclosed in double quotes (column 2, near",
        ),
        (
            "train.jsonl",
            LINES + '{"question": 1, "question": 2}',
            ", line 6: expected valid JSON, found the name 'question' twice in one object",
        ),
        (
            "train.json",
            '[{"a": 1},\n{"a": 1, "a": 2}]',
            ": expected valid JSON, found the name 'a' twice in one object",
        ),
        (
            "train.csv",
            "question,question\na,b\n",
            ": two columns are called 'question'; rename or remove one",
        ),
        (
            "train.csv",
            CSV + '"never closed,a,b,c\n',
            ", row 6: expected separated cells, found unexpected end",
        ),
        ("train.csv", CSV + "a,b\n", ", row 6: expected 4 cells as in the header, found 2; quote the cells"),
        ("train.csv", TABLE.to_csv(), ", row 1: expected JSON in the cell, found"),
        ("train.json", TABLE.to_json(orient="split"), ", found columns, data, index: not a MedQA"),
        ("train.json", TABLE.to_json(orient="table"), ", found data, schema: not a MedQA"),
        (
            "train.json",
            TABLE.to_json(orient="values"),
            ", row 1: expected a row of named columns, found list",
        ),
        ("train.json", json.dumps(TABLE.to_dict("list")), ", line 1: expected options as a struct"),
        ("train.jsonl", json.dumps({f"c{i}": i for i in range(9_000)}), ", found c0, c1, c10, c100"),
        ("train.jsonl", json.dumps({"c" * 9_000: 1}), ", found ccccc"),
        (
            "train.jsonl",
            json.dumps(MEDQA[0] | {"options": "x" * 9_000}),
            ", line 1: expected JSON in the cell, found",
        ),
        (
            "train.jsonl",
            json.dumps(MEDQA[0] | {"options": [[["x"]]] * 9_000}),
            ", line 1: expected options as a",
        ),
        ("train.json", "[" * 900 + "]" * 900, ", row 1: expected a row of named columns, found list [["),
        ("train.jsonl", '["\\ud83d\\n"]', ", row 1: expected a row of named columns, found str '\\ud83d\\n'"),
        ("train.json", "[]", ": expected rows, found none; fetch or write it again"),
        (
            "train.parquet",
            parquet(MEDQA)[:-50],
            ": expected valid Parquet or Arrow data, found Parquet magic",
        ),
        (
            "train.parquet",
            parquet(pyarrow.table({"question": undecoded([b"a", b"caf\xe9"]), "answer": ["x", "y"]})),
            ", row 2, column question: expected UTF-8; write the column's text again",
        ),
        (
            "train.parquet",
            parquet(
                pyarrow.table(
                    {
                        "question": [str(i) for i in range(5_000)],  # past the first batch of 4,096
                        "answer_idx": ["A"] * 5_000,
                        "options": pyarrow.StructArray.from_arrays(
                            [undecoded([b"a"] * 4_499 + [b"\xff"] + [b"a"] * 500)], ["A"]
                        ),
                    }
                )
            ),
            ", row 4500, column options: expected UTF-8",
        ),
        (
            "train.parquet",
            parquet(pyarrow.table([["a"], ["b"]], names=["question", "question"])),
            ": two columns are called 'question'",
        ),
        ("train.arrow", b"junk" * 99, ": expected valid Parquet or Arrow data, found "),
    ],
)
def test_what_cannot_be_read_is_one_short_line_with_the_place_and_the_fix(tmp_path, name, content, expected):
    put(tmp_path, f"medqa/{name}", content)
    message = refused(tmp_path)
    assert message.startswith(f"medqa/{name}") and expected in message


def test_undecoded_text_within_a_list_names_the_column(tmp_path):
    lists = pyarrow.ListArray.from_arrays([0, 2, 3], undecoded([b"a", b"b", b"\xff"]))
    put(tmp_path, "medqa/train.parquet", parquet(pyarrow.table({"options": lists})))
    assert refused(tmp_path).startswith("medqa/train.parquet, after row 0, column options: expected UTF-8;")


def test_undecoded_text_in_a_save_to_disk_folder(tmp_path):
    table = pyarrow.table({"question": undecoded([b"a", b"b", b"caf\xe9"])})
    datasets.Dataset(table).save_to_disk(tmp_path / "medqa/train")
    assert refused(tmp_path).startswith("medqa/train, row 3, column question: expected UTF-8; write")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("train.zip", "no .jsonl, .json, .csv or .parquet file but train.zip; put the files there, unpacked"),
        ("train.tar.gz", "no .jsonl, .json, .csv or .parquet file but train.tar.gz; put the files"),
        (
            "train.jsonl/notes.md",
            "no .jsonl, .json, .csv or .parquet file but notes.md; put the files there",
        ),
        ("rows.jsonl", "found medqa/rows.jsonl; rename the file or its folder"),
    ],
)
def test_a_folder_without_a_file_of_the_part_says_what_it_holds(tmp_path, name, found):
    put(tmp_path, f"medqa/{name}", archive("zip"))
    assert found in refused(tmp_path)


def test_what_the_system_does_not_let_be_read(tmp_path, monkeypatch):
    put(tmp_path, "medqa", "a file, not a folder")
    assert refused(tmp_path) == (
        "medqa: cannot be read (Not a directory); put the files into a folder of that name"
    )
    (tmp_path / "medqa").unlink()
    train = put(tmp_path, "medqa/train.jsonl", LINES)
    os.mkfifo(tmp_path / "medqa/train_pipe.jsonl")  # opening it would wait for ever
    assert questions(tmp_path) == EXPECTED

    def forbidden(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    for method, named in (("open", "medqa/train.jsonl"), ("iterdir", "medqa")):
        with monkeypatch.context() as patched:
            patched.setattr(type(train), method, forbidden)
            message = refused(tmp_path)
        assert message == f"{named}: cannot be read (Permission denied); allow this user to read it (chmod)"
    train.unlink()
    train.symlink_to("/proc/self/mem")  # a regular file whose reading fails
    assert refused(tmp_path).startswith("medqa/train.jsonl: cannot be read (Input/output error)")


def test_names_that_no_terminal_prints_are_escaped(tmp_path):
    name = os.fsdecode(b"train_caf\xe9\n.jsonl")
    put(tmp_path, f"medqa/{name}", "{")
    assert refused(tmp_path).startswith("medqa/train_caf\\udce9\\n.jsonl")


# NaN and null


def raw(row: dict) -> str:
    """JSON as Python and pandas-fed writers put it: a bare NaN."""
    line = json.dumps(row) + "\n"
    assert "NaN" in line
    return line


NAN = float("nan")
HF = {"id": "q-1", "sent1": "Which bone?", "sent2": "", "label": 1} | {
    f"ending{i}": f"bone {i}" for i in range(4)
}


@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv", "saved"])
def test_nan_is_null_in_every_form(tmp_path, form):
    changes = [
        {"sent2": NAN, "ending4": NAN},
        {"id": NAN},
        {"ending1": NAN},
        {"sent1": NAN},
        {"label": NAN},
    ]
    table = [HF | {"sent1": f"Q{i}?", "ending4": None} | change for i, change in enumerate(changes)]
    if form == "jsonl":
        put(tmp_path, "medqa/train.jsonl", "".join(map(raw, table)))
    elif form == "csv":
        put(tmp_path, "medqa/train.csv", pandas.DataFrame(table).to_csv(index=False, na_rep="nan"))
    else:  # NaN in a column of numbers stays NaN in Arrow, in a column of texts it is null
        columns = {name: [None if v != v else v for v in (r[name] for r in table)] for name in table[0]}
        columns["label"] = pyarrow.array([1.0, 1.0, 1.0, 1.0, NAN])
        columns["ending4"] = pyarrow.array([NAN] * 5)
        if form == "parquet":
            put(tmp_path, "medqa/train.parquet", parquet(pyarrow.table(columns)))
        else:
            datasets.Dataset(pyarrow.table(columns)).save_to_disk(tmp_path / "medqa/train")
    loaded = load("medqa", "train", tmp_path, progress=False)
    assert [(record.id, record.question) for record in loaded.records] == [
        ("q-1", "Q0?"),
        ("medqa-train-000001", "Q1?"),
    ]
    assert loaded.dropped == {"empty option": 1, "empty question": 1, "label is not 0-3": 1}  # 5 - 3 = 2
    assert "nan" not in repr(loaded.records).lower()


def test_nan_in_every_source(tmp_path):
    talk = "Doctor: Good day.\nPatient: I cough.\nDoctor: Rest well."
    pubmed = {
        "question": "Does it?",
        "context": {"contexts": ["It did."]},
        "final_decision": "yes",
        "pubid": 7,
    }
    exam = {"question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 0}
    put(tmp_path, "notechat/a.jsonl", raw({"data": NAN, "conversation": talk}) + raw({"conversation": NAN}))
    put(
        tmp_path,
        "pubmedqa/pqa_labeled.jsonl",
        json.dumps(pubmed)
        + "\n"
        + raw(pubmed | {"context": NAN})
        + raw(pubmed | {"context": {"contexts": NAN}})
        + raw(pubmed | {"final_decision": NAN})
        + raw(pubmed | {"pubid": 8, "context": {"contexts": ["It did.", NAN]}}),
    )
    put(
        tmp_path,
        "medmcqa/dev.jsonl",
        raw(exam | {"ope": NAN, "id": NAN, "subject_name": NAN}) + raw(exam | {"opd": NAN}),
    )
    put(tmp_path, "icliniq/a.jsonl", raw({"input": NAN, "answer_icliniq": "Rest."}) + json.dumps(
        {"input": "My ear hurts.", "answer_icliniq": "Keep it dry."}))  # fmt: skip
    notechat = load("notechat", "train", tmp_path, progress=False)
    assert (notechat.records[0].note, notechat.dropped) == ("", {"conversation is not text": 1})
    labelled = load("pubmedqa", "eval", tmp_path, progress=False)
    assert [(record.id, record.context) for record in labelled.records] == [
        ("7", "It did."),
        ("8", "It did."),
    ]
    assert labelled.dropped == {"no context": 2, "final_decision is not text": 1}
    dev = load("medmcqa", "eval", tmp_path, progress=False)
    assert [(record.id, record.group) for record in dev.records] == [("medmcqa-eval-000000", "")]
    assert dev.dropped == {"empty option": 1}
    assert load("icliniq", "eval", tmp_path, progress=False).dropped == {"input is not text": 1}


@pytest.mark.parametrize(
    "options",
    [
        OPTIONS | {"E": None},
        OPTIONS | {"E": NAN, "F": None},
        OPTIONS | {"E": ""},
        [{"key": k, "value": v} for k, v in (OPTIONS | {"E": None}).items()],
        [*({"key": k, "value": v} for k, v in OPTIONS.items()), {"key": None, "value": None}, None],
        json.dumps(OPTIONS | {"E": NAN}),
    ],
)
def test_nulls_that_pad_a_struct_are_no_options(tmp_path, options):
    put(tmp_path, "medqa/train.jsonl", json.dumps(MEDQA[0] | {"options": options}))
    assert load("medqa", "train", tmp_path, progress=False).records[0].options == tuple(OPTIONS.values())


def test_five_real_options_and_an_infinite_one_are_no_less_refused(tmp_path):
    put(
        tmp_path,
        "medqa/train.jsonl",
        LINES + json.dumps(MEDQA[0] | {"options": OPTIONS | {"E": "the femur"}}),
    )
    assert "line 6: expected the four options A-D, found 5 (ABCDE)" in refused(tmp_path)
    put(tmp_path, "medqa/train.jsonl", LINES + json.dumps(HF | {"ending4": "bone 4"}))
    assert "line 6: expected the columns" in refused(tmp_path)
    put(
        tmp_path,
        "medqa/train.jsonl",
        json.dumps(HF | {"ending4": None}) + "\n" + json.dumps(HF | {"ending4": "x"}),
    )
    assert "line 2: expected ending0 to ending3, found a fifth option" in refused(tmp_path)
    put(
        tmp_path,
        "medqa/train.jsonl",
        LINES + json.dumps(MEDQA[0] | {"options": OPTIONS | {"D": float("inf")}}),
    )
    assert load("medqa", "train", tmp_path, progress=False).dropped == {"option is not text": 1}


@pytest.mark.parametrize(
    ("value", "id"),
    [
        (7, "7"),
        (7.0, "7"),
        ("7", "7"),
        ("7.0", "7"),
        (" q-1 ", "q-1"),
        (None, ""),
        ("", ""),
        (1.5, "1.5"),
        ("007", "007"),
        (Decimal("21645374"), "21645374"),
    ],
)
def test_an_id_is_the_same_from_every_form(value, id):
    assert converters.identifier(value) == id


@given(st.integers(0, 2**50))
def test_an_id_that_was_made_a_float_is_the_id(number):
    assert converters.identifier(float(number)) == converters.identifier(str(float(number))) == str(number)


@given(st.recursive(st.floats() | st.text() | st.none(), lambda x: st.lists(x, max_size=3), max_leaves=9))
def test_without_nan_changes_nothing_but_nan(value):
    def same(before, after):
        if isinstance(before, list):
            return len(before) == len(after) and all(map(same, before, after))
        return after is None if isinstance(before, float) and math.isnan(before) else before == after

    assert same(value, converters.without_nan(value, depth=99))


def test_the_official_fold_is_found_when_pandas_made_the_ids_floats(tmp_path):
    inside = min(OFFICIAL_TEST_PMIDS)
    row = {"question": "Does it?", "context": {"contexts": ["It did."]}, "final_decision": "yes"}
    frame = pandas.DataFrame([row | {"pubid": inside}, row | {"pubid": None, "question": "And this?"}])
    assert frame["pubid"].dtype == float
    put(tmp_path, "pubmedqa/pqa_labeled.json", frame.to_json(orient="records", lines=True))
    records = load("pubmedqa", "eval", tmp_path, progress=False).records
    assert [(record.id, record.group) for record in records] == [
        (str(inside), "fold"),
        ("pubmedqa-eval-000001", ""),
    ]


# Through the command line


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train.jsonl", POINTER),
        ("train.jsonl", archive("zip")),
        ("train.jsonl", LINES.encode("utf-16")),
        ("train.jsonl.gz", gzip.compress(LINES.encode())[:-9]),
        ("train.parquet", parquet(pyarrow.table({"question": undecoded([b"\xff"])}))),
        ("train.parquet", parquet(MEDQA)[:-50]),
        ("train.json", TABLE.to_json(orient="split")),
        ("train.json", "[" * 900 + "]" * 900),
        ("train.jsonl", '["\\ud83d\\n"]'),
        (os.fsdecode(b"train_\xe9\n.jsonl"), "{"),
        ("train/state.json", "{"),
        ("train.csv", b"question,answer\n" + b"\xe9,b\n"),
    ],
)
def test_check_ends_in_one_line_a_part_and_exit_code_2(tmp_path, capsys, tiny_llama_folder, name, content):
    put(tmp_path, f"medqa/{name}", content)
    if name == "train/state.json":
        put(tmp_path, "medqa/train/dataset_info.json", "[]")
    arguments = ["--data-dir", str(tmp_path), "--set", f"model.base={tiny_llama_folder}"]
    assert main(["check", "cpu", *arguments]) == 2
    out, err = capsys.readouterr()
    line = next(line for line in out.splitlines() if "data medqa train" in line)
    out.encode()
    assert line.startswith("fail") and ("medqa/train" in line) and "Traceback" not in out + err
    assert len(out.splitlines()) == len(
        [line for line in out.splitlines() if line[:4] in ("pass", "warn", "fail")]
    )


def test_check_of_a_data_folder_that_cannot_be_entered(tmp_path, capsys):
    assert main(["check", "cpu", "--data-dir", "x" * 5_000]) == 2
    assert "is not a folder" in capsys.readouterr().err
