"""Strong views: what each part does, checked against torchvision where it has the same."""

import pytest
import torch
from torch import Generator
from torchvision.transforms.v2 import functional as tv

from mtanytime.data.views import StrongViews

IMAGES = torch.rand(6, 3, 16, 16, generator=Generator().manual_seed(0))
NOTHING = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "flip": False, "jitter": 0.0, "mixup": False}


def seeded(seed: int = 1) -> Generator:
    """A generator of its own."""
    return Generator().manual_seed(seed)


def test_everything_off_changes_nothing() -> None:
    """The identity is a special case, up to the rounding of the resampling."""
    torch.testing.assert_close(StrongViews(**NOTHING)(IMAGES, seeded()), IMAGES)


def test_flip() -> None:
    """Each view is the image or its mirror image."""
    views = StrongViews(**NOTHING | {"flip": True})(IMAGES.repeat(4, 1, 1, 1), seeded())
    same = [(v - i).abs().max() < 1e-5 for v, i in zip(views, IMAGES.repeat(4, 1, 1, 1), strict=True)]
    mirrored = [(v - i.flip(2)).abs().max() < 1e-5 for v, i in zip(views, IMAGES.repeat(4, 1, 1, 1), strict=True)]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 0 < sum(same) < 24


def test_crops_keep_their_bounds() -> None:
    """On an image whose value is its column, a crop's width can be read off; crops stay inside the image."""
    columns = torch.linspace(0, 1, 64).expand(200, 3, 64, 64).contiguous()
    views = StrongViews(**NOTHING | {"scale": (0.25, 0.5)})(columns, seeded())
    widths = views[:, 0, 0, -1] - views[:, 0, 0, 0]
    assert 0.48 < widths.min() < 0.52
    assert 0.66 < widths.max() < 0.72  # √0.5
    torch.testing.assert_close(views[:, 0, 0], views[:, 0, -1])


def test_crops_keep_their_area() -> None:
    """Also where a crop of the drawn shape would not fit into the image."""
    ramp = torch.linspace(0, 1, 64)
    grid = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]).expand(200, 3, 64, 64)
    views = StrongViews(**NOTHING | {"scale": (0.7, 0.7), "ratio": (0.2, 5.0)})(grid.contiguous(), seeded())
    width, height = views[:, 0, 0, -1] - views[:, 0, 0, 0], views[:, 1, -1, 0] - views[:, 1, 0, 0]
    torch.testing.assert_close(width * height, torch.full((200,), 0.7), rtol=0.03, atol=0)


def test_colors_as_torchvision() -> None:
    """Brightness, contrast and saturation as torchvision's functions, with the same factors."""
    views = StrongViews(**NOTHING | {"jitter": 0.4})
    generator = seeded()
    for _ in range(2):  # the crop's draws come first
        torch.rand(6, generator=generator)
    torch.rand(6, generator=generator), torch.rand(6, generator=generator)
    factors = 1 + 0.4 * (2 * torch.rand(3, 6, generator=generator) - 1)
    expected = [
        tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(image, b), c), s)
        for image, b, c, s in zip(IMAGES, *factors.tolist(), strict=True)
    ]
    torch.testing.assert_close(views(IMAGES, seeded()), torch.stack(expected), atol=2e-3, rtol=0)


def test_mixup() -> None:
    """A mixed view lies between two images, pixel by pixel, with one share for all pixels."""
    views = StrongViews(**NOTHING | {"mixup": True})(IMAGES, seeded())
    for i, view in enumerate(views):
        residuals = []
        for j in range(len(IMAGES)):
            direction, step = (IMAGES[i] - IMAGES[j]).flatten(), (view - IMAGES[j]).flatten()
            share = (direction @ step / direction.square().sum().clamp(min=1e-9)).clamp(0, 1)
            residuals.append((step - share * direction).abs().max())
        assert min(residuals) < 1e-5


def test_same_generator_same_views() -> None:
    """Runs repeat and resume; another seed gives other views."""
    views = StrongViews()
    assert torch.equal(views(IMAGES, seeded()), views(IMAGES, seeded()))
    assert not torch.equal(views(IMAGES, seeded()), views(IMAGES, seeded(2)))
    assert 0 <= views(IMAGES, seeded()).min()
    assert views(IMAGES, seeded()).max() <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": (0.0, 1.0)}, r"scale: expected 0 < low <= high <= 1, got \(0.0, 1.0\)"),
        ({"scale": (0.5, 1.5)}, "scale: expected"),
        ({"ratio": (2.0, 1.0)}, "ratio: expected 0 < low <= high"),
        ({"jitter": 1.0}, r"jitter: expected a number in \[0, 1\), got 1.0"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    """Refused when made."""
    with pytest.raises(ValueError, match=message):
        StrongViews(**settings)
