"""Slices cut out in advance answer as the network does, and whatever cannot be cut runs as it is."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mtanytime.anytime import InclusiveResNeXt, MSDNet, SlicedResNeXt, prepare_steps
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.prepared import PreparedSlices


def made(**sizes: object) -> SlicedResNeXt:
    """A small network in eval mode, with batch norms that are not in their initial state."""
    torch.manual_seed(0)
    network = SlicedResNeXt(3, **{"width": 8, "bottleneck": 2, "branches": 4, "blocks": 2} | sizes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.double().eval()


def images(count: int = 2, size: int = 16) -> Tensor:
    """A few images."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)).double()


def check(network: AnytimeNetwork, inputs: Tensor, cut: bool = True) -> None:
    """Assert that the prepared steps give the network's logits, whether by slices that were cut out or not."""
    steps = prepare_steps(network)
    assert isinstance(steps, PreparedSlices) == cut
    with torch.no_grad():
        wanted = network(inputs)
    for stepped, logits in zip(steps.refine(inputs), wanted, strict=True):
        assert not stepped.requires_grad
        torch.testing.assert_close(stepped, logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"blocks": [1, 2]},
        {"slice_widths": [1, 5, 2], "slice_branches": [1, 2, 1]},
        {"width": 4, "branches": 1},
        {"stem": "224x224", "blocks": 1},
    ],
)
def test_steps_are_those_of_the_network(sizes: dict[str, object], count: int) -> None:
    """For every shape, for small maps, one image, several or none."""
    check(made(**sizes), images(count))
    check(made(**sizes), images(count, 32))


def test_images_that_are_kept() -> None:
    """Some images leave after an answer, or all do."""
    network = made()
    with torch.no_grad():
        wanted = network(images(3))
    steps = prepare_steps(network).refine(images(3))
    torch.testing.assert_close(next(steps), wanted[0], rtol=1e-10, atol=1e-10)
    kept = steps.send(torch.tensor([True, False, True]))
    torch.testing.assert_close(kept, wanted[1][[0, 2]], rtol=1e-10, atol=1e-10)
    assert steps.send(torch.tensor([False, False])).shape == (0, 3)
    with pytest.raises(ValueError, match=r"keep: expected torch.bool \(0,\), one per image, got torch.bool \(3,\)"):
        steps.send(torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"images: expected \(batch, 3, "):
        next(prepare_steps(network).refine(torch.rand(1, 1, 16, 16)))


def test_the_network_changes_and_its_copy_does_not() -> None:
    """Two calls at a time have nothing to do with each other, nor with the network after it was copied."""
    network = made()
    steps = prepare_steps(network)
    first, second = steps.refine(images()), steps.refine(images(1))
    wanted = [logits.clone() for logits in network.refine(images())]
    next(second)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    for logits in wanted:
        torch.testing.assert_close(next(first), logits, rtol=1e-10, atol=1e-10)
    check(network, images())


class Convolution(nn.Conv2d):
    """A kind of convolution whose batch norm cannot be folded."""


def exchanged_convolution(network: SlicedResNeXt) -> SlicedResNeXt:
    """One convolution of another kind."""
    block = network.trunk.stages[0][0]
    old = block.conv2
    block.conv2 = Convolution(old.in_channels, old.out_channels, 3, padding=1, groups=old.groups, bias=False).double()
    return network


def exchanged_norm(network: SlicedResNeXt) -> SlicedResNeXt:
    """One batch norm without statistics of its own."""
    block = network.trunk.stages[0][0]
    block.bn1 = nn.BatchNorm2d(block.bn1.num_features, track_running_stats=False).double()
    return network


def more_biases(network: SlicedResNeXt) -> SlicedResNeXt:
    """A bias where the network has none."""
    convolution = network.trunk.stages[1][0].conv3
    convolution.bias = nn.Parameter(torch.randn(sum(convolution.outputs)).double())
    return network


@pytest.mark.parametrize("change", [exchanged_convolution, exchanged_norm, more_biases])
def test_layers_of_another_kind(change: object) -> None:
    """A network in which someone has exchanged layers runs by its own layers."""
    check(change(made()), images(), cut=False)


def test_other_networks_and_types() -> None:
    """Other networks run by their own `refine`; so do types in which folded weights would lose digits."""
    check(MSDNet(3, 2, 1, 1).double().eval(), images(), cut=False)
    with pytest.raises(ValueError, match=r"network: expected one with refine, .*, got a InclusiveResNeXt"):
        prepare_steps(InclusiveResNeXt(3, 8, 2, 2, 1))
    half = copy.deepcopy(made()).bfloat16()
    steps = prepare_steps(half)
    assert not isinstance(steps, PreparedSlices)
    assert [logits.dtype for logits in steps.refine(images().bfloat16())] == [torch.bfloat16] * 4


def test_autocast() -> None:
    """Under autocast the copy's own layers run, as without preparation."""
    network = made().float()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = list(network.refine(images().float()))
        stepped = list(prepare_steps(network).refine(images().float()))
    assert [logits.dtype for logits in stepped] == [torch.bfloat16] * 4
    for logits, expected in zip(stepped, wanted, strict=True):
        torch.testing.assert_close(logits, expected, rtol=0.1, atol=0.1)
