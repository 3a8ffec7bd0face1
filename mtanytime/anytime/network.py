"""What every anytime network is: K answers to one image, thin to wide, each of which can be cut out to stand alone."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class AnytimeNetwork(nn.Module, ABC):
    """A network with K exits, numbered from 1, the cheapest first; `heads[k - 1]` makes the logits of exit k."""

    heads: nn.ModuleList

    @property
    def exits(self) -> int:
        """How many answers there are (K)."""
        return len(self.heads)

    @abstractmethod
    def forward(self, images: Float[Tensor, "batch channel height width"]) -> list[Float[Tensor, "batch classes"]]:
        """The K logits, thin to wide."""

    @abstractmethod
    def extract(self, k: int) -> nn.Module:
        """A stand-alone copy of what exit k needs, no more: `logits = network.extract(k)(images)`.

        It has weights of its own, in the same mode as this network. ValueError where there is no exit k.
        """

    def _check_exit(self, k: int) -> None:
        if not isinstance(k, int) or not 1 <= k <= self.exits:
            raise ValueError(f"exit is {k!r}; wanted a whole number from 1 to {self.exits}")
