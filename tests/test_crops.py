"""Random-resized crops: parts, sizes and flips are those of torchvision's transform, reproducible by generator."""

import pytest
import torch
from torchvision.transforms import v2

from mtanytime.data import ResizedCrops
from mtanytime.randomness import generator_for
from mtanytime.training.identity import name_of


def test_the_part_is_resized_as_torchvision_does() -> None:
    """An image whose pixels hold their own places: the part is found again and resized by torchvision."""
    crops = ResizedCrops(7, flip=False)
    images = torch.rand(5, 3, 20, 16, generator=generator_for(0))
    boxes = crops._boxes(images, generator_for(1))
    for image, result, box in zip(images, crops(images, generator_for(1)), boxes.tolist(), strict=True):
        theirs = v2.functional.resized_crop(image, *box, [7, 7], antialias=True)
        assert torch.allclose(result, theirs, atol=1e-6)


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (10, 90), (90, 10)])
def test_parts_are_distributed_as_torchvisions(shape: tuple[int, int]) -> None:
    """Quantiles of each side and corner agree within what sampling allows; parts lie within the image."""
    images = torch.zeros(1, 1, 1, 1).expand(6000, 3, *shape)
    ours = ResizedCrops(8)._boxes(images, generator_for(3)).double()
    assert (ours >= torch.tensor([0, 0, 1, 1])).all()
    assert (ours[:, :2] + ours[:, 2:] <= torch.tensor(shape)).all()
    transform = v2.RandomResizedCrop(8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        boxes = [transform.make_params([images[0]]) for _ in range(3000)]
    theirs = torch.tensor([[box[key] for key in ("top", "left", "height", "width")] for box in boxes]).double()
    levels = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    difference = ours.quantile(levels, dim=0) - theirs.quantile(levels, dim=0)
    assert (difference.abs() <= 0.05 * max(shape)).all()
    area = [(part[:, 2] * part[:, 3]).mean() for part in (ours, theirs)]
    assert abs(area[0] / area[1] - 1) < 0.05


def test_flips_and_repeats() -> None:
    """Half of the images are flipped; the same generator gives the same views, another size the same parts."""
    ramp = torch.linspace(0, 1, 32).expand(400, 3, 32, 32)
    views = ResizedCrops(16)(ramp, generator_for(0))
    assert 0.4 < (views[:, 0, 0, 0] > views[:, 0, 0, -1]).float().mean() < 0.6
    assert torch.equal(ResizedCrops(16)(ramp, generator_for(0)), views)
    assert not torch.equal(ResizedCrops(16)(ramp, generator_for(1)), views)
    assert views.shape == (400, 3, 16, 16)
    assert name_of(ResizedCrops(16)) != name_of(ResizedCrops(8))


@pytest.mark.parametrize("options", [{"size": 0}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 2.0)}, {"ratio": (2.0, 1.0)}])
def test_bad_settings(options: dict) -> None:
    """By name, when the augmentation is made."""
    with pytest.raises(ValueError, match=f"{next(iter(options))}: expected"):
        ResizedCrops(**options)
