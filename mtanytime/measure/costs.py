"""What a network costs: multiply-adds, parameters, latency."""

import sys
import time
from collections.abc import Callable, Sequence
from itertools import accumulate, chain
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from mtanytime.backbones import Normalized
from mtanytime.checks import require_wanted
from mtanytime.devices import synchronise
from mtanytime.features import unwrapped
from mtanytime.functional import functional_call, trial_run

Shape = Sequence[int]  # of one image: channels, height, width


# What a network costs.


def macs(module: nn.Module, image_shape: Shape = (3, 32, 32)) -> int:
    """Multiply-adds of one image through a module in eval mode, counted by torch's flop counter as it runs (flops / 2).

    Matrix products and convolutions alone are counted, as papers do: neither additions of a bias nor batch norm,
    activations and pooling. Modes, buffers and torch's random state are left as they were. ValueError for a shape that
    is not three numbers.
    """
    return _count(module, image_shape)[0]


def parameters(module: nn.Module) -> int:
    """How many parameters a module has, trained or not; one that is shared counts once."""
    return sum(parameter.numel() for parameter in module.parameters())


def exit_costs(network: nn.Module, image_shape: Shape = (3, 32, 32)) -> pd.DataFrame:
    """What each exit costs for one image: exit (from 1), macs, macs_own_head, params.

    macs_own_head is `macs` of exit k alone, `extract(k)`, and params its parameters. macs adds the heads of the exits
    before it: what an anytime answer costs whose earlier answers were given too. (Of all that comes before only the
    heads are added: where exits share no activations, as in an inclusive ResNeXt, giving the earlier answers costs
    their passes as well.) ValueError for a head that does not run once in a forward pass.
    """
    with trial_run(network, reference_tensor(network).device, training=False):
        alone, heads = exits_apart(network)
        earlier = [0, *accumulate(_count(network, image_shape, heads)[1])][: len(alone)]
        own = np.array([macs(part, image_shape) for part in alone])
    columns = {"macs": own + earlier, "macs_own_head": own, "params": [parameters(part) for part in alone]}
    return table_by_exit(columns)


@torch.no_grad()
def _count(module: nn.Module, image_shape: Shape, parts: Sequence[nn.Module] = ()) -> tuple[int, list[int]]:
    """Multiply-adds of one image through a module, and of these each part's; hooks, not the counter's own names, tell
    a part's, so that it may have any place in the module and one that does not run is found."""
    image, counter = random_images(module, 1, image_shape), FlopCounterMode(display=False)
    flops: dict[nn.Module, list[int]] = {part: [] for part in parts}

    def noted(sign: int) -> Callable[..., None]:
        return lambda part, *_: flops[part].append(sign * counter.get_total_flops())

    handles = [part.register_forward_pre_hook(noted(-1)) for part in flops]
    handles += [part.register_forward_hook(noted(1)) for part in flops]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # attention in one kernel hides its products from the counter
    try:
        with trial_run(module, image.device, training=False) as buffers, sdpa_kernel(SDPBackend.MATH), counter:
            functional_call(module, buffers, image)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    for k, part in enumerate(parts, 1):
        if (runs := len(flops[part]) // 2) != 1:
            raise ValueError(f"head {k} of {type(module).__name__} ran {runs} times in a forward pass; wanted once")
    return counter.get_total_flops() // 2, [sum(flops[part]) // 2 for part in parts]


def exits_apart(network: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """Every exit's stand-alone network and the heads, of a network in eval mode; one exit's is the network itself."""
    inner = unwrapped(network)
    if not hasattr(inner, "extract"):
        return [network], []
    alone = [inner.extract(k) for k in range(1, inner.exits + 1)]
    if isinstance(network, Normalized):
        alone = [network.wrap(part) for part in alone]
    return [part.eval() for part in alone], list(inner.heads)


def reference_tensor(module: nn.Module) -> Tensor:
    """A tensor of the device and type that a module computes with."""
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))


def random_images(module: nn.Module, count: int, image_shape: Shape) -> Tensor:
    """Random images of a shape, on the device and in the type that a module computes with."""
    require_wanted(
        len(image_shape) == 3 and min(image_shape) >= 1, "image_shape (channels, height, width)", image_shape
    )
    images = torch.rand(count, *image_shape, generator=torch.Generator().manual_seed(0))
    like = reference_tensor(module)
    return images.to(like.device, like.dtype)


# How long it takes.


def latency(
    module: nn.Module, images: Float[Tensor, "batch channel height width"], *, repeats: int = 30, warmup: int = 5
) -> dict[str, Any]:
    """Time a module's forward pass on a batch: latency_ms (median), spread_ms (interquartile range), batch, threads,
    device.

    In eval mode and without gradients; modes are put back. The images go to the module's device and type before; an
    accelerator is waited for. The first `warmup` passes are not counted.
    """
    like = reference_tensor(module)
    with trial_run(module, like.device, training=False):
        return _timed([module], images.to(like.device, like.dtype), repeats, warmup, progress=False)[0]


def latencies(
    network: nn.Module,
    image_shape: Shape = (3, 32, 32),
    batch_sizes: Sequence[int] = (1, 64),
    *,
    repeats: int = 20,
    warmup: int = 3,
    progress: bool = True,
) -> pd.DataFrame:
    """Time every exit's stand-alone network on random images: exit, and the columns of `latency`.

    Exits take turns, one pass each a round, so that a slow moment of the machine hits all alike.
    """
    require_wanted(len(batch_sizes) > 0 and min(batch_sizes) >= 1, "batch sizes >= 1", batch_sizes)
    rows = []
    with trial_run(network, reference_tensor(network).device, training=False):
        alone, _ = exits_apart(network)
        for batch in batch_sizes:
            found = _timed(alone, random_images(network, batch, image_shape), repeats, warmup, progress)
            rows += [{"exit": k, **row} for k, row in enumerate(found, 1)]
    return pd.DataFrame(rows)


@torch.no_grad()
def _timed(modules: list[nn.Module], images: Tensor, repeats: int, warmup: int, progress: bool) -> list[dict[str, Any]]:
    """What `latency` says of each module; all by turns on the same images."""
    require_wanted(repeats >= 1 and warmup >= 0, "repeats >= 1 and warmup >= 0", (repeats, warmup))
    times = np.empty((len(modules), warmup + repeats))
    for i in tqdm(range(warmup + repeats), f"timing batch {len(images)}", file=sys.stdout, disable=not progress):
        for j, module in enumerate(modules):
            synchronise(images.device)
            started = time.perf_counter()
            module(images)
            synchronise(images.device)
            times[j, i] = 1000 * (time.perf_counter() - started)
    lower, median, upper = np.percentile(times[:, warmup:], [25, 50, 75], axis=1)
    setting = {"batch": len(images), "threads": torch.get_num_threads(), "device": str(images.device)}
    return [
        {"latency_ms": ms, "spread_ms": spread, **setting}
        for ms, spread in zip(median.tolist(), (upper - lower).tolist(), strict=True)
    ]


def table_by_exit(columns: dict[str, Any], first: int = 1) -> pd.DataFrame:
    """A table with the column exit, counted from `first`, before the others."""
    table = pd.DataFrame({name: np.asarray(values) for name, values in columns.items()})
    table.insert(0, "exit", np.arange(first, first + len(table)))
    return table
