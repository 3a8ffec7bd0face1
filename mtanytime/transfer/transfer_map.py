"""A transfer map: what and where to transfer, learned or made by hand, and held fixed while a target is trained."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.measure.tables import require_columns
from mtanytime.transfer.meta_networks import Pair, PairWeights
from mtanytime.whole_files import write_whole

_FORMAT = "mtanytime-map-1"
_TOLERANCE = 1e-3  # of the sum of a pair's channel weights, which tables and files round


@dataclass(frozen=True)
class TransferMap:
    """The weight λ of each pair (source layer, target layer), and the weights of the source layer's channels.

    Args:
        pairs: λ by pair; at least one is above 0.
        channels: the channel weights by pair, which sum to 1. Numbers of any type are kept as floats.

    Raises:
        ValueError: no pairs, channel weights of other pairs, or a weight that is negative or not finite.
    """

    pairs: Mapping[Pair, float]
    channels: Mapping[Pair, Sequence[float]]

    def __post_init__(self) -> None:
        floats = {pair: [float(weight) for weight in weights] for pair, weights in self.channels.items()}
        object.__setattr__(self, "channels", floats)
        object.__setattr__(self, "pairs", {pair: float(weight) for pair, weight in self.pairs.items()})
        require(len(self.pairs) > 0, "pairs", "at least one", Words("none"))
        same = set(self.pairs) == set(self.channels)
        require(same, "channels", "weights of the map's pairs", list(self.channels))
        for pair, weight in self.pairs.items():
            require(0 <= weight < math.inf, f"pairs[{pair}]", "a weight >= 0", weight)
            weights = self.channels[pair]
            valid = len(weights) > 0 and all(0 <= w < math.inf for w in weights)
            valid = valid and abs(sum(weights) - 1) < _TOLERANCE
            got = Words(f"{len(weights)} with the sum {sum(weights):.4g}")
            require(valid, f"channels[{pair}]", "weights >= 0 with the sum 1", got)
        require(max(self.pairs.values()) > 0, "pairs", "a weight above 0", Words("none"))

    @classmethod
    def uniform(cls, pairs: Sequence[Pair], source_channels: Mapping[str, int]) -> "TransferMap":
        """The map of all-to-all matching: λ = 1, and 1/C for each of a source layer's C channels."""
        channels = {pair: [1 / source_channels[pair[0]]] * source_channels[pair[0]] for pair in pairs}
        return cls(dict.fromkeys(pairs, 1.0), channels)

    @classmethod
    def from_tables(cls, trace: pd.DataFrame, channels: pd.DataFrame) -> "TransferMap":
        """The mean of the rows of `TransferResult.trace` and `channels`, which are means over images and steps.

        The last row may cover fewer steps; it counts as much as the others.

        Raises ValueError for a table that lacks a column, for tables of other pairs, and as the constructor, such as
        for a weight that is NaN.
        """
        keys = ("source", "target")
        require_columns(trace, "trace", *keys, "weight")
        require_columns(channels, "channels", *keys, "channel", "weight")
        names = {"source": str, "target": str}  # a table read from a file holds the names "0", "1", … as numbers
        trace, channels = trace.astype(names), channels.astype(names)
        by_pair = trace.groupby([*keys], sort=False)["weight"].mean(skipna=False)
        weights = channels.groupby([*keys, "channel"], sort=False)["weight"].mean(skipna=False)
        pairs = {pair: float(weight) for pair, weight in by_pair.items()}
        known = set(weights.index.droplevel("channel"))
        require(known == set(pairs), "channels", f"the pairs of the trace, {list(pairs)}", sorted(known))
        return cls(pairs, {pair: weights.loc[pair].sort_index().tolist() for pair in pairs})

    @classmethod
    def mean(cls, maps: Sequence["TransferMap"]) -> "TransferMap":
        """The mean of several maps of the same pairs, each with λ scaled to the mean 1."""
        require(len(maps) > 0, "maps", "at least one map", Words("none"))
        maps = [one.scaled() for one in maps]
        first = maps[0]
        for other in maps[1:]:
            require(set(other.pairs) == set(first.pairs), "maps", "maps of the same pairs", list(other.pairs))
            counts = [{pair: len(weights) for pair, weights in one.channels.items()} for one in (first, other)]
            require(counts[0] == counts[1], "maps", f"maps with as many channels, {counts[0]}", counts[1])
        pairs = {pair: float(np.mean([one.pairs[pair] for one in maps])) for pair in first.pairs}
        return cls(pairs, {pair: np.mean([one.channels[pair] for one in maps], axis=0).tolist() for pair in pairs})

    def scaled(self, mean: float = 1.0) -> "TransferMap":
        """The map with λ scaled to this mean over its pairs, so that β says how strongly to match."""
        factor = mean * len(self.pairs) / sum(self.pairs.values())
        return TransferMap({pair: weight * factor for pair, weight in self.pairs.items()}, self.channels)

    def only(self, pairs: Sequence[Sequence[str]]) -> "TransferMap":
        """The map that matches these pairs alone, with equal λ whose mean over all pairs is 1, and the same channels.

        Raises ValueError for no pairs, or others than the map's.
        """
        chosen = {(source, target) for source, target in pairs}  # JSON gives lists
        require(0 < len(chosen) and chosen <= set(self.pairs), "pairs", "some of the map's pairs", list(pairs))
        each = len(self.pairs) / len(chosen)
        return TransferMap({pair: each * (pair in chosen) for pair in self.pairs}, self.channels)

    def with_uniform_channels(self) -> "TransferMap":
        """The map with the weight 1/C for each of a source layer's C channels: *where* alone."""
        return TransferMap(self.pairs, {pair: [1 / len(w)] * len(w) for pair, w in self.channels.items()})

    @property
    def trace(self) -> pd.DataFrame:
        """λ as a table for the pictures and explorers of a trace: step (0), source, target, weight."""
        return pd.DataFrame(
            [{"step": 0, "source": s, "target": t, "weight": weight} for (s, t), weight in self.pairs.items()]
        )

    @property
    def channel_table(self) -> pd.DataFrame:
        """The channel weights as a table: step (0), source, target, channel, weight."""
        return pd.DataFrame(
            [
                {"step": 0, "source": source, "target": target, "channel": channel, "weight": weight}
                for (source, target), weights in self.channels.items()
                for channel, weight in enumerate(weights)
            ]
        )

    def save(self, file: str | PathLike[str]) -> None:
        """Write the map as JSON."""
        pairs = [
            {"source": source, "target": target, "weight": weight, "channels": list(self.channels[source, target])}
            for (source, target), weight in self.pairs.items()
        ]
        write_whole(Path(file).expanduser(), json.dumps({"format": _FORMAT, "pairs": pairs}, indent=1))

    @classmethod
    def load(cls, file: str | PathLike[str]) -> "TransferMap":
        """Read a map that `save` wrote. ValueError, with the file's name, for another file."""
        try:
            content: Any = json.loads(Path(file).expanduser().read_text(encoding="utf-8-sig"))
            require(content["format"] == _FORMAT, "format", repr(_FORMAT), content["format"])
            rows = [(row["source"], row["target"], row["weight"], row["channels"]) for row in content["pairs"]]
            for source, target, weight, channels in rows:
                require(type(source) is type(target) is str, "pairs", "names of layers", [source, target])
                numbers = all(type(number) in (int, float) for number in (weight, *channels))
                require(numbers, f"pairs[{(source, target)}]", "numbers", Words("others"))
            require(len({row[:2] for row in rows}) == len(rows), "pairs", "each pair once", Words("one of them twice"))
            return cls(
                {(source, target): float(weight) for source, target, weight, _ in rows},
                {(source, target): [float(weight) for weight in channels] for source, target, _, channels in rows},
            )
        except OSError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)
            raise mismatch(str(file), "a transfer map", Words(f"a foreign or damaged file ({reason})")) from error


