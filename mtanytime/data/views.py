"""Strong views of images: further inputs on which a target network can be matched to its source, without labels."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F

from mtanytime.checks import require

LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness (ITU-R BT.601)


@dataclass(frozen=True)
class StrongViews:
    """Batch augmentation that is much stronger than crops and flips: `views(images, generator)`.

    Each image is cropped at random and resized to its old size, flipped left-right with probability ½, and changed in
    brightness, contrast and saturation; then each view is mixed with another view of the batch (mixup,
    arXiv:1710.09412, with a uniform share). Labels of mixed views are meaningless; matching and distillation need none.

    All random numbers are drawn on the CPU from one generator, by default torch's own, so they are the same on every
    device.

    Example:
        >>> from mtanytime.data import StrongViews
        >>> views = StrongViews(scale=(0.5, 1.0), mixup=False)
        >>> views(torch.rand(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])

    Args:
        scale: least and largest area of a crop, as fractions of the image.
        ratio: least and largest width of a crop divided by its height, both as fractions of the image's; closer to 1
            where a crop of its area would not fit into the image.
        flip: whether to flip.
        jitter: brightness, contrast and saturation are multiplied by factors between 1 - jitter and 1 + jitter.
        mixup: whether to mix.

    Raises:
        ValueError: a scale or ratio that is not 0 < low ≤ high (scale ≤ 1), a jitter outside [0, 1).
    """

    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    jitter: float = 0.4
    mixup: bool = True

    def __post_init__(self) -> None:
        require(0 < self.scale[0] <= self.scale[1] <= 1, "scale", "0 < low <= high <= 1", self.scale)
        require(0 < self.ratio[0] <= self.ratio[1] < math.inf, "ratio", "0 < low <= high", self.ratio)
        require(0 <= self.jitter < 1, "jitter", "a number in [0, 1)", self.jitter)

    def __call__(
        self, images: Float[Tensor, "batch 3 height width"], generator: Generator | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """One strong view of each image, in [0, 1]."""
        views = self._recolored(self._cropped(images, generator), generator)
        if not self.mixup:
            return views
        partner = torch.randperm(len(views), generator=generator).to(views.device)
        share = torch.rand(len(views), 1, 1, 1, generator=generator).to(views)
        return torch.lerp(views[partner], views, share)

    def _cropped(self, images: Tensor, generator: Generator | None) -> Tensor:
        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(len(images), generator=generator) * (high - low) + low

        area, log_ratio = uniform(*self.scale), uniform(math.log(self.ratio[0]), math.log(self.ratio[1]))
        log_ratio = log_ratio.clamp(area.log(), -area.log())  # a crop of this area fits into the image
        width, height = (area * log_ratio.exp()).sqrt(), (area / log_ratio.exp()).sqrt()  # of the image's sides
        x, y = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)  # centers; the image spans -1 to 1
        if self.flip:
            width = torch.where(uniform(0, 1) < 0.5, -width, width)
        zero = torch.zeros_like(x)
        affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1)
        grid = F.affine_grid(affine.to(images), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, padding_mode="border", align_corners=False)

    def _recolored(self, images: Tensor, generator: Generator | None) -> Tensor:
        factors = 1 + self.jitter * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
        brightness, contrast, saturation = factors.to(images)
        images = (images * brightness).clamp(0, 1)
        mean = _luma(images).mean(dim=(2, 3), keepdim=True)
        images = torch.lerp(mean, images, contrast).clamp(0, 1)
        return torch.lerp(_luma(images).expand_as(images), images, saturation).clamp(0, 1)


def _luma(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 height width"]:
    weights = images.new_tensor(LUMA).view(1, 3, 1, 1)
    return (images * weights).sum(dim=1, keepdim=True)
