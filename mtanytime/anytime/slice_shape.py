"""The shape of a sliced residual network: kind of block, blocks, strides, and the channels of each slice."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from numbers import Integral
from typing import Literal, get_args

from mtanytime.checks import require

BlockKind = Literal["basic", "inverted"]


@dataclass(frozen=True)
class SliceShape:
    """The shape of a `SlicedResNet` or a `SliceCascade`.

    Args:
        widths: for each stage, the channels of each slice, thin to wide. See `doubling_widths`.
        blocks: blocks per stage: one number for all stages, or a number for each stage.
        block: "basic", two dense 3×3 convolutions (arXiv:1512.03385), or "inverted", 1×1, depthwise 3×3 and 1×1 with
            more channels between (arXiv:1801.04381).
        stem_stride: of the first convolution: 1, or 2 for maps of half the height and width in all stages.
        expansion: of inverted blocks: channels of the 3×3 convolution, as a multiple of the block's input.
        squeeze: 0, or r for squeeze-and-excitation (arXiv:1709.01507) with 1/r of the channels. The scale of slice j
            depends on slices ≤ j; in a `SliceCascade`, on slice j alone.

    Raises:
        ValueError: no stage, stages with different numbers of slices, a size that is not a whole number from 1, an
            unknown kind of block, a stride other than 1 and 2.
    """

    widths: tuple[tuple[int, ...], ...]
    blocks: int | tuple[int, ...] = 1
    block: BlockKind = "basic"
    stem_stride: int = 2
    expansion: int = 4
    squeeze: int = 0

    def __post_init__(self) -> None:
        widths = tuple(map(tuple, self.widths))
        slices = [len(stage) for stage in widths]
        same = len(slices) > 0 and min(slices) == max(slices) > 0
        require(same, "widths", "stages with the same number of slices, at least one", widths)
        blocks = (self.blocks,) * len(widths) if isinstance(self.blocks, Integral) else tuple(self.blocks)
        require(len(blocks) == len(widths), "blocks", f"one number, or {len(widths)}, one per stage", blocks)
        sizes = {"widths": [size for stage in widths for size in stage], "blocks": blocks}
        for name, size in [(name, size) for name, sizes in sizes.items() for size in sizes]:
            _check_size(name, size)
        _check_size("expansion", self.expansion)
        _check_size("squeeze", self.squeeze, least=0)
        kinds = get_args(BlockKind)
        require(self.block in kinds, "block", f"one of {list(kinds)}", self.block)
        require(self.stem_stride in (1, 2), "stem_stride", "1 or 2", self.stem_stride)
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "blocks", blocks)

    @property
    def exits(self) -> int:
        """The number of slices and exits (K)."""
        return len(self.widths[0])


def doubling_widths(first: Sequence[int], stages: int = 3, multiple: int = 1) -> tuple[tuple[int, ...], ...]:
    """Return the channels of each slice in each stage; they double from stage to stage.

    Args:
        first: channels of each slice in the first stage.
        stages: number of stages.
        multiple: the prefixes, slices 1 to k together, are rounded to multiples of this in every stage: 8 or 16
            channels fill a processor's vector registers.

    Raises:
        ValueError: a size that is not a whole number from 1, or a slice that is left without channels.
    """
    for name, size in [("stages", stages), ("multiple", multiple), *(("first", size) for size in first)]:
        _check_size(name, size)
    widths = []
    for stage in range(stages):
        ends = [multiple * ((2 * (end << stage) + multiple) // (2 * multiple)) for end in accumulate(first)]
        widths.append(tuple(stop - start for start, stop in pairwise([0, *ends])))
        fills = min(widths[-1], default=0) >= 1
        expected = f"slices that keep channels when prefixes are multiples of {multiple} in stage {stage + 1}"
        require(fills, "first", expected, tuple(first))
    return tuple(widths)


def _check_size(name: str, size: object, least: int = 1) -> None:
    whole = isinstance(size, Integral) and not isinstance(size, bool) and size >= least
    require(whole, name, f"a whole number from {least}", size)
