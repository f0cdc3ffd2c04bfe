"""Executes one notebook with papermill and checks that all of it ran.

papermill reports a notebook as completed when its kernel was killed, or when a cell timed out or called
sys.exit(0). It only warns about an unknown parameter, and accepts text for a number. Here these are errors.
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
# tqdm's: "training:  50%|##   | 34/68 [01:16", "812row [00:01"
PROGRESS_BAR = re.compile(r"\d%\||\d\w* \[\d+:\d\d")
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "WANDB_API_KEY")


class Failure(NamedTuple):
    """Where and why a notebook stopped."""

    cell: int  # position in the executed notebook from 1, markdown cells included
    error: str  # one line


def check_parameters(notebook: Path, values: dict) -> None:
    """Raise MedkitError unless each value is a parameter of the notebook and has the declared type."""
    from papermill.translators import PythonTranslator

    if not notebook.is_file():
        raise MedkitError(
            f"{notebook.name} is not in {notebook.parent}; medkit runs from a checkout of its repository"
        )
    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError, KeyError) as error:
        raise MedkitError(f"{notebook.name} is not a notebook ({type(error).__name__}); restore it") from None
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if not tagged:
        raise MedkitError(f"{notebook.name} has no parameters; tag its parameters cell `parameters`")
    declared = {parameter.name: parameter for parameter in PythonTranslator.inspect(tagged[0])}
    for name, value in values.items():
        if name not in declared:
            raise MedkitError(f"{notebook.name} has no parameter {name!r}; it has {', '.join(declared)}")
        kind, optional = _declared_type(declared[name])
        # Not isinstance: it takes True for an int, and does not take 1 for a float.
        valid = type(value) is kind or (kind is float and type(value) is int) or (optional and value is None)
        if not valid:
            raise MedkitError(
                f"{notebook.name}: {name}={value!r} is {type(value).__name__}, not {kind.__name__}"
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
    """Execute `notebook` in a kernel of this interpreter and write it to `output`, even if it fails.

    environment: variables for the kernel, in addition to this process's. on_cell(number, total): called when
    a cell starts. stream: receives the kernel's output (`write`, `flush`). cell_timeout: seconds per cell.
    Returns None if every code cell ran to its end. SIGTERM and SIGINT are forwarded to the kernel as SIGTERM,
    so that training can save; the result is then a Failure.
    """
    import papermill

    current_cell = 0
    total = len(nbformat.read(notebook, as_version=4).cells) + 1  # papermill adds a cell for the parameters

    def on_cell_start(cell, cell_index):
        nonlocal current_cell
        current_cell = cell_index + 1
        if on_cell:
            on_cell(current_cell, total)

    sockets = tempfile.mkdtemp(prefix="medkit-")
    manager, kernels = _kernel_manager(environment, sockets)
    partial = output.with_name(f".{output.stem}.running.ipynb")
    partial.parent.mkdir(parents=True, exist_ok=True)
    failure, signals = None, []
    try:
        with _forward_signals(kernels, signals):
            papermill.execute_notebook(
                _escape_braces(notebook),
                _escape_braces(partial),
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                cwd=os.getcwd(),
                kernel_manager_class=manager,
                coalesce_streams=True,
                on_cell_start=on_cell_start,
                execution_timeout=cell_timeout,
                stdout_file=stream,
                stderr_file=stream,
            )
    except papermill.PapermillExecutionError as error:
        failure = Failure(current_cell, f"{error.ename}: {_one_line(error.evalue)}")
    except Exception as error:  # a killed kernel, a timeout, a kernel that does not start
        failure = Failure(current_cell, _kernel_error(error, kernels, cell_timeout))
    finally:
        shutil.rmtree(sockets, ignore_errors=True)
    if signals:
        failure = Failure(current_cell, f"stopped by {signals[0].name}")
    failure = _publish(partial, output, notebook, failure, current_cell)
    return failure and failure._replace(error=_scrub(failure.error))  # run.json contains it


def _publish(partial: Path, output: Path, notebook: Path, failure: Failure | None, cell: int):
    """Clean papermill's file and move it to `output`. Returns the failure, or one found in its cells."""
    if not partial.exists():
        return failure
    try:
        executed = nbformat.read(partial, as_version=4)
    except nbformat.reader.NotJSONError:  # the disk was full
        return failure or Failure(cell, f"{partial.name} is incomplete")
    failure = failure or unfinished(executed)
    _remove_progress_bars(executed)
    _correct_metadata(executed, failure, notebook, output)
    storage.write_text(output, _scrub(nbformat.writes(executed)) + "\n")
    partial.unlink()
    return failure


