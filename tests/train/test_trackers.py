"""Experiment trackers: in the run's folder, offline, by Transformers' own integrations."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run

from medkit import recipes
from medkit.preflight.inputs import check
from medkit.runs import inputs
from medkit.train import models, trackers

STAGE = replace(tiny_run.STAGE, max_steps=2, eval_every=2)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    models.unsloth()
    return tiny_run.write_base(tmp_path_factory.mktemp("base"))


def test_none_writes_nothing(base, tmp_path):
    tiny_run.train(tmp_path / "stage1", base, STAGE)
    assert sorted(path.name for path in (tmp_path / "stage1").iterdir()) == ["checkpoints", "loss.csv"]


@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_missing_package_is_refused_in_one_line(tracker, monkeypatch):
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(inputs.InputError, match=rf"report_to={tracker} needs the package {tracker}; pip"):
        inputs.check_tracker(tracker)
    inputs.check_tracker("none")
    recipe = recipes.get("cpu", {"stage2.report_to": tracker})
    with pytest.raises(inputs.InputError, match="needs the package"):
        check(recipe, "", ["medqa train"])


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_they_are_told_to_stay_on_this_machine_unless_the_user_says_otherwise(tracker, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs.importlib.util, "find_spec", lambda name: True)
    asked = {"wandb": ("WANDB_MODE", "offline"), "mlflow": ("MLFLOW_TRACKING_URI", "file://")}
    name, value = asked[tracker]
    monkeypatch.delenv(name, raising=False)
    with trackers.local_tracker(tracker, tmp_path):
        assert os.environ[name].startswith(value)
    assert name not in os.environ
    monkeypatch.setenv(name, "the user's")
    with trackers.local_tracker(tracker, tmp_path):
        assert os.environ[name] == "the user's"
    assert os.environ[name] == "the user's"


def test_tensorboard_has_the_losses_in_the_stages_folder(base, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tiny_run.train(tmp_path / "stage1", base, replace(STAGE, report_to="tensorboard"))
    events = EventAccumulator(str(tmp_path / "stage1" / "tracker"))
    events.Reload()
    losses = [round(event.value, 5) for event in events.Scalars("train/loss")]
    lines = (tmp_path / "stage1" / "loss.csv").read_text().splitlines()[2:]
    assert losses == [round(float(line.split(",")[3]), 5) for line in lines]
    assert [event.step for event in events.Scalars("eval/loss")] == [0, 2]


TRACKIO = """
import sqlite3, sys
sys.path[:0] = sys.argv[3:]
from dataclasses import replace
from pathlib import Path
from medkit.train import models
models.unsloth()
import tiny_run
folder = Path(sys.argv[1])
stage = replace(tiny_run.STAGE, max_steps=2, eval_every=2, report_to="trackio")
tiny_run.train(folder / "stage1", Path(sys.argv[2]), stage)
(db,) = (folder / "stage1" / "tracker").glob("*.db")
rows = sqlite3.connect(db).execute("select metrics from metrics").fetchall()
print("rows", [row[0] for row in rows if "train/loss" in str(row[0])])
"""


def test_trackio_has_the_losses_in_the_stages_folder_and_nothing_at_home(base, tmp_path):
    pytest.importorskip("trackio")
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home), "OMP_NUM_THREADS": "1"}
    here = Path(tiny_run.__file__).parent
    command = [sys.executable, "-c", TRACKIO, tmp_path, base, here, here.parent]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    (line,) = (line for line in ended.stdout.splitlines() if line.startswith("rows"))
    assert line.count("train/loss") == 2
    assert not list(home.rglob("*.db")) and json.dumps(str(home)) not in ended.stdout
