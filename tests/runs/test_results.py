"""A run's folder: files that are whole, names that stay inside, one writer, and runs that do not mix."""

import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medkit import MedkitError, recipes
from medkit.data import sources
from medkit.runs import inputs, machine, run_json, storage
from medkit.runs.storage import ResultsError


@pytest.fixture
def place(tmp_path, monkeypatch):
    """results/try in an empty working folder; not made."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDKIT_RESULTS", raising=False)
    monkeypatch.delenv("MEDKIT_RUNNER", raising=False)
    return tmp_path / "results" / "try"


def test_json_is_strict_and_takes_what_numpy_gives(tmp_path):
    content = {
        "n": np.int64(3),
        "p": np.float64(0.5),
        "none": float("nan"),
        "row": np.array([1, 2]),
        "é": {3, 1},
    }
    path = storage.write_json(tmp_path / "new" / "x.json", content)
    assert json.loads(path.read_text()) == {"n": 3, "p": 0.5, "none": None, "row": [1, 2], "é": [1, 3]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(path, {"p": float("inf")})
    assert json.loads(path.read_text())["n"] == 3  # what it held before is kept


def test_csv_reads_back_as_the_same_numbers(tmp_path):
    frame = pd.DataFrame({"model": ["base", "a,b"], "loss": [1 / 3, 1e-300]})
    path = storage.write_csv(tmp_path / "loss.csv", frame)
    pd.testing.assert_frame_equal(pd.read_csv(path, float_precision="round_trip"), frame)


def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_beside_it(tmp_path):
    path = storage.write_text(tmp_path / "summary.json", "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ResultsError, match=r"cannot write .*summary\.json"):
            storage.write_text(path, "x" * 1001)
        with pytest.raises(ResultsError, match=r"cannot write .*rows\.jsonl"):
            storage.append_jsonl(tmp_path / "rows.jsonl", "x" * 1001)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    storage.append_jsonl(tmp_path / "rows.jsonl", 1)
    assert storage.read_jsonl(tmp_path / "rows.jsonl") == [1]  # not what was cut short before it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl", "summary.json"]


WRITER = """
import sys
from medkit.runs import storage
for turn in range(10**9):
    storage.write_json(sys.argv[1], [turn] * 20000)
