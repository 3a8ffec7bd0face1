"""Early exit: confidence thresholds at which images leave an anytime network, so that they keep a mean budget."""

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mtanytime.checks import Words, require


def confidence(logits: Float[Tensor, "*batch classes"]) -> Float[Tensor, "*batch"]:
    """Return the largest softmax probability, in float64 on the CPU, since not every device has that type."""
    return logits.cpu().double().softmax(dim=-1).amax(dim=-1)


def choose_thresholds(
    outputs: Float[Tensor, "exits images classes"], costs: Iterable[float], budget: float
) -> list[float]:
    """Choose the confidences at which images leave for a given mean cost (arXiv:1703.09844, section 4.2).

    As in the paper, each exit answers the same fraction q of the images that reach it, so exit k answers a fraction
    proportional to q·(1 - q)^(k-1). Bisection finds q; the thresholds then follow exit by exit from validation data.
    Where confidences are tied, an exit may answer more images than its share, so the mean cost stays within the budget
    on these data.

    Example:
        >>> from mtanytime.anytime import choose_thresholds, exits_taken
        >>> outputs = torch.randn(3, 100, 10)  # logits of three exits on 100 validation images
        >>> thresholds = choose_thresholds(outputs, costs=[1.0, 2.0, 4.0], budget=2.0)
        >>> exits_taken(outputs, thresholds).shape  # 1, 2 or 3 for each image
        torch.Size([100])

    Args:
        outputs: logits of all exits on validation images, as `measure.predictions` returns them.
        costs: cost of leaving at each exit, thin to wide, in any unit.
        budget: mean cost per image, in the same unit.

    Returns:
        One threshold per exit; the last is 0.

    Raises:
        ValueError: costs that do not increase or are not one per exit, a budget below the first cost, logits that have
            no softmax.
    """
    exits, images, _ = outputs.shape
    costs = list(map(float, costs))
    increasing = len(costs) == exits and all(a < b for a, b in pairwise(costs))
    require(increasing, "costs", f"{exits} costs, increasing from exit to exit", costs)
    require(bool(budget >= costs[0]), "budget", f"at least {costs[0]:g}, the cost of the first exit", budget)
    cost_of_exits = torch.tensor(costs, dtype=torch.float64)
    powers = torch.arange(exits, dtype=torch.float64)
    low, high = -50.0, 50.0  # of log(1 - q): from all images at the first exit to all at the last
    for _ in range(100):
        middle = (low + high) / 2
        fractions = torch.softmax(powers * middle, dim=0)
        low, high = (middle, high) if (fractions * cost_of_exits).sum() <= budget else (low, middle)
    fractions = torch.softmax(powers * low, dim=0)
    confidences = confidence(outputs)
    require(not confidences.isnan().any(), "outputs", "logits that have a softmax", Words("some that are NaN or inf"))
    remaining, thresholds = torch.ones(images, dtype=torch.bool), []
    for k in range(exits - 1):
        count = min(math.ceil(fractions[k].item() * images - 1e-6), int(remaining.sum()))
        ranked = confidences[k][remaining].sort(descending=True).values
        thresholds.append(ranked[count - 1].item() if count else 1.1)
        remaining &= confidences[k] < thresholds[-1]
    return [*thresholds, 0.0]


def exits_taken(outputs: Float[Tensor, "exits images classes"], thresholds: Sequence[float]) -> Int[Tensor, " images"]:
    """Return the exit (from 1) at which each image leaves: the first whose confidence reaches its threshold."""
    require(len(thresholds) == len(outputs), "thresholds", f"{len(outputs)}, one per exit", list(thresholds))
    confident = confidence(outputs) >= torch.tensor(thresholds, dtype=torch.float64)[:, None]
    confident[-1] = True
    return confident.int().argmax(dim=0) + 1
