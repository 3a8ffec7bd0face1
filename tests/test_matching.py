"""The weighted feature-matching loss against the paper's formula written out pair by pair."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mtanytime.transfer import FeatureMatching, MetaNetworks
from mtanytime.transfer.matching import source_standards
from mtanytime.transfer.meta_networks import PairWeights
from mtanytime.transfer.second_order import second_order

SOURCE = {"s1": (5, 8), "s2": (7, 4)}  # layer: channels, size
TARGET = {"t1": (3, 8), "t2": (6, 2)}
ALL = [(s, t) for s in SOURCE for t in TARGET]


def maps(shapes: dict[str, tuple[int, int]], seed: int) -> dict[str, torch.Tensor]:
    """Random feature maps by layer, for two images."""
    generator = torch.Generator().manual_seed(seed)
    return {k: torch.randn(2, c, n, n, generator=generator, dtype=torch.float64) for k, (c, n) in shapes.items()}


def built(pairs: list) -> tuple[FeatureMatching, MetaNetworks]:
    """Regressors and meta-networks whose weights all differ."""
    generator = torch.Generator().manual_seed(0)
    channels = ({k: c for k, (c, _) in shapes.items()} for shapes in (SOURCE, TARGET))
    source, target = channels
    matching = FeatureMatching(pairs, source, target, generator).double()
    meta = MetaNetworks(pairs, source, generator=generator).double()
    for network in meta.what:
        torch.nn.init.normal_(network.weight, generator=generator)
    return matching, meta


def test_weights_in_another_order() -> None:
    """Meta-networks may list the pairs in another order: weights belong to pairs by name; others are refused."""
    matching, _ = built(ALL)
    source, target = maps(SOURCE, 1), maps(TARGET, 2)
    weights = built(list(reversed(ALL)))[1](source)
    ordered = PairWeights({p: weights.channels[p] for p in ALL}, {p: weights.pairs[p] for p in ALL})
    assert torch.equal(matching(source, target, weights), matching(source, target, ordered))
    with pytest.raises(ValueError, match=r"weights: expected those of the pairs that are matched, got others: \[\('s"):
        matching(source, target, built(ALL[:-1])[1](source))


@pytest.mark.parametrize("pairs", [ALL, [("s2", "t2")], [("s2", "t1"), ("s1", "t2"), ("s1", "t1")]], ids=len)
def test_equals_the_formula(pairs: list) -> None:
    """The loss in one call and in two parts is the paper's sum over pairs, though pairs are stacked by target layer."""
    matching, meta = built(pairs)
    source, target = maps(SOURCE, 1), maps(TARGET, 2)
    weights = meta(source)
    sizes = {t: (n, n) for t, (_, n) in TARGET.items()}
    ours = matching(source, target, weights)
    assert torch.equal(matching.aligned_loss(target, matching.align(source, sizes), weights.by_target()), ours)
    expected = torch.zeros(2, dtype=torch.float64)
    for s, t in pairs:
        weight, bias = matching.regressor((s, t))
        resized = F.interpolate(source[s], size=sizes[t], mode="bilinear", align_corners=False)
        error = (F.conv2d(target[t], weight, bias) - resized).pow(2).mean(dim=(2, 3))
        expected += (weights.pairs[s, t] * weights.channels[s, t] * error).sum(dim=1)
    torch.testing.assert_close(ours, expected)


def test_half_pixel_centres() -> None:
    """Half the size is the mean of 2×2 pixels: pixel centres are aligned, not corners."""
    matching, _ = built([("s1", "t1")])
    source = maps(SOURCE, 1)
    small = matching.align(source, {"t1": (4, 4)})["t1"]
    torch.testing.assert_close(small, F.avg_pool2d(source["s1"], 2))


