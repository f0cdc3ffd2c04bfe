"""What befalls a long run, done to real processes: kills, full disks, damage, wrong settings, no memory.

    python benchmarks/faults.py

Trains the tiny random Llama of the tests (10 optimizer steps, a checkpoint each 3). A fault is survived when
the resumed run's losses, learning rates, evaluations and batches are the unbroken run's at every step, or,
where there is nothing to resume, when what follows is one clear line and the files are whole. Prints a table
and, last, one JSON line: faults, survived, lost_steps_max (optimizer steps trained again after a fault).
"""

import csv
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

REPO = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

import tiny_run  # noqa: E402

from medkit.runs import machine  # noqa: E402

SAME = ("step", "epoch", "tokens", "train_loss", "eval_loss", "learning_rate", "padding_share", "batch")
STEPS = 10
AT_ONCE = 2  # faults
PATIENCE = 900  # seconds for one process


class Bench:
    """A scratch folder with the model, the unbroken run, and processes started against them."""

    def __init__(self, scratch: Path):
        self.scratch, self.base, self.numbers = (
            scratch,
            tiny_run.write_base(scratch / "base"),
            itertools.count(),
        )
        self.environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(sys.path[:2]),
            "UNSLOTH_COMPILE_LOCATION": str(scratch / "compiled"),
            "MEDKIT_RESULTS": str(scratch / "results"),
        }
        self.unbroken = scratch / "unbroken"
        code, said, _ = self.train(self.unbroken, "--set", "save_every=3")
        assert code == 0, said
        self.whole = lines(self.unbroken)

    def folder(self) -> Path:
        return self.scratch / f"run-{next(self.numbers)}"

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.scratch,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def python(self, code: str, *arguments: str) -> tuple[int, str]:
        """(exit code, everything said) of a process that runs `code`."""
        process = self.start("-c", code, *arguments)
        out, err = process.communicate(timeout=PATIENCE)
        return process.returncode, out + err

    def start_training(self, folder: Path, *options: str) -> subprocess.Popen:
        return self.start(tiny_run.__file__, str(folder), str(self.base), *options)

    def train(self, folder: Path, *options: str) -> tuple[int, str, dict | None]:
        """(exit code, everything said, the Fit where it came to one)."""
        process = self.start_training(folder, *options)
        out, err = process.communicate(timeout=PATIENCE)
        fits = [json.loads(line) for line in out.splitlines() if line.startswith('{"steps"')]
        return process.returncode, out + err, fits[-1] if fits else None

    def resume(self, folder: Path, trained: int) -> int:
        """Resume, hold the result to the unbroken run, and return the steps lost of `trained`."""
        code, said, fit = self.train(folder, "--resume")
        assert code == 0 and fit, said[-1500:]
        assert lines(folder) == self.whole, "the resumed run is not the unbroken one"
        return trained - fit["resumed_from"]

    def refused(self, folder: Path, *options: str, naming: str) -> int:
        code, said, _ = self.train(folder, "--resume", *options)
        refusal = [line for line in said.splitlines() if line.startswith("medkit: ")]
        assert code == 2 and len(refusal) == 1 and "Traceback" not in said, said[-1500:]
        assert naming in refusal[0], refusal[0]
        return 0

    def with_checkpoints(self) -> Path:
        """A folder as a run leaves it that was killed after its last checkpoint, 10; it holds 9 and 10."""
        return shutil.copytree(self.unbroken, self.folder())


def lines(folder: Path) -> list[dict]:
    """What does not depend on the clock or the machine, of every line of loss.csv."""
    with (folder / "loss.csv").open(newline="", encoding="utf-8") as file:
        return [{name: line[name] for name in SAME} for line in csv.DictReader(file)]


def wait_for_lines(process: subprocess.Popen, log: Path, count: int) -> None:
    while process.poll() is None and (not log.exists() or log.read_text().count("\n") < count):
        time.sleep(0.02)


def killed(bench: Bench, fault: str, at: int, trained: int) -> int:
    folder = bench.folder()
    code, said, _ = bench.train(folder, "--fault", fault, "--at", str(at))
    assert code == -signal.SIGKILL, f"exit code {code}: {said[-1500:]}"
    return bench.resume(folder, trained)


def killed_from_outside(bench: Bench, after: int, wait: float) -> int:
    """kill -9 some time after loss.csv has got `after` lines."""
    folder = bench.folder()
    process = bench.start_training(folder)
    log = folder / "loss.csv"
    wait_for_lines(process, log, after)
    time.sleep(wait)
    process.kill()
    process.communicate()
    written = [line for line in log.read_text().splitlines(keepends=True)[1:] if line.endswith("\n")]
    trained = min(STEPS, int(written[-1].split(",")[0]) + 1) if written else 1  # the last line is at hand
    return bench.resume(folder, trained)


