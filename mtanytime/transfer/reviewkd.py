"""ReviewKD (Chen et al., CVPR 2021, arXiv:2104.09044): early source layers also teach late target layers.

Written from the paper: residual learning with attention-based fusion (section 3.3) and the hierarchical context loss
(section 3.4).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import require

LEVELS = (4, 2, 1)  # sides of the pooled maps of the hierarchical context loss


class ReviewKD(nn.Module):
    """Target layers are fused from the last one backwards; each fused map is matched to the source layer of its rank.

    The last source layer is paired with the last target layer, and so on; further target layers are not used.

    Args:
        source_channels, target_channels: channels by layer, first to last; at least as many target layers as source
            layers.
        width: channels of the fused maps.
    """

    def __init__(self, source_channels: Mapping[str, int], target_channels: Mapping[str, int], width: int = 64) -> None:
        super().__init__()
        count = len(source_channels)
        require(len(target_channels) >= count, "target_layers", f"at least {count} layers", list(target_channels))
        self.source_layers, self.target_layers = list(source_channels)[::-1], list(target_channels)[::-1][:count]
        self.fusions = nn.ModuleList(
            _Fusion(target_channels[target], source_channels[source], width, first=i == 0)
            for i, (source, target) in enumerate(zip(self.source_layers, self.target_layers, strict=True))
        )

    def forward(
        self,
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        target_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
    ) -> Float[Tensor, " batch"]:
        """The loss of each image."""
        fused, total = None, 0.0
        for source_layer, target_layer, fusion in zip(
            self.source_layers, self.target_layers, self.fusions, strict=True
        ):
            source = source_features[source_layer].detach()
            fused, output = fusion(target_features[target_layer], fused, source.shape[2:])
            total = total + hierarchical_context_loss(output, source)
        return total


class _Fusion(nn.Module):
    """Attention-based fusion of a target layer with what was fused from later ones."""

    def __init__(self, channels: int, wanted: int, width: int, first: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = None if first else nn.Conv2d(2 * width, 2, 1)
        self.expand = nn.Sequential(nn.Conv2d(width, wanted, 3, padding=1, bias=False), nn.BatchNorm2d(wanted))

    def forward(
        self, maps: Float[Tensor, "batch _ _ _"], later: Tensor | None, size: tuple[int, int]
    ) -> tuple[Float[Tensor, "batch _ _ _"], Float[Tensor, "batch _ _ _"]]:
        """The fused map, and the same with the source's channels and size."""
        fused = self.reduce(maps)
        if self.attention is not None:
            later = F.interpolate(later, size=fused.shape[2:], mode="nearest")
            weights = torch.sigmoid(self.attention(torch.cat([fused, later], dim=1)))
            fused = fused * weights[:, :1] + later * weights[:, 1:]
        resized = fused if fused.shape[2:] == size else F.interpolate(fused, size=size, mode="nearest")
        return fused, self.expand(resized)


def hierarchical_context_loss(
    maps: Float[Tensor, "batch channel height width"], source: Float[Tensor, "batch channel height width"]
) -> Float[Tensor, " batch"]:
    """Squared differences at the maps' own size and pooled to smaller ones: an average with weights 1, ½, ¼, …"""
    loss, weight = (maps - source).square().mean(dim=(1, 2, 3)), 1.0
    total = 1.0
    for side in LEVELS:
        if side >= maps.shape[2]:
            continue
        weight /= 2
        first, second = (F.adaptive_avg_pool2d(part, side) for part in (maps, source))
        loss = loss + weight * (first - second).square().mean(dim=(1, 2, 3))
        total += weight
    return loss / total
