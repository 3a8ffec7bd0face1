"""The command line: `python -m mtanytime list | run | sweep | table | bench | explore | app | export`.

Each command has one function that declares its options and one that runs it. To add a command, write these two and add
the first to `COMMANDS`.
"""

import argparse
import os
import shlex
import sys
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from mtanytime.checks import one_line, require
from mtanytime.console import replace_unprintable
from mtanytime.deploy import export
from mtanytime.deploy.page import check_package, export_page
from mtanytime.deploy.weights import Precision
from mtanytime.experiments.bench_commands import add_bench
from mtanytime.experiments.options import add_run_options, settings_of
from mtanytime.experiments.recipe import as_text
from mtanytime.experiments.runner import RECIPES, check_new_csv, load_part, plan, run, which_weights, write_results
from mtanytime.experiments.sweep_commands import add_sweep, add_table
from mtanytime.explore.table_files import read_csv
from mtanytime.training.distributed import start
from mtanytime.training.stored_run import Weights


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit status: 0, 1 for an error or a diverged run, 130 for an interrupted run."""
    replace_unprintable()
    parser = argparse.ArgumentParser(
        prog="python -m mtanytime", description="Learn what and where to transfer; predict at any time."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add_command in COMMANDS:
        add_command(commands)
    options = parser.parse_args(arguments)
    try:
        return options.command_function(options)
    except (ValueError, OSError, RuntimeError, FloatingPointError, ImportError) as error:
        rank = os.environ.get("RANK", "0") if int(os.environ.get("WORLD_SIZE", "1")) > 1 else "0"
        where = "" if rank == "0" else f" in process {rank}"
        sys.stderr.write(f"error{where}: {one_line(str(error))}\n")  # at once: processes share the terminal
        return 1


# list


def _add_list(commands: Any) -> None:
    commands.add_parser("list", help="the experiments by name").set_defaults(command_function=_list)


def _list(options: argparse.Namespace) -> int:
    for name, recipe in RECIPES.items():
        print(f"{name}\n  reproduces: {recipe.reproduces}\n  takes: {recipe.duration}\n  expect: {recipe.expected}")
        if recipe.methods:
            print(f"  methods: {' '.join(recipe.methods)}")
        print("  settings: " + " ".join(f"{key}={as_text(value)}" for key, value in recipe.settings.items()))
    return 0


# run


def _add_run(commands: Any) -> None:
    parser = commands.add_parser("run", help="run an experiment, or continue one that was stopped")
    parser.set_defaults(command_function=_run)
    parser.add_argument("name", help="see `list`")
    parser.add_argument("--out", type=Path, required=True, help="the experiment's folder")
    add_run_options(parser, "settings to change, see `list`")
    parser.add_argument(
        "--csv",
        type=Path,
        help="a new file for the results; maps go to NAME_maps.csv, the trials of searches to NAME_trials.csv",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and its cost; train nothing")


def _run(options: argparse.Namespace) -> int:
    with start() as processes, ExitStack() as stack:
        if not processes.first:  # the first of several processes writes and prints
            options.csv = None
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            return _run_or_plan(options)
        except KeyboardInterrupt:
            print(f"\nstopped; the same command continues from the last checkpoint in {options.out}")
            return 130


def _run_or_plan(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    if options.dry_run:
        return _print_plan(options, settings)
    if options.csv is not None:
        check_new_csv(options.csv, maps=True)
    results = run(options.name, options.out, options.seed, settings)
    print(results.table.to_string(index=False))
    if options.csv is not None:
        seeds = " ".join(map(str, options.seed))
        command = f"python -m mtanytime run {options.name} --out FOLDER --seed {seeds}"
        command += f" --set {shlex.join(options.set)}" * bool(options.set)
        write_results(results, options.csv, command, which_weights(results.table))
    return int(results.table["accuracy"].isna().any())


def _print_plan(options: argparse.Namespace, settings: dict[str, str]) -> int:
    """Print one line per network, each as soon as it is known, and the total."""
    print(f"{'network':14} {'seed':>4} {'beta':>6} {'steps':>6} {'done':>6} {'GMACs':>9} {'time left':>10}")
    seconds = macs = 0.0
    for row in plan(options.name, options.out, options.seed, settings):
        seconds, macs = seconds + row["seconds"], macs + row["macs"]
        print(
            f"{row['part']:14} {row['seed']:4} {row['beta']:6g} {row['steps']:6} {row['done']:6} "
            f"{row['macs'] / 1e9:9.0f} {_duration(row['seconds']):>10}",
            flush=True,
        )
    print(f"in all {macs / 1e9:.0f} GMACs; about {_duration(seconds)} left on this machine, tests not counted")
    return 0


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


# explore


def _add_explore(commands: Any) -> None:
    help = "make one HTML file of runs or tables, to look at without Jupyter"
    parser = commands.add_parser("explore", help=help)
    parser.set_defaults(command_function=_explore)
    help = "a folder of a run or of several, or a CSV file: a trace, curve, log, channel weights, R², results, maps; "
    help += "or the JSON file of a map that was searched; "
    help += "several places of one kind make one page"
    parser.add_argument("places", type=Path, nargs="+", metavar="PLACE", help=help)
    help = "the file to write"
    parser.add_argument("--output", "--html", "-o", type=Path, required=True, metavar="FILE", help=help)
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")


def _explore(options: argparse.Namespace) -> int:
    from mtanytime.explore.export import export_csv  # imported here because it loads matplotlib

    print(export_csv(options.places, options.output, options.force))
    return 0


# app


def _add_app(commands: Any) -> None:
    parser = commands.add_parser("app", help="serve explorers, and a training to watch, as a web page")
    parser.set_defaults(command_function=_app)
    help = "what the page shows, one explorer each: a folder of a run or of several, or a CSV file (see `explore`)"
    parser.add_argument("places", type=Path, nargs="*", metavar="PLACE", help=help)
    help = "the address to listen to (default 127.0.0.1, which answers this machine alone)"
    parser.add_argument("--host", default="127.0.0.1", help=help)
    parser.add_argument("--port", type=int, help="default: the first free one from 8866 on")
    help = "how many run at once, each on one core (default: one per core)"
    parser.add_argument("--trainings", type=int, metavar="N", help=help)
    parser.add_argument("--no-browser", action="store_true", help="do not open the page")


def _app(options: argparse.Namespace) -> int:
    from mtanytime.app.server import serve  # imported here because it needs the extra notebooks

    try:
        serve(options.places, options.host, options.port, options.trainings, not options.no_browser)
    except KeyboardInterrupt:
        print("\nstopped")
    return 0


# export


def _add_export(commands: Any) -> None:
    help = "write a trained network as graphs that run without torch"
    parser = commands.add_parser("export", help=help)
    parser.set_defaults(command_function=_export)
    help = "the folder of a trained network, such as OUT/sliced-seed0, of a recipe that builds its networks alone"
    parser.add_argument("run", type=Path, metavar="RUN", help=help)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder for the graphs")
    parser.add_argument("--weights", choices=get_args(Weights), default="best", help="of which step (default best)")
    help = "of the stored weights (default float32); answers are computed in float32"
    parser.add_argument("--precision", choices=get_args(Precision), default="float32", help=help)
    parser.add_argument("--page", type=Path, metavar="FILE", help="also write an HTML page that runs the network")
    help = "for --page: the npm package, a folder or the archive of `npm pack onnxruntime-web`"
    parser.add_argument("--onnxruntime-web", type=Path, metavar="PACKAGE", help=help)


def _export(options: argparse.Namespace) -> int:
    if options.page is not None:
        package = options.onnxruntime_web
        remedy = "`npm pack onnxruntime-web` downloads it"
        require(package is not None, "--onnxruntime-web", "the npm package, for --page", package, remedy)
        check_package(package)
        require(not options.page.exists(), "--page", "a file that does not exist yet", str(options.page))
    manifest = export(load_part(options.run, weights=options.weights), options.folder, precision=options.precision)
    if options.page is not None:
        export_page(options.folder, options.page, options.onnxruntime_web)
    for part in manifest["exits"]:
        accuracy = f", accuracy {part['accuracy']:.1%}" if "accuracy" in part else ""
        print(f"exit {part['exit']}: {part['macs'] / 1e6:.1f} M multiply-adds, {part['ms']['1']:.2f} ms{accuracy}")
    print(options.page or options.folder / "manifest.json")
    return 0


# table: its pictures are drawn from here, because experiments do not import `explore`


def _draw_summary(summary: pd.DataFrame) -> Any:
    from mtanytime.explore.draw.summary import accuracy_summary  # imported here because it loads matplotlib

    return accuracy_summary(summary)


COMMANDS = (
    _add_list,
    _add_run,
    add_sweep,
    partial(add_table, draw=_draw_summary),
    partial(add_bench, read_table=read_csv),
    _add_explore,
    _add_app,
    _add_export,
)

if __name__ == "__main__":
    raise SystemExit(main())