def damaged(bench: Bench, part: str, content: bytes | None, flaw: str) -> int:
    """A part of the newest is replaced (None: removed); the older one is taken, the reason said."""
    folder = bench.with_checkpoints()
    path = folder / "checkpoints" / "checkpoint-10" / part
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    code, said, fit = bench.train(folder, "--resume")
    assert code == 0 and fit, said[-1500:]
    assert f"checkpoint-10 is skipped: {flaw}" in said, said[-1500:]
    assert lines(folder) == bench.whole, "the resumed run is not the unbroken one"
    return STEPS - fit["resumed_from"]


def no_other(bench: Bench, part: str) -> int:
    folder = bench.with_checkpoints()
    shutil.rmtree(folder / "checkpoints" / "checkpoint-9")
    (folder / "checkpoints" / "checkpoint-10" / part).unlink()
    return bench.refused(folder, naming=f"{part.partition('.')[0]}")


def other_base(bench: Bench) -> int:
    from safetensors.torch import load_file, save_file

    folder, base = bench.with_checkpoints(), bench.scratch / "other-base"
    shutil.copytree(bench.base, base)
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    process = bench.start(tiny_run.__file__, str(folder), str(base), "--resume")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2 and "base weights=" in err, (out + err)[-1500:]
    return 0


def told(bench: Bench, fault: str, at: int, trained: int, saying: str, code: int = 2) -> int:
    """The process ends by itself with one line that says why; then the run is resumed."""
    folder = bench.folder()
    ended, said, _ = bench.train(folder, "--fault", fault, "--at", str(at))
    assert ended == code and "Traceback" not in said, f"exit code {ended}: {said[-1500:]}"
    assert re.search(saying, said), said[-1500:]
    if fault == "disk full while saving":
        kept = [path.name for path in (folder / "checkpoints").glob("checkpoint-*")]
        assert kept == ["checkpoint-3"] and not (folder / "checkpoints" / ".writing").exists(), kept
    return bench.resume(folder, trained)


RESULTS = """
import resource, signal, sys
from medkit import MedkitError
from medkit.runs import storage
path, lines, what = sys.argv[1], sys.argv[2], sys.argv[3]
if what == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    for n in range(1 if what == "full" else 10**9):
        storage.write_json(path, {"n": n, "rows": list(range(20000))})
        storage.append_jsonl(lines, {"n": n, "text": "x" * 5000})
except MedkitError as error:
    sys.exit(f"medkit: {error}")
"""


def results_on_a_full_disk(bench: Bench) -> int:
    folder = bench.folder()
    folder.mkdir()
    path = folder / "summary.json"
    path.write_text('{"n": "before"}')
    code, said = bench.python(RESULTS, str(path), str(folder / "rows.jsonl"), "full")
    assert code == 1 and said.count("\n") == 1 and "its previous content is kept" in said, said
    assert json.loads(path.read_text()) == {"n": "before"} and os.listdir(folder) == ["summary.json"]
    return 0


def results_killed(bench: Bench) -> int:
    """Eight kills at random moments of a process that does nothing but write."""
    from medkit.runs import storage

    folder, rng = bench.folder(), random.Random(0)
    folder.mkdir()
    path, rows = folder / "summary.json", folder / "rows.jsonl"
    for _ in range(8):
        process = bench.start("-c", RESULTS, str(path), str(rows), "kill")
        began = path.stat().st_mtime if path.exists() else None
        while not path.exists() or path.stat().st_mtime == began:
            time.sleep(0.01)
        time.sleep(rng.random() / 5)
        process.kill()
        process.communicate()
        assert len(json.loads(path.read_text())["rows"]) == 20000
        assert all(len(row["text"]) == 5000 for row in storage.read_jsonl(rows))
    return 0


LOCK = """
import sys, time
from medkit import MedkitError
from medkit.runs import storage
try:
    with storage.lock(storage.folder("same")):
        print("held", flush=True)
        time.sleep(float(sys.argv[1]))
except MedkitError as error:
    sys.exit(f"medkit: {error}")
"""


def two_on_one_run(bench: Bench) -> int:
    first = bench.start("-c", LOCK, "300")
    assert first.stdout.readline() == "held\n"
    code, said = bench.python(LOCK, "0")
    assert code == 1 and f"is being written by process {first.pid}" in said, said
    first.kill()
    first.communicate()
    code, said = bench.python(LOCK, "0")  # the lock went with its process
    assert code == 0 and said == "held\n", said
    return 0


