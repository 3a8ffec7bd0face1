"""The meta-networks of L2T-ww (arXiv:1905.05901, §2.2): *what* to transfer and *where* to transfer it.

For a pair (m, n) of a source and a target layer, both take the source's features of the image, averaged over space:

    w^{m,n}(x) = softmax(f^{m,n}(pool S^m(x)))      what: the weight of each of the C_m channels
    λ^{m,n}(x) = relu6(g^{m,n}(pool S^m(x)))        where: the weight of the pair, in [0, 6]

with f and g linear. f starts at zero, so all channels have the same weight; the bias of g starts at one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import require
from mtanytime.training.distributed import Processes

Pair = tuple[str, str]
Where = Literal["relu6", "relu", "constant", "off"]
WhereStart = Literal["random", "even"]
SMALLEST_MEAN = 1e-3  # the least mean of λ to divide by: the weights stay small if all pairs are switched off


@dataclass(frozen=True)
class PairWeights:
    """What and where for one batch, by pair (source layer, target layer).

    `channels` holds the channel weights, which sum to one per image; `pairs` the pair weight λ.
    """

    channels: dict[Pair, Float[Tensor, "batch channels"]]
    pairs: dict[Pair, Float[Tensor, "batch 1"]]

    def by_target(self) -> dict[str, Float[Tensor, "batch channels"]]:
        """λ·w by target layer: the weights of its pairs, concatenated in the order of the pairs."""
        parts: dict[str, list[Tensor]] = {}
        for (source, target), weights in self.channels.items():
            parts.setdefault(target, []).append(weights * self.pairs[source, target])
        return {target: torch.cat(weights, dim=1) for target, weights in parts.items()}


def network_of(layer: str, networks: Sequence[str]) -> str:
    """The name of a source layer's network, one of `networks`, in "name/layer"; "" for a layer without such a name."""
    name = layer.partition("/")[0]
    return name if "/" in layer and name in networks else ""


class MetaNetworks(nn.Module):
    """One *what* and one *where* network per pair.

    Args:
        pairs: the (source layer, target layer) pairs to match.
        source_channels: C_m of each source layer.
        what: learn channel weights; if not, every channel has the weight 1/C_m. (The authors' code sums over channels
            in that case, a factor of C_m more. We average, so that switching *what* off leaves the scale of the pair's
            loss as it is.)
        where: "relu6" (the paper), "relu", "constant" (softplus(10·a), with one learned a per pair for all images) or
            "off" (λ = 1).
        where_start: the initial weights of g: "random" (the authors' code: λ starts at one plus a random linear
            function of the features, which depends on the seed) or "even" (zero, so λ = 1 for all pairs and images;
            ours, for relu6 and relu).
        normalize: divide λ by its mean over the pairs and the images of the batch. The meta-networks then learn only
            where to transfer, and β alone says how strongly. With a free λ, an outer loss close to zero only pulls λ
            down. If several processes share a batch, all must call the networks. Ours, not the paper's.
        generator: draws the random initial weights of g.

    Raises:
        ValueError: for an unknown `where` or `where_start`, or "even" without a g.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        source_channels: Mapping[str, int],
        *,
        what: bool = True,
        where: Where = "relu6",
        where_start: WhereStart = "random",
        normalize: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_where(where, where_start)
        self.pairs, self.where_kind, self.normalize = list(pairs), where, normalize
        channels = [source_channels[source] for source, _ in self.pairs]
        linear = partial(nn.utils.skip_init, nn.Linear)  # nn.Linear would draw from torch's global generator
        self.what = nn.ModuleList([linear(c, c) for c in channels] if what else [])
        self.where = nn.ModuleList([linear(c, 1) for c in channels] if where in ("relu6", "relu") else [])
        for layer in self.what:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in self.where:
            if where_start == "even":
                nn.init.zeros_(layer.weight)
            else:  # as nn.Linear does, but from our generator
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.ones_(layer.bias)
        self.constant = nn.Parameter(torch.zeros(len(self.pairs))) if where == "constant" else None

    def forward(self, source_features: Mapping[str, Float[Tensor, "batch _ _ _"]]) -> PairWeights:
        """The weights for a batch, from its source features by source layer."""
        pooled = {source: source_features[source].mean(dim=(2, 3)) for source in dict(self.pairs)}
        channels, pairs = {}, {}
        for i, pair in enumerate(self.pairs):
            feature = pooled[pair[0]]
            if self.what:
                channels[pair] = F.softmax(self.what[i](feature), dim=1)
            else:
                channels[pair] = torch.full_like(feature, 1 / feature.shape[1])
            if self.where_kind == "off":
                pairs[pair] = feature.new_ones(len(feature), 1)
            elif self.constant is not None:
                pairs[pair] = F.softplus(10 * self.constant[i]).expand(len(feature), 1)
            else:
                activation = F.relu6 if self.where_kind == "relu6" else F.relu
                pairs[pair] = activation(self.where[i](feature))
        if self.normalize:
            mean = _mean_of_batch(torch.cat(list(pairs.values()), dim=1)).clamp(min=SMALLEST_MEAN)
            pairs = {pair: weight / mean for pair, weight in pairs.items()}
        return PairWeights(channels, pairs)


def _mean_of_batch(weights: Float[Tensor, "part pairs"]) -> Float[Tensor, ""]:
    """The mean over the images of a batch, of which this process may hold only a part."""
    processes = Processes()
    if processes.count == 1:
        return weights.mean()
    (total,) = processes.sums_in_graph([weights.sum()])
    (count,) = processes.sums([torch.tensor(float(weights.numel()))])
    return total / count.item()


def check_where(where: str, where_start: str) -> None:
    """Raise ValueError for an unknown kind of *where* network, or a start that it does not have."""
    require(where in get_args(Where), "where", f"one of {', '.join(get_args(Where))}", where)
    starts = get_args(WhereStart)
    require(where_start in starts, "where_start", f"one of {', '.join(starts)}", where_start)
    learned = where_start != "even" or where in ("relu6", "relu")
    require(learned, "where", "relu6 or relu with where_start='even'", where)
