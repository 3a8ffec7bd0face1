"""Several processes for one run, by torch.distributed.

Every process makes the same batches and computes its own part of each one; losses, gradients and the moments of batch
norm are summed over the processes. N processes therefore take the same steps as one process on the full batch,
up to rounding, and all of them hold the same weights. The first process writes the log and the checkpoints. Start a
program with torchrun (`torchrun --nproc-per-node 2 program.py`), and let it call `start` before it makes a trainer.

*What is summed.* Process r has n_r of the n images and the loss L_r, a mean over them. The loss of the batch is
L = Σ_r (n_r/n)·L_r, so each process scales its loss by n_r/n, and the gradient of L is the sum of the processes'
gradients. A sum within the graph (of batch norm's moments) has the sum of the incoming gradients as its derivative,
because the loss of every process depends on it.

*Differences from one process.* Random layers (dropout, random depth) draw the same numbers in every process. A
transform that mixes the images of a batch would need images that this process has not read.

Every trainer that is created while torch.distributed's default group is initialized belongs to such a run: create it,
and call it, in all processes.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from mtanytime.checks import Words, mismatch, one_line, require
from mtanytime.data.images import LabelledImages

T = TypeVar("T")

_ON_CPU = 'CUDA_VISIBLE_DEVICES="" trains on the CPU'
_LOST = ("gloo", "nccl", "connection", "timed out", "socket")  # words of torch's errors when a process has ended


@contextmanager
def start(minutes: float = 10.0) -> Iterator["Processes"]:
    """Join the processes that torchrun started, for a block; a program that was started alone is one process.

    Where the program has initialized torch.distributed itself, its default group is used.

    Each process gets the GPU of its local rank, if there are GPUs.

    Args:
        minutes: how long to wait for another process that does not answer.

    Raises:
        ValueError: fewer GPUs than processes on this machine.
        RuntimeError: the processes do not find each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or (dist.is_available() and dist.is_initialized()):
        yield Processes()
        return
    local, backend = int(os.environ.get("LOCAL_RANK", "0")), "gloo"
    if torch.cuda.is_available():
        gpus = torch.cuda.device_count()
        require(local < gpus, "processes", f"at most {gpus} on this machine, one per GPU", local + 1, _ON_CPU)
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(minutes=minutes))
    try:
        yield Processes()
    finally:
        dist.destroy_process_group()


