"""Residual blocks of sliced networks: dense basic blocks, inverted residuals, squeeze-and-excitation by slice.

A block applies its layers by `run(layer, maps)`, so the same code computes all slices at once and one at a time.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.slice_layers import Run, SliceConv, SliceNorm, all_slices
from mtanytime.anytime.slice_pattern import TriangularConv, TriangularConv3x3
from mtanytime.anytime.slice_shape import SliceShape

Maps = Float[Tensor, "batch _ _ _"]
Widths = Sequence[int]  # channels of each slice


class BasicBlock(nn.Module):
    """3×3–norm–ReLU, 3×3–norm, added to the block's input, ReLU (arXiv:1512.03385); every norm can be folded.

    Args:
        inputs, outputs: channels of each slice.
        stride: of the first convolution.
        squeeze: see `SliceShape`.
    """

    convolutions_with_norms = (("conv1", "bn1"), ("conv2", "bn2"))

    def __init__(self, inputs: Widths, outputs: Widths, stride: int = 1, squeeze: int = 0) -> None:
        super().__init__()
        self.conv1, self.bn1 = TriangularConv3x3(inputs, outputs, stride), SliceNorm(outputs)
        self.conv2, self.bn2 = TriangularConv3x3(outputs, outputs), SliceNorm(outputs)
        self.gate = SqueezeExcitation(outputs, squeeze) if squeeze else None
        self.skip = skip_connection(inputs, outputs, stride)

    def forward(self, maps: Maps, run: Run = all_slices) -> Maps:
        """Return the block's output for the maps of all slices or, if `run` is a `SliceSteps`, of one."""
        inner = F.relu(run(self.bn1, run(self.conv1, maps)), inplace=True)
        inner = run(self.bn2, run(self.conv2, inner))
        inner = inner if self.gate is None else self.gate(inner, run)
        return F.relu(inner + _run_all(self.skip, maps, run), inplace=True)


class InvertedResidual(nn.Module):
    """1×1–norm–ReLU, depthwise 3×3–norm–ReLU, 1×1–norm, added to the block's input (arXiv:1801.04381).

    Args:
        inputs, outputs: channels of each slice.
        stride: of the 3×3 convolution.
        expansion, squeeze: see `SliceShape`.
    """

    convolutions_with_norms = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))

    def __init__(self, inputs: Widths, outputs: Widths, stride: int = 1, expansion: int = 4, squeeze: int = 0) -> None:
        super().__init__()
        inner = [expansion * size for size in inputs]
        self.conv1, self.bn1 = TriangularConv(inputs, inner), SliceNorm(inner)
        self.conv2, self.bn2 = SliceConv(None, inner, stride), SliceNorm(inner)
        self.conv3, self.bn3 = TriangularConv(inner, outputs), SliceNorm(outputs)
        self.gate = SqueezeExcitation(inner, squeeze) if squeeze else None
        self.skip = skip_connection(inputs, outputs, stride)

    def forward(self, maps: Maps, run: Run = all_slices) -> Maps:
        """Return the block's output for the maps of all slices or, if `run` is a `SliceSteps`, of one."""
        inner = F.relu(run(self.bn1, run(self.conv1, maps)), inplace=True)
        inner = F.relu(run(self.bn2, run(self.conv2, inner)), inplace=True)
        inner = inner if self.gate is None else self.gate(inner, run)
        return run(self.bn3, run(self.conv3, inner)) + _run_all(self.skip, maps, run)


class SqueezeExcitation(nn.Module):
    """Scale each channel by a number in (0, 1) that is computed from the means of slices ≤ its own.

    Args:
        widths: channels of each slice.
        reduction: the hidden layer has 1/reduction of each slice's channels (rounded up).
    """

    def __init__(self, widths: Widths, reduction: int) -> None:
        super().__init__()
        inner = [-(-size // reduction) for size in widths]
        self.conv1, self.conv2 = TriangularConv(widths, inner), TriangularConv(inner, widths)
        for convolution in (self.conv1, self.conv2):
            convolution.bias = nn.Parameter(torch.zeros(sum(convolution.outputs)))

    def forward(self, maps: Maps, run: Run = all_slices) -> Maps:
        """Return the scaled maps."""
        inner = F.relu(run(self.conv1, maps.mean(dim=(2, 3), keepdim=True)), inplace=True)
        return maps * run(self.conv2, inner).sigmoid().to(maps.dtype)


def skip_connection(inputs: Widths, outputs: Widths, stride: int) -> nn.Sequential:
    """The skip connection of a block: the identity, or mean pooling, a 1×1 convolution and a norm.

    Mean pooling replaces the stride of the 1×1 convolution, which would skip three of four pixels (arXiv:1812.01187).
    """
    layers: list[nn.Module] = []
    if stride > 1:
        layers.append(nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False))
    if tuple(inputs) != tuple(outputs) or stride > 1:
        layers += [TriangularConv(inputs, outputs), SliceNorm(outputs)]
    return nn.Sequential(*layers)


def make_block(shape: SliceShape, inputs: Widths, outputs: Widths, stride: int) -> BasicBlock | InvertedResidual:
    """Build a block of the kind that a shape names."""
    if shape.block == "basic":
        return BasicBlock(inputs, outputs, stride, shape.squeeze)
    return InvertedResidual(inputs, outputs, stride, shape.expansion, shape.squeeze)


def _run_all(layers: nn.Sequential, maps: Tensor, run: Run) -> Tensor:
    for layer in layers:
        maps = run(layer, maps)
    return maps
