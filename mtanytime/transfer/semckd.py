"""SemCKD (Chen et al., AAAI 2021, arXiv:2012.03236): every target layer attends to similar source layers.

Written from the paper; sizes that it leaves open are taken from the authors' code (DefangChen/SemCKD).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import require


class SemCKD(nn.Module):
    """Feature distillation with pair weights from attention between the layers' similarity matrices.

    For each layer, the similarity matrix of a batch is A = F Fᵀ with F the flattened maps (batch, features). Row i of a
    target layer's A is embedded as a query, row i of a source layer's A as a key. The softmax of query · key over the
    source layers is the weight α of the pair for image i. The loss of image i is Σ α · mean (projection(T) - S)² over
    pairs, averaged over target layers; the larger map is average-pooled to the smaller one's size (section 3.3).

    A similarity matrix has as many columns as the batch has images, so all batches must be of one size.

    Args:
        source_channels, target_channels: channels by layer.
        batch_size: images per batch.
        embedding: the width of queries and keys; default: a quarter of the batch size.
    """

    def __init__(
        self,
        source_channels: Mapping[str, int],
        target_channels: Mapping[str, int],
        batch_size: int,
        embedding: int | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        embedding = max(batch_size // 4, 1) if embedding is None else embedding
        self.source_layers, self.target_layers = list(source_channels), list(target_channels)
        self.keys = nn.ModuleList(_Embedding(batch_size, embedding) for _ in source_channels)
        self.queries = nn.ModuleList(_Embedding(batch_size, embedding) for _ in target_channels)
        self.projections = nn.ModuleList(
            nn.ModuleList(_projection(channels, wanted) for wanted in source_channels.values())
            for channels in target_channels.values()
        )

    def forward(
        self,
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        target_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
    ) -> Float[Tensor, " batch"]:
        """The loss of each image. ValueError for a batch of another size."""
        sources = [source_features[layer].detach() for layer in self.source_layers]
        targets = [target_features[layer] for layer in self.target_layers]
        require(len(sources[0]) == self.batch_size, "images", f"batches of {self.batch_size}", len(sources[0]))
        attention = self.attention(sources, targets)
        total = 0.0
        for n, target in enumerate(targets):
            for m, source in enumerate(sources):
                size = min(source.shape[2:], target.shape[2:])
                projected = self.projections[n][m](F.adaptive_avg_pool2d(target, size))
                errors = (projected - F.adaptive_avg_pool2d(source, size)).square().mean(dim=(1, 2, 3))
                total = total + attention[:, n, m] * errors
        return total / len(targets)

    def attention(
        self, sources: list[Float[Tensor, "batch _ _ _"]], targets: list[Float[Tensor, "batch _ _ _"]]
    ) -> Float[Tensor, "batch targets sources"]:
        """α of every image and pair; sums to 1 over the source layers."""
        keys = torch.stack([key(_similarity(maps)) for key, maps in zip(self.keys, sources, strict=True)], dim=2)
        queries = torch.stack([q(_similarity(maps)) for q, maps in zip(self.queries, targets, strict=True)], dim=1)
        return F.softmax(queries @ keys, dim=2)


class _Embedding(nn.Module):
    """Linear, ReLU, linear, normalized to length 1."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, 2 * outputs), nn.Linear(2 * outputs, outputs)

    def forward(self, rows: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """One unit vector per image."""
        return F.normalize(self.second(F.relu(self.first(rows))), dim=1)


def _similarity(maps: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch batch"]:
    flat = maps.flatten(1)
    return flat @ flat.T


def _projection(channels: int, wanted: int) -> nn.Sequential:
    """1×1, 3×3, 1×1 convolutions with batch norm and ReLU between them."""
    width = 2 * wanted
    return nn.Sequential(
        nn.Conv2d(channels, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, wanted, 1),
    )
