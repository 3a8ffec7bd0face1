"""Run a module without changing it: with other parameters and buffers, or as a trial.

`torch.func.functional_call` damages a module that has a layer under two names: it restores that layer's tensors in the
wrong order. `functional_call` here passes each tensor once.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.randomness import get_rng_state, set_rng_state


def tensor_names(module: nn.Module) -> dict[str, str]:
    """Map each path to a parameter or buffer to its name in `named_parameters` or `named_buffers`.

    A shared tensor has several paths and one name.
    """
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
    """Compute `module(*inputs)` with `tensors` in place of the parameters and buffers of those names.

    Args:
        module: the module, which stays as it is.
        tensors: parameters and buffers by name. A buffer that the call writes, in place or by assignment, is updated
            here and not in the module.
        inputs: positional arguments of the module.
        names: `tensor_names(module)`, for callers that call often.

    Raises:
        ValueError: a name that none of the module's parameters and buffers has. Of a shared tensor's paths only the
            first is its name.
    """
    names = tensor_names(module) if names is None else names
    places = {place: tensors[name] for place, name in names.items() if name in tensors}
    unknown = tensors.keys() - names.values()
    if unknown:
        expected = f"names of parameters and buffers of {type(module).__name__}"
        raise mismatch("tensors", expected, sorted(unknown)[0])
    output = torch.func.functional_call(module, places, inputs, tie_weights=False)
    tensors.update({name: places[name] for name in tensors if name in places})
    return output


@contextmanager
def input_unchanged(images: Tensor) -> Iterator[None]:
    """Raise ValueError if a network that runs in the block writes into the images, which other networks read, too."""
    before = images._version
    yield
    same = images._version == before
    remedy = "write x = (x - mean) / std in place of x.sub_(mean).div_(std)"
    require(same, "network", "one that leaves its input as it is", Words("one that writes into it"), remedy)


@contextmanager
def trial_run(module: nn.Module, device: torch.device, training: bool) -> Iterator[dict[str, Tensor]]:
    """Try a module in train or eval mode and leave no trace: modes and torch's random state are restored.

    Yields copies of the module's buffers. Run the module through `functional_call` with them, which then takes the
    writes to batch-norm statistics and similar.
    """
    modes = [(part, part.training) for part in module.modules()]
    state = get_rng_state(device)  # not by torch's fork_rng, which fails on mps
    try:
        module.train(training)
        yield {name: buffer.clone() for name, buffer in module.named_buffers()}
    finally:
        set_rng_state(state, device)
        for part, mode in modes:
            part.training = mode
