"""More images to match on: strong views of the labelled images, and images without labels.

Matching and distillation need no labels, so every step can use further images beside its labelled batch. What that is
worth is in `RESULTS.md`: a few points with few labels on CIFAR-10; on the built-in digits, matching without views does
as well.
"""

from collections.abc import Mapping
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import Batches, map_batches
from mtanytime.data.files import unlabelled_folder
from mtanytime.data.images import LabelledImages
from mtanytime.data.transforms import Augment, as_augment
from mtanytime.randomness import derive_seed, generator_for
from mtanytime.training.distributed import Processes
from mtanytime.transfer.layers import error_context

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
        unlabelled: images without labels: an image set, whose labels are not read, a folder, or a DataLoader, whose
            batches are images, tuples that begin with them or dicts in which they are the only images.
        per_step: unlabelled images per step; not for a DataLoader, which keeps its own batch size.
        image_shape: channels, height and width of the labelled images.
        seed: of all draws.

    Raises:
        ValueError: unlabelled images of another shape, or none; `per_step` without them or with a `DataLoader`; a
            number that defaults to the batch size of a `DataLoader` without one; a `view_augment` that fails.
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
        self._image_shape = image_shape
        if views is not None:
            alone = isinstance(batches.data, LabelledImages) or Processes().count == 1
            expected = "None with a DataLoader and several processes, none of which has the whole batch"
            require(alone, "views", expected, views, "or give an image set")
            _try_view_augment(self.view_augment, image_shape, generator_for(seed, _VIEWS, -1))
        self.unlabelled: Batches | None = None
        if unlabelled is not None:
            labelled = batches.data  # the augmentation, which may change the size, comes later
            data = _as_set(unlabelled, labelled.image_shape if isinstance(labelled, LabelledImages) else image_shape)
            own = isinstance(data, DataLoader)
            size = None if own else per_step or _batch_size(batches, "unlabelled_per_step")
            remedy = "leave it out: the DataLoader has a batch size of its own"
            require(not own or per_step is None, "unlabelled_per_step", "None beside a DataLoader", per_step, remedy)
            options = {"augment": batches.augment, "remainder": "drop"}
            self.unlabelled = Batches(data, size, derive_seed(seed, _UNLABELLED), **options)
            self._iterator, self._next_step = iter(()), -1
            with error_context("unlabelled"):
                first, _ = self.unlabelled.batch(0, 0)
            self._check_unlabelled(first)
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
        size = self._image_shape[1:]
        if chosen.shape[2:] != size:  # the training's augmentation changes the size
            chosen = F.interpolate(chosen, size, mode="bilinear", antialias=True).clamp(0, 1)
        return self.view_augment(chosen, generator)

    def _draw_unlabelled(self, step: int) -> Images:
        epoch, position = divmod(step, len(self.unlabelled))
        if step != self._next_step or position == 0:
            self._iterator = self.unlabelled.epoch(epoch, start=position)
        self._next_step = step + 1
        batch = next(self._iterator, None)
        length = Words(f"one that ends after {position}")
        require(batch is not None, "unlabelled", f"a DataLoader of {len(self.unlabelled)} batches", length)
        self._check_unlabelled(batch[0])
        return batch[0]

    def _check_unlabelled(self, images: Images) -> None:
        shape, expected = tuple(images.shape[1:]), f"images of shape {self._image_shape}, as the labelled ones"
        require(shape == self._image_shape, "unlabelled", expected, shape)


def _try_view_augment(augment: Augment, image_shape: tuple[int, int, int], generator: torch.Generator) -> None:
    """Raise ValueError unless an augmentation turns two images into two of the same shape."""
    expected = "a function of images and a generator that returns as many images"
    try:
        views = augment(torch.rand(2, *image_shape, generator=generator), generator)
    except Exception as error:
        raise mismatch("view_augment", expected, Words(f"one that fails: {error}")) from error
    require(isinstance(views, Tensor) and len(views) == 2, "view_augment", expected, Words("one that does not"))
    shape = tuple(views.shape[1:])
    require(shape == image_shape, "view_augment", f"views of shape {image_shape}", shape)


def _batch_size(batches: Batches, setting: str) -> int:
    """The size of the labelled batches, the default of a setting."""
    size = batches.batch_size or batches.data.batch_size or getattr(batches.data.batch_sampler, "batch_size", None)
    expected = "a number of images beside a DataLoader without a batch size"
    require(isinstance(size, Integral), setting, expected, Words("none"))
    return size


def _as_set(unlabelled: Unlabelled, image_shape: tuple[int, int, int]) -> LabelledImages | DataLoader:
    if isinstance(unlabelled, LabelledImages | DataLoader):
        loader = isinstance(unlabelled, DataLoader)
        if loader and isinstance(unlabelled.dataset, IterableDataset) and not hasattr(unlabelled.dataset, "__len__"):
            raise mismatch("unlabelled", "a DataLoader with a length", Words("one of a data set without __len__"))
        require(len(unlabelled) > 0, "unlabelled", "a set with images", Words("an empty one"))
        return map_batches(unlabelled, _with_no_labels) if loader else unlabelled
    if isinstance(unlabelled, str | PathLike):
        height, width = image_shape[1:]
        square = f"square labelled images where unlabelled ones come from {Path(unlabelled)}"
        remedy = "give an image set of that size in place of the folder"
        require(height == width, "data", square, Words(f"{height} × {width}"), remedy)
        return unlabelled_folder(unlabelled, height)
    raise mismatch("unlabelled", "an ImageSet, a DataLoader or a folder", Words(type(unlabelled).__name__))


def _with_no_labels(batch: Any) -> tuple[Tensor, Tensor]:
    """The images of a batch, alone or with anything beside them, and zeros in place of labels."""
    values = batch
    if isinstance(batch, Mapping):
        values = [value for value in batch.values() if isinstance(value, Tensor) and value.ndim == 4]
        values = values[0] if len(values) == 1 else None
    elif isinstance(batch, tuple | list):
        values = batch[0] if batch else None
    if not isinstance(values, Tensor):
        remedy = "pick the images: mtanytime.data.map_batches(loader, lambda batch: (batch[...], None))"
        expected = "images, alone or before anything else"
        raise mismatch("batches of the DataLoader", expected, Words(type(batch).__name__), remedy)
    return values, torch.zeros(len(values), dtype=torch.int64)
