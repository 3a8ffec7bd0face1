"""Use torchvision's transforms, v1 or v2, as batch augmentation."""

import re
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from mtanytime.checks import Words, mismatch
from mtanytime.randomness import seeded

Augment = Callable[[Tensor, Generator], Tensor]
OVERSHOOT = 0.1  # beyond [0, 1] that resampling and colour changes may leave, which is clamped


class TransformAugment:
    """Batch augmentation by a transform of single images, drawn separately for each image.

    `augment(images, generator)` as `Trainer` wants it. Transforms draw from the global random states of torch, Python
    and numpy; these are seeded from `generator` for the call and restored afterwards, so runs repeat and resume.

    Args:
        transform: maps a float image (3, height, width) in [0, 1] to another one; the result may have another height
            and width, the same for all images.

    Raises:
        ValueError: in the first call, for a transform that fails on a float tensor or that gives something else than
            images in [0, 1] (for example after `Normalize`).
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        self.transform = transform
        shown = " ".join(repr(transform).split())
        self.settings = re.sub(r" at 0x\w+", "", shown)  # identifies a run, see training.identity.name_of

    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], generator: Generator
    ) -> Float[Tensor, "batch 3 height2 width2"]:
        """The transformed images."""
        seed = int(torch.randint(2**62, (), generator=generator))
        with seeded(seed, torch.device("cpu")):
            views = [self._view(image) for image in images.cpu()]
        if len({view.shape for view in views}) > 1:
            got = Words(", ".join(str(tuple(shape)) for shape in dict.fromkeys(view.shape for view in views)))
            raise mismatch("augment", "views of one size", got, "end the transform with a crop or a resize")
        return torch.stack(views).to(images.device)

    def _view(self, image: Float[Tensor, "3 height width"]) -> Float[Tensor, "3 height2 width2"]:
        try:
            view = self.transform(image)
        except Exception as error:
            expected = "a transform of float tensors (3, height, width) in [0, 1]"
            remedy = "leave out ToTensor and others that want a PIL image; use torchvision.transforms.v2"
            raise mismatch(
                "augment", expected, Words(f"one that raises {type(error).__name__}: {error}"), remedy
            ) from (error)
        if not (isinstance(view, Tensor) and view.is_floating_point() and view.ndim == 3 and len(view) == 3):
            got = f"{view.dtype} {tuple(view.shape)}" if isinstance(view, Tensor) else type(view).__name__
            raise mismatch("augment", "a transform that gives float images (3, height, width)", Words(got))
        low, high = view.min().item(), view.max().item()
        if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):
            remedy = 'leave out Normalize (`Normalized` wraps a network with its mean and std) and value="random"'
            raise mismatch(
                "augment", "a transform that keeps images in [0, 1]", Words(f"{low:.3g} to {high:.3g}"), remedy
            )
        return view.clamp(0, 1)


def as_augment(augment: Any) -> Any:
    """An augmentation of batches: torchvision transforms are wrapped, other values are returned as they are.

    A module of your own is a transform of single images, unless its `forward` takes images and a generator.
    """
    foreign = (type(augment).__module__ or "").startswith("torchvision.")
    module = isinstance(augment, nn.Module) and not _takes_a_generator(augment)
    return TransformAugment(augment) if foreign or module else augment


def _takes_a_generator(augment: nn.Module) -> bool:
    needed = [p for p in signature(augment.forward).parameters.values() if p.default is p.empty]
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in needed) == 2