"""


def test_a_kill_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "x.json"
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
    while not path.exists():
        time.sleep(0.01)
    for _ in range(50):  # each read is one at any moment of the writing too
        rows = json.loads(path.read_text())
        assert len(rows) == 20_000
        assert len(set(rows)) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(json.loads(path.read_text())) == 20_000


def test_a_line_cut_short_is_no_row_and_is_dropped_before_the_next(tmp_path):
    path = tmp_path / "answers.jsonl"
    assert storage.read_jsonl(path) == []
    storage.append_jsonl(path, {"id": 1, "text": "a\u2028b"}, {"id": 2})
    with open(path, "a") as file:
        file.write('{"id": 3, "te')
    assert [row["id"] for row in storage.read_jsonl(path)] == [1, 2]
    storage.append_jsonl(path, {"id": 4})
    assert [row["id"] for row in storage.read_jsonl(path)] == [1, 2, 4]
    assert storage.read_jsonl(path)[0]["text"] == "a\u2028b"


@pytest.mark.parametrize("name", ["try", "results/try", "a" * 64, "0.x_y-z"])
def test_run_names_that_are_taken(place, name):
    assert storage.folder(name).parent == place.parent


@pytest.mark.parametrize(
    "name", ["", ".", "..", "Try", ".try", "-try", "a" * 65, "a b", "try\n", "é", "results/..", "try/.."]
)
def test_run_names_that_are_not(place, name):
    with pytest.raises(ResultsError, match="is not a valid run name"):
        storage.folder(name)


@pytest.mark.parametrize("path", ["/etc/try", "../try", "results/a/try", "other/try", "results/../try"])
def test_paths_outside_results(place, path):
    with pytest.raises(ResultsError, match="is outside results"):
        storage.folder(path)


def test_a_link_out_of_results_is_outside(place, tmp_path):
    place.parent.mkdir()
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResultsError, match="is outside"):
        storage.folder("try")


@given(st.text())
def test_no_text_leads_out_of_results(text):
    try:
        found = storage.folder(text)
    except ValueError as error:  # ResultsError, or a null byte that no path may hold
        assert isinstance(error, ResultsError) or "\0" in text
    else:
        assert found.parent == storage.root()


def test_where_results_lie(place, tmp_path, monkeypatch):
    assert storage.root() == tmp_path / "results"
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / "there"))
    assert storage.folder("results/try") == tmp_path / "there" / "try"
    assert storage.folder(tmp_path / "there" / "try") == tmp_path / "there" / "try"
    monkeypatch.delenv("MEDKIT_RESULTS")
    monkeypatch.chdir(machine.CHECKOUT / "tests")  # as a notebook of the checkout stands in notebooks/
    assert storage.root() == machine.CHECKOUT / "results"


def test_what_is_missing_names_the_notebook_that_writes_it(place):
    place.mkdir(parents=True)
    (place / "stage1").mkdir()
    assert storage.require("try", ["stage1"]) == place
    with pytest.raises(
        ResultsError, match="results/try/stage2/adapter is missing; run notebook 02_stage2 first"
    ):
        storage.require("results/try", ["stage1", "stage2/adapter", "mcq/items.csv"])
    with pytest.raises(ResultsError, match="02_stage2 with replay=False"):
        storage.require("try", ["stage2_noreplay/adapter"])


HOLDER = """
import sys, time
from medkit.runs import storage
with storage.lock(storage.folder("try")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_lock_names_its_holder_and_goes_with_it(place):
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ResultsError, match=f"being written by process {process.pid};"), storage.lock(place):
        pass
    process.kill()
    process.communicate()
    with storage.lock(place):
        assert (place.parent / ".try.lock").read_text() == str(os.getpid())
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EIO])
def test_a_file_system_without_locks_is_one_line(place, monkeypatch, code):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(storage.fcntl, "flock", refused)
    for writes in (
        lambda: storage.lock(place).__enter__(),
        lambda: run_json.begin("try", "01_stage1", "cpu"),
    ):
        with pytest.raises(ResultsError, match=r"files cannot be locked in results \(") as said:
            writes()
        assert "set MEDKIT_RESULTS to a folder on another file system" in str(said.value)
        assert "\n" not in str(said.value)
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("root", ["file", "file/below", "/proc/medkit", "dangling"])
def test_results_that_cannot_be_written_are_one_line(tmp_path, monkeypatch, root):
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "file" / "below")
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / root))
    monkeypatch.delenv("MEDKIT_RUNNER", raising=False)
    with pytest.raises(ResultsError, match="set MEDKIT_RESULTS to a writable folder") as said:
        run_json.begin("try", "01_stage1", "cpu")
    assert "\n" not in str(said.value)


