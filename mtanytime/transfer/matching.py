"""The weighted feature-matching loss of L2T-ww (arXiv:1905.05901, eq. 1 and 2).

    L_wfm^{m,n}(x) = Σ_c w_c · mean_{h,w} (r^{m,n}(T^n(x)) - S^m(x))²_c
    L_wfm(x)       = Σ_{(m,n)} λ^{m,n}(x) · L_wfm^{m,n}(x)

r^{m,n}, a 1×1 convolution from the target layer's D_n channels to the source layer's C_m, is trained with the target.
Where the sizes of the maps differ, the source map is resized to the target map's, bilinearly with half-pixel centres.

All pairs that end in one target layer are worked out together: their regressors are one convolution with Σ_m C_m
outputs and their source maps one stacked tensor, which is the same arithmetic in fewer and larger operations.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.transfer.metanets import Pair


class FeatureMatching(nn.Module):
    """The regressors r^{m,n} and the loss.

    Args:
        pairs: (source layer, target layer).
        source_channels, target_channels: C_m and D_n by layer.
        generator: draws the regressors' initial weights, as `nn.Conv2d` does (uniform within ± 1/√D_n).
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        source_channels: Mapping[str, int],
        target_channels: Mapping[str, int],
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.sources: dict[str, list[str]] = {}  # target layer -> its source layers, in the order of the pairs
        for source, target in pairs:
            self.sources.setdefault(target, []).append(source)
        self.source_channels = dict(source_channels)
        convolution = partial(nn.utils.skip_init, nn.Conv2d)  # itself, it would draw from torch's global generator
        self.regressors = nn.ModuleList(
            convolution(target_channels[target], sum(source_channels[s] for s in sources), 1)
            for target, sources in self.sources.items()
        )
        for regressor in self.regressors:
            bound = regressor.in_channels**-0.5
            nn.init.uniform_(regressor.weight, -bound, bound, generator=generator)
            nn.init.uniform_(regressor.bias, -bound, bound, generator=generator)

    def regressor(self, pair: Pair) -> tuple[Float[Tensor, "source target 1 1"], Float[Tensor, " source"]]:
        """Weight and bias of r^{m,n}, as views into its target layer's convolution."""
        source, target = pair
        sources = self.sources[target]
        start = sum(self.source_channels[s] for s in sources[: sources.index(source)])
        stop = start + self.source_channels[source]
        convolution = self.regressors[list(self.sources).index(target)]
        return convolution.weight[start:stop], convolution.bias[start:stop]

    def align(
        self,
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        target_sizes: Mapping[str, tuple[int, int]],
    ) -> dict[str, Float[Tensor, "batch channels height width"]]:
        """Source maps resized to each target layer's (height, width) and stacked over its pairs; once a batch."""
        return {
            target: torch.cat([_resize(source_features[s], target_sizes[target]) for s in sources], dim=1)
            for target, sources in self.sources.items()
        }

    def forward(
        self,
        target_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        aligned: Mapping[str, Float[Tensor, "batch _ _ _"]],
        weights: Mapping[str, Float[Tensor, "batch _"]],
    ) -> Float[Tensor, " batch"]:
        """L_wfm of each image, from `align`'s source maps and `PairWeights.by_target`'s weights λ·w."""
        total = 0.0
        for target, regressor in zip(self.sources, self.regressors, strict=True):
            difference = regressor(target_features[target]) - aligned[target]
            total = total + (difference.square().mean(dim=(2, 3)) * weights[target]).sum(dim=1)
        return total


def _resize(features: Float[Tensor, "batch channel _ _"], size: tuple[int, int]) -> Float[Tensor, "batch channel _ _"]:
    if tuple(features.shape[2:]) == size:
        return features
    return F.interpolate(features, size=size, mode="bilinear", align_corners=False)
