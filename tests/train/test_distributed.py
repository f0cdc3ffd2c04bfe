"""Several processes train as one does: the same updates, and everything written once."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run

from medkit.train import models

STEPS = 4

STAGE = replace(tiny_run.STAGE, max_steps=STEPS, micro_batch_tokens=60)  # most steps take several passes


def lines(folder: Path) -> list[dict]:
    with (folder / "loss.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def train_in_two(folder: Path, base: Path) -> list[dict]:
    """The Fit that each of two processes prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [tiny_run.__file__, str(folder), str(base), "--set", f"max_steps={STEPS}"]
    command += ["--set", f"micro_batch_tokens={STAGE.micro_batch_tokens}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "UNSLOTH_COMPILE_LOCATION": str(base / "compiled")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """One process takes 2 rows in each of 2 forward passes a step; two take 2 rows in 1 each."""
    models.unsloth()
    base = tiny_run.write_base(tmp_path / "base")
    alone, _ = tiny_run.train(tmp_path / "one", base, STAGE)
    fits = train_in_two(tmp_path / "two", base)
    assert len(fits) == 2
    for fit in fits:
        assert (fit["steps"], fit["samples"], fit["tokens"]) == (STEPS, alone.samples, alone.tokens)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
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
