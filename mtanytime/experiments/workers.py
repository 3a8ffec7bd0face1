"""Processes of this machine that run the cells of a sweep, one after the other each."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time

from mtanytime.checks import require
from mtanytime.experiments.cell import PATIENCE, Job


class Workers:
    """Runs jobs in processes that import torch once; one that crashes fails its cell only, and another replaces it.

    Args:
        count: processes.
        threads: of each.
    """

    def __init__(self, count: int, threads: int = 1) -> None:
        require(count >= 1, "--processes", "a whole number >= 1", count)
        self.count, self.threads = count, threads
        self._idle: list[subprocess.Popen[str]] = []
        self._jobs: dict[str, subprocess.Popen[str]] = {}
        self._answers: queue.Queue[tuple[subprocess.Popen[str], str]] = queue.Queue()

    def prepare(self, count: int) -> None:
        """Start processes for this many jobs: they import torch while the settings are being validated."""
        while len(self._idle) < min(count, self.count):
            self._idle.append(self._started())

    def has_room(self) -> bool:
        """Whether a process is free."""
        return len(self._jobs) < self.count

    def start(self, job: Job) -> None:
        """Give a job to a free process."""
        while True:
            process = self._idle.pop() if self._idle else self._started()
            try:
                process.stdin.write(json.dumps(job) + "\n")
                process.stdin.flush()
                break
            except OSError:  # an idle process that was killed
                _end(process)
        self._jobs[job["name"]] = process

    def wait(self) -> list[tuple[str, str | None]]:
        """Wait up to half a second for a job to end."""
        try:
            process, line = self._answers.get(timeout=0.5)
        except queue.Empty:
            return []
        if line:
            answer = json.loads(line)
            self._idle.append(self._jobs.pop(answer["name"]))
            return [(answer["name"], answer["error"])]
        if process in self._idle:
            self._idle.remove(process)
        names = [name for name, running in self._jobs.items() if running is process]
        for name in names:
            del self._jobs[name]
        _end(process)
        return [(name, f"its process ended with status {process.returncode}") for name in names]

    def stop(self) -> None:
        """Stop all processes: each that runs a job saves a checkpoint at the end of its step."""
        for process in self._idle:
            _end(process)
        processes = list(self._jobs.values())
        self._idle.clear()
        self._jobs.clear()
        until = time.monotonic() + PATIENCE
        try:
            for process in processes:
                with contextlib.suppress(OSError):
                    process.stdin.close()
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()))
        finally:  # also at a second interrupt
            for process in processes:
                _end(process)

    def _started(self) -> "subprocess.Popen[str]":
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        process = subprocess.Popen(
            [sys.executable, "-m", "mtanytime.experiments.cell"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **threads},
            start_new_session=True,  # an interrupt at the keyboard is for the sweep, which stops its processes itself
        )
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        with process.stdout:
            for line in process.stdout:
                self._answers.put((process, line))
        self._answers.put((process, ""))


def _end(process: "subprocess.Popen[str]") -> None:
    """Kill a process, if it still runs, and close its pipes."""
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):
        process.stdin.close()
