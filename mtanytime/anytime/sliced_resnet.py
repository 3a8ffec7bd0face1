"""Sliced residual networks of dense blocks: one pass computes all exits, a wider one reuses a thinner one's work."""

from copy import deepcopy
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.blocks import make_block
from mtanytime.anytime.made_weights import has_made_weights, plain_copy, refresh_weights
from mtanytime.anytime.resnext import initialize
from mtanytime.anytime.slice_layers import HandingOn, Run, SliceConv, SliceNorm, SliceSteps, all_slices, first_slices
from mtanytime.anytime.slice_shape import SliceShape
from mtanytime.anytime.stepping import SlicedNetwork
from mtanytime.backbones import check_image_shape


class ShapedNetwork(SlicedNetwork):
    """A network whose slices have a `SliceShape`: a trunk of that shape, and a head for each exit.

    `trunk.first(k)` copies the first k slices, and `trunk.stride` is the product of its layers' strides.
    """

    def __init__(self, num_classes: int, shape: SliceShape, trunk: nn.Module) -> None:
        super().__init__()
        self.shape, self.trunk = shape, trunk
        self.heads = nn.ModuleList(nn.Linear(size, num_classes) for size in accumulate(shape.widths[-1]))
        initialize(self)

    @torch.no_grad()
    def extract(self, k: int) -> "ResNetExit":
        """Copy sub-network k, the first k slices and their head, as a network with its own weights."""
        self._check_exit(k)
        if has_made_weights(self):
            return plain_copy(self).extract(k)
        return ResNetExit(self.trunk.first(k), deepcopy(self.heads[k - 1])).train(self.training)

    def _check_images(self, images: Tensor) -> None:
        check_image_shape(images, 3, self.trunk.stride, type(self).__name__)


class SlicedResNet(ShapedNetwork):
    """A residual network cut into K slices, each of which reads only itself and the slices before it.

    As `SlicedResNeXt`, with other blocks: block lower triangular 3×3 convolutions without groups, or inverted
    residuals. Processors compute them in less time per multiply-add than narrow groups. Every norm follows a
    convolution, so all can be folded.

    Example:
        >>> from mtanytime.anytime import SlicedResNet, SliceShape
        >>> network = SlicedResNet(10, SliceShape(widths=((16, 16), (32, 32), (64, 64))))  # two slices, three stages
        >>> images = torch.rand(8, 3, 32, 32)
        >>> thin, wide = network(images)  # the logits of both exits, from one pass
        >>> steps = network.refine(images)
        >>> thin = next(steps)  # computes slice 1
        >>> wide = next(steps)  # computes slice 2 alone
        >>> network.extract(1)(images).shape  # exit 1 as a network of its own
        torch.Size([8, 10])

    Args:
        num_classes: outputs.
        shape: kind of block, blocks per stage, strides, and the channels of each slice in each stage.
    """

    def __init__(self, num_classes: int, shape: SliceShape) -> None:
        super().__init__(num_classes, shape, SliceTrunk(shape))

    @torch.no_grad()
    def _slice_features(self, images: Tensor, inputs: dict[Any, list[Tensor]], j: int) -> Tensor:
        if j == 0:
            refresh_weights(*self.trunk.modules())
        return self.trunk(images, SliceSteps(inputs, j))

    def _features_of_slice(self, images: Tensor, run: HandingOn) -> Tensor:
        return self.trunk(images, run)


class SliceTrunk(nn.Module):
    """3×3–norm–ReLU, stages of blocks, ReLU–mean: from images to one feature per channel of the last stage.

    From the second stage on, the first block of each stage has stride 2.
    """

    convolutions_with_norms = (("stem", "norm"),)

    def __init__(self, shape: SliceShape) -> None:
        super().__init__()
        self.stem, self.norm = SliceConv(3, shape.widths[0], shape.stem_stride), SliceNorm(shape.widths[0])
        widths = [shape.widths[0], *shape.widths]
        self.stages = nn.ModuleList(
            nn.ModuleList(
                make_block(shape, outputs if i else inputs, outputs, 1 if i or stage == 0 else 2) for i in range(count)
            )
            for stage, (count, (inputs, outputs)) in enumerate(zip(shape.blocks, pairwise(widths), strict=True))
        )
        self.stride = shape.stem_stride << (len(shape.widths) - 1)  # of all its layers together

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], run: Run = all_slices
    ) -> Float[Tensor, "batch features"]:
        """Return the last stage's features, averaged over the pixels, of all slices or of the slice of `run`."""
        maps = F.relu(run(self.norm, run(self.stem, images)), inplace=True)
        for stage in self.stages:
            for block in stage:
                maps = block(maps, run)
        return F.relu(maps).mean(dim=(2, 3))

    def first(self, k: int) -> "SliceTrunk":
        """Copy the first k slices."""
        return first_slices(self, k)


class ResNetExit(nn.Module):
    """The stand-alone network of one exit: its slices, a `SliceTrunk` or a `CascadeTrunk`, and its head."""

    def __init__(self, trunk: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits. Raises ValueError for images without three channels or too small."""
        check_image_shape(images, 3, self.trunk.stride, type(self).__name__)
        return self.head(self.trunk(images))
