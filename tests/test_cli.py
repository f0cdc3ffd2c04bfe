"""The command line: exit codes, one line for every refusal, and nothing written before it."""

import subprocess
import sys

import pytest

from medkit import MedkitError, recipes, runner
from medkit.__main__ import main
from medkit.runner import RunFailed


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
        (["run", "cpu", "--run", "My Run"], "is no run name"),
        (["run", "cpu", "--run", "../../out"], "lies outside"),
        (["run", "cpu", "--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
        (["run", "cpu", "--only", "3"], "--only 3 is no notebook; they are 01, 02, 03, 04, 05"),
        (["check", "laptop"], "unknown recipe"),
        (["check", "cpu", "--data-dir", "nowhere"], "--data-dir nowhere is no folder"),
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
        (MedkitError("the thing; the mend"), 2, "medkit: the thing; the mend\n"),
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
        (tmp_path / "tables").mkdir()
        (tmp_path / "tables" / "table3.md").write_text("| model | MedQA |")
        return tmp_path

    monkeypatch.setattr(runner, "run", finished)
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
    assert capsys.readouterr().out == "| model | MedQA |\n"


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
