"""Distillation of answers: of a teacher with the target's classes, or of the source, through an extra head."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.checks import require


def distillation_loss(
    logits: Float[Tensor, "batch classes"], teacher_logits: Float[Tensor, "batch classes"], temperature: float = 2.0
) -> Float[Tensor, " batch"]:
    """Loss of each image: T² times the Kullback–Leibler divergence of softened answers (arXiv:1503.02531, section 2).

        T² Σ_c p_c (log p_c - log q_c),   p = softmax(teacher_logits / T),   q = softmax(logits / T)

    The factor T² keeps the size of the gradient independent of T. Computed in float32 or wider.

    Example:
        >>> from mtanytime.transfer.distillation import distillation_loss
        >>> logits, teacher_logits = torch.randn(8, 10, requires_grad=True), torch.randn(8, 10)
        >>> distillation_loss(logits, teacher_logits, temperature=4.0).mean().backward()
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_q = F.log_softmax(logits.to(dtype) / temperature, dim=1)
    log_p = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=1)


class LearningWithoutForgetting(nn.Module):
    """LwF (Li, Hoiem 2016, arXiv:1606.09282): the target also learns the source's answers, through an extra head.

    The head is linear on the spatial mean of one target layer, as the L2T-ww paper uses LwF between networks of
    different architectures. Deviations from LwF: the source's answers are computed on each augmented image instead of
    once, and there is no phase in which only the new head trains.

    Args:
        channels: of the target layer.
        source_classes: the source's outputs.
        layer: the target layer.
        temperature: T.
        generator: draws the head's initial weights, as `nn.Linear` does.
    """

    def __init__(
        self,
        channels: int,
        source_classes: int,
        layer: str,
        temperature: float = 2.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(temperature > 0, "temperature", "a number above 0", temperature)
        self.layer, self.temperature = layer, temperature
        self.head = nn.utils.skip_init(nn.Linear, channels, source_classes)
        bound = channels**-0.5
        nn.init.uniform_(self.head.weight, -bound, bound, generator=generator)
        nn.init.uniform_(self.head.bias, -bound, bound, generator=generator)

    def forward(
        self,
        target_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        source_output: Float[Tensor, "batch source_classes"],
    ) -> Float[Tensor, " batch"]:
        """The distillation loss of each image."""
        return distillation_loss(
            self.head(target_features[self.layer].mean(dim=(2, 3))), source_output, self.temperature
        )
