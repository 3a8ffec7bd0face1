"""The step-up of a sliced ResNeXt with every slice's weights cut out in advance.

For one image a step is many small operations, and finding the weights of a slice takes longer than using them.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.folding import fold_batch_norms
from mtanytime.anytime.made_weights import has_made_weights
from mtanytime.anytime.resnext import Block, Trunk, widen
from mtanytime.anytime.slice_pattern import add_product


class BlockSlice(NamedTuple):
    """What a block needs to compute one slice."""

    own: slice  # the slice's channels in the block's input
    hidden: slice  # and between its 1×1 convolutions
    factor: Float[Tensor, "own 1"]  # the first norm: maps · factor + term
    term: Float[Tensor, "own 1"]
    weight1: Float[Tensor, "hidden read"]
    bias1: Float[Tensor, "hidden 1"]
    weight2: Float[Tensor, "hidden group 3 3"]
    bias2: Float[Tensor, " hidden"]
    groups: int
    weight3: Float[Tensor, "own hidden_read"]


class PreparedBlock:
    """A block with folded batch norms, cut into slices."""

    def __init__(self, block: Block) -> None:
        self.channels = sum(block.conv1.inputs), sum(block.conv3.inputs)
        self.slices = list(_cut(block))

    def step(
        self,
        maps: Float[Tensor, "batch channel pixel"],
        size: tuple[int, int],
        buffers: list[Float[Tensor, "batch _ pixel"]],
        j: int,
    ) -> Float[Tensor, "batch channel pixel"]:
        """Slice j of the block's output, for slice j of its input.

        `size` is the maps' height and width. `buffers` are the inputs of the two 1×1 convolutions, in which the parts
        of the slices before j are filled in.
        """
        part, (first, second) = self.slices[j], buffers
        torch.clamp_min(torch.addcmul(part.term, maps, part.factor), 0, out=first[:, part.own])
        hidden = add_product(part.bias1, part.weight1, first[:, : part.own.stop]).relu_().view(len(maps), -1, *size)
        hidden = F.conv2d(hidden, part.weight2, part.bias2, padding=1, groups=part.groups).flatten(2)
        torch.clamp_min(hidden, 0, out=second[:, part.hidden])
        return add_product(maps, part.weight3, second[:, : part.hidden.stop])


class PreparedTrunk:
    """The blocks of a trunk in eval mode, cut into slices, as long as its weights stay as they are."""

    def __init__(self, trunk: Trunk) -> None:
        self.stages = [[PreparedBlock(block) for block in stage] for stage in fold_batch_norms(trunk).stages]
        self._norms = _norms(trunk)
        self._owners = [
            (tensors, name, tensor)
            for module in trunk.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        self._state = self._now()

    def is_current(self) -> bool:
        """Whether the trunk is still in eval mode, and no weight or statistic has changed."""
        same = all(tensors.get(name) is tensor for tensors, name, tensor in self._owners)
        return same and not any(norm.training for norm in self._norms) and self._now() == self._state

    def step(
        self,
        maps: Float[Tensor, "batch channel height width"],
        inputs: dict[Any, list[Tensor]],
        j: int,
    ) -> Float[Tensor, "batch channel2 height2 width2"]:
        """Slice j of the last stage's output, for slice j of the stem's.

        `inputs` keeps each block's buffers from step to step. Its first key is this object.
        """
        inputs[self] = []
        for i, stage in enumerate(self.stages):
            if i:
                maps = widen(maps, [maps.shape[1]])
            size, maps = maps.shape[2:], maps.flatten(2)
            for block in stage:
                if j == 0:
                    inputs[block] = [maps.new_empty(len(maps), channels, maps.shape[2]) for channels in block.channels]
                maps = block.step(maps, size, inputs[block], j)
            maps = maps.unflatten(2, size)
        return maps

    def _now(self) -> list[tuple[int, int]]:
        return [(tensor.data_ptr(), tensor._version) for _, _, tensor in self._owners]


_KNOWN: WeakKeyDictionary[Trunk, PreparedTrunk] = WeakKeyDictionary()


def prepared(trunk: Trunk) -> PreparedTrunk | None:
    """A trunk's blocks, cut into slices once, and again whenever weights have changed.

    None in train mode, under autocast, where a hook or a parametrization makes the weights, and for weights that were
    made in inference mode, whose changes torch does not count.
    """
    if torch.is_autocast_enabled(next(trunk.parameters()).device.type):
        return None
    known = _KNOWN.get(trunk)
    if known is None or not known.is_current():
        _KNOWN.pop(trunk, None)
        blocks = [block for stage in trunk.stages for block in stage]
        if not all(map(_is_fixed, blocks)) or has_made_weights(trunk):
            return None
        if any(tensor.is_inference() for tensor in chain(trunk.parameters(), trunk.buffers())):
            return None
        known = _KNOWN[trunk] = PreparedTrunk(trunk)
    return known


def _norms(trunk: Trunk) -> list[nn.BatchNorm2d]:
    return [module for module in trunk.stages.modules() if isinstance(module, nn.BatchNorm2d)]


def _is_fixed(block: Block) -> bool:
    """Whether a block's norms are batch norms in eval mode, or folded into the convolution before them."""
    pairs = ((None, block.bn1), (block.conv1, block.bn2), (block.conv2, block.bn3))
    return all(
        (isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and not norm.training)
        or (isinstance(norm, nn.Identity) and convolution is not None and convolution.bias is not None)
        for convolution, norm in pairs
    )


def _cut(block: Block) -> Iterator[BlockSlice]:
    """The slices of a block, the last two norms of which are folded."""
    norm, inner_sizes = block.bn1, block.conv3.inputs
    factor = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
    term = (0 if norm.bias is None else norm.bias) - norm.running_mean * factor
    group = block.conv2.weight.shape[1]
    for j, (width, inner) in enumerate(zip(block.conv1.inputs, inner_sizes, strict=True)):
        start, first = sum(block.conv1.inputs[:j]), sum(inner_sizes[:j])
        own, hidden = slice(start, start + width), slice(first, first + inner)
        yield BlockSlice(
            own,
            hidden,
            factor[own, None],
            term[own, None],
            block.conv1.weights[j],
            block.conv1.bias[hidden, None],
            block.conv2.weight[hidden],
            block.conv2.bias[hidden],
            inner // group,
            block.conv3.weights[j],
        )
