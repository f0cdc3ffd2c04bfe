"""A sweep on a real Ray of two local nodes that loses a worker and a node in mid-training."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest

from medkit.runs import run_json

# One stage 1 and two trials, without evaluation: 24 consultations in batches of one, twice over, are 48
# steps of stage 2, with a checkpoint each 8.
SWEEP = """
name = "{name}"
recipe = "cpu"
seeds = [0]
measure = []
cpus = 1

[settings]
model.base = "{base}"
model.max_length = 4096
data.rows_medqa = 8
data.rows_medmcqa = 8
data.rows_pubmedqa = 8
stage1.max_steps = 2
stage1.eval_rows = 2
stage2.eval_rows = 2
stage2.eval_every = 1000
stage2.save_every = 8
stage2.batch_size = 1
stage2.epochs = 2
dmt.notechat_train = 24
dmt.notechat_validation = 2
dmt.replay_share = 0

[arms.slow]
[arms.fast]
stage2.learning_rate = 1e-3
"""
ARMS = ("slow-s0", "fast-s0")


def wait_for(what, process, seconds=600):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert process.poll() is None, process.stderr.read()[-3000:]
        assert time.monotonic() < deadline, f"{what.__name__} did not come"
        time.sleep(0.02)
    return found


def medkit(place, *arguments, **environment):
    command = [sys.executable, "-m", "medkit", "sweep", *arguments]
    # Ray gives a trial as many threads as cores, and sums differ in their last digits with that number.
    own = {
        "MEDKIT_RESULTS": str(place / "results"),
        "MEDKIT_CACHE": str(place / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        command,
        cwd=place,
        env=os.environ | own | environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as after `medkit sweep ... &`
    )


@pytest.mark.slow
def test_a_worker_and_a_node_are_lost_and_the_sweep_is_as_the_unbroken_one(
    tmp_path, tiny_llama_folder, monkeypatch
):
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")  # a busy machine starts it slowly
    for name in ("broken", "whole"):
        (tmp_path / f"{name}.toml").write_text(SWEEP.format(name=name, base=tiny_llama_folder))
    results = tmp_path / "results"
    trials = results / "broken" / "trials"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    with contextlib.ExitStack() as ends:
        ends.callback(cluster.shutdown)
        lost = cluster.add_node(num_cpus=1)
        raylet = lost.all_processes["raylet"][0].process.pid
        sweep = medkit(tmp_path, "broken.toml", "--engine", "ray", RAY_ADDRESS=cluster.address)
        ends.callback(sweep.kill)

        waiting = dict.fromkeys(ARMS)

        def both_are_hit():
            """A trial that has a checkpoint loses its node, where it is on the one to go, else its worker."""
            for name in list(waiting):
                lock = trials / f".{name}.lock"
                if any((trials / name).glob("stage2/checkpoints/checkpoint-*")) and lock.exists():
                    worker = psutil.Process(int(lock.read_text())).parent()
                    if raylet in [process.pid for process in worker.parents()]:
                        cluster.remove_node(lost, allow_graceful=False)
                        hit.append("node")
                    else:
                        worker.kill()
                        hit.append("worker")
                    del waiting[name]
            return not waiting

        hit: list[str] = []
        wait_for(both_are_hit, sweep)
        assert sorted(hit) == ["node", "worker"]
        _, said = sweep.communicate(timeout=400)
        assert sweep.returncode == 0, said[-3000:]
    assert "3 of 3" in said

    # Each went on from a checkpoint: run.json says when, and from which step.
    for name in ARMS:
        info = run_json.read(trials / name)
        assert info["status"] == "complete"
        assert info["notebooks"]["02_stage2"]["resumed_from"] >= 8
        assert len(info["continued"]) >= 2

    for part in ("trials", "outcomes"):
        shutil.copytree(results / "broken" / part / "stage1-s0", results / "whole" / part / "stage1-s0")
    whole = medkit(tmp_path, "whole.toml", "--resume")
    _, said = whole.communicate(timeout=400)
    assert whole.returncode == 0, said[-3000:]
    for name in ARMS:
        broken, unbroken = (results / one / "trials" / name / "stage2" for one in ("broken", "whole"))
        weights = "adapter/adapter_model.safetensors"
        assert (broken / weights).read_bytes() == (unbroken / weights).read_bytes(), name
        columns = ["step", "epoch", "tokens", "train_loss", "eval_loss", "learning_rate"]  # without times
        losses = [pd.read_csv(one / "loss.csv")[columns] for one in (broken, unbroken)]
        pd.testing.assert_frame_equal(*losses, check_exact=True)


@pytest.mark.slow
def test_a_signal_lets_the_trials_save_before_the_sweep_ends(tmp_path, tiny_llama_folder):
    pytest.importorskip("ray")
    (tmp_path / "broken.toml").write_text(SWEEP.format(name="broken", base=tiny_llama_folder))
    trial = tmp_path / "results" / "broken" / "trials" / ARMS[0]
    sweep = medkit(tmp_path, "broken.toml", "--engine", "ray", RAY_ADDRESS="local")

    def a_checkpoint():
        return any(trial.glob("stage2/checkpoints/checkpoint-*"))

    wait_for(a_checkpoint, sweep)
    sweep.send_signal(signal.SIGTERM)
    _, said = sweep.communicate(timeout=300)
    assert sweep.returncode == 1
    assert "--resume" in said
    info = run_json.read(trial)
    assert info["failure"]["error"] == "stopped by SIGTERM"  # and not killed
