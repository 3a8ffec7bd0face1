"""The interface of anytime networks: K exits, thin to wide, each of which can be extracted as its own network."""

from abc import ABC, abstractmethod
from numbers import Integral

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require


class AnytimeNetwork(nn.Module, ABC):
    """A network with K exits, numbered from 1, the cheapest first; `heads[k - 1]` computes the logits of exit k."""

    heads: nn.ModuleList

    @property
    def exits(self) -> int:
        """The number of exits (K)."""
        return len(self.heads)

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch channel height width"]) -> list[Float[Tensor, "batch classes"]]:
        """Return the K logits, thin to wide."""

    @abstractmethod
    def extract(self, k: int) -> nn.Module:
        """Copy the part of the network that exit k needs: `logits = network.extract(k)(images)`.

        The copy has its own weights and the mode of this network. Raises ValueError if there is no exit k.
        """

    def _check_exit(self, k: object) -> None:
        require(isinstance(k, Integral) and bool(1 <= k <= self.exits), "k", f"an exit from 1 to {self.exits}", k)


def check_keep(keep: Tensor, logits: Float[Tensor, "images classes"]) -> None:
    """Raise ValueError unless `keep`, for `refine`, is a boolean mask with one entry per row of the last logits."""
    if keep.dtype != torch.bool or keep.shape != logits.shape[:1]:
        got = Words(f"{keep.dtype} {tuple(keep.shape)}")
        raise mismatch("keep", f"torch.bool ({len(logits)},), one per image", got)
