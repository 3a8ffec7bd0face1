"""What a `TransferExplorer` shows: λ, R² and channel weights of every pair of layers over the training steps."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mtanytime.checks import Words, require
from mtanytime.explore import draw, feature_maps, tables
from mtanytime.explore.contents.common import ALL, NO_CHANNEL, NONE, Contents
from mtanytime.explore.runs import RunTables, layer_order
from mtanytime.measure.tables import require_unique

STEPS_UP_TO = 200  # per explorer
VALUES_UP_TO = 200_000  # per page: numbers for λ and its spread, and as many again for channel weights; 1.2 MB each
SCALE_COLOURS = 64
ARRIVED_UP_TO = 40_000  # numbers per page for R², which is measured at every fifth step of a run's trace
ASKED, ARRIVED, BOTH = "asked", "arrived", "both"  # what maps show: λ, R², or one beside the other
ONE_RUN = "give the table of one run"


def transfer_contents(
    trace: tables.Table, channels: tables.Table | None = None, arrived: tables.Table | None = None
) -> Contents:
    """Return what a `TransferExplorer` of one run shows.

    Args:
        trace: step, source, target, weight[, weight_std][, slice]; one row per step and pair.
        channels: step, source, target, channel, weight[, slice].
        arrived: step, source, target, r2[, slice].

    Raises:
        ValueError: a column is missing, a table is empty, a pair has two rows at one step, or a further table has a
            pair that the trace lacks.
    """
    return runs_contents({"": RunTables(trace, channels, arrived)})


def runs_contents(runs: Mapping[str, RunTables]) -> Contents:
    """Return what a `TransferExplorer` shows of one run or of several, by name.

    Several runs share the layers, the pairs and the slider's steps, which are those of any run; each run keeps the
    steps at which it was measured. Of one run, its numbers are in the contents themselves, of several in `runs`.

    Raises:
        ValueError: as `transfer_contents`; names the run.
    """
    traces = {name: _named(name, read_run, run) for name, run in runs.items()}
    pairs = tables.distinct(pair for table in traces.values() for pair in pairs_of(table))
    sources, targets = layer_order(map(pairs_of, traces.values()))
    notes: list[str] = []
    held = []
    features: list[Contents] = []  # of all runs, each file once: seeds share their source
    for name, table in traces.items():
        numbers, new_notes = _named(name, _run_contents, runs[name], table, pairs, len(runs))
        numbers["features"] = _named(name, _place_of_features, runs[name], features)
        held.append({"name": name} | numbers)
        notes += new_notes
    steps = sorted({step for run in held for step in run["steps"]})
    all_steps = len({step for table in traces.values() for step in table["step"]})
    several = len(runs) > 1
    whole = pd.concat(traces.values())
    about = (f"{len(runs)} runs, " if several else "") + summary(whole)
    return {
        "kind": "transfer",
        "title": "What is transferred where",
        "summary": about + (f", {len(steps)} of them shown" if len(steps) < all_steps else ""),
        "steps": steps,
        "all_steps": all_steps,
        "sources": sources,
        "networks": networks(sources),
        "targets": targets,
        "slices": slices(whole),
        "pairs": [[sources.index(source), targets.index(target)] for source, target in pairs],
        "colours": draw.scale_colours(SCALE_COLOURS),
        "diverging": draw.diverging_colours(SCALE_COLOURS + 1),
        "feature_maps": features,
        "runs": held if several else [],
        "note": " ".join(tables.distinct(notes)),
    } | ({} if several else held[0])


def read_run(run: RunTables) -> pd.DataFrame:
    """Return the trace of one run."""
    table = tables.read_trace(run.trace)
    require_unique(table, "trace", "step", "source", "target", remedy=ONE_RUN)
    return table


def pairs_of(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of a trace in its order."""
    return list(table[["source", "target"]].drop_duplicates().itertuples(index=False, name=None))


def held_runs(content: Contents) -> list[Contents]:
    """Return the numbers of each run in the contents of a transfer explorer."""
    return content["runs"] or [content]


Given = TypeVar("Given")


def _named(name: str, read: Callable[..., Given], *arguments: Any) -> Given:
    """Call a reader of a run's tables; an error names the run, where there are several."""
    try:
        return read(*arguments)
    except ValueError as error:
        raise ValueError(f"run {name}: {error}" if name else str(error)) from error


