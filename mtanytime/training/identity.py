"""What identifies a run: its settings, and names and fingerprints of its functions, networks and data."""

import hashlib
import inspect
import json
import re
from copy import copy
from dataclasses import fields
from functools import partial
from numbers import Number
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.backbones import Normalized
from mtanytime.data.batches import Batches
from mtanytime.data.images import LabelledImages
from mtanytime.training.contents import closure_of, contents_hash, fingerprint, parts_of

Row = dict[str, Any]


def record(settings: Any) -> Row:
    """A dataclass of settings as a run's record holds it: numbers and strings as they are, functions by `name_of`.

    Fields with `metadata={"identifies": False}` are left out: they change how a run is computed, not its outcome. So
    are fields with `metadata={"before": value}` at this value: runs from before they existed go on.
    """
    names = [
        field.name
        for field in fields(settings)
        if field.metadata.get("identifies", True)
        and not ("before" in field.metadata and getattr(settings, field.name) == field.metadata["before"])
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


class Described(str):
    """A description in today's form; `older` is what earlier versions recorded for the same thing."""

    older: str


def name_of(value: object) -> object:
    """The name of a function or object with the settings that it holds; strings and numbers stay as they are.

    Plain settings and tensors are shown. What else the value holds (see `parts_of`) is described by a hash, in a
    `Described` text.
    """
    if value is None or isinstance(value, str | Number):
        return value
    older, shown = _name_and_settings(value)
    hidden = {k: v for k, v in parts_of(value).items() if k not in shown}
    if not hidden:
        return older
    if isinstance(value, partial):  # whose text may not show all of its arguments
        older_name, hidden = older.partition(" ")[0], parts_of(value)
    else:
        older_name = older
    described = Described(f"{older_name} {contents_hash(hidden)}")
    described.older = older
    return described


def _name_and_settings(value: Any) -> tuple[str, set[str]]:
    """The name with plain settings and tensors, as version 0.1 recorded it, and the names of the parts it shows."""
    if isinstance(value, partial):
        plain = all(map(_is_plain, (*value.args, *value.keywords.values())))
        shown = {"args", "keywords"} if plain else set()
        name = name_of(value.func)
        shown |= set() if isinstance(name, Described) else {"func"}
        return f"{getattr(name, 'older', name)} {value.args} {value.keywords}", shown
    function = inspect.unwrap(value)
    held = closure_of(function) if inspect.isfunction(function) else getattr(value, "__dict__", {})
    held = {k: fingerprint({k: v}) if isinstance(v, Tensor) else v for k, v in sorted(held.items())}
    plain = {k: v for k, v in held.items() if k[0] != "_" and _is_plain(v)}
    return getattr(value, "__qualname__", type(value).__qualname__) + (f" {plain}" if plain else ""), set(plain)


def _is_plain(value: object) -> bool:
    return isinstance(value, bool | int | float | str) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def describe_model(model: nn.Module) -> str:
    """The network's class and a hash of its printed form and tensors, without their values.

    With another hash of how a `Normalized` resizes and normalizes, which its printed form does not show.
    """
    state = model.state_dict().items()  # `get_extra_state` may add values that are no tensors
    tensors = [(name, tuple(value.shape), value.dtype) for name, value in state if isinstance(value, Tensor)]
    structure = re.sub(r" at 0x\w+", "", repr(model))  # a module may show a function with its address
    digest = hashlib.sha256(f"{structure}{tensors}".encode(errors="surrogatepass")).hexdigest()
    description = f"{type(model).__name__} {digest[:16]}"
    if not (inputs := [_input_of(part) for part in model.modules() if isinstance(part, Normalized)]):
        return description
    described = Described(f"{description} {contents_hash({'inputs': inputs})}")
    described.older = description
    return described


def describe_frozen(network: nn.Module) -> str:
    """A hash of a frozen network's weights, and the size to which it resizes its images if it does."""
    weights = fingerprint(network.state_dict())
    sizes = [part.size for part in network.modules() if isinstance(part, Normalized) and part.size is not None]
    if not sizes:
        return weights
    described = Described(f"{weights} at {', '.join(map(str, sizes))} pixels")
    described.older = weights
    return described


def _input_of(network: Normalized) -> dict[str, Any]:
    values = {name: getattr(network, name).flatten().tolist() for name in ("mean", "std")}
    return values | {"size": network.size}


def structure_of(model: nn.Module) -> str:
    """The network's modules as JSON: path -> [class, plain settings]. Unlike `describe_model`, no printed form."""
    modules = {}
    for path, module in model.named_modules():
        settings = {k: v for k, v in vars(module).items() if k[0] != "_" and k != "training" and _is_plain(v)}
        modules[path] = [type(module).__qualname__, settings]
    return json.dumps(modules, sort_keys=True)


def is_structure(text: object) -> bool:
    """Whether a text has the form of `structure_of`."""
    try:
        modules = json.loads(text)
        return all(len(pair) == 2 and isinstance(pair[1], dict) for pair in modules.values())
    except (AttributeError, TypeError, ValueError, RecursionError):
        return False


def same_structure(one: str, other: str) -> bool:
    """Whether two results of `structure_of` have the same modules, with equal values of the settings in both.

    A setting that only one has may be one that a new version of a library added.
    """
    first, second = json.loads(one), json.loads(other)
    return first.keys() == second.keys() and all(
        kind == second[path][0] and all(second[path][1].get(k, v) == v for k, v in settings.items())
        for path, (kind, settings) in first.items()
    )


def describe_data(data: LabelledImages | DataLoader | None) -> str | None:
    """A set's name, its size and a hash of what identifies it.

    That is its images and labels; of files, their names, sizes and a sample (see `data.disk.ImageFiles`); of a
    `DataLoader`, one batch.
    """
    if isinstance(data, LabelledImages):
        return f"{data.name}: {len(data)} images {fingerprint(data.identifying())}"
    if data is None:
        return None
    fresh = copy(data)
    fresh._iterator = None  # workers that persist may have drawn random numbers already
    images, labels = next(Batches(fresh, None, seed=0).epoch(0))
    return f"{type(data).__name__}: {len(data)} batches {fingerprint({'images': images, 'labels': labels})}"
