"""Pre-activation ResNeXt: the ordinary network, and its parts, which the anytime networks share."""

from collections.abc import Sequence
from numbers import Integral
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.backbones import check_image_shape
from mtanytime.checks import require

Stem = Literal["32x32", "224x224"]
STRIDES: dict[str, int] = {"32x32": 1, "224x224": 4}  # of the stem: the factor by which it shrinks an image


class Block(nn.Module):
    """norm–ReLU–1×1, norm–ReLU–3×3 in groups, norm–ReLU–1×1, added to the block's input (arXiv:1603.05027, 1611.05431).

    A norm may be an `nn.Identity` if it has been folded into the convolution before it.
    """

    convolutions_with_norms = (("conv1", "bn2"), ("conv2", "bn3"))  # pairs that `folding.fold_batch_norms` may join

    def __init__(
        self, bn1: nn.Module, conv1: nn.Module, bn2: nn.Module, conv2: nn.Conv2d, bn3: nn.Module, conv3: nn.Module
    ) -> None:
        super().__init__()
        self.bn1, self.conv1, self.bn2, self.conv2, self.bn3, self.conv3 = bn1, conv1, bn2, conv2, bn3, conv3

    def forward(self, maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """Add the block's residual to the maps."""
        inner = self.conv1(F.relu(self.bn1(maps), inplace=True))
        inner = self.conv2(F.relu(self.bn2(inner), inplace=True))
        return maps + self.conv3(F.relu(self.bn3(inner), inplace=True))


class Trunk(nn.Module):
    """Stem, stages of blocks, norm–ReLU–mean: from images to one feature per channel of the last stage.

    Between stages, 2×2 average pooling, and each slice's channels are doubled by zeros appended to them.

    Args:
        stem: the first convolution, and pooling if it has any.
        stages: the blocks of each stage.
        norm: the last batch norm.
        slice_widths: channels of each slice of the first stage; (width,) in a network that is not sliced.
    """

    def __init__(
        self, stem: nn.Module, stages: Sequence[Sequence[Block]], norm: nn.Module, slice_widths: Sequence[int]
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.norm = norm
        self.slice_widths = tuple(slice_widths)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the last stage's features, averaged over the pixels."""
        maps = self.stem(images)
        for i, stage in enumerate(self.stages):
            if i:
                maps = widen(maps, [width << (i - 1) for width in self.slice_widths])
            maps = stage(maps)
        return self.pooled(self.norm(maps))

    @staticmethod
    def pooled(normalized: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel"]:
        """Apply ReLU and average over the pixels: from the last norm's output to the heads' input."""
        return F.relu(normalized, inplace=True).mean(dim=(2, 3))


def widen(
    maps: Float[Tensor, "batch channel height width"], slice_widths: Sequence[int]
) -> Float[Tensor, "batch channel2 height2 width2"]:
    """Go to the next stage: 2×2 average pooling, and as many zero channels appended to each slice as it has."""
    slices = F.avg_pool2d(maps, 2).split(list(slice_widths), dim=1)
    return torch.cat([part for maps in slices for part in (maps, torch.zeros_like(maps))], dim=1)


class ResNeXt(nn.Module):
    """A trunk with one head, built by `resnext` or by an anytime network's `extract`."""

    def __init__(self, trunk: Trunk, head: nn.Linear) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits. Raises ValueError for images without three channels or too small."""
        check_images(images, self.trunk.stem, len(self.trunk.stages), "ResNeXt")
        return self.head(self.trunk(images))


def resnext(
    num_classes: int,
    width: int = 64,
    bottleneck: int = 4,
    branches: int = 8,
    blocks: int | Sequence[int] = 7,
    stem: Stem = "32x32",
) -> ResNeXt:
    """Build a pre-activation ResNeXt (Xie et al. 2017, arXiv:1611.05431), in the form that arXiv:1807.02609 thins.

    Args:
        num_classes: outputs.
        width: channels of the first stage; they double from stage to stage.
        bottleneck: channels of each branch in the first stage; they also double.
        branches: groups of the 3×3 convolutions.
        blocks: blocks per stage: one number for each of three stages, or a list with a number for each stage.
        stem: "32x32", a 3×3 convolution, or "224x224", a 7×7 convolution and 3×3 max pooling, both of stride 2.

    Raises:
        ValueError: a size below 1, or an unknown stem.
    """
    blocks = check_sizes(num_classes, width, bottleneck, branches, blocks, stem)

    def block(stage: int) -> Block:
        channels, inner = width << stage, (bottleneck << stage) * branches
        return Block(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, inner, 3, padding=1, groups=branches, bias=False),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, channels, 1, bias=False),
        )

    stages = [[block(stage) for _ in range(count)] for stage, count in enumerate(blocks)]
    last = width << (len(blocks) - 1)
    network = ResNeXt(
        Trunk(make_stem(stem, width), stages, nn.BatchNorm2d(last), (width,)), nn.Linear(last, num_classes)
    )
    initialize(network)
    return network


def make_stem(stem: Stem, width: int) -> nn.Module:
    """Build the first layers of a network for images of this size. See `resnext`."""
    if stem == "32x32":
        return nn.Conv2d(3, width, 3, padding=1, bias=False)
    return nn.Sequential(nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, 2, 1))


def initialize(network: nn.Module) -> None:
    """Draw convolutions from He's normal distribution by fan-in, and set the heads' biases to zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def check_sizes(
    num_classes: int, width: int, bottleneck: int, branches: int, blocks: int | Sequence[int], stem: str
) -> tuple[int, ...]:
    """Return the number of blocks of each stage. Raises ValueError for a size below 1 or an unknown stem."""
    blocks = (blocks,) * 3 if isinstance(blocks, Integral) else tuple(blocks)
    sizes = {"num_classes": num_classes, "width": width, "bottleneck": bottleneck, "branches": branches}
    for name, size in [*sizes.items(), *(("blocks", count) for count in blocks)]:
        require(isinstance(size, Integral) and size >= 1, name, "a whole number from 1", size)
    require(len(blocks) > 0, "blocks", "a number for each stage", blocks)
    require(stem in STRIDES, "stem", f"one of {list(STRIDES)}", stem)
    return blocks


def check_images(images: Tensor, stem: nn.Module, stages: int, network: str) -> None:
    """Raise ValueError unless images have three channels and are at least as large as the strides need."""
    least = STRIDES["32x32" if isinstance(stem, nn.Conv2d) else "224x224"] << (stages - 1)
    check_image_shape(images, 3, least, network)
