"""Widths for a budget at each exit: counts of the real networks, and the best of all shapes in a small case."""

import re
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples

from mtanytime.anytime import SlicedResNet, SliceShape
from mtanytime.anytime.shape_search import exit_layers, search_shapes
from mtanytime.measure.costs import exit_costs
from mtanytime.measure.layer_times import Layer


def macs(layer: Layer) -> float:
    """A cost that is the multiply-adds."""
    return float(layer.macs)


@settings(max_examples=examples(6))
@given(st.data(), st.sampled_from([1, 2]), st.sampled_from([17, 32]))
def test_layers_of_an_exit_cost_what_it_costs(data: st.DataObject, stem_stride: int, side: int) -> None:
    """Listed convolutions have the multiply-adds of the stand-alone network but for its head, for odd images too."""
    count = data.draw(st.integers(1, 3))
    widths = data.draw(st.lists(st.tuples(*[st.integers(1, 5)] * count), min_size=1, max_size=3))
    blocks = tuple(data.draw(st.integers(1, 2)) for _ in widths)
    shape = SliceShape(tuple(widths), blocks, stem_stride=stem_stride)
    costs = exit_costs(SlicedResNet(3, shape), (3, side, side))["macs_own_head"]
    for k, own in enumerate(costs, 1):
        head = 3 * sum(shape.widths[-1][:k])
        assert sum(layer.macs for layer in exit_layers(shape, k, side)) == own - head


def test_the_best_of_all_shapes() -> None:
    """With room for all, the search finds the shape that trying every one finds, and its costs are the network's."""
    budgets, multiple = (2e5, 5e5), 4
    best: tuple[float, SliceShape | None] = (0.0, None)
    choices = list(product(*[range(4, (8 << stage) + 1, 4) for stage in range(2)]))
    for thin, added in product(choices, choices):
        widths = tuple(zip(thin, added, strict=True))
        ends = [thin, tuple(map(sum, widths))]
        costs = [sum(map(macs, exit_layers(SliceShape(widths), k))) for k in (1, 2)]
        fits = all(cost <= budget for cost, budget in zip(costs, budgets, strict=True))
        if fits and all(1.5 * a <= b <= 3 * a for a, b in ends) and costs[0] * costs[1] > best[0]:
            best = costs[0] * costs[1], SliceShape(widths)
    found = search_shapes(macs, budgets, multiple, (1, 1), largest=8, keep=1000)
    assert found[0].shape == SliceShape(best[1].widths, (1, 1))
    for candidate in found:
        own = exit_costs(SlicedResNet(10, candidate.shape))["macs_own_head"].tolist()
        heads = [10 * sum(candidate.shape.widths[-1][:k]) for k in (1, 2)]
        assert list(candidate.macs) == [cost - head for cost, head in zip(own, heads, strict=True)]
        assert candidate.costs == candidate.macs


def test_bad_budgets() -> None:
    """A budget below the first exit names what that costs; others must increase."""
    least = sum(map(macs, exit_layers(SliceShape(((16,), (32,), (48,))), 1)))
    with pytest.raises(
        ValueError, match=rf"budgets: expected at least {re.escape(f'{least:g}')} for exit 1, .*, got 1000"
    ):
        search_shapes(macs, [1000, 1e9], largest=32)
    for budgets in ([], [2e6, 1e6], [0, 1e6]):
        with pytest.raises(ValueError, match="budgets: expected numbers above 0 that increase from exit to exit, got"):
            search_shapes(macs, budgets)
    with pytest.raises(ValueError, match="shape: expected basic blocks without squeeze, got"):
        exit_layers(SliceShape(((4,),), block="inverted"), 1)


def test_bad_bounds() -> None:
    """What no shape can fulfil is said at once, and not as a budget of infinity; nor has a shape further exits."""
    for bounds in ({"growth": (5, 6)}, {"multiple": 32, "largest": 16}):
        with pytest.raises(ValueError, match=r"growth: expected bounds that slices of .* channels, .*, keep, got"):
            search_shapes(macs, [2e6, 4e6], **{"multiple": 8, "largest": 16} | bounds)
    for name in ("multiple", "keep"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number from 1, got 0"):
            search_shapes(macs, [2e6], **{name: 0})
    with pytest.raises(ValueError, match="blocks: expected a number for each stage, at least one"):
        search_shapes(macs, [2e6], blocks=())
    for exit_number in (0, 3):
        with pytest.raises(ValueError, match=f"k: expected an exit from 1 to 2, got {exit_number}"):
            exit_layers(SliceShape(((4, 4), (8, 8))), exit_number)
