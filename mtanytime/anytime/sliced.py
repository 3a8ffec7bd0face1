"""Sliced ResNeXt: nested activations. One pass computes all exits, and a wider exit reuses a thinner one's work."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.made_weights import has_made_weights, plain_copy, refresh_weights
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
from mtanytime.anytime.slice_layers import HandingOn, first_of_norm, slice_of_norm
from mtanytime.anytime.slice_pattern import TriangularConv
from mtanytime.anytime.stepping import SlicedNetwork
from mtanytime.checks import require

Sizes = Sequence[int] | Int[np.ndarray, " slices"]


class SlicedResNeXt(SlicedNetwork):
    """A ResNeXt cut into K slices, each of which reads only itself and the slices before it.

    A reconstruction: arXiv:1807.02609 trains its thin sub-networks efficiently with "a certain sparsity pattern", and
    no source gives the pattern. Here the residual stream and the branches are cut into slices, and both 1×1
    convolutions are block lower triangular (`TriangularConv`): slice j reads slices ≤ j. So the activations
    of slice j do not depend on later slices. One pass gives the logits of all K exits, a training step costs one pass,
    and one batch norm serves all widths. Going from exit k to k + 1 computes slice k + 1 alone (`refine`). Head k reads
    the slices up to k. The same kind of sparsity was published for other networks: doubly nested
    (arXiv:1806.07568), any-width (arXiv:2012.03153) and stepping ones (arXiv:2211.14926); the last also reuse
    activations when they step up.

    Args:
        num_classes: outputs.
        width: channels of the first stage, of all slices together; they double from stage to stage.
        bottleneck: channels of each branch in the first stage; they also double.
        branches: groups of the 3×3 convolutions, of all slices together.
        blocks: blocks per stage: one number for each of three stages, or a list with a number for each stage.
        slice_widths: channels of each slice in the first stage, which add up to `width`; None: as many equal slices as
            `slice_branches` has entries, or as there are branches.
        slice_branches: branches of each slice, which add up to `branches`; None: the same number for each slice.
        stem: see `resnext.resnext`.

    Raises:
        ValueError: a size below 1, slices that do not add up or do not divide evenly, an unknown stem.
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 64,
        bottleneck: int = 4,
        branches: int = 8,
        blocks: int | Sequence[int] = 7,
        slice_widths: Sizes | None = None,
        slice_branches: Sizes | None = None,
        stem: Stem = "32x32",
    ) -> None:
        super().__init__()
        blocks = check_sizes(num_classes, width, bottleneck, branches, blocks, stem)
        given = (sizes for sizes in (slice_widths, slice_branches) if sizes is not None)
        count = len(next(given, range(branches)))
        self.slice_widths = _slice_sizes("width", width, "slice_widths", slice_widths, count)
        self.slice_branches = _slice_sizes("branches", branches, "slice_branches", slice_branches, count)
        stages = [[self._block(bottleneck, stage) for _ in range(number)] for stage, number in enumerate(blocks)]
        factor = 1 << (len(blocks) - 1)  # of the last stage's channels
        norm = nn.BatchNorm2d(factor * width)
        self.trunk = Trunk(make_stem(stem, width), stages, norm, self.slice_widths)
        self.heads = nn.ModuleList(nn.Linear(factor * size, num_classes) for size in accumulate(self.slice_widths))
        initialize(self)

    def _block(self, bottleneck: int, stage: int) -> Block:
        widths = [size << stage for size in self.slice_widths]
        inner = [(bottleneck << stage) * size for size in self.slice_branches]
        total, branches = sum(inner), sum(self.slice_branches)
        return Block(
            nn.BatchNorm2d(sum(widths)),
            TriangularConv(widths, inner),
            nn.BatchNorm2d(total),
            nn.Conv2d(total, total, 3, padding=1, groups=branches, bias=False),
            nn.BatchNorm2d(total),
            TriangularConv(inner, widths),
        )

    @torch.no_grad()
    def extract(self, k: int) -> ResNeXt:
        """Copy sub-network k, the first k slices and their head, as a network with its own weights."""
        self._check_exit(k)
        if has_made_weights(self):
            return plain_copy(self).extract(k)
        width, branches = sum(self.slice_widths[:k]), sum(self.slice_branches[:k])
        factors = [1 << stage for stage in range(len(self.trunk.stages))]
        stages = [
            [_thin_block(block, k, factor * width, branches) for block in stage]
            for factor, stage in zip(factors, self.trunk.stages, strict=True)
        ]
        stem = deepcopy(self.trunk.stem)
        convolution = stem if isinstance(stem, nn.Conv2d) else stem[0]
        convolution.weight, convolution.out_channels = nn.Parameter(convolution.weight[:width].clone()), width
        norm = first_of_norm(self.trunk.norm, factors[-1] * width)
        trunk = Trunk(stem, stages, norm, self.slice_widths[:k])
        return ResNeXt(trunk, deepcopy(self.heads[k - 1])).train(self.training)

    def _check_images(self, images: Tensor) -> None:
        check_images(images, self.trunk.stem, len(self.trunk.stages), "SlicedResNeXt")

    @torch.no_grad()
    def _slice_features(self, images: Tensor, inputs: dict[Any, list[Tensor]], j: int) -> Tensor:
        # `inputs` holds, per block, the inputs of its two 1×1 convolutions, of all slices
        if j == 0:
            refresh_weights(*self.trunk.modules())
        return self._features(images, _Buffers(inputs, j))

    def _features_of_slice(self, images: Tensor, run: HandingOn) -> Tensor:
        return self._features(images, _Joined(run))

    def _features(self, images: Tensor, inputs: "_Buffers | _Joined") -> Tensor:
        j = inputs.j
        maps = self._slice_of_stem(images, j)
        for i, stage in enumerate(self.trunk.stages):
            if i:
                maps = widen(maps, [maps.shape[1]])
            for block in stage:
                maps = _slice_of_block(block, maps, inputs)
        return self._pooled(maps, j)

    def _pooled(self, maps: Tensor, j: int) -> Tensor:
        stop = self.heads[j].in_features
        return Trunk.pooled(slice_of_norm(self.trunk.norm, maps, stop - maps.shape[1], stop))

    def _slice_of_stem(self, images: Tensor, j: int) -> Tensor:
        convolution, *rest = [self.trunk.stem] if isinstance(self.trunk.stem, nn.Conv2d) else self.trunk.stem
        start = sum(self.slice_widths[:j])
        weight = convolution.weight[start : start + self.slice_widths[j]]
        maps = F.conv2d(images, weight, None, convolution.stride, convolution.padding)
        for module in rest:
            maps = module(maps)
        return maps