class Processes:
    """The processes of a run: one, or those of torch.distributed's default group.

    Attributes:
        rank: the number of this process, from 0.
        count: how many there are.
    """

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.count = dist.get_world_size() if joined else 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def part(self, values: Tensor) -> Tensor:
        """The rows of a batch that belong to this process: one block, nearly as long as those of the others.

        Raises ValueError for a batch with fewer rows than there are processes.
        """
        return values if self.count == 1 else values[self.rows(len(values))]

    def rows(self, size: int) -> slice:
        """This process's part of a batch of `size` rows, as a slice; raises as `part`."""
        remedy = 'choose another batch size, or remainder="drop"'
        require(size >= self.count, "batch", f"{self.count} images or more, one per process", size, remedy)
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def sums(self, values: Sequence[Tensor]) -> list[Tensor]:
        """The sum of each tensor over the processes, the same bits in all of them, outside the graph."""
        values = [value.detach() for value in values]
        if self.count == 1:
            return values
        results: list[Tensor] = list(values)
        for kind in dict.fromkeys((value.dtype, value.device) for value in values):  # one message for all of a kind
            chosen = [i for i, value in enumerate(values) if (value.dtype, value.device) == kind]
            message = torch.cat([values[i].reshape(-1) for i in chosen])
            dist.all_reduce(message)
            for i, flat in zip(chosen, message.split([values[i].numel() for i in chosen]), strict=True):
                results[i] = flat.view(values[i].shape)
        return results

    def sums_in_graph(self, values: Sequence[Tensor]) -> list[Tensor]:
        """As `sums`, within the graph: the derivative is the sum of the processes' incoming gradients."""
        if self.count == 1:
            return list(values)
        return [_Sum.apply(value) for value in values]

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the parameters' gradients by their sums over the processes; a missing one counts as zero.

        A parameter keeps the gradient None if it has none in any process.
        """
        if self.count > 1:
            (reached,) = self.sums([torch.tensor([float(parameter.grad is not None) for parameter in parameters])])
            reached = [parameter for parameter, n in zip(parameters, reached.tolist(), strict=True) if n]
            for parameter in reached:  # a layer that this process alone skips at random
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients = [parameter.grad for parameter in reached]
            for own, total in zip(gradients, self.sums(gradients), strict=True):
                own.copy_(total)

    def metrics(self, means: Mapping[str, float], share: float) -> dict[str, float]:
        """Means over this process's images, which are `share` of all images, as means over all images."""
        if self.count == 1:
            return dict(means)
        scaled = torch.tensor([value * share for value in means.values()], dtype=torch.float64)
        return dict(zip(means, self.sums([scaled])[0].tolist(), strict=True))

    def together(self) -> AbstractContextManager[None]:
        """A context that raises in every process if its block raises in one of them.

        The others get a RuntimeError that quotes the error.
        """
        return nullcontext() if self.count == 1 else self._together()

    @contextmanager
    def _together(self) -> Iterator[None]:
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        errors = self.gathered(None if own is None else str(own))
        if own is not None:
            raise own
        for rank, error in enumerate(errors):
            if error is not None:
                raise RuntimeError(f"process {rank} stopped: {one_line(error)}")

    def from_first(self, value: T) -> T:
        """The first process's value, in all of them. Its tensors are on the CPU."""
        if self.count == 1:
            return value
        box = [value if self.first else None]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """The value of each process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return (self.count > 1 and bool(self.sums([torch.tensor(float(flag))])[0] > 0)) or flag

    def check_same(self, record: Mapping[str, Any]) -> None:
        """Raise ValueError, in every process, unless all have the same settings, network and data."""
        shown = {name: repr(value) for name, value in record.items()}
        first, *_ = everywhere = self.gathered(shown)
        for rank, other in enumerate(everywhere):
            for name in {**first, **other}:
                if other.get(name) != first.get(name):
                    expected = f"{first.get(name)} in every process, as in process 0"
                    raise mismatch(name, expected, Words(f"{other.get(name)} in process {rank}"))

    def copy_first(self, modules: Mapping[str, nn.Module]) -> None:
        """Give every process the first one's weights and buffers."""
        if self.count > 1:
            for module in modules.values():
                for value in module.state_dict().values():
                    own = value.detach()
                    copied = own.contiguous()
                    dist.broadcast(copied, 0)
                    own.copy_(copied)

    def check_weights(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise RuntimeError if the processes' weights differ."""
        if self.count > 1:
            sums = [[str(p.detach().sum().item()) for p in module.parameters()] for module in modules.values()]
            everywhere = self.gathered(sums)
            if any(other != everywhere[0] for other in everywhere):
                raise RuntimeError(
                    "the processes' weights differ: a training step must sum its gradients over the processes; "
                    "let the trainer's `_descend` take it"
                )

    def evaluate(self, data: Any, accuracy: Callable[[Any], Any]) -> Any:
        """`accuracy(data)`, one or more means over images; each process classifies its part of an image set."""
        if self.count == 1 or not isinstance(data, LabelledImages) or len(data) < self.count:
            return accuracy(data)
        rows = range(self.rank, len(data), self.count)
        correct = torch.tensor(accuracy(data.subset(rows)), dtype=torch.float64) * len(rows)
        counts = correct.round()  # up to rounding; another measure than accuracy stays as it is
        correct = torch.where((correct - counts).abs() < 1e-6, counts, correct)
        return (self.sums([correct])[0] / len(data)).tolist()

    @contextmanager
    def losses_explained(self) -> Iterator[None]:
        """Report that another process has ended, where torch only reports a broken connection."""
        try:
            yield
        except RuntimeError as error:
            if self.count > 1 and any(word in str(error).lower() for word in _LOST):
                raise RuntimeError(
                    f"process {self.rank} of {self.count} lost another one ({one_line(str(error), 200)}); "
                    "its own message tells why; the same command continues from the last checkpoint"
                ) from error
            raise


class _Sum(torch.autograd.Function):
    """The sum over the processes, differentiable any number of times."""

    @staticmethod
    def forward(ctx: FunctionCtx, own: Tensor) -> Tensor:
        total = own.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, slope: Tensor) -> Tensor:
        return _Sum.apply(slope)
