"""Several processes train as one does: the same updates, and everything written once."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_run

STEPS = 4


def train(folder: Path, base: Path, launcher: list[str]) -> tuple[list[dict], list[dict]]:
    """loss.csv of a run in processes of its own, and the Fit that each of them prints."""
    command = [*launcher, tiny_run.__file__, str(folder), str(base), "--set", f"max_steps={STEPS}"]
    command += ["--set", "micro_batch_tokens=60"]  # most steps take several passes a process
    environment = os.environ | {"OMP_NUM_THREADS": "1", "UNSLOTH_COMPILE_LOCATION": str(base / "compiled")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-2000:]
    fits = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.DictReader(file)), fits


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """One process takes 2 rows in each of 2 forward passes a step; two take 2 rows in 1 each."""
    base = tiny_run.write_base(tmp_path / "base")
    one, (alone,) = train(tmp_path / "one", base, [sys.executable])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two, fits = train(tmp_path / "two", base, torchrun)
    assert len(fits) == 2
    for fit in fits:
        assert (fit["steps"], fit["samples"], fit["tokens"]) == (STEPS, alone["samples"], alone["tokens"])
    assert len(one) == len(two) == STEPS + 1
    for ours, theirs in zip(one, two, strict=True):
        for name in ("step", "epoch", "tokens", "learning_rate", "padding_share", "batch"):
            assert ours[name] == theirs[name]  # the same rows at the same step
        for name in ("train_loss", "eval_loss"):  # added up in another order, in bfloat16
            assert bool(ours[name]) == bool(theirs[name])
            if ours[name]:
                assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=2e-3)
    saved = tmp_path / "two" / "checkpoints"
    assert sorted(path.name for path in saved.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]
    assert {path.name for path in (saved / "checkpoint-4").glob("rng*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
