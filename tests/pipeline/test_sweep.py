"""`medkit sweep` on tiny notebooks: what is shared, what is kept, what is done again, and how it stops."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from medkit import MedkitError
from medkit.pipeline import engines, runner, sweep, sweep_file, trials
from medkit.runs import run_json, storage

TRAINING = 'recipe: str = ""\nrun_dir: str = ""\ndata_dir: str = ""\nsettings: str = ""\nreplay: bool = True'
EVALUATION = 'run_dir: str = ""\ndata_dir: str = ""\nmodels: str = ""'
OPEN = """
import json, os, pathlib
place = pathlib.Path(os.environ["MEDKIT_RESULTS"], pathlib.Path(run_dir).name)
recipe_ = json.loads((place / "run.json").read_text())["recipe"]
def write(name, text):
    (place / name).parent.mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)
"""
# Stage 1's weights are what its seed and, so that a machine can give another, a file say.
STAGE1 = """
machine = pathlib.Path("machine").read_text() if pathlib.Path("machine").exists() else "A"
write("stage1/adapter/adapter_model.safetensors", f"{recipe_['stage1']['seed']} {machine}")
write("stage1/loss.csv", "step\\n1\\n")
write("data/manifest.json", json.dumps({"overlap": {}}))
"""
STAGE2 = """
share = recipe_["dmt"]["replay_share"]
if share == 3 and not pathlib.Path("repaired").exists():
    raise ValueError("share 3 is too much")
if share == 5:
    import time
    write("started", "")
    while not pathlib.Path("go").exists():
        time.sleep(0.05)
begins = (place / "stage1/adapter/adapter_model.safetensors").read_text()
write("stage2/adapter/adapter_model.safetensors", f"{begins} {share}")
write("stage2/loss.csv", "step\\n1\\n")
manifest = {"overlap": {}, "stage2": {"replay": {"share_of_rows": share, "train_ids": ["medqa/1"]}}}
write("data/new.json", json.dumps(manifest))
os.replace(place / "data/new.json", place / "data/manifest.json")
"""
MCQ = """
weights = {"base": "", "med-mix": "stage1", "med-nirvana": "stage2"}
lines = [f"{m},{(place / weights[m] / 'adapter/adapter_model.safetensors').read_text() if weights[m] else ''}"
         for m in models.split(",")]
