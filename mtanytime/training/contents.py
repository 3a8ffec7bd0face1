"""The contents of functions and objects: what they hold that can change a result, and a hash of it."""

import hashlib
import inspect
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from numbers import Number
from pathlib import PurePath
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtanytime.training.code import code_of, global_names

Parts = dict[str, Any]

_SHOWN = (str, bytes, Number, Enum, range, PurePath, torch.dtype, torch.device, torch.Size)  # whose repr says all
_DEPTH = 8  # objects deeper inside than this are named only


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A short hash of tensors by name: of their names, shapes, types and values; of other values, of their contents."""
    digest = hashlib.sha256()
    for name, value in tensors.items():
        if not isinstance(value, Tensor):  # a state from `get_extra_state`
            digest.update(f"{name}{_text(value, ())}".encode(errors="surrogatepass"))
            continue
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode(errors="surrogatepass"))
        if value.numel():
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def contents_hash(parts: Parts) -> str:
    """A short hash of named parts and of everything inside them; memory addresses do not affect it."""
    return hashlib.sha256(_text(parts, ()).encode(errors="surrogatepass")).hexdigest()[:16]


def parts_of(value: Any) -> Parts:
    """What a function or object holds that can change its results, by name; empty parts are left out.

    Of a function: the variables of its closure, the tensors, arrays, numbers and settings (mappings, dataclasses,
    namespaces) among the global variables that it reads and, if it is local, its defaults. Of a method: also its
    object. Of a module: its attributes, tensors and submodules. Of another object: its attributes, and its private ones
    if they are tensors, arrays or modules, except those that have the default of the argument of that name. Of a user's
    functions and objects, also their code (see `code.code_of`).
    """
    if isinstance(value, type):  # its name identifies it
        return {}
    if isinstance(value, partial):
        parts = {"func": value.func, "args": value.args, "keywords": value.keywords}
    elif inspect.ismethod(value):
        parts = {"self": value.__self__, "method": value.__func__}
    elif inspect.isfunction(function := inspect.unwrap(value)):
        parts = closure_of(function) | _globals_of(function)
        if "<" in function.__qualname__:  # <lambda> or <locals>: the defaults of a library's function do not change
            parts |= {"defaults": function.__defaults__, "keyword defaults": function.__kwdefaults__}
    elif isinstance(value, nn.Module):
        parts = {k: v for k, v in vars(value).items() if k[0] != "_" and k != "training"}
        parts |= dict(value.named_parameters(recurse=False)) | dict(value.named_buffers(recurse=False))
        parts |= dict(value.named_children())
    else:
        defaults = _defaults_of(type(value))
        kept = Tensor | np.ndarray | nn.Module
        parts = {k: v for k, v in _attributes_of(value).items() if k[0] != "_" or isinstance(v, kept)}
        parts = {k: v for k, v in parts.items() if not (k in defaults and v is defaults[k])}
    parts["code"] = code_of(value)
    return {k: v for k, v in parts.items() if not (v is None or (isinstance(v, list | tuple | dict) and not v))}


def closure_of(function: Callable[..., Any]) -> Parts:
    """The variables in a function's closure, without those that have no value yet."""
    variables = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # an empty cell
            variables[name] = cell.cell_contents
    return variables


def _globals_of(function: Callable[..., Any]) -> Parts:
    found = {f"global {name}": function.__globals__.get(name) for name in sorted(global_names(function.__code__))}
    settings = bool | int | float | str | tuple | list | Mapping | Enum | PurePath | Namespace | SimpleNamespace
    kinds = settings | Tensor | np.ndarray | nn.Module | torch.dtype | torch.device
    # Not of every kind: a logger or a progress bar changes from run to run.
    return {k: v for k, v in found.items() if isinstance(v, kinds) or (is_dataclass(v) and not isinstance(v, type))}


def _attributes_of(value: Any) -> Parts:
    """An object's attributes, those in slots included; of an object of C, such as an itemgetter, what rebuilds it."""
    slots = [name for kind in type(value).__mro__ for name in _names_in(getattr(kind, "__slots__", ()))]
    parts = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    if not parts and type(value).__module__ in ("operator", "_operator"):
        parts = {"arguments": value.__reduce__()[1]}
    return parts


def _names_in(slots: str | Iterable[str]) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _defaults_of(kind: type) -> Parts:
    with suppress(TypeError, ValueError):  # no signature
        parameters = inspect.signature(kind).parameters.values()
        return {p.name: p.default for p in parameters if p.default is not p.empty}
    return {}


def _text(value: Any, outer: tuple[int, ...]) -> str:
    """A value with its contents as text; `outer` has the identities of the objects around it."""
    if value is None or isinstance(value, _SHOWN):
        return repr(value)
    if isinstance(value, Tensor):
        return fingerprint({"": value})
    if isinstance(value, np.ndarray):
        values = repr(value.tolist()).encode() if value.dtype.hasobject else np.ascontiguousarray(value).tobytes()
        return f"array {value.dtype} {value.shape} {hashlib.sha256(values).hexdigest()}"
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if isinstance(value, type | ModuleType) or id(value) in outer or len(outer) >= _DEPTH:
        return name
    inside = (*outer, id(value))
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(item, inside) for item in value)}]"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(_text(item, inside) for item in value))}}}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(k, inside)}: {_text(v, inside)}' for k, v in value.items())}}}"
    return f"{name} {_text(parts_of(value), inside)}"
