"""The command line: `python -m mtanytime list | run NAME | bench transfer | bench anytime | explore FILE`."""

import argparse
import json
import platform
import sys
from pathlib import Path

import torch

from mtanytime.experiments.benchmarks import bench_anytime, bench_transfer, processor
from mtanytime.experiments.recipe import Results
from mtanytime.experiments.runner import RECIPES, plan, run
from mtanytime.experiments.transfer import METHODS


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m mtanytime", description="Learn what and where to transfer; predict at any time."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments by name")
    runs = commands.add_parser("run", help="run an experiment, or go on with it where it was stopped")
    runs.add_argument("name", help="see `list`")
    runs.add_argument("--out", type=Path, required=True, help="the experiment's folder")
    runs.add_argument("--seed", type=int, nargs="+", default=[0], help="one or more; each is a run of its own")
    runs.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings to change, see `list`")
    runs.add_argument("--csv", type=Path, help="a new file for the results; the learned maps go to NAME_maps.csv")
    runs.add_argument("--dry-run", action="store_true", help="print the plan and what it would cost; train nothing")
    bench = commands.add_parser("bench", help="measure, side by side in one run").add_subparsers(
        dest="what", required=True
    )
    transfer = bench.add_parser("transfer", help="one iteration of L2T-ww, ResNet-32 to VGG-9")
    anytime = bench.add_parser("anytime", help="training steps and answers of a sliced ResNeXt")
    for parser_ in (transfer, anytime):
        parser_.add_argument("--json", action="store_true", help="one JSON object on the last line, and no table")
        parser_.add_argument("--batch", type=_count, default=64, help="images a batch (default 64)")
        parser_.add_argument("--rounds", type=_count, default=5, help="counted rounds (default 5)")
    help = "T, matching steps of the lookahead (default 2)"
    transfer.add_argument("--inner-steps", type=_count, default=2, help=help)
    for parser_, name in ((transfer, "alinlab/L2T-ww"), (anytime, "hankook/IResNeXt")):
        help = f"a clone of {name}, to time the authors' code, too: it is run, so pass a folder that you trust"
        parser_.add_argument("--authors", type=Path, metavar="FOLDER", help=help)
    for parser_ in (transfer, anytime):
        parser_.add_argument("--compile", action="store_true", help="time torch.compile, too (needs a C++ compiler)")
    for name, default, help in (
        ("--width", 64, "channels of the first stage"),
        ("--bottleneck", 4, "channels of a branch"),
        ("--branches", 8, "branches, slices and exits (K)"),
        ("--blocks", 7, "blocks a stage"),
    ):
        anytime.add_argument(name, type=_count, default=default, help=f"{help} (default {default})")
    explore = commands.add_parser(
        "explore", help="make one HTML file of a trace or a curve, to look at without Jupyter"
    )
    explore.add_argument("table", type=Path, help="a CSV file: a run's trace.csv, or a curve")
    explore.add_argument("--html", type=Path, required=True, help="the file to write")
    explore.add_argument("--force", action="store_true", help="overwrite it if it is there")
    options = parser.parse_args(arguments)
    if options.command == "list":
        return _list()
    if options.command == "run":
        return _run(options)
    if options.command == "explore":
        return _explore(options)
    return _bench_anytime(options) if options.what == "anytime" else _bench_transfer(options)


def _list() -> int:
    for name, recipe in RECIPES.items():
        print(f"{name}\n  reproduces: {recipe.reproduces}\n  takes: {recipe.duration}\n  expect: {recipe.expected}")
        if "methods" in recipe.settings:
            print(f"  methods: {' '.join(METHODS)}")
        print("  settings: " + " ".join(f"{key}={value}" for key, value in recipe.settings.items()))
    return 0


