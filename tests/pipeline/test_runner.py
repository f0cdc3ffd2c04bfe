"""The runner on tiny notebooks: what papermill would hide, resume, refusals, signals."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from medkit import MedkitError
from medkit.pipeline import notebooks, runner
from medkit.pipeline.notebooks import check_parameters
from medkit.pipeline.runner import RunFailed, Step
from medkit.pipeline.status import Status
from medkit.runs import run_json, storage

PARAMETERS = (
    'run_dir: str = "results/cpu"  # the run\'s folder\nn: int = 1\nshare: float = 0.5\nreplay: bool = True'
)


def notebook(path: Path, *sources: str, parameters: str = PARAMETERS, tag: str = "parameters") -> Path:
    cells = [nbformat.v4.new_markdown_cell("# A question")]
    cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": [tag]}))
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder; results go to its results/."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDKIT_RESULTS", raising=False)
    return tmp_path


def info(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


# The injected parameters are cell 3, after the title and the parameters themselves: sources begin at cell 4.
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import time\ntime.sleep(60)", "longer than 2 s"),
        ("import os\nos._exit(0)", "ended with exit code 0"),
        ("raise ValueError('three\\nlines\\nlong')", "ValueError: three lines long"),
    ],
    ids=["killed", "sys.exit", "timeout", "_exit", "raised"],
)
def test_a_notebook_that_did_not_end_is_a_failure_with_its_cell(place, source, said):
    path = notebook(place / "nb.ipynb", "1 + 1", source, "'never run'")
    failure = notebooks.execute(path, place / "out" / "nb.ipynb", {"n": 2}, {}, cell_timeout=2)
    assert failure.cell == 5
    assert said in failure.error
    assert "\n" not in failure.error
    executed = nbformat.read(place / "out" / "nb.ipynb", as_version=4)
    assert executed.metadata.papermill["exception"] is True
    assert executed.metadata.papermill["failure"]["cell"] == 5
    own = [c for c in executed.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    states = [c.metadata.papermill["status"] for c in own]
    assert states == ["completed"] * 4 + ["failed", "pending"]
    assert list((place / "out").iterdir()) == [place / "out" / "nb.ipynb"]


def test_an_executed_copy_holds_no_progress_bars_and_every_warning(place):
    source = (
        "import sys\nfrom tqdm import tqdm\n"
        "for _ in tqdm(range(3), desc='answers'): pass\n"
        "for _ in tqdm(iter('abc'), desc='rows', unit='row', leave=False): pass\n"
        "print('100% | done')\nprint('memory is short', file=sys.stderr)"
    )
    path = notebook(place / "nb.ipynb", source, "list(tqdm(range(2)))")
    assert notebooks.execute(path, place / "out" / "nb.ipynb", {"n": 2}, {}) is None
    with_both, only_bar = nbformat.read(place / "out" / "nb.ipynb", as_version=4).cells[-2:]
    streams = {o.name: o.text for o in with_both.outputs}
    assert streams == {"stdout": "100% | done\n", "stderr": "memory is short\n"}
    assert [o.output_type for o in only_bar.outputs] == ["execute_result"]


def test_an_unrun_cell_is_found_whatever_the_metadata_say():
    ran = nbformat.v4.new_code_cell("1", execution_count=1)
    unrun = nbformat.v4.new_code_cell("2", metadata={"papermill": {"status": "completed"}})
    blank = nbformat.v4.new_code_cell("  \n")
    assert notebooks.unfinished(nbformat.v4.new_notebook(cells=[ran, blank])) is None
    assert notebooks.unfinished(nbformat.v4.new_notebook(cells=[ran, blank, unrun])) == (
        3,
        "the cell was not run",
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"shuffle": True}, "no parameter 'shuffle'; it has run_dir, n, share, replay"),
        ({"n": "3"}, "n='3' is str, not int"),
        ({"n": True}, "n=True is bool, not int"),
        ({"share": "3e-4"}, "share='3e-4' is str, not float"),
        ({"share": (1, 2)}, "share=(1, 2) is tuple, not float"),
        ({"replay": 1}, "replay=1 is int, not bool"),
        ({"run_dir": None}, "run_dir=None is NoneType, not str"),
    ],
)
def test_parameters_are_checked_by_name_and_type(tmp_path, values, said):
    with pytest.raises(MedkitError) as refused:
        check_parameters(notebook(tmp_path / "nb.ipynb"), values)
    assert said in str(refused.value)


def test_parameters_that_fit(tmp_path):
    path = notebook(
        tmp_path / "n{b}.ipynb", parameters=PARAMETERS + "\nlimit: Optional[int] = None\nplain = 3"
    )
    check_parameters(
        path, {"run_dir": "results/x", "n": 3, "share": 3e-4, "replay": False, "limit": None, "plain": 4}
    )
    check_parameters(path, {"share": 1, "limit": 5})  # a whole number is a float
    with pytest.raises(MedkitError, match="plain='4' is str, not int"):
        check_parameters(path, {"plain": "4"})


def test_a_notebook_without_parameters_or_none_at_all(tmp_path):
    with pytest.raises(MedkitError, match="tag its parameters cell"):
        check_parameters(notebook(tmp_path / "nb.ipynb", tag="other"), {"n": 1})
    with pytest.raises(MedkitError, match="is not in"):
        check_parameters(tmp_path / "absent.ipynb", {})
    (tmp_path / "broken.ipynb").write_text("{")
    with pytest.raises(MedkitError, match="is not a notebook"):
        check_parameters(tmp_path / "broken.ipynb", {})


FIRST = """
import os, sys, pathlib
place = pathlib.Path(os.environ["MEDKIT_RESULTS"], pathlib.Path(run_dir).name)
(place / "stage1").mkdir(exist_ok=True)
with open(place / "stage1" / "adapter", "a") as file:
    file.write("x")
