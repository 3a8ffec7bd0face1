"""Use an anytime network: answer within a budget, refine until a deadline, let easy images leave early."""

import math
import time
from collections.abc import Callable, Generator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Literal, get_args

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.sliced import TriangularConv
from mtanytime.backbones import Normalized
from mtanytime.checks import require_wanted
from mtanytime.devices import synchronise
from mtanytime.features import unwrapped
from mtanytime.measure.costs import latency, macs

Unit = Literal["macs", "ms", "exit"]


@dataclass(frozen=True)
class Answer:
    """Logits (batch, classes), the exit that gave them, and, of an answer to a deadline, the milliseconds it took."""

    logits: Float[Tensor, "batch classes"]
    exit: int
    milliseconds: float | None = None


class AnytimePredictor:
    """Answers of a trained anytime network: within a budget, by a deadline, or as early as each image allows.

    The network is copied when this is made, in eval mode and with batch norms folded into convolutions. `costs` is the
    table in which budgets are looked up: exit, macs and, for budgets in time, latency_ms.

    Args:
        network: an `AnytimeNetwork`, or one in a `Normalized`.
        image_shape: channels, height and width of the images to come.
        costs: a measured table, as `measure.curve` gives; None: multiply-adds are counted here, with each exit's own
            head alone, since only that one is run, and times are measured when first asked for.
        batch: images a call, for which times are measured.

    Raises:
        ValueError: a network without exits, a table that lacks a column or an exit.
    """

    def __init__(
        self,
        network: nn.Module,
        image_shape: Sequence[int] = (3, 32, 32),
        costs: pd.DataFrame | None = None,
        batch: int = 1,
    ) -> None:
        inner = unwrapped(network)
        require_wanted(isinstance(inner, AnytimeNetwork), "an AnytimeNetwork", type(inner).__name__)
        self._image_shape, self._batch = tuple(image_shape), batch
        self._wrapper = network.wrap(nn.Identity()) if isinstance(network, Normalized) else None
        self._exits = [fold_batch_norms(inner.extract(k)) for k in range(1, inner.exits + 1)]
        self._whole = fold_batch_norms(inner) if hasattr(inner, "refine") else None
        self._like = next(self._exits[0].parameters())
        if costs is None:
            numbers = range(1, inner.exits + 1)
            costs = pd.DataFrame({"exit": numbers, "macs": [macs(part, image_shape) for part in self._as_run()]})
        missing = {"exit", "macs"} - set(costs.columns)
        require_wanted(not missing, "costs with columns exit and macs", list(costs.columns))
        self.costs = costs.sort_values("exit", ignore_index=True)
        wanted = list(range(1, inner.exits + 1))
        require_wanted(list(self.costs["exit"]) == wanted, f"costs of the exits {wanted}", list(costs["exit"]))

    def choose(self, budget: float, unit: Unit = "macs") -> int:
        """The widest exit within a budget: multiply-adds an image, milliseconds a batch, or an exit's own number.

        ValueError for a budget that does not pay for the first exit (naming what that costs), or another unit.
        """
        require_wanted(unit in get_args(Unit), f"unit one of {get_args(Unit)}", unit)
        require_wanted(isinstance(budget, Real), "a budget that is a number", budget)
        if unit == "exit":
            require_wanted(budget in list(self.costs["exit"]), f"an exit from 1 to {len(self.costs)}", budget)
            return int(budget)
        column, words = ("macs", "multiply-adds an image") if unit == "macs" else ("latency_ms", "ms a batch")
        if column not in self.costs:
            images = torch.rand(self._batch, *self._image_shape)
            self.costs["latency_ms"] = [latency(part, images)["latency_ms"] for part in self._as_run()]
        within = self.costs[self.costs[column] <= budget]
        if within.empty:
            least = self.costs[column].min()
            raise ValueError(f"a budget of {budget:g} {words} pays for no exit; the cheapest takes {least:g}")
        return int(within["exit"].max())

    @torch.no_grad()
    def predict(
        self, images: Float[Tensor, "batch channel height width"], budget: float, unit: Unit = "macs"
    ) -> Answer:
        """The answer of the widest exit within a budget to images in [0, 1]; see `choose`. ValueError also for images
        of another size than the costs are for, where the budget is not an exit, and for images that are no floats."""
        k = self.choose(budget, unit)
        if unit != "exit":
            require_wanted(
                tuple(images.shape[1:]) == self._image_shape, f"images {self._image_shape}", tuple(images.shape)
            )
        return Answer(self._exits[k - 1](self._normalised(images)), k)

    def answer_by(
        self,
        images: Float[Tensor, "batch channel height width"],
        deadline: float,
        on_answer: Callable[[Answer], None] | None = None,
    ) -> Answer:
        """Refine the answer to a batch until a deadline, milliseconds from now, and return the widest there is.

        A step that has begun cannot be stopped, so one that is not expected to end in time is not begun: multiply-adds
        are taken to need as long as those before them. The first answer is always given, however late (a deadline of 0
        asks for nothing else). `on_answer` is told every answer as it comes. ValueError for a network that cannot
        refine, or a deadline below zero.
        """
        started = time.perf_counter()
        require_wanted(deadline >= 0, "a deadline of 0 ms or more", deadline)
        cost = self.costs["macs"].tolist()
        for k, logits in enumerate(self._refine(images), 1):
            synchronise(logits.device)
            answer = Answer(logits, k, 1000 * (time.perf_counter() - started))
            if on_answer is not None:
                on_answer(answer)
            if k == len(cost) or answer.milliseconds * cost[k] / cost[k - 1] > deadline:
                break
        return answer

    def leave_early(
        self, images: Float[Tensor, "batch channel height width"], thresholds: Sequence[float]
    ) -> tuple[Float[Tensor, "batch classes"], Int[Tensor, " batch"]]:
        """The logits with which each image leaves, and its exit: only images that are not confident are refined.

        `thresholds` as `choose_thresholds` gives them. ValueError for a network that cannot refine, or another number
        of thresholds.
        """
        exits = len(self._exits)
        require_wanted(len(thresholds) == exits, f"{exits} thresholds, one an exit", list(thresholds))
        steps = self._refine(images)
        logits = next(steps)
        answers, taken = logits.clone(), torch.ones(len(images), dtype=torch.int64, device=logits.device)
        there = torch.arange(len(images), device=logits.device)  # the images that have not left
        for k in range(1, exits + 1):
            answers[there], taken[there] = logits, k
            keep = _confidence(logits) < thresholds[k - 1]
            there = there[keep]
            if k == exits or not len(there):
                break
            logits = steps.send(keep)
        return answers, taken

    def _refine(self, images: Tensor) -> Generator[Tensor, Tensor | None, None]:
        require_wanted(self._whole is not None, "a network with refine, such as SlicedResNeXt", "one without")
        return self._whole.refine(self._normalised(images))

    def _as_run(self) -> list[nn.Module]:
        """Every exit with what is done to the images before it."""
        return self._exits if self._wrapper is None else [nn.Sequential(self._wrapper, part) for part in self._exits]

    def _normalised(self, images: Tensor) -> Tensor:
        """The images as the network reads them, on its device."""
        fine = isinstance(images, Tensor) and images.is_floating_point()
        require_wanted(fine, "a tensor of floats in [0, 1]", getattr(images, "dtype", type(images).__name__))
        images = images.to(self._like.device, self._like.dtype)
        return images if self._wrapper is None else self._wrapper(images)


