"""One notebook, executed headless by papermill, and the certainty that all of it ran.

papermill calls a notebook completed whose kernel was killed, whose cell ran out of time or called
sys.exit(0), warns where a parameter is unknown, and takes text for a number. Here each is an error.
"""

import ast
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import NamedTuple

import nbformat

from medkit import MedkitError
from medkit.runs import machine, storage

TYPES = {"str": str, "bool": bool, "int": int, "float": float}
BAR = re.compile(r"\d%\||\d\w* \[\d+:\d\d")  # tqdm: "training:  50%|##   | 34/68 [01:16", "812row [00:01"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY")


class NotebookError(MedkitError):
    """A notebook that is not there, or does not take its parameters; found before a kernel starts."""


class Failure(NamedTuple):
    """Where and why a notebook stopped."""

    cell: int  # counted from 1, markdown cells too, as the executed notebook shows them
    error: str  # one line


def check_parameters(notebook: Path, values: dict) -> None:
    """NotebookError unless each of `values` is a parameter of the notebook and has its declared type."""
    from papermill.translators import PythonTranslator

    if not notebook.is_file():
        raise NotebookError(
            f"{notebook.name} is not in {notebook.parent}; medkit runs from a checkout of its repository"
        )
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError) as error:
        raise NotebookError(f"{notebook.name} is no notebook ({type(error).__name__}); restore it") from None
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        raise NotebookError(f"{notebook.name} has no parameters; tag its parameters cell `parameters`")
    declared = {parameter.name: parameter for parameter in PythonTranslator.inspect(tagged[0])}
    for name, value in values.items():
        if name not in declared:
            raise NotebookError(f"{notebook.name} has no parameter {name!r}; it has {', '.join(declared)}")
        wanted, optional = _declared_type(declared[name])
        # bool is an int to isinstance, and a whole number is a float to everyone but isinstance
        fits = (
            type(value) is wanted or (wanted is float and type(value) is int) or (optional and value is None)
        )
        if not fits:
            raise NotebookError(
                f"{notebook.name}: {name}={value!r} is {type(value).__name__}, not {wanted.__name__}"
            )


def execute(
    notebook: Path,
    output: Path,
    parameters: dict,
    environment: dict,
    *,
    on_cell=None,
    stream=None,
    cell_timeout=None,
) -> Failure | None:
    """Execute `notebook` in a kernel of this interpreter; as far as it came, it is then at `output`.

    environment: variables the kernel gets beside ours. on_cell(number, of): called as a cell starts.
    stream: gets what the kernel prints (`write`, `flush`). cell_timeout: seconds for one cell; None = any.
    Returns None where every code cell ran to its end. SIGTERM and SIGINT are handed on to the kernel as
    SIGTERM, so that training can save, and make a Failure.
    """
    import papermill

    at = {"cell": 0}
    cells = len(nbformat.read(notebook, as_version=4).cells) + 1  # papermill adds one with the parameters

    def cell_starts(cell, cell_index):
        at["cell"] = cell_index + 1
        if on_cell:
            on_cell(cell_index + 1, cells)

    sockets = tempfile.mkdtemp(prefix="medkit-")
    manager, kernels = _kernel_manager(environment, sockets)
    running = output.with_name(f".{output.stem}.running.ipynb")
    running.parent.mkdir(parents=True, exist_ok=True)
    failure, signals = None, []
    try:
        with _handed_on(kernels, signals):
            papermill.execute_notebook(
                _unformatted(notebook),
                _unformatted(running),
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=os.getcwd(),
                kernel_manager_class=manager,
                coalesce_streams=True,
                on_cell_start=cell_starts,
                execution_timeout=cell_timeout,
                stdout_file=stream,
                stderr_file=stream,
            )
    except papermill.PapermillExecutionError as error:
        failure = Failure(at["cell"], f"{error.ename}: {_one_line(error.evalue)}")
    except Exception as error:  # a killed kernel, a timeout, a kernel that does not start
        failure = Failure(at["cell"], _why(error, kernels, cell_timeout))
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    if signals:
        failure = Failure(at["cell"], f"stopped by {signals[0].name}")
    failure = _publish(running, output, notebook, failure, at["cell"])
    return failure and failure._replace(error=_scrub(failure.error))  # it goes into run.json


def _publish(running: Path, output: Path, notebook: Path, failure: Failure | None, cell: int):
    """Put what papermill has written at `output`; the Failure, which may only be seen there."""
    if not running.exists():
        return failure
    try:
        executed = nbformat.read(running, as_version=4)
    except nbformat.reader.NotJSONError:  # the disk was full
        return failure or Failure(cell, f"{running.name} was not written whole")
    failure = failure or unfinished(executed)
    _remove_progress_bars(executed)
    _mark(executed, failure, notebook, output)
    storage.write_text(output, _scrub(nbformat.writes(executed)) + "\n")
    running.unlink()
    return failure


