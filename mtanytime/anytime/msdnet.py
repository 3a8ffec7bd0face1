"""MSDNet: exits along the depth of one densely connected network with coarse and fine maps; the usual baseline."""

import math
from collections.abc import Sequence
from copy import deepcopy
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.anytime.network import AnytimeNetwork

StepMode = Literal["even", "lin_grow"]
Initialization = Literal["fan_out", "fan_in"]
Maps = list[Float[Tensor, "batch _ _ _"]]  # one tensor a scale, fine to coarse
HEAD_WIDTH = 128  # channels of a head's two convolutions


class MSDNet(AnytimeNetwork):
    """Multi-Scale Dense Network for small images (Huang et al. 2018, arXiv:1703.09844), in the authors' CIFAR form.

    A layer holds maps of several scales, each half as high and wide as the one before. To every scale's maps it appends
    what a 3×3 convolution makes of them and what one of stride 2 makes of the next finer scale's, half of `growth` each
    (the finest has the first alone), both behind a 1×1 bottleneck. Layers are cut into blocks; a head reads the
    coarsest maps at the end of each. Of L layers, the first ceil(L/S) make all S scales, as many make all but the
    finest, and so on; the first layer without a scale ends in a transition, a 1×1 convolution that leaves `reduction`
    of the channels. Every convolution is followed by batch norm and ReLU.

    The defaults are the authors' for anytime prediction on CIFAR-10 (github.com/gaohuang/MSDNet); their PyTorch version
    (github.com/kalviny/MSDNet-PyTorch) takes 7 blocks for CIFAR-100. For images that share a budget they take 7 blocks,
    and in PyTorch 5, with base 1, step 1 and "lin_grow".

    Deviations: maps that no exit reads are not made, which matters only in networks of a few layers. A head averages
    whatever is left of the image, 2×2 pixels for 32×32, so that other sizes can be used.

    Args:
        num_classes: outputs.
        blocks: how many exits (K).
        base: layers of the first block.
        step: layers of every other block ("even"), or s so that block k > 1 has s·(k - 1) + 1 ("lin_grow").
        step_mode: "even" or "lin_grow".
        channels: what the stem makes for each scale, times the scale's factor.
        growth: channels that a layer appends to each scale, times the scale's factor.
        factors: one number a scale, fine to coarse; so there are as many scales. A bottleneck is the factor of the
            scale that it reads times as wide as the 3×3 convolution behind it, or as its input where that is less.
        reduction: the part of the channels that a transition leaves.
        initialization: of the convolutions, normal with variance 2/fan_out (the authors') or 2/fan_in. A dense layer
            makes few channels of many, so fan_out starts with larger weights; behind a batch norm, larger weights are
            no larger outputs but slower ones to change.

    Raises:
        ValueError: a size below 1, another step mode or initialization, no factors, a growth that a coarser
            scale cannot halve, a reduction outside (0, 1] or one that leaves no channel.
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
        if initialization not in get_args(Initialization):
            wanted = f"wanted one of {list(get_args(Initialization))}"
            raise ValueError(f"initialization is {initialization!r}; {wanted}")
        ends = list(accumulate([base, *(step if step_mode == "even" else step * k + 1 for k in range(1, blocks))]))
        depth, scales = ends[-1], len(factors)
        span = math.ceil(depth / scales)  # layers between the ends of two scales

        widths = [3, *(channels * factor for factor in factors)]
        self.stem = _Stem(_Convolution(*pair, 3, stride=1 if i == 0 else 2) for i, pair in enumerate(pairwise(widths)))
        layers, channels_after = [], []
        for i in range(depth):
            before, finest = max(i - 1, 0) // span, i // span  # the finest scale of the layer before, of this one
            kept = None if finest == before else int(reduction * (channels + growth))
            if kept == 0:
                raise ValueError(
                    f"reduction is {reduction}; wanted one that leaves some of the {channels + growth} channels"
                )
            # A finer scale needs a layer to reach the next coarser one, so the last layers' fine maps reach no head.
            made = range(max(finest, i - depth + scales), scales)
            layers.append(_Layer(_Cell(channels, growth, factors, s, s > before, kept) for s in made))
            channels = channels + growth if kept is None else kept
            channels_after.append(channels)
        self.blocks = nn.ModuleList(nn.Sequential(*layers[start:end]) for start, end in pairwise([0, *ends]))
        self.heads = nn.ModuleList(_Head(channels_after[end - 1] * factors[-1], num_classes) for end in ends)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=initialization, nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> list[Float[Tensor, "batch classes"]]:
        """The K logits, shallow to deep, from one pass.

        Raises ValueError for images without three channels or smaller than 2^(S + 1) pixels, 16 with three scales.
        """
        maps, answers = self.stem(images), []
        for block, head in zip(self.blocks, self.heads, strict=True):
            maps = block(maps)
            answers.append(head(maps))
        return answers

    def extract(self, k: int) -> nn.Sequential:
        """Exit k as a module of its own: `logits = network.extract(k)(images)`; stem, layers up to the exit, its head.

        Of the n-th last layer only the n coarsest scales, as finer ones don't reach the head: the paper's lazy
        evaluation. Published counts of operations often include them. ValueError where there is no exit k.
        """
        self._check_exit(k)
        layers = [layer for block in self.blocks[:k] for layer in block]
        needed = [layer[-(len(layers) - i) :] for i, layer in enumerate(layers)]
        return deepcopy(nn.Sequential(self.stem, *needed, self.heads[k - 1])).train(self.training)


class _Convolution(nn.Sequential):
    """Convolution, batch norm, ReLU. The norm may be an `nn.Identity` where it has been folded into the convolution."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)


