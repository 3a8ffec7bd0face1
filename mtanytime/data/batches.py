"""Batches of images that a run can resume in, from image sets and from DataLoaders, and their augmentation."""

import random
from collections.abc import Callable, Iterator
from copy import copy
from itertools import islice
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.images import LabelledImages, Task, describe_tensor
from mtanytime.data.transforms import Augment, as_augment
from mtanytime.randomness import derive_seed, generator_for, seeded

Remainder = Literal["keep", "drop"]
ALIGNMENT = 64  # bytes, of torch's tensors
OVERSHOOT = 0.3  # values this far outside [0, 1] still look like resampled images, not like normalized ones


def crop_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Return an augmentation of batches: pad with black, crop to the old size at random, flip half of the images.

    It is torchvision's RandomCrop(size, padding) and RandomHorizontalFlip per image, with random numbers from one
    generator on the CPU, so that they are the same on every device.
    """

    def augment(images: Float[Tensor, "b c h w"], generator: Generator) -> Float[Tensor, "b c h w"]:
        b, _, h, w = images.shape
        top, left = torch.randint(2 * padding + 1, (2, b, 1), generator=generator)
        rows, columns = top + torch.arange(h), left + torch.arange(w)
        if flip:
            flipped = torch.rand(b, 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = F.pad(images, [padding] * 4)
        which = torch.arange(b, device=images.device)[:, None, None]
        # Indices on both sides of the channel slice make the channels the last axis.
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return augment


class Batches:
    """The batches of every epoch: `for images, labels in batches.epoch(e)`, images float in [0, 1], labels int64.

    They have no state: the order of epoch e depends on (seed, e) alone, and the augmentation of its batch i on
    (seed, e, i), so a run can resume anywhere: `epoch(e, start=i)` continues at batch i.

    A DataLoader keeps its own batch size and order (`shuffle` and `remainder` do not apply): pass batch_size None. Its
    random numbers (its sampler's, torchvision's transforms', and what torch, numpy or Python's `random` draw globally)
    also come from (seed, e), and a sampler with `set_epoch` is told the epoch; batches before `start` are loaded and
    dropped. Workers that persist between epochs (persistent_workers) keep their random state. Every batch is checked.

    Args:
        data: an image set, in memory or in files, or a DataLoader of (images in [0, 1], labels).
        batch_size: images per batch.
        seed: of order and augmentation.
        augment: transform of each batch, such as `crop_flip()` or a torchvision transform. One with a true attribute
            `takes_margin` gets the images with what an `ImageFiles` keeps around them (see `Decoding`).
        shuffle: whether to shuffle each epoch.
        remainder: "keep" the last, smaller batch of an epoch, or "drop" it, so that all batches have one size. The
            images dropped differ from epoch to epoch. A set smaller than a batch is one batch.

    Attributes:
        needed: where several processes share a batch, the place of this one's part in a batch of a given size: the
            other images are not read, and are black. Not for a `DataLoader`. None: all images are needed.

    Raises:
        ValueError: a batch size below 1, or one for a DataLoader; no images, or a DataLoader without a length; in an
            epoch, a DataLoader's batch that is not images in [0, 1] with int64 labels.
    """

    def __init__(
        self,
        data: LabelledImages | DataLoader,
        batch_size: int | None,
        seed: int,
        augment: Augment | None = None,
        shuffle: bool = True,
        remainder: Remainder = "keep",
    ) -> None:
        if isinstance(data, DataLoader):
            own = batch_size in (None, data.batch_size)
            require(own, "batch_size", f"None, since the DataLoader has its own, {data.batch_size}", batch_size)
        else:
            require(batch_size is not None and batch_size >= 1, "batch_size", "at least 1", batch_size)
        check_data(data)
        require(remainder in get_args(Remainder), "remainder", f"one of {list(get_args(Remainder))}", remainder)
        try:
            length = len(data)
        except TypeError as error:
            got, remedy = Words("one without a length"), "give its data set a method __len__"
            raise mismatch("data", "a DataLoader that knows its number of batches", got, remedy) from error
        require(length > 0, "data", "at least one image", Words("none"))
        self.data, self.seed = data, seed
        self.batch_size = None if batch_size is None else int(batch_size)
        self.augment, self.shuffle, self.remainder = as_augment(augment), shuffle, remainder
        self.needed: Callable[[int], slice] | None = None

    def __len__(self) -> int:
        if isinstance(self.data, DataLoader):
            return len(self.data)
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + (rest > 0 and (self.remainder == "keep" or whole == 0))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
        """Iterate over the batches start, start + 1, … of an epoch, on the set's device."""
        require(0 <= start <= len(self), "start", f"0 to {len(self)}, the number of batches per epoch", start)
        if isinstance(self.data, DataLoader):
            batches = islice(self._from_loader(epoch), start, None)
        else:
            batches = self._from_set(epoch, start)
        return self._augmented(batches, epoch, start)

    def batch(self, epoch: int, position: int) -> tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]:
        """Return one batch of an epoch, without preparing those after it."""
        require(0 <= position < len(self), "position", f"0 to {len(self) - 1}, a batch of the epoch", position)
        if isinstance(self.data, DataLoader):
            return next(self.epoch(epoch, position))
        margin = getattr(self.augment, "takes_margin", False)
        images, labels = next(self.data.batches([self._indices(epoch)[position]], margin))
        return next(self._augmented(iter([(_as_floats(images), labels)]), epoch, position))

    def _augmented(self, batches: Iterator, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for i, (images, labels) in enumerate(batches, start):
            if self.augment is not None:
                seed = derive_seed(self.seed, epoch, i)
                with seeded(seed, images.device):  # for functions that do not use the generator
                    images = self.augment(images, Generator().manual_seed(seed))
            yield images, labels

    def _from_set(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        margin, indices = getattr(self.augment, "takes_margin", False), self._indices(epoch)[start:]
        if self.needed is None:
            for images, labels in self.data.batches(indices, margin):
                yield _as_floats(images), labels
            return
        rows = [self.needed(len(index)) for index in indices]
        own = self.data.batches([index[part] for index, part in zip(indices, rows, strict=True)], margin)
        for index, part, (images, _) in zip(indices, rows, own, strict=True):
            batch = torch.zeros(len(index), *images.shape[1:], device=images.device)
            batch[part] = _as_floats(images)
            yield batch, self.data.labels[index.to(images.device)]

    def _indices(self, epoch: int) -> tuple[Tensor, ...]:
        """The indices of each batch of an image set in an epoch."""
        n = len(self.data)
        order = torch.randperm(n, generator=generator_for(self.seed, epoch)) if self.shuffle else torch.arange(n)
        return order.split(self.batch_size)[: len(self)]

    def _from_loader(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        seed = derive_seed(self.seed, epoch)
        samplers = self.data.sampler, self.data.batch_sampler, getattr(self.data.batch_sampler, "sampler", None)
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        found = {id(owner): getattr(owner, "generator", None) for owner in (self.data, *samplers)}.values()
        own = [one for one in found if isinstance(one, Generator) and one is not torch.default_generator]
        before = [generator.get_state() for generator in own]
        for generator in own:
            generator.manual_seed(seed)
        try:
            yield from self._seeded_batches(seed)
        finally:
            for generator, state in zip(own, before, strict=True):
                generator.set_state(state)

    def _seeded_batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        state, batches = _seeded_states(seed), None
        while True:
            # The loader draws from the global generators at every batch, so they get the loader's state meanwhile.
            outside = _random_states()
            _set_random_states(*state)
            try:
                batches = iter(self.data) if batches is None else batches
                batch = next(batches, None)
                state = _random_states()
            finally:
                _set_random_states(*outside)
            if batch is None:
                return
            yield check_batch(batch)


def changes_size(batches: Batches) -> bool:
    """Whether the augmentation gives images of another size, for which the network is then meant."""
    if batches.augment is None:
        return False
    plain, _ = batches_of(batches.data, 1, seed=batches.seed).batch(0, 0)
    return batches.batch(0, 0)[0].shape[1:] != plain.shape[1:]


def _as_floats(images: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """The images in [0, 1].

    On the CPU in numpy's memory, at torch's alignment. The C library serves an aligned request of the size of a freed
    block from elsewhere, so that beside a DataLoader's small objects memory would grow with every batch.
    """
    if images.device.type != "cpu":
        return images.float().div_(255)
    room = np.empty(4 * images.numel() + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    floats = torch.from_numpy(room[start : start + 4 * images.numel()].view(np.float32)).view(images.shape)
    return floats.copy_(images).div_(255)


def _random_states() -> tuple[Any, ...]:
    """The states of the global generators of torch, Python and numpy."""
    return torch.get_rng_state(), random.getstate(), np.random.get_state()


def _seeded_states(seed: int) -> tuple[Any, ...]:
    numpys = np.random.RandomState(seed % 2**32).get_state()
    return Generator().manual_seed(seed).get_state(), random.Random(seed).getstate(), numpys


def _set_random_states(torch_state: Tensor, python_state: tuple[Any, ...], numpy_state: tuple[Any, ...]) -> None:
    torch.set_rng_state(torch_state)
    random.setstate(python_state)
    np.random.set_state(numpy_state)


def batches_of(data: LabelledImages | DataLoader, batch_size: int, **settings: Any) -> Batches:
    """Return `Batches` of a set in batches of `batch_size`, or of a DataLoader, which keeps its own batch size."""
    return Batches(data, None if isinstance(data, DataLoader) else batch_size, **settings)


def map_batches(loader: DataLoader, function: Callable[[Any], tuple[Tensor, Tensor]]) -> DataLoader:
    """Return a copy of a DataLoader whose batches are `function(batch)`, for batches of three parts or of dicts.

    For example `map_batches(loader, lambda batch: (batch["image"], batch["label"]))`. With worker processes that are
    started afresh (the default outside Linux) the function must be picklable, so a named one.
    """
    mapped = copy(loader)
    mapped.collate_fn = _Mapped(loader.collate_fn, function)
    mapped._iterator = None  # the persistent workers of a loader that was used already
    return mapped


class _Mapped:
    """A collate function followed by another function."""

    def __init__(self, collate: Callable[[Any], Any], function: Callable[[Any], Any]) -> None:
        self.collate, self.function = collate, function

    def __call__(self, items: Any) -> Any:
        return self.function(self.collate(items))


def check_batch(batch: Any) -> tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]:
    """Return a DataLoader's batch as float images in [0, 1] and int64 labels; ValueError, with a remedy, otherwise."""
    if not (isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
        remedy = "pick them: mtanytime.data.map_batches(loader, lambda batch: (batch[0], batch[1]))"
        if isinstance(batch, dict):
            remedy = 'pick them: mtanytime.data.map_batches(loader, lambda batch: (batch["image"], batch["label"]))'
        raise mismatch("data", "a DataLoader with batches (images, labels)", Words(_describe(batch)), remedy)
    images, labels = batch
    fits = images.is_floating_point() and images.ndim == 4 and images.shape[1] == 3
    remedy = ""
    if images.dtype == torch.uint8:
        remedy = "convert them: v2.ToDtype(torch.float32, scale=True)"
    elif images.ndim == 4 and images.shape[1] == 1:
        remedy = "repeat the grey channel: v2.Grayscale(3)"
    elif images.ndim == 4 and images.shape[3] == 3:
        remedy = "put the channels first"
    require(fits, "images", "float (batch, 3, height, width)", Words(describe_tensor(images)), remedy)
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        remedy = "leave mean and std to Normalized" if low <= high else ""  # not for nan
        if -OVERSHOOT <= low and high <= 1 + OVERSHOOT:
            remedy = "bicubic and Lanczos resampling overshoot: clamp the images to [0, 1] after it"
        elif low >= 0 and 2 < high <= 255:
            remedy = "divide them by 255"
        raise mismatch("images", "values in [0, 1]", Words(f"{low:.3g} to {high:.3g}"), remedy)
    fits = labels.dtype == torch.int64 and labels.shape == images.shape[:1]
    require(fits, "labels", f"int64 ({len(images)},)", Words(describe_tensor(labels)))
    return images.float(), labels


def check_data(data: object) -> None:
    """Raise ValueError for anything but a set of labelled images or a DataLoader."""
    remedy = "give its part train or test" if isinstance(data, Task) else ""
    right = isinstance(data, LabelledImages | DataLoader)
    require(right, "data", "an ImageSet, ImageFiles or a DataLoader", Words(type(data).__name__), remedy)


def class_names(data: LabelledImages | DataLoader) -> tuple[str, ...] | None:
    """Return the names of a set's classes, in the order of its labels; of a DataLoader, if its data set has `classes`.

    Subsets (torch.utils.data.Subset, random_split) and the parts of a ConcatDataset are looked through. Raises
    ValueError for parts with other classes than the first.
    """
    check_data(data)
    return data.classes if isinstance(data, LabelledImages) else _class_names(data.dataset)


def known_labels(data: LabelledImages | DataLoader) -> Tensor | None:
    """Return the labels of a set, in any order, or None for those of a DataLoader that can only be read with images.

    A `TensorDataset`'s are known, also in a `Subset` or `ConcatDataset`, unless a `collate_fn` may change them.
    """
    if isinstance(data, LabelledImages):
        return data.labels
    return _labels(data.dataset) if data.collate_fn is default_collate else None


def _labels(source: Any) -> Tensor | None:
    if isinstance(source, Subset):
        labels = _labels(source.dataset)
        return None if labels is None else labels[torch.as_tensor(source.indices)]
    if isinstance(source, ConcatDataset):
        parts = [_labels(part) for part in source.datasets]
        return None if any(part is None for part in parts) else torch.cat(parts)
    return source.tensors[1] if type(source) is TensorDataset and len(source.tensors) == 2 else None


def _class_names(source: Any) -> tuple[str, ...] | None:
    while not hasattr(source, "classes") and hasattr(source, "dataset"):
        source = source.dataset
    if not hasattr(source, "classes") and isinstance(source, ConcatDataset):
        named = [names for part in source.datasets if (names := _class_names(part)) is not None]
        for names in named:
            expected = f"a ConcatDataset whose parts have the same classes, as the first one's {named[0]}"
            require(names == named[0], "data", expected, names)
        return named[0] if len(named) == len(source.datasets) else None
    classes = getattr(source, "classes", None)
    return tuple(map(str, classes)) if isinstance(classes, list | tuple) else None


def _describe(batch: Any) -> str:
    if isinstance(batch, dict):
        return f"a dict of {', '.join(map(repr, batch))}"
    if isinstance(batch, tuple | list):
        return f"{len(batch)} parts ({', '.join(type(part).__name__ for part in batch)})"
    return type(batch).__name__