def unfinished(executed) -> Failure | None:
    """The first code cell that raised, exited or was never run; None where there is none."""
    for number, cell in enumerate(executed.cells, 1):
        if cell.cell_type != "code" or not cell.source.strip():
            continue
        for output in cell.outputs:
            if output.output_type == "error":
                called = " (the cell called sys.exit)" if output.ename == "SystemExit" else ""
                return Failure(number, f"{output.ename}: {_one_line(output.evalue)}{called}")
        if cell.execution_count is None:
            return Failure(number, "the cell was not run")
    return None


def _declared_type(parameter) -> tuple[type, bool]:
    """(type, whether None will do) of an inspected parameter; without annotation, the type of its default."""
    name = parameter.inferred_type_name
    if name == "None":
        return type(ast.literal_eval(parameter.default)), False
    optional = re.fullmatch(r"Optional\[(\w+)\]", name)
    name = optional[1] if optional else name
    if name not in TYPES:
        raise NotebookError(f"parameter {parameter.name} is declared {name}; take one of {', '.join(TYPES)}")
    return TYPES[name], bool(optional)


def _kernel_manager(environment: dict, sockets: str):
    """A class of kernels of this very interpreter, whatever is installed, and the list of those started."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    # No history, and none of the user's start-up files: an executed notebook depends on what it shows.
    spec = KernelSpec(**get_kernel_dict(extra_arguments=["--HistoryManager.enabled=False"]))
    spec.env = environment
    started = []

    class OwnSpec(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return spec

    class OwnKernel(AsyncKernelManager):
        def __init__(self, **settings):
            super().__init__(kernel_spec_manager=OwnSpec(), **settings)
            self.connection_file = f"{sockets}/kernel.json"
            if len(sockets) < 80:  # a Unix socket's path may have about a hundred characters
                self.transport, self.ip = "ipc", f"{sockets}/socket"  # no TCP port, and nobody else's to read
            started.append(self)

    return OwnKernel, started


@contextlib.contextmanager
def _handed_on(kernels: list, received: list):
    """While it lasts, SIGTERM and SIGINT go to the kernel as SIGTERM; the second one kills it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def hand_on(number, _frame):
        received.append(signal.Signals(number))
        pids = [kernel.provisioner.pid for kernel in kernels if kernel.provisioner and kernel.provisioner.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if len(received) == 1 else signal.SIGKILL)
        if not pids:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _why(error: Exception, kernels: list, cell_timeout) -> str:
    name = type(error).__name__
    if name == "CellTimeoutError":
        return f"the cell ran longer than {cell_timeout} s"
    if name == "DeadKernelError":
        process = getattr(kernels[-1].provisioner, "process", None) if kernels else None
        code = process.poll() if process else None
        if code is not None and code < 0:
            hint = " (often: out of memory)" if code == -signal.SIGKILL else ""
            return f"the kernel was killed by {signal.Signals(-code).name}{hint}"
        return "the kernel died" if code is None else f"the kernel ended with exit code {code}"
    return f"{name}: {_one_line(str(error))}"


def _remove_progress_bars(executed) -> None:
    """Take finished progress bars out of what cells wrote to standard error: Jupyter shows that in red."""
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                lines = re.split(r"(?<=[\r\n])", output.text)
                output.text = "".join(line for line in lines if line.strip() and not BAR.search(line))
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text]


def _mark(executed, failure: Failure | None, notebook: Path, output: Path) -> None:
    """Correct what papermill's metadata says of the end, and leave no path of this machine in it."""
    about = executed.metadata.papermill
    about["input_path"], about["output_path"] = f"notebooks/{notebook.name}", f"notebooks/{output.name}"
    about["exception"] = failure is not None
    if failure:
        cells = [
            cell for cell in executed.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
        ]
        if 0 < failure.cell <= len(cells):
            cells[failure.cell - 1].metadata.papermill.update(status="failed", exception=True)
        for cell in cells[failure.cell :]:
            cell.metadata.papermill["status"] = "pending"
        about["failure"] = {"cell": failure.cell, "error": failure.error}


def _scrub(text: str) -> str:
    """Without secrets of the environment, and without this machine's folders."""
    for name in SECRETS:
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, "***")
    places = {
        str(machine.CHECKOUT): ".",
        os.getcwd(): ".",
        str(storage.root()): "results",
        sys.prefix: "{python}",
        tempfile.gettempdir(): "{tmp}",
        str(Path.home()): "~",
    }
    for place in sorted(places, key=len, reverse=True):
        # A path begins and ends here: the "/root" of a home is not that of "nerve/root".
        text = re.sub(rf"(?<![\w.~-]){re.escape(place)}(?=[/\\\"'\s:,;)\]]|$)", places[place], text)
    return text


def _one_line(text: str, width: int = 300) -> str:
    text = " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _unformatted(path: Path) -> str:
    """papermill takes a path for a format string."""
    return str(path).replace("{", "{{").replace("}", "}}")
