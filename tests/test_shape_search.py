"""Widths for a budget at each exit: counts of the real networks, and the best of all shapes in a small case."""

import re
from itertools import product
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from torch import nn
from typechecker import unchecked

from mtanytime.anytime import SliceCascade, SlicedResNet, SliceShape
from mtanytime.anytime.folding import fold_batch_norms
from mtanytime.anytime.shape_search import SliceKind, exit_layers, search_shapes
from mtanytime.measure.costs import exit_costs
from mtanytime.measure.layer_times import Layer

NETWORKS = {"layers": SlicedResNet, "stages": SliceCascade}


def macs(layer: Layer) -> float:
    """A cost that is the multiply-adds."""
    return float(layer.macs)


@settings(max_examples=examples(6))
@given(st.data(), st.sampled_from(["basic", "inverted"]), st.sampled_from(["layers", "stages"]))
def test_layers_of_an_exit_are_those_that_it_runs(data: st.DataObject, block: str, reads: str) -> None:
    """They are the convolutions of the exit as it is run alone, with the same maps, for odd images too."""
    stem_stride, side = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([17, 32]))
    count = data.draw(st.integers(1, 3))
    widths = data.draw(st.lists(st.tuples(*[st.integers(1, 5)] * count), min_size=1, max_size=3))
    blocks = tuple(data.draw(st.integers(1, 2)) for _ in widths)
    shape = SliceShape(tuple(widths), blocks, block, stem_stride, data.draw(st.integers(2, 3)))
    network = NETWORKS[reads](3, shape).eval()
    for k in range(1, count + 1):
        ran = convolutions(fold_batch_norms(network.extract(k), dense=True), torch.randn(1, 3, side, side))
        assert sorted(ran) == sorted(exit_layers(shape, k, side, reads))


def convolutions(network: nn.Module, images: torch.Tensor) -> list[Layer]:
    """Run a network, and list its convolutions with the size of the maps that they read."""
    ran = []

    def note(layer: nn.Conv2d, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        sizes = layer.in_channels, layer.out_channels, inputs[0].shape[-1], layer.kernel_size[0]
        ran.append(Layer(*sizes, layer.groups, layer.stride[0]))

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(note)
    network(images)
    return ran


@pytest.mark.parametrize(
    ("block", "reads", "budgets"),
    [
        ("basic", "layers", (2e5, 5e5)),
        ("inverted", "layers", (4e5, 9e5)),
        ("basic", "stages", (2e5, 5e5)),
        ("inverted", "stages", (4e5, 9e5)),
    ],
)
def test_the_best_of_all_shapes(block: str, reads: str, budgets: tuple[float, float]) -> None:
    """With room for all, the search finds the shape that trying every one finds, and its counts are the network's."""
    multiple = 4
    best: tuple[float, tuple] = (0.0, ())
    choices = list(product(*[range(4, (8 << stage) + 1, 4) for stage in range(2)]))
    for thin, added in product(choices, choices):
        shape = SliceShape(tuple(zip(thin, added, strict=True)), (1, 1), block)
        ends = [thin, tuple(map(sum, shape.widths))]
        costs = [sum(map(macs, exit_layers(shape, k, reads=reads))) for k in (1, 2)]
        fits = all(cost <= budget for cost, budget in zip(costs, budgets, strict=True))
        if fits and all(1.5 * a <= b <= 3 * a for a, b in ends):
            best = max(best, (prod(counted(shape, reads)), shape.widths))
    found = search_shapes(macs, budgets, multiple, SliceKind(block, reads, (1, 1)), largest=8, keep=1000)
    assert prod(found[0].macs) == best[0]
    for candidate in found:
        layers = [exit_layers(candidate.shape, k, reads=reads) for k in (1, 2)]
        assert list(candidate.macs) == counted(candidate.shape, reads)
        assert list(candidate.costs) == [sum(map(macs, part)) for part in layers]
        assert candidate.costs[0] == candidate.macs[0]  # one slice has no absent connections
        assert (candidate.costs[1] > candidate.macs[1]) == (reads == "layers")


def counted(shape: SliceShape, reads: str) -> list[int]:
    """The multiply-adds of each exit's network, without its head."""
    own = exit_costs(NETWORKS[reads](10, shape))["macs_own_head"].tolist()
    return [cost - 10 * sum(shape.widths[-1][:k]) for k, cost in enumerate(own, 1)]


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
    with pytest.raises(ValueError, match="shape: expected blocks without squeeze, got"):
        exit_layers(SliceShape(((4,),), squeeze=2), 1)


def test_bad_bounds() -> None:
    """What no shape can fulfil is said at once, and not as a budget of infinity; nor has a shape further exits."""
    with pytest.raises(ValueError, match=r"growth: expected bounds that slices of .* channels, .*, keep, got"):
        search_shapes(macs, [2e6, 4e6], multiple=8, largest=16, growth=(5, 6))
    with pytest.raises(ValueError, match="largest: expected at least multiple, 32, got 16"):
        search_shapes(macs, [2e6, 4e6], multiple=32, largest=16)
    for name in ("multiple", "keep"):
        with pytest.raises(ValueError, match=f"{name}: expected a whole number from 1, got 0"):
            search_shapes(macs, [2e6], **{name: 0})
    with pytest.raises(ValueError, match="blocks: expected a number for each stage, at least one"):
        SliceKind(blocks=())
    for name in ("block", "reads"):
        with pytest.raises(ValueError, match=f"{name}: expected one of .*, got 'all'"):
            unchecked(SliceKind.__init__)(object.__new__(SliceKind), **{name: "all"})
    for exit_number in (0, 3):
        with pytest.raises(ValueError, match=f"k: expected an exit from 1 to 2, got {exit_number}"):
            exit_layers(SliceShape(((4, 4), (8, 8))), exit_number)
