"""A hub that does not answer is one line in seconds; one whose connection breaks is asked again."""

import json
import os
import subprocess
import sys
import threading
import time
import typing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from medkit import MedkitError, recipes
from medkit.__main__ import main
from medkit.data import hub
from medkit.runs import inputs

ONLINE = {name: value for name, value in os.environ.items() if "OFFLINE" not in name}


UNREACHABLE = [
    ("check", "recommended"),
    ("check", "paper", "--json"),
    ("check", "recommended", "--set", "model.base={base}"),
    ("run", "recommended"),
    ("run", "cpu", "--only", "01", "--set", "data.origin=hub", "--set", "model.base={base}"),
    ("run", "cpu", "--set", "model.base=org/model"),
    ("mcq", "org/model"),
]
MISSING = {"{base}": "GBaker/MedQA-USMLE-4-options@", "org/model": "org/model"}


def assert_one_line(code: int, out: str, said: str, arguments) -> None:
    missing = next(
        (name for word, name in MISSING.items() if arguments[-1].endswith(word)),
        "unsloth/Meta-Llama-3.1-8B-Instruct-bnb-4bit",
    )
    assert (code, out) == (2, "")
    assert said.startswith("medkit: http://localhost:1 cannot be reached (")
    assert missing in said
    assert said.endswith("give rows with --data-dir DIR and a model with --set model.base=DIR\n")
    assert said.count("\n") == 1


@pytest.mark.parametrize("arguments", UNREACHABLE)
def test_a_hub_out_of_reach_is_one_line(arguments, online, monkeypatch, capsys, tmp_path, tiny_llama_folder):
    monkeypatch.setattr(hub.constants, "ENDPOINT", "http://localhost:1")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MEDKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    code = main([word.format(base=tiny_llama_folder) for word in arguments])
    assert_one_line(code, *capsys.readouterr(), arguments)
    assert not (tmp_path / "results").exists()


