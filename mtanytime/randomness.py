"""torch's random state: seed a block of code, save and put back."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Generator, Tensor


def get_rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """torch's random state on the CPU and on `device`."""
    own = None if device.type == "cpu" else _backend(device).get_rng_state(*_place(device))
    return torch.get_rng_state(), own


def set_rng_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Put back what `get_rng_state` gave."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        _backend(device).set_rng_state(state[1], *_place(device))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block so that it gives the same again: under its own seed, and with cuDNN's deterministic algorithms.

    The caller's random state and cuDNN's settings are put back afterwards. Only the CPU and `device` are seeded
    (`torch.manual_seed` would change every device, and costs a hundred times as much).
    """
    cudnn = torch.backends.cudnn
    state, flags = get_rng_state(device), (cudnn.benchmark, cudnn.deterministic)
    try:
        torch.default_generator.manual_seed(seed)
        if device.type != "cpu":
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                _backend(device).manual_seed(seed)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        set_rng_state(state, device)
        cudnn.benchmark, cudnn.deterministic = flags


def _backend(device: torch.device) -> Any:
    return getattr(torch, device.type)  # torch.cuda, torch.mps, …


def _place(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is only one mps


def derive_seed(seed: int, *parts: int) -> int:
    """A 63-bit seed for one purpose (an epoch, a batch) of a run: stable, and unrelated to its neighbours."""
    digest = hashlib.blake2b(repr((int(seed), *map(int, parts))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, *parts: int) -> Generator:
    """A generator under `derive_seed(seed, *parts)`."""
    return Generator().manual_seed(derive_seed(seed, *parts))
