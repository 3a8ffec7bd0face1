"""Find the logits in a network's output: a tensor, or one part of a tuple, a dict or an object."""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mtanytime.checks import Words, mismatch, require

Pick = Callable[[Any], Any]  # from a network's output to its logits, or to the list of its exits' logits
_NAMES = ("logits", "out")
_REMEDY = "say where they are: logits=lambda output: …"


def find_logits(output: Any, classes: int | None = None, pick: Pick | None = None) -> Float[Tensor, "batch classes"]:
    """The logits in an output.

    They are the first of these that exists:

    * what `pick` returns, if it is given
    * the output itself, if it is a float tensor (batch, columns)
    * its attribute or key `logits` or `out`
    * its first float tensor (batch, columns) with one column per class; if the number of classes is unknown, its only
      such tensor

    The output may be a tuple, a dict, a dataclass or another object. Raises ValueError, with the remedy, if it holds
    none of these, and for a list of several logits: an anytime network's exits.
    """
    if pick is not None:
        logits = pick(output)
        expected = "a function of the network's output that returns logits (batch, classes)"
        require(_is_matrix(logits), "logits", expected, Words(describe_output(logits)))
        return logits
    if _is_matrix(output):
        return output
    for part in map(_named(output).get, _NAMES):
        if _is_matrix(part):
            return part
    parts = [part for part in _parts(output) if _is_matrix(part)]
    are_exits = type(output) is list and len(parts) > 1
    fitting = [part for part in parts if classes in (None, part.shape[1])]
    if fitting and not are_exits and (classes is not None or len(parts) == 1):
        return fitting[0]
    raise mismatch("model", "an output that holds logits (batch, classes)", Words(describe_output(output)), _REMEDY)


def find_exits(output: Any, classes: int | None = None, pick: Pick | None = None) -> list[Tensor]:
    """The logits of every exit, thin to wide; a single one for an output that `find_logits` reads.

    Several exits are a list of tensors (batch, classes), or a plain tuple of such tensors of one shape, so logits in a
    tuple with an embedding are one exit. They may be what `pick` returns, the output itself, or its attribute or key
    `logits` or `out`.
    Raises ValueError as `find_logits`.
    """
    candidates = [output, *map(_named(output).get, _NAMES)] if pick is None else [pick(output)]
    for candidate in candidates:
        listed = type(candidate) in (list, tuple) and candidate and all(_is_matrix(part) for part in candidate)
        if listed and (type(candidate) is list or len({part.shape for part in candidate}) == 1):
            return list(candidate)
    return [find_logits(output, classes, pick)]


def describe_output(output: Any) -> str:
    """The type of an output and, for tensors, the shapes."""
    if isinstance(output, Tensor):
        return f"a tensor {tuple(output.shape)}"
    shapes = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in _parts(output)]
    return type(output).__name__ + (f" of {', '.join(map(str, shapes))}" if shapes else "")


def _is_matrix(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point()


def _named(output: Any) -> Mapping[str, Any]:
    if isinstance(output, Mapping):
        return output
    return {name: getattr(output, name) for name in _NAMES if hasattr(output, name)}


def _parts(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    if isinstance(output, tuple | list):
        return list(output)
    if is_dataclass(output):
        return [getattr(output, field.name) for field in fields(output)]
    return list(getattr(output, "__dict__", {}).values())
