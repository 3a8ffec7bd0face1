"""Batch norm over the images of several processes."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mtanytime.training.distributed import Processes

Channels = Float[Tensor, " channel"]
Maps = Float[Tensor, "batch channel *space"]


def shared_batch_norm(processes: Processes) -> AbstractContextManager[Any]:
    """A context in which batch norms in train mode use the moments of the images of all processes.

    They are differentiable any number of times. torch's SyncBatchNorm refuses tensors on the CPU and has no second
    derivative.
    """
    return nullcontext() if processes.count == 1 else _SharedMoments(processes)


def batch_norms_are_shared() -> bool:
    """Whether the surrounding block is one of `shared_batch_norm`, of several processes."""
    return _SharedMoments.depth > 0


class _SharedMoments(TorchFunctionMode):
    """Calls batch norm with moments over all processes in place of torch's."""

    depth = 0

    def __init__(self, processes: Processes) -> None:
        super().__init__()
        self._processes = processes

    def __enter__(self) -> "_SharedMoments":
        _SharedMoments.depth += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _SharedMoments.depth -= 1
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        training = kwargs.get("training", args[5] if len(args) > 5 else False)
        if func is F.batch_norm and training:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    def _batch_norm(
        self,
        input: Maps,  # named as in F.batch_norm, which is called with keywords
        running_mean: Channels | None,
        running_var: Channels | None,
        weight: Channels | None = None,
        bias: Channels | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Maps:
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over = [axis for axis in range(x.ndim) if axis != 1]
        count, mean, variance = self._moments(x, over)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                for running, new in ((running_mean, mean), (running_var, variance * (count / max(count - 1, 1)))):
                    running.mul_(1 - momentum).add_(new.to(running.dtype), alpha=momentum)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        scale = (variance + eps).rsqrt()
        scale = scale if weight is None else scale * weight
        y = (x - mean.view(shape)) * scale.view(shape)
        return (y if bias is None else y + bias.view(shape)).to(input.dtype)

    def _moments(self, x: Maps, over: list[int]) -> tuple[float, Channels, Channels]:
        """Count, mean and variance over all processes, combined from each one's (Chan, Golub, LeVeque 1979)."""
        own = x.numel() // x.shape[1]
        variance, mean = torch.var_mean(x, over, correction=0)
        row = torch.cat([x.new_full((1,), own), mean, variance])[None]
        before, after = self._processes.rank, self._processes.count - self._processes.rank - 1
        rows = torch.cat([row.new_zeros(before, row.shape[1]), row, row.new_zeros(after, row.shape[1])])
        (table,) = self._processes.sums_in_graph([rows])
        counts = table[:, :1].detach()
        means, variances = table[:, 1:].chunk(2, dim=1)
        count = counts.sum()
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean).square())).sum(0) / count
        return float(count), mean, variance
