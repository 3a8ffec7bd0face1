"""torchvision's transforms, v1 and v2, as augmentation."""

import random

import pytest
import torch
from torch import Generator, Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from mtanytime.data.batches import crop_flip
from mtanytime.data.transforms import TransformAugment, as_augment

IMAGES = torch.rand(16, 3, 12, 12, generator=Generator().manual_seed(0))
TRANSFORMS = {
    "v1 flip": v1.RandomHorizontalFlip(),
    "v2 flip": v2.RandomHorizontalFlip(),
    "v1 composed": v1.Compose([v1.RandomCrop(12, padding=2), v1.ColorJitter(0.4, 0.4, 0.4), v1.RandomErasing()]),
    "v2 composed": v2.Compose(
        [v2.RandomResizedCrop(12, antialias=True), v2.RandomHorizontalFlip(), v2.RandomGrayscale()]
    ),
    "v1 of Python's random": v1.RandomChoice([v1.RandomVerticalFlip(1.0), v1.RandomHorizontalFlip(1.0)]),
    "v2 automatic": v2.RandAugment(),
}


def seeded(seed: int = 1) -> Generator:
    """A generator of its own."""
    return Generator().manual_seed(seed)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_views_follow_the_generator_alone(name: str) -> None:
    """The same generator gives the same views whatever the global random states are, which stay as they were."""
    augment = as_augment(TRANSFORMS[name])
    views = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        random.seed(outside)
        before = torch.get_rng_state(), random.getstate()
        views.append(augment(IMAGES, seeded()))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
    assert torch.equal(*views)
    assert views[0].shape == IMAGES.shape
    assert 0 <= views[0].min()
    assert views[0].max() <= 1


def test_each_image_is_drawn_by_itself() -> None:
    """torchvision draws once per call, so a whole batch in one call would be flipped as one."""
    views = as_augment(v2.RandomHorizontalFlip())(IMAGES, seeded())
    flipped = [torch.equal(view, image.flip(2)) for view, image in zip(views, IMAGES, strict=True)]
    kept = [torch.equal(view, image) for view, image in zip(views, IMAGES, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True))
    assert 2 <= sum(flipped) <= 14


def test_others_are_left_alone() -> None:
    """The library's own augmentation, and none, are as they should be already."""
    own = crop_flip()
    assert as_augment(own) is own
    assert as_augment(None) is None


def test_own_modules() -> None:
    """One that takes images and a generator gets the batch; one that takes an image is a transform."""

    class OfBatches(nn.Module):
        def forward(self, images: Tensor, generator: Generator) -> Tensor:
            return images + torch.rand(len(images), 1, 1, 1, generator=generator)

    class OfImages(nn.Module):
        def forward(self, image: Tensor, shift: float = 0.5) -> Tensor:
            return (image + shift).clamp(0, 1)

    batches, images = OfBatches(), OfImages()
    assert as_augment(batches) is batches
    assert as_augment(images)(IMAGES, seeded()).equal((IMAGES + 0.5).clamp(0, 1))


def test_settings_identify_a_run() -> None:
    """Two transforms with other settings are two runs."""
    names = {TransformAugment(v1.Compose([v1.RandomCrop(12, padding=p)])).settings for p in (1, 2)}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (v1.ToTensor(), "expected a transform of float tensors .* leave out ToTensor"),
        (v2.Normalize([0.5] * 3, [0.1] * 3), r"keeps images in \[0, 1\], got .*; leave out Normalize"),
        (v1.Lambda(lambda image: image.mean()), r"gives float images \(3, height, width\), got torch.float32 \(\)"),
        (v2.ToDtype(torch.uint8, scale=True), "gives float images .* got torch.uint8"),
        (v1.Lambda(lambda image: image[:, : 5 + int(image[0, 0, 0] > 0.5)]), "expected views of one size"),
    ],
)
def test_bad_transforms(transform: object, message: str) -> None:
    """Transforms for PIL images, and those that leave [0, 1], are refused with the remedy."""
    with pytest.raises(ValueError, match=f"^augment: .*{message}"):
        as_augment(transform)(IMAGES, seeded())


def test_overshoot_is_clamped() -> None:
    """Bicubic resampling overshoots [0, 1] a little, which is no error."""

    def overshooting(image: Tensor) -> Tensor:
        return image * 1.1 - 0.05

    views = TransformAugment(overshooting)(IMAGES, seeded())
    assert (views.min(), views.max()) == (0, 1)
