"""The command line: exit codes, one line for every refusal, and nothing written before it."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from medkit import MedkitError, recipes
from medkit.__main__ import main
from medkit.pipeline import runner
from medkit.pipeline.runner import RunFailed
from medkit.report import published, tables
from medkit.runs import machine, run_json, storage


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDKIT_RESULTS", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "laptop"], "unknown recipe 'laptop'; the recipes are cpu, paper, as_released, recommended"),
        (["run", "cpu", "--set", "stage1.lerning_rate=1"], "did you mean stage1.learning_rate?"),
        (["run", "cpu", "--set", "stage1.batch_size=four"], "a value of type whole number was expected"),
        (["run", "cpu", "--set", "rows"], "write FIELD=VALUE"),
        (["run", "cpu", "--run", "My Run"], "is not a valid run name"),
        (["run", "cpu", "--run", "../../out"], "is outside"),
        (["run", "cpu", "--data-dir", "nowhere"], "--data-dir nowhere is not a folder"),
        (["run", "cpu", "--only", "3"], "--only 3 is not a notebook; choose from 01, 02, 03, 04, 05"),
        (["check", "laptop"], "unknown recipe"),
        (["check", "cpu", "--data-dir", "nowhere"], "--data-dir nowhere is not a folder"),
    ],
)
def test_a_refusal_is_one_line_and_exit_code_2(arguments, said, capsys, empty_folder):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("medkit: ")
    assert err.count("\n") == 1
    assert said in err
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "the following arguments are required: recipe"),
        (["train", "cpu"], "invalid choice: 'train'"),
        (["run", "cpu", "--lr", "1"], "unrecognized arguments: --lr 1"),
        (["run", "cpu", "--resume", "--fresh"], "not allowed with argument --resume"),
        ([], "required: COMMAND"),
    ],
)
def test_a_wrong_command_line_is_one_line_too(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (MedkitError("the thing; the fix"), 2, "medkit: the thing; the fix\n"),
        (RunFailed("03_mcq_eval, cell 4: it broke"), 1, "medkit: failed: 03_mcq_eval, cell 4: it broke\n"),
        (KeyboardInterrupt(), 1, "medkit: stopped\n"),
    ],
)
def test_exit_codes(raised, code, said, capsys, monkeypatch):
    def fails(*_, **__):
        raise raised

    monkeypatch.setattr(runner, "run", fails)
    assert main(["run", "cpu"]) == code
    assert capsys.readouterr().err == said


def test_run_hands_on_its_options_and_prints_the_tables(capsys, monkeypatch, tmp_path):
    handed = {}

    def finished(recipe, **options):
        handed.update(options, recipe=recipe)
        return tmp_path

    monkeypatch.setattr(runner, "run", finished)
    monkeypatch.setattr(tables, "terminal", lambda place: f"tables of {place.name}")
    arguments = "run cpu --run real --data-dir d --set a.b=1 --set c.d=2 --only 03,04 --resume".split()
    assert main(arguments) == 0
    assert handed == {
        "recipe": "cpu",
        "name": "real",
        "data_dir": "d",
        "settings": ["a.b=1", "c.d=2"],
        "only": ("03", "04"),
        "resume": True,
        "fresh": False,
    }
    assert capsys.readouterr().out == f"tables of {tmp_path.name}\n"


REFERENCE = machine.CHECKOUT / "results" / "cpu"


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="results/cpu is not there")
def test_the_last_screen_of_a_demo_has_a_hundred_columns(capsys, monkeypatch):
    monkeypatch.setattr(runner, "run", lambda *_, **__: REFERENCE)
    assert main(["run", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    for number in range(1, 5):
        assert sum(line.startswith(f"Table {number}: ") for line in lines) == 1
    assert f"{REFERENCE / 'tables'}/*.md, *.csv" in lines[-1]


def test_audit_has_a_hundred_columns_and_the_whole_as_markdown(capsys):
    assert main(["audit"]) == 0
    short = capsys.readouterr().out
    assert max(map(len, short.splitlines())) <= 100
    assert main(["audit", "--markdown"]) == 0
    whole = capsys.readouterr().out
    assert whole == published.render_audit() + "\n"
    for row in published.ROWS:
        assert row.model in short and row.model in whole
    # 53.55% of 1,273 is no whole count; 56.87% is 724.
    (own,) = [line for line in short.splitlines() if line.startswith("Med-Nirvana (4-bit quantized) 8B")]
    assert "53.55 (none)" in own
    assert "56.87 (724)" in short


@pytest.mark.parametrize(
    "command", [["run", "cpu"], ["check", "cpu"], ["recipes"], ["audit"], ["mcq", "smollm2"]]
)
def test_a_working_folder_that_is_gone_is_one_line(command, capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("medkit: the working folder is gone") and err.count("\n") == 1


@pytest.mark.parametrize("command", [["run", "cpu"], ["check", "cpu"], ["mcq", "smollm2"]])
@pytest.mark.parametrize("variable", ["MEDKIT_RESULTS", "MEDKIT_CACHE"])
def test_a_folder_that_cannot_be_written_is_one_line(command, variable, capsys, tmp_path, monkeypatch):
    if command[0] == "mcq" and variable == "MEDKIT_CACHE":
        command = ["mcq", "smollm2", "--data-dir", str(tmp_path)]
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv(variable, str(place))
        assert main(command) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("medkit: ") and err.count("\n") == 1
        assert f"file is not a folder; set {variable} to a writable folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "error",
    [PermissionError(13, "Permission denied", "/there/run.json"), OSError(28, "No space left on device")],
)
def test_what_the_machine_refuses_is_one_line(error, capsys, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(runner, "run", fails)
    assert main(["run", "cpu"]) == 2
    assert capsys.readouterr().err == f"medkit: {error.filename or 'the machine'}: {error.strerror}\n"


def test_mcq_takes_its_run_name_from_the_model(monkeypatch, tmp_path):
    handed = {}

    def finished(recipe, **options):
        handed.update(options)
        (tmp_path / "mcq").mkdir(exist_ok=True)
        (tmp_path / "mcq" / "summary.json").write_text("{}")
        return tmp_path

    monkeypatch.setattr(runner, "run", finished)
    assert main(["mcq", "org/My_Model 8B!", "--adapter", "there"]) == 0
    assert handed["name"] == "mcq-my_model-8b-there"
    assert handed["settings"] == ["model.base=org/My_Model 8B!"]
    assert handed["steps"][0].fixed == {"model": "org/My_Model 8B!", "adapter": "there"}
    trained = run_json.describe("as_released")
    storage.write_json(tmp_path / "trained" / "run.json", trained)
    adapter = str(tmp_path / "trained" / "stage2" / "adapter")
    assert main(["mcq", "base", "--adapter", adapter, "--set", "data.mcq_target=letter"]) == 0
    assert handed["settings"] == [
        "model.base=base",
        "model.chat_template=chatml",
        "data.mcq_target=letter",  # what the command sets comes before what the run had
        "data.pubmedqa_train=artificial",
    ]


def test_mcq_prints_the_table_and_names_the_file_of_all_measures(monkeypatch, capsys):
    folder = Path(__file__).parents[1] / "results" / "smollm2-real"
    monkeypatch.setattr(runner, "run", lambda *recipe, **options: folder)
    assert main(["mcq", "smollm2"]) == 0
    out = capsys.readouterr().out
    with (folder / "tables" / "table3.csv").open() as file:
        percents = [float(row["percent"]) for row in csv.DictReader(file) if row["model"] == "smollm2"]
    row = next(line for line in out.splitlines() if line.startswith("smollm2"))
    assert all(f"{percent:.1f}" in row for percent in percents[:3])
    assert out.endswith("smollm2-real/mcq/summary.json\n") and len(out.splitlines()) < 20


def test_recipes_lists_every_field(capsys):
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    for name, recipe in recipes.PRESETS.items():
        assert f"\n{name}: " in "\n" + out
        assert f"  stage1.learning_rate={recipe.stage1.learning_rate}" in out


def test_audit_prints_the_published_rows(capsys):
    assert main(["audit"]) == 0
    out = capsys.readouterr().out
    for percent in ("56.87", "57.5", "53.55"):  # MedQA of the paper's three models
        assert percent in out


def test_a_reader_that_leaves_early_gets_no_traceback():
    command = f"{sys.executable} -m medkit recipes | head -1"
    ended = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""