def test_a_hub_out_of_reach_is_told_in_seconds(tmp_path):
    """The command itself, whose libraries have read no switch but those of its environment."""
    began = time.monotonic()
    own = {"HF_HOME": str(tmp_path / "hub"), "MEDKIT_CACHE": str(tmp_path / "cache")}
    ended = subprocess.run(
        [sys.executable, "-m", "medkit", *UNREACHABLE[0]],
        env=ONLINE | own | {"HF_ENDPOINT": "http://localhost:1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert_one_line(ended.returncode, ended.stdout, ended.stderr, UNREACHABLE[0])
    assert time.monotonic() - began < 30  # ten seconds on a machine that does nothing else


CONTENT = b'{"model_type": "llama"}'


class Hub(BaseHTTPRequestHandler):
    """Serves one model's config.json: busy when first asked for it, and gone in the middle of sending it."""

    asked: typing.ClassVar[list[str]] = []

    def answer(self, body: bool):
        asked = f"{self.command} {self.path}"
        first = asked not in self.asked
        self.asked.append(asked)
        if not self.path.endswith("config.json"):
            self.send_response(200)
            self.end_headers()
            return
        if first and not body:
            self.send_response(503)
            self.end_headers()
            return
        begin = 0
        if "Range" in self.headers:  # bytes=BEGIN-
            begin = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
        self.send_response(206 if begin else 200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"b"')
        self.send_header("Content-Length", str(len(CONTENT) - begin))
        self.end_headers()
        if body:
            self.wfile.write(CONTENT[begin:10] if first else CONTENT[begin:])

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Hub.asked = []
    server = ThreadingHTTPServer(("localhost", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://localhost:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


CODE = """
import json
from medkit import recipes
from medkit.data import hub
from medkit.runs import inputs
inputs.connect(recipes.get("recommended"), "")
config = inputs.check_hub("org/model", "main", "")
print(json.dumps([hub.offline(), hub.unreachable(), config.read_text()]))
"""


def test_a_connection_that_breaks_in_the_middle_is_tried_again(server, tmp_path):
    own = {"HF_ENDPOINT": server, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
    ended = subprocess.run([sys.executable, "-c", CODE], env=ONLINE | own, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert json.loads(ended.stdout) == [False, False, CONTENT.decode()]
    asked = [line.split()[0] for line in Hub.asked if line.endswith("config.json")]
    assert Hub.asked[0] == "HEAD /"
    assert asked == ["HEAD", "HEAD", "GET", "GET"]


@pytest.fixture
def online(monkeypatch):
    """This process as one that may ask the hub."""
    monkeypatch.setattr(hub, "_AS_STARTED", (dict.fromkeys(hub.OFFLINE), False))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)
    for name in hub.OFFLINE:
        monkeypatch.setenv(name, "")
    yield
    monkeypatch.undo()
    hub.connect(False)
    hub.set_offline(False)


class Session:
    def __init__(self, does):
        self.does = does

    def head(self, url, timeout):
        self.does()


def fails(error):
    def does():
        raise error

    return does


@pytest.mark.parametrize(
    ("does", "said"),
    [
        (fails(OSError("[Errno -2] Name or service not known")), "Name or service not known"),
        (fails(OSError("two\nlines")), "two lines"),
        (fails(TimeoutError()), "TimeoutError"),
        (fails(RuntimeError("certificate verify failed")), "certificate verify failed"),
        (lambda: time.sleep(5), "no answer within 0.2 s"),  # a name that nobody looks up has no time limit
    ],
)
def test_why_the_hub_does_not_answer(online, monkeypatch, does, said):
    monkeypatch.setattr(hub, "get_session", lambda: Session(does))
    monkeypatch.setattr(hub, "WAIT", 0.2)
    hub.connect(True)
    assert hub.unreachable() and hub.offline()
    with pytest.raises(hub.HubError, match=said) as refused:
        hub.raise_if_hub_error("org/model", ValueError())
    assert "\n" not in str(refused.value)
    # The network is back, in the same kernel.
    monkeypatch.setattr(hub, "get_session", lambda: Session(lambda: None))
    hub.connect(True)
    assert not hub.unreachable() and not hub.offline()
    hub.raise_if_hub_error("org/model", ValueError())


def test_a_private_run_and_one_told_to_stay_offline_ask_nobody(online, monkeypatch):
    monkeypatch.setattr(hub, "get_session", fails(AssertionError("asked")))
    hub.connect(False)
    assert hub.offline() and not hub.unreachable()
    monkeypatch.setattr(hub, "_AS_STARTED", (hub.OFFLINE, True))
    hub.connect(True)
    assert hub.offline() and not hub.unreachable()
    with pytest.raises(MedkitError, match="HF_HUB_OFFLINE is set"):
        inputs.check_model_files("org/model")


def test_what_is_in_the_cache_needs_no_hub(online, monkeypatch, tmp_path, tiny_llama_folder):
    """A base that was fetched before serves; without its weights it is refused before anything starts."""
    monkeypatch.setattr(hub, "get_session", lambda: Session(fails(OSError("no route"))))
    folder = tmp_path / "snapshot"
    folder.mkdir()
    for file in tiny_llama_folder.iterdir():
        (folder / file.name).symlink_to(file)
    monkeypatch.setattr(inputs, "hf_hub_download", lambda *_, **__: str(folder / "config.json"))
    recipe = recipes.get("recommended", {"model.base": "org/model"})
    inputs.connect(recipe, "")
    (folder / "model.safetensors").unlink()
    with pytest.raises(hub.HubError, match="org/model is not in its cache"):
        inputs.connect(recipe, "")


def test_a_cache_of_the_hub_that_cannot_be_written():
    with pytest.raises(hub.HubError, match=r"/hf/x; set HF_HOME"):
        hub.raise_if_hub_error("org/model", OSError(30, "Read-only file system", "/hf/x"))
    hub.raise_if_hub_error("org/model", OSError("no such repository"))


def test_datasets_loaded_already_stays_offline_too(online):
    import datasets

    hub.set_offline(True)
    assert datasets.config.HF_HUB_OFFLINE
    hub.set_offline(False)
    assert not datasets.config.HF_HUB_OFFLINE
