"""The command `bench`: its options, and how it prints what the benchmarks measure."""

import argparse
import json
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pandas as pd

from mtanytime.anytime.shape_search import Reads, SliceKind, search_shapes
from mtanytime.anytime.slice_shape import BlockKind
from mtanytime.checks import require
from mtanytime.deploy.weights import Precision
from mtanytime.devices import processor
from mtanytime.experiments.anytime_recipes import build_network
from mtanytime.experiments.benchmarks import AnytimeSizes, bench_anytime, bench_transfer
from mtanytime.experiments.data_bench import data_bench
from mtanytime.experiments.exit_times import exit_times
from mtanytime.experiments.export_bench import deadline_answers, export_times, kept_deadlines
from mtanytime.experiments.options import add_settings, settings_of
from mtanytime.experiments.processes_bench import step_times
from mtanytime.experiments.recipe import Results, changed
from mtanytime.experiments.runner import RECIPES, check_new_csv, load_part, write_results
from mtanytime.measure.layer_times import LayerClock, layer_times, usual_layers
from mtanytime.measure.runtimes import RUNTIMES
from mtanytime.whole_files import write_whole


def add_bench(commands: Any, read_table: Callable[[Path, str, tuple[str, ...]], pd.DataFrame]) -> None:
    """Declare the command `bench`; `read_table` reads a CSV file (see `explore.table_files.read_csv`)."""
    parser = commands.add_parser("bench", help="measure alternatives side by side in one run")
    benchmarks = parser.add_subparsers(dest="what", required=True)
    transfer = benchmarks.add_parser("transfer", help="one iteration of L2T-ww, ResNet-32 to VGG-9")
    transfer.set_defaults(command_function=_bench_transfer)
    _add_bench_options(transfer, "alinlab/L2T-ww")
    help = "T, matching steps of the lookahead (default 2)"
    transfer.add_argument("--inner-steps", type=_count, default=2, help=help)
    anytime = benchmarks.add_parser("anytime", help="training steps and inference of a sliced ResNeXt")
    anytime.set_defaults(command_function=_bench_anytime)
    _add_bench_options(anytime, "hankook/IResNeXt")
    for name, help in (
        ("width", "channels of the first stage"),
        ("bottleneck", "channels of a branch"),
        ("branches", "branches, slices and exits (K)"),
        ("blocks", "blocks per stage"),
    ):
        default = getattr(AnytimeSizes, name)
        anytime.add_argument(f"--{name}", type=_count, default=default, help=f"{help} (default {default})")
    help = "also export the network, which takes minutes, and time it by ONNX Runtime"
    anytime.add_argument("--onnxruntime", action="store_true", help=help)
    layers = benchmarks.add_parser("layers", help="time per multiply-add of convolutions of every kind")
    layers.set_defaults(command_function=_bench_layers)
    _add_timing_options(layers, [1, 64], ["eager", "channels-last"])
    layers.add_argument("--channels", type=_count, nargs="+", default=[16, 24, 32, 48, 64, 128], help="of the layers")
    layers.add_argument("--csv", type=Path, help="a new file for the table")
    exits = benchmarks.add_parser("exits", help="milliseconds of all exits of sliced networks and their rivals")
    exits.set_defaults(command_function=_bench_exits)
    _add_timing_options(exits, [1, 64], ["eager"])
    add_settings(exits, "settings of anytime-cifar10-full")
    exits.add_argument("--csv", type=Path, help="a new file for the table")
    shapes = benchmarks.add_parser("shapes", help="widths of slices that use the milliseconds of each exit best")
    shapes.set_defaults(command_function=_bench_shapes, read_table=read_table)
    _add_timing_options(shapes, [1], ["eager"])
    help = "of the convolutions of each exit, thin to wide"
    shapes.add_argument("--milliseconds", type=float, nargs="+", required=True, help=help)
    shapes.add_argument("--multiple", type=_count, default=16, help="of every slice's channels (default 16)")
    shapes.add_argument(
        "--largest", type=_count, default=64, help="channels of a slice in the first stage (default 64)"
    )
    help = "per stage (default 1 1 1)"
    shapes.add_argument("--blocks", type=_count, nargs="+", default=[1, 1, 1], help=help)
    shapes.add_argument("--block", choices=get_args(BlockKind), default="basic", help="(default basic)")
    help = "what a slice reads of earlier ones, as slice_reads of anytime-cifar10-full (default layers)"
    shapes.add_argument("--reads", choices=get_args(Reads), default="layers", help=help)
    shapes.add_argument("--times", type=Path, help="a CSV file that keeps this machine's measured times")
    shapes.add_argument("--csv", type=Path, help="a new file for the shapes")

    exported = benchmarks.add_parser("export", help="exported networks by onnxruntime beside torch, and deadlines")
    exported.set_defaults(command_function=_bench_export)
    exported.add_argument("--out", type=Path, required=True, help="a new folder for the exported networks")
    help = "run folders of networks, whose images have one size (default: fresh networks of anytime-cifar10-full)"
    exported.add_argument("--run", type=Path, nargs="+", default=[], help=help)
    add_settings(exported, "settings of anytime-cifar10-full")
    exported.add_argument("--batch", type=_count, nargs="+", default=[1, 64], help="images (default [1, 64])")
    exported.add_argument("--precision", choices=get_args(Precision), nargs="+", default=["float32"])
    exported.add_argument("--rounds", type=_count, default=20, help="counted rounds (default 20)")
    exported.add_argument("--csv", type=Path, help="a new file for the table")
    help = "a new file for the answers of the first network to 1,000 random deadlines"
    exported.add_argument("--deadlines", type=Path, metavar="CSV", help=help)
    data = benchmarks.add_parser("data", help="memory and images per second of images in files, beside torchvision's")
    data.set_defaults(command_function=_bench_data)
    for name, default, help in (
        ("images", 100_000, "JPEG files, written to a temporary folder"),
        ("pixels", 64, "height and width of the pictures in the files"),
        ("size", 64, "height and width of the images that are read"),
        ("workers", 2, "processes that decode"),
        ("batch", 256, "images per batch"),
    ):
        data.add_argument(f"--{name}", type=_count, default=default, help=f"{help} (default {default})")
    data.add_argument("--csv", type=Path, help="a new file for the table")
    several = benchmarks.add_parser("processes", help="training steps by one process and by several")
    several.set_defaults(command_function=_bench_processes)
    several.add_argument("--processes", type=_count, nargs="+", default=[1, 2], help="how many (default [1, 2])")
    several.add_argument("--batch", type=_count, default=64, help="images per step, of all processes (default 64)")
    several.add_argument("--steps", type=_count, default=5, help="timed steps (default 5)")
    several.add_argument("--threads", type=_count, default=1, help="of torch in each process (default 1)")
    several.add_argument("--csv", type=Path, help="a new file for the table")


