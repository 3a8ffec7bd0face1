"""Random numbers that depend on a seed alone: derived seeds and generators, seeded blocks, torch's random state."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor


def get_rng_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    """torch's random state on the CPU, and on `device` if that is another one (else None)."""
    own = None if device.type in ("cpu", "meta") else _backend(device).get_rng_state(*_place(device))
    return torch.get_rng_state(), own


def set_rng_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    """Restore the state that `get_rng_state` returned."""
    torch.set_rng_state(state[0])
    if state[1] is not None:
        _backend(device).set_rng_state(state[1], *_place(device))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block reproducibly: torch, numpy and Python under a seed, and cuDNN with its deterministic algorithms.

    The caller's random states and cuDNN's settings are restored afterwards. Only the CPU and `device` are seeded;
    `torch.manual_seed` would change every device and takes a hundred times as long.
    """
    cudnn = torch.backends.cudnn
    state, flags = get_rng_state(device), (cudnn.benchmark, cudnn.deterministic)
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        if device.type not in ("cpu", "meta"):
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                _backend(device).manual_seed(seed)
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        set_rng_state(state, device)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        cudnn.benchmark, cudnn.deterministic = flags


def _backend(device: torch.device) -> Any:
    return getattr(torch, device.type)  # torch.cuda, torch.mps, …


def _place(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # there is only one mps


def derive_seed(seed: int, *parts: int) -> int:
    """A 63-bit seed for one part of a run (an epoch, a batch): always the same, and independent of other parts' seeds.

    Args:
        seed: the run's seed.
        parts: whole numbers that identify the part, such as epoch and batch; negative ones name other purposes.
    """
    digest = hashlib.blake2b(repr((int(seed), *map(int, parts))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, *parts: int) -> Generator:
    """A CPU generator with the seed `derive_seed(seed, *parts)`."""
    return Generator().manual_seed(derive_seed(seed, *parts))
