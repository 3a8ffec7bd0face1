"""The commands `sweep`, which runs a grid of runs, and `table`, which summarizes results."""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import pandas as pd

from mtanytime.checks import require
from mtanytime.console import say
from mtanytime.experiments.cell import LOG
from mtanytime.experiments.cluster import Cluster, check_address
from mtanytime.experiments.grid import make_grid
from mtanytime.experiments.options import add_run_options, pairs, settings_of
from mtanytime.experiments.summary import as_markdown, load_results, summarize
from mtanytime.experiments.sweep import check_folder, sweep
from mtanytime.experiments.workers import Workers
from mtanytime.whole_files import write_whole


def add_sweep(commands: Any) -> None:
    """Declare `sweep`."""
    help = "run a grid of methods, settings and seeds, on this machine or on a Ray cluster"
    parser = commands.add_parser("sweep", help=help)
    parser.set_defaults(command_function=_sweep)
    parser.add_argument("name", help="the recipe, see `list`")
    parser.add_argument("--out", type=Path, required=True, help="the sweep's folder; the same command continues it")
    add_run_options(parser, "settings of all runs, see `list`")
    help = "the values of each setting that varies, such as methods=scratch,l2t lr=0.1,0.01"
    parser.add_argument("--over", nargs="+", action="extend", default=[], metavar="KEY=VALUE,…", help=help)
    parser.add_argument("--processes", type=int, help="runs at a time on this machine (default: its cores)")
    help = "run on Ray: `ray` starts it here, `auto` or HOST:PORT is a running cluster that shares the folder"
    parser.add_argument("--on", metavar="CLUSTER", help=help)
    parser.add_argument("--cpus", type=int, default=1, help="of each run, which has so many threads (default 1)")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each run on Ray; 0.25 lets four share one")


def _sweep(options: argparse.Namespace) -> int:
    grid = make_grid(options.name, options.seed, pairs("--over", options.over), settings_of(options))
    check_address(options.on or "ray", options.cpus, options.gpus, options.processes)
    require(options.on is not None or options.gpus == 0, "--gpus", "0 without --on", options.gpus)
    check_folder(grid, options.out)
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        if options.on is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            executor = Workers(options.processes or max(1, cores // options.cpus), options.cpus)
        else:
            executor = Cluster(options.on, options.cpus, options.gpus, options.processes)
        table, failed = sweep(grid, options.out, executor, options.cpus)
    except KeyboardInterrupt:
        say(f"\nstopped; the same command continues from the last checkpoints in {options.out}")
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)
    print(table.to_string(index=False))
    say(options.out / "results.csv")
    for name, error in failed.items():
        print(f"error: {name}: {error}; see {options.out / name / LOG}", file=sys.stderr)
    return int(bool(failed) or bool(table["accuracy"].isna().any()))


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def add_table(commands: Any, draw: Callable[[pd.DataFrame], Any]) -> None:
    """Declare `table`; `draw` makes a matplotlib figure of a summary."""
    parser = commands.add_parser("table", help="means of results with 95 %% intervals, beside the paper's figures")
    parser.set_defaults(command_function=lambda options: _table(options, draw))
    help = "folders of sweeps, or CSV files of results"
    parser.add_argument("places", type=Path, nargs="+", metavar="FOLDER|CSV", help=help)
    help = "columns to tell apart (default: the method and what the sweeps vary)"
    parser.add_argument("--by", nargs="+", metavar="COLUMN", help=help)
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file: .md, .csv, .png or .svg")


def _table(options: argparse.Namespace, draw: Callable[[pd.DataFrame], Any]) -> int:
    file = options.out
    if file is not None:
        require(file.suffix in (".md", ".csv", ".png", ".svg"), "--out", "a name in .md, .csv, .png or .svg", str(file))
        require(not file.exists(), "--out", "a file that does not exist yet", str(file), "delete or rename it first")
        require(file.absolute().parent.is_dir(), "--out", "a file in an existing folder", str(file))
    summary = summarize(load_results(options.places), options.by)
    text = as_markdown(summary)
    say(text)
    if file is None:
        return 0
    if file.suffix == ".md":
        write_whole(file, text + "\n")
    elif file.suffix == ".csv":
        write_whole(file, summary.to_csv(index=False))
    else:
        draw(summary).savefig(file, dpi=144, metadata={"Date": None} if file.suffix == ".svg" else None)
    say(file)
    return 0
