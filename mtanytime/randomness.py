"""torch's random state: seed a block of code, save and put back."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def get_rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """torch's random state on the CPU and on `device`."""
    backend = getattr(torch, device.type)
    own = None if device.type == "cpu" else backend.get_rng_state(*([device] if device.type == "cuda" else []))
    return torch.get_rng_state(), own


def set_rng_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put back what `get_rng_state` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        backend = getattr(torch, device.type)
        backend.set_rng_state(state[1], *([device] if device.type == "cuda" else []))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block under its own seed and give the caller's random state back afterwards."""
    before = get_rng_state(device)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        set_rng_state(before, device)
