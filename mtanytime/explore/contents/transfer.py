"""What a `TransferExplorer` shows: λ, R² and channel weights of every pair of layers over the training steps."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from mtanytime.checks import Words, require
from mtanytime.explore import draw, tables
from mtanytime.explore.contents.common import ALL, Contents
from mtanytime.measure.tables import require_unique

STEPS_UP_TO = 200  # per explorer
VALUES_UP_TO = 200_000  # per page: numbers for λ and its spread, and as many again for channel weights; 1.2 MB each
SCALE_COLOURS = 64
ARRIVED_UP_TO = 40_000  # numbers per page for R², which is measured at every fifth step of a run's trace
ASKED, ARRIVED = "asked", "arrived"  # what a map shows: λ or R²
ONE_RUN = "give the table of one run"


def transfer_contents(
    trace: tables.Table, channels: tables.Table | None = None, arrived: tables.Table | None = None
) -> Contents:
    """Return what a `TransferExplorer` shows.

    Args:
        trace: step, source, target, weight[, weight_std][, slice]; one row per step and pair.
        channels: step, source, target, channel, weight[, slice].
        arrived: step, source, target, r2[, slice].

    Raises:
        ValueError: a column is missing, a table is empty, a pair has two rows at one step, or a further table has a
            pair that the trace lacks.
    """
    table = tables.read_trace(trace)
    require_unique(table, "trace", "step", "source", "target", remedy=ONE_RUN)
    pairs = list(table[["source", "target"]].drop_duplicates().itertuples(index=False, name=None))
    all_steps = sorted(int(step) for step in table["step"].unique())
    steps = _thinned(all_steps, VALUES_UP_TO // len(pairs))
    notes = []
    spreads = "weight_std" in table
    if spreads and 2 * len(steps) * len(pairs) > VALUES_UP_TO:  # more steps are worth more than the spread
        spreads = False
        notes.append("The spread over the images is left out for its size.")
    if len(steps) < len(all_steps):
        notes.append(f"{len(steps)} of the table's {len(all_steps):,} steps are shown, evenly spread.")
    sources, targets = (tables.distinct(pair[side] for pair in pairs) for side in (0, 1))
    contents = {
        "kind": "transfer",
        "title": "What is transferred where",
        "summary": summary(table) + (f", {len(steps)} of them shown" if len(steps) < len(all_steps) else ""),
        "steps": steps,
        "all_steps": len(all_steps),
        "sources": sources,
        "networks": networks(sources),
        "targets": targets,
        "slices": slices(table),
        "pairs": [[sources.index(source), targets.index(target)] for source, target in pairs],
        "values": _plain(by_pair(table).loc[steps].to_numpy()),
        "spreads": _plain(by_pair(table, "weight_std").loc[steps].to_numpy()) if spreads else None,
        "colours": draw.scale_colours(SCALE_COLOURS),
        "channels": None,
        "arrived": None,
    }
    if channels is not None:
        contents["channels"], channel_notes = _channels(_read_channels(channels, table, pairs), table, pairs)
        notes += channel_notes
    if arrived is not None:
        r2 = arrived_by_pair(arrived, table)
        steps = _thinned(list(r2.index), ARRIVED_UP_TO // len(pairs))
        if len(steps) < len(r2):
            notes.append(f"R² is held at {len(steps)} of {len(r2)} steps.")
        contents["arrived"] = {"steps": steps, "values": _plain(r2.loc[steps].to_numpy(), digits=4)}
    return contents | {"note": " ".join(notes)}


def transfer_choices(content: Contents) -> dict[str, Any]:
    """Return what the explorer shows first, as its traits: the last step and the strongest pair there."""
    strongest = max(enumerate(content["values"][-1]), key=lambda pair: -1 if pair[1] is None else pair[1])[0]
    source, target = content["pairs"][strongest]
    pair = [content["sources"][source], content["targets"][target]]
    first = {"step": content["steps"][-1], "network": ALL, "slice": ALL, "relative": False, "quantity": ASKED}
    return first | {"pair": pair}


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
    table: pd.DataFrame, trace: pd.DataFrame, pairs: list[tuple[str, str]]
) -> tuple[Contents | None, list[str]]:
    """Return the channel weights of as many pairs, at as many steps, as a page has room for, and notes of the rest.

    The strongest pairs of the last step come first; of each pair all channels are kept, in order.
    """
    all_steps = sorted(int(step) for step in table["step"].unique())
    sizes = table.groupby(["source", "target"])["channel"].nunique()
    strongest = trace[trace["step"] == trace["step"].max()].sort_values("weight", ascending=False)
    order = [pair for pair in strongest[["source", "target"]].itertuples(index=False, name=None) if pair in sizes.index]
    order += [pair for pair in sizes.index if pair not in set(order)]
    fits = sizes[order].cumsum() * min(2, len(all_steps)) <= VALUES_UP_TO
    kept = [pair for pair in order if fits[pair]] or order[:1]
    steps = _thinned(all_steps, int(VALUES_UP_TO // sizes[kept].sum()))
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
