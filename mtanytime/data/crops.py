"""Random-resized crops: the augmentation of large images in ImageNet's recipe and in the L2T-ww authors' code."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from mtanytime.checks import require

TRIALS = 10  # draws of a part's sides, as torchvision's


@dataclass(frozen=True)
class ResizedCrops:
    """Batch augmentation: a random part of each image, resized to `size` × `size`, half of them flipped left-right.

    What the L2T-ww authors' code does for images of 224×224: training on torchvision's RandomResizedCrop(224) of the
    whole file and RandomHorizontalFlip; validation and test on the middle 224×224 after the shorter side is resized to
    256. Sets with `resize=256` (`data.Decoding`, and the readers of these data sets) give the latter. This class gives
    the former, with one deviation: it crops the middle 256×256 that the set keeps of a file, not the whole file. So
    pixels outside the middle square are never seen, and a small part is enlarged from fewer pixels.

    Parts are distributed as torchvision's: of ten draws of an area and a ratio the first that fits, else the largest
    middle part of an allowed ratio. All random numbers are drawn on the CPU from one generator, so they are the same on
    every device.

    Args:
        size: height and width of the result.
        scale: least and largest area of a part, as fractions of the image.
        ratio: least and largest width of a part divided by its height.
        flip: whether to flip.

    Raises:
        ValueError: a size below 1, a scale or ratio that is not 0 < low ≤ high (scale ≤ 1).
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    takes_margin: ClassVar[bool] = True  # see `LabelledImages.batches`

    def __post_init__(self) -> None:
        require(self.size >= 1, "size", "at least 1 pixel", self.size)
        require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "0 < low <= high <= 1", self.scale)
        require(0 < self.ratio[0] <= self.ratio[1] < math.inf, "ratio", "0 < low <= high", self.ratio)

    def __call__(
        self, images: Float[Tensor, "batch channel height width"], generator: Generator
    ) -> Float[Tensor, "batch channel size size"]:
        """One random part of each image, bilinear and antialiased."""
        parts = []
        for image, (top, left, height, width) in zip(images, self._boxes(images, generator).tolist(), strict=True):
            part = image[None, :, top : top + height, left : left + width]
            parts.append(F.interpolate(part, (self.size, self.size), mode="bilinear", antialias=True))
        result = torch.cat(parts)
        if self.flip:
            flipped = (torch.rand(len(images), generator=generator) < 0.5).to(images.device)
            result = torch.where(flipped[:, None, None, None], result.flip(3), result)
        return result.clamp(0, 1)

    def _boxes(self, images: Tensor, generator: Generator) -> Tensor:
        """Top, left, height and width of each image's part, in whole pixels."""
        count, (height, width) = len(images), images.shape[2:]
        draws = torch.rand(4, TRIALS, count, generator=generator, dtype=torch.float64)
        area = height * width * (self.scale[0] + draws[0] * (self.scale[1] - self.scale[0]))
        low, high = map(math.log, self.ratio)
        ratio = (low + draws[1] * (high - low)).exp()
        sides = torch.stack([(area / ratio).sqrt().round(), (area * ratio).sqrt().round()])
        full = torch.tensor([height, width], dtype=torch.float64)[:, None, None]
        fits = ((sides >= 1) & (sides <= full)).all(dim=0)
        first = fits.byte().argmax(dim=0)  # of equal values, argmax returns the first one
        sides, room, at = sides[:, first, torch.arange(count)], full[:, 0], draws[2:, 0]
        middle = self._middle(height, width)
        sides = torch.where(fits.any(dim=0), sides, torch.tensor(middle, dtype=torch.float64)[:, None])
        corners = torch.where(fits.any(dim=0), ((room - sides + 1) * at).floor(), ((room - sides) / 2).floor())
        return torch.cat([corners, sides]).T.to(torch.int64)

    def _middle(self, height: int, width: int) -> tuple[int, int]:
        """The sides of the largest part whose ratio is allowed."""
        if width / height < self.ratio[0]:
            return min(round(width / self.ratio[0]), height), width
        return height, min(round(height * self.ratio[1]), width)