def choose_thresholds(
    outputs: Float[Tensor, "exits images classes"], costs: Sequence[float], budget: float
) -> list[float]:
    """Confidences at which images leave, so that they cost `budget` on average (arXiv:1703.09844, section 4.2).

    Confidence is the largest softmax probability. As there, each exit is to answer the same share q of the images that
    reach it, so exit k answers in proportion to q·(1 - q)^(k-1); q is found by bisection, then the thresholds, exit by
    exit, on validation data. Ties may make an exit answer more than its share, so the budget is kept on these data.

    Args:
        outputs: logits of all exits on validation images, as `measure.predictions` gives.
        costs: of leaving at each exit, thin to wide, in any unit.
        budget: what an image may cost on average, in the same unit.

    Returns:
        One threshold an exit; the last is 0.

    Raises:
        ValueError: costs that do not rise, another number of them than exits, a budget below the first one.
    """
    exits, images, _ = outputs.shape
    rising = len(costs) == exits and all(a < b for a, b in pairwise(costs))
    require_wanted(rising, f"{exits} costs, rising from exit to exit", list(costs))
    require_wanted(bool(budget >= costs[0]), f"a budget of {costs[0]:g} or more, the cost of the first exit", budget)
    costs_ = torch.tensor([float(cost) for cost in costs], dtype=torch.float64)
    powers = torch.arange(exits, dtype=torch.float64)
    low, high = -50.0, 50.0  # of log(1 - q): from all at the first exit to all at the last
    for _ in range(100):
        middle = (low + high) / 2
        wanted = torch.softmax(powers * middle, dim=0)
        low, high = (middle, high) if (wanted * costs_).sum() <= budget else (low, middle)
    wanted = torch.softmax(powers * low, dim=0)
    confidence = _confidence(outputs)
    left, thresholds = torch.ones(images, dtype=torch.bool), []
    for k in range(exits - 1):
        count = min(math.ceil(wanted[k].item() * images - 1e-6), int(left.sum()))
        ranked = confidence[k][left].sort(descending=True).values
        thresholds.append(ranked[count - 1].item() if count else 1.1)
        left &= confidence[k] < thresholds[-1]
    return [*thresholds, 0.0]