def test_initial_regressors_are_torchs() -> None:
    """Stacked or not, a regressor starts as torch's own 1×1 convolution would: uniform within ±1/√D."""
    matching = FeatureMatching([("a", "t"), ("b", "t")], {"a": 400, "b": 400}, {"t": 25}, torch.Generator())
    weight, bias = matching.regressor(("b", "t"))
    theirs = torch.nn.Conv2d(25, 400, 1)
    assert weight.shape == theirs.weight.shape
    for ours, other in ((weight, theirs.weight), (bias, theirs.bias)):
        assert ours.abs().max() <= 0.2
        assert ours.std().item() == pytest.approx(other.std().item(), rel=0.2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_first_and_second_derivative(layout: torch.memory_format) -> None:
    """All closed forms against finite differences, for maps in both memory formats."""
    generator = torch.Generator().manual_seed(0)
    matching = FeatureMatching([("a", "t"), ("b", "t")], {"a": 2, "b": 3}, {"t": 4}, generator).double()
    shapes = [(3, 4, 2, 2), (5, 4, 1, 1), (5,), (3, 5)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]
    aligned = {"t": torch.randn(3, 5, 2, 2, generator=generator, dtype=torch.float64)}

    aligned_loss = Aligned(matching)

    def loss(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        state = {"matching.regressors.0.weight": weight, "matching.regressors.0.bias": bias}
        features = features.contiguous(memory_format=layout)
        return torch.func.functional_call(aligned_loss, state, ({"t": features}, aligned, {"t": w}))

    assert torch.autograd.gradcheck(loss, values)
    assert torch.autograd.gradgradcheck(loss, values)


def test_second_derivative_for_weights_alone() -> None:
    """With `for_parameters=False`, the weights get the same second derivative, maps and regressors none."""
    matching, meta = built(ALL)
    source, target = maps(SOURCE, 1), {layer: value.requires_grad_() for layer, value in maps(TARGET, 2).items()}
    outcomes = []
    for for_parameters in (True, False):
        weights = matching.stack(meta(source))
        with second_order(for_parameters):
            sizes = {layer: tuple(value.shape[2:]) for layer, value in target.items()}
            loss = matching.aligned_loss(target, matching.align(source, sizes), weights).sum()
        inputs = [*target.values(), *matching.parameters()]
        first = torch.autograd.grad(loss, inputs, create_graph=True)
        squares = sum(gradient.square().sum() for gradient in first)
        phi = list(meta.parameters())
        outcomes.append(torch.autograd.grad(squares, [*phi, *inputs], allow_unused=True))
    count = len(list(meta.parameters()))
    torch.testing.assert_close(outcomes[1][:count], outcomes[0][:count])
    assert all(gradient is not None for gradient in outcomes[0])
    assert all(gradient is None for gradient in outcomes[1][count:])


def test_maps_of_other_layers_are_not_touched() -> None:
    """A dictionary may hold more than the layers of the pairs, such as a classifier's output without pixels."""
    matching, _ = built([("s1", "t1")])
    source = maps(SOURCE, 1)
    with_output = source | {"fc": torch.rand(2, 10)}
    assert torch.equal(matching.align(with_output, {"t1": (4, 4)})["t1"], matching.align(source, {"t1": (4, 4)})["t1"])


def test_source_maps_are_not_trained() -> None:
    """Source maps that require grad would get none, so they are refused."""
    matching, meta = built([("s1", "t1")])
    source, target = maps(SOURCE, 1), maps(TARGET, 2)
    source["s1"].requires_grad_()
    refusal = r"^source_features: expected detached maps, got maps for 't1' that require grad$"
    with pytest.raises(ValueError, match=refusal):
        matching(source, target, meta(source))


def test_old_call() -> None:
    """Target maps, aligned source maps and λ·w by target layer still work, with a warning that names the new method."""
    matching, meta = built(ALL)
    source, target = maps(SOURCE, 1), maps(TARGET, 2)
    weights = meta(source)
    aligned = matching.align(source, {t: (n, n) for t, (_, n) in TARGET.items()})
    with pytest.warns(DeprecationWarning, match=r"aligned_loss"):
        loss = matching(target, aligned, weights.by_target())
    assert torch.equal(loss, matching(source, target, weights))


def test_standardized_source_maps() -> None:
    """A regressor that answers with each channel's mean has an error of 1 in every pair, whatever the layers' scale."""
    matching, _ = built(ALL)
    source, target = maps(SOURCE, 1), maps(TARGET, 2)
    source = {layer: 10.0**i * value + i for i, (layer, value) in enumerate(source.items())}
    sizes = {t: (n, n) for t, (_, n) in TARGET.items()}
    halves = [{layer: value[part] for layer, value in source.items()} for part in (slice(0, 1), slice(1, 2))]
    matching.standards = source_standards(halves, ALL, sizes)
    for (s, t), standard in matching.standards.items():
        resized = F.interpolate(source[s], size=sizes[t], mode="bilinear", align_corners=False)
        torch.testing.assert_close(standard.mean, resized.mean(dim=(0, 2, 3)))
        by_channel = resized.var(dim=(0, 2, 3), correction=0)
        assert standard.scale**2 == pytest.approx(by_channel.mean().item(), rel=1e-9)
    for parameter in matching.parameters():
        nn.init.zeros_(parameter)  # the mean of standardized maps
    uniform = MetaNetworks(ALL, {s: c for s, (c, _) in SOURCE.items()}, what=False, where="off").double()(source)
    assert matching(source, target, uniform).mean().item() == pytest.approx(len(ALL), rel=1e-9)


def test_scale_of_maps_far_from_zero() -> None:
    """In single precision, the spread of maps beside a mean ten thousand times as large is still found."""
    values = 1e4 + torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (standard,) = source_standards([{"s": values}], [("s", "t")], {"t": (16, 16)}).values()
    assert standard.scale == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("networks", [None, [""]])
def test_training_does_not_depend_on_the_size_of_the_sources_features(networks: list[str] | None) -> None:
    """Loss and gradients are the same for a source whose features are larger, smaller or shifted."""
    target, sizes = maps(TARGET, 2), {t: (n, n) for t, (_, n) in TARGET.items()}
    outcomes = []
    for factor, shift in ((1.0, 0.0), (1e3, 5.0), (1e-3, -2.0)):
        matching, _ = built(ALL)  # the same initial weights each time
        source = {layer: factor * value + shift for layer, value in maps(SOURCE, 1).items()}
        matching.standards = source_standards([source], ALL, sizes, networks)
        weights = MetaNetworks(ALL, {s: c for s, (c, _) in SOURCE.items()}, what=False, where="off").double()(source)
        leaves = {layer: value.clone().requires_grad_() for layer, value in target.items()}
        loss = matching(source, leaves, weights).sum()
        outcomes.append([loss, *torch.autograd.grad(loss, [*leaves.values(), *matching.parameters()])])
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], rtol=1e-6, atol=1e-9)


