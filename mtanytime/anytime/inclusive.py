"""Inclusive ResNeXt: nested weights. Sub-network k is the first branches of one network; each exit costs a pass."""

from collections.abc import Sequence
from copy import deepcopy
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.made_weights import has_made_weights, plain_copy, refresh_weights
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.resnext import (
    Block,
    ResNeXt,
    Stem,
    Trunk,
    check_images,
    check_sizes,
    initialize,
    make_stem,
    widen,
)
from mtanytime.checks import require


class InclusiveResNeXt(AnytimeNetwork):
    """One ResNeXt whose first branches are complete thinner networks (Lee, Shin 2018, arXiv:1807.02609).

    Exit k of E runs the first k·branches/E branches of every block: the first outputs of its first 1×1 convolution,
    the first groups of its 3×3 convolution and the first inputs of its last 1×1 convolution. The convolutions are
    shared; each exit has its own batch norms and head. The residual stream keeps its full width, and exits share no
    activations, so each exit costs a pass.

    Deviation: convolutions start from He's normal distribution by fan-in.

    Args:
        num_classes: outputs.
        width: channels of the first stage; they double from stage to stage.
        bottleneck: channels of each branch in the first stage; they also double.
        branches: groups of the 3×3 convolutions.
        blocks: blocks per stage: one number for each of three stages, or a list with a number for each stage.
        exits: number of exits (E), which must divide `branches`; None: as many as branches.
        stem: see `resnext.resnext`.

    Raises:
        ValueError: a size below 1, exits that do not divide the branches, an unknown stem.
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 64,
        bottleneck: int = 4,
        branches: int = 8,
        blocks: int | Sequence[int] = 7,
        exits: int | None = None,
        stem: Stem = "32x32",
    ) -> None:
        super().__init__()
        blocks = check_sizes(num_classes, width, bottleneck, branches, blocks, stem)
        exits = branches if exits is None else exits
        divides = isinstance(exits, Integral) and exits >= 1 and branches % exits == 0
        require(divides, "exits", f"a divisor of the {branches} branches", exits)
        self.stem = make_stem(stem, width)
        self.stages = nn.ModuleList(
            nn.ModuleList(_NestedBlock(width << stage, bottleneck << stage, branches, exits) for _ in range(count))
            for stage, count in enumerate(blocks)
        )
        last = width << (len(blocks) - 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(last) for _ in range(exits))
        self.heads = nn.ModuleList(nn.Linear(last, num_classes) for _ in range(exits))
        initialize(self)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> list[Float[Tensor, "batch classes"]]:
        """Return the E logits, thin to wide, one pass per exit. Raises ValueError for images without three channels."""
        check_images(images, self.stem, len(self.stages), "InclusiveResNeXt")
        stem = self.stem(images)
        refresh_weights(*(part for stage in self.stages for block in stage for part in block.children()))
        return [self._logits(stem, k) for k in range(1, self.exits + 1)]

    def _logits(self, maps: Tensor, k: int) -> Tensor:
        for i, stage in enumerate(self.stages):
            if i:
                maps = widen(maps, [maps.shape[1]])
            for block in stage:
                maps = block(maps, k)
        return self.heads[k - 1](Trunk.pooled(self.norms[k - 1](maps)))

    @torch.no_grad()
    def extract(self, k: int) -> ResNeXt:
        """Copy sub-network k as an ordinary ResNeXt of k·branches/E branches, with its own weights."""
        self._check_exit(k)
        if has_made_weights(self):
            return plain_copy(self).extract(k)
        stages = [[block.thin(k) for block in stage] for stage in self.stages]
        width = self.stages[0][0].bn1[0].num_features
        trunk = Trunk(deepcopy(self.stem), stages, deepcopy(self.norms[k - 1]), (width,))
        return ResNeXt(trunk, deepcopy(self.heads[k - 1])).train(self.training)


class _NestedBlock(nn.Module):
    """A block whose first branches are complete thinner blocks, with batch norms for each exit."""

    def __init__(self, channels: int, bottleneck: int, branches: int, exits: int) -> None:
        super().__init__()
        inner = bottleneck * branches
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, groups=branches, bias=False)
        self.conv3 = nn.Conv2d(inner, channels, 1, bias=False)
        self.bn1 = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(exits))
        self.bn2 = nn.ModuleList(nn.BatchNorm2d(inner * k // exits) for k in range(1, exits + 1))
        self.bn3 = nn.ModuleList(nn.BatchNorm2d(inner * k // exits) for k in range(1, exits + 1))

    def forward(
        self, maps: Float[Tensor, "batch channel height width"], k: int
    ) -> Float[Tensor, "batch channel height width"]:
        """Add the residual of the first branches, those of exit k, to the maps."""
        first, second, third = self._weights(k)
        inner = F.conv2d(F.relu(self.bn1[k - 1](maps), inplace=True), first)
        inner = F.relu(self.bn2[k - 1](inner), inplace=True)
        inner = F.conv2d(inner, second, padding=1, groups=len(second) // second.shape[1])
        return maps + F.conv2d(F.relu(self.bn3[k - 1](inner), inplace=True), third)

    def thin(self, k: int) -> Block:
        """Copy the block of exit k."""
        convolutions = []
        for weight in self._weights(k):
            outputs, inputs, size, _ = weight.shape
            groups = outputs // inputs if size == 3 else 1
            options = {"padding": size // 2, "groups": groups, "bias": False}
            convolution = nn.utils.skip_init(nn.Conv2d, inputs * groups, outputs, size, **options)
            convolution.weight = nn.Parameter(weight.clone())
            convolutions.append(convolution)
        norms = [deepcopy(norms[k - 1]) for norms in (self.bn1, self.bn2, self.bn3)]
        return Block(*(part for pair in zip(norms, convolutions, strict=True) for part in pair))

    def _weights(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        inner = self.bn2[k - 1].num_features
        return self.conv1.weight[:inner], self.conv2.weight[:inner], self.conv3.weight[:, :inner]
