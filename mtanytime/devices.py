"""The device of a computation, its floating-point precision, and waiting until a device has finished."""

import os
import platform
import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from mtanytime.checks import require

Precision = Literal["float32", "bfloat16"]


def best_device() -> torch.device:
    """The accelerator (CUDA or Apple's MPS) if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """A context with torch's bfloat16 autocast, if that is the precision; weights and optimizer states stay float32.

    Raises ValueError for another precision.
    """
    require(precision in get_args(Precision), "precision", f"one of {get_args(Precision)}", precision)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its queued work, so that a clock can be read."""
    backend = getattr(torch, device.type)  # torch.cpu (its call does nothing), torch.cuda, torch.mps, …
    backend.synchronize(*(() if device.type == "mps" else (device,)))  # there is only one mps


def processor(device: torch.device | None = None) -> str:
    """The name of a GPU, or the number of usable CPU cores and their model; default: of the GPU if there is one."""
    if torch.cuda.is_available() and (device is None or device.type == "cuda"):
        return torch.cuda.get_device_name(device)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    file = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", file.read_text()) if file.exists() else None
    return f"{cores} cores of {model.group(1).strip() if model else platform.processor() or platform.machine()}"
