"""The settings of a transfer, validated."""

import math
from dataclasses import dataclass
from numbers import Integral

from mtanytime.checks import require
from mtanytime.transfer.bilevel import Mode
from mtanytime.transfer.lookahead import OuterObjective, check_settings
from mtanytime.transfer.meta_networks import Where, WhereStart, check_where


@dataclass(frozen=True, kw_only=True)
class TransferSettings:
    """How `TransferTrainer` transfers. All but `mode` identify the run.

    Args:
        what: learn channel weights.
        where: how the pair weights are learned: "relu6", "relu", "constant" or "off". With `what` off as well, the
            matching is fixed, λ = 1 and w = 1/C, and there is no lookahead.
        where_start: "random" (the authors' code) or, for relu6 and relu, "even", λ = 1 for all pairs (see
            `MetaNetworks`).
        beta, inner_steps, stages, outer, first_order, mode: see `Lookahead`.
        meta_lr, meta_weight_decay: of Adam on the meta-networks.
        trace_every: steps between rows of the trace; default: a hundredth of the run. Channel weights are recorded at
            every fifth of them.

    Raises:
        ValueError: a setting outside these limits, by name.
    """

    what: bool = True
    where: Where = "relu6"
    where_start: WhereStart = "random"
    beta: float = 0.5
    inner_steps: int = 2
    stages: int = 3
    meta_lr: float = 1e-4
    meta_weight_decay: float = 1e-4
    outer: OuterObjective | None = None
    first_order: bool = False
    trace_every: int | None = None
    mode: Mode = "keep"

    def __post_init__(self) -> None:
        check_where(self.where, self.where_start)
        check_settings(self.beta, self.inner_steps, self.stages, self.mode, self.first_order)
        require(0 < self.meta_lr < math.inf, "meta_lr", "a number > 0", self.meta_lr)
        require(0 <= self.meta_weight_decay < math.inf, "meta_weight_decay", "a number >= 0", self.meta_weight_decay)
        steps = self.trace_every
        require(
            steps is None or (isinstance(steps, Integral) and steps >= 1), "trace_every", "a whole number >= 1", steps
        )
