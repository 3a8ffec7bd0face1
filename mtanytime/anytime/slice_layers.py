"""Layers cut into slices: run on all slices, thinned to the first slices, or run one slice at a time."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.slice_pattern import TriangularConv

Run = Callable[[nn.Module, Tensor], Tensor]  # how a block applies a layer to maps: `all_slices` or a `SliceSteps`


class SliceNorm(nn.BatchNorm2d):
    """A batch norm of slices: one norm serves every width, since slices do not depend on later ones."""

    def __init__(self, slices: Sequence[int]) -> None:
        super().__init__(sum(slices))
        self.slices = tuple(slices)

    def first(self, k: int) -> "SliceNorm":
        """Copy the first k slices as a layer of their own."""
        thin = first_of_norm(self, sum(self.slices[:k]))
        thin.slices = self.slices[:k]
        return thin

    def output_slice(self, maps: Tensor, j: int) -> Tensor:
        """Normalize the maps of slice j (from 0)."""
        start = sum(self.slices[:j])
        return slice_of_norm(self, maps, start, start + self.slices[j])


class SliceConv(nn.Conv2d):
    """A 3×3 convolution that does not mix slices: a network's first one, or a depthwise one.

    Args:
        inputs: channels of the images, which every slice reads; None: depthwise, one filter per channel.
        slices: channels of each slice of the output.
        stride: see `nn.Conv2d`.
    """

    def __init__(self, inputs: int | None, slices: Sequence[int], stride: int = 1) -> None:
        outputs = sum(slices)
        groups = outputs if inputs is None else 1
        super().__init__(inputs or outputs, outputs, 3, stride, padding=1, groups=groups, bias=False)
        self.slices = tuple(slices)

    def forward(
        self, maps: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch outputs height2 width2"]:
        """Convolve the maps of all slices."""
        step = self.stride[0]
        reduced = maps.dtype == torch.bfloat16 or torch.is_autocast_enabled(maps.device.type)
        if self.groups == 1 or step == 1 or maps.device.type != "cpu" or not (reduced and torch.is_grad_enabled()):
            return super().forward(maps)
        # A CPU takes 13 times as long for the bfloat16 gradient of a depthwise convolution with a stride.
        return F.conv2d(maps, self.weight, self.bias, padding=1, groups=self.groups)[:, :, ::step, ::step]

    def first(self, k: int) -> "SliceConv":
        """Copy the first k slices as a layer of their own."""
        thin = deepcopy(self)
        thin.slices = self.slices[:k]
        thin.out_channels = sum(thin.slices)
        if self.groups > 1:
            thin.in_channels = thin.groups = thin.out_channels
        for name in ("weight", "bias"):
            if getattr(self, name) is not None:
                setattr(thin, name, nn.Parameter(getattr(self, name)[: thin.out_channels].detach().clone()))
        return thin

    def output_slice(self, maps: Tensor, j: int) -> Tensor:
        """Compute slice j (from 0) from the images or, if depthwise, from slice j of the input."""
        start = sum(self.slices[:j])
        weight, bias = (
            None if part is None else part[start : start + self.slices[j]] for part in (self.weight, self.bias)
        )
        return F.conv2d(maps, weight, bias, self.stride, 1, groups=self.slices[j] if self.groups > 1 else 1)


def all_slices(layer: nn.Module, maps: Tensor) -> Tensor:
    """Apply a layer to the maps of all of its slices."""
    return layer(maps)


class SliceSteps:
    """Apply layers to the maps of slice `j` alone, after slices 0 to j - 1 went through the same layers.

    `inputs` holds what triangular convolutions read of earlier slices: layer -> a list of the slices' maps.
    """

    def __init__(self, inputs: dict[Any, list[Tensor]], j: int) -> None:
        self.inputs, self.j = inputs, j

    def __call__(self, layer: nn.Module, maps: Tensor) -> Tensor:
        """Return slice j of a layer's output for slice j of its input. Layers without slices run on it as they are."""
        if isinstance(layer, TriangularConv):
            parts = self.inputs.setdefault(layer, [])
            parts.append(maps)
            maps = torch.cat(parts, dim=1) if self.j else maps
        return layer.output_slice(maps, self.j) if isinstance(layer, SLICED) else layer(maps)


class HandingOn:
    """As `SliceSteps`, but it changes nothing: `handed_on` collects what later slices read of slice `j`.

    With it, each slice is exported as a separate graph. Maps that several layers read are handed on once.

    Args:
        earlier: what slices 0 to j - 1 handed on.
    """

    def __init__(self, earlier: Sequence[Sequence[Tensor]]) -> None:
        self.earlier, self.j = earlier, len(earlier)
        self.handed_on: list[Tensor] = []

    def __call__(self, layer: nn.Module, maps: Tensor) -> Tensor:
        """Return slice j of a layer's output for slice j of its input. Layers without slices run on it as they are."""
        if isinstance(layer, TriangularConv):
            maps = self.joined(maps)
        return layer.output_slice(maps, self.j) if isinstance(layer, SLICED) else layer(maps)

    def joined(self, part: Tensor) -> Tensor:
        """Hand on a part of slice j, and return it after the same part of the slices before it."""
        known = [i for i, other in enumerate(self.handed_on) if other is part]
        if not known:
            known = [len(self.handed_on)]
            self.handed_on.append(part)
        return torch.cat([*(parts[known[0]] for parts in self.earlier), part], dim=1) if self.j else part


SLICED = (TriangularConv, SliceNorm, SliceConv)


@torch.no_grad()
def first_slices(module: nn.Module, k: int) -> Any:
    """Copy a module of blocks, with the first k slices of every layer in it."""
    thin = {id(layer): layer.first(k) for layer in module.modules() if isinstance(layer, SLICED)}
    return deepcopy(module, thin)


def first_of_norm(norm: nn.Module, channels: int) -> Any:
    """Copy the first channels of a batch norm; an identity stays one."""
    thin = deepcopy(norm)
    if isinstance(thin, nn.BatchNorm2d):
        thin.num_features = channels
        for name in ("weight", "bias", "running_mean", "running_var"):
            part = getattr(norm, name)  # None without a scale or without statistics
            if part is not None:
                first = part[:channels].clone()
                setattr(thin, name, nn.Parameter(first) if isinstance(part, nn.Parameter) else first)
    return thin


def slice_of_norm(norm: nn.Module, maps: Tensor, start: int, stop: int) -> Tensor:
    """Normalize maps that are the channels from start to stop of a batch norm; an identity leaves them as they are."""
    if isinstance(norm, nn.Identity):
        return maps
    mean, var, weight, bias = (
        None if part is None else part[start:stop]
        for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    of_batch = norm.training or mean is None
    return F.batch_norm(maps, mean, var, weight, bias, of_batch, norm.momentum, norm.eps)
