"""Random numbers: a seeded block repeats itself and leaves the caller's state alone."""

from contextlib import suppress

import pytest
import torch

from mtanytime.randomness import get_rng_state, seeded, set_rng_state

DEVICES = [torch.device("cpu")]
if torch.cuda.is_available():
    DEVICES.append(torch.device("cuda"))
if torch.backends.mps.is_available():
    DEVICES.append(torch.device("mps"))
on_each_device = pytest.mark.parametrize("device", DEVICES, ids=str)


@on_each_device
def test_same_seed_same_numbers(device: torch.device) -> None:
    """A block repeats its numbers from the seed alone, on every device; another seed gives others."""
    drawn = []
    for seed in (3, 3, 4):
        torch.rand(5, device=device)
        with seeded(seed, device):
            drawn.append((torch.rand(5), torch.rand(5, device=device)))
    for i in range(2):
        assert torch.equal(drawn[0][i], drawn[1][i])
        assert not torch.equal(drawn[0][i], drawn[2][i])


@on_each_device
def test_the_callers_state_is_untouched(device: torch.device) -> None:
    """The caller's own random numbers continue as if the block had not run, also after an error."""
    before = get_rng_state(device)
    expected = torch.rand(5), torch.rand(5, device=device)
    set_rng_state(before, device)
    with suppress(KeyError), seeded(0, device):
        torch.rand(7, device=device)
        raise KeyError
    assert torch.equal(torch.rand(5), expected[0])
    assert torch.equal(torch.rand(5, device=device), expected[1])


def test_other_devices_are_not_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training on the CPU must not change the accelerator's random state, which nobody would restore."""
    called = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", called.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", called.append)
    with seeded(0, torch.device("cpu")):
        pass
    assert called == []


def test_a_device_without_numbers() -> None:
    """The meta device has no random state: a network there can be counted."""
    with seeded(0, torch.device("meta")):
        first = torch.rand(1)
    with seeded(0, torch.device("meta")):
        assert torch.equal(torch.rand(1), first)


def test_as_torchs_own_seed() -> None:
    """A seeded block draws what torch draws after `manual_seed`, so results can be repeated without this library."""
    with seeded(5, torch.device("cpu")):
        ours = torch.rand(3)
    with torch.random.fork_rng([]):
        torch.manual_seed(5)
        assert torch.equal(torch.rand(3), ours)


def test_cudnn_always_chooses_the_same_algorithms() -> None:
    """cuDNN's search for the fastest algorithm would change the last bits; the caller's settings are restored."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    try:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = True, False, False
        with seeded(0, torch.device("cpu")):
            assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (False, True, False)
        assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (True, False, False)
    finally:
        cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
