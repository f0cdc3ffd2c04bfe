"""Engines that execute a sweep's trials: one by one on this machine, or as tasks on a Ray cluster."""

import contextlib
import os
import signal
import subprocess
import time

from medkit import MedkitError
from medkit.pipeline.trials import Job, error_file


class Stopped(Exception):
    """Raised after SIGINT or SIGTERM, when the running trials have saved and ended."""


class Local:
    """Executes one trial at a time on this machine, lowest rank first."""

    at_once = 1

    def __init__(self):
        self._waiting: list[tuple[int, Job]] = []
        self._child: subprocess.Popen | None = None
        self._signals: list[int] = []

    def __enter__(self):
        self._handlers = {n: signal.signal(n, self._stop) for n in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def submit(self, rank: int, job: Job) -> None:
        self._waiting.append((rank, job))

    def next(self) -> tuple[Job, str]:
        """Wait for a trial. Returns (its job, why it failed or ""); raises Stopped after a signal."""
        self._waiting.sort(key=lambda ranked: ranked[0])
        _, job = self._waiting.pop(0)
        if not self._signals:
            # In a new session, so that the terminal does not send it Ctrl-C as well: a second signal kills.
            self._child = subprocess.Popen(job.command, stdin=subprocess.PIPE, start_new_session=True)
            if self._signals:  # received between the check and the start
                self._child.terminate()
            code = self._child.wait()
            if self._child.stdin:
                self._child.stdin.close()
        if self._signals:
            raise Stopped
        return job, failure(job, code)

    def _stop(self, number, _frame) -> None:
        self._signals.append(number)
        if self._child and self._child.poll() is None:
            self._child.terminate()


class Ray:
    """Executes each trial as a task of Ray Core. All nodes must share the results folder.

    If a task's worker or node is lost, Ray starts the task again and the trial resumes from its checkpoints.
    A trial gets `cpus` cores and, if the cluster has GPUs, one of them; Ray hides the others.
    """

    def __init__(self, cpus: int):
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        try:
            import ray
        except ImportError:
            raise MedkitError(
                "--engine ray needs Ray; install it with: pip install -e '.[cluster]'"
            ) from None
        self._ray, self._cpus, self._running = ray, cpus, {}

    def __enter__(self):
        ray = self._ray
        if not ray.is_initialized():
            # These settings do not apply to a cluster that is already running.
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        resources = ray.cluster_resources()
        if resources.get("CPU", 0) < self._cpus:
            raise MedkitError(
                f"a trial needs {self._cpus} cores, the Ray cluster has {resources.get('CPU', 0):.0f}; "
                "lower cpus"
            )
        gpus = 1 if resources.get("GPU", 0) else 0
        self.at_once = int(resources["GPU"]) if gpus else int(resources["CPU"] // self._cpus)
        self._task = ray.remote(num_cpus=self._cpus, num_gpus=gpus, max_retries=3)(_trial)
        self._handler = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._handler)
        self._ray.shutdown()

    def submit(self, rank: int, job: Job) -> None:
        self._running[self._task.remote(job, os.getcwd(), _environment())] = job

    def next(self) -> tuple[Job, str]:
        try:
            (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        except KeyboardInterrupt:
            for task in self._running:
                self._ray.cancel(task)  # raises KeyboardInterrupt in _trial
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=120)
            raise Stopped from None
        job = self._running.pop(done)
        try:
            return job, failure(job, self._ray.get(done))
        except self._ray.exceptions.RayError as error:  # lost more than max_retries times
            return job, " ".join(str(error).split())[:300]


def _interrupt(*_):
    raise KeyboardInterrupt


def _environment() -> dict[str, str]:
    """The variables of this process that trials on all nodes need: medkit's, Python's and the hub's."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("MEDKIT_", "HF_", "PYTHONPATH", "TRANSFORMERS_", "TOKENIZERS_"))
    }


def _trial(job: Job, folder: str, environment: dict[str, str]) -> int:
    """Run a trial in a child of the Ray worker, in working folder `folder`. Returns its exit code."""
    log = job.folder.with_name(f"{job.name}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        child = subprocess.Popen(
            job.command,
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=file,
            start_new_session=True,
            cwd=folder,
            env=os.environ | environment,
        )
        # Ray cancels with SIGINT, which is ignored if the sweep was started in a shell's background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            while child.poll() is None:  # not child.wait(): Ray cancels between two statements only
                time.sleep(0.5)
            return child.returncode
        except BaseException:  # cancelled
            child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(100)
            raise


def failure(job: Job, code: int) -> str:
    """Why a trial failed, in one line; "" if it succeeded. code: its exit code."""
    if code == 0:
        return ""
    path = error_file(job)
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def choose(name: str, cpus: int) -> Local | Ray:
    return Ray(cpus) if name == "ray" else Local()
