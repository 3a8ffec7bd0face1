"""Time per multiply-add of convolutions, by kind, channels, size of the maps, batch and runtime."""

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, fields
from itertools import product

import numpy as np
import pandas as pd
import torch
from torch import nn

from mtanytime.checks import Words, require
from mtanytime.measure.runtimes import prepare, time_in_turn
from mtanytime.measure.tables import as_numbers, require_rows, require_whole
from mtanytime.randomness import seeded


@dataclass(frozen=True, order=True)
class Layer:
    """A square convolution without bias, on maps of side × side pixels; the stride halves them, rounded up.

    Raises ValueError for an even size.
    """

    inputs: int
    outputs: int
    side: int
    size: int = 3
    groups: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        require(self.size % 2 == 1, "size", "an odd number, so that the maps keep their size", self.size)

    @property
    def macs(self) -> int:
        """Multiply-adds per image."""
        return self.outputs * self.inputs // self.groups * self.size**2 * (-(-self.side // self.stride)) ** 2

    @property
    def kind(self) -> str:
        """The kind of convolution, as tables name it."""
        if self.groups == 1:
            return f"dense {self.size}×{self.size}"
        return "depthwise" if self.groups == self.inputs else f"groups of {self.inputs // self.groups}"

    def module(self) -> nn.Conv2d:
        """The convolution, with random weights."""
        options = {"stride": self.stride, "padding": self.size // 2, "groups": self.groups, "bias": False}
        return nn.Conv2d(self.inputs, self.outputs, self.size, **options)


def usual_layers(channels: Sequence[int] = (16, 24, 32, 48, 64, 128), sides: Sequence[int] = (16, 8)) -> list[Layer]:
    """Layers of every kind with as many inputs as outputs: 3×3 dense, in groups of 4, depthwise; and 1×1.

    Raises ValueError for channels that are not multiples of 4, from 8 on.
    """
    valid = all(width >= 8 and width % 4 == 0 for width in channels)
    require(valid, "channels", "multiples of 4, from 8 on", list(channels))
    kinds = [(3, None), (3, 4), (3, 1), (1, None)]  # size, channels per group (None: all)
    return [
        Layer(width, width, side, size, width // per_group if per_group else 1)
        for (size, per_group), side, width in product(kinds, sides, channels)
    ]


def layer_times(
    layers: Sequence[Layer],
    batch_sizes: Sequence[int] = (1, 64),
    runtimes: Sequence[str] = ("eager", "channels-last"),
    repeats: int = 20,
    progress: bool = True,
) -> pd.DataFrame:
    """Time layers, in rounds that run each of them once.

    Args:
        layers: see `usual_layers`.
        batch_sizes: images per batch.
        runtimes: see `runtimes.prepare`.
        repeats: timed rounds, after three that are not counted.
        progress: show a progress bar per batch size.

    Returns:
        One row per layer, batch size and runtime: kind, the layer's sizes, batch, runtime, threads, macs (per image),
        ms (per batch, lower quartile of the rounds, which other work on the machine disturbs least) and gmacs_per_s.

    Raises:
        ValueError: no layer or batch size, a batch size below 1, or as `prepare` and `time_in_turn`.
    """
    require(len(layers) > 0, "layers", "one or more layers", list(layers))
    require(len(batch_sizes) > 0 and min(batch_sizes) >= 1, "batch_sizes", "one or more sizes >= 1", batch_sizes)
    rows = []
    for batch in batch_sizes:
        works = list(product(layers, runtimes))
        with seeded(0, torch.device("cpu")):
            calls = [
                prepare(layer.module(), torch.rand(batch, layer.inputs, layer.side, layer.side), runtime)
                for layer, runtime in works
            ]
        quartiles = np.percentile(time_in_turn(calls, repeats, progress=progress), 25, axis=1)
        for (layer, runtime), ms in zip(works, quartiles.tolist(), strict=True):
            setting = {"batch": batch, "runtime": runtime, "threads": torch.get_num_threads()}
            cost = {"macs": layer.macs, "ms": ms, "gmacs_per_s": layer.macs * batch / ms / 1e6}
            rows.append({"kind": layer.kind, **asdict(layer), **setting, **cost})
    return pd.DataFrame(rows)


class LayerClock:
    """Milliseconds of layers on this machine: each is measured at its first request, and kept.

    Args:
        batch, runtime, repeats: see `layer_times`.
        table: times measured before, such as `clock.table`; rows of other batch sizes and runtimes are not used.

    Raises:
        ValueError: a table without a needed column, with an invalid size or time, or measured on another number of
            threads.
    """

    def __init__(
        self, batch: int = 1, runtime: str = "eager", repeats: int = 20, table: pd.DataFrame | None = None
    ) -> None:
        self.batch, self.runtime, self.repeats = batch, runtime, repeats
        self.table = pd.DataFrame() if table is None else table
        self._ms: dict[Layer, float] = {}
        if table is not None and len(table) > 0:
            sizes = [field.name for field in fields(Layer)]
            needed = [*sizes, "batch", "runtime", "threads", "ms"]
            missing = [name for name in needed if name not in table]
            require(not missing, "table", f"columns {', '.join(needed)}", Words(f"none named {', '.join(missing)}"))
            whole = [*sizes, "batch", "threads"]
            table = as_numbers(table, "table", *whole, "ms")
            for name in (*whole, "ms"):
                good = (table[name] > 0) & (table[name] < math.inf)
                require_rows(good, table, "table", name, "finite numbers above 0")
            table = table.assign(**{name: require_whole(table, "table", name) for name in whole})
            rows = table[(table["batch"] == batch) & (table["runtime"] == runtime)]
            threads, here = rows["threads"].unique().tolist(), torch.get_num_threads()
            require(threads in ([], [here]), "table", f"times on {here} threads, as torch uses now", threads)
            for row in rows[[*sizes, "ms"]].to_dict("records"):
                ms = row.pop("ms")
                self._ms[Layer(**row)] = ms

    def ms(self, layer: Layer) -> float:
        """Milliseconds per batch."""
        if layer not in self._ms:
            self.measure([layer])
        return self._ms[layer]

    def measure(self, layers: Sequence[Layer], progress: bool = False) -> None:
        """Measure the layers that have no time yet, in turn."""
        new = sorted({layer for layer in layers if layer not in self._ms}, key=astuple)
        if new:
            rows = layer_times(new, (self.batch,), (self.runtime,), self.repeats, progress)
            self.table = pd.concat([self.table, rows], ignore_index=True) if len(self.table) else rows
            self._ms.update(zip(new, rows["ms"].tolist(), strict=True))
