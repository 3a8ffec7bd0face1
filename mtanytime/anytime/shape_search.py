"""Search for the shape of a sliced network: the widths that make the most of a budget at each exit."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from numbers import Integral
from typing import Literal, get_args

from mtanytime.anytime.slice_shape import BlockKind, SliceShape
from mtanytime.checks import require
from mtanytime.measure.layer_times import Layer

Cost = Callable[[Layer], float]  # of one layer: `LayerClock.ms`, or its multiply-adds
Stages = tuple[int, ...]  # channels in each stage, of a prefix or a slice
Reads = Literal["layers", "stages"]


@dataclass(frozen=True)
class SliceKind:
    """The structure of a sliced network apart from its widths.

    Args:
        block, blocks, stem_stride, expansion: see `SliceShape`; `blocks` has a number for each stage.
        reads: what a slice reads of earlier ones: "layers", as in a `SlicedResNet`, or "stages", as in a
            `SliceCascade`.

    Raises:
        ValueError: an unknown word, or no stages.
    """

    block: BlockKind = "basic"
    reads: Reads = "layers"
    blocks: tuple[int, ...] = (1, 1, 1)
    stem_stride: int = 2
    expansion: int = 4

    def __post_init__(self) -> None:
        for name, words in (("block", get_args(BlockKind)), ("reads", get_args(Reads))):
            require(getattr(self, name) in words, name, f"one of {list(words)}", getattr(self, name))
        require(len(self.blocks) > 0, "blocks", "a number for each stage, at least one", self.blocks)


def exit_layers(shape: SliceShape, k: int, side: int = 32, reads: Reads = "layers") -> list[Layer]:
    """The convolutions that an exit alone runs, for images of side × side pixels.

    Of a `SlicedResNet` (`reads="layers"`) they are ordinary ones, as `fold_batch_norms(…, dense=True)` makes them: each
    computes all slices up to k, and multiplies the zeros of absent connections as well. A `SliceCascade`
    (`reads="stages"`) runs its slices one after another.

    Raises ValueError for a shape with squeeze-and-excitation, and for an exit that it does not have.
    """
    require(1 <= k <= shape.exits, "k", f"an exit from 1 to {shape.exits}", k)
    require(not shape.squeeze, "shape", "blocks without squeeze", shape)
    kind = SliceKind(shape.block, reads, shape.blocks, shape.stem_stride, shape.expansion)
    ends = [tuple(sum(stage[:j]) for stage in shape.widths) for j in range(k + 1)]
    parts = pairwise(ends) if reads == "stages" else [(ends[0], ends[k])]
    return [layer for before, after in parts for layer in _convolutions(kind, before, after, side)]


@dataclass(frozen=True)
class Candidate:
    """A shape with what each of its exits costs, in the unit of the budgets, and its multiply-adds.

    Heads are left out, and the multiply-adds are those of the network's own connections: no zeros.
    """

    shape: SliceShape
    costs: tuple[float, ...]
    macs: tuple[int, ...]


def search_shapes(
    cost: Cost,
    budgets: Sequence[float],
    multiple: int = 16,
    kind: SliceKind | None = None,
    largest: int = 64,
    growth: tuple[float, float] = (1.5, 3.0),
    keep: int = 200,
) -> list[Candidate]:
    """Find the widths that fit the most multiply-adds into each exit's budget, by a beam search from exit to exit.

    The networks are for images of 32 × 32 pixels. The cost of an exit is the sum of those of its `exit_layers`:
    additions, activations and the head come on top, so leave room for them. To find the most
    accurate of the shapes, train them and compare them on held-out images.

    Example:
        >>> from mtanytime.anytime.shape_search import search_shapes
        >>> best = search_shapes(lambda layer: layer.macs, budgets=[5e6, 1e7], keep=20)[0]
        >>> best.shape.exits, best.costs[1] <= 1e7
        (2, True)

    Args:
        cost: of a layer, such as `LayerClock(...).ms` or `lambda layer: layer.macs`.
        budgets: of each exit, thin to wide, in the same unit.
        multiple: of the channels of every slice.
        kind: of blocks and network; None: a `SlicedResNet` with one basic block per stage.
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
    kind = kind or SliceKind()
    for name, size in (("multiple", multiple), ("keep", keep)):
        require(isinstance(size, Integral) and size >= 1, name, "a whole number from 1", size)
    require(largest >= multiple, "largest", f"at least multiple, {multiple}", largest)
    choices = [range(multiple, (largest << stage) + 1, multiple) for stage in range(len(kind.blocks))]
    none = (0,) * len(kind.blocks)
    beam: list[tuple[tuple[Stages, ...], list[float], list[int]]] = [((none,), [], [])]  # prefixes, costs, macs
    expected = f"bounds that slices of {multiple}, {2 * multiple}, … channels, up to {largest} in the first stage, keep"
    require(any(_wider(none, choices, growth)), "growth", expected, growth)
    for k, budget in enumerate(budgets, 1):
        found, cheapest = [], math.inf
        for ends, costs, macs in beam:
            for after in _wider(ends[-1], choices, growth):
                own = _convolutions(kind, ends[-1], after, 32, triangular=kind.reads == "layers")
                if kind.reads == "layers":
                    total = sum(map(cost, _convolutions(kind, none, after, 32)))
                else:
                    total = sum(map(cost, own)) + (costs[-1] if costs else 0)
                cheapest = min(cheapest, total)
                if total <= budget:
                    counted = sum(layer.macs for layer in own) + (macs[-1] if macs else 0)
                    found.append(((*ends, after), [*costs, total], [*macs, counted]))
        expected = f"at least {cheapest:g} for exit {k}, the cost of the thinnest slice"
        require(len(found) > 0, "budgets", expected, budget)
        beam = sorted(found, key=lambda shape: -math.prod(shape[2]))[:keep]
    return [Candidate(_shape(ends, kind), tuple(costs), tuple(macs)) for ends, costs, macs in beam]


