"""What identifies a run: its settings, and names and fingerprints of its functions, networks and data."""

import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import partial
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.data.batches import Batches
from mtanytime.data.images import ImageSet
from mtanytime.training.run_folder import Row


def record(settings: Any) -> Row:
    """A dataclass of settings as a run's record holds it: numbers and strings as they are, functions by `name_of`.

    Fields with `metadata={"identifies": False}` are left out: they change how a run is computed, not its outcome. So
    are fields with `metadata={"record_default": False}` at their default: runs from before they existed go on.
    """
    names = [
        field.name
        for field in fields(settings)
        if field.metadata.get("identifies", True)
        and (field.metadata.get("record_default", True) or getattr(settings, field.name) != field.default)
    ]
    return {name: name_of(getattr(settings, name)) for name in names}


def run_record(trainer: Any) -> Row:
    """What identifies a trainer's run: the trainer's class, its settings, and descriptions of its network and data."""
    return {
        "trainer": type(trainer).__name__,
        **record(trainer.settings),
        "batch_size": trainer.batches.batch_size,  # a DataLoader keeps its own
        "model": describe_model(trainer.model),
        "train": describe_data(trainer.batches.data),
        "validation": describe_data(trainer.validation),
        "test": describe_data(trainer.test),
    }


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of tensors by name: of their names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        if value.numel():
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def name_of(value: object) -> object:
    """The name of a function or object with the plain settings that it holds; strings and numbers stay as they are."""
    if value is None or isinstance(value, str | Number):
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
    """The variables in a function's closure, without those that have no value yet."""
    variables = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            variables[name] = cell.cell_contents
    return variables


def describe_model(model: nn.Module) -> str:
    """The network's class and a hash of its structure, without its weights."""
    tensors = [(name, tuple(value.shape), value.dtype) for name, value in model.state_dict().items()]
    structure = re.sub(r" at 0x\w+", "", repr(model))  # a module may show a function with its address
    return f"{type(model).__name__} {hashlib.sha256(f'{structure}{tensors}'.encode()).hexdigest()[:16]}"


def describe_data(data: ImageSet | DataLoader | None) -> str | None:
    """A set's name, size and a hash of its images and labels; of a `DataLoader`, the hash is that of one batch."""
    if isinstance(data, ImageSet):
        return f"{data.name}: {len(data)} images {fingerprint({'images': data.images, 'labels': data.labels})}"
    if data is None:
        return None
    images, labels = next(Batches(data, None, seed=0).epoch(0))
    return f"{type(data).__name__}: {len(data)} batches {fingerprint({'images': images, 'labels': labels})}"
