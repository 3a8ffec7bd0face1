"""Step-up: a sliced network answers exit by exit, and each step computes one slice."""

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mtanytime.anytime.network import AnytimeNetwork, check_keep
from mtanytime.anytime.slice_layers import HandingOn


class SlicedNetwork(AnytimeNetwork):
    """An anytime network in which no slice depends on later ones, and head k reads the features of slices up to k.

    `trunk` computes the features of all slices from images.
    """

    trunk: nn.Module

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> list[Float[Tensor, "batch classes"]]:
        """Return the K logits, thin to wide, from one pass. Raises ValueError for images without three channels."""
        self._check_images(images)
        features = self.trunk(images)
        return [head(features[:, : head.in_features]) for head in self.heads]

    def refine(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Generator[Float[Tensor, "images classes"], Bool[Tensor, " images"] | None, None]:
        """Yield the K logits one by one, thin to wide: each step computes one slice and reuses the slices before it.

        The logits equal those of `forward` up to rounding, also in train mode (which then updates the running
        statistics of the computed slices only). They carry no gradient. `send(keep)` instead of `next()` continues with
        the images for which `keep` is True; it has one entry per row of the last logits. Raises ValueError at the first
        step for images without three channels, and for a `keep` of another shape or dtype.
        """
        self._check_images(images)
        yield from step_up(self.heads, images, self._slice_features)

    def one_slice(
        self, images: Float[Tensor, "batch channel height width"], earlier: Sequence[Sequence[Tensor]]
    ) -> tuple[Float[Tensor, "batch classes"], list[Tensor]]:
        """Compute one slice in eval mode, and return what later ones need: a step of `refine` without a state.

        Args:
            images: the images, which every slice reads.
            earlier: what each of the slices before it handed on, in order; empty for the first slice.

        Returns:
            The logits, and what the slice hands on: maps, and last its features.
        """
        run = HandingOn(earlier)
        features = run.joined(self._features_of_slice(images, run))
        return self.heads[run.j](features), run.handed_on

    @abstractmethod
    def _features_of_slice(self, images: Tensor, run: HandingOn) -> Tensor:
        """Compute the features of slice `run.j`."""

    @abstractmethod
    def _check_images(self, images: Tensor) -> None:
        """Raise ValueError for images that the network cannot read."""

    @abstractmethod
    def _slice_features(self, images: Tensor, inputs: dict[Any, list[Tensor]], j: int) -> Tensor:
        """Compute the features of slice j, without gradients.

        `inputs` holds what layers or blocks read of earlier slices; what later slices read of slice j is added to it.
        """


def step_up(
    heads: nn.ModuleList,
    images: Float[Tensor, "batch channel height width"],
    slice_features: Callable[[Tensor, dict[Any, list[Tensor]], int], Tensor],
) -> Generator[Float[Tensor, "images classes"], Bool[Tensor, " images"] | None, None]:
    """The steps of `SlicedNetwork.refine`, from a function that computes a slice's features.

    The function gets the images, a dictionary for what later slices read of earlier ones, and the slice's number.
    """
    inputs: dict[Any, list[Tensor]] = {}
    features: list[Tensor] = []  # per slice
    for j, head in enumerate(heads):
        features.append(slice_features(images, inputs, j))
        logits = head(torch.cat(features, dim=1)).detach()
        keep = yield logits
        if keep is not None:
            check_keep(keep, logits)
            images, features = images[keep], [part[keep] for part in features]
            inputs = {layer: [part[keep] for part in parts] for layer, parts in inputs.items()}