def test_a_full_disk_does_not_keep_the_lock_from_being_held(place, monkeypatch):
    """Only the number in it is missing."""

    class Full(io.FileIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("builtins.open", lambda path, *_, **__: Full(path, "a+"))
    with storage.lock(place):
        monkeypatch.undo()
        with pytest.raises(ResultsError, match="by process unknown"), storage.lock(place):
            pass


# What papermill's -p makes of 2026, 1e5, true, None and [1].
@pytest.mark.parametrize("value", [2026, 1e5, True, None, [1]])
def test_a_run_dir_that_papermill_made_a_number(place, value):
    for name, arguments in (
        ("run_dir", {"run_dir": value}),
        ("recipe", {"run_dir": "try", "recipe": value}),
        ("settings", {"run_dir": "try", "recipe": "cpu", "settings": value}),
        ("data_dir", {"run_dir": "try", "recipe": "cpu", "data_dir": value}),
    ):
        if value is None and name != "run_dir":
            continue
        with pytest.raises(
            ResultsError, match=rf"^{name}={re.escape(repr(value))} is \w+, not text; quote it"
        ):
            run_json.begin(**{"notebook": "01_stage1", **arguments})
    assert not place.parent.exists()


def test_a_model_that_papermill_made_a_number(place):
    from medkit.evaluate import mcq

    for name, arguments in (("model", (135,)), ("adapter", ("m", 7))):
        with pytest.raises(ResultsError, match=f"{name}=.* is int, not text"):
            mcq.begin("try", "", *arguments)


def test_a_working_folder_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for root in (None, "relative"):
        monkeypatch.delenv("MEDKIT_RESULTS", raising=False)
        if root:
            monkeypatch.setenv("MEDKIT_RESULTS", root)
        with pytest.raises(MedkitError, match="the working folder is gone"):
            run_json.begin("try", "01_stage1", "cpu")
    assert storage.relpath(tmp_path) == str(tmp_path)  # a message that names a path is still made


def test_a_notebook_begins_finishes_and_the_next_finds_it(place):
    run = run_json.begin("results/try", "01_stage1", "cpu", "stage1.learning_rate=1e-4")
    assert run.recipe == recipes.get("cpu", {"stage1.learning_rate": "1e-4"})
    held = json.loads((place / "run.json").read_text())
    assert held["status"] == "running"
    assert held["notebooks"]["01_stage1"]["status"] == "running"
    run.use_data({"medqa/train.jsonl": "ab12"})
    run.finish(tokens_per_s=250.0)
    entry = run_json.read(place)["notebooks"]["01_stage1"]
    assert entry["status"] == "complete"
    assert entry["tokens_per_s"] == 250.0
    assert entry["seconds"] >= 0
    assert 0.01 < entry["peak_memory_gb"] < 100  # a Python with pandas holds more than 10 MiB
    assert run_json.read(place)["status"] == "complete"

    later = run_json.begin("try", "03_mcq_eval")  # no recipe: the run's own
    assert later.recipe == run.recipe
    with pytest.raises(ResultsError, match=r"medqa/train\.jsonl has changed since this run started"):
        later.use_data({"medqa/train.jsonl": "cd34"})
    later.finish()
    assert run_json.read(place)["data"]["hashes"] == {"medqa/train.jsonl": "ab12"}


@pytest.mark.parametrize(
    ("again", "said"),
    [
        (("paper", "", ""), "is a run with recipe=cpu, not paper"),
        (("cpu", "stage1.seed=77", ""), f"stage1.seed={recipes.get('cpu').stage1.seed}, not 77"),
        (("cpu", "lora.r=3", ""), f"lora.r={recipes.get('cpu').lora.r}, not 3"),
        (("cpu", "", "."), "data origin=builtin, not folder"),
        (("", "", "."), "read its rows from the builtin; leave data_dir empty"),
    ],
)
def test_runs_that_differ_are_not_mixed(place, again, said):
    run_json.begin("try", "01_stage1", "cpu").finish()
    before = (place / "run.json").read_bytes()
    with pytest.raises(ResultsError) as refused:
        run_json.begin("try", "02_stage2", *again)
    assert said in str(refused.value)
    assert (place / "run.json").read_bytes() == before


def test_a_run_on_a_folder_of_rows_wants_it_again(place):
    run_json.begin("try", "01_stage1", "cpu", "", ".").finish()
    with pytest.raises(ResultsError, match="set data_dir to that folder"):
        run_json.begin("try", "03_mcq_eval")
    run_json.begin("try", "05_report", data_dir=None).finish()  # the report reads no rows


def test_no_run_and_no_recipe_or_a_broken_description(place):
    with pytest.raises(ResultsError, match="results/try is not a run; run notebook 01_stage1 first"):
        run_json.begin("try", "03_mcq_eval")
    assert not place.exists()
    place.mkdir(parents=True)
    for text in ("", "[]", "{}", '{"schema": '):
        (place / "run.json").write_text(text)
        with pytest.raises(ResultsError, match="is not a valid run"):
            run_json.read(place)
    (place / "run.json").write_text('{"schema": 1, "recipe": {}, "data": {}}')
    with pytest.raises(ResultsError, match="is not a valid run"):
        run_json.read(place)
    (place / "run.json").write_text('{"schema": 99}')
    with pytest.raises(ResultsError, match="has schema 99, not 1"):
        run_json.read(place)


def test_a_run_of_an_earlier_version_opens(place):
    """Its recipe has fields that are gone; what is left of it is the same recipe."""
    info = run_json.describe("cpu")
    old = info | {
        "recipe": info["recipe"] | {"mcq": info["recipe"]["mcq"] | {"temperature": 0.0, "top_p": 1.0}}
    }
    storage.write_json(place / "run.json", old)
    assert run_json.read(place)["recipe"] == info["recipe"]
    assert run_json.begin("try", "03_mcq_eval", "cpu").recipe == run_json.recipes.get("cpu")


@pytest.mark.parametrize("name, recipe", [("cpu", "cpu"), ("smollm2-real", "recommended")])
def test_the_committed_runs_open(name, recipe, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(machine.CHECKOUT / "results"))
    assert run_json.for_reading(f"results/{name}").recipe.name == recipe


def test_a_run_that_goes_on_elsewhere_says_so(place):
    info = run_json.describe("cpu")
    info["versions"]["numpy"] = "0.1"
    storage.write_json(place / "run.json", info)
    run_json.begin("try", "03_mcq_eval").finish()
    (part,) = run_json.read(place)["continued"]
    assert part["versions"] == run_json.machine.versions() and info["versions"] != part["versions"]
    run_json.begin("try", "03_mcq_eval").finish()  # and not again where nothing has changed since
    assert run_json.latest(run_json.read(place)) == part and len(run_json.read(place)["continued"]) == 1


def test_what_a_notebook_goes_on_from_is_asked_for_before_it_writes(place):
    storage.write_json(place / "run.json", run_json.describe("cpu"))
    before = (place / "run.json").read_bytes()
    with pytest.raises(ResultsError, match="stage1/adapter"):
        run_json.begin("try", "02_stage2", needs=["stage1/adapter/adapter_model.safetensors"])
    assert (place / "run.json").read_bytes() == before


def test_a_notebook_run_twice_in_one_kernel_does_not_lock_itself_out(place):
    run_json.begin("try", "01_stage1", "cpu")  # its last cell never came
    run_json.begin("try", "01_stage1", "cpu").finish()
    assert not (place.parent / ".try.lock").exists()


def test_what_a_result_depends_on():
    described = run_json.describe("cpu")
    assert described["versions"]["torch"].startswith("2.13.0")
    assert described["seeds"]["stage1"] == described["recipe"]["stage1"]["seed"]
    assert described["hardware"]["cores"] >= 1
    assert described["hardware"]["memory_gb"] > 0.5
    text = json.dumps(described)
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4
    assert str(machine.CHECKOUT) not in text


def test_a_name_that_is_cut_is_still_its_own():
    first, second = (storage.slug(f"compare-{'a' * 60}-{end}") for end in "bc")
    assert first != second and len(first) == len(second) == 64
    assert storage.slug("mcq-Org/My_Model 8B!") == "mcq-org-my_model-8b"


def test_an_adapter_is_evaluated_as_its_run_trained_it(place):
    lines = "model.chat_template=chatml\ndata.pubmedqa_train=labelled_outside_fold"
    storage.write_json(place / "trained" / "run.json", run_json.describe("recommended", lines))
    assert run_json.settings_of_adapter(str(place / "trained" / "stage2" / "adapter")) == {
        "model.chat_template": "chatml",
        "data.mcq_target": "letter",
        "data.pubmedqa_train": "labelled_outside_fold",
    }
    assert run_json.settings_of_adapter("") == run_json.settings_of_adapter("/adapter") == {}


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MEDKIT_RESULTS", "~/runs")
    monkeypatch.setenv("MEDKIT_CACHE", "~/cache")
    assert storage.root() == tmp_path / "runs" and machine.cache_dir() == tmp_path / "cache"
    (tmp_path / "rows").mkdir()
    inputs.check_data_dir("~/rows")
    with pytest.raises(MedkitError, match=r"no folder medqa in .*rows; put MedQA"):
        sources.load("medqa", "eval", "~/rows")
