"""A run's checkpoint: write and read the file; collect, check and restore the states of networks and optimizers."""

import copy
import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from mtanytime.checks import Words, mismatch, one_line, require
from mtanytime.torch_files import load_file
from mtanytime.training.identity import is_structure

State = dict[str, Any]

_FORMAT = "mtanytime-1"
_MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq")  # of the shape of their parameter


def write_checkpoint(checkpoint: State, file: IO[bytes]) -> None:
    """Write a checkpoint to an open file; torch.save adds a checksum (CRC-32) to each of its parts."""
    torch.save(_readable({"format": _FORMAT, **checkpoint}), file)


def _readable(value: Any) -> Any:
    """A value with Python's numbers in place of numpy's, which torch.load refuses."""
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {key: _readable(part) for key, part in value.items()}
    return type(value)(map(_readable, value)) if type(value) in (list, tuple) else value


def check_readable(parts: Mapping[str, nn.Module | Optimizer]) -> None:
    """Raise ValueError unless a checkpoint can hold these states: only numbers, texts and tensors."""
    for name, part in parts.items():
        file = io.BytesIO()
        try:
            torch.save(_readable(part.state_dict()), file)
            file.seek(0)
            torch.load(file, weights_only=True)
        except Exception as error:  # pickle raises many kinds
            expected, kind = "numbers, texts and tensors, which a checkpoint can hold", type(part).__name__
            raise mismatch(name, expected, Words(f"a {kind} with others ({one_line(str(error), 200)})")) from error


def read_checkpoint(path: Path) -> State:
    """Read a checkpoint on the CPU, without executing code from it.

    ValueError for a foreign file and for a damaged one, whether truncated or with changed bits.
    """
    expected = "a checkpoint that this library wrote"
    remedy = "restore it from a copy, or remove it to start the run again"
    checkpoint = load_file(path, expected, remedy=remedy)
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != _FORMAT:
        raise mismatch(str(path), expected, Words("a foreign file"))
    return checkpoint


def check_contents(checkpoint: State, steps: int | None = None) -> None:
    """Raise ValueError, which names the entry, unless a checkpoint has what `Trainer` writes, in the right types.

    `steps` is the number of steps of its run, if known.
    """
    missing = [key for key in ("step", "seconds", "best", "scores", "modules", "optimizers") if key not in checkpoint]
    require(not missing, "checkpoint", "the entries of a run", Words(f"one without {', '.join(missing)}"))
    step, best, modules = checkpoint["step"], checkpoint["best"], checkpoint["modules"]
    fits = type(step) is int and 0 <= step <= (step if steps is None else steps)
    require(fits, "step", "a whole number from 0" + ("" if steps is None else f" to {steps}"), step)
    require(_is_number(checkpoint["seconds"]), "seconds", "a finite number", checkpoint["seconds"])
    known = best is None or (isinstance(best, dict) and {"epoch", "val_accuracy", "model"} <= best.keys())
    require(known, "best", "None or an epoch, val_accuracy and model", Words(_kind(best)))
    if best is not None:
        require(type(best["epoch"]) is int and best["epoch"] >= 1, "best epoch", "a whole number from 1", best["epoch"])
        require(_is_number(best["val_accuracy"]), "best val_accuracy", "a finite number", best["val_accuracy"])
    scores = checkpoint["scores"]
    known = scores is None or (isinstance(scores, dict) and {"accuracy", "last_accuracy"} <= scores.keys())
    require(known, "scores", "None or an accuracy and last_accuracy", Words(_kind(scores)))
    for key, value in (scores or {}).items():
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        require(all(map(_is_number, numbers)), f"scores {key}", "None, a number or one per exit", value)
    require(
        isinstance(modules, dict) and "model" in modules, "modules", "the states of networks", Words(_kind(modules))
    )
    require(isinstance(checkpoint["optimizers"], dict), "optimizers", "their states", checkpoint["optimizers"])
    if "network" in checkpoint:
        _check_description(checkpoint["network"])


def _check_description(network: Any) -> None:
    """Raise ValueError unless this is what `stored_run.describe_network` and a run's origin give."""
    require(isinstance(network, dict), "network", "its description", Words(_kind(network)))
    structure, origin = network.get("structure"), network.get("origin", {})
    require(is_structure(structure), "network structure", "its modules as JSON", structure)
    for key, kind in (("classes", str), ("image_shape", int)):
        values = network.get(key)
        fits = values is None or (isinstance(values, list) and all(type(value) is kind for value in values))
        require(fits, f"network {key}", f"None or a list of {kind.__name__}", values)
    require(isinstance(origin, dict), "network origin", "a recipe, part and settings", origin)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _kind(value: Any) -> str:
    keys = f" with {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, dict) else ""
    return f"{type(value).__name__}{keys}"