def test_one_unit_for_each_source_network() -> None:
    """The mean of the variances of the network's pairs; another network has its own."""
    source, size = maps(SOURCE, 1), {"t": (3, 3)}
    one, other = {f"a/{layer}": value for layer, value in source.items()}, {"b/s": 100 * source["s1"]}
    pairs = [(layer, "t") for layer in [*one, *other]]
    each = source_standards([one | other], pairs, size)
    units = source_standards([one | other], pairs, size, ["a", "b"])
    mean = sum(each[layer, "t"].scale ** 2 for layer in one) / len(one)
    for pair, unit in units.items():
        assert unit.scale**2 == pytest.approx(mean if pair[0] in one else each[pair].scale ** 2)
    dead = {"x": torch.ones(4, 2, 3, 3), "y": torch.rand(4, 2, 3, 3)}
    assert set(source_standards([dead], [("x", "t"), ("y", "t")], size, [""])) == {("x", "t"), ("y", "t")}
    slashes = {layer.replace("a/", f"block{i}/"): value for i, (layer, value) in enumerate(one.items())}
    one_network = source_standards([slashes], [(layer, "t") for layer in slashes], size, [""])
    assert len({unit.scale for unit in one_network.values()}) == 1


def test_a_pair_that_hardly_counts_does_not_set_the_unit() -> None:
    """The variances are weighted by λ: with λ near 0, the loss is nearly that of the other pairs alone."""
    source, size = maps(SOURCE, 1), {"t": (3, 3)}
    loud = {"s1": source["s1"], "s2": 100 * source["s2"]}
    pairs = [(layer, "t") for layer in loud]
    each = source_standards([loud], pairs, size)
    by_hand = (1.9 * each["s1", "t"].scale ** 2 + 0.1 * each["s2", "t"].scale ** 2) / 2
    weighted = source_standards([loud], pairs, size, [""], {("s1", "t"): 1.9, ("s2", "t"): 0.1})
    assert weighted["s1", "t"].scale ** 2 == pytest.approx(by_hand)
    nearly = source_standards([loud], pairs, size, [""], {("s1", "t"): 1.0, ("s2", "t"): 1e-9})
    assert nearly["s1", "t"].scale == pytest.approx(each["s1", "t"].scale, rel=1e-3)


def test_constant_features_have_no_unit() -> None:
    """A dead source layer is named."""
    dead = {"s1": torch.ones(4, 2, 3, 3)}
    with pytest.raises(ValueError, match="source: expected maps of 's1' that differ between images, got constant ones"):
        source_standards([dead], [("s1", "t1")], {"t1": (3, 3)})


@pytest.mark.parametrize("cached", [1, 10**6], ids=["one image at a time", "all at once"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fixed_weights(layout: torch.memory_format, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that nothing learns: the same loss and gradients as with others, and both derivatives by differences."""
    monkeypatch.setattr("mtanytime.transfer.matching._CACHED", cached)
    matching, meta = built(ALL)
    source = maps(SOURCE, 1)
    target = {
        layer: value.contiguous(memory_format=layout).requires_grad_() for layer, value in maps(TARGET, 2).items()
    }
    aligned = matching.align(source, {t: (n, n) for t, (_, n) in TARGET.items()})
    learned = matching.stack(meta(source))
    fixed = {layer: value.detach() for layer, value in learned.items()}
    inputs, factor = [*target.values(), *matching.parameters()], torch.tensor([0.7, 1.9], dtype=torch.float64)
    losses = [matching.aligned_loss(target, aligned, weights) for weights in (learned, fixed)]
    assert torch.equal(*losses)
    first = torch.autograd.grad(factor @ losses[0], inputs, retain_graph=True)
    second = torch.autograd.grad(factor @ losses[1], inputs)
    torch.testing.assert_close(second, first)

    def loss(*values: torch.Tensor) -> torch.Tensor:
        state = dict(zip(dict(matching.named_parameters()), values[len(target) :], strict=True))
        features = dict(zip(target, values[: len(target)], strict=True))
        state = {f"matching.{name}": value for name, value in state.items()}
        return torch.func.functional_call(Aligned(matching), state, (features, aligned, fixed))

    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
    with torch.no_grad():
        assert torch.equal(matching.aligned_loss(target, aligned, fixed), losses[1])


class Aligned(torch.nn.Module):
    """`aligned_loss` as a module's forward."""

    def __init__(self, matching: FeatureMatching) -> None:
        super().__init__()
        self.matching = matching

    def forward(self, *inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of each image."""
        return self.matching.aligned_loss(*inputs)
