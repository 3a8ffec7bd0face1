"""Read and check the tables that pictures are drawn from."""

from collections.abc import Iterable, Sequence
from os import PathLike

import numpy as np
import pandas as pd
from matplotlib.ticker import EngFormatter

Table = pd.DataFrame | str | PathLike[str]


Step = int | np.integer | None


TEXT_COLUMNS = ("source", "target", "method", "model")  # a layer may be called "0": never a number


COSTS = {  # of an exit: its column, the words for it on an axis, and its unit
    "macs": ("FLOPs (multiply–adds)", "FLOPs"),
    "latency_ms": ("latency (ms)", "ms"),
    "params": ("parameters", "parameters"),
}


def read_table(table: Table, name: str, *columns: str) -> pd.DataFrame:
    """The table with at least these columns and one row; names of layers, methods and models as text. A file may begin
    with comment lines (`#`).

    Raises:
        ValueError: a column is missing or holds no numbers where it should, there is no row, the file is empty or no
            table.
    """
    if not isinstance(table, pd.DataFrame):
        try:
            comments = 0
            while str(pd.read_csv(table, nrows=0, skiprows=comments).columns[0]).startswith("#"):
                comments += 1
            table = pd.read_csv(table, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=True, skiprows=comments)
        except pd.errors.EmptyDataError:
            raise ValueError(f"the {name} {table} is an empty file") from None
        except (pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(f"the {name} {table} is no CSV table: {str(error).strip()}") from None
    for column in columns:
        if column not in table:
            raise ValueError(f"the {name} lacks column '{column}' (has: {', '.join(map(str, table))})")
    if table.empty:
        raise ValueError(f"the {name} has no rows (its columns: {', '.join(map(str, table))})")
    for column in columns:
        if column in TEXT_COLUMNS:
            if table[column].isna().any():
                raise ValueError(f"column '{column}' of the {name} has rows without a name")
        elif not pd.api.types.is_numeric_dtype(table[column]):
            wrong = table[column][pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()]
            example = table[column].iloc[0] if wrong.empty else wrong.iloc[0]
            raise ValueError(f"column '{column}' of the {name} is not numeric, for example {example!r}")
    return table.astype({column: str for column in TEXT_COLUMNS if column in columns})


def read_trace(trace: Table) -> pd.DataFrame:
    """A trace in which a slice, if there is one, is part of the target layer's name, and an infinite λ is nan.

    Raises:
        ValueError: as `read_table`; a step is not a whole number.
    """
    table = read_table(trace, "trace", "step", "source", "target", "weight")
    if len(wrong := table["step"][~(table["step"] % 1 == 0)]):
        raise ValueError(f"column 'step' of the trace holds {wrong.iloc[0]}, wanted whole numbers")
    table = table.assign(step=table["step"].astype(int), weight=table["weight"].replace([np.inf, -np.inf], np.nan))
    if "slice" in table:
        table = table.assign(target=table["target"] + " slice " + table["slice"].astype(str))
    return table


def read_curve(curve: Table, *costs: str) -> pd.DataFrame:
    """One row per model, exit (and level of the taxonomy), in the table's order, from a table with one per run, too.

    Args:
        curve: model, exit, accuracy (a fraction of 1), at least one of `COSTS`[, level][, seed]. A table with one row
            per exit may say the level that the exit answers at; one with several gives the accuracy at each.
        costs: those that must be there; others that some row lacks are left out.

    Returns:
        model, exit, [level,] the costs (means over the runs), accuracy (mean), spread (standard deviation over the
        runs, n − 1; nan for one) and runs (those that have an accuracy).

    Raises:
        ValueError: as `read_table`; an accuracy is no fraction of 1, an exit is no whole number, a cost is not above 0,
            or two rows stand for the same exit (of one run).
    """
    table = read_table(curve, "curve", "model", "exit", *costs, "accuracy")
    costs = [name for name in COSTS if name in table and (name in costs or table[name].notna().all())] or ["macs"]
    table = read_table(table, "curve", *costs)
    if not table["accuracy"].dropna().between(0, 1).all():
        low, high = table["accuracy"].min(), table["accuracy"].max()
        raise ValueError(f"column 'accuracy' of the curve must be a fraction of 1, got {low:g} to {high:g}")
    if len(wrong := table["exit"][~(table["exit"] % 1 == 0)]):
        raise ValueError(f"column 'exit' of the curve holds {wrong.iloc[0]}, wanted whole numbers")
    for name in costs:
        if len(wrong := table[name][~(table[name] > 0) | np.isinf(table[name])]):
            raise ValueError(f"column '{name}' of the curve holds {wrong.iloc[0]:g}, wanted a number above 0")
    table = table.assign(exit=table["exit"].astype(int))
    levels = ["level"] if "level" in table else []
    if levels:
        table = table.assign(level=table["level"].astype(str))
    same = ["model", "exit", *levels, *(["seed"] if "seed" in table else [])]
    if (double := table.duplicated(same)).any():
        what = ", ".join(f"{column} {value}" for column, value in table.loc[double, same].iloc[0].items())
        raise ValueError(f"the curve has several rows for {what}; wanted one, or a column 'seed' that tells runs apart")
    exits = table.groupby(["model", "exit", *levels], sort=False)
    means = exits[[*costs, "accuracy"]].mean()
    return means.assign(spread=exits["accuracy"].std(), runs=exits["accuracy"].count()).reset_index()


def levels_of(exits: pd.DataFrame) -> list[str]:
    """The levels to choose from in a table from `read_curve`; none where an exit has one accuracy."""
    several = "level" in exits and exits.duplicated(["model", "exit"]).any()
    return distinct(exits["level"]) if several else []


def curve_at_level(exits: pd.DataFrame, level: str | None = None) -> pd.DataFrame:
    """The rows of a table from `read_curve` at one level: the named one, or the last.

    Raises:
        ValueError: there is no such level.
    """
    levels = levels_of(exits)
    if level is not None and level not in levels:
        raise ValueError(f"the curve has no level {level!r} to choose (has: {', '.join(levels) or 'none'})")
    return exits[exits["level"] == (level or levels[-1])] if levels else exits


def worded(cost: str, value: float) -> str:
    """A cost with its unit, to three digits: "58.3 M FLOPs", "4.2 ms"."""
    _, unit = COSTS[cost]
    rounded = float(f"{value:.3g}")
    return f"{rounded:g} {unit}" if cost == "latency_ms" else f"{EngFormatter(sep=' ')(rounded)} {unit}"


def step_of(table: pd.DataFrame, name: str, step: Step) -> int:
    """The wanted step, or the last; refuses one that is not there."""
    steps = np.sort(table["step"].unique())
    if step is None:
        return int(steps[-1])
    if step not in steps:
        nearest = int(steps[np.abs(steps - step).argmin()])
        raise ValueError(
            f"the {name} has no step {step} (nearest: {nearest}; {len(steps)} from {steps[0]} to {steps[-1]})"
        )
    return int(step)


def distinct(names: Iterable[str]) -> list[str]:
    """Distinct names in order of first appearance."""
    return list(dict.fromkeys(names))


def some(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")
