"""Search for the shape of a sliced network: the widths that make the most of a budget at each exit."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from numbers import Integral

from mtanytime.anytime.slice_shape import SliceShape
from mtanytime.checks import require
from mtanytime.measure.layer_times import Layer

Cost = Callable[[Layer], float]  # of one layer: `LayerClock.ms`, or its multiply-adds
Stages = tuple[int, ...]  # channels in each stage, of a prefix or a slice


def exit_layers(shape: SliceShape, k: int, side: int = 32) -> list[Layer]:
    """The convolutions that exit k of a `SlicedResNet` runs on its own, for images of side × side pixels.

    They are ordinary ones, as `fold_batch_norms(…, dense=True)` makes them: each computes all slices up to k, and
    also multiplies the zeros of absent connections.

    Only for basic blocks without squeeze-and-excitation. Raises ValueError for another shape, and if there is no exit
    k.
    """
    require(1 <= k <= shape.exits, "k", f"an exit from 1 to {shape.exits}", k)
    require(shape.block == "basic" and not shape.squeeze, "shape", "basic blocks without squeeze", shape)
    end = tuple(sum(stage[:k]) for stage in shape.widths)
    return [
        _stem(end, shape.stem_stride, side),
        *_block_layers((0,) * len(end), end, shape.blocks, shape.stem_stride, side),
    ]


@dataclass(frozen=True)
class Candidate:
    """A shape with what each of its exits costs, in the unit of the budgets, and its multiply-adds.

    Heads are left out, and the multiply-adds do not count the zeros of the block lower triangular convolutions.
    """

    shape: SliceShape
    costs: tuple[float, ...]
    macs: tuple[int, ...]


def search_shapes(
    cost: Cost,
    budgets: Sequence[float],
    multiple: int = 16,
    blocks: Sequence[int] = (1, 1, 1),
    largest: int = 64,
    growth: tuple[float, float] = (1.5, 3.0),
    keep: int = 200,
) -> list[Candidate]:
    """Find the widths that fit the most multiply-adds into each exit's budget, by a beam search from exit to exit.

    The networks are `SlicedResNet`s with basic blocks and a first convolution of stride 2, for images of 32 × 32
    pixels. The cost of an exit is the sum of the costs of its `exit_layers`. Additions, activations and the head come
    on top, so leave room for them. Only training, with images held out, tells which of the shapes is the most accurate.

    Example:
        >>> from mtanytime.anytime.shape_search import search_shapes
        >>> best = search_shapes(lambda layer: layer.macs, budgets=[5e6, 1e7], keep=20)[0]
        >>> best.shape.exits, best.costs[1] <= 1e7
        (2, True)

    Args:
        cost: of a layer, such as `LayerClock(...).ms` or `lambda layer: layer.macs`.
        budgets: of each exit, thin to wide, in the same unit.
        multiple: of the channels of every slice.
        blocks: blocks per stage.
        largest: channels of the largest slice in the first stage; twice and four times as many in the next ones.
        growth: least and most channels of a prefix in a stage, as a multiple of those in the stage before.
        keep: shapes that the search keeps after each exit.

    Returns:
        The shapes, the one with the largest product of its exits' multiply-adds first.

    Raises:
        ValueError: budgets that do not increase, or one below the cost of the thinnest slice; no stages, or bounds that
            no widths satisfy.
    """
    increasing = len(budgets) > 0 and all(a < b for a, b in pairwise((0, *budgets)))
    require(increasing, "budgets", "numbers above 0 that increase from exit to exit", list(budgets))
    require(len(blocks) > 0, "blocks", "a number for each stage, at least one", blocks)
    for name, size in (("multiple", multiple), ("keep", keep)):
        require(isinstance(size, Integral) and size >= 1, name, "a whole number from 1", size)
    choices = [range(multiple, (largest << stage) + 1, multiple) for stage in range(len(blocks))]
    none = (0,) * len(blocks)
    beam: list[tuple[tuple[Stages, ...], list[float], list[int]]] = [((none,), [], [])]  # prefixes, costs, macs
    expected = f"bounds that slices of {multiple}, {2 * multiple}, … channels, up to {largest} in the first stage, keep"
    require(any(_wider(none, choices, growth)), "growth", expected, growth)
    for k, budget in enumerate(budgets, 1):
        found, cheapest = [], math.inf
        for ends, costs, macs in beam:
            for after in _wider(ends[-1], choices, growth):
                stem = _stem(after, 2, 32)
                total = cost(stem) + sum(map(cost, _block_layers(none, after, blocks, 2, 32)))
                cheapest = min(cheapest, total)
                if total <= budget:
                    slices = pairwise((*ends, after))
                    own = sum(layer.macs for part in slices for layer in _block_layers(*part, blocks, 2, 32))
                    found.append(((*ends, after), [*costs, total], [*macs, own + stem.macs]))
        expected = f"at least {cheapest:g} for exit {k}, the cost of the thinnest slice"
        require(len(found) > 0, "budgets", expected, budget)
        beam = sorted(found, key=lambda shape: -math.prod(shape[2]))[:keep]
    return [Candidate(_shape(ends, blocks), tuple(costs), tuple(macs)) for ends, costs, macs in beam]


def _shape(ends: Sequence[Stages], blocks: Sequence[int]) -> SliceShape:
    widths = (tuple(b - a for a, b in pairwise(stage)) for stage in zip(*ends, strict=True))
    return SliceShape(tuple(widths), tuple(blocks))


def _wider(end: Stages, choices: Sequence[Sequence[int]], growth: tuple[float, float]) -> Iterator[Stages]:
    """Prefixes with one more slice that grow from stage to stage within the bounds."""
    for added in product(*choices):
        after = tuple(a + b for a, b in zip(end, added, strict=True))
        if all(growth[0] * a <= b <= growth[1] * a for a, b in pairwise(after)):
            yield after


def _stem(end: Stages, stride: int, side: int) -> Layer:
    return Layer(3, end[0], side, stride=stride)


def _block_layers(before: Stages, after: Stages, blocks: Sequence[int], stem_stride: int, side: int) -> list[Layer]:
    """The blocks' convolutions that compute what lies between two prefixes, and read all up to the second."""
    layers, side = [], -(-side // stem_stride)
    for stage, count in enumerate(blocks):
        outputs = after[stage] - before[stage]
        for i in range(count):
            first = stage > 0 and i == 0
            layers.append(Layer(after[stage - 1] if first else after[stage], outputs, side, stride=2 if first else 1))
            if first:
                side = -(-side // 2)
                layers.append(Layer(after[stage - 1], outputs, side, size=1))
            layers.append(Layer(after[stage], outputs, side))
    return layers
