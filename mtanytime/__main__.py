"""The command line: `python -m mtanytime list | run NAME | bench transfer`."""

import argparse
import json
import sys
from pathlib import Path

from mtanytime.benchmarks import TRANSFER_MODES, bench_transfer
from mtanytime.recipes import RECIPES, run


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mtanytime", description="Learn what and where to transfer.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="the experiments by name")
    runs = commands.add_parser("run", help="run an experiment, or go on with it where it was stopped")
    runs.add_argument("name", help="see `list`")
    runs.add_argument("--out", type=Path, required=True, help="the experiment's folder")
    runs.add_argument("--seed", type=int, default=0)
    runs.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings to change, see `list`")
    bench = commands.add_parser("bench", help="measure, side by side in one run")
    bench.add_argument("what", choices=["transfer"], help="one iteration of L2T-ww, ResNet-32 to VGG-9")
    bench.add_argument("--json", action="store_true", help="one JSON object on the last line, and no table")
    bench.add_argument("--batch", type=_count, default=64, help="images a batch (default 64)")
    bench.add_argument("--inner-steps", type=_count, default=2, help="T, matching steps of the lookahead (default 2)")
    bench.add_argument("--rounds", type=_count, default=5, help="counted iterations of each mode (default 5)")
    options = parser.parse_args(arguments)
    if options.command == "list":
        return _list()
    if options.command == "run":
        return _run(options.name, options.out, options.seed, options.set)
    return _bench(options.batch, options.inner_steps, options.rounds, options.json)


def _list() -> int:
    for name, recipe in RECIPES.items():
        print(f"{name}\n  reproduces: {recipe.reproduces}\n  takes: {recipe.duration}\n  expect: {recipe.expected}")
        print("  settings: " + " ".join(f"{key}={value}" for key, value in recipe.settings.items()))
    return 0


def _run(name: str, out: Path, seed: int, settings: list[str]) -> int:
    try:
        if wrong := [setting for setting in settings if "=" not in setting]:
            raise ValueError(f"--set takes KEY=VALUE, got {wrong[0]!r}")
        results = run(name, out, seed, dict(setting.split("=", 1) for setting in settings))
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from the last checkpoint in {out}")
        return 130
    except (ValueError, OSError, RuntimeError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(results.to_string(index=False))
    return 0


def _bench(batch: int, inner_steps: int, rounds: int, as_json: bool) -> int:
    result = bench_transfer(batch, inner_steps, rounds, progress=not as_json)
    if as_json:
        print(json.dumps(result))
        return 0
    print(f"{'mode':12} {'s':>8} {'ratio':>6} {'peak MiB':>9}")
    for name in TRANSFER_MODES:
        seconds = result[f"{name}_s"]
        print(f"{name:12} {seconds:8.3f} {seconds / result['ours_s']:6.2f} {result[f'{name}_mb']:9.0f}")
    for part, seconds in result["parts"].items():
        print(f"of ours: {part} {seconds}")
    print(", ".join(f"{key} {value}" for key, value in result["config"].items()))
    return 0


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"wanted a whole number >= 1, got {text!r}")
    return int(text)


if __name__ == "__main__":
    raise SystemExit(main())