def get_states(
    modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], model: State | None = None
) -> State:
    """The states of all modules and optimizers by name, as a checkpoint keeps them.

    `model` replaces the state of the module "model" while that holds other weights (see `Trainer.load_best`).
    """
    states = {"modules": {name: module.state_dict() for name, module in modules.items()}}
    if model is not None:
        states["modules"]["model"] = model
    return states | {"optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()}}


def set_states(
    states: State, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], steps: int | None = None
) -> None:
    """Load the states of all modules and optimizers; raises if one is missing or of another shape or type.

    The rest of the checkpoint is checked as well (see `check_contents`), and the weights of the best validation epoch
    are loaded once to test them. After an error the modules are as before; the optimizers may not be.
    """
    check_contents(states, steps)
    best = states["best"]
    with unchanged_on_error(*modules.values()):
        if best is not None:
            load_state(modules["model"], best["model"])
        for name, module in modules.items():
            load_state(module, states["modules"][name])
        for name, optimizer in optimizers.items():
            _load_optimizer(optimizer, states["optimizers"][name])


def load_state(module: nn.Module, state: Any) -> None:
    """Load a module's state. Raises ValueError, TypeError or RuntimeError for another module's."""
    require(isinstance(state, dict), "state", "tensors by name", Words(_kind(state)))
    own = module.state_dict()
    for name, value in state.items():  # torch itself casts numbers of another kind
        if isinstance(value, Tensor) and isinstance(own.get(name), Tensor):
            same = (value.is_floating_point(), value.is_complex()) == (
                own[name].is_floating_point(),
                own[name].is_complex(),
            )
            require(same, str(name), str(own[name].dtype), value.dtype)
    module.load_state_dict(state)


@contextmanager
def unchanged_on_error(*modules: nn.Module) -> Iterator[None]:
    """Restore the weights and buffers of modules if the block raises."""
    before = [copy.deepcopy(module.state_dict()) for module in modules]
    try:
        yield
    except Exception:
        for module, state in zip(modules, before, strict=True):
            with suppress(RuntimeError):  # lazy layers that have got a shape
                module.load_state_dict(state)
        raise


def _load_optimizer(optimizer: Optimizer, state: State) -> None:
    if not type(optimizer).__module__.startswith("torch.optim"):  # its state may have any form
        optimizer.load_state_dict(state)
        return
    groups = [dict(group) for group in optimizer.param_groups]
    real = not any(parameter.is_complex() for group in groups for parameter in group["params"])
    for values in state["state"].values():
        for key, value in values.items():  # torch would cast complex numbers silently
            known = isinstance(value, Tensor | int | float | list | None)
            fits = known and not (isinstance(value, Tensor) and (value.is_meta or (real and value.is_complex())))
            require(fits, f"optimizer {key}", "real numbers", Words(_kind(value)))
            require(key not in _MOMENTS or value is None or isinstance(value, Tensor), key, "a tensor", value)
    optimizer.load_state_dict(state)
    for before, group in zip(groups, optimizer.param_groups, strict=True):
        for key in before.keys() & group.keys() - {"params"}:
            old = _readable(before[key])
            same = type(group[key]) is type(old) or (_is_number(group[key]) and _is_number(old))
            require(same, f"optimizer {key}", f"a {type(old).__name__}", group[key])
    for parameter, state in optimizer.state.items():
        for key, value in state.items():  # torch itself does not compare these shapes
            if isinstance(value, Tensor) and (value.ndim or key in _MOMENTS) and not _fits(value, parameter):
                raise mismatch(key, f"shape {tuple(parameter.shape)}", tuple(value.shape))


def _fits(value: Tensor, parameter: Tensor) -> bool:
    """Whether an optimizer's value has the parameter's shape, or 1 for some of its sizes, as in Adafactor."""
    sizes = zip(value.shape, parameter.shape, strict=False)
    return value.ndim == parameter.ndim and all(size in (1, whole) for size, whole in sizes)


def copied_state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's parameters and buffers."""
    state = module.state_dict().items()  # `get_extra_state` may add values that are no tensors
    return {name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in state}


@contextmanager
def weights_of(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Load other weights and buffers into a module for the duration of a block."""
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


def finite_value(loss: Float[Tensor, ""] | float, name: str, context: str) -> float:
    """The loss as a number; FloatingPointError, with the context, if it is not finite."""
    value = loss.item() if isinstance(loss, Tensor) else loss
    if not math.isfinite(value):
        raise FloatingPointError(f"{name} is {value} {context}")
    return value
