"""Read and check the tables that pictures show; without matplotlib."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from mtanytime.checks import Words, mismatch, require
from mtanytime.explore.kinds import SHOWN_BY, remedy_for
from mtanytime.explore.table_files import read_csv, read_map
from mtanytime.measure.curves import validated_curve
from mtanytime.measure.tables import as_numbers, require_columns, require_rows, require_whole

Table = pd.DataFrame | str | PathLike[str]
Step = int | np.integer | None
Name = TypeVar("Name", bound=Hashable)

# Columns of names, never numbers: a layer may be called "0", a class "NA".
TEXT_COLUMNS = ("source", "target", "slice", "method", "model", "level", "answer", "coarse")
RUN_TABLES = {
    "trace": "trace.csv",
    "channels table": "channels.csv",
    "table of R²": "arrived.csv",
    "curve": "curve.csv",
    "log": "log.csv",
}
FEATURES, RESULTS = "features.json", "results.csv"  # in the folder of a run, of several runs
COSTS = {  # column of a curve -> label of its axis, unit of its values
    "macs": ("multiply-adds (MACs)", "MACs"),
    "latency_ms": ("latency (ms)", "ms"),
    "params": ("parameters", "parameters"),
}
FLOAT32_UP_TO = float(np.finfo(np.float32).max)
SI_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def load_table(table: Table, name: str) -> pd.DataFrame:
    """Return a table: a DataFrame as it is, or one read from a CSV file, a run's folder or the JSON file of a map.

    Raises:
        ValueError: as `table_files.read_csv` and `read_map`; the folder has no such table.
        OSError: the file cannot be read.
    """
    if isinstance(table, pd.DataFrame):
        return table
    path = Path(table)
    if path.is_dir() and name in RUN_TABLES:
        path = path / RUN_TABLES[name]
        came = Words(f"the folder {table}, which has none")
        require(path.exists(), name, f"a CSV file or a run's folder with {path.name}", came)
    if is_map(path):
        return read_map(path, name)[name == "channels table"]
    return read_csv(path, name, TEXT_COLUMNS)


def is_map(path: Path) -> bool:
    """Whether a file is to be read as a transfer map, which holds a trace of one step and its channel weights."""
    return path.suffix == ".json"


def read_table(table: Table, name: str, *columns: str) -> pd.DataFrame:
    """Return a table that has these columns and at least one row, with names as text and other columns as numbers.

    Args:
        table: a DataFrame, the path of a CSV file, or a run's folder.
        name: what messages call the table, such as "trace".
        columns: the columns to check; those in `TEXT_COLUMNS` hold names.

    Raises:
        ValueError: as `load_table`; a column is missing, there is no row, a name is missing, or a value is not a
            number.
    """
    table = load_table(table, name)
    require_columns(table, name, *columns, remedy=remedy_for(table, name))
    names = [column for column in columns if column in TEXT_COLUMNS]
    _require_names(table, name, *names)
    return as_numbers(table, name, *(c for c in columns if c not in names)).astype(dict.fromkeys(names, str))


def _require_names(table: pd.DataFrame, name: str, *columns: str) -> None:
    for column in columns:
        require_rows(table[column].notna() & (table[column] != ""), table, name, column, "a name in every row")


def read_trace(trace: Table) -> pd.DataFrame:
    """Return a trace of λ; a slice becomes part of the target layer's name, and an infinite λ becomes NaN.

    Numbers beyond float32 count as infinite. A column weight_std without numbers is left out.

    Raises:
        ValueError: as `read_table`; a step is not a whole number, or the table holds channel weights.
    """
    table = read_table(trace, "trace", "step", "source", "target", "weight")
    remedy = SHOWN_BY["channels table"]
    require("channel" not in table, "trace", "λ of pairs of layers", Words("a table of channel weights"), remedy)
    table = table.assign(step=require_whole(table, "trace", "step"), weight=finite(table["weight"]))
    if "weight_std" in table:
        table = as_numbers(table, "trace", "weight_std")
        table = table.assign(weight_std=finite(table["weight_std"]))
        table = table.drop(columns="weight_std") if table["weight_std"].isna().all() else table
    return with_slices(table, "trace") if "slice" in table else table


def read_channels(channels: Table) -> pd.DataFrame:
    """Return a table of channel weights: step, source, target, channel, weight[, slice].

    Raises:
        ValueError: as `read_table`; a step or channel is not a whole number, or a channel is negative.
    """
    name = "channels table"
    table = read_table(channels, name, "step", "source", "target", "channel", "weight")
    whole = {column: require_whole(table, name, column) for column in ("step", "channel")}
    require_rows(whole["channel"] >= 0, table, name, "channel", "whole numbers from 0")
    return table.assign(**whole, weight=finite(table["weight"]))


def read_arrived(arrived: Table) -> pd.DataFrame:
    """Return a table of R²: step, source, target, r2[, slice]; a slice becomes part of the target layer's name.

    Raises:
        ValueError: as `read_table`; a step is not a whole number, or an R² is above 1.
    """
    name = "table of R²"
    table = read_table(arrived, name, "step", "source", "target", "r2")
    table = table.assign(step=require_whole(table, name, "step"), r2=finite(table["r2"]))
    require_rows(~(table["r2"] > 1 + 1e-6), table, name, "r2", "numbers up to 1")
    return with_slices(table, name) if "slice" in table else table


def finite(numbers: pd.Series) -> pd.Series:
    """Return numbers with NaN for those that float32 cannot hold: they would overflow in sums and scales."""
    return numbers.astype(float).where(numbers.abs() < FLOAT32_UP_TO)


def with_slices(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table in which each slice of a target layer is a target layer of its own: "layer1 slice 2"."""
    _require_names(table, name, "slice")
    return table.assign(target=table["target"] + " slice " + table["slice"].astype(str))