NOTEBOOK = """
import json, sys
from pathlib import Path
import nbformat
from medkit.pipeline import notebooks
folder, source, timeout = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
cells = [nbformat.v4.new_code_cell("n: int = 1", metadata={"tags": ["parameters"]})]
cells += [nbformat.v4.new_code_cell(source), nbformat.v4.new_code_cell("'never run'")]
nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "nb.ipynb")
print(notebooks.execute(folder / "nb.ipynb", folder / "out.ipynb", {}, {}, cell_timeout=timeout))
"""


def notebook_fails(bench: Bench, source: str, timeout: float | None, saying: str) -> int:
    import nbformat

    folder = bench.folder()
    folder.mkdir()
    code, said = bench.python(NOTEBOOK, str(folder), source, json.dumps(timeout))
    assert code == 0 and saying in said, said[-1500:]
    executed = nbformat.read(folder / "out.ipynb", as_version=4)
    assert executed.metadata.papermill["exception"] is True
    return 0


def sigterm_under_papermill(bench: Bench) -> int:
    """SIGTERM to the process that executes the notebook: the kernel saves, and the run can be resumed."""
    folder = bench.folder()
    folder.mkdir()
    source = (
        "import tiny_run, pathlib; tiny_run.befall('a slow step', 4)\n"
        f"tiny_run.train(pathlib.Path({str(folder)!r}), pathlib.Path({str(bench.base)!r}))"
    )
    process = bench.start("-c", NOTEBOOK, str(folder), source, "null")
    wait_for_lines(process, folder / "loss.csv", 4)  # the header and steps 0 to 2: step 4 has begun
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert "stopped by SIGTERM" in out, (out + err)[-1500:]
    assert (folder / "checkpoints" / "checkpoint-4").is_dir()
    return bench.resume(folder, 4)


RUN = {
    "data.rows_medqa": 8,
    "data.rows_medmcqa": 8,
    "data.rows_pubmedqa": 24,
    "model.max_length": 4096,
    "stage1.max_steps": STEPS,
    "stage1.eval_rows": 2,
    "stage1.save_every": 3,
}


def run_killed(bench: Bench, name: str, when: str) -> int:
    """kill -9 of the kernel of a real `medkit run`, in notebook 01: in training, or when the adapter has just
    been written and the notebook has yet to end. Then the same command with --resume; its loss curve is held
    to that of a run that nobody touched."""
    settings = RUN | {"model.base": bench.base}
    command = ["-m", "medkit", "run", "cpu", "--only", "01"]
    command += [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]
    stage = bench.scratch / "results" / name / "stage1"
    process = bench.start(*command, "--run", name)
    if when == "in training":
        wait_for_lines(process, stage / "loss.csv", 7)
    else:
        while process.poll() is None and not (stage / "adapter").is_dir():
            time.sleep(0.005)
    for kernel in psutil.Process(process.pid).children():
        kernel.kill()
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1 and "the kernel was killed by SIGKILL" in err, (out + err)[-1500:]
    process = bench.start(*command, "--run", name, "--resume")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (out + err)[-1500:]
    process = bench.start(*command, "--run", f"{name}-untouched")
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, (out + err)[-1500:]
    untouched = stage.parents[1] / f"{name}-untouched" / "stage1"
    assert lines(stage) == lines(untouched), "the resumed run is not the untouched one"
    entry = json.loads((stage.parent / "run.json").read_text())["notebooks"]["01_stage1"]
    assert entry["status"] == "complete" and not (stage / "checkpoints").exists()
    assert when == "in training" or entry["resumed_from"] == STEPS, "a finished stage was trained again"
    # The line of step 5 was there, step 6 had begun: 7 at the most had been trained when the kill came.
    return 7 - entry["resumed_from"] if when == "in training" else 0