class _Stem(nn.ModuleList):
    """From images to maps of every scale: a convolution for each, on what the one before has made."""

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Maps:
        """The first maps."""
        least = 2 ** (len(self) + 1)  # so that every halving, the heads' two included, has something to halve
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < least:
            wanted = f"wanted (batch, 3, height, width) with height and width of at least {least}"
            raise ValueError(f"MSDNet got images of shape {tuple(images.shape)}; {wanted}")
        maps = [images]
        for convolution in self:
            maps.append(convolution(maps[-1]))
        return maps[1:]


class _Cell(nn.Module):
    """One scale of one layer; `kept` channels, times the scale's factor, are left by a transition that may follow."""

    def __init__(
        self, channels: int, growth: int, factors: Sequence[int], scale: int, has_finer: bool, kept: int | None
    ) -> None:
        super().__init__()
        factor = factors[scale]
        made = growth * factor // (2 if has_finer else 1)

        def bottlenecked(source: int, stride: int) -> nn.Sequential:
            inputs = channels * factors[source]
            inner = min(inputs, factors[source] * made)
            return nn.Sequential(_Convolution(inputs, inner, 1), _Convolution(inner, made, 3, stride))

        self.down = bottlenecked(scale - 1, 2) if has_finer else None
        self.same = bottlenecked(scale, 1)
        left = None if kept is None else kept * factor
        self.transition = nn.Identity() if left is None else _Convolution((channels + growth) * factor, left, 1)

    def forward(
        self, maps: Float[Tensor, "batch channel height width"], finer: Float[Tensor, "batch _ _ _"] | None
    ) -> Float[Tensor, "batch channel2 height width"]:
        """The scale's maps with the new ones appended."""
        new = [self.same(maps)] if self.down is None else [self.down(finer), self.same(maps)]
        return self.transition(torch.cat([maps, *new], dim=1))


class _Layer(nn.ModuleList):
    """Cells of the coarsest scales; its slice [-n:] is the same layer for the n coarsest."""

    def forward(self, maps: Maps) -> Maps:
        """The maps of as many scales as there are cells, from those and, where there are any, the next finer ones."""
        count = len(self)
        finer = [None, *maps][-count - 1 : -1]
        return [cell(*pair) for cell, *pair in zip(self, maps[-count:], finer, strict=True)]


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
        """Class scores."""
        return super().forward(maps[-1])


def _check(sizes: dict[str, int], step_mode: str, factors: Sequence[int], reduction: float) -> None:
    for name, size in [*sizes.items(), *(("a scale's factor", factor) for factor in factors)]:
        if not isinstance(size, Integral) or size < 1:
            raise ValueError(f"{name} is {size!r}; wanted a whole number of at least 1")
    if not factors:
        raise ValueError("factors is empty; wanted one for each scale")
    if step_mode not in get_args(StepMode):
        raise ValueError(f"step_mode is {step_mode!r}; wanted one of {list(get_args(StepMode))}")
    if any(sizes["growth"] * factor % 2 for factor in factors[1:]):
        wanted = "wanted an even product for every scale but the finest, which half of it comes from"
        raise ValueError(f"growth is {sizes['growth']} and factors are {tuple(factors)}; {wanted}")
    if not 0 < reduction <= 1:
        raise ValueError(f"reduction is {reduction}; wanted more than 0 and at most 1")
