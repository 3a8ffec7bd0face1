"""Outer objectives: on which images the place that the lookahead arrives at is judged."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mtanytime.datasets import Augment, ImageSet


class OtherImages:
    """The task's loss on images of their own instead of on the step's batch; for `TransferTrainer`'s `outer`.

    The paper judges the lookahead on the very batch that it was fitted to (arXiv:1905.05901, Algorithm 1), so φ may be
    paid for helping to learn that batch by heart. Here φ is paid for what carries over. Each call draws `batch_size`
    images of `data` without replacement (all of them, where there are no more), by torch's random state, which a
    trainer seeds at each step: so runs repeat and resume. `data` may be the training set itself, which costs no labels,
    or a set held back from it. A deviation from the paper; nothing like it is in the authors' code.

    Args:
        data: where the images come from; moved to the device of the step's batch at the first call.
        batch_size: images a call.
        augment: as in `Trainer`, drawn anew at each call.
        loss: of the network's output and the labels, a scalar.

    Raises:
        ValueError: for an empty set or a batch_size below 1.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int = 128,
        augment: Augment | None = None,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        if not isinstance(data, ImageSet) or not len(data) or batch_size < 1:
            raise ValueError(f"wanted an ImageSet with images and batch_size >= 1; got {data!r} and {batch_size}")
        self.images, self.labels, self.batch_size = data.images, data.labels, batch_size
        self.augment, self.loss = augment, loss

    def __call__(
        self, forward: Callable[[Tensor], Any], images: Float[Tensor, "batch channel height width"], labels: Tensor
    ) -> Float[Tensor, ""]:
        """The loss of `forward`, the network after the lookahead; of the step's own batch only device and dtype
        count."""
        self.images, self.labels = self.images.to(images.device), self.labels.to(images.device)
        generator = torch.Generator().manual_seed(torch.randint(2**62, ()).item())
        chosen = torch.randperm(len(self.labels), generator=generator)[: self.batch_size].to(images.device)
        drawn = self.images[chosen].to(images.dtype) / 255
        if self.augment is not None:
            drawn = self.augment(drawn, generator)
        return self.loss(forward(drawn), self.labels[chosen])
