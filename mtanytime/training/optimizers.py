"""The optimizer of a run: torch's SGD by default, or any that a function makes from the parameters."""

import inspect
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from mtanytime.checks import Words, mismatch, require
from mtanytime.training.schedule import Schedule, learning_rates
from mtanytime.training.settings import TrainerSettings


def make_optimizer(settings: TrainerSettings, network: nn.Module) -> Optimizer:
    """SGD with the settings' values, or what `settings.optimizer` makes, over all parameters that require grad.

    If `settings.lr` is given as well, it replaces the learning rate of all parameter groups.

    Raises ValueError for a function that returns no optimizer, leaves parameters out, or returns one whose step needs
    a closure, and for `lr` together with groups of several learning rates.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    if settings.optimizer is None:
        return torch.optim.SGD(parameters, **settings.sgd)
    expected = "a function of the parameters that returns a torch optimizer"
    try:
        optimizer = settings.optimizer(parameters)
    except Exception as error:
        raise mismatch("optimizer", expected, Words(f"one that fails: {error}")) from error
    require(isinstance(optimizer, Optimizer), "optimizer", expected, optimizer)
    name = type(optimizer).__name__
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    missing = sum(id(parameter) not in own for parameter in parameters)
    remedy = "pass on the parameters that the function gets; those that shall stay need requires_grad=False"
    got = Words(f"{name} without {missing} of {len(parameters)}")
    require(missing == 0, "optimizer", "one with every parameter that requires grad", got, remedy)
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    needed = closure is not None and closure.default is inspect.Parameter.empty
    require(not needed, "optimizer", "one whose step needs no closure", name)
    for group in optimizer.param_groups:
        group["lr"] = float(group["lr"])  # `set_rates` sets numbers
    if settings.lr is not None:
        rates = {group["lr"] for group in optimizer.param_groups}
        require(
            len(rates) == 1, "lr", f"no lr beside an optimizer with the learning rates {sorted(rates)}", settings.lr
        )
        for group in optimizer.param_groups:
            group["lr"] = settings.lr
    return optimizer


def group_rates(optimizer: Optimizer, schedule: Schedule, steps: int, steps_per_epoch: int) -> list[list[float]]:
    """The learning rate of each step for each parameter group: its present one times the schedule's factor."""
    return [learning_rates(group["lr"], schedule, steps, steps_per_epoch) for group in optimizer.param_groups]


def set_rates(optimizer: Optimizer, rates: Sequence[float]) -> None:
    """Set the learning rate of each parameter group."""
    for group, lr in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = lr
