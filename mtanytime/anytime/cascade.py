"""A cascade of slices: thin networks of full depth, each of which reads the stages' outputs of those before it."""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.blocks import BasicBlock, InvertedResidual, Maps, SqueezeExcitation, skip_connection
from mtanytime.anytime.slice_layers import HandingOn, Run, SliceConv
from mtanytime.anytime.slice_shape import SliceShape
from mtanytime.anytime.sliced_resnet import ShapedNetwork


class SliceCascade(ShapedNetwork):
    """A residual network cut into K slices; each builds, stage by stage, on what the slices before it have finished.

    In a `SlicedResNet`, a layer of slice j reads the inputs of the same layer in slices < j. Here it reads the finished
    outputs of their stages instead. So the longest path to an exit grows by the blocks of one stage with every slice;
    in a `SlicedResNet` it has the same length for all exits. Lateral connections come from progressive networks
    (arXiv:1606.04671), which read the layer before, as a `SlicedResNet` does, and not the end of the stage. Of an
    earlier slice, a later one needs only the output of each stage. This is ours: arXiv:1807.02609 does not say how
    slices are connected.

    In each stage, the first layer of every block reads the earlier slices' maps along with its own: their outputs of
    this stage or, in a block with a stride, of the stage before. The last layer of a block with a stride also reads
    the earlier slices' outputs of the new stage. Apart from the heads, no other layer reads earlier slices.

    Example:
        >>> from mtanytime.anytime import JointLoss, SliceCascade, SliceShape
        >>> network = SliceCascade(10, SliceShape(widths=((16, 16), (32, 32), (64, 64))))  # two slices, three stages
        >>> outputs = network(torch.rand(8, 3, 32, 32))  # the logits of both exits, from one pass
        >>> JointLoss()(outputs, torch.arange(8)).backward()

    Args:
        num_classes: outputs.
        shape: kind of block, blocks per stage, strides, and the channels of each slice in each stage.
    """

    def __init__(self, num_classes: int, shape: SliceShape) -> None:
        super().__init__(num_classes, shape, CascadeTrunk([CascadeSlice(shape, j) for j in range(shape.exits)]))

    @torch.no_grad()
    def _slice_features(self, images: Tensor, inputs: dict[Any, list[Tensor]], j: int) -> Tensor:
        slices = self.trunk.slices  # `inputs` holds the outputs of the stages, by slice
        inputs[slices[j]] = self.trunk.next_slice(images, [inputs[part] for part in slices[:j]])
        return _pooled(inputs[slices[j]][-1])

    def _features_of_slice(self, images: Tensor, run: HandingOn) -> Tensor:
        stages = len(self.shape.widths)
        outputs = self.trunk.next_slice(images, [parts[:stages] for parts in run.earlier])
        run.handed_on.extend(outputs)
        return _pooled(outputs[-1])


class CascadeTrunk(nn.Module):
    """Slices one after another: from images to one feature per channel of the last stage."""

    def __init__(self, slices: Sequence["CascadeSlice"]) -> None:
        super().__init__()
        self.slices = nn.ModuleList(slices)
        self.stride = slices[0].stride

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """Return the last stage's features, averaged over the pixels, of all slices."""
        outputs: list[list[Maps]] = []
        for _ in self.slices:
            outputs.append(self.next_slice(images, outputs))
        return torch.cat([_pooled(maps[-1]) for maps in outputs], dim=1)

    def next_slice(self, images: Float[Tensor, "batch 3 height width"], before: Sequence[Sequence[Maps]]) -> list[Maps]:
        """Return the outputs of the next slice's stages, given the stages' outputs of each slice before it."""
        earlier = [torch.cat(maps, dim=1) for maps in zip(*before, strict=True)]
        return self.slices[len(before)](images, earlier or None)

    def first(self, k: int) -> "CascadeTrunk":
        """Copy the first k slices."""
        return CascadeTrunk([deepcopy(part) for part in self.slices[:k]])


