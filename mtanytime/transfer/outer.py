"""Outer objectives: the loss, and the images, on which a lookahead's result is judged."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtanytime._moved import find
from mtanytime.checks import require
from mtanytime.data.batches import Batches
from mtanytime.data.images import ImageSet, LabelledImages
from mtanytime.data.transforms import Augment
from mtanytime.devices import Precision, autocast
from mtanytime.functional import functional_call, trial_run
from mtanytime.training.distributed import Processes
from mtanytime.training.identity import name_of
from mtanytime.training.trial import check_labels
from mtanytime.transfer.layers import error_context
from mtanytime.transfer.lookahead import OuterObjective


class FreshBatch:
    """The task's loss on a freshly drawn batch in place of the step's own; an `outer` of `Lookahead`.

    The paper judges the lookahead on the batch that it was fitted to (arXiv:1905.05901, Algorithm 1), so φ may be
    rewarded for overfitting that batch. A fresh batch rewards generalization. It comes from the training set, which
    costs no labels (some of its images may also be in the step's batch), or from held-out images. This deviates from
    the paper and the authors' code. The draws follow torch's random state, which a trainer seeds at each step, so runs
    are reproducible and can be resumed. Several processes share one draw.

    Args:
        data: the images to draw from, with the classes of the training set. If they include the validation images,
            split those off first, or φ is trained on them: `train, held_out = train.split(0.1, seed)`, with `held_out`
            as the trainer's `validation`.
        batch_size: images per batch; all images, if there are fewer.
        augment: as in `Trainer`, resampled for each batch.
        loss: `loss(output, labels)`, a scalar; pass the trainer's loss if that is not the default.

    Raises:
        ValueError: for an empty set, or a batch_size that is not a whole number >= 1.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int = 128,
        augment: Augment | None = None,
        loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        require(isinstance(data, LabelledImages) and len(data) > 0, "data", "an ImageSet with images", data)
        valid = isinstance(batch_size, Integral) and batch_size >= 1
        require(valid, "batch_size", "a whole number >= 1", batch_size)
        self.data, self.batch_size, self.augment, self.loss = data, batch_size, augment, loss
        # `name_of` records these in a run's config.json, under the class's first name, so that old runs continue.
        self.__qualname__ = "AnotherBatch"
        self.images, self.labels = data.images if isinstance(data, ImageSet) else data.identifying(), data.labels
        self.settings = f"augment {name_of(augment)}, loss {name_of(loss)}"

    def check_classes(self, classes: tuple[str, ...] | None, outputs: int | None) -> None:
        """Raise ValueError for other classes than the training set's, or a label without an output of the network."""
        check_labels("outer", self.labels, outputs)
        expected = f"images of the training set's classes {classes}, in that order"
        require(classes is None or classes == self.data.classes, "outer", expected, self.data.classes)

    def __call__(
        self,
        forward: Callable[[Tensor], Any],
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"],
    ) -> Float[Tensor, ""]:
        """The loss of `forward`, the network after the lookahead, on a fresh batch.

        The step's own `images` only tell the device and dtype; its `labels` are not used.
        """
        seed = int(torch.randint(2**62, ()))
        fresh, fresh_labels = Batches(self.data, self.batch_size, seed, self.augment).batch(0, 0)
        processes = Processes()
        own, own_labels = processes.part(fresh), processes.part(fresh_labels)
        loss = self.loss(forward(own.to(images.device, images.dtype)), own_labels.to(images.device))
        if processes.count == 1:
            return loss
        (total,) = processes.sums([torch.tensor(float(len(images)))])
        # The lookahead weights each process by its share of the step's images, not by that of the fresh ones.
        return loss * (len(own) / len(fresh)) / (len(images) / total.item())


def try_outer(
    outer: OuterObjective,
    target: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
    precision: Precision,
) -> None:
    """Call an outer objective on a few images, leaving the target unchanged; ValueError if it fails."""
    with (
        trial_run(target, images.device, training=True) as buffers,
        error_context(f"outer {name_of(outer)}"),
        autocast(images.device, precision),
    ):
        value = outer(lambda x: functional_call(target, buffers, x), images, labels)
    valid = isinstance(value, Tensor) and value.shape == () and value.requires_grad
    require(valid, f"outer {name_of(outer)}", "a scalar tensor that depends on the target", value)


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("transfer.outer", name)
