"""Algorithm 1 of L2T-ww (arXiv:1905.05901), without a trainer."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.features import Tapped
from mtanytime.transfer.matching import FeatureMatching


class Student(nn.Module):
    """The target network, tapped, with the regressors that are trained beside it: θ of the paper."""

    def __init__(self, target: Tapped, matching: FeatureMatching) -> None:
        super().__init__()
        self.target, self.matching = target, matching

    def forward(
        self,
        images: Float[Tensor, "batch channel height width"],
        aligned: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, Float[Tensor, " batch"] | None]:
        """The target's output and, given `FeatureMatching.align`'s maps and the weights, L_wfm of each image."""
        if aligned is None:
            return self.target.model(images), None
        output, features = self.target(images)
        return output, self.matching(features, aligned, weights)
