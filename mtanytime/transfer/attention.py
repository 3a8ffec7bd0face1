"""Attention transfer (Zagoruyko, Komodakis 2017, arXiv:1612.03928): match where features are strong."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.transfer.matching import resize_maps
from mtanytime.transfer.meta_networks import Pair


def attention_map(features: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch place"]:
    """The mean of the squared channels at each place, normalized to Euclidean length 1 (section 3.1, with p = 2)."""
    return F.normalize(features.square().mean(dim=1).flatten(1), dim=1)


class AttentionTransfer(nn.Module):
    """The squared difference of two layers' attention maps, averaged over places and summed over pairs.

    As in the authors' code, which averages where equation 2 of the paper takes the Euclidean norm. Where the sizes
    differ, the source's map is resized bilinearly, as for feature matching.

    Args:
        pairs: (source layer, target layer).
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        super().__init__()
        self.pairs = list(pairs)

    def forward(
        self,
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        target_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
    ) -> Float[Tensor, " batch"]:
        """The loss of each image."""
        total = 0.0
        for source_layer, target_layer in self.pairs:
            target = target_features[target_layer]
            source = resize_maps(source_features[source_layer].detach(), tuple(target.shape[2:]))
            total = total + (attention_map(source) - attention_map(target)).square().mean(dim=1)
        return total
