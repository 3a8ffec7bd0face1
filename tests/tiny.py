"""Tiny networks and data for tests of trainers: a step takes milliseconds."""

import torch
from torch import Tensor, nn

from mtanytime.data.images import ImageSet


class TinyNet(nn.Module):
    """conv - BN - activation - conv - BN - activation - dropout - pool - linear; taps "first" and "second"."""

    feature_layers = ("first", "second")

    def __init__(self, width: int = 4, classes: int = 3, dropout: float = 0.0, activation: type[nn.Module] = nn.ReLU):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), activation())
        self.second = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.BatchNorm2d(2 * width), activation()
        )
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        maps = self.dropout(self.second(self.first(images)))
        return self.classifier(maps.mean(dim=(2, 3)))


def made(width: int = 4, seed: int = 0, **settings: object) -> TinyNet:
    """A TinyNet with weights from a seed; torch's random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TinyNet(width, **settings)


def images(count: int = 12, classes: int = 3, size: int = 8, seed: int = 0) -> ImageSet:
    """Random images, balanced labels; each class is a little brighter in one channel."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 200, (count, 3, size, size), generator=generator)
    pixels[torch.arange(count), labels % 3] += 55
    return ImageSet(pixels.to(torch.uint8), labels, tuple(f"class {c}" for c in range(classes)))
