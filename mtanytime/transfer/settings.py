"""The settings of a transfer, validated."""

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, Literal

from mtanytime.checks import require
from mtanytime.data.transforms import Augment, as_augment
from mtanytime.data.views import StrongViews
from mtanytime.training.settings import new, plain_numbers
from mtanytime.transfer.bilevel import Mode
from mtanytime.transfer.lookahead import OuterObjective, check_settings
from mtanytime.transfer.meta_networks import Where, WhereStart, check_where

# The settings of the paper and of the authors' code: TransferTrainer(source, target, data, **PAPER)
PAPER: dict[str, Any] = {
    "what": True,
    "where": "relu6",
    "beta": 0.5,
    "standardize": False,
    "views": None,
    "teacher": None,
    "epochs": 200,
    "batch_size": 128,
    "remainder": "keep",
    "lr": 0.1,
    "weight_decay": 1e-4,
    "schedule": "cosine",
}
# Those of a training with few labels (see data/results/long_cifar10_n50.csv); views double the batch.
FEW_LABELS: dict[str, Any] = {
    "steps": 4000,
    "batch_size": 32,
    "remainder": "drop",
    "lr": 0.05,
    "weight_decay": 5e-4,
    "schedule": "warm-up cosine",
}


OF_LEARNING = (
    *("outer", "inner_steps", "stages", "first_order"),
    *("meta_lr", "meta_weight_decay", "meta_every", "meta_clip"),
)


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """How `TransferTrainer` transfers. All but `mode` identify the run.

    The defaults follow what wins in our tables of CIFAR-10 with few labels; standardized features and their β were
    compared there in one short trial (see `RESULTS.md`).

    Args:
        what: learn channel weights.
        where: how the pair weights are learned: "relu6" (the paper), "relu", "constant" or "off". With `what` off as
            well, the matching is fixed, λ = 1 and w = 1/C, and there is no lookahead.
        where_start: "random" (the authors' code) or, for relu6 and relu, "even", λ = 1 for all pairs (see
            `MetaNetworks`).
        beta, inner_steps, stages, outer, first_order, mode: see `Lookahead`.
        standardize: standardize the source's features, so that β and the learning rate mean the same for every
            network (see `matching.source_standards`). "network": one scale for all layers of a source, which keeps
            their shares of the loss (with a `map`, its λ weight their variances); True: one per pair, so that a
            constant prediction has the error 1; False: the features as they are, as in the paper. The meta-networks
            read the features as they are in any case.
        meta_lr, meta_weight_decay: of Adam on the meta-networks.
        meta_every: steps from one lookahead to the next; 1 in the paper. The steps between use the meta-networks'
            current weights and cost as much as plain matching.
        meta_clip: the largest norm of the meta-gradient, to which larger ones are scaled down; None: no limit.
        normalize_weights: λ has the mean 1 over the pairs (see `MetaNetworks`), that of a `map` as well. A map with λ
            near 6 may diverge without it.
        views: how many strong views of labelled images per step to match and distill on, besides the batch itself;
            "batch": as many as the batch size, or none if there are unlabelled images; None: none.
        view_augment: makes a view, see `data.StrongViews`.
        unlabelled_per_step: unlabelled images per step; default: the batch size.
        teacher_weight, temperature: of the distillation of the teacher's answers, see `distillation`.
        trace_every: steps between rows of the trace; default: a hundredth of the run. Channel weights are recorded at
            every fifth of them.

    Raises:
        ValueError: a setting outside these limits, by name.
    """

    what: bool = False
    where: Where = "off"
    where_start: WhereStart = "random"
    beta: float = 5.0
    inner_steps: int = 2
    stages: int = 3
    meta_lr: float = 1e-4
    meta_weight_decay: float = 1e-4
    outer: OuterObjective | None = None
    first_order: bool = False
    trace_every: int | None = None
    mode: Mode = field(default="keep", metadata={"identifies": False})
    meta_every: int = field(default=1, metadata=new(1))
    meta_clip: float | None = field(default=None, metadata=new(None))
    normalize_weights: bool = field(default=False, metadata=new(False))
    standardize: bool | Literal["network"] = field(default="network", metadata=new(False))
    views: int | Literal["batch"] | None = field(default="batch", metadata=new(None))
    view_augment: Augment = field(default=StrongViews(), metadata=new(StrongViews()))
    unlabelled_per_step: int | None = field(default=None, metadata=new(None))
    teacher_weight: float = field(default=1.0, metadata=new(1.0))
    temperature: float = field(default=2.0, metadata=new(2.0))

    def __post_init__(self) -> None:
        plain_numbers(self)
        require(self.what in (False, True), "what", "True or False", self.what)
        check_where(self.where, self.where_start)
        units = (False, True, "network")
        require(self.standardize in units, "standardize", f"one of {units}", self.standardize)
        check_settings(self)
        for name in ("teacher_weight", "temperature"):
            require(0 < getattr(self, name) < math.inf, name, "a number > 0", getattr(self, name))
        require(0 < self.meta_lr < math.inf, "meta_lr", "a number > 0", self.meta_lr)
        require(0 <= self.meta_weight_decay < math.inf, "meta_weight_decay", "a number >= 0", self.meta_weight_decay)
        for name in ("trace_every", "views", "unlabelled_per_step", "meta_every"):
            value = getattr(self, name)
            if name == "views" and value == "batch":
                continue
            whole = isinstance(value, Integral) and value is not True and value >= 1
            require(whole or (value is None and name != "meta_every"), name, "a whole number >= 1", value)
        require(self.meta_clip is None or 0 < self.meta_clip < math.inf, "meta_clip", "a number > 0", self.meta_clip)
        object.__setattr__(self, "view_augment", as_augment(self.view_augment))


def unused_settings(settings: TransferSettings) -> list[str]:
    """A note on settings of the meta-networks' learning that differ from the defaults where nothing is learned."""
    usual = TransferSettings()
    names = [name for name in OF_LEARNING if getattr(settings, name) != getattr(usual, name)]
    return [f"{', '.join(names)}: not used, as nothing is learned"] if names else []