def as_map(given: TransferMap | str | PathLike[str], normalize: bool = False) -> TransferMap:
    """A map, read from its file if it is one, with λ of mean 1 if wanted. ValueError for anything else."""
    found = TransferMap.load(given) if isinstance(given, str | PathLike) else given
    require(isinstance(found, TransferMap), "map", "a TransferMap or the file of one", Words(type(found).__name__))
    return found.scaled() if normalize else found


class FixedWeights(nn.Module):
    """The weights of a `TransferMap` for every batch, in place of `MetaNetworks`; nothing is learned.

    Args:
        transfer_map: the map.
        pairs: the matched pairs, in order: all pairs of the map, where those with λ = 0 may be left out.
        source_channels: C_m of each source layer.

    Raises:
        ValueError: a map of other pairs, or with channel weights of another network.
    """

    def __init__(self, transfer_map: TransferMap, pairs: Sequence[Pair], source_channels: Mapping[str, int]) -> None:
        super().__init__()
        weighty = {pair for pair, weight in transfer_map.pairs.items() if weight > 0}
        others = sorted((set(pairs) - set(transfer_map.pairs)) | (weighty - set(pairs)))
        shown = Words(", ".join(f"{s} → {t}" for s, t in others[:4]) + " in only one of them")
        require(not others, "map", "the pairs that are matched", shown)
        for source, target in pairs:
            channels, weights = source_channels[source], transfer_map.channels[source, target]
            what = f"{channels} channel weights for {source} → {target}, as the source's layer has"
            require(len(weights) == channels, "map", what, Words(f"{len(weights)}, of another network"))
        self.pairs = list(pairs)
        where = torch.tensor([float(transfer_map.pairs[pair]) for pair in self.pairs])  # a map may hold integers
        self.register_buffer("where", where, persistent=False)
        for i, pair in enumerate(self.pairs):
            what = torch.tensor([float(weight) for weight in transfer_map.channels[pair]])
            self.register_buffer(f"what{i}", what, persistent=False)

    def forward(self, source_features: Mapping[str, Float[Tensor, "batch _ _ _"]]) -> PairWeights:
        """The weights for a batch, the same for all of its images."""
        batch = len(next(iter(source_features.values())))
        channels = {pair: self.get_buffer(f"what{i}").expand(batch, -1) for i, pair in enumerate(self.pairs)}
        return PairWeights(channels, {pair: self.where[i].expand(batch, 1) for i, pair in enumerate(self.pairs)})
