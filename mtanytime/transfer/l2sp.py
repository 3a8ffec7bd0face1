"""L2-SP (Li, Grandvalet, Davoine 2018, arXiv:1802.01483): fine-tune, with a penalty on the distance from the start."""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.training.contents import fingerprint


class L2SP(nn.Module):
    """α/2 times the squared distance from the source's parameters, plus β/2 times the squared norm of the new ones.

    Parameters that the source has with the same name and shape start from it and are drawn to it; the others (the new
    head) are drawn to 0 (section 3.2). Use it with weight decay 0, which it replaces (see `PenalizedLoss`).

    Args:
        start: the source, or its parameters by name.
        alpha: α, of the shared parameters.
        beta: β, of the new ones.
        new: paths of modules that are new although the source has parameters of their names and shapes, such as "fc":
            a head for as many classes as the source has.

    Raises:
        ValueError: a negative strength, or a new module that the source has not; in the first call, a network that
            shares no parameter with the source.
    """

    def __init__(
        self,
        start: nn.Module | Mapping[str, Tensor],
        alpha: float = 0.1,
        beta: float = 0.01,
        new: Sequence[str] = (),
    ) -> None:
        super().__init__()
        require(alpha >= 0, "alpha", "a number >= 0", alpha)
        require(beta >= 0, "beta", "a number >= 0", beta)
        named = dict(start.named_parameters()) if isinstance(start, nn.Module) else start
        for path in new:
            known = any(name.startswith(f"{path}.") for name in named)
            require(known, "new", "paths of modules with parameters in the source", path)
        heads = tuple(f"{path}." for path in new)
        self.start = {name: value.detach().clone() for name, value in named.items() if not name.startswith(heads)}
        self.alpha, self.beta = alpha, beta

    def forward(self, network: nn.Module) -> Float[Tensor, ""]:
        """The penalty of a network's parameters."""
        shared, new = [], []
        for name, value in network.named_parameters():
            start = self.start.get(name)
            if start is not None and start.shape == value.shape:
                if (start.device, start.dtype) != (value.device, value.dtype):
                    start = self.start[name] = start.to(value)  # once, not at every step
                shared.append((value - start).square().sum())
            else:
                new.append(value.square().sum())
        if not shared:
            raise mismatch("source", "a network with the target's layers", Words("one that shares none of them"))
        return (self.alpha * sum(shared) + self.beta * sum(new, start=0.0)) / 2


class PenalizedLoss:
    """Cross-entropy plus L2-SP of the network that is trained: `loss=` of a `FineTuning` with `weight_decay=0`."""

    def __init__(self, network: nn.Module, penalty: L2SP) -> None:
        self._held = network, penalty  # a private tuple does not identify the run, whose network has its own weights
        self.start, self.alpha, self.beta = fingerprint(penalty.start), penalty.alpha, penalty.beta

    @property
    def network(self) -> nn.Module:
        """The network whose parameters are penalized."""
        return self._held[0]

    def __call__(self, output: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> Float[Tensor, ""]:
        """The loss of a batch."""
        network, penalty = self._held
        return F.cross_entropy(output, labels) + penalty(network)
