"""L2-SP (Li, Grandvalet, Davoine 2018, arXiv:1802.01483): fine-tune, with a penalty on the distance from the start."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require


class L2SP(nn.Module):
    """α/2 times the squared distance from the source's parameters, plus β/2 times the squared norm of the new ones.

    Parameters that the source has with the same name and shape start from it and are drawn to it; the others (the new
    head) are drawn to 0 (section 3.2). Use it with weight decay 0, which it replaces.

    Args:
        start: the source's parameters by name.
        alpha: α, of the shared parameters.
        beta: β, of the new ones.

    Raises:
        ValueError: a negative strength; in the first call, a network that shares no parameter with the source.
    """

    def __init__(self, start: Mapping[str, Tensor], alpha: float = 0.1, beta: float = 0.01) -> None:
        super().__init__()
        require(alpha >= 0, "alpha", "a number >= 0", alpha)
        require(beta >= 0, "beta", "a number >= 0", beta)
        self.start = {name: value.detach().clone() for name, value in start.items()}
        self.alpha, self.beta = alpha, beta

    def forward(self, network: nn.Module) -> Float[Tensor, ""]:
        """The penalty of a network's parameters."""
        shared, new = [], []
        for name, value in network.named_parameters():
            start = self.start.get(name)
            if start is not None and start.shape == value.shape:
                shared.append((value - start.to(value)).square().sum())
            else:
                new.append(value.square().sum())
        if not shared:
            raise mismatch("source", "a network with the target's layers", Words("one that shares none of them"))
        return (self.alpha * sum(shared) + self.beta * sum(new, start=0.0)) / 2
