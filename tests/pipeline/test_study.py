"""The whole study, every notebook, with a tiny model: what it leaves, and that it opens no connection."""

import json
import os
import subprocess
import sys

import nbformat
import pytest

from medkit.data import builtin

# Python runs this file at the start of every process, the notebooks' kernels too: a connection to anywhere
# but this machine, or the question where a name lies, is written down and refused.
NO_NETWORK = """
import os, sys
def hook(event, args):
    if event in ("socket.connect", "socket.sendto"):
        host = args[1][0] if isinstance(args[1], tuple) else "localhost"  # else a Unix socket's path
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    if host not in ("localhost", "127.0.0.1", "::1", "0.0.0.0"):
        with open(os.environ["ATTEMPTS"], "a") as file:
            print(event, host, file=file)
        raise ConnectionRefusedError(f"{event} {host}: the network is out of bounds")
sys.addaudithook(hook)
"""

SMALL = {
    "data.rows_medqa": 8,
    "data.rows_medmcqa": 8,
    "data.rows_pubmedqa": 24,
    "model.max_length": 4096,  # the tiny tokenizer has a token a byte
    "stage1.max_steps": 2,
    "stage2.max_steps": 2,
    "stage1.eval_rows": 2,
    "stage2.eval_rows": 2,
    "dmt.notechat_train": 6,
    "dmt.notechat_validation": 2,
    "mcq.rows": 4,
    "mcq.generated_rows": 2,
    "mcq.max_new_tokens": 4,
    "consumer.cases": 3,
    "consumer.max_new_tokens": 4,
    "consumer.samples": 1,
}
# The released notebooks' ways, as far as there is no need of a GPU: whole-text loss, the adapter merged and
# quantized anew, answers sampled and searched.
RELEASED = SMALL | {
    "data.mcq_target": "letter",  # a token a byte knows no " A"
    "stage1.packing": "off",
    "stage2.packing": "off",
    "stage1.optimizer": "adamw_torch",
    "stage2.optimizer": "adamw_torch",
    "stage1.gradient_checkpointing": "false",
    "stage2.gradient_checkpointing": "false",
    "stage1.accumulation": 1,
    "stage2.accumulation": 1,
    "consumer.scorer": "minilm",
    "consumer.scorer_layers": 6,
}


@pytest.fixture
def environment(tmp_path):
    """Of processes that have no network, with results and caches of their own."""
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "sitecustomize.py").write_text(NO_NETWORK)
    own = {"PYTHONPATH": str(tmp_path / "start"), "ATTEMPTS": str(tmp_path / "attempts")}
    own |= {"MEDKIT_RESULTS": str(tmp_path / "results"), "MEDKIT_CACHE": str(tmp_path / "cache")}
    # The run itself is to say that it stays offline, not the environment of the tests.
    return {k: v for k, v in os.environ.items() if "OFFLINE" not in k} | own


def test_the_guard_sees_and_refuses(environment, tmp_path):
    code = "import socket\ntry:\n    socket.create_connection(('192.0.2.1', 80), 1)\n"
    code += "except ConnectionRefusedError:\n    print('refused')"
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert said.stdout == "refused\n"
    assert "192.0.2.1" in (tmp_path / "attempts").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "settings", "rows_from_a_folder"),
    [("cpu", SMALL, False), ("as_released", RELEASED, True)],
    ids=["cpu", "as_released on a folder of rows"],
)
def test_the_whole_study(recipe, settings, rows_from_a_folder, environment, tmp_path, tiny_llama_folder):
    settings = settings | {"model.base": tiny_llama_folder}
    command = [sys.executable, "-m", "medkit", "run", recipe, "--run", "tiny"]
    command += [word for field, value in settings.items() for word in ("--set", f"{field}={value}")]
    if rows_from_a_folder:
        command += ["--data-dir", str(builtin.write(tmp_path / "rows"))]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not (tmp_path / "attempts").exists(), (tmp_path / "attempts").read_text()

    for number in (1, 2, 3, 4):
        assert f"Table {number}" in done.stdout
    run = tmp_path / "results" / "tiny"
    info = json.loads((run / "run.json").read_text())
    assert info["status"] == "complete"
    assert len(info["notebooks"]) == 6
    figures = {path.stem for path in (run / "figures").glob("*.png")}
    assert {"figure11", "figure12"} <= figures
    # 4 questions of each of 3 benchmarks by 4 models; 2 of each in words
    assert len((run / "mcq" / "items.csv").read_text().splitlines()) == 1 + 4 * 3 * 4
    assert len((run / "mcq" / "answers.jsonl").read_bytes().splitlines()) == 2 * 3 * 4
    page = (run / "report.html").read_text()
    assert str(tmp_path) not in page and "<script" not in page and len(page) < 2_000_000
    assert "Change after stage 2, in points" in page and page.count('src="data:image/png;base64,') >= 4
    for path in (run / "notebooks").glob("*.ipynb"):
        text = path.read_text()
        assert str(tmp_path) not in text, f"{path.name} names a path of this machine"
        outputs = [o for c in nbformat.reads(text, 4).cells for o in c.get("outputs", [])]
        assert "error" not in {o.output_type for o in outputs}
        assert "%|" not in "".join(o.text for o in outputs if o.output_type == "stream")
