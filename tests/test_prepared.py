"""Weights cut out in advance are used only as long as they are the network's: after any change, refine agrees."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from mtanytime.anytime import SlicedResNeXt
from mtanytime.anytime.prepared import prepared


def made(seed: int = 0) -> SlicedResNeXt:
    """A small network in eval mode, with batch norms that are not in their initial state."""
    torch.manual_seed(seed)
    network = SlicedResNeXt(3, width=8, bottleneck=2, branches=4, blocks=2)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.double().eval()


def images() -> Tensor:
    """Two images."""
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double()


def check(network: SlicedResNeXt) -> None:
    """Assert that refine answers as one pass of the network as it is."""
    with torch.no_grad():
        wanted = network(images())
    for stepped, logits in zip(network.refine(images()), wanted, strict=True):
        torch.testing.assert_close(stepped, logits, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def in_place(network: SlicedResNeXt) -> None:
    """As an optimizer changes weights."""
    network.trunk.stages[1][0].conv1.weights[2].add_(1)


def by_data(network: SlicedResNeXt) -> None:
    """As `.to` changes weights."""
    weight = network.trunk.stages[0][1].conv2.weight
    weight.data = weight.data + 1


def replaced(network: SlicedResNeXt) -> None:
    """Another parameter of the same name."""
    block = network.trunk.stages[2][1]
    block.conv2.weight = nn.Parameter(block.conv2.weight.detach() + 1)


def statistics(network: SlicedResNeXt) -> None:
    """As a pass in train mode changes the statistics."""
    network.train()(images())
    network.eval()


def loaded(network: SlicedResNeXt) -> None:
    """The state of another network."""
    network.load_state_dict(made(1).state_dict())


def assigned(network: SlicedResNeXt) -> None:
    """The same, with the tensors of the other network in place of copies."""
    network.load_state_dict(made(1).state_dict(), assign=True)


def parametrized(network: SlicedResNeXt) -> None:
    """A weight that is computed from others."""
    weight_norm(network.trunk.stages[0][0].conv2)


def norm_in_train_mode(network: SlicedResNeXt) -> None:
    """One norm in train mode, whose statistics each pass changes and no pass reads."""
    network.trunk.stages[0][0].bn1.train()


CHANGES = (in_place, by_data, replaced, statistics, loaded, assigned, parametrized, norm_in_train_mode)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_noticed(change: Callable[[SlicedResNeXt], None]) -> None:
    """What was cut out before a change is not used after it."""
    network = made()
    check(network)
    before = [logits.clone() for logits in network.refine(images())]
    change(network)
    check(network)
    assert not torch.equal(torch.stack(before), torch.stack(list(network.refine(images()))))


def test_weights_are_cut_out_once() -> None:
    """Without a change, a second call uses what the first has prepared; a copy of the network has its own."""
    network = made()
    first = prepared(network.trunk)
    assert first is not None
    list(network.refine(images()))
    assert prepared(network.trunk) is first
    assert prepared(made().trunk) is not first


def test_changes_between_steps_do_not_matter() -> None:
    """A call of refine that has begun goes on with the blocks with which it began, also if they train by then."""
    network = made()
    wanted = list(network.refine(images()))
    steps = network.refine(images())
    assert torch.equal(next(steps), wanted[0])
    in_place(network)
    network.trunk.stages.train()
    assert torch.equal(next(steps), wanted[1])


def test_not_prepared() -> None:
    """Train mode, autocast and weights made in inference mode: the usual layers run, with the usual answers."""
    assert prepared(made().train().trunk) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert prepared(made().trunk) is None
    with torch.inference_mode():
        network = made()
    assert prepared(network.trunk) is None
    check(network)
