"""Algorithm 1 of L2T-ww (arXiv:1905.05901), without a trainer.

One batch is one step of a training loop. θ are the student's parameters, φ those of the meta-networks:

    losses = lookahead.losses(images, labels, source_features, meta(source_features))
    lookahead.step(losses)      # θ: one SGD step on the task's loss + β · the matching loss
    lookahead.backward(losses)  # φ.grad: the meta-gradient at the new θ

From the new θ, the lookahead takes `inner_steps` SGD steps on β · the matching loss, then one on the task's loss. The
outer loss at the resulting parameters is differentiated with respect to φ; θ itself does not change. If a batch also
holds images without labels, the step on the task's loss runs on the labelled images only, batch norm included.

A tapped layer that stochastic depth skips is not matched in that forward pass. If the real step of a batch skips it,
the lookahead of that batch does not match it either.

Deviation from the authors' code: the lookahead leaves the batch-norm statistics as they were.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import KW_ONLY, Field, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from numbers import Integral
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.devices import Precision, autocast
from mtanytime.features import Tapped
from mtanytime.functional import functional_call, tensor_names, trial_run
from mtanytime.training.distributed import Processes
from mtanytime.transfer.bilevel import (
    InnerStep,
    Loss,
    MetaGradient,
    Mode,
    SGDState,
    Tensors,
    check_mode,
    meta_gradient,
)
from mtanytime.transfer.matching import FeatureMatching
from mtanytime.transfer.meta_networks import PairWeights
from mtanytime.transfer.second_order import second_order

Forward = Callable[[Tensor], Any]
OuterObjective = Callable[[Forward, Tensor, Tensor], Tensor]


class Student(nn.Module):
    """The tapped target network together with its regressors, which are trained with it: θ of the paper."""

    def __init__(self, target: Tapped, matching: FeatureMatching) -> None:
        super().__init__()
        self.target, self.matching = target, matching

    def forward(
        self,
        images: Float[Tensor, "batch channel height width"],
        aligned: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> tuple[Any, Float[Tensor, " batch"] | None]:
        """The target's output and, given `FeatureMatching.align`'s maps and the weights λ·w, each image's L_wfm."""
        if aligned is None:
            return self.target.model(images), None
        output, features = self.target(images, complete=False)
        return output, self.matching.aligned_loss(features, aligned, weights)


class Shares(NamedTuple):
    """The fractions of a step's images that this process holds, if several processes share the step."""

    labelled: float = 1.0
    all: float = 1.0


WHOLE = Shares()


@dataclass(frozen=True)
class TransferBatch:
    """One batch, with everything that stays constant during its steps.

    The labelled images come first; the others are only matched.

    `aligned` holds the source maps by target layer (see `FeatureMatching.align`), `weights` λ·w by target layer in the
    graph of φ. `leaves` are detached copies of `weights`. The lookahead differentiates with respect to them, so φ's
    own graph is traversed once per batch. Mean losses are multiplied by `shares`.
    """

    images: Float[Tensor, "batch channel height width"]
    labels: Int[Tensor, " labelled"]
    aligned: Mapping[str, Float[Tensor, "batch _ _ _"]]
    weights: Mapping[str, Float[Tensor, "batch _"]]
    leaves: Mapping[str, Float[Tensor, "batch _"]]
    shares: Shares = WHOLE


@dataclass(frozen=True)
class Losses:
    """The losses of one batch at θ: `total` = `task` + `matching` with its weight β, and what `plus` adds.

    With several processes, each holds its parts of the losses; their sums over the processes are the batch's losses.

    `output` is the target's output for all images.
    """

    total: Float[Tensor, ""]
    task: Float[Tensor, ""]
    matching: Float[Tensor, ""]
    output: Any
    batch: TransferBatch

    def plus(self, loss: Float[Tensor, ""]) -> "Losses":
        """Add a further loss to the total, such as a distillation of `output`. The lookahead leaves it out."""
        return replace(self, total=self.total + loss)


