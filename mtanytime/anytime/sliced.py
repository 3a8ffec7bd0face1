"""Sliced ResNeXt: nested activations. One pass gives all answers, and a later answer goes on from an earlier one."""

from collections.abc import Generator, Sequence
from copy import deepcopy
from itertools import accumulate
from numbers import Integral

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.resnext import (
    Block,
    ResNeXt,
    Stem,
    Trunk,
    check_images,
    check_sizes,
    initialise,
    make_stem,
    widen,
)


class SlicedResNeXt(AnytimeNetwork):
    """A ResNeXt cut into K slices, of which each reads only itself and those before it.

    A reconstruction: arXiv:1807.02609 trains its thin sub-networks efficiently by "a certain sparsity pattern", and no
    source gives the pattern. Here the residual stream and the branches are cut into slices, and both 1×1 convolutions
    are block lower triangular (`TriangularConv`): slice j reads slices ≤ j. So the activations of slice j do not depend
    on later slices; one pass gives all K answers, one batch norm serves all widths, training costs one pass, and going
    from exit k to k+1 computes slice k+1 alone (`refine`). Head k sees the slices up to k. The same kind of sparsity
    was published for other networks: doubly nested (arXiv:1806.07568), any-width (arXiv:2012.03153) and stepping ones
    (arXiv:2211.14926), the last also stepping up with reuse.

    Args:
        num_classes: outputs.
        width: channels of the first stage, of all slices together; they double from stage to stage.
        bottleneck: channels of each branch in the first stage; they double, too.
        branches: groups of the 3×3 convolutions, of all slices together.
        blocks: of each of three stages, or a number for each of several stages.
        slice_widths: channels of each slice in the first stage, `width` in all; None: as many equal slices as
            `slice_branches` has entries, or as there are branches.
        slice_branches: branches of each slice, `branches` in all; None: the same number for each slice.
        stem: see `resnext.resnext`.

    Raises:
        ValueError: a size below 1, slices that do not add up or do not divide, another stem.
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 64,
        bottleneck: int = 4,
        branches: int = 8,
        blocks: int | Sequence[int] = 7,
        slice_widths: Sequence[int] | None = None,
        slice_branches: Sequence[int] | None = None,
        stem: Stem = "32x32",
    ) -> None:
        super().__init__()
        blocks = check_sizes(num_classes, width, bottleneck, branches, blocks, stem)
        count = len(slice_widths or slice_branches or range(branches))
        self.slice_widths = _parts("width", width, "slice_widths", slice_widths, count)
        self.slice_branches = _parts("branches", branches, "slice_branches", slice_branches, count)
        stages = [[self._block(bottleneck, stage) for _ in range(number)] for stage, number in enumerate(blocks)]
        factor = 1 << (len(blocks) - 1)  # of the last stage's channels
        norm = nn.BatchNorm2d(factor * width)
        self.trunk = Trunk(make_stem(stem, width), stages, norm, self.slice_widths)
        self.heads = nn.ModuleList(nn.Linear(factor * part, num_classes) for part in accumulate(self.slice_widths))
        initialise(self)

    def _block(self, bottleneck: int, stage: int) -> Block:
        widths = [part << stage for part in self.slice_widths]
        inner = [(bottleneck << stage) * part for part in self.slice_branches]
        total, branches = sum(inner), sum(self.slice_branches)
        return Block(
            nn.BatchNorm2d(sum(widths)),
            TriangularConv(widths, inner),
            nn.BatchNorm2d(total),
            nn.Conv2d(total, total, 3, padding=1, groups=branches, bias=False),
            nn.BatchNorm2d(total),
            TriangularConv(inner, widths),
        )

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> list[Float[Tensor, "batch classes"]]:
        """The K logits, thin to wide, from one pass. Raises ValueError for images without three channels."""
        check_images(images, self.trunk.stem, len(self.trunk.stages), "SlicedResNeXt")
        features = self.trunk(images)
        return [head(features[:, : head.in_features]) for head in self.heads]

    @torch.no_grad()
    def extract(self, k: int) -> ResNeXt:
        """Sub-network k on its own: the first k slices and their head, with weights of their own."""
        self._check_exit(k)
        width, branches = sum(self.slice_widths[:k]), sum(self.slice_branches[:k])
        factors = [1 << stage for stage in range(len(self.trunk.stages))]
        stages = [
            [_first_slices(block, k, factor * width, branches) for block in stage]
            for factor, stage in zip(factors, self.trunk.stages, strict=True)
        ]
        stem = deepcopy(self.trunk.stem)
        first = stem if isinstance(stem, nn.Conv2d) else stem[0]
        first.weight, first.out_channels = nn.Parameter(first.weight[:width].clone()), width
        norm = _first_channels(self.trunk.norm, factors[-1] * width)
        trunk = Trunk(stem, stages, norm, self.slice_widths[:k])
        return ResNeXt(trunk, deepcopy(self.heads[k - 1])).train(self.training)

    def refine(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Generator[Float[Tensor, "images classes"], Bool[Tensor, " images"] | None, None]:
        """The K logits one after the other, thin to wide: each step computes one slice and reuses those before it.

        The answers are those of `forward`, up to rounding, in train mode, too (its running statistics are then those of
        the slices computed). They carry no gradient. `send(keep)` in place of `next()` goes on with some of the images,
        one True or False for each of the last answer. Raises ValueError for images without three channels, at the
        first step, and for a `keep` of another kind.
        """
        check_images(images, self.trunk.stem, len(self.trunk.stages), "SlicedResNeXt")
        kept: list[tuple[Tensor, Tensor]] = []  # of each block, what its two 1×1 convolutions read, all slices
        pooled: list[Tensor] = []
        for j in range(self.exits):
            pooled.append(self._features_of_slice(images, kept, j))
            keep = yield self.heads[j](torch.cat(pooled, dim=1)).detach()
            if keep is not None:
                if keep.dtype != torch.bool or keep.shape != images.shape[:1]:
                    came = f"{keep.dtype} {tuple(keep.shape)}"
                    raise ValueError(f"wanted keep as torch.bool ({len(images)},), one an image; got {came}")
                images, pooled = images[keep], [part[keep] for part in pooled]
                kept = [tuple(part[keep] for part in pair) for pair in kept]

    @torch.no_grad()
    def _features_of_slice(self, images: Tensor, kept: list[tuple[Tensor, Tensor]], j: int) -> Tensor:
        """The features of slice j, what earlier slices left in `kept` given."""
        maps, number = self._stem_of_slice(images, j), 0
        for i, stage in enumerate(self.trunk.stages):
            if i:
                maps = widen(maps, [maps.shape[1]])
            for block in stage:
                if j == 0:
                    sizes = (sum(block.conv1.inputs), sum(block.conv3.inputs))
                    kept.append(tuple(maps.new_empty(len(maps), size, *maps.shape[2:]) for size in sizes))
                maps = _slice_of_block(block, maps, *kept[number], j)
                number += 1
        stop = self.heads[j].in_features
        return Trunk.pooled(_normalised(self.trunk.norm, maps, stop - maps.shape[1], stop))

    def _stem_of_slice(self, images: Tensor, j: int) -> Tensor:
        first, *rest = [self.trunk.stem] if isinstance(self.trunk.stem, nn.Conv2d) else self.trunk.stem
        start = sum(self.slice_widths[:j])
        weight = first.weight[start : start + self.slice_widths[j]]
        maps = F.conv2d(images, weight, None, first.stride, first.padding)
        for module in rest:
            maps = module(maps)
        return maps


class TriangularConv(nn.Module):
    """A 1×1 convolution whose slice j of outputs reads slices ≤ j of inputs: block lower triangular.

    `weights[j]` is (outputs of slice j, inputs of slices ≤ j): what is forbidden has no parameter.

    Args:
        inputs: channels of each slice of the input.
        outputs: channels of each slice of the output.
    """

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.weights = nn.ParameterList(
            nn.Parameter(torch.empty(rows, columns)) for rows, columns in zip(outputs, accumulate(inputs), strict=True)
        )
        self.register_parameter("bias", None)
        for weight in self.weights:
            nn.init.kaiming_normal_(weight, nonlinearity="relu")

    def forward(self, maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch outputs height width"]:
        """The convolved maps; the slices stand behind each other."""
        weights = list(self.weights)
        maps = maps.contiguous()  # channels last would be slow
        if torch.is_autocast_enabled(maps.device.type):
            dtype = torch.get_autocast_dtype(maps.device.type)
            maps, weights = maps.to(dtype), [weight.to(dtype) for weight in weights]
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            made = _Triangular.apply(maps.flatten(2), *weights)
        else:
            made = _product(maps.flatten(2), weights)
        if self.bias is not None:
            made = made + self.bias[:, None]
        return made.unflatten(2, maps.shape[2:])

    def extra_repr(self) -> str:
        """The slices, as `print` shows them."""
        return f"{self.inputs} -> {self.outputs}"


def _product(maps: Float[Tensor, "batch channel pixel"], weights: Sequence[Tensor]) -> Tensor:
    # bmm takes a part of the channels as it is; conv2d would copy it, at four times the cost.
    return torch.cat([torch.bmm(w.expand(len(maps), -1, -1), maps[:, : w.shape[1]]) for w in weights], dim=1)


class _Triangular(torch.autograd.Function):
    """`_product`, with a gradient of its own: autograd would pad one tensor a slice, and add them up."""

    @staticmethod
    def forward(ctx, maps: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(maps, *weights)
        return _product(maps, weights)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, *weights = ctx.saved_tensors
        slices = gradient.split([len(weight) for weight in weights], dim=1)
        if torch.is_grad_enabled():  # to be differentiated again
            of_maps = sum(
                F.pad(torch.matmul(weight.t(), part), (0, 0, 0, maps.shape[1] - weight.shape[1]))
                for weight, part in zip(weights, slices, strict=True)
            )
            of_weights = (
                torch.bmm(part, maps[:, : weight.shape[1]].transpose(1, 2)).sum(dim=0)
                for weight, part in zip(weights, slices, strict=True)
            )
            return of_maps, *of_weights
        # One dense product with zeros in the forbidden blocks is quicker than a narrow one a slice.
        of_maps = None
        if ctx.needs_input_grad[0]:
            whole = torch.cat([F.pad(weight, (0, maps.shape[1] - weight.shape[1])) for weight in weights])
            of_maps = torch.bmm(whole.t().expand(len(maps), -1, -1), gradient)
        rows = torch.bmm(gradient, maps.transpose(1, 2)).sum(dim=0).split([len(weight) for weight in weights])
        return of_maps, *(row[:, : weight.shape[1]].contiguous() for row, weight in zip(rows, weights, strict=True))


def _slice_of_block(block: Block, maps: Tensor, stream: Tensor, branches: Tensor, j: int) -> Tensor:
    """Slice j of a block's output. What the 1×1 convolutions read is in `stream` and `branches`, up to slice j - 1, and
    that of slice j is put there."""
    start, width = sum(block.conv1.inputs[:j]), block.conv1.inputs[j]
    first, inner = sum(block.conv3.inputs[:j]), block.conv3.inputs[j]
    torch.clamp_min(_normalised(block.bn1, maps, start, start + width), 0, out=stream[:, start : start + width])
    made = _product_of_slice(block.conv1, stream, j)
    made = F.relu(_normalised(block.bn2, made, first, first + inner), inplace=True)
    group, bias = block.conv2.weight.shape[1], block.conv2.bias
    weight, bias = (None if part is None else part[first : first + inner] for part in (block.conv2.weight, bias))
    made = F.conv2d(made, weight, bias, padding=1, groups=inner // group)
    torch.clamp_min(_normalised(block.bn3, made, first, first + inner), 0, out=branches[:, first : first + inner])
    return maps + _product_of_slice(block.conv3, branches, j)


def _product_of_slice(convolution: TriangularConv, maps: Tensor, j: int) -> Tensor:
    weight = convolution.weights[j]
    made = torch.bmm(weight.expand(len(maps), -1, -1), maps[:, : weight.shape[1]].flatten(2))
    if convolution.bias is not None:
        start = sum(convolution.outputs[:j])
        made += convolution.bias[start : start + len(weight), None]
    return made.unflatten(2, maps.shape[2:])


def _normalised(norm: nn.Module, maps: Tensor, start: int, stop: int) -> Tensor:
    """What a norm makes of its channels from start to stop."""
    if isinstance(norm, nn.Identity):
        return maps
    mean, var, weight, bias = (
        None if part is None else part[start:stop]
        for part in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return F.batch_norm(maps, mean, var, weight, bias, norm.training, norm.momentum, norm.eps)


def _first_slices(block: Block, k: int, width: int, branches: int) -> Block:
    """A copy of a block with its first k slices, of that many channels and branches."""
    convolutions = []
    for whole in (block.conv1, block.conv3):
        made = TriangularConv(whole.inputs[:k], whole.outputs[:k])
        made.weights = nn.ParameterList(nn.Parameter(weight.clone()) for weight in whole.weights[:k])
        if whole.bias is not None:
            made.bias = nn.Parameter(whole.bias[: sum(made.outputs)].clone())
        convolutions.append(made)
    inner = sum(convolutions[1].inputs)
    middle = deepcopy(block.conv2)
    middle.in_channels, middle.out_channels, middle.groups = inner, inner, branches
    middle.weight = nn.Parameter(middle.weight[:inner].clone())
    if middle.bias is not None:
        middle.bias = nn.Parameter(middle.bias[:inner].clone())
    norms = (_first_channels(norm, size) for norm, size in ((block.bn1, width), (block.bn2, inner), (block.bn3, inner)))
    bn1, bn2, bn3 = norms
    return Block(bn1, convolutions[0], bn2, middle, bn3, convolutions[1])


def _first_channels(norm: nn.Module, channels: int) -> nn.Module:
    """A copy of a norm with its first channels."""
    made = deepcopy(norm)
    if isinstance(made, nn.BatchNorm2d):
        made.num_features = channels
        made.weight, made.bias = (nn.Parameter(part[:channels].clone()) for part in (made.weight, made.bias))
        made.running_mean, made.running_var = (
            part[:channels].clone() for part in (made.running_mean, made.running_var)
        )
    return made


def _parts(whole_name: str, whole: int, name: str, parts: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """The sizes of `count` slices that make up `whole`, equal ones where none are given."""
    if parts is None:
        if whole % count:
            raise ValueError(f"{whole_name} {whole} does not divide into {count} slices; pass {name}")
        return (whole // count,) * count
    parts = tuple(parts)
    if not all(isinstance(part, Integral) and part >= 1 for part in parts):
        raise ValueError(f"{name} is {parts}; wanted whole numbers of at least 1")
    if len(parts) != count:
        raise ValueError(f"{name} has {len(parts)} slices; wanted {count}")
    if sum(parts) != whole:
        raise ValueError(f"{name} {parts} add up to {sum(parts)}; wanted {whole_name} = {whole}")
    return parts