def exits_taken(outputs: Float[Tensor, "exits images classes"], thresholds: Sequence[float]) -> Int[Tensor, " images"]:
    """The exit (from 1) at which each image leaves: the first whose confidence reaches its threshold."""
    require_wanted(len(thresholds) == len(outputs), f"{len(outputs)} thresholds, one an exit", list(thresholds))
    confident = _confidence(outputs) >= torch.tensor(thresholds, dtype=torch.float64)[:, None]
    confident[-1] = True
    return confident.int().argmax(dim=0) + 1


def _confidence(logits: Float[Tensor, "*more classes"]) -> Float[Tensor, "*more"]:
    """The largest softmax probability."""
    return logits.double().softmax(dim=-1).amax(dim=-1)


@torch.no_grad()
def fold_batch_norms(network: nn.Module) -> nn.Module:
    """A copy in eval mode whose batch norms are part of the convolution before them, wherever that is exact.

    Exact is: a norm that takes a convolution's own output, with running statistics. Those are known for convolutions
    followed by a norm in an `nn.Sequential`, and for modules that name them in `convolutions_with_norms`. A norm before
    an activation that comes before the convolution, as at the head of a pre-activation block, stays.
    """
    made = deepcopy(network).eval()
    for module in list(made.modules()):
        pairs = list(getattr(module, "convolutions_with_norms", ()))
        if isinstance(module, nn.Sequential):
            pairs += pairwise(module._modules)
        for first, second in pairs:
            convolution, norm = getattr(module, first), getattr(module, second)
            if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and _fold(convolution, norm):
                setattr(module, second, nn.Identity())
    return made


def _fold(convolution: nn.Module, norm: nn.BatchNorm2d) -> bool:
    """Put a norm into a convolution; whether that is possible."""
    settings = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(convolution, TriangularConv):
        factor = norm.running_var.add(norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight
        bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        bias = bias * factor if norm.bias is None else bias * factor + norm.bias
        for weight, part in zip(convolution.weights, factor.split(list(convolution.outputs)), strict=True):
            weight.mul_(part[:, None])
        convolution.bias = nn.Parameter(bias)
        return True
    if type(convolution) is nn.Conv2d:
        weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *settings)
        convolution.weight, convolution.bias = weight, bias
        return True
    return False
