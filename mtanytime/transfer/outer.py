"""Outer objectives: on which images the place that the lookahead arrives at is judged."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mtanytime._moved import find
from mtanytime.checks import require_wanted
from mtanytime.data.images import Augment, Batches, ImageSet
from mtanytime.training.identity import name_of


class FreshBatch:
    """The task's loss on a batch drawn anew instead of on the step's own; for `TransferTrainer`'s `outer`.

    The paper judges the lookahead on the very batch that it was fitted to (arXiv:1905.05901, Algorithm 1), so φ may be
    paid for helping to learn that batch by heart. Another batch pays more for what carries over: of the training set,
    which costs no labels (some of its images may be in the step's batch, too), or of images held back from it. A
    deviation from the paper; nothing like it is in the authors' code. Draws follow torch's random state, which a
    trainer seeds at each step, so runs repeat and resume.

    Args:
        data: where the batch comes from, with the labels of the training set. Split what validates off it before:
            `train, held = train.split(0.1, seed)`, and pass `held` as the trainer's `validation`; or φ sees it.
        batch_size: images a batch; all of them, where there are no more.
        augment: as in `Trainer`, drawn anew for each batch.
        loss: of the network's output and the labels, a scalar; the trainer's, if that has another.

    Raises:
        ValueError: for an empty set, or a batch_size that is no whole number of 1 or more.
    """

    def __init__(
        self,
        data: ImageSet,
        batch_size: int = 128,
        augment: Augment | None = None,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        require_wanted(isinstance(data, ImageSet) and len(data) > 0, "an ImageSet with images", data)
        require_wanted(
            isinstance(batch_size, Integral) and batch_size >= 1, "batch_size a whole number >= 1", batch_size
        )
        self.data, self.batch_size, self.augment, self.loss = data, batch_size, augment, loss
        # What the record of a run tells of this objective: see training.name_of.
        self.images, self.labels = data.images, data.labels
        self.settings = f"augment {name_of(augment)}, loss {name_of(loss)}"

    def __call__(
        self,
        forward: Callable[[Tensor], Any],
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The loss of `forward`, the network after the lookahead; of the step's batch only device and dtype count."""
        seed = int(torch.randint(2**62, ()))
        drawn, its_labels = next(Batches(self.data, self.batch_size, seed, self.augment).epoch(0))
        return self.loss(forward(drawn.to(images.device, images.dtype)), its_labels.to(images.device))


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("transfer.outer", name)
