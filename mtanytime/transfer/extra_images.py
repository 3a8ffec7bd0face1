"""More images to match on: strong views of the labelled images, and images without labels.

Matching and distillation need no labels, so every step can use further images beside its labelled batch. What that is
worth is in `RESULTS.md`: a few points with few labels on CIFAR-10; on the built-in digits, matching without views does
as well.
"""

from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import Batches
from mtanytime.data.files import unlabelled_folder
from mtanytime.data.images import LabelledImages
from mtanytime.data.transforms import Augment, as_augment
from mtanytime.randomness import derive_seed, generator_for
from mtanytime.training.distributed import Processes

Unlabelled = LabelledImages | DataLoader | str | PathLike[str]
Images = Float[Tensor, "_ channel height width"]
_VIEWS, _UNLABELLED = -5, -6  # purposes of derived seeds


class ExtraImages:
    """The images that join each step's labelled batch; the images of step s depend on (seed, s) alone.

    Args:
        batches: the labelled training batches.
        views: strong views of labelled images per step; "batch": as many as the batch size, or none if there are
            unlabelled images; None: none. Images are drawn from the training set with replacement, or from the step's
            own batch if the training data is a `DataLoader`.
        view_augment: makes a view, `view_augment(images, generator)`.
        unlabelled: images whose labels are not read: an image set, a DataLoader of (images, labels), or a folder.
        per_step: unlabelled images per step; a DataLoader keeps its own batch size.
        image_shape: channels, height and width of the labelled images.
        seed: of all draws.

    Raises:
        ValueError: unlabelled images of another shape, or none; `per_step` without them; a number that defaults to the
            batch size of a `DataLoader` without one.
    """

    def __init__(
        self,
        batches: Batches,
        views: int | Literal["batch"] | None,
        view_augment: Augment,
        unlabelled: Unlabelled | None,
        per_step: int | None,
        image_shape: tuple[int, int, int],
        seed: int,
    ) -> None:
        if views == "batch":
            views = None if unlabelled is not None else _batch_size(batches, "views")
        for name, count in (("views", views), ("unlabelled_per_step", per_step)):
            whole = isinstance(count, Integral) and count is not True and count >= 1
            require(count is None or whole, name, "a whole number >= 1", count)
        used = per_step is None or unlabelled is not None
        require(used, "unlabelled", "images to take unlabelled_per_step from", unlabelled)
        self.batches, self.views, self.view_augment, self.seed = batches, views, as_augment(view_augment), seed
        if views is not None:
            alone = isinstance(batches.data, LabelledImages) or Processes().count == 1
            expected = "None with a DataLoader and several processes, none of which has the whole batch"
            require(alone, "views", expected, views, "or give an image set")
            generator = generator_for(seed, _VIEWS, -1)
            shape = tuple(self.view_augment(torch.rand(2, *image_shape, generator=generator), generator).shape)
            require(shape == (2, *image_shape), "view_augment", f"views of shape {image_shape}", shape[1:])
        self.unlabelled: Batches | None = None
        if unlabelled is not None:
            data = _as_set(unlabelled, image_shape)
            own = isinstance(data, DataLoader)  # which keeps its batch size
            size = None if own else per_step or _batch_size(batches, "unlabelled_per_step")
            options = {"augment": batches.augment, "remainder": "drop"}
            self.unlabelled = Batches(data, size, derive_seed(seed, _UNLABELLED), **options)
            self._iterator, self._next_step = iter(()), -1
            shape = tuple(self.unlabelled.batch(0, 0)[0].shape[1:])
            require(shape == image_shape, "unlabelled", f"images of shape {image_shape}, as the labelled ones", shape)
            processes = Processes()
            if processes.count > 1 and views is None:  # with views, its part differs
                self.unlabelled.needed = processes.rows

    def __bool__(self) -> bool:
        return self.views is not None or self.unlabelled is not None

    def draw(self, step: int, images: Images) -> Images:
        """The extra images of a step, on the device and in the type of its labelled images."""
        parts = []
        if self.views is not None:
            parts.append(self._draw_views(step, images))
        if self.unlabelled is not None:
            parts.append(self._draw_unlabelled(step).to(images.device, images.dtype))
        return torch.cat(parts)

    def _draw_views(self, step: int, images: Images) -> Images:
        generator, data = generator_for(self.seed, _VIEWS, step), self.batches.data
        pool = data if isinstance(data, LabelledImages) else images
        index = torch.randint(len(pool), (self.views,), generator=generator)
        if isinstance(data, LabelledImages):
            chosen = data.load(index).to(images.device).to(images.dtype) / 255
        else:
            chosen = images[index.to(images.device)]
        return self.view_augment(chosen, generator)

    def _draw_unlabelled(self, step: int) -> Images:
        epoch, position = divmod(step, len(self.unlabelled))
        if step != self._next_step or position == 0:
            self._iterator = self.unlabelled.epoch(epoch, start=position)
        self._next_step = step + 1
        batch = next(self._iterator, None)
        length = Words(f"one that ends after {position}")
        require(batch is not None, "unlabelled", f"a DataLoader of {len(self.unlabelled)} batches", length)
        return batch[0]


def _batch_size(batches: Batches, setting: str) -> int:
    """The size of the labelled batches, the default of a setting."""
    size = batches.batch_size or batches.data.batch_size or getattr(batches.data.batch_sampler, "batch_size", None)
    expected = "a number of images beside a DataLoader without a batch size"
    require(isinstance(size, Integral), setting, expected, Words("none"))
    return size


def _as_set(unlabelled: Unlabelled, image_shape: tuple[int, int, int]) -> LabelledImages | DataLoader:
    if isinstance(unlabelled, LabelledImages | DataLoader):
        if not len(unlabelled):
            raise mismatch("unlabelled", "a set with images", Words("an empty one"))
        return unlabelled
    if isinstance(unlabelled, str | PathLike):
        height, width = image_shape[1:]
        square = f"square labelled images where unlabelled ones come from {Path(unlabelled)}"
        require(height == width, "data", square, Words(f"{height} × {width}"))
        return unlabelled_folder(unlabelled, height)
    raise mismatch("unlabelled", "an ImageSet, a DataLoader or a folder", Words(type(unlabelled).__name__))