class _Buffers:
    """The inputs of the blocks' two 1×1 convolutions, of all slices, written slice by slice in place.

    `inputs` holds them by block; those of slices < j are already there.
    """

    def __init__(self, inputs: dict[Any, list[Tensor]], j: int) -> None:
        self.inputs, self.j = inputs, j

    def __call__(self, block: Block, convolution: int, part: Tensor) -> Tensor:
        """ReLU of slice j's part of a convolution's input (0 or 1), after the parts of the slices before it."""
        channels = [sum(block.conv1.inputs), sum(block.conv3.inputs)]
        if self.j == 0:
            buffer = part.new_empty(len(part), channels[convolution], *part.shape[2:])
            self.inputs.setdefault(block, []).append(buffer)
        buffer = self.inputs[block][convolution]
        start = sum((block.conv1, block.conv3)[convolution].inputs[: self.j])
        torch.clamp_min(part, 0, out=buffer[:, start : start + part.shape[1]])
        return buffer


class _Joined:
    """As `_Buffers`, by concatenation: nothing is changed in place, and what later slices need is handed on."""

    def __init__(self, run: HandingOn) -> None:
        self.run, self.j = run, run.j

    def __call__(self, block: Block, convolution: int, part: Tensor) -> Tensor:
        """See `_Buffers`."""
        return self.run.joined(F.relu(part))


def _slice_of_block(block: Block, maps: Tensor, inputs: _Buffers | _Joined) -> Tensor:
    """Slice j of a block's output, for slice j of its input `maps`."""
    j = inputs.j
    start, width = sum(block.conv1.inputs[:j]), block.conv1.inputs[j]
    first, inner = sum(block.conv3.inputs[:j]), block.conv3.inputs[j]
    normalized = slice_of_norm(block.bn1, maps, start, start + width)
    hidden = block.conv1.output_slice(inputs(block, 0, normalized), j)
    hidden = F.relu(slice_of_norm(block.bn2, hidden, first, first + inner), inplace=True)
    group, bias = block.conv2.weight.shape[1], block.conv2.bias
    weight, bias = (None if part is None else part[first : first + inner] for part in (block.conv2.weight, bias))
    hidden = F.conv2d(hidden, weight, bias, padding=1, groups=inner // group)
    normalized = slice_of_norm(block.bn3, hidden, first, first + inner)
    return maps + block.conv3.output_slice(inputs(block, 1, normalized), j)


def _thin_block(block: Block, k: int, width: int, branches: int) -> Block:
    """Copy the first k slices of a block, which have `width` channels and `branches` branches."""
    conv1, conv3 = block.conv1.first(k), block.conv3.first(k)
    inner = sum(conv3.inputs)
    conv2 = deepcopy(block.conv2)
    conv2.in_channels, conv2.out_channels, conv2.groups = inner, inner, branches
    conv2.weight = nn.Parameter(conv2.weight[:inner].clone())
    if conv2.bias is not None:
        conv2.bias = nn.Parameter(conv2.bias[:inner].clone())
    bn1, bn2, bn3 = first_of_norm(block.bn1, width), first_of_norm(block.bn2, inner), first_of_norm(block.bn3, inner)
    return Block(bn1, conv1, bn2, conv2, bn3, conv3)


def _slice_sizes(total_name: str, total: int, name: str, sizes: Sizes | None, count: int) -> tuple[int, ...]:
    """The sizes of `count` slices that add up to `total`: those given, checked, or equal ones."""
    if sizes is None:
        require(total % count == 0, total_name, f"a multiple of {count}, the number of slices", total, f"pass {name}")
        return (total // count,) * count
    sizes = tuple(sizes)
    require(all(isinstance(size, Integral) and size >= 1 for size in sizes), name, "whole numbers from 1", sizes)
    require(len(sizes) == count, name, f"{count} slices", sizes)
    require(sum(sizes) == total, name, f"sizes that add up to {total_name} = {total}", sizes)
    return tuple(map(int, sizes))