def _add_timing_options(parser: argparse.ArgumentParser, batches: list[int], runtimes: list[str]) -> None:
    many = "+" if len(batches) > 1 else 1
    parser.add_argument("--batch", type=_count, nargs=many, default=batches, help=f"images (default {batches})")
    parser.add_argument("--runtime", choices=RUNTIMES, nargs=many, default=runtimes, help=f"(default {runtimes})")
    parser.add_argument("--rounds", type=_count, default=20, help="counted rounds (default 20)")


def _add_bench_options(parser: argparse.ArgumentParser, repository: str) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object on the last line instead of a table")
    parser.add_argument("--batch", type=_count, default=64, help="images per batch (default 64)")
    parser.add_argument("--rounds", type=_count, default=5, help="counted rounds (default 5)")
    help = f"a clone of {repository}, to time the authors' code too: it is run, so pass a folder that you trust"
    parser.add_argument("--authors", type=Path, metavar="FOLDER", help=help)
    parser.add_argument("--compile", action="store_true", help="also time torch.compile (needs a C++ compiler)")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)


def _bench_transfer(options: argparse.Namespace) -> int:
    sizes = (options.batch, options.inner_steps, options.rounds)
    figures, ranges = bench_transfer(*sizes, options.compile, not options.json, options.authors)
    if options.json:
        print(json.dumps(figures))
        return 0
    print(f"{'mode':12} {'s':>8} {'ratio':>6} {'peak MiB':>9}  range (s)")
    for name in [key.removesuffix("_s") for key in figures if key.endswith("_s")]:
        seconds = figures[f"{name}_s"]
        columns = f"{seconds:8.3f} {seconds / figures['ours_s']:6.2f} {figures[f'{name}_mb']:9.0f}"
        print(f"{name:12} {columns}  {_range(ranges[name])}")
    for part, seconds in figures["parts"].items():
        print(f"of ours: {part.removesuffix('_s'):14} {seconds:.3f} s")
    fixed = figures["fixed_weights"]
    print(f"fixed weights: {fixed['contiguous_s']:.3f} s, channels_last {fixed['channels_last_s']:.3f} s")
    print(f"in a later trial of a search, which does not run the source again: {fixed['trial_s']:.3f} s")
    error = figures["first_order_error"]
    print(f"first order against exact: relative error {error['relative_error']}, cosine {error['cosine']}")
    if compiled := figures.get("compiled"):
        for part in ("source", "step"):
            both = f"{compiled[f'{part}_s']:.3f} s, compiled {compiled[f'{part}_compiled_s']:.3f} s"
            print(f"torch.compile: {part} {both}")
        print(f"torch.compile: {compiled['compile_s']} s to compile both")
    _print_config(figures)
    return 0