def unfinished(executed) -> Failure | None:
    """The first code cell that raised, exited or was not run; None if all ran."""
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
    """(type, whether None is allowed) of a parameter. Without an annotation the default's type counts."""
    name = parameter.inferred_type_name
    if name == "None":
        return type(ast.literal_eval(parameter.default)), False
    optional = re.fullmatch(r"Optional\[(\w+)\]", name)
    name = optional[1] if optional else name
    if name not in TYPES:
        raise MedkitError(f"parameter {parameter.name} is declared {name}; use one of {', '.join(TYPES)}")
    return TYPES[name], bool(optional)


def _kernel_manager(environment: dict, sockets: str):
    """(class of kernels that run this interpreter, list of the kernels it has started)."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    # Without history: an executed notebook depends only on what it contains.
    spec = KernelSpec(**get_kernel_dict(extra_arguments=["--HistoryManager.enabled=False"]))
    spec.env = environment
    started = []

    class SpecManager(KernelSpecManager):
        def get_kernel_spec(self, kernel_name):
            return spec

    class Manager(AsyncKernelManager):
        def __init__(self, **settings):
            super().__init__(kernel_spec_manager=SpecManager(), **settings)
            self.connection_file = f"{sockets}/kernel.json"
            if len(sockets) < 80:  # a Unix socket's path may have about a hundred characters
                self.transport, self.ip = "ipc", f"{sockets}/socket"  # no TCP port that others could read
            started.append(self)

    return Manager, started


@contextlib.contextmanager
def _forward_signals(kernels: list, received: list):
    """Forward SIGTERM and SIGINT to the kernel as SIGTERM; a second signal kills it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return

    def forward(number, _frame):
        received.append(signal.Signals(number))
        pids = [kernel.provisioner.pid for kernel in kernels if kernel.provisioner and kernel.provisioner.pid]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if len(received) == 1 else signal.SIGKILL)
        if not pids:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except KeyboardInterrupt:
        if not received:
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _kernel_error(error: Exception, kernels: list, cell_timeout) -> str:
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
    """Remove progress bars from the cells' standard error, which Jupyter displays in red."""
    for cell in executed.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                lines = re.split(r"(?<=[\r\n])", output.text)
                output.text = "".join(
                    line for line in lines if line.strip() and not PROGRESS_BAR.search(line)
                )
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text]


def _correct_metadata(executed, failure: Failure | None, notebook: Path, output: Path) -> None:
    """Make papermill's metadata agree with the failure, and remove paths of this machine from it."""
    metadata = executed.metadata.papermill
    metadata["input_path"], metadata["output_path"] = f"notebooks/{notebook.name}", f"notebooks/{output.name}"
    metadata["exception"] = failure is not None
    if failure:
        tag = "papermill-error-cell-tag"  # cells that papermill adds
        cells = [cell for cell in executed.cells if tag not in cell.metadata.get("tags", [])]
        if 0 < failure.cell <= len(cells):
            cells[failure.cell - 1].metadata.papermill.update(status="failed", exception=True)
        for cell in cells[failure.cell :]:
            cell.metadata.papermill["status"] = "pending"
        metadata["failure"] = {"cell": failure.cell, "error": failure.error}


def _scrub(text: str) -> str:
    """Replace the environment's secrets and this machine's folders."""
    for name in SECRETS:
        if len(value := os.environ.get(name, "")) >= 8:
            text = text.replace(value, "***")
    replacements = {
        str(machine.CHECKOUT): ".",
        os.getcwd(): ".",
        str(storage.root()): "results",
        sys.prefix: "{python}",
        tempfile.gettempdir(): "{tmp}",
        str(Path.home()): "~",
    }
    for folder in sorted(replacements.keys() - {"/"}, key=len, reverse=True):  # a home, or working folder
        # Match whole paths only: a home of "/root" must not match in "nerve/root".
        pattern = rf"(?<![\w.~-]){re.escape(folder)}(?=[/\\\"'\s:,;)\]]|$)"
        text = re.sub(pattern, replacements[folder], text)
    return text


def _one_line(text: str, width: int = 300) -> str:
    text = " ".join(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _escape_braces(path: Path) -> str:
    """papermill treats a path as a format string."""
    return str(path).replace("{", "{{").replace("}", "}}")