@dataclass(frozen=True, eq=False)
class Lookahead:
    """Algorithm 1 for one student: the losses of a batch, the step on θ, and the meta-gradient for φ.

    Example:
        >>> import mtanytime as mt
        >>> from mtanytime.transfer import FeatureMatching, Lookahead, MetaNetworks, Student
        >>> ends = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        >>> source = mt.tap(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *ends, nn.Linear(16, 5)).eval(), ["0"])
        >>> target = mt.tap(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *ends, nn.Linear(8, 4)), ["0"])
        >>> pairs = [("0", "0")]  # (source layer, target layer), paths in `named_modules()`
        >>> student, meta = Student(target, FeatureMatching(pairs, {"0": 16}, {"0": 8})), MetaNetworks(pairs, {"0": 16})
        >>> sgd, adam = torch.optim.SGD(student.parameters(), lr=0.1), torch.optim.Adam(meta.parameters(), lr=1e-4)
        >>> lookahead = Lookahead(student, sgd, beta=0.5)
        >>> for images, labels in [(torch.rand(4, 3, 8, 8), torch.arange(4))]:
        ...     with torch.no_grad():
        ...         _, source_features = source(images)
        ...     losses = lookahead.losses(images, labels, source_features, meta(source_features))
        ...     lookahead.step(losses)
        ...     adam.zero_grad()
        ...     outer_loss = lookahead.backward(losses)
        ...     adam.step()

    Args:
        student: the target network and its regressors.
        optimizer: SGD over all of the student's parameters that require grad. The lookahead takes the same steps and
            starts from its momentum. A loop that never looks ahead may use any optimizer.
        loss: the task's loss, `loss(target(images), labels)` -> scalar.
        beta: β > 0, the weight of the matching loss.
        inner_steps: T ≥ 1, the matching steps of the lookahead.
        stages: 3 for T matching steps and a task step, or 2 for T steps on task + β · matching (described in the
            paper; the details are our reconstruction).
        outer: the outer objective, `outer(forward, images, labels)` -> scalar, where `forward` is the target after the
            lookahead, in train mode; default: the task's loss on the same batch.
        mode, first_order: how the meta-gradient is computed (see `bilevel.meta_gradient`).
        precision: "float32", or "bfloat16" for autocast.
        fast_layers: run the inner steps within `second_order`, which saves a third of the time. False for a target that
            computes gradients itself or recomputes activations (see `double_backward.allows_fast_layers`).

    With several processes (see `training.distributed`), each passes its part of a batch, and the `shares` of that part.
    All of them then take the step of the full batch, and `backward` gives each its part of the meta-gradient. Batch
    norm shares its moments within `training.shared_batch_norm`.

    Raises:
        ValueError: for bad settings.
    """

    student: Student
    optimizer: torch.optim.Optimizer
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    _: KW_ONLY
    beta: float = 0.5
    inner_steps: int = 2
    stages: int = 3
    outer: OuterObjective | None = None
    mode: Mode = "keep"
    first_order: bool = False
    precision: Precision = "float32"
    fast_layers: bool = True
    processes: Processes = field(default_factory=Processes)

    def __post_init__(self) -> None:
        check_settings(self)
        require(self.precision in get_args(Precision), "precision", f"one of {get_args(Precision)}", self.precision)

    def losses(
        self,
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " labelled"],
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        weights: PairWeights,
        shares: Shares = WHOLE,
    ) -> Losses:
        """The losses of a batch at the current θ.

        `source_features` are the source's maps by layer, detached; `weights` come from the meta-networks. If there
        are fewer labels than images, the first images are the labelled ones, and the others are only matched.
        """
        with self._autocast():
            output, features = self.student.target(images, complete=False)
            batch = replace(self._prepare(images, labels, source_features, features, weights), shares=shares)
            labelled = first_images(output, len(images), len(labels))
            task = _scaled(self.loss(labelled, labels), shares.labelled)
            matching = self.student.matching.aligned_loss(features, batch.aligned, batch.leaves).mean()
            matching = _scaled(self.beta * matching, shares.all)
            return Losses(task + matching, task, matching, output, batch)

    def step(self, losses: Losses) -> None:
        """Take one SGD step on the total loss.

        Parameters that the loss does not reach get a zero gradient, not None, so that momentum and weight decay still
        move them, as in the lookahead.
        """
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer.zero_grad(set_to_none=False)
        losses.total.backward(inputs=parameters)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.processes.sum_gradients(parameters)
        self.optimizer.step()

    def backward(self, losses: Losses) -> Float[Tensor, ""]:
        """Add the meta-gradient at the current θ to φ's `.grad`; returns the outer loss, detached.

        With several processes, both are this process's parts: sum them over the processes before the step on φ.

        Raises:
            ValueError: if the weights depend on no parameters, so that there is nothing to learn.
        """
        weights = losses.batch.weights.values()
        if not any(value.requires_grad for value in weights):
            raise mismatch("weights", "pair weights that require grad", Words("constant ones"))
        meta = self._look_ahead(losses.batch)
        torch.autograd.backward(list(weights), meta.gradients)
        return meta.outer_loss

    def meta_gradient(
        self,
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " labelled"],
        source_features: Mapping[str, Float[Tensor, "batch _ _ _"]],
        weights: PairWeights,
        hyper: Sequence[Tensor],
        shares: Shares = WHOLE,
    ) -> MetaGradient:
        """The outer loss of a batch after a lookahead from the current θ, and its gradient with respect to `hyper`.

        `hyper` are tensors that `weights` was computed from, such as the meta-networks' parameters. Nothing changes:
        no `.grad`, no buffer, no random state.
        """
        target = self.student.target
        with trial_run(target, images.device, training=True) as buffers:
            with torch.no_grad():
                features = functional_call(target, buffers, images, False)[1]
            batch = replace(self._prepare(images, labels, source_features, features, weights), shares=shares)
            meta = self._look_ahead(batch)
        return MetaGradient(
            meta.outer_loss, list(torch.autograd.grad(list(batch.weights.values()), list(hyper), meta.gradients))
        )

    def _prepare(
        self, images: Tensor, labels: Tensor, source_features: Tensors, target_features: Tensors, weights: PairWeights
    ) -> TransferBatch:
        sizes = {layer: tuple(maps.shape[2:]) for layer, maps in target_features.items()}
        aligned = self.student.matching.align(source_features, sizes)
        by_target = self.student.matching.stack(weights)
        leaves = {layer: value.detach().requires_grad_(value.requires_grad) for layer, value in by_target.items()}
        return TransferBatch(images, labels, aligned, by_target, leaves)

    def _look_ahead(self, batch: TransferBatch) -> MetaGradient:
        """The outer loss after the lookahead from the current θ, and its gradient with respect to `batch.leaves`."""

        def student(state: Tensors, *inputs: Any) -> tuple[Any, Tensor | None]:
            return functional_call(self.student, state, *inputs, names=self._names)

        def matching(state: Tensors) -> Tensor:
            loss = student(state, batch.images, batch.aligned, batch.leaves)[1].mean()
            return _scaled(self.beta * loss, batch.shares.all)

        count = len(batch.labels)
        labelled_images, shares = batch.images[:count], batch.shares

        def task(state: Tensors) -> Tensor:
            return _scaled(self.loss(student(state, labelled_images)[0], batch.labels), shares.labelled)

        def both(state: Tensors) -> Tensor:
            output, matching_loss = student(state, batch.images, batch.aligned, batch.leaves)
            task_loss = self.loss(first_images(output, len(batch.images), count), batch.labels)
            return _scaled(task_loss, shares.labelled) + _scaled(self.beta * matching_loss.mean(), shares.all)

        def outer(state: Tensors) -> Tensor:
            with self._autocast():
                if self.outer is None:
                    return task(state)
                own = self.outer(lambda x: student(state, x)[0], labelled_images, batch.labels)
                return _scaled(own, shares.labelled)

        def inner(loss: Loss, first: bool) -> InnerStep:
            def run(state: Tensors) -> Tensor:
                with self._layers(first), self._autocast():
                    return loss(state)

            return InnerStep(run, uses_hyper=loss is not task)

        losses = [matching] * self.inner_steps + [task] if self.stages == 3 else [both] * self.inner_steps
        return meta_gradient(
            [inner(loss, first=i == 0) for i, loss in enumerate(losses)],
            outer,
            SGDState.read(self.student, self.optimizer),
            list(batch.leaves.values()),
            mode=self.mode,
            first_order=self.first_order,
            processes=self.processes,
        )

    def _layers(self, first: bool) -> AbstractContextManager[None]:
        """The context in which an inner step runs its layers.

        The weights λ·w enter after every layer. So a layer's maps and parameters need a second derivative only in steps
        whose parameters depend on φ, and only for the exact gradient.
        """
        if self.mode == "unroll" or not self.fast_layers:
            return second_order(fast=False)
        return second_order(for_parameters=not first and not self.first_order)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(next(self.student.parameters()).device, self.precision)

    @cached_property
    def _names(self) -> dict[str, str]:
        return tensor_names(self.student)