def _bench_anytime(options: argparse.Namespace) -> int:
    sizes = AnytimeSizes(options.width, options.bottleneck, options.branches, options.blocks)
    settings = (options.batch, options.rounds, options.compile, not options.json, options.authors)
    figures, ranges = bench_anytime(sizes, *settings, options.onnxruntime)
    if options.json:
        print(json.dumps(figures))
        return 0
    baselines = {
        "sliced_joint": "widest",
        "inclusive_joint": "sliced_joint",
        "authors_joint": "sliced_joint",
        "stepup": "full",
        "first": "full",
    }
    print(f"{'':16} {'s':>9}  {'range (s)':16}")
    for name in [key.removesuffix("_s") for key in figures if key.endswith("_s")]:
        seconds, ratio = figures[f"{name}_s"], ""
        if baseline := baselines.get(name):
            ratio = f"  {seconds / figures[f'{baseline}_s']:.2f} × {baseline}"
        print(f"{name:16} {seconds:9.4f}  {_range(ranges[name], 4):16}{ratio}")
    for way, values in figures.items():
        if isinstance(values, dict) and way != "config":
            for name, seconds in values.items():
                print(f"{way.replace('_', ' ')} {name.removesuffix('_s')}: {seconds} s")
    _print_config(figures)
    return 0


def _bench_layers(options: argparse.Namespace) -> int:
    def measured() -> pd.DataFrame:
        return layer_times(usual_layers(options.channels), options.batch, options.runtime, options.rounds)

    return _print_table(measured, options.csv, "layers")


def _bench_exits(options: argparse.Namespace) -> int:
    settings = changed(RECIPES["anytime-cifar10-full"].settings, settings_of(options))

    def measured() -> pd.DataFrame:
        return exit_times(settings, options.batch, options.runtime, options.rounds)

    return _print_table(measured, options.csv, "exits" + f" --set {shlex.join(options.set)}" * bool(options.set))


def _bench_export(options: argparse.Namespace) -> int:
    given = {"set": options.set, "precision": options.precision, "run": [run.name for run in options.run]}
    command = " ".join(["export", *(f"--{name} {' '.join(values)}" for name, values in given.items() if values)])
    for file in (options.csv, options.deadlines):
        if file is not None:
            check_new_csv(file)
    stored = {run.resolve().name: load_part(run) for run in options.run}
    names = [run.name for run in options.run]
    require(len(stored) == len(names), "--run", "run folders with different names", names)
    settings = changed(RECIPES["anytime-cifar10-full"].settings, settings_of(options))
    networks = {name: run.network for name, run in stored.items()} or {
        model: build_network(model, settings, 10) for model in settings["models"]
    }
    shapes = {run.image_shape for run in stored.values()} or {(3, 32, 32)}
    require(len(shapes) == 1, "--run", "networks for images of one size", sorted(shapes))
    times = partial(export_times, networks, options.out, *shapes, options.batch, options.precision, options.rounds)
    _print_table(times, options.csv, command)
    if options.deadlines is not None:
        table = deadline_answers(options.out / f"{next(iter(networks))}-{options.precision[0]}")
        kept = kept_deadlines(table)
        print(f"deadlines from 1.2 times the first answer's time on: {kept['answered']:.1%} with an answer by then")
        within, latest = f"a step's time ({kept['longest_ms']:.2f} ms)", f"{kept['latest_ms']:.2f} ms"
        print(f"returned within {within} of the deadline: {kept['returned']:.1%}, the latest {latest} after it")
        write_results(Results(table), options.deadlines, f"python -m mtanytime bench {command}")
    return 0


