"""Running a module with other tensors leaves it as it was, also where layers and tensors are shared."""

import pytest
import torch
from torch import Tensor, nn

from mtanytime.functional import functional_call, tensor_names, trial_run


class Shared(nn.Module):
    """One layer under two names, one weight in two layers, a buffer written in place and one assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.again = self.first
        self.tied = nn.Linear(2, 2)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Use every layer once."""
        self.calls = self.calls + 1
        return self.norm(self.tied(self.again(self.first(x))))


def test_functional_call_equals_a_module_with_those_tensors() -> None:
    """Every path to a shared tensor gets the new one, and the module has its own tensors again afterwards."""
    generator = torch.Generator().manual_seed(0)
    module, other = Shared(), Shared()
    x = torch.randn(4, 2, generator=generator)
    before = {name: (value, value.clone()) for name, value in module.state_dict(keep_vars=True).items()}
    tensors = {name: torch.randn(p.shape, generator=generator) for name, p in module.named_parameters()}
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(tensors[name])
    tensors |= {name: value.clone() for name, value in module.named_buffers()}
    torch.testing.assert_close(functional_call(module, tensors, x), other(x))
    assert tensors["calls"] == 1
    torch.testing.assert_close(tensors["norm.running_mean"], other.norm.running_mean)
    for name, value in module.state_dict(keep_vars=True).items():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert module.again is module.first
    assert module.tied.weight is module.first.weight


@pytest.mark.parametrize("name", ["tied.bais", "tied.weight"])
def test_functional_call_refuses_unknown_names(name: str) -> None:
    """A misspelt name, or the second path of a shared tensor, would leave the module's own tensor in place."""
    with pytest.raises(ValueError, match=f"tensors: expected names of parameters and buffers of Shared, got '{name}'"):
        functional_call(Shared(), {name: torch.zeros(2)}, torch.zeros(4, 2))


def test_tensor_names_cover_every_place() -> None:
    """A tied weight is found under both of its paths, a shared layer under its first."""
    names = tensor_names(Shared())
    assert names["tied.weight"] == "first.weight"
    assert names["tied.bias"] == "tied.bias"
    assert not any(place.startswith("again.") for place in names)


def test_a_trial_run_leaves_no_trace() -> None:
    """A trial run in train mode changes neither modes, buffers nor torch's random state."""
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).eval()
    module[1].train()
    state, buffers = torch.get_rng_state(), {name: value.clone() for name, value in module.named_buffers()}
    with trial_run(module, torch.device("cpu"), training=True) as copies:
        functional_call(module, copies, torch.randn(4, 2))
        assert module.training
    assert [part.training for part in module] == [False, True, False]
    assert not module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[name]) for name, value in module.named_buffers())
