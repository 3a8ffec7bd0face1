"""Run the cells of a sweep as tasks of Ray, on this machine or on a cluster."""

import os
import re
import socket
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from mtanytime.checks import Words, mismatch, one_line, require
from mtanytime.experiments.cell import PATIENCE, Job, run_job

RETRIES = 5  # of a cell whose machine or process died
ANSWER_WITHIN = 30.0  # seconds for a cluster to answer; a busy machine needs ten of them to import Ray
ENVIRONMENT = {  # read when Ray is imported
    "RAY_USAGE_STATS_ENABLED": "0",  # no statistics are sent
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a task without GPUs sees none, and no warning about that
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # no messages of Ray's own: each cell has a log
}


class Cluster:
    """Runs jobs as tasks of Ray. A task whose machine dies is started again elsewhere and continues from its folder.

    Args:
        address: "ray" starts Ray on this machine for the sweep; "auto" or HOST:PORT is a running cluster that this
            machine is part of.
        cpus: of each task, and threads of torch.
        gpus: of each task; a fraction lets several share one. 0 hides them.
        processes: for "ray" alone: tasks at a time (default: as many as there are cores for).

    Raises:
        ImportError: Ray is not installed.
        ValueError: a bad number, an address that does not answer, or no machine with so many CPUs and GPUs.
    """

    def __init__(self, address: str, cpus: int = 1, gpus: float = 0.0, processes: int | None = None) -> None:
        check_address(address, cpus, gpus, processes)
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        self._ray = _import_ray()
        options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
        if address == "ray":
            own = {"include_dashboard": False}
            if processes is not None:
                own["num_cpus"] = processes * cpus
            self._ray.init("local", **own, **options)
        else:
            _check_answer(address)
            self._ray.init(address, **options)
        try:
            self._check_room(cpus, gpus)
        except ValueError:
            self._ray.shutdown()
            raise
        self._gpus = gpus
        task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
        self._task = task(_run_hidden if gpus == 0 else run_job)
        self._names: dict[Any, str] = {}

    def _check_room(self, cpus: int, gpus: float) -> None:
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        for name, option, count in (("CPU", "--cpus", cpus), ("GPU", "--gpus", gpus)):
            most = max((machine.get(name, 0.0) for machine in machines), default=0.0)
            require(count <= most, option, f"at most {most:g}, the {name}s of a machine of the cluster", count)

    def prepare(self, count: int) -> None:
        """Nothing: Ray starts processes for its tasks."""

    def has_room(self) -> bool:
        """Always: Ray keeps the tasks that wait."""
        return True

    def start(self, job: Job) -> None:
        """Submit a job."""
        self._names[self._task.options(name=job["name"]).remote(dict(job))] = job["name"]

    def wait(self) -> list[tuple[str, str | None]]:
        """Wait up to half a second for a job to end."""
        ended, _ = self._ray.wait(list(self._names), num_returns=1, timeout=0.5)
        return [(self._names.pop(task), self._error(task)) for task in ended]

    def _error(self, task: Any) -> str | None:
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            lines = str(error).strip().splitlines() or [""]
            return one_line(f"{type(error).__name__}: {lines[0]} {lines[-1] if len(lines) > 1 else ''}", 300)

    def stop(self) -> None:
        """Interrupt the running tasks, which save a checkpoint at the end of their step, and leave the cluster."""
        try:
            for task in self._names:
                self._ray.cancel(task)
            if self._names:
                self._ray.wait(list(self._names), num_returns=len(self._names), timeout=PATIENCE)
        finally:
            self._names.clear()
            self._ray.shutdown()


def _run_hidden(job: Job) -> str | None:
    """Run a job without accelerators, of which its task has none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return run_job(job)


def _import_ray() -> Any:
    if find_spec("ray") is None:
        raise ImportError("--on: expected Ray, which is not installed; pip install 'mtanytime[cluster]'")
    import ray

    return ray


def check_address(address: str, cpus: int, gpus: float, processes: int | None) -> None:
    """Validate the options of a cluster. ValueError for a bad one."""
    known = address in ("ray", "auto") or re.fullmatch(r"[\w.-]+:\d{1,5}", address) is not None
    remedy = "HOST:PORT is what `ray start --head` prints (port 6379); start the sweep on a machine of the cluster"
    require(known, "--on", "ray, auto or HOST:PORT", address, remedy)
    require(cpus >= 1, "--cpus", "a whole number >= 1", cpus)
    require(0 <= gpus <= 1 or (gpus > 1 and gpus.is_integer()), "--gpus", "a number in [0, 1], or a whole number", gpus)
    require(processes is None or address == "ray", "--processes", "none on a cluster, where --cpus decides", processes)
    require(processes is None or processes >= 1, "--processes", "a whole number >= 1", processes)


def _check_answer(address: str) -> None:
    """Try a cluster from a process of its own, which may hang or be ended by Ray. ValueError if that fails."""
    expected, remedy = "the address of a running Ray cluster", "start one with `ray start --head`"
    if address != "auto":
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except (OSError, OverflowError) as error:
            raise mismatch("--on", expected, Words(f"{address}, which does not answer ({error})"), remedy) from error
    code = "import sys, ray; ray.init(sys.argv[1], logging_level='ERROR', log_to_driver=False)"
    try:
        tried = subprocess.run(
            [sys.executable, "-c", code, address],
            capture_output=True,
            text=True,
            timeout=ANSWER_WITHIN,
            check=False,
        )
        lines = tried.stderr.strip().splitlines() or [f"status {tried.returncode}"]
        reason = None if tried.returncode == 0 else one_line(lines[-1], 300)
    except subprocess.TimeoutExpired:
        reason = f"no answer in {ANSWER_WITHIN:g} s"
    if reason is not None:
        raise mismatch("--on", expected, Words(f"{address}, which does not answer ({reason})"), remedy)