write("mcq/items.csv", "\\n".join(["model,weights", *lines, ""]))
write("mcq/answers.jsonl", "{}")
"""


@pytest.fixture(scope="module")
def notebook_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notebooks")
    for name, parameters, source in (
        ("01_stage1", TRAINING, STAGE1),
        ("02_stage2", TRAINING, STAGE2),
        ("03_mcq_eval", EVALUATION, MCQ),
    ):
        cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(OPEN + source)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / f"{name}.ipynb")
    return folder


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MEDKIT_RESULTS", raising=False)
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def write_sweep(place, base, shares, seeds=(0, 1)):
    text = f'name = "s"\nrecipe = "cpu"\nseeds = {list(seeds)}\nmeasure = ["mcq"]\n'
    text += f'[settings]\nmodel.base = "{base}"\n'
    text += "".join(f"[arms.k{share}]\ndmt.replay_share = {share}\n" for share in shares)
    (place / "s.toml").write_text(text)


class Here:
    """An engine that executes a trial in this process, without kernels: each notebook's code as it is."""

    at_once = 1

    def __init__(self):
        self.waiting, self.ran = [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Nothing is held."""

    def submit(self, rank, job):
        self.waiting.append((rank, job))

    def next(self):
        self.waiting.sort(key=lambda one: one[0])
        _, job = self.waiting.pop(0)
        self.ran.append(job.name)
        before = os.environ.get("MEDKIT_RESULTS")
        try:
            trials.run(job)
        except (ValueError, MedkitError) as error:
            return job, str(error)
        finally:
            os.environ.pop("MEDKIT_RESULTS")
            if before:
                os.environ["MEDKIT_RESULTS"] = before
        return job, ""


def without_kernels(recipe, *, name, data_dir, settings, resume, steps, folder, fresh=False):
    """runner.run with `exec` in a kernel's place."""
    where = storage.folder(name)
    info = run_json.read(where) or run_json.describe(recipe, "\n".join(settings), data_dir)
    storage.write_json(where / "run.json", info)
    run = run_json.Run(where, info, None)
    for step in steps:
        if info["notebooks"].get(step.name, {}).get("status") == "complete":
            continue
        run.note(step.name, status="running")
        own = {"run_dir": name, "models": step.fixed.get("models", "")}
        code = nbformat.read(folder / f"{step.notebook}.ipynb", 4).cells[1].source
        try:
            exec(code, own)
        except ValueError:
            run.note(step.name, status="failed")
            raise
        storage.write_text(where / "notebooks" / f"{step.name}.ipynb", "{}")
        run.note(step.name, status="complete", seconds=60.0)


@pytest.fixture
def sweep_here(place, monkeypatch, notebook_folder):
    """sweep.run in this process; returns (exit code, trials that ran, what was said)."""
    monkeypatch.setattr(trials.runner, "run", without_kernels)

    def call(**options):
        engine, out = Here(), io.StringIO()
        monkeypatch.setattr(sweep.engines, "choose", lambda *_: engine)
        code = sweep.run("s.toml", notebook_folder=notebook_folder, out=out, **options)
        return code, engine.ran, out.getvalue()

    return call


def outcome(place, name, file="run.json"):
    text = (place / "results" / "s" / "outcomes" / name / file).read_text()
    return json.loads(text) if file.endswith("json") else text


def test_stage_1_is_trained_once_a_seed_and_shared_by_name(place, sweep_here, tiny_llama_folder):
    write_sweep(place, tiny_llama_folder, [0, 1])
    code, ran, said = sweep_here()
    assert code == 0
    assert ran == ["stage1-s0", "k0-s0", "k1-s0", "stage1-s1", "k0-s1", "k1-s1"]
    trials = place / "results" / "s" / "trials"
    weights = "stage1/adapter/adapter_model.safetensors"
    assert (trials / "k0-s0" / weights).samefile(trials / "stage1-s0" / weights)
    assert not (trials / "k0-s1" / weights).samefile(trials / "stage1-s0" / weights)
    info = json.loads((trials / "k1-s0" / "run.json").read_text())
    assert info["shared_stage1"] == {
        "run": "stage1-s0",
        "adapter": storage.sha256(trials / "stage1-s0" / weights),
    }
    assert list(info["notebooks"]) == ["01_stage1", "02_stage2", "03_mcq_eval"]
    assert (trials / "k1-s0" / "notebooks" / "01_stage1.ipynb").samefile(
        trials / "stage1-s0" / "notebooks" / "01_stage1.ipynb"
    )
    # The trial's manifest became its own; the shared one has no stage 2.
    assert "stage2" not in json.loads((trials / "stage1-s0" / "data" / "manifest.json").read_text())

    assert outcome(place, "stage1-s0", "mcq/items.csv") == "model,weights\nbase,\nmed-mix,0 A\n"
    assert outcome(place, "k1-s1", "mcq/items.csv") == "model,weights\nmed-nirvana,1 A 1.0\n"
    assert outcome(place, "k1-s1", "data/manifest.json")["stage2"]["replay"] == {"share_of_rows": 1.0}
    about = outcome(place, "k1-s1")["trial"]
    assert (about["arm"], about["seed"], about["is_stage1"]) == ("k1", 1, False)
    kept = sorted(
        str(path.relative_to(place / "results/s/outcomes/k1-s1"))
        for path in (place / "results/s/outcomes/k1-s1").rglob("*")
        if path.is_file()
    )
    assert kept == ["data/manifest.json", "mcq/items.csv", "run.json", "stage2/loss.csv"]
    assert "k1-s1                   0:0" in said and "6 of 6" in said


def test_an_earlier_sweep_is_not_mixed_with(place, sweep_here, tiny_llama_folder):
    write_sweep(place, tiny_llama_folder, [0], seeds=[0])
    sweep_here()
    with pytest.raises(MedkitError, match=r"results/s contains a sweep; continue it with --resume"):
        sweep_here()
    code, ran, said = sweep_here(resume=True)
    assert (code, ran) == (0, [])
    assert "2 runs, 0 to do" in said
    text = (place / "s.toml").read_text()
    (place / "s.toml").write_text(text.replace("[arms.k0]", "[arms.k0]\nstage2.epochs = 2"))
    with pytest.raises(MedkitError, match=r"k0-s0 was run with stage2\.epochs=1\.0, the sweep has 2\.0"):
        sweep_here(resume=True)


def test_a_failed_trial_is_named_and_the_others_go_on(place, sweep_here, tiny_llama_folder):
    write_sweep(place, tiny_llama_folder, [3, 0], seeds=[0])
    code, ran, said = sweep_here()
    assert code == 1
    assert ran == ["stage1-s0", "k3-s0", "k0-s0"]
    assert "failed: k3-s0: share 3 is too much" in said
    (place / "repaired").touch()
    assert sweep_here(resume=True)[:2] == (0, ["k3-s0"])


def test_what_goes_on_from_a_failed_stage_1_is_named_too(place, sweep_here, tiny_llama_folder, monkeypatch):
    write_sweep(place, tiny_llama_folder, [0], seeds=[0, 1])
    real = trials.runner.run

    def fails(recipe, *, name, **options):
        if name == "stage1-s0":
            raise MedkitError("no memory")
        return real(recipe, name=name, **options)

    monkeypatch.setattr(trials.runner, "run", fails)
    code, ran, said = sweep_here()
    assert (code, ran) == (1, ["stage1-s0", "stage1-s1", "k0-s1"])
    assert "failed: stage1-s0: no memory" in said
    assert "failed: k0-s0: stage1-s0, which it continues from, failed" in said


def test_a_clone_with_the_outcomes_alone_does_only_what_is_missing(place, sweep_here, tiny_llama_folder):
    write_sweep(place, tiny_llama_folder, [0, 1])
    sweep_here()
    before = outcome(place, "k0-s0")
    shutil.rmtree(place / "results/s/trials")
    assert sweep_here(resume=True)[1] == []
    shutil.rmtree(place / "results/s/outcomes/k1-s0")
    # The same stage 1 comes out: the other trial of the seed stays as it was.
    code, ran, _ = sweep_here(resume=True)
    assert (code, ran) == (0, ["stage1-s0", "k1-s0"])
    assert outcome(place, "k0-s0") == before
    # Without stage 1 it is not known whether it is the same; it was, and no more is left to do.
    shutil.rmtree(place / "results/s/trials")
    shutil.rmtree(place / "results/s/outcomes/stage1-s0")
    code, ran, said = sweep_here(resume=True)
    assert (code, ran) == (0, ["stage1-s0"])
    assert said.endswith("complete  6 of 6\n")


def test_another_stage_1_has_all_trials_of_its_seed_done_again(place, sweep_here, tiny_llama_folder):
    write_sweep(place, tiny_llama_folder, [0, 1])
    sweep_here()
    shutil.rmtree(place / "results/s/trials")
    shutil.rmtree(place / "results/s/outcomes/k1-s0")
    (place / "machine").write_text("B")
    code, ran, said = sweep_here(resume=True)
    assert (code, ran) == (0, ["stage1-s0", "k0-s0", "k1-s0"])
    assert "stage1-s0 differs from the one that 1 finished trials continued from" in said
    assert outcome(place, "k0-s0", "mcq/items.csv").endswith("0 B 0.0\n")
    assert outcome(place, "k0-s1", "mcq/items.csv").endswith("1 A 0.0\n")
    # Broken off before they were: the outcomes of the old stage 1 do not count as done.
    shutil.rmtree(place / "results/s/trials")
    info = outcome(place, "k0-s0")
    info["trial"]["stage1_adapter"] = "of another"
    storage.write_json(place / "results/s/outcomes/k0-s0/run.json", info)
    assert sweep_here(resume=True)[1] == ["stage1-s0", "k0-s0"]


def test_everything_is_refused_before_anything_is_written(place, sweep_here, tiny_llama_folder):
    write_sweep(place, place / "absent", [0])
    with pytest.raises(MedkitError, match="absent is not a model folder"):
        sweep_here()
    write_sweep(place, tiny_llama_folder, [0])
    with pytest.raises(MedkitError, match="--data-dir nowhere is not a folder"):
        sweep_here(data_dir="nowhere")
    assert not (place / "results").exists() or not any((place / "results").iterdir())


def test_a_dry_run_lists_trials_hours_and_disk_and_runs_nothing(
    place, sweep_here, tiny_llama_folder, notebook_folder
):
    write_sweep(place, tiny_llama_folder, [0, 1])
    said = sweep.dry_run("s.toml", notebook_folder=notebook_folder)
    assert re.search(r"  k1-s0 +to do  from stage1-s0  .*dmt\.replay_share=1\n", said)
    hours = re.search(r"to do: 2 stage 1, 4 trials; about (\S+) h one after another in training alone", said)
    assert float(hours[1]) > 0
    assert not (place / "results").exists() or not any((place / "results").iterdir())
    write_sweep(place, tiny_llama_folder, [0], seeds=[0])
    sweep_here()
    write_sweep(place, tiny_llama_folder, [0, 1])
    said = sweep.dry_run("s.toml", notebook_folder=notebook_folder)
    # Left are k1-s0, stage1-s1 and two of its trials. A stage 1 took 2 notebooks of 60 s, a trial 2 as well.
    assert "to do: 1 stage 1, 3 trials; about 0.13 h" in said  # 4 x 120 s = 480 s
    assert "GB free" in said


SCRIPT = """
import pathlib, sys
from medkit.__main__ import _finish
from medkit.pipeline import sweep
sys.exit(_finish(lambda: sweep.run("s.toml", resume="--resume" in sys.argv,
                                   notebook_folder=pathlib.Path(sys.argv[1]))))
"""


@pytest.mark.slow
def test_stopped_and_killed_it_goes_on_where_it_was(place, notebook_folder, tiny_llama_folder):
    """With real kernels: SIGTERM, SIGKILL, and then to the end."""
    write_sweep(place, tiny_llama_folder, [5], seeds=[0])
    started = place / "results/s/trials/k5-s0/started"

    def start(*arguments):
        started.unlink(missing_ok=True)
        command = [sys.executable, "-c", SCRIPT, str(notebook_folder), *arguments]
        process = subprocess.Popen(command, cwd=place, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not started.exists() and not (place / "go").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        return process

    process = start()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "stopped; continue with medkit sweep s.toml --resume" in said

    process = start("--resume")
    process.kill()
    process.communicate(timeout=60)  # the trial, which holds our end of the pipe, has ended too
    (place / "go").touch()
    process = start("--resume")
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "2 runs, 1 to do" in said
    assert outcome(place, "k5-s0", "mcq/items.csv") == "model,weights\nmed-nirvana,0 A 5.0\n"
    assert not list((place / "results/s/trials").glob(".*"))  # no lock, no error, nothing set aside


def job(tmp_path, name="k0-s0", stage1="stage1-s0", settings=(), measure=("mcq", "consumer")):
    is_stage1 = name.startswith("stage1")
    return trials.Job(str(tmp_path), "cpu", name, settings, stage1, is_stage1, measure)


def test_a_trial_is_stage_2_and_its_own_models(tmp_path):
    """A stage 1 is measured beside the base, once a seed; a trial has only what is its own."""
    given = {"recipe": "cpu", "run_dir": "results/x", "data_dir": "", "settings": ""}

    def steps(one):
        chosen = trials.steps(one)
        runner.step_parameters(chosen, runner.NOTEBOOK_FOLDER, given)  # the real notebooks take them
        return {step.name: step.fixed.get("models", step.fixed.get("replay")) for step in chosen}

    assert steps(job(tmp_path, "stage1-s0", "")) == {
        **{"01_stage1": None, "03_mcq_eval": "base,med-mix", "04_consumer_eval": "base"}
    }
    assert steps(job(tmp_path)) == {
        **{"02_stage2": True, "03_mcq_eval": "med-nirvana", "04_consumer_eval": "med-nirvana"}
    }
    assert steps(job(tmp_path, measure=("consumer",))) == {
        "02_stage2": True,
        "04_consumer_eval": "med-nirvana",
    }
    relearned = steps(job(tmp_path, settings=("dmt.relearn_steps=2",)))
    assert relearned == {
        **{"02_stage2": True, "03_mcq_eval": "med-nirvana,relearned", "04_consumer_eval": "med-nirvana"}
    }
    # One stage for everything waits for no stage 1, and needs none of its files.
    joint = trials.steps(job(tmp_path, stage1="", settings=("dmt.handover=joint",)))
    assert [step.needs for step in joint] == [(), ("stage2/adapter",), ("stage2/adapter",)]


def test_a_trial_that_was_killed_is_named_with_the_signal(tmp_path):
    one = job(tmp_path)
    assert engines.failure(one, -9) == "its process was ended by SIGKILL"
    assert engines.failure(one, 3) == "exit code 3"
    storage.write_text(trials.error_file(one), "no memory\n")
    assert engines.failure(one, 1) == "no memory"


def test_ray_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MedkitError, match=re.escape("pip install -e '.[cluster]'")):
        engines.choose("ray", 2)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "sweeps").glob("*.toml")), ids=str)
def test_the_sweeps_of_the_repository_can_be_read(path):
    assert sweep_file.read(path).name.replace("-", "_") == path.stem


def test_a_trial_of_an_earlier_stage_1_is_done_again(place, sweep_here, tiny_llama_folder):
    """Its folder is still there, with the earlier stage 1 in it."""
    write_sweep(place, tiny_llama_folder, [0], seeds=[0])
    sweep_here()
    for part in ("trials", "outcomes"):
        shutil.rmtree(place / "results/s" / part / "stage1-s0")
    (place / "machine").write_text("B")
    assert sweep_here(resume=True)[1] == ["stage1-s0", "k0-s0"]
    assert outcome(place, "k0-s0", "mcq/items.csv").endswith("0 B 0.0\n")
