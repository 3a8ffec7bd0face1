"""Running mean and spread of rows of numbers."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class RunningMean:
    """Mean and standard deviation of rows (batch, values), summed in float64 on the CPU.

    Its `vars()` are the constructor's arguments, for a checkpoint.
    """

    def __init__(self, count: int = 0, total: Tensor | None = None, squares: Tensor | None = None) -> None:
        self.count, self.total, self.squares = count, total, squares

    def add(self, values: Float[Tensor, "batch values"], sums: Callable[[Sequence[Tensor]], list[Tensor]]) -> None:
        """Include the rows of a batch; `sums` adds the rows of other processes (`Processes.sums`)."""
        values = values.cpu().double()
        count = torch.tensor([float(len(values))], dtype=torch.float64)
        total, squares, count = sums([values.sum(dim=0), values.square().sum(dim=0), count])
        self.count += int(count)
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares

    def take(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation per value over the rows since the last call; starts again without rows."""
        mean = self.total / self.count
        std = (self.squares / self.count - mean.square()).clamp(min=0).sqrt()
        self.count, self.total, self.squares = 0, None, None
        return mean.tolist(), std.tolist()
