"""Labelled images: what every set of them does, sets in memory, and tasks.

Images are uint8 tensors; `Batches` converts them to floats in [0, 1], and each network normalizes its own input.
All randomness comes from a seed through an explicit torch.Generator: the same seed gives the same bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64, Integer, Shaped, UInt8
from torch import Generator, Tensor

from mtanytime.checks import Words, mismatch, require
from mtanytime.randomness import generator_for

Tree = dict[str, Any]  # name -> ... -> list of class names


def leaves(tree: Tree | list[str]) -> list[str]:
    """List the class names of a label tree, left to right."""
    return list(tree) if isinstance(tree, list | tuple) else [leaf for child in tree.values() for leaf in leaves(child)]


class LabelledImages(ABC):
    """A set of labelled images of one size, in memory (`ImageSet`) or in files (`data.disk.ImageFiles`).

    Attributes:
        labels: the index of each image's class, on the set's device.
        classes: the names of the classes. A class may be empty in a subset; `few` and `split` then refuse it by name.
        tree: a label tree that holds every class once, or None.
        name: what messages and records call the set.
    """

    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    tree: Tree | None
    name: str

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where images and labels are handed out."""

    @abstractmethod
    def load(self, indices: Int64[Tensor, " k"]) -> UInt8[Tensor, "k channels height width"]:
        """Return the images at `indices`, in that order, on the set's device."""

    @abstractmethod
    def batches(
        self, indices: Sequence[Int64[Tensor, " _"]], margin: bool = False
    ) -> Iterator[tuple[UInt8[Tensor, "_ channels height width"], Int64[Tensor, " _"]]]:
        """Iterate over batches of images and labels, given the indices of each batch.

        With `margin`, the images come with what the set keeps around them, if it keeps anything.
        """

    @abstractmethod
    def identifying(self) -> dict[str, Tensor]:
        """Return tensors by name that tell this set from others, for the record of a run."""

    @abstractmethod
    def to(self, device: torch.device | str) -> "LabelledImages":
        """Return the set on a device."""

    @abstractmethod
    def _select(self, index: Int64[Tensor, " k"]) -> "LabelledImages":
        """The set with the images at valid indices."""

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape, kind = "x".join(map(str, self.image_shape)), type(self).__name__
        return f"{kind}({self.name}: {len(self)} images {shape}, {len(self.classes)} classes, {self.device})"

    def subset(self, indices: Integer[Tensor, " k"] | Sequence[int]) -> "LabelledImages":
        """Select the images at `indices`, in that order. Raises ValueError for an index out of range, or a mask."""
        index = torch.as_tensor(indices, device=self.labels.device)
        if index.numel() == 0:
            index = index.long()  # an empty list has the type of floats
        whole = index.dtype != torch.bool and not index.dtype.is_floating_point and not index.dtype.is_complex
        remedy = "of a mask: mask.nonzero().flatten()" if index.dtype == torch.bool else ""
        require(whole, "indices", "whole numbers", Words(str(index.dtype).removeprefix("torch.")), remedy)
        require(index.ndim == 1, "indices", "a row of them", Words(f"the shape {tuple(index.shape)}"))
        index = index.long()
        _check_range("indices", index, len(self))
        return self._select(index)

    def few(self, per_class: int, seed: int) -> "LabelledImages":
        """Select `per_class` random images of each class. Raises ValueError if a class has fewer."""
        by_class = self._by_class(seed)
        for name, index in zip(self.classes, by_class, strict=True):
            expected = f"1 to {len(index)}, the images of class {name!r} in {self.name!r}"
            require(1 <= per_class <= len(index), "per_class", expected, per_class)
        return self.subset(torch.stack([index[:per_class] for index in by_class], 1).flatten())

    def split(self, fraction: float, seed: int) -> tuple["LabelledImages", "LabelledImages"]:
        """Split into (training, validation): `fraction` of each class, rounded, is for validation, chosen at random.

        Each side gets at least one image of each class. Raises ValueError for a class with fewer than two images.
        """
        require(0 < fraction < 1, "fraction", "a number between 0 and 1", fraction)
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, index in zip(self.classes, self._by_class(seed), strict=True):
            require(len(index) >= 2, f"class {name!r} of {self.name!r}", "at least 2 images for a split", len(index))
            held = min(max(round(fraction * len(index)), 1), len(index) - 1)
            sides[0].append(index[held:])
            sides[1].append(index[:held])
        train, validation = (self.subset(torch.cat(side).sort().values) for side in sides)
        return train, validation

    def _by_class(self, seed: int) -> list[Tensor]:
        return shuffled_by_class(self.labels.cpu(), len(self.classes), generator_for(seed))


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet(LabelledImages):
    """Labelled images of one size in memory.

    Args:
        images: uint8; a NumPy array becomes a tensor.
        labels: the index of each image's class; whole numbers of any type, also a list or an array.
        classes: the names of the classes. A class may be empty in a subset; `few` and `split` then refuse it by name.
        tree: a label tree that holds every class once.
        name: what messages and records call the set.

    Raises:
        ValueError: images, labels or a tree that do not fit this description or each other.
    """

    images: UInt8[Tensor, "n channels height width"] | UInt8[np.ndarray, "n channels height width"]
    labels: Integer[Tensor, " n"] | Integer[np.ndarray, " n"] | Sequence[int]
    classes: Sequence[str] | Shaped[np.ndarray, " classes"]  # kept as a tuple of str
    tree: Tree | None = None
    name: str = "images"

    def __post_init__(self) -> None:
        images, labels = as_tensor("images", self.images), as_tensor("labels", self.labels)
        fits = images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3
        last = images.ndim == 4 and images.shape[1] != 3 and images.shape[3] == 3
        remedy = "put the channels first: images.permute(0, 3, 1, 2)" if last else ""
        if images.ndim == 4 and images.shape[1] == 1:
            remedy = "repeat the grey channel: images.expand(-1, 3, -1, -1)"
        elif images.is_floating_point():
            remedy = "give levels from 0 to 255: (255 * images).round().to(torch.uint8) of images in [0, 1]"
        require(fits, "images", "uint8 (n, 3, height, width)", Words(describe_tensor(images)), remedy)
        labels = whole_labels(labels, len(images))
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "classes", tuple(map(str, self.classes)))
        same = labels.device == images.device
        require(same, "labels", f"the device of the images, {images.device}", Words(str(labels.device)))
        check_classes(labels, self.classes, self.tree)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.images.device

    def load(self, indices: Int64[Tensor, " k"]) -> UInt8[Tensor, "k channels height width"]:
        """Return the images at `indices`, in that order."""
        return self.images[indices.to(self.device)]

    def batches(
        self, indices: Sequence[Int64[Tensor, " _"]], margin: bool = False
    ) -> Iterator[tuple[UInt8[Tensor, "_ channels height width"], Int64[Tensor, " _"]]]:
        """Iterate over batches of images and labels, given the indices of each batch."""
        for index in indices:
            here = index.to(self.device)
            yield self.images[here], self.labels[here]

    def identifying(self) -> dict[str, Tensor]:
        """Return the images and the labels by name."""
        return {"images": self.images, "labels": self.labels}

    def to(self, device: torch.device | str) -> "ImageSet":
        """Copy the set to a device."""
        return self._with(self.images.to(device), self.labels.to(device))

    def _select(self, index: Int64[Tensor, " k"]) -> "ImageSet":
        return self._with(self.images[index], self.labels[index])

    def _with(self, images: Tensor, labels: Tensor) -> "ImageSet":
        return ImageSet(images, labels, self.classes, self.tree, self.name)