def _bench_data(options: argparse.Namespace) -> int:
    sizes = {name: getattr(options, name) for name in ("images", "pixels", "size", "workers", "batch")}
    command = " ".join(["data", *(f"--{name} {value}" for name, value in sizes.items())])
    return _print_table(partial(data_bench, *sizes.values()), options.csv, command)


def _bench_processes(options: argparse.Namespace) -> int:
    sizes = (options.batch, options.steps, options.threads)
    counts = " ".join(map(str, options.processes))
    command = "processes --processes {} --batch {} --steps {} --threads {}".format(counts, *sizes)
    return _print_table(partial(step_times, options.processes, *sizes), options.csv, command)


def _print_table(measure: Callable[[], pd.DataFrame], csv: Path | None, command: str) -> int:
    """Print a benchmark's table and write it to a new file, if one is named, which is checked first."""
    if csv is not None:
        check_new_csv(csv)
    table = measure()
    print(table.to_string(index=False, float_format="{:.4g}".format))
    if csv is not None:
        write_results(Results(table), csv, f"python -m mtanytime bench {command}")
    return 0


def _bench_shapes(options: argparse.Namespace) -> int:
    if options.csv is not None:
        check_new_csv(options.csv)
    here, kept = processor(), options.times
    table = None
    if kept is not None:
        place = kept.absolute().parent
        require(place.is_dir(), "--times", "a file in a folder that exists", str(kept))
    if kept is not None and kept.exists():
        table = options.read_table(kept, "table", ("kind", "runtime", "processor"))
    if table is not None:
        machines = table["processor"].unique().tolist() if "processor" in table else ["an unknown processor"]
        require(machines == [here], str(kept), f"times of {here}", machines, "choose a new file")
    try:
        clock = LayerClock(options.batch[0], options.runtime[0], options.rounds, table)
    except ValueError as error:
        raise ValueError(f"{kept}: {error}") from error
    try:
        kind = SliceKind(options.block, options.reads, tuple(options.blocks))
        found = search_shapes(clock.ms, options.milliseconds, options.multiple, kind, options.largest)
    finally:
        if kept is not None:
            write_whole(kept, clock.table.assign(processor=here).to_csv(index=False))
    rows = []
    for rank, candidate in enumerate(found[:10], 1):
        widths = "/".join(",".join(map(str, stage)) for stage in candidate.shape.widths)
        costs = " ".join(f"{ms:.3g}" for ms in candidate.costs)
        print(f"slice_widths={widths}  {costs} ms  {' '.join(f'{macs / 1e6:.1f}' for macs in candidate.macs)} M")
        exits = zip(candidate.costs, candidate.macs, strict=True)
        rows += [
            {"rank": rank, "slice_widths": widths, "exit": k, "ms": ms, "macs": macs}
            for k, (ms, macs) in enumerate(exits, 1)
        ]
    blocks = ",".join(map(str, kind.blocks))
    print(f"These are shapes for slice_reads={kind.reads} slice_block={kind.block} slice_blocks={blocks}")
    if options.csv is not None:
        given = {"milliseconds": options.milliseconds, "blocks": options.blocks, "batch": options.batch}
        words = {name: " ".join(f"{value:g}" for value in values) for name, values in given.items()}
        words |= {name: getattr(options, name) for name in ("block", "reads", "multiple", "largest")}
        words["runtime"] = options.runtime[0]
        command = " ".join(f"--{name} {value}" for name, value in words.items())
        write_results(Results(pd.DataFrame(rows)), options.csv, f"python -m mtanytime bench shapes {command}")
    return 0


def _range(fastest_and_slowest: tuple[float, float], digits: int = 3) -> str:
    return " to ".join(f"{seconds:.{digits}f}" for seconds in fastest_and_slowest)


def _print_config(figures: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in figures["config"].items()))
