"""What and where over time: the means of λ and w since the last rows of a run's tables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mtanytime.training.run_folder import Row
from mtanytime.transfer.meta_networks import Pair, PairWeights
from mtanytime.transfer.running_mean import RunningMean


class Trace:
    """Collects the weights of every step for the tables trace and channels.

    Args:
        pairs: the matched pairs.
        source_channels: channels of each source layer.
    """

    def __init__(self, pairs: Sequence[Pair], source_channels: Mapping[str, int]) -> None:
        self._pairs, self._channels = list(pairs), source_channels
        self._means = {"trace": RunningMean(), "channels": RunningMean()}

    def add(self, weights: PairWeights, sums: Callable[[Sequence[Tensor]], list[Tensor]]) -> None:
        """Include the weights of a batch; `sums` adds the weights of other processes (`Processes.sums`)."""
        for name, values in (("trace", weights.pairs), ("channels", weights.channels)):
            self._means[name].add(torch.cat([values[pair].detach() for pair in self._pairs], dim=1), sums)

    def pair_rows(self, step: int) -> list[Row]:
        """One row per pair: step, source, target, weight, weight_std. The means start again."""
        weights = zip(self._pairs, *self._means["trace"].take(), strict=True)
        return [
            {"step": step, "source": source, "target": target, "weight": mean, "weight_std": std}
            for (source, target), mean, std in weights
        ]

    def channel_rows(self, step: int) -> list[Row]:
        """One row per pair and channel: step, source, target, channel, weight. The means start again."""
        mean, _ = self._means["channels"].take()
        places = [(pair, channel) for pair in self._pairs for channel in range(self._channels[pair[0]])]
        return [
            {"step": step, "source": source, "target": target, "channel": channel, "weight": weight}
            for ((source, target), channel), weight in zip(places, mean, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        """The sums so far, for a checkpoint."""
        return {name: vars(mean) for name, mean in self._means.items()}

    def load_state(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Restore what `state` returned."""
        self._means = {name: RunningMean(**values) for name, values in state.items()}
