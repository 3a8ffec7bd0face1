"""MSDNet: exits along the depth of a densely connected network with fine and coarse maps; the usual baseline."""

import math
from collections.abc import Generator, Sequence
from copy import deepcopy
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtanytime.anytime.made_weights import has_made_weights, plain_copy
from mtanytime.anytime.network import AnytimeNetwork, check_keep
from mtanytime.backbones import check_image_shape
from mtanytime.checks import require

StepMode = Literal["even", "lin_grow"]
Initialization = Literal["fan_out", "fan_in"]
Maps = list[Float[Tensor, "batch _ _ _"]]  # one tensor per scale, fine to coarse
HEAD_WIDTH = 128  # channels of a head's two convolutions


class MSDNet(AnytimeNetwork):
    """Multi-Scale Dense Network for small images (Huang et al. 2018, arXiv:1703.09844), in the authors' CIFAR form.

    A layer holds maps of several scales, each with half the height and width of the one before. To the maps of each
    scale it appends two outputs of `growth`/2 channels: of a 3×3 convolution on them, and of a 3×3 convolution of
    stride 2 on the next finer scale. The finest scale has only the first, with `growth` channels. A 1×1 bottleneck
    precedes both. Layers are grouped into blocks; a head reads the coarsest maps at the end of each block. Of L layers,
    the first ceil(L/S) compute all S scales, the next ceil(L/S) all but the finest, and so on; the first layer without
    a scale ends in a transition, a 1×1 convolution that keeps the fraction `reduction` of the channels. Every
    convolution is followed by batch norm and ReLU.

    The defaults are the authors' for anytime prediction on CIFAR-10 (github.com/gaohuang/MSDNet); their PyTorch version
    (github.com/kalviny/MSDNet-PyTorch) uses 7 blocks for CIFAR-100. For batches that share a budget they use 7 blocks,
    in PyTorch 5, with base 1, step 1 and "lin_grow".

    Deviations: maps that no exit reads are not computed, which matters only in networks of a few layers. A head
    averages over all remaining pixels, 2×2 for images of 32×32, so that other sizes can be used.

    Args:
        num_classes: outputs.
        blocks: number of exits (K).
        base: layers of the first block.
        step: layers of every other block ("even"), or s so that block k > 1 has s·(k - 1) + 1 layers ("lin_grow").
        step_mode: "even" or "lin_grow".
        channels: channels of each scale after the stem, divided by the scale's factor.
        growth: channels that a layer appends to each scale, divided by the scale's factor.
        factors: one number per scale, fine to coarse. A bottleneck has the factor of the scale that it reads times as
            many channels as the 3×3 convolution after it, but at most as many as its input.
        reduction: the fraction of the channels that a transition keeps.
        initialization: of the convolutions, normal with variance 2/fan_out (the authors') or 2/fan_in. A dense layer
            has many input and few output channels, so fan_out gives larger initial weights. Before a batch norm, larger
            weights do not mean larger outputs; they only change more slowly in training.

    Raises:
        ValueError: a size below 1, an unknown step mode or initialization, no factors, an odd number of channels to
            append to a coarser scale, a reduction outside (0, 1] or one that keeps no channel.
    """

    def __init__(
        self,
        num_classes: int,
        blocks: int = 10,
        base: int = 4,
        step: int = 2,
        step_mode: StepMode = "even",
        channels: int = 16,
        growth: int = 6,
        factors: Sequence[int] = (1, 2, 4),
        reduction: float = 0.5,
        initialization: Initialization = "fan_out",
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "blocks": blocks, "base": base, "step": step}
        _check(sizes | {"channels": channels, "growth": growth}, step_mode, factors, reduction)
        kinds = get_args(Initialization)
        require(initialization in kinds, "initialization", f"one of {list(kinds)}", initialization)
        ends = list(accumulate([base, *(step if step_mode == "even" else step * k + 1 for k in range(1, blocks))]))
        depth, scales = ends[-1], len(factors)
        span = math.ceil(depth / scales)  # layers between the ends of two scales

        widths = [3, *(channels * factor for factor in factors)]
        self.stem = _Stem(_Convolution(*pair, 3, stride=1 if i == 0 else 2) for i, pair in enumerate(pairwise(widths)))
        layers, channels_after = [], []
        for i in range(depth):
            before, finest = max(i - 1, 0) // span, i // span  # the finest scale of the layer before, of this one
            reduced = None if finest == before else int(reduction * (channels + growth))
            keeps = f"a fraction that keeps at least one of {channels + growth} channels"
            require(reduced != 0, "reduction", keeps, reduction)
            # A finer scale needs a layer to reach the next coarser one, so the last layers' fine maps reach no head.
            computed = range(max(finest, i - depth + scales), scales)
            layers.append(_Layer(_Cell(channels, growth, factors, s, s > before, reduced) for s in computed))
            channels = channels + growth if reduced is None else reduced
            channels_after.append(channels)
        self.blocks = nn.ModuleList(nn.Sequential(*layers[start:end]) for start, end in pairwise([0, *ends]))
        self.heads = nn.ModuleList(_Head(channels_after[end - 1] * factors[-1], num_classes) for end in ends)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=initialization, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> list[Float[Tensor, "batch classes"]]:
        """Return the K logits, shallow to deep, from one pass.

        Raises ValueError for images without three channels or with fewer than 2^(S + 1) pixels per side, 16 for S = 3.
        """
        maps, outputs = self.stem(images), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            maps = block(maps)
            outputs.append(head(maps))
        return outputs

    def refine(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Generator[Float[Tensor, "images classes"], Bool[Tensor, " images"] | None, None]:
        """Yield the K logits one by one, shallow to deep; each step computes only the maps that are still missing.

        Maps of finer scales are computed when an exit first needs them. The logits equal those of `forward`, also in
        train mode (which then updates only the running statistics of the layers computed so far). They carry no
        gradient. `send(keep)` instead of `next()` continues with the images for which `keep` is True; it has one entry
        per row of the last logits. Raises ValueError as `forward`, at the first step, and for a `keep` of another shape
        or dtype.
        """
        with torch.no_grad():
            maps = _LazyMaps([layer for block in self.blocks for layer in block], self.stem(images))
        for end, head in zip(accumulate(len(block) for block in self.blocks), self.heads, strict=True):
            with torch.no_grad():
                logits = head([maps(end - 1, 0)])
            keep = yield logits
            if keep is not None:
                check_keep(keep, logits)
                maps.known = {place: values[keep] for place, values in maps.known.items()}

    def extract(self, k: int) -> nn.Sequential:
        """Copy the stem, the layers up to exit k and its head: `logits = network.extract(k)(images)`.

        Of the n-th last layer, only the n coarsest scales are copied, since finer ones do not reach the head: the
        paper's lazy evaluation. Published operation counts often include them. Raises ValueError if there is no exit k.
        """
        self._check_exit(k)
        if has_made_weights(self):
            return plain_copy(self).extract(k)
        layers = [layer for block in self.blocks[:k] for layer in block]
        needed = [layer[-(len(layers) - i) :] for i, layer in enumerate(layers)]
        return deepcopy(nn.Sequential(self.stem, *needed, self.heads[k - 1])).train(self.training)


class _Convolution(nn.Sequential):
    """Convolution, batch norm, ReLU. The norm may be an `nn.Identity` if it has been folded into the convolution."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)


class _Stem(nn.ModuleList):
    """From images to maps of every scale: one convolution per scale, each on the output of the one before."""

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Maps:
        """Return the first maps of every scale."""
        check_image_shape(images, 3, 2 ** (len(self) + 1), "MSDNet")  # so that each halving has 2 pixels, also in heads
        maps = [images]
        for convolution in self:
            maps.append(convolution(maps[-1]))
        return maps[1:]


class _Cell(nn.Module):
    """One scale of one layer. If `reduced` is given, a transition reduces the maps to `reduced` · factor channels."""

    def __init__(
        self, channels: int, growth: int, factors: Sequence[int], scale: int, has_finer: bool, reduced: int | None
    ) -> None:
        super().__init__()
        factor = factors[scale]
        appended = growth * factor // (2 if has_finer else 1)

        def bottlenecked(source: int, stride: int) -> nn.Sequential:
            inputs = channels * factors[source]
            inner = min(inputs, factors[source] * appended)
            return nn.Sequential(_Convolution(inputs, inner, 1), _Convolution(inner, appended, 3, stride))

        self.down = bottlenecked(scale - 1, 2) if has_finer else None
        self.same = bottlenecked(scale, 1)
        self.transition = nn.Identity()
        if reduced is not None:
            self.transition = _Convolution((channels + growth) * factor, reduced * factor, 1)

    def forward(
        self, maps: Float[Tensor, "batch channel height width"], finer: Float[Tensor, "batch _ _ _"] | None
    ) -> Float[Tensor, "batch channel2 height width"]:
        """Append the new maps to the scale's maps."""
        new = [self.same(maps)] if self.down is None else [self.down(finer), self.same(maps)]
        return self.transition(torch.cat([maps, *new], dim=1))


class _Layer(nn.ModuleList):
    """One cell per computed scale; the slice [-n:] is the same layer for the n coarsest scales."""

    def forward(self, maps: Maps) -> Maps:
        """Return the maps of as many scales as there are cells, computed from these and the next finer scale."""
        count = len(self)
        finer = [None, *maps][-count - 1 : -1]
        return [cell(*pair) for cell, *pair in zip(self, maps[-count:], finer, strict=True)]


class _LazyMaps:
    """The maps of all layers and scales, each computed when it is first read.

    `known` holds the maps that are there and may be read again: (layer, scale from the coarsest on) -> maps. Layer -1
    is the stem.
    """

    def __init__(self, layers: Sequence[_Layer], stem: Maps) -> None:
        self.layers = layers
        self.known = {(-1, scale): maps for scale, maps in enumerate(reversed(stem))}

    def __call__(self, layer: int, scale: int) -> Float[Tensor, "batch channel height width"]:
        if (layer, scale) not in self.known:
            cell = self.layers[layer][-1 - scale]
            self(layer - 1, scale)  # before the finer scale, so that this cell is the last to read these maps
            finer = None if cell.down is None else self(layer - 1, scale + 1)
            self.known[layer, scale] = cell(self.known.pop((layer - 1, scale)), finer)
        return self.known[layer, scale]


class _Head(nn.Sequential):
    """From the coarsest maps to logits."""

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__(
            _Convolution(inputs, HEAD_WIDTH, 3, stride=2),
            _Convolution(HEAD_WIDTH, HEAD_WIDTH, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(HEAD_WIDTH, num_classes),
        )

    def forward(self, maps: Maps) -> Float[Tensor, "batch classes"]:
        """Return the logits."""
        return super().forward(maps[-1])


def _check(sizes: dict[str, int], step_mode: str, factors: Sequence[int], reduction: float) -> None:
    for name, size in [*sizes.items(), *(("factors", factor) for factor in factors)]:
        require(isinstance(size, Integral) and size >= 1, name, "a whole number from 1", size)
    require(len(factors) > 0, "factors", "one number per scale", factors)
    require(step_mode in get_args(StepMode), "step_mode", f"one of {list(get_args(StepMode))}", step_mode)
    odd = [factor for factor in factors[1:] if sizes["growth"] * factor % 2]
    expected = f"an even product with each factor but the first (half comes from the finer scale), {tuple(factors)}"
    require(not odd, "growth", expected, sizes["growth"])
    require(0 < reduction <= 1, "reduction", "above 0 and at most 1", reduction)
