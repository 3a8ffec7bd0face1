"""The joint loss of an anytime network's exits, with optional self-distillation."""

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mtanytime.checks import require


class JointLoss:
    """Weighted sum of the exits' losses (arXiv:1807.02609 sums them unweighted), with optional self-distillation.

    Example:
        >>> from mtanytime.anytime import JointLoss
        >>> outputs = [torch.randn(8, 10, requires_grad=True) for _ in range(3)]  # three exits' logits, thin to wide
        >>> loss = JointLoss(distillation=0.5)(outputs, labels=torch.arange(8))
        >>> loss.backward()

    Args:
        weights: one weight per exit, thin to wide; None gives each exit the weight 1.
        distillation: strength of self-distillation from the widest exit, which gets no gradient from it
            (arXiv:1503.02531). The loss of every other exit grows by this strength times T² times the
            Kullback–Leibler divergence of its softened prediction from that of the widest exit.
        temperature: T, which divides the logits before the softmax in distillation.
        loss: the loss of one exit, `loss(logits, labels)`, a scalar.

    Raises:
        ValueError: a weight that is negative or not finite, weights that are all 0, a negative distillation, or a
            temperature that is not above 0.
    """

    def __init__(
        self,
        weights: Sequence[float] | None = None,
        distillation: float = 0.0,
        temperature: float = 2.0,
        loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        valid = weights is None or (all(0 <= weight < math.inf for weight in weights) and any(weights))
        require(valid, "weights", "numbers >= 0, not all 0", weights)
        require(0 <= distillation < math.inf, "distillation", "a number >= 0", distillation)
        require(0 < temperature < math.inf, "temperature", "a number > 0", temperature)
        self.weights = None if weights is None else tuple(float(weight) for weight in weights)
        self.distillation, self.temperature, self.loss = distillation, temperature, loss

    def __call__(
        self, outputs: list[Float[Tensor, "batch classes"]], labels: Int[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The joint loss of a batch. Raises ValueError unless there is one weight per exit."""
        weights = self.weights or (1.0,) * len(outputs)
        require(len(weights) == len(outputs), "weights", f"{len(outputs)} weights, one per exit", weights)
        losses = [self.loss(logits, labels) for logits in outputs]
        if self.distillation:
            teacher = F.softmax(outputs[-1].detach() / self.temperature, dim=1)
            for k, logits in enumerate(outputs[:-1]):
                student = F.log_softmax(logits / self.temperature, dim=1)
                divergence = F.kl_div(student, teacher, reduction="batchmean")
                losses[k] = losses[k] + self.distillation * self.temperature**2 * divergence
        return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
