"""Several runs at once: their tables, which may be parts of one table, and short names that tell them apart."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mtanytime.checks import Words, require
from mtanytime.explore import tables

RUNS_UP_TO = 24  # in one page
RUN_COLUMNS = ("method", "seed")  # of a table of several runs


class RunTables(NamedTuple):
    """The tables of one run of a transfer: its trace and, if there are any, channel weights, R² and feature maps.

    `results` is a table of method, seed and test accuracy, from which `split_runs` takes the run's `accuracy`.
    """

    trace: tables.Table
    channels: tables.Table | None = None
    arrived: tables.Table | None = None
    features: Path | None = None
    results: Path | None = None
    accuracy: float | None = None


Tables = tables.Table | Mapping[str, tables.Table] | Sequence[tables.Table]


def runs_of(trace: Tables, channels: Tables | None = None, arrived: Tables | None = None) -> dict[str, RunTables]:
    """Return the tables of each run by its name; the only run of one table is called "".

    Args:
        trace: one table, or those of several runs: a dictionary from names to tables, or a list of paths, which give
            the names. The tables that a run wrote beside a path are found. A table may hold several runs, see
            `split_runs`.
        channels: of one run, a table; of several, a dictionary with the names of runs that have channel weights.
        arrived: likewise.

    Raises:
        ValueError: there are no runs or more than 24, a run has no name, a list holds tables instead of paths, or a
            further table belongs to none of the runs.
    """
    if isinstance(trace, (pd.DataFrame, str, PathLike)):
        return split_all({"": _run(trace, channels, arrived)})
    if not isinstance(trace, Mapping):
        kinds = {type(place).__name__ for place in trace if not isinstance(place, (str, PathLike))}
        remedy = "name tables in a dictionary"
        require(not kinds, "trace", "paths in a list", Words(", ".join(sorted(kinds))), remedy)
        trace = dict(zip(run_names([Path(place) for place in trace]), trace, strict=True))
    require(1 <= len(trace) <= RUNS_UP_TO, "trace", f"1 to {RUNS_UP_TO} runs", len(trace))
    require(all(isinstance(name, str) and name for name in trace), "trace", "a name for every run", list(trace))
    for name, further in (("channels", channels), ("arrived", arrived)):
        fits = further is None or (isinstance(further, Mapping) and set(further) <= set(trace))
        came = Words(", ".join(map(str, further)) if isinstance(further, Mapping) else type(further).__name__)
        require(fits, name, f"a dictionary with names of the runs ({tables.first_few(list(trace))})", came)
    of = {name: _run(table, (channels or {}).get(name), (arrived or {}).get(name)) for name, table in trace.items()}
    return split_all(of)


def split_all(runs: Mapping[str, RunTables]) -> dict[str, RunTables]:
    """Return runs by name, those that `split_runs` finds in one of them called "name, seed 0".

    Raises:
        ValueError: as `split_runs`; there are more than 24 runs.
    """
    split = {
        ", ".join(filter(None, (name, part))): run
        for name, whole in runs.items()
        for part, run in split_runs(whole).items()
    }
    require(len(split) <= RUNS_UP_TO, "trace", f"1 to {RUNS_UP_TO} runs", len(split))
    return split


def split_runs(run: RunTables) -> dict[str, RunTables]:
    """Return the runs in tables with a column seed or method, by names like "seed 0" or "l2t, seed 0"; one alone is "".

    The columns of which the trace has several values tell its runs apart, and its further tables must have them too.
    The accuracy of a run is that of its row in the results, if there is one.

    Raises:
        ValueError: a table cannot be read, or a further table lacks a column that tells the runs apart.
        OSError: a table cannot be read.
    """
    table = tables.load_table(run.trace, "trace")
    known = [name for name in RUN_COLUMNS if name in table]
    keys = [name for name in known if table[name].nunique(dropna=False) > 1]
    results = None if run.results is None or not known else tables.read_table(run.results, "results table", "accuracy")
    names = {"channels": "channels table", "arrived": "table of R²"} if keys else {}
    further = {field: getattr(run, field) for field in names if getattr(run, field) is not None}
    further = {field: tables.load_table(place, names[field]) for field, place in further.items()}
    for field, whole in further.items():
        lacking = [name for name in keys if name not in whole]
        require(not lacking, names[field], f"column {', '.join(lacking)}, as in the trace", Words("none"))
    runs = {}
    for values, rows in table.groupby(keys, sort=False, dropna=False) if keys else [((), table)]:
        chosen = dict(zip(keys, values, strict=True))
        parts = {field: _rows(whole, chosen) for field, whole in further.items()}
        accuracy = _accuracy(results, {name: rows[name].iloc[0] for name in known if len(rows)})
        name = ", ".join(_word(*item) for item in chosen.items())
        runs[name] = run._replace(trace=rows, accuracy=accuracy, **parts)
    return runs


def _word(key: str, value: Any) -> str:
    """Return a value in words; where a row has none, pandas makes whole numbers floats."""
    if key == "method":
        return str(value)
    whole = isinstance(value, float) and value.is_integer()
    return f"{key} {int(value)}" if whole else f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}"


def _rows(table: pd.DataFrame, values: Mapping[str, Any]) -> pd.DataFrame | None:
    """Return the rows of a table that have these values; None if there are none."""
    fits = pd.Series(True, index=table.index)
    for name, value in values.items():
        fits &= table[name].isna() if pd.isna(value) else table[name] == value
    return table[fits] if fits.any() else None


def _accuracy(results: pd.DataFrame | None, values: Mapping[str, Any]) -> float | None:
    """Return the accuracy in the only row of a run; None if there is not exactly one."""
    if results is None or not set(values) <= set(results):
        return None
    rows = _rows(results, values)
    return float(rows["accuracy"].iloc[0]) if rows is not None and len(rows) == 1 else None


def _run(trace: tables.Table, channels: tables.Table | None, arrived: tables.Table | None) -> RunTables:
    """Return the tables of a run with those beside its trace."""
    arrived = tables.arrived_beside(trace) if arrived is None else arrived
    beside = tables.features_beside(trace), tables.results_beside(trace)
    return RunTables(*tables.whole_run(trace, channels), arrived, *beside)


def layer_order(runs: Iterable[Sequence[tuple[str, str]]]) -> tuple[list[str], list[str]]:
    """Return the source layers and the target layers of several runs, each in an order that agrees with every run's.

    The trials of a search match different pairs: those of the first one need not begin with a network's first layers.
    Where the runs leave an order open, it is that of the first appearance. The layers of a network stay together.

    Args:
        runs: the pairs (source layer, target layer) of each run, in its order.
    """
    sources: list[list[str]] = []
    targets: list[list[str]] = []
    for pairs in runs:
        own = tables.distinct(source for source, _ in pairs)
        sources.append(own)
        targets += [[target for name, target in pairs if name == source] for source in own]
    several = all("/" in source for own in sources for source in own)  # "birds/layer1"
    networks = tables.distinct(source.partition("/")[0] for own in sources for source in own) if several else [""]
    by_network = [[[s for s in own if not several or s.startswith(f"{name}/")] for own in sources] for name in networks]
    return [layer for orders in by_network for layer in _merged(orders)], _merged(targets)


def _merged(orders: Sequence[Sequence[str]]) -> list[str]:
    """Return all names in one order; if the orders contradict each other, that of the first appearance."""
    names = tables.distinct(name for order in orders for name in order)
    before: dict[str, set[str]] = {name: set() for name in names}
    for earlier, later in (both for order in orders for both in pairwise(order)):
        before[later].add(earlier)
    merged: list[str] = []
    while len(merged) < len(names):
        free = (name for name in names if name not in merged and before[name] <= set(merged))
        if (name := next(free, None)) is None:
            return names
        merged.append(name)
    return merged


def run_names(paths: Sequence[Path]) -> list[str]:
    """Return a short name per path: of a run's table its folder's, of other tables the file's, as short as they differ.

    `a/l2t-seed0/trace.csv` and `b/l2t-seed0` are called a/l2t-seed0 and b/l2t-seed0.
    """
    paths = [path.absolute() for path in paths]
    parts = [(path.parent if path.name in tables.RUN_TABLES.values() else _bare(path)).parts for path in paths]
    names = [part[-1] for part in parts]
    deepest = max(map(len, parts), default=0)
    for depth in range(2, deepest + 1):
        counts = Counter(names)
        names = ["/".join(part[-depth:]) if counts[name] > 1 else name for name, part in zip(names, parts, strict=True)]
    seen: Counter[str] = Counter()
    for i, name in enumerate(names):  # the same place twice
        seen[name] += 1
        names[i] = f"{name} ({seen[name]})" if seen[name] > 1 else name
    return names


def _bare(path: Path) -> Path:
    """Return the path of a table without its endings."""
    name = path.name
    for ending in (".gz", ".bz2", ".xz", ".zip", ".csv"):
        name = name.removesuffix(ending) or name
    return path.with_name(name)