print(sys.executable, os.getcwd(), os.environ["HF_TOKEN"])
print("offline", os.environ["HF_HUB_OFFLINE"], os.environ["HF_DATASETS_OFFLINE"])
print("absolute", os.path.isabs(os.environ["UNSLOTH_COMPILE_LOCATION"]))
print("history", get_ipython().history_manager.enabled)
from tqdm.auto import tqdm
for _ in tqdm(range(3), desc="bar"):
    pass
from medkit.runs import run_json
run_json.begin(run_dir, "one").finish(tokens_per_s=250.0)
"""
SECOND = """
import os, pathlib
place = pathlib.Path(os.environ["MEDKIT_RESULTS"], pathlib.Path(run_dir).name)
assert (place / "stage1" / "adapter").exists()
if not replay and not pathlib.Path("fixed").exists():
    raise RuntimeError("not fixed")
"""
STEPS = (
    Step("01", "one", ("run_dir",), writes=("stage1/adapter",)),
    Step("02", "two", ("run_dir",), {"replay": True}, ("stage1/adapter",)),
    Step("02", "two", ("run_dir",), {"replay": False}, ("stage1/adapter",), suffix="_noreplay"),
)


def call(place: Path, **options) -> tuple[Path, str]:
    out = io.StringIO()
    return runner.run("cpu", steps=STEPS, folder=place / "notebooks", out=out, **options), out.getvalue()


def test_a_run_fails_is_resumed_and_is_replaced(place, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    notebook(place / "notebooks" / "one.ipynb", FIRST)
    notebook(place / "notebooks" / "two.ipynb", SECOND)
    run = place / "results" / "demo"

    with pytest.raises(RunFailed, match="two_noreplay, cell 4: RuntimeError: not fixed"):
        call(place)
    told = info(run)
    assert told["status"] == "failed"
    assert told["failure"] == {"notebook": "two_noreplay", "cell": 4, "error": "RuntimeError: not fixed"}
    assert {n: e["status"] for n, e in told["notebooks"].items()} == {
        "one": "complete",
        "two": "complete",
        "two_noreplay": "failed",
    }
    # What the notebook noted stands beside what the runner did, which holds the lock for it.
    assert told["notebooks"]["one"]["tokens_per_s"] == 250.0
    assert told["notebooks"]["one"]["peak_memory_gb"] > 0
    assert told["notebooks"]["one"]["seconds"] > 0
    # What the first notebook saw: this interpreter, no network, no history. No path of this machine is kept.
    executed = (run / "notebooks" / "one.ipynb").read_text()
    assert "{python}/bin" in executed
    assert str(place) not in executed
    assert "hf_abcdefghijklmnop" not in executed
    assert "***" in executed
    for line in ("offline 1 1", "absolute True", "history False"):
        assert line in executed
    assert "bar: 100%" not in executed  # progress is for whoever watches

    with pytest.raises(MedkitError, match="an unfinished run; continue it with --resume"):
        call(place)
    with pytest.raises(MedkitError, match=r"stage1\.seed=[0-9]+, not 77"):
        call(place, resume=True, settings=["stage1.seed=77"])
    assert info(run) == told  # refusals write nothing

    (place / "fixed").touch()
    _, said = call(place, resume=True)
    assert (run / "stage1" / "adapter").read_text() == "x"  # the first notebook did not run again
    assert said.count("finished before") == 2
    assert info(run)["status"] == "complete"
    assert "failure" not in info(run)
    with pytest.raises(MedkitError, match="a complete run; replace it with --fresh"):
        call(place)

    (run / "left over").touch()
    call(place, fresh=True, only=["01"])
    assert sorted(p.name for p in run.iterdir()) == ["notebooks", "run.json", "stage1"]
    assert list(info(run)["notebooks"]) == ["one"]
    assert [p.name for p in (place / "results").iterdir()] == ["demo"]  # no lock, nothing set aside


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "Bad Name"}, "is not a valid run name"),
        ({"name": "../out"}, "is outside"),
        ({"data_dir": "absent"}, "--data-dir absent is not a folder"),
        ({"settings": ["stage1.lr=1"]}, "unknown field 'stage1.lr'"),
        ({"settings": ["stage1.learning_rate=fast"]}, "a value of type number was expected"),
        ({"only": ["07"]}, "--only 07 is not a notebook; choose from 01, 02"),
        ({"only": ["02"]}, "stage1/adapter is missing"),
        ({"only": ["02"], "fresh": True}, "which --fresh removes"),
        ({"resume": True}, "contains no run to resume"),
    ],
)
def test_refusals_write_nothing(place, options, said):
    notebook(place / "notebooks" / "one.ipynb", FIRST)
    notebook(place / "notebooks" / "two.ipynb", SECOND)
    with pytest.raises(MedkitError) as refused:
        call(place, **options)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)
    assert [p.name for p in place.rglob("*") if p.is_file()] == ["one.ipynb", "two.ipynb"]


def test_a_folder_that_is_no_run_or_is_being_written_is_left_alone(place):
    notebook(place / "notebooks" / "one.ipynb", FIRST)
    notebook(place / "notebooks" / "two.ipynb", SECOND)
    other = place / "results" / "demo"
    other.mkdir(parents=True)
    (other / "thesis.txt").touch()
    for options in ({}, {"fresh": True}, {"resume": True}):
        with pytest.raises(MedkitError, match="is not a run and not empty"):
            call(place, **options)
    with storage.lock(other), pytest.raises(MedkitError, match=f"being written by process {os.getpid()}"):
        call(place, fresh=True)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]


WAITS = """
import os, pathlib, signal, sys, time
def save(*_):
    pathlib.Path("saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
pathlib.Path("pid").write_text(str(os.getpid()))
pathlib.Path("started").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.05)
"""
SCRIPT = """
import pathlib, sys
from medkit.pipeline import runner
from medkit.__main__ import _finish
sys.exit(_finish(lambda: runner.run("cpu", steps=[runner.Step("01", "one", ("run_dir",))],
    folder=pathlib.Path("notebooks"), resume="--resume" in sys.argv)))