def _scaled(loss: Tensor, share: float) -> Tensor:
    return loss if share == 1 else loss * share


def first_images(output: Any, images: int, count: int) -> Any:
    """A target's output for the first `count` images: the first rows of every tensor that has one row per image."""
    if count == images:
        return output
    if isinstance(output, Tensor):
        return output[:count] if output.ndim > 0 and len(output) == images else output
    if isinstance(output, tuple | list):
        parts = [first_images(part, images, count) for part in output]
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    if isinstance(output, Mapping):
        cut = copy(output)
        for name, part in output.items():
            cut[name] = first_images(part, images, count)
        return cut
    parts = getattr(output, "__dict__", {}) or {field.name: getattr(output, field.name) for field in _fields(output)}
    if parts:
        cut = copy(output)
        for name, part in parts.items():
            object.__setattr__(cut, name, first_images(part, images, count))  # a frozen dataclass, too
        return cut
    return output


def _fields(value: Any) -> tuple[Field[Any], ...]:
    return fields(value) if is_dataclass(value) else ()


def check_settings(settings: Any) -> None:
    """Raise ValueError for a bad setting of `Lookahead`, given as attributes of an object."""
    require(0 < settings.beta < math.inf, "beta", "a number > 0", settings.beta)
    whole = isinstance(settings.inner_steps, Integral) and settings.inner_steps >= 1
    remedy = "without a matching step the meta-networks get no gradient"
    require(whole, "inner_steps", "a whole number >= 1", settings.inner_steps, remedy)
    require(settings.stages in (2, 3), "stages", "2 or 3", settings.stages)
    check_mode(settings.mode, settings.first_order)