def _place_of_features(run: RunTables, known: list[Contents]) -> int | None:
    """Return the place of a run's feature maps among those known, to which new ones are added."""
    if run.features is None:
        return None
    features = feature_maps.read_feature_maps(run.features)
    if features not in known:
        known.append(features)
    return known.index(features)


def _run_contents(
    run: RunTables, table: pd.DataFrame, pairs: list[tuple[str, str]], runs: int
) -> tuple[Contents, list[str]]:
    """Return the numbers of one of several runs, which share the room of a page, and notes on what is left out."""
    own = pairs_of(table)
    room = VALUES_UP_TO if runs == 1 else 3 * VALUES_UP_TO // 4 // runs  # each run repeats the names of its channels
    all_steps = sorted(int(step) for step in table["step"].unique())
    steps = _thinned(all_steps, room // len(pairs))
    notes = []
    spreads = "weight_std" in table
    if spreads and 2 * len(steps) * len(pairs) > room:  # more steps are worth more than the spread
        spreads = False
        notes.append("The spread over the images is left out for its size.")
    if len(steps) < len(all_steps):
        notes.append(f"{len(steps)} of the table's {len(all_steps):,} steps are shown, evenly spread.")
    columns = pd.MultiIndex.from_tuples(pairs, names=["source", "target"])
    wide = lambda column: by_pair(table, column).reindex(columns=columns).loc[steps].to_numpy()  # noqa: E731
    contents: Contents = {
        "steps": steps,
        "values": _plain(wide("weight")),
        "spreads": _plain(wide("weight_std")) if spreads else None,
        "missing": [i for i, pair in enumerate(pairs) if pair not in set(own)] if len(own) < len(pairs) else [],
        "channels": None,
        "arrived": None,
    }
    if run.accuracy is not None and np.isfinite(run.accuracy):
        contents["accuracy"] = round(run.accuracy, 4)
    if run.channels is not None:
        channels = _read_channels(run.channels, table, own)
        contents["channels"], channel_notes = _channels(channels, table, pairs, room)
        notes += channel_notes
    if run.arrived is not None:
        r2 = arrived_by_pair(run.arrived, table).reindex(columns=columns)
        r2_steps = _thinned(list(r2.index), ARRIVED_UP_TO // runs // len(pairs))
        if len(r2_steps) < len(r2):
            notes.append(f"R² is held at {len(r2_steps)} of {len(r2)} steps.")
        contents["arrived"] = {"steps": r2_steps, "values": _plain(r2.loc[r2_steps].to_numpy(), digits=4)}
    return contents, notes


def transfer_choices(content: Contents) -> dict[str, Any]:
    """Return what the explorer shows first, as its traits: the first run's last step and the strongest pair there."""
    run = held_runs(content)[0]
    strongest = max(enumerate(run["values"][-1]), key=lambda pair: -1 if pair[1] is None else pair[1])[0]
    source, target = content["pairs"][strongest]
    return {
        "step": content["steps"][-1],
        "run": run["name"],
        "compare": NONE,
        "network": ALL,
        "slice": ALL,
        "relative": False,
        "change": False,
        "quantity": ASKED,
        "pair": [content["sources"][source], content["targets"][target]],
        "pinned": [],
        "channel": NO_CHANNEL,
    }


def by_pair(trace: pd.DataFrame, column: str = "weight") -> pd.DataFrame:
    """Return a column of a trace from `tables.read_trace` with a row per step and a column per pair, in its order."""
    pairs = pd.MultiIndex.from_frame(trace[["source", "target"]].drop_duplicates())
    return trace.pivot(index="step", columns=["source", "target"], values=column).reindex(columns=pairs).astype(float)


def arrived_by_pair(arrived: tables.Table, trace: pd.DataFrame) -> pd.DataFrame:
    """Return R² with a row per measured step and a column per pair of a trace from `tables.read_trace`, in its order.

    Raises:
        ValueError: as `transfer_contents`.
    """
    table = tables.read_arrived(arrived)
    require_unique(table, "table of R²", "step", "source", "target", remedy=ONE_RUN)
    pairs = pd.MultiIndex.from_frame(trace[["source", "target"]].drop_duplicates())
    _require_pairs(table, "table of R²", list(pairs))
    wide = table.pivot(index="step", columns=["source", "target"], values="r2").reindex(columns=pairs).astype(float)
    return wide.set_index(wide.index.map(int))


def summary(trace: pd.DataFrame) -> str:
    """Return one line about a trace that is the same on every machine."""
    pairs, steps = trace.groupby(["source", "target"]).ngroups, trace["step"]
    several = f", {steps.nunique()} steps from {steps.min()} to {steps.max()}"
    return f"{pairs} pair{'s' * (pairs > 1)}" + (several if steps.nunique() > 1 else f" at step {steps.min()}")


def networks(sources: Iterable[str]) -> list[str]:
    """Return the names of several source networks, from layers like `birds/layer1`; none if there is one network."""
    names = tables.distinct(source.partition("/")[0] for source in sources)
    return names if len(names) > 1 and all("/" in source for source in sources) else []


def slices(trace: pd.DataFrame) -> list[str]:
    """Return the slices of an anytime target in the table's order; none if there is only one."""
    names = tables.distinct(trace["slice"].astype(str)) if "slice" in trace else []
    return names if len(names) > 1 else []


def _thinned(steps: list[int], most: int) -> list[int]:
    """Return at most this many of the steps, evenly spread, including the first and the last."""
    most = min(max(most, 2), STEPS_UP_TO)
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]


def _plain(values: np.ndarray, digits: int | None = None) -> list[list[float | None]]:
    """Round numbers to four digits of the largest one, to keep a page small; None where one is not finite.

    `digits` are those after the point, where the largest number is no measure of the others.
    """
    if digits is None:
        largest = np.abs(values[np.isfinite(values)]).max(initial=0)
        digits = 4 - int(np.floor(np.log10(largest))) - 1 if largest > 0 else 4
    rows = np.round(values, max(digits, 0)).tolist()
    if np.isfinite(values).all():
        return rows
    return [[value if np.isfinite(value) else None for value in row] for row in rows]


def _read_channels(channels: tables.Table, trace: pd.DataFrame, pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Read the channels table of a trace; its pairs must be pairs of the trace."""
    table = tables.read_channels(channels)
    if "slice" in table and "slice" in trace:
        table = tables.with_slices(table, "channels table")
    require_unique(table, "channels table", "step", "source", "target", "channel", remedy=ONE_RUN)
    _require_pairs(table, "channels table", pairs)
    return table


def _require_pairs(table: pd.DataFrame, name: str, pairs: list[tuple[str, str]]) -> None:
    """Raise ValueError for a table with a pair that is none of these: it comes from another run."""
    unknown = set(table[["source", "target"]].drop_duplicates().itertuples(index=False, name=None)) - set(pairs)
    pair = " → ".join(min(unknown, default=()))
    require(not unknown, name, "pairs of the trace", Words(pair))


def _channels(
    table: pd.DataFrame, trace: pd.DataFrame, pairs: list[tuple[str, str]], room: int
) -> tuple[Contents | None, list[str]]:
    """Return the channel weights of as many pairs, at as many steps, as a page has room for, and notes of the rest.

    The strongest pairs of the last step come first; of each pair all channels are kept, in order.
    """
    all_steps = sorted(int(step) for step in table["step"].unique())
    sizes = table.groupby(["source", "target"])["channel"].nunique()
    strongest = trace[trace["step"] == trace["step"].max()].sort_values("weight", ascending=False)
    order = [pair for pair in strongest[["source", "target"]].itertuples(index=False, name=None) if pair in sizes.index]
    order += [pair for pair in sizes.index if pair not in set(order)]
    fits = sizes[order].cumsum() * min(2, len(all_steps)) <= room
    kept = [pair for pair in order if fits[pair]] or order[:1]
    steps = _thinned(all_steps, int(room // sizes[kept].sum()))
    notes = []
    if len(kept) < len(order):
        notes.append(f"Channel weights are held for the {len(kept)} strongest of {len(order)} pairs.")
    if len(steps) < len(all_steps):
        notes.append(f"Channel weights are held at {len(steps)} of {len(all_steps)} steps.")
    weights = {}
    place = {pair: i for i, pair in enumerate(pairs)}
    for pair, rows in table[table["step"].isin(steps)].groupby(["source", "target"], sort=False):
        if pair in kept:
            by_step = rows.pivot(index="step", columns="channel", values="weight").reindex(index=steps)
            names = [int(channel) for channel in by_step.columns]
            weights[str(place[pair])] = {"names": names, "weights": _plain(by_step.to_numpy(float))}
    return {"steps": steps, "pairs": weights}, notes
