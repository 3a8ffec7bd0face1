"""Sweeps of tiny runs, and an executor that runs them in the test's own process."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch

from mtanytime.experiments.cell import Job, run_job
from mtanytime.experiments.grid import Grid, make_grid
from mtanytime.experiments.sweep import sweep

TINY = {"letters_per_class": "2", "epochs": "3", "digits_per_class": "4", "batch_size": "10"}
TINY |= {"scored_on": "validation", "checkpoint_seconds": "0"}
OVER = {"methods": "scratch,matching_one", "lr": "0.1,0.05,0.01"}


class Inline:
    """Runs each job at once, in this process; `before` is called with each of them first."""

    def __init__(self, before: Callable[[Job], object] = lambda job: None) -> None:
        self.before, self.ran, self.ended = before, [], []

    def prepare(self, count: int) -> None:
        """Do nothing."""

    def has_room(self) -> bool:
        """Whether the last job was waited for."""
        return not self.ended

    def start(self, job: Job) -> None:
        """Run a job."""
        self.before(job)
        self.ran.append(job["name"])
        self.ended.append((job["name"], run_job(job)))

    def wait(self) -> list[tuple[str, str | None]]:
        """The job that ended."""
        return [self.ended.pop()]

    def stop(self) -> None:
        """Do nothing."""


def tiny_grid(seeds: tuple[int, ...] = (0, 1), **over: str) -> Grid:
    """A sweep of the recipe smoke: twelve runs by default, of a second each."""
    return make_grid("smoke", seeds, over or OVER, TINY)


def run_tiny(folder: Path, seeds: tuple[int, ...], over: dict[str, str]) -> None:
    """Run a sweep in a process of its own."""
    torch.set_num_threads(1)
    sweep(tiny_grid(seeds, **over), folder, Inline(), progress=False)


def command(grid: Grid, folder: Path, *options: str) -> list[str]:
    """The command that runs a grid."""
    words = grid.command.replace("python -m", f"{sys.executable} -W error -m", 1).replace("FOLDER", str(folder))
    return [*words.split(" "), *options]


def results(folder: Path) -> str:
    """The bytes of a sweep's results, but for the seconds."""
    header, _, rest = (folder / "results.csv").read_text().partition("\n")
    table = pd.read_csv(io.StringIO(rest), dtype=str)
    assert table["train_seconds"].notna().all()
    return header + "\n" + table.drop(columns="train_seconds").to_csv(index=False)


def environment() -> dict[str, str]:
    """The environment of processes with one thread."""
    return {**os.environ, "OMP_NUM_THREADS": "1"}
