"""A run's stages on the tiny random Llama: what training leaves, and what it will not go on from."""

import os
import subprocess
import sys

import pandas as pd
import pytest

from medkit import checkpoints, recipes, runner, runs, stages, training

SETTINGS = {
    "data.rows_medqa": 8,
    "data.rows_medmcqa": 8,
    "data.rows_pubmedqa": 16,
    "model.max_length": 4096,  # the tiny tokenizer has a token a byte
    "stage1.max_steps": 2,
    "stage1.save_every": 1,
    "stage1.eval_rows": 2,
    "dmt.notechat_train": 6,
    "dmt.notechat_validation": 2,
}


def settings_of(base, **more) -> str:
    settings = SETTINGS | {"model.base": base} | {name.replace("__", "."): v for name, v in more.items()}
    return "\n".join(f"{name}={value}" for name, value in settings.items())


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDKIT_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "results" / "try"


def stage1(settings: str):
    """(run, fit) of a first stage, up to where notebook 01 has yet to draw and to finish."""
    run = runs.begin("try", "01_stage1", "cpu", settings)
    mixed = stages.stage1_mixture(run, stages.load_exams(run, "train"))
    model, tokenizer = stages.load_for_stage(run, "stage1")
    rows = [stages.tokenize(run, "stage1", tokenizer, mixed.part(part)) for part in ("train", "validation")]
    return run, stages.fit(run, "stage1", "stage1", model, tokenizer, *rows)


def test_a_notebook_that_fails_after_training_does_not_train_again(place, tiny_llama_folder):
    run, done = stage1(settings_of(tiny_llama_folder))
    assert done.steps == 2 and run.info["data"]["hashes"]["base model"]
    saved = (place / "stage1" / "adapter" / "adapter_model.safetensors").read_bytes()
    log = (place / "stage1" / "loss.csv").read_text()
    # the notebook dies here, drawing a figure, say; then it is run once more
    _, again = stage1(settings_of(tiny_llama_folder))
    assert again.resumed_from == again.steps == 2 and again.tokens == done.tokens
    assert (place / "stage1" / "adapter" / "adapter_model.safetensors").read_bytes() == saved
    assert (place / "stage1" / "loss.csv").read_text() == log
    stages.finish(run, "stage1", again)
    assert not list((place / "stage1").glob("*checkpoints*"))
    assert runs.read(place)["notebooks"]["01_stage1"]["status"] == "complete"


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"stage1__learning_rate": 1e-3}, "stage1.learning_rate"),
        ({"stage1__seed": 7}, "stage1.seed"),
        ({"dmt__replay_share": 0.25}, "dmt.replay_share"),
        ({"data__seed": 7}, "data.seed"),
    ],
)
def test_checkpoints_of_other_settings_are_refused_by_the_fields_name(place, tiny_llama_folder, more, named):
    """As after a run.json that was put in the place of another: the checkpoints know better."""
    stage1(settings_of(tiny_llama_folder))
    kept = place.rename(place.with_name("kept"))
    (place / "stage1").mkdir(parents=True)
    (kept / "stage1" / "checkpoints").rename(place / "stage1" / "checkpoints")
    with pytest.raises(checkpoints.CheckpointError, match=rf"was written with .*{named}="):
        stage1(settings_of(tiny_llama_folder, **more))


def test_a_checkpoint_of_several_processes_is_not_taken_up_by_one(place, tiny_llama_folder, monkeypatch):
    stage1(settings_of(tiny_llama_folder))
    found = checkpoints.last_whole(place / "stage1" / "checkpoints")
    marker = found / checkpoints.MARKER
    marker.write_text(marker.read_text().replace('"processes": 1', '"processes": 2'))
    with pytest.raises(checkpoints.CheckpointError, match="processes=2, this run has 1"):
        stage1(settings_of(tiny_llama_folder))


def test_arms_are_told_by_a_truth_value():
    assert [stages.arm_of(replay) for replay in (True, False)] == ["stage2", "stage2_noreplay"]
    with pytest.raises(ValueError, match="replay='no' is neither true nor false"):
        stages.arm_of("no")  # what papermill makes of `-p replay no`


@pytest.mark.slow
def test_several_processes_train_a_run_and_write_it_once(place, tiny_llama_folder, tmp_path):
    """`torchrun -m medkit.distributed`, both stages; and the runner finds what it needs to evaluate."""
    settings = SETTINGS | {"model.base": tiny_llama_folder, "stage2.max_steps": 1, "stage2.eval_rows": 2}
    settings |= {f"stage{n}.{name}": 2 for n in (1, 2) for name in ("batch_size", "accumulation")}
    options = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "UNSLOTH_COMPILE_LOCATION": str(tmp_path / "unsloth")}
    environment["PYTHONPATH"] = str(runner.machine.CHECKOUT)
    for arm in ("stage1", "stage2"):
        command = [*launcher, "-m", "medkit.distributed", "try", arm, "--recipe", "cpu", *options]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert training.adapter_spec(place / arm / "adapter").r == recipes.get("cpu").lora.r
        steps = pd.read_csv(place / arm / "loss.csv")["step"].tolist()
        assert steps == sorted(set(steps))  # one process wrote it
    info = runs.read(place)
    assert {name: entry["status"] for name, entry in info["notebooks"].items()} == {
        "01_stage1": "complete",
        "02_stage2": "complete",
    }
    assert info["data"]["hashes"]["base model"]
    manifest = (place / "data" / "manifest.json").read_text()
    assert '"stage1"' in manifest and '"stage2"' in manifest
    assert (place / "data" / "overlap_stage2.csv").is_file() and (place / "stage2" / "replay.csv").is_file()
    assert not list(place.glob("stage*/*checkpoints*"))