def whole_run(trace: Table, channels: Table | None) -> tuple[Table, Table | None]:
    """Return a trace and its channel weights; both of a run if its folder, its trace.csv or its channels.csv is given
    as trace.

    The file of a map holds both.
    """
    if isinstance(trace, pd.DataFrame) or channels is not None:
        return trace, channels
    path = Path(trace)
    if is_map(path):
        return path, path
    named = path.name in (RUN_TABLES["trace"], RUN_TABLES["channels table"])
    folder = path if path.is_dir() else path.parent
    both = folder / RUN_TABLES["trace"], folder / RUN_TABLES["channels table"]
    return both if (path.is_dir() or named) and all(map(has_rows, both)) else (trace, channels)


def arrived_beside(trace: Table) -> Path | None:
    """Return the R² of a run, given its folder, its trace.csv or its channels.csv; None if nothing was measured."""
    return _beside(trace, RUN_TABLES["table of R²"])


def results_beside(trace: Table) -> Path | None:
    """Return the results (method, seed, accuracy) in the folder of a trace, likewise."""
    return _beside(trace, RESULTS)


def features_beside(trace: Table) -> Path | None:
    """Return the file of feature maps in the folder of a trace, likewise."""
    return _beside(trace, FEATURES, Path.exists)


def _beside(trace: Table, name: str, there: Callable[[Path], bool] | None = None) -> Path | None:
    if isinstance(trace, pd.DataFrame):
        return None
    path = Path(trace)
    if not path.is_dir() and path.name not in (RUN_TABLES["trace"], RUN_TABLES["channels table"]):
        return None
    beside = (path if path.is_dir() else path.parent) / name
    return beside if (there or has_rows)(beside) else None


def has_rows(path: Path) -> bool:
    """Whether a table has a row; a run that was stopped early leaves it empty, or with its header alone."""
    if not path.exists():
        return False
    with path.open("rb") as lines:
        return sum(1 for _ in islice(lines, 2)) == 2


