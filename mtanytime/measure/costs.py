"""The cost of a network: multiply-adds, parameters, latency."""

import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import accumulate, chain, islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.backbones import Normalized
from mtanytime.checks import require
from mtanytime.features import check_network, unwrapped, without_wrappers
from mtanytime.functional import functional_call, trial_run
from mtanytime.measure.operators import counting
from mtanytime.measure.runtimes import time_in_turn

Shape = Sequence[int]  # of one image: channels, height, width


class UncountedWarning(UserWarning):
    """A count of multiply-adds that leaves out some operators, which the message names."""


def macs(module: nn.Module, image_shape: Shape = (3, 32, 32)) -> int:
    """Count the multiply-adds (MACs) of one image through a module in eval mode.

    torch's flop counter counts while the module runs; a multiply-add is two flops. As in papers, only matrix products
    and convolutions count (those inside recurrent layers and attention, too), not the addition of a bias, batch norm,
    activations or pooling. An operator that multiplies and cannot be counted is named in an `UncountedWarning`. Modes,
    buffers and torch's random state are restored.

    Raises:
        ValueError: `image_shape` is not three sizes of at least 1.
    """
    return _count(module, image_shape)[0]


def parameters(module: nn.Module) -> int:
    """Count the parameters of a module, trained or frozen; a shared parameter counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def exit_costs(network: nn.Module, image_shape: Shape = (3, 32, 32)) -> pd.DataFrame:
    """Measure the cost of each exit for one image: columns exit (from 1), macs, macs_own_head, params.

    macs_own_head is `macs` of the stand-alone network of the exit, `extract(k)`; params counts that network's
    parameters. macs adds the heads of all earlier exits: the cost of an anytime answer after the earlier answers were
    given as well. Of the earlier exits only the heads are added; where exits share no activations, as in an inclusive
    ResNeXt, each earlier answer costs a full pass of its own.

    Raises:
        ValueError: a head does not run exactly once in a forward pass, or `image_shape` is not three sizes.
    """
    with trial_run(network, device_and_dtype(network)[0], training=False):
        inner = unwrapped(network)
        heads = list(inner.heads) if has_exits(inner) else []
        networks = exit_networks(network)
        earlier = [0, *accumulate(_count(network, image_shape, heads)[1])][: len(networks)]
        own = np.array([macs(part, image_shape) for part in networks])
    columns = {"macs": own + earlier, "macs_own_head": own, "params": [parameters(part) for part in networks]}
    return exit_table(columns)


@torch.no_grad()
def _count(module: nn.Module, image_shape: Shape, heads: Sequence[nn.Module] = ()) -> tuple[int, list[int]]:
    """Multiply-adds of one image through a module, and the share of each head.

    Forward hooks measure the heads, not the counter's module names: a head may then be anywhere in the module, and one
    that does not run is noticed.
    """
    module = without_wrappers(module)
    image, flops = random_images(module, 1, image_shape), {head: [] for head in heads}
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    with trial_run(module, image.device, training=False) as buffers, counting(recurrent) as count, ExitStack() as hooks:

        def record(sign: int) -> Callable[..., None]:
            return lambda head, *_: flops[head].append(sign * count.macs)

        for head in flops:
            hooks.callback(head.register_forward_pre_hook(record(-1)).remove)
            hooks.callback(head.register_forward_hook(record(1)).remove)
        functional_call(module, buffers, image)
    if count.uncounted:
        names = ", ".join(count.uncounted)
        warnings.warn(
            f"{type(module).__name__}: the multiply-adds lack those of {names}", UncountedWarning, stacklevel=3
        )
    for k, head in enumerate(heads, 1):
        runs = len(flops[head]) // 2
        require(runs == 1, f"head {k} of {type(module).__name__}", "one run per forward pass", runs)
    return count.macs, [sum(flops[head]) for head in heads]


def exit_networks(network: nn.Module) -> list[nn.Module]:
    """Return the stand-alone network of every exit, in eval mode, each with the network's own normalization.

    A network without exits that can be extracted is its own only exit.
    """
    inner = unwrapped(network)
    if not has_exits(inner):
        return [network]
    return [normalized_as(network, inner.extract(k)).eval() for k in range(1, inner.exits + 1)]


def has_exits(network: object) -> bool:
    """Whether this has what an `AnytimeNetwork` has: exits, their heads, and `extract`."""
    return all(hasattr(network, name) for name in ("extract", "heads", "exits"))


def normalized_as(network: nn.Module, part: nn.Module) -> nn.Module:
    """A part of a network, in the network's own normalization if it has one."""
    network = without_wrappers(network)
    return network.wrap(part) if isinstance(network, Normalized) else part


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the floating-point type that a module computes with. Raises ValueError for no module."""
    check_network(module)
    tensors = chain(module.parameters(), module.buffers())
    like = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    return like.device, like.dtype


def random_images(module: nn.Module, count: int, image_shape: Shape) -> Float[Tensor, "batch channel height width"]:
    """Return random images in [0, 1], always the same, on the device and in the type of a module."""
    expected = "three sizes >= 1: channels, height, width"
    require(len(image_shape) == 3 and min(image_shape) >= 1, "image_shape", expected, image_shape)
    images = torch.rand(count, *image_shape, generator=torch.Generator().manual_seed(0))
    return images.to(*device_and_dtype(module))


def latency(
    module: nn.Module, images: Float[Tensor, "batch channel height width"], *, repeats: int = 30, warmup: int = 5
) -> dict[str, Any]:
    """Time the forward pass of a module on a batch, in eval mode and without gradients.

    The images are moved to the module's device and type before the clock starts; an accelerator is waited for.

    Args:
        module: the network to time; its mode is restored.
        images: the batch.
        repeats: timed passes.
        warmup: passes before them that are not counted.

    Returns:
        latency_ms (median), spread_ms (interquartile range), batch, threads, device.

    Raises:
        ValueError: `repeats` is below 1 or `warmup` below 0.
    """
    device, dtype = device_and_dtype(module)
    with trial_run(module, device, training=False):
        return _time([module], images.to(device, dtype), repeats, warmup, progress=False)[0]


def latencies(
    network: nn.Module,
    image_shape: Shape = (3, 32, 32),
    batch_sizes: Sequence[int] = (1, 64),
    *,
    repeats: int = 20,
    warmup: int = 3,
    progress: bool = True,
    step_up: bool = False,
) -> pd.DataFrame:
    """Time the stand-alone network of every exit on random images: columns exit and the keys of `latency`.

    Each round times every exit once, so that a slow moment of the machine affects all exits equally.

    Args:
        network: as `exit_networks`.
        image_shape: channels, height and width.
        batch_sizes: images per batch.
        repeats, warmup: see `latency`.
        progress: show a progress bar per batch size.
        step_up: in the same rounds, also time all answers up to each exit by the network's `refine`. A column answer
            then says "alone" or "step-up".

    Raises:
        ValueError: as `latency`; there is no batch size, or one below 1; `step_up` for a network without `refine`.
    """
    require(len(batch_sizes) > 0 and min(batch_sizes) >= 1, "batch_sizes", "one or more sizes >= 1", batch_sizes)
    inner = unwrapped(network)
    possible = not step_up or hasattr(inner, "refine")
    require(possible, "step_up", "False for a network without refine", step_up)
    normalize = normalized_as(network, nn.Identity())
    rows = []
    with trial_run(network, device_and_dtype(network)[0], training=False):
        calls: list[Callable[[Tensor], Any]] = list(exit_networks(network))
        names = [{"exit": k} for k in range(1, len(calls) + 1)]
        if step_up:
            calls += [lambda images, k=name["exit"]: list(islice(inner.refine(normalize(images)), k)) for name in names]
            names = [{**name, "answer": answer} for answer in ("alone", "step-up") for name in names]
        for batch in batch_sizes:
            times = _time(calls, random_images(network, batch, image_shape), repeats, warmup, progress)
            rows += [{**name, **row} for name, row in zip(names, times, strict=True)]
    return pd.DataFrame(rows)


@torch.no_grad()
def _time(
    modules: Sequence[Callable[[Tensor], Any]], images: Tensor, repeats: int, warmup: int, progress: bool
) -> list[dict[str, Any]]:
    """Time several modules on the same images in turns; one result of `latency` per module."""
    calls = [partial(module, images) for module in modules]
    times = time_in_turn(calls, repeats, warmup, progress and f"timing batch {len(images)}", images.device)
    lower, median, upper = np.percentile(times, [25, 50, 75], axis=1)
    setting = {"batch": len(images), "threads": torch.get_num_threads(), "device": str(images.device)}
    return [
        {"latency_ms": ms, "spread_ms": spread, **setting}
        for ms, spread in zip(median.tolist(), (upper - lower).tolist(), strict=True)
    ]


def exit_table(columns: dict[str, Any], first: int = 1) -> pd.DataFrame:
    """Return a table of these columns, one row per exit, after a column exit that counts from `first`."""
    table = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})
    table.insert(0, "exit", np.arange(first, first + len(table)))
    return table