"""


def start(place: Path, *arguments: str) -> subprocess.Popen:
    (place / "started").unlink(missing_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *arguments], cwd=place, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (place / "started").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    return process


def test_terminated_saves_and_killed_is_resumed(place):
    notebook(place / "notebooks" / "one.ipynb", WAITS)
    run = place / "results" / "demo"
    process = start(place)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert (place / "saved").exists()  # the kernel was told too
    assert "one, cell 4: stopped by SIGTERM" in said
    assert info(run)["status"] == "failed"

    process = start(place, "--resume")
    process.kill()
    process.communicate(timeout=30)
    assert info(run)["status"] == "running"  # nobody was left to say otherwise
    kernel = Path("/proc", (place / "pid").read_text())
    deadline = time.monotonic() + 20
    while kernel.exists() and "zombie" not in (kernel / "status").read_text():  # it ends by itself
        assert time.monotonic() < deadline
        time.sleep(0.1)

    (place / "go").touch()
    process = start(place, "--resume")
    assert process.wait(30) == 0
    assert info(run)["status"] == "complete"
    assert len(info(run)["continued"]) == 2


def test_what_is_kept_names_no_place_of_this_machine(place, monkeypatch):
    monkeypatch.setenv("HOME", "/me")
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnop")
    text = f'"{place}/x.csv", /me/.cache: {sys.prefix}\\n, hf_abcdefghijklmnop; nerve/me /meant /me'
    assert notebooks._scrub(text) == '"./x.csv", ~/.cache: {python}\\n, ***; nerve/me /meant ~'
    monkeypatch.setenv("HOME", "/")  # a container's unknown user
    assert notebooks._scrub("a / b+//c, ///") == "a / b+//c, ///"


def test_the_pipeline_of_the_notebooks():
    names = [step.name for step in runner.NOTEBOOKS]
    assert len(set(names)) == len(names) == 6
    # Whatever a step needs, an earlier one writes.
    written: set[str] = set()
    for step in runner.NOTEBOOKS:
        assert written.issuperset(step.needs), step.name
        written.update(step.writes)


def test_a_run_is_named_after_its_recipe_and_cpus_is_demo(place):
    notebook(place / "notebooks" / "one.ipynb", "run_dir")
    step = Step("01", "one", ("run_dir",))
    for recipe, settings, name in (("cpu", (), "demo"), ("paper", ("model.base=smollm2",), "paper")):
        settings = [*settings, "data.origin=builtin"]
        run = runner.run(
            recipe, steps=[step], folder=place / "notebooks", out=io.StringIO(), settings=settings
        )
        assert run == place / "results" / name


@pytest.mark.parametrize(
    "path", sorted(runner.NOTEBOOK_FOLDER.glob("0[1-5]*.ipynb")), ids=lambda path: path.stem
)
def test_the_notebooks_without_arguments_take_the_demos_run(path):
    import papermill

    default = papermill.inspect_notebook(path)["run_dir"]["default"]
    assert default == f'"results/{runner.DEFAULT_NAMES["cpu"]}"'
    assert runner.DEFAULT_NAMES["cpu"] not in storage.COMMITTED


def test_the_committed_runs_are_not_written_to(place, monkeypatch):
    """By no name and no option; a copy of the code without them may make its own."""
    notebook(place / "notebooks" / "one.ipynb", "run_dir")
    monkeypatch.setattr(storage.machine, "CHECKOUT", place)
    committed = [place / "results" / name / "run.json" for name in storage.COMMITTED]
    for path in committed:
        storage.write_json(path, run_json.describe("cpu"))
    before = [path.read_bytes() for path in committed]
    for name in storage.COMMITTED:
        for options in ({}, {"fresh": True}, {"resume": True}, {"only": ["01"]}):
            with pytest.raises(MedkitError, match=f"results/{name} is part of the repository") as refused:
                call(place, name=name, **options)
            assert "\n" not in str(refused.value)
        for again in ({"recipe": "cpu"}, {}, {"data_dir": None}):  # a notebook opened by hand
            with pytest.raises(MedkitError, match="is part of the repository"):
                run_json.begin(f"results/{name}", "05_report", **again)
    assert [path.read_bytes() for path in committed] == before
    monkeypatch.setenv("MEDKIT_RESULTS", str(place / "elsewhere"))
    run_json.begin("cpu", "01_stage1", "cpu").finish()  # that name is free in any other folder
    monkeypatch.delenv("MEDKIT_RESULTS")
    committed[1].unlink()
    committed[1].parent.rmdir()
    run_json.begin("cpu", "01_stage1", "cpu").finish()


def test_the_notebooks_take_the_parameters_the_pipeline_gives():
    given = {"recipe": "cpu", "run_dir": "results/cpu", "data_dir": "", "settings": ""}
    for step in [*runner.NOTEBOOKS, runner.model_alone("folder", "adapter")]:
        path = runner.NOTEBOOK_FOLDER / f"{step.notebook}.ipynb"
        check_parameters(path, {key: given[key] for key in step.takes} | step.fixed)


def test_a_line_of_a_log_has_a_hundred_columns(monkeypatch):
    out = io.StringIO()
    status = Status(out)
    waits = iter((False, True))  # over after the first line
    monkeypatch.setattr(status._closed, "wait", lambda _: next(waits))
    status.start("01_stage1")
    status.write("loss " * 50)
    status._tick()
    assert max(map(len, out.getvalue().splitlines())) == 100


def test_the_status_tail_is_the_last_line_that_says_something():
    out = io.StringIO()
    status = Status(out)
    status.write("\x1b[31mloss 2.1\x1b[0m\n\r 10%|#  | 1/10\r 20%|## | 2/10\n\n")
    assert status.tail == "20%|## | 2/10"
    status.write("\n")
    assert status.tail == "20%|## | 2/10"
