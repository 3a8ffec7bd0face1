"""The meta-networks of L2T-ww (arXiv:1905.05901, §2.2): *what* to transfer and *where* to transfer it.

For a pair (m, n) of a source and a target layer, both read the source features of the input itself, averaged over
space:

    w^{m,n}(x) = softmax(f^{m,n}(pool S^m(x)))      what: how much each of the C_m channels counts
    λ^{m,n}(x) = relu6(g^{m,n}(pool S^m(x)))        where: how strongly the pair is matched, in [0, 6]

with f and g linear. f starts at zero, so all channels count alike; the bias of g starts at one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Pair = tuple[str, str]
Where = Literal["relu6", "relu", "constant", "off"]
WhereStart = Literal["random", "even"]


@dataclass(frozen=True)
class PairWeights:
    """What and where for one batch: for each pair (source layer, target layer) the channel weights, which sum to one,
    and the pair weight λ."""

    channels: dict[Pair, Float[Tensor, "batch channels"]]
    pairs: dict[Pair, Float[Tensor, "batch 1"]]

    def by_target(self) -> dict[str, Float[Tensor, "batch channels"]]:
        """λ·w of all pairs that end in one target layer, side by side in the order of the pairs."""
        parts: dict[str, list[Tensor]] = {}
        for (source, target), weights in self.channels.items():
            parts.setdefault(target, []).append(weights * self.pairs[source, target])
        return {target: torch.cat(weights, dim=1) for target, weights in parts.items()}


class MetaNetworks(nn.Module):
    """One *what* and one *where* network for each pair.

    Args:
        pairs: (source layer, target layer), the pairs that may be matched.
        source_channels: C_m of each source layer.
        what: learn channel weights; if not, every channel counts 1/C_m. (The authors' code sums over channels in that
            case, a factor C_m more; we average, so that switching *what* off changes which channels count and not
            how much the pair does.)
        where: "relu6" (the paper), "relu", "constant" (softplus(10·a), one learned a for each pair, the same for all
            images) or "off" (λ = 1).
        where_start: the initial weights of g, "random" (the authors' code: λ is one plus what a random layer makes of
            the features, another map for each seed) or "even" (zero: all pairs and images start at λ = 1; ours).
        generator: draws the random initial weights of the *where* networks.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        source_channels: Mapping[str, int],
        *,
        what: bool = True,
        where: Where = "relu6",
        where_start: WhereStart = "random",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if where not in get_args(Where):
            raise ValueError(f"where is one of {', '.join(get_args(Where))}; got {where!r}")
        if where_start not in get_args(WhereStart):
            raise ValueError(f"where_start is one of {', '.join(get_args(WhereStart))}; got {where_start!r}")
        if where_start == "even" and where not in ("relu6", "relu"):
            raise ValueError(f"where_start 'even' goes with where relu6 or relu; got where={where!r}")
        self.pairs, self.where_kind = list(pairs), where
        channels = [source_channels[source] for source, _ in self.pairs]
        linear = partial(nn.utils.skip_init, nn.Linear)  # nn.Linear itself would draw from torch's global generator
        self.what = nn.ModuleList([linear(c, c) for c in channels] if what else [])
        self.where = nn.ModuleList([linear(c, 1) for c in channels] if where in ("relu6", "relu") else [])
        for layer in self.what:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in self.where:
            if where_start == "even":
                nn.init.zeros_(layer.weight)
            else:  # torch's own initial weights of nn.Linear, from our generator
                bound = layer.in_features**-0.5
                nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.ones_(layer.bias)
        self.constant = nn.Parameter(torch.zeros(len(self.pairs))) if where == "constant" else None

    def forward(self, source_features: Mapping[str, Float[Tensor, "batch _ _ _"]]) -> PairWeights:
        """Weights for a batch from its source features, by source layer."""
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
        return PairWeights(channels, pairs)
