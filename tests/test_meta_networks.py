"""What and where: initial values, ranges and switches."""

import pytest
import torch
import torch.nn.functional as F
from typechecker import unchecked

from mtanytime.transfer import MetaNetworks

PAIRS = [("s1", "t1"), ("s1", "t2"), ("s2", "t1")]
CHANNELS = {"s1": 4, "s2": 6}


def features(scale: float = 1.0) -> dict[str, torch.Tensor]:
    """Random source features by layer, for three images."""
    generator = torch.Generator().manual_seed(1)
    return {k: scale * torch.randn(3, c, 5, 5, generator=generator) for k, c in CHANNELS.items()}


def test_start() -> None:
    """f starts at zero, so all channels weigh the same; g's bias is one; the same generator gives the same weights."""
    meta = MetaNetworks(PAIRS, CHANNELS, generator=torch.Generator().manual_seed(0))
    weights = meta(features())
    for pair in PAIRS:
        assert torch.equal(weights.channels[pair], torch.full((3, CHANNELS[pair[0]]), 1 / CHANNELS[pair[0]]))
    assert all(network.bias.item() == 1 for network in meta.where)
    again = MetaNetworks(PAIRS, CHANNELS, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(meta.parameters(), again.parameters(), strict=True))


def test_even_start() -> None:
    """λ = 1 for all pairs and images at any seed, and each weight of g gets a gradient."""
    meta = MetaNetworks(PAIRS, CHANNELS, where_start="even")
    weights = meta(features())
    assert all(torch.equal(weights.pairs[pair], torch.ones(3, 1)) for pair in PAIRS)
    sum(value.sum() for value in weights.pairs.values()).backward()
    assert all((network.weight.grad != 0).all() for network in meta.where)


def test_equals_the_formula() -> None:
    """softmax(f(pool S)) and relu6(g(pool S)), per image from its own features."""
    meta = MetaNetworks(PAIRS, CHANNELS, generator=torch.Generator().manual_seed(0))
    for network in meta.what:
        torch.nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(2))
    x = features(20)
    weights = meta(x)
    for i, pair in enumerate(PAIRS):
        pooled = F.adaptive_avg_pool2d(x[pair[0]], 1).flatten(1)
        torch.testing.assert_close(weights.channels[pair], meta.what[i](pooled).softmax(dim=1))
        torch.testing.assert_close(weights.pairs[pair], meta.where[i](pooled).clamp(0, 6))
        torch.testing.assert_close(weights.channels[pair].sum(dim=1), torch.ones(3))


def test_stacked_by_target() -> None:
    """λ·w of the pairs of one target layer stand side by side, in the order of the pairs."""
    weights = MetaNetworks(PAIRS, CHANNELS)(features())
    stacked = weights.by_target()
    assert {name: tuple(value.shape) for name, value in stacked.items()} == {"t1": (3, 10), "t2": (3, 4)}
    torch.testing.assert_close(stacked["t1"][:, 4:], weights.channels["s2", "t1"] * weights.pairs["s2", "t1"])


def test_switches() -> None:
    """Off: λ = 1 and w = 1/C, with no parameters; constant: softplus(10·a), with one learned a per pair."""
    off = MetaNetworks(PAIRS, CHANNELS, what=False, where="off")
    assert not list(off.parameters())
    weights = off(features())
    assert torch.equal(weights.pairs["s1", "t2"], torch.ones(3, 1))
    assert torch.equal(weights.channels["s2", "t1"], torch.full((3, 6), 1 / 6))

    constant = MetaNetworks(PAIRS, CHANNELS, what=False, where="constant")
    assert [tuple(p.shape) for p in constant.parameters()] == [(3,)]
    torch.testing.assert_close(constant(features()).pairs["s1", "t1"], torch.full((3, 1), 2.0).log())

    relu = MetaNetworks(PAIRS, CHANNELS, where="relu")(features(1000)).pairs
    assert max(value.max() for value in relu.values()) > 6


def test_unknown_kind() -> None:
    """An unknown kind of λ is refused with the known ones."""
    with pytest.raises(ValueError, match=r"^where: expected one of relu6, relu, constant, off, got 'sigmoid'$"):
        unchecked(MetaNetworks.__init__)(MetaNetworks.__new__(MetaNetworks), PAIRS, CHANNELS, where="sigmoid")
    with pytest.raises(ValueError, match=r"^where_start: expected one of random, even, got 'zero'$"):
        unchecked(MetaNetworks.__init__)(MetaNetworks.__new__(MetaNetworks), PAIRS, CHANNELS, where_start="zero")
    with pytest.raises(ValueError, match=r"^where: expected relu6 or relu with where_start='even', got 'constant'$"):
        MetaNetworks(PAIRS, CHANNELS, where="constant", where_start="even")
