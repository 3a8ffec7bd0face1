"""What a checkpoint holds of a run's networks and optimisers: collect, check and restore their states."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from mtanytime.checks import mismatch

State = dict[str, Any]


def get_states(modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> State:
    """The states of all modules and optimisers by name, as a checkpoint keeps them."""
    return {
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": {name: optimizer.state_dict() for name, optimizer in optimizers.items()},
    }


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