def _shape(ends: Sequence[Stages], kind: SliceKind) -> SliceShape:
    widths = (tuple(b - a for a, b in pairwise(stage)) for stage in zip(*ends, strict=True))
    return SliceShape(tuple(widths), kind.blocks, kind.block, kind.stem_stride, kind.expansion)


def _wider(end: Stages, choices: Sequence[Sequence[int]], growth: tuple[float, float]) -> Iterator[Stages]:
    """Prefixes with one more slice that grow from stage to stage within the bounds."""
    for added in product(*choices):
        after = tuple(a + b for a, b in zip(end, added, strict=True))
        if all(growth[0] * a <= b <= growth[1] * a for a, b in pairwise(after)):
            yield after


def _convolutions(kind: SliceKind, before: Stages, after: Stages, side: int, triangular: bool = False) -> list[Layer]:
    """The convolutions of the channels between two prefixes.

    They read the finished stages of what comes before (see `SliceCascade`; after nothing, they are an ordinary network)
    or, if `triangular`, the same layers (see `SlicedResNet`).
    """
    own = [b - a for a, b in zip(before, after, strict=True)]
    layers, side = [Layer(3, own[0], side, stride=kind.stem_stride)], -(-side // kind.stem_stride)
    for stage, count in enumerate(kind.blocks):
        for i in range(count):
            starts = stage > 0 and i == 0
            source, stride = stage - starts, 1 + starts
            reduced, outputs = -(-side // stride), own[stage]
            below = before[stage] if starts or triangular else 0
            if kind.block == "basic":
                layers.append(Layer(after[source], outputs, side, stride=stride))
                layers.append(Layer(below + outputs, outputs, reduced))
            else:
                inner = kind.expansion * own[source]
                read = kind.expansion * after[source] if triangular else below + inner
                layers.append(Layer(after[source], inner, side, size=1))
                layers.append(Layer(inner, inner, side, groups=inner, stride=stride))
                layers.append(Layer(read, outputs, reduced, size=1))
            if starts:
                layers.append(Layer(after[source] if triangular else own[source], outputs, reduced, size=1))
            side = reduced
    return layers
