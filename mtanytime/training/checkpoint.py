"""A run's checkpoint: write and read the file; collect, check and restore the states of networks and optimisers."""

import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from mtanytime.checks import Words, mismatch

State = dict[str, Any]

_FORMAT = "mtanytime-1"


def write_checkpoint(checkpoint: State, file: IO[bytes]) -> None:
    """Write a checkpoint to an open file; torch.save adds a checksum (CRC-32) to each of its parts."""
    torch.save({"format": _FORMAT, **checkpoint}, file)


def read_checkpoint(path: Path) -> State:
    """Read a checkpoint on the CPU, without executing code from it.

    ValueError for a foreign file and for a damaged one, whether truncated or with changed bits: torch does not compare
    the checksums that it writes, so they are compared here.
    """
    expected = "a checkpoint that this library wrote"
    try:
        checkpoint = _verified(path)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        remedy = "restore it from a copy, or remove it to start the run again"
        raise mismatch(str(path), expected, Words(f"a truncated or foreign file ({reason})"), remedy) from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != _FORMAT:
        raise mismatch(str(path), expected, Words("a foreign file"))
    return checkpoint


def _verified(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        members, size = archive.infolist(), path.stat().st_size
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise ValueError("its parts are compressed")  # torch.save compresses nothing; these may expand without end
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of its part {damaged} is wrong: bits were changed")
    return torch.load(path, map_location="cpu", weights_only=True)


def get_states(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], model: State | None = None
) -> State:
    """The states of all modules and optimisers by name, as a checkpoint keeps them.

    `model` is the state of the module "model" where that shows other weights (see `Trainer.load_best`).
    """
    states = {"modules": {name: module.state_dict() for name, module in modules.items()}}
    if model is not None:
        states["modules"]["model"] = model
    return states | {"optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()}}


def set_states(states: State, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> None:
    """Load the states of all modules and optimisers; raises where one is missing or of another shape."""
    for name, module in modules.items():
        module.load_state_dict(states["modules"][name])
    for name, optimizer in optimizers.items():
        optimizer.load_state_dict(states["optimizers"][name])
        for parameter, state in optimizer.state.items():
            for key, value in state.items():  # torch itself does not compare these shapes
                if isinstance(value, Tensor) and value.ndim and not _fits(value, parameter):
                    raise mismatch(key, f"shape {tuple(parameter.shape)}", tuple(value.shape))


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether an optimiser's value has the parameter's shape, or 1 for some of its sizes, as in Adafactor."""
    sizes = zip(value.shape, parameter.shape, strict=False)
    return value.ndim == parameter.ndim and all(size in (1, whole) for size, whole in sizes)


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's parameters and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


@contextmanager
def weights_of(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Give a module other weights and buffers for the duration of a block."""
    own = copied_state(module)
    try:
        module.load_state_dict(state)
        yield
    finally:
        module.load_state_dict(own)


def check_finite(modules: Mapping[str, nn.Module], context: str) -> None:
    """Raise FloatingPointError, with the context, for a module with a weight that is not finite."""
    for name, module in modules.items():
        if not all(parameter.isfinite().all() for parameter in module.parameters()):
            raise FloatingPointError(f"weights of the {name} are not finite {context}")


def finite_value(loss: Float[Tensor, ""], name: str, context: str) -> float:
    """The loss as a number; FloatingPointError, with the context, if it is not finite."""
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"{name} is {value} {context}")
    return value
