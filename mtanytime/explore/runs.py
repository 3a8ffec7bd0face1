"""Several runs at once: their tables, and short names that tell them apart."""

from collections import Counter
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mtanytime.checks import Words, require
from mtanytime.explore import tables
from mtanytime.explore.feature_maps import features_beside

RUNS_UP_TO = 24  # in one page


class RunTables(NamedTuple):
    """The tables of one run of a transfer: its trace and, if there are any, channel weights, R² and feature maps."""

    trace: tables.Table
    channels: tables.Table | None = None
    arrived: tables.Table | None = None
    features: Path | None = None


Tables = tables.Table | Mapping[str, tables.Table] | Sequence[tables.Table]


def runs_of(trace: Tables, channels: Tables | None = None, arrived: Tables | None = None) -> dict[str, RunTables]:
    """Return the tables of each run by its name; the only run of one table is called "".

    Args:
        trace: one table, or those of several runs: a dictionary from names to tables, or a list of paths, which give
            the names. The tables that a run wrote beside a path are found.
        channels: of one run, a table; of several, a dictionary with the names of runs that have channel weights.
        arrived: likewise.

    Raises:
        ValueError: there are no runs or more than 24, a run has no name, a list holds tables instead of paths, or a
            further table belongs to none of the runs.
    """
    if isinstance(trace, (pd.DataFrame, str, PathLike)):
        return {"": _run(trace, channels, arrived)}
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
    return {name: _run(table, (channels or {}).get(name), (arrived or {}).get(name)) for name, table in trace.items()}


def _run(trace: tables.Table, channels: tables.Table | None, arrived: tables.Table | None) -> RunTables:
    """Return the tables of a run with those beside its trace."""
    arrived = tables.arrived_beside(trace) if arrived is None else arrived
    return RunTables(*tables.whole_run(trace, channels), arrived, features_beside(trace))


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
