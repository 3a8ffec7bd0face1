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


@pytest.mark.parametrize("shape", [(64, 64), (40, 90)])
def test_areas_and_ratios_are_torchvisions(shape: tuple[int, int]) -> None:
    """The mean area and log ratio of many parts, within what sampling allows; parts lie within the image."""
    images = torch.zeros(1, 1, 1, 1).expand(4000, 3, *shape)
    top, left, height, width = ResizedCrops(8)._boxes(images, generator_for(3)).double().unbind(1)
    assert (height >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= shape[0]).all()
    assert (left + width <= shape[1]).all()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [v2.RandomResizedCrop(8).make_params([images[0]]) for _ in range(2000)]
    area = torch.tensor([box["height"] * box["width"] for box in theirs]).double()
    ours = (height * width).mean() / (shape[0] * shape[1])
    if shape[0] == shape[1]:  # elsewhere torchvision rejects large parts, which are kept here in another ratio
        assert abs(ours - area.mean() / (shape[0] * shape[1])) < 0.04
    assert abs(ours - 0.54) < 0.02
    assert left.min() == top.min() == 0
    assert ((left + width).max(), (top + height).max()) == (shape[1], shape[0])


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