def read_curve(curve: Table, *costs: str) -> pd.DataFrame:
    """Return the mean curve of every model over its runs: one row per model, exit (and level), in the table's order.

    Args:
        curve: model, exit, accuracy (a fraction of 1), at least one of `COSTS`[, level][, seed]. A table with one row
            per exit may name the level at which the exit answers; one with several gives the accuracy at each level.
        costs: the costs that are needed; others are left out where a row lacks them.

    Returns:
        model, exit, [level,] the costs (means over runs), accuracy (mean), spread (standard deviation over runs, n − 1;
        NaN for one run) and runs (the number of runs with an accuracy).

    Raises:
        ValueError: as `load_table` and `measure.curves.validated_curve`.
    """
    table = load_table(curve, "curve")
    require_columns(table, "curve", "model", "exit", "accuracy", remedy=remedy_for(table, "curve"))
    present = [name for name in COSTS if name in costs or (name in table and table[name].notna().all())] or ["macs"]
    table = validated_curve(table, *present).astype({"model": str})
    _require_names(table, "curve", "model")
    for cost in present:
        require_rows(table[cost] < FLOAT32_UP_TO, table, "curve", cost, "numbers below 3.4e38", "model", "exit")
    levels = ["level"] if "level" in table else []
    _require_names(table, "curve", *levels)
    exits = table.astype(dict.fromkeys(levels, str)).groupby(["model", "exit", *levels], sort=False)
    means = exits[[*present, "accuracy"]].mean()
    # Rounded, the mean of equal costs may be another number.
    means[present] = means[present].clip(exits[present].min(), exits[present].max())
    return means.assign(spread=exits["accuracy"].std(), runs=exits["accuracy"].count()).reset_index()


def levels_of(exits: pd.DataFrame) -> list[str]:
    """Return the levels of a curve from `read_curve`; none where every exit has one accuracy."""
    several = "level" in exits and exits.duplicated(["model", "exit"]).any()
    return distinct(exits["level"]) if several else []


def curve_at_level(exits: pd.DataFrame, level: str | None = None) -> pd.DataFrame:
    """Return the rows of a curve from `read_curve` at one level; the last level if None.

    Raises:
        ValueError: the curve does not have this level to choose.
    """
    levels = levels_of(exits)
    expected = f"a level of the curve ({', '.join(levels) or 'none'})"
    require(level is None or level in levels, "level", expected, level)
    return exits[exits["level"] == (level or levels[-1])] if levels else exits


def format_cost(cost: str, value: float) -> str:
    """Write a cost with its unit, to three digits: "58.3 M MACs", "4.2 ms"."""
    rounded, unit = float(f"{value:.3g}"), COSTS[cost][1]
    if cost != "latency_ms":
        for size, prefix in SI_PREFIXES:
            if rounded >= size:
                return f"{rounded / size:g} {prefix} {unit}"
    return f"{rounded:g} {unit}"


def step_of(table: pd.DataFrame, name: str, step: Step) -> int:
    """Return the given step of a table, or the last one if None.

    Raises:
        ValueError: the table has no such step (names the nearest).
    """
    steps = np.sort(table["step"].unique())
    if step is None:
        return int(steps[-1])
    require_step(steps.tolist(), name, int(step))
    return int(step)


def require_step(steps: Sequence[int], name: str, step: int) -> None:
    """Raise ValueError unless a step is one of these, in rising order; the message names the nearest."""
    if step not in steps:
        nearest = min(steps, key=lambda other: abs(other - step))
        raise mismatch(
            "step", f"a step of the {name} ({len(steps)} from {steps[0]} to {steps[-1]})", step, f"nearest: {nearest}"
        )


def distinct(names: Iterable[Name]) -> list[Name]:
    """Return distinct names, or pairs of names, in order of first appearance."""
    return list(dict.fromkeys(names))


def first_few(names: Sequence[str], most: int = 8) -> str:
    """Join the first few names, and say how many more there are."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