def _run(options: argparse.Namespace) -> int:
    try:
        if wrong := [setting for setting in options.set if "=" not in setting]:
            raise ValueError(f"--set takes KEY=VALUE, got {wrong[0]!r}")
        settings = dict(setting.split("=", 1) for setting in options.set)
        if options.dry_run:
            return _plan(options, settings)
        if options.csv is not None and options.csv.exists():
            raise ValueError(f"{options.csv} is there already: delete or rename it to have it written anew")
        if options.csv is not None:  # an error now, not after hours
            options.csv.parent.mkdir(parents=True, exist_ok=True)
            _temporary(options.csv).touch()
            _temporary(options.csv).unlink()
        results = run(options.name, options.out, options.seed, settings)
        print(results.table.to_string(index=False))
        if options.csv is not None:
            _write(results, options)
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from the last checkpoint in {options.out}")
        return 130
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return int(results.table["accuracy"].isna().any())


def _plan(options: argparse.Namespace, settings: dict[str, str]) -> int:
    """Print a line a network and the total, as they are worked out."""
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


def _temporary(file: Path) -> Path:
    return file.with_name(f"{file.name}.tmp")


def _maps_file(csv: Path) -> Path:
    return csv.with_name(f"{csv.stem}_maps{csv.suffix}")


def _write(results: Results, options: argparse.Namespace) -> None:
    """The results, and the learned maps beside them, as CSV below a comment line that says how they came about."""
    seeds = " ".join(map(str, options.seed))
    command = f"python -m mtanytime run {options.name} --out FOLDER --seed {seeds}"
    command += f" --set {' '.join(options.set)}" * bool(options.set)
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    where = f"{processor()}, {torch.get_num_threads()} threads"
    for file, table in ((_maps_file(options.csv), results.maps), (options.csv, results.table)):
        if table is not None:
            text = f"# {command}; {where}; {versions}\n{table.to_csv(index=False)}"
            _temporary(file).write_text(text, encoding="utf-8")
            _temporary(file).replace(file)


def _explore(options: argparse.Namespace) -> int:
    from mtanytime.explore.export import export_csv  # loads matplotlib

    try:
        print(export_csv(options.table, options.html, options.force))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _bench_transfer(options: argparse.Namespace) -> int:
    try:
        shown = not options.json
        sizes = (options.batch, options.inner_steps, options.rounds)
        result = bench_transfer(*sizes, options.compile, shown, options.authors)
    except (ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{'mode':12} {'s':>8} {'ratio':>6} {'peak MiB':>9}")
    for name in [key.removesuffix("_s") for key in result if key.endswith("_s")]:
        seconds = result[f"{name}_s"]
        print(f"{name:12} {seconds:8.3f} {seconds / result['ours_s']:6.2f} {result[f'{name}_mb']:9.0f}")
    for part, seconds in result["parts"].items():
        print(f"of ours: {part.removesuffix('_s'):14} {seconds:.3f} s")
    error = result["first_order_error"]
    print(f"first order against exact: relative error {error['relative_error']}, cosine {error['cosine']}")
    if quick := result.get("compiled"):
        for part in ("source", "step"):
            print(f"torch.compile: {part} {quick[f'{part}_s']:.3f} s, compiled {quick[f'{part}_compiled_s']:.3f} s")
        print(f"torch.compile: {quick['compile_s']} s to compile both")
    print(", ".join(f"{key} {value}" for key, value in result["config"].items()))
    return 0


def _bench_anytime(options: argparse.Namespace) -> int:
    sizes = (options.width, options.bottleneck, options.branches, options.blocks)
    try:
        shown = not options.json
        result = bench_anytime(*sizes, options.batch, options.rounds, options.compile, shown, options.authors)
    except (ValueError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(result))
        return 0
    ratios = {
        "sliced_joint": "widest",
        "inclusive_joint": "sliced_joint",
        "authors_joint": "sliced_joint",
        "stepup": "full",
        "first": "full",
    }
    print(f"{'':16} {'s':>9}")
    for name in [key.removesuffix("_s") for key in result if key.endswith("_s")]:
        against = (
            f"  {result[f'{name}_s'] / result[f'{ratios[name]}_s']:.2f} × {ratios[name]}" if name in ratios else ""
        )
        print(f"{name:16} {result[f'{name}_s']:9.4f}{against}")
    for setting in ("unfolded", "batch_1", "compiled"):
        for name, seconds in result.get(setting, {}).items():
            print(f"{setting} {name.removesuffix('_s')}: {seconds} s")
    print(", ".join(f"{key} {value}" for key, value in result["config"].items()))
    return 0


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number >= 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