@dataclass(frozen=True, eq=False)
class Task:
    """A training and a test set with the same classes and image size. Raises ValueError if they differ in these."""

    train: LabelledImages
    test: LabelledImages

    def __post_init__(self) -> None:
        for name, of in (("classes", lambda s: s.classes), ("image shape", lambda s: s.image_shape)):
            require(of(self.test) == of(self.train), "test", f"the {name} of train, {of(self.train)}", of(self.test))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.train.classes

    @property
    def name(self) -> str:
        """The name of the training set."""
        return self.train.name


def check_classes(labels: Int64[Tensor, " n"], classes: tuple[str, ...], tree: Tree | None) -> None:
    """Raise ValueError unless labels are indices of the classes, and the tree, if there is one, holds each once."""
    _check_range("labels", labels, len(classes))
    if tree is not None and sorted(leaves(tree), key=str) != sorted(classes):
        odd = sorted(set(leaves(tree)) ^ set(classes), key=str)
        got = f"a tree that differs in {odd}" if odd else "a class twice"
        raise mismatch("tree", "each class once", Words(got))


def as_tensor(name: str, values: Any) -> Tensor:
    """Convert an array or a list to a tensor; ValueError, which names the argument, for anything else."""
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.asarray(values))
    except (TypeError, ValueError) as error:
        raise mismatch(name, "a tensor or an array of numbers", Words(f"{type(values).__name__} ({error})")) from error


def whole_labels(labels: Any, count: int) -> Int64[Tensor, " n"]:
    """The labels of `count` images as a tensor of int64; ValueError unless they are whole numbers, one per image."""
    labels = as_tensor("labels", labels)
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    fits = whole and labels.shape == (count,)
    require(fits, "labels", f"whole numbers ({count},), one per image", Words(describe_tensor(labels)))
    return labels.to(torch.int64)


def describe_tensor(value: Any) -> str:
    """Describe a tensor's data type and shape, for an error."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def shuffled_by_class(labels: Int64[Tensor, " n"], classes: int, generator: Generator) -> list[Tensor]:
    """Return the indices of each class's images, in random order."""
    order = torch.randperm(len(labels), generator=generator)
    return [order[labels[order] == c] for c in range(classes)]


def _check_range(name: str, values: Tensor, count: int) -> None:
    """Raise ValueError unless integers are indices from 0 to count - 1."""
    if len(values):
        low, high = values.min().item(), values.max().item()
        require(0 <= low and high < count, name, f"0 to {count - 1}", Words(f"{low} to {high}"))
