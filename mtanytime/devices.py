"""What a run computes on and in: the device, its precision, and waiting for it."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

Precision = Literal["float32", "bfloat16"]


def best_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """bfloat16 autocast where asked for; weights and optimiser states stay float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what was asked of it; before a clock is read."""
    backend = getattr(torch, device.type)  # torch.cpu, whose call does nothing, torch.cuda, torch.mps, …
    backend.synchronize(*(() if device.type == "mps" else (device,)))  # there is only one mps