def faults(bench: Bench) -> dict:
    """Every fault by name, as a function that returns the steps lost and raises where it was not survived."""
    extra = json.dumps({"dmt.replay_share": 0.5})
    listed = {
        "kill -9 in a step": lambda: killed(bench, "kill at a step", 6, 5),
        "kill -9 between weights and optimizer": lambda: killed(
            bench, "kill between weights and optimizer", 6, 6
        ),
        "kill -9 in the middle of the state file": lambda: killed(bench, "kill in the state file", 6, 6),
        "kill -9 before a checkpoint's new name": lambda: killed(
            bench, "kill before the checkpoint's new name", 6, 6
        ),
        "kill -9 before the first checkpoint": lambda: killed(bench, "kill in the state file", 3, 3),
        "zero-byte safetensors": lambda: damaged(
            bench,
            "adapter_model.safetensors",
            b"",
            "adapter_model.safetensors has changed since it was written",
        ),
        "truncated safetensors": lambda: damaged(
            bench,
            "adapter_model.safetensors",
            (bench.unbroken / "checkpoints/checkpoint-10/adapter_model.safetensors").read_bytes()[:5000],
            "adapter_model.safetensors has changed since it was written",
        ),
        "missing scheduler": lambda: damaged(bench, "scheduler.pt", None, "scheduler.pt is missing"),
        "missing marker": lambda: damaged(bench, "whole.json", None, "it was not finished"),
        "missing optimizer, no older checkpoint": lambda: no_other(bench, "optimizer.pt"),
        "missing random state, no older checkpoint": lambda: no_other(bench, "rng_state.pth"),
        "another seed": lambda: bench.refused(
            bench.with_checkpoints(), "--set", "seed=1", naming="stage1.seed=0, this run has 1"
        ),
        "another learning rate": lambda: bench.refused(
            bench.with_checkpoints(), "--set", "learning_rate=0.02", naming="stage1.learning_rate=0.01"
        ),
        "another k": lambda: bench.refused(
            bench.with_checkpoints(), "--extra", extra, naming="dmt.replay_share=None, this run has 0.5"
        ),
        "another data hash": lambda: bench.refused(
            bench.with_checkpoints(), "--rows-seed", "7", naming="training rows="
        ),
        "another base model": lambda: other_base(bench),
        "disk full while saving": lambda: told(
            bench, "disk full while saving", 6, 6, r"medkit: checkpoint-6 could not be written .*checkpoint-3"
        ),
        "disk full in loss.csv": lambda: told(
            bench, "disk full in loss.csv", 5, 5, "medkit: cannot write loss.csv"
        ),
        "disk full while writing results": lambda: results_on_a_full_disk(bench),
        "kill -9 while writing results": lambda: results_killed(bench),
        "two processes on one run name": lambda: two_on_one_run(bench),
        "SIGTERM": lambda: told(bench, "SIGTERM", 5, 5, r"stopped by SIGTERM; checkpoint-5 is saved", 143),
        "SIGTERM in validation": lambda: told(
            bench, "SIGTERM in validation", 8, 8, r"stopped by SIGTERM; checkpoint-8 is saved", 143
        ),
        "SIGTERM under papermill": lambda: sigterm_under_papermill(bench),
        "kernel killed under papermill": lambda: notebook_fails(
            bench, "import os; os.kill(os.getpid(), 9)", None, "the kernel was killed by SIGKILL"
        ),
        "kernel of a real run killed in training": lambda: run_killed(bench, "killed", "in training"),
        "kernel of a real run killed after training": lambda: run_killed(bench, "late", "after training"),
        "cell time-out": lambda: notebook_fails(
            bench, "import time; time.sleep(60)", 2, "the cell ran longer than 2 s"
        ),
        "out of memory": lambda: told(
            bench, "out of memory", 5, 4, r"medkit: out of memory at step 5: 2 rows"
        ),
    }
    rng = random.Random(1)
    for after in (2, 5, 8):
        wait = rng.random() / 2
        listed[f"kill -9 from outside, {wait:.2f} s after line {after}"] = lambda after=after, wait=wait: (
            killed_from_outside(bench, after, wait)
        )
    return listed


def survive(name: str, fault) -> dict:
    began = time.monotonic()
    try:
        lost, outcome = fault(), "survived"
    except Exception as error:
        lost, outcome = 0, f"{type(error).__name__}: {' '.join(str(error).split())[-400:]}"
    row = {"fault": name, "outcome": outcome, "lost_steps": lost, "seconds": time.monotonic() - began}
    print(f"{name:<48}{lost:>3} steps lost  {row['seconds']:6.1f} s  {outcome}", flush=True)
    return row


def main() -> int:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="medkit-faults-") as scratch:
        listed = faults(Bench(Path(scratch)))
        chosen = [name for name in listed if not sys.argv[1:] or any(part in name for part in sys.argv[1:])]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            rows = list(pool.map(lambda name: survive(name, listed[name]), chosen))
    survived = [row for row in rows if row["outcome"] == "survived"]
    summary = {
        "faults": len(rows),
        "survived": len(survived),
        "lost_steps_max": max(row["lost_steps"] for row in rows),
        "save_every": tiny_run.STAGE.save_every,
        "seconds": round(time.monotonic() - began, 1),
        "not_survived": [row["fault"] for row in rows if row not in survived],
        "outcomes": rows,
        "hardware": machine.hardware(),
    }
    print(json.dumps(summary))
    return 0 if len(survived) == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
