"""What identifies a run: names and fingerprints of its functions, networks and data."""

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.data.images import Batches, ImageSet
from mtanytime.training.run_folder import Row


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of named tensors, values included."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if value.numel():
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def name_of(value: object) -> object:
    """A function's or object's name and the plain settings it holds, for the record of a run; a string is its own."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, partial):
        return f"{name_of(value.func)} {value.args} {value.keywords}"
    plain_function = inspect.isfunction(function := inspect.unwrap(value))
    held = _closure(function) if plain_function else getattr(value, "__dict__", {})
    held = {k: fingerprint({k: v}) if isinstance(v, Tensor) else v for k, v in sorted(held.items())}
    plain = {k: v for k, v in held.items() if k[0] != "_" and _is_plain(v)}
    return getattr(value, "__qualname__", type(value).__qualname__) + (f" {plain}" if plain else "")


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _closure(function: Callable[..., Any]) -> Row:
    """The variables that a function holds; without those that have no value yet."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = {}
    for name, cell in cells:
        with suppress(ValueError):  # an empty cell
            found[name] = cell.cell_contents
    return found


def describe_model(model: nn.Module) -> str:
    """The network's kind and a hash of its structure, not of its weights."""
    tensors = [(name, tuple(value.shape), value.dtype) for name, value in model.state_dict().items()]
    structure = re.sub(r" at 0x\w+", "", repr(model))  # where a module shows a function with its address
    return f"{type(model).__name__} {hashlib.sha256(f'{structure}{tensors}'.encode()).hexdigest()[:16]}"


def describe_data(data: ImageSet | DataLoader | None) -> str | None:
    """A set's name, size and a hash of its images and labels; of a DataLoader, of its first batch."""
    if isinstance(data, ImageSet):
        return f"{data.name}: {len(data)} images {fingerprint({'images': data.images, 'labels': data.labels})}"
    if data is None:
        return None
    images, labels = next(Batches(data, None, seed=0).epoch(0))  # its first batch stands for the whole
    return f"{type(data).__name__}: {len(data)} batches {fingerprint({'images': images, 'labels': labels})}"
