"""Random-resized crops: the augmentation of large images in ImageNet's recipe and in the L2T-ww authors' code."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from mtanytime.checks import require


@dataclass(frozen=True)
class ResizedCrops:
    """Batch augmentation: a random part of each image, resized to `size` × `size`, half of them flipped left-right.

    What the L2T-ww authors' code does for images of 224×224: training on torchvision's RandomResizedCrop(224) of the
    whole file and RandomHorizontalFlip; validation and test on the middle 224×224 after the shorter side is resized to
    256. Sets with `resize=256` (`data.Decoding`, and the readers of these data sets) give the latter. This class gives
    the former, with one deviation: it crops the middle 256×256 that the set keeps of a file, not the whole file. So
    nothing beside the middle square is ever seen, and a small part is enlarged from a smaller picture.

    Area and ratio are drawn as in torchvision, without its up to ten trials: a part that would not fit gets the nearest
    ratio that does. All random numbers are drawn on the CPU from one generator, so they are the same on every device.

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
        count, full = len(images), torch.tensor(images.shape[2:], dtype=torch.float64)
        draws = torch.rand(4, count, generator=generator, dtype=torch.float64)
        area = full.prod() * (self.scale[0] + draws[0] * (self.scale[1] - self.scale[0]))
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        log_ratio = low + draws[1] * (high - low)
        fits = area.log() - 2 * full[0].log(), 2 * full[1].log() - area.log()  # within the image's height and width
        half = log_ratio.clamp(*fits) / 2
        sides = torch.stack([area.sqrt() * (-half).exp(), area.sqrt() * half.exp()]).round()
        sides = sides.clamp(min=1).minimum(full[:, None])
        corners = ((full[:, None] - sides + 1) * draws[2:]).floor().minimum(full[:, None] - sides)
        return torch.cat([corners, sides]).T.to(torch.int64)