class CascadeSlice(nn.Module):
    """Slice j (from 0) of a cascade: 3×3–norm–ReLU, then stages of blocks.

    From the second stage on, the first block of each stage has stride 2.
    """

    convolutions_with_norms = (("stem", "norm"),)

    def __init__(self, shape: SliceShape, j: int) -> None:
        super().__init__()
        width = shape.widths[0][j]
        self.stem, self.norm = _convolution(3, width, 3, shape.stem_stride), nn.BatchNorm2d(width)
        self.stages = nn.ModuleList()
        coarser = 0  # channels of the earlier slices in the stage before
        for stage, (widths, blocks) in enumerate(zip(shape.widths, shape.blocks, strict=True)):
            earlier, layers = sum(widths[:j]), []
            for i in range(blocks):
                starts = stage > 0 and i == 0
                sizes = (width, widths[j], coarser if starts else earlier, earlier if starts else 0)
                layers.append(_block(shape, *sizes, stride=2 if starts else 1))
                width = widths[j]
            self.stages.append(nn.ModuleList(layers))
            coarser = earlier
        self.stride = shape.stem_stride << (len(shape.widths) - 1)

    def forward(self, images: Float[Tensor, "batch 3 height width"], earlier: Sequence[Maps] | None) -> list[Maps]:
        """Return the stages' outputs. `earlier` holds those of all earlier slices, by stage; None if there are none."""
        maps, outputs = F.relu(self.norm(self.stem(images)), inplace=True), []
        for stage, blocks in enumerate(self.stages):
            for i, block in enumerate(blocks):
                starts = stage > 0 and i == 0
                to_first = None if earlier is None else earlier[stage - starts]
                to_last = earlier[stage] if earlier is not None and starts else None
                maps = block(maps, block.reading(to_first, to_last))
            outputs.append(maps)
        return outputs


class _Lateral:
    """Part of a block whose first and last convolution also read maps of earlier slices."""

    convolutions_with_norms: tuple[tuple[str, str], ...]

    def reading(self, to_first: Maps | None, to_last: Maps | None) -> Run:
        """How the block applies its layers: the first convolution also reads `to_first`, the last one `to_last`."""
        first, last = (getattr(self, self.convolutions_with_norms[i][0]) for i in (0, -1))
        more = {first: to_first, last: to_last}

        def run(layer: nn.Module, maps: Tensor) -> Tensor:
            earlier = more.get(layer)
            return layer(maps if earlier is None else torch.cat([earlier, maps], dim=1))

        return run


class CascadeBasic(_Lateral, BasicBlock):
    """A `BasicBlock` of one slice that also reads maps of earlier slices.

    Args:
        inputs, outputs: channels of the slice.
        to_first: channels of the earlier slices' maps that the first convolution reads; they have the input's size.
        to_last: channels of those that the last convolution reads, which have the output's size; 0 for none.
        stride, squeeze: see `BasicBlock`.
    """

    def __init__(self, inputs: int, outputs: int, to_first: int, to_last: int, stride: int, squeeze: int = 0) -> None:
        nn.Module.__init__(self)  # not the parent's, which makes other layers
        self.conv1, self.bn1 = _convolution(to_first + inputs, outputs, 3, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = _convolution(to_last + outputs, outputs, 3), nn.BatchNorm2d(outputs)
        self.gate = SqueezeExcitation((outputs,), squeeze) if squeeze else None
        self.skip = skip_connection((inputs,), (outputs,), stride)


class CascadeInverted(_Lateral, InvertedResidual):
    """An `InvertedResidual` of one slice that also reads maps of earlier slices.

    Args:
        inputs, outputs, to_first, to_last, stride: see `CascadeBasic`.
        expansion, squeeze: see `SliceShape`; the 3×3 convolution has `expansion` times as many channels as `inputs`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        to_first: int,
        to_last: int,
        stride: int,
        expansion: int = 4,
        squeeze: int = 0,
    ) -> None:
        nn.Module.__init__(self)  # not the parent's, which makes other layers
        inner = expansion * inputs
        self.conv1, self.bn1 = _convolution(to_first + inputs, inner, 1), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = SliceConv(None, (inner,), stride), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = _convolution(to_last + inner, outputs, 1), nn.BatchNorm2d(outputs)
        self.gate = SqueezeExcitation((inner,), squeeze) if squeeze else None
        self.skip = skip_connection((inputs,), (outputs,), stride)


def _block(
    shape: SliceShape, inputs: int, outputs: int, to_first: int, to_last: int, stride: int
) -> CascadeBasic | CascadeInverted:
    sizes = (inputs, outputs, to_first, to_last, stride)
    if shape.block == "basic":
        return CascadeBasic(*sizes, shape.squeeze)
    return CascadeInverted(*sizes, shape.expansion, shape.squeeze)


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


def _pooled(maps: Maps) -> Float[Tensor, "batch channel"]:
    return F.relu(maps).mean(dim=(2, 3))
