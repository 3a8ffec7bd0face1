"""Run a module without a trace on it: at other parameters and buffers, or as a trial.

`torch.func.functional_call` leaves a module broken whose layers are shared (used under two names): it puts such a
layer's tensors back in the wrong order. `functional_call` hands it each tensor once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def tensor_names(module: nn.Module) -> dict[str, str]:
    """Every place that holds a parameter or buffer -> the name it has in `named_parameters` or `named_buffers`."""
    names, first = {}, {}
    for path, part in module.named_modules():
        for members in (part.named_parameters, part.named_buffers):
            for local, value in members(recurse=False, remove_duplicate=False):
                place = f"{path}.{local}" if path else local
                names[place] = first.setdefault(id(value), place)
    return names


def functional_call(
    module: nn.Module, tensors: dict[str, Tensor], *inputs: Any, names: Mapping[str, str] | None = None
) -> Any:
    """`module(*inputs)` with `tensors` in place of its own parameters and buffers of those names.

    What the call writes to a buffer, in place or by assignment, is in `tensors` afterwards and not in the module.
    `names` is `tensor_names(module)`, for callers that have it.
    """
    names = tensor_names(module) if names is None else names
    places = {place: tensors[name] for place, name in names.items() if name in tensors}
    output = torch.func.functional_call(module, places, inputs, tie_weights=False)
    tensors.update({name: places[name] for name in tensors if name in places})
    return output


@contextmanager
def trial_run(module: nn.Module, device: torch.device, training: bool) -> Iterator[dict[str, Tensor]]:
    """A trial run that leaves no trace: the mode and torch's random state are put back afterwards.

    Yields copies of the buffers, to run the module on through `functional_call`.
    """
    modes = [(part, part.training) for part in module.modules()]
    devices, kind = ([], "cuda") if device.type == "cpu" else ([device], device.type)  # the CPU's is always put back
    with torch.random.fork_rng(devices, device_type=kind):
        try:
            module.train(training)
            yield {name: buffer.clone() for name, buffer in module.named_buffers()}
        finally:
            for part, mode in modes:
                part.training = mode
