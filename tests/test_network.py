"""Networks as people bring them to a run: with lazy layers, wrapped, compiled, scripted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_runs import flattened, network, state_of, trainer
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")


def lazy() -> nn.Sequential:
    """Lazy convolution, batch norm and linear layer, with an ordinary batch norm."""
    body = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(3))


def ready() -> nn.Sequential:
    """The same network, whose ordinary layers have their weights already."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lazy()


def test_lazy_layers_start_from_the_seed() -> None:
    """Same seed, same weights, whatever torch's random state is; another seed, others. Statistics are fresh ones."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = trainer(model=lazy)
        torch.manual_seed(2)
        second, other = trainer(model=lazy), trainer(model=lazy, seed=5)
    assert flattened(first.model.state_dict()) == flattened(second.model.state_dict())
    assert not torch.equal(first.model[0].weight, other.model[0].weight)
    for norm in (first.model[1], first.model[4]):
        assert torch.equal(norm.running_mean, torch.zeros(4))
        assert torch.equal(norm.running_var, torch.ones(4))
        assert norm.num_batches_tracked == 0


def test_lazy_layers_are_trained_and_resumed(tmp_path: Path) -> None:
    """Their parameters are in the optimizer, and a resumed run has the same bits; ready-made networks work, too."""
    whole = trainer(model=ready(), epochs=2)
    before = whole.model[7].weight.clone()
    whole.train()
    assert not torch.equal(before, whole.model[7].weight)
    for report in trainer(tmp_path / "run", model=ready(), epochs=2):
        if report.step == 3:
            break
    resumed = trainer(tmp_path / "run", model=ready(), epochs=2)
    resumed.train()
    assert state_of(resumed) == state_of(whole)


def test_a_lazy_layer_that_never_runs() -> None:
    """It would have no weights to train or to store."""
    model = nn.ModuleDict({"used": network(), "idle": nn.LazyLinear(3)})
    model.forward = lambda images: model["used"](images)
    with pytest.raises(ValueError, match=r"^model: expected lazy layers .*, got idle"):
        trainer(model=model)


@pytest.mark.parametrize(
    ("wrap", "match"),
    [
        (nn.DataParallel, "got DataParallel; pass the network inside, its attribute module$"),
        (
            lambda net: torch.compile(net, backend="eager"),
            r"got a network from torch.compile; call network.com",
        ),
        (torch.jit.script, "got a network of torch.jit; pass the Python network that it was made from$"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_wrapped_networks_are_told_to_unwrap(
    wrap: Callable[[nn.Module], nn.Module], match: str, tmp_path: Path
) -> None:
    """Their weights would be stored under names that the network itself does not load."""
    with pytest.raises(ValueError, match=f"^model: expected the network itself, {match}"):
        trainer(tmp_path / "run", model=wrap(network()))
    assert not (tmp_path / "run").exists()


def test_a_network_compiled_in_place() -> None:
    """`network.compile()` keeps the names: the run stores a state that the plain network loads."""
    model, plain = network(), network()
    model.compile(backend="eager")
    run, expected = trainer(model=model, epochs=1), trainer(model=plain, epochs=1)
    assert run.train().accuracy == expected.train().accuracy
    assert flattened(run.model.state_dict()) == flattened(expected.model.state_dict())
