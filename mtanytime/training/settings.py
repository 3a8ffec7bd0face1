"""The settings that trainers share: their names, defaults and limits in one place."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Integral
from typing import Any, TypeVar, get_args

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from mtanytime.checks import Words, require
from mtanytime.data.batches import Remainder
from mtanytime.data.transforms import Augment, as_augment
from mtanytime.devices import Precision
from mtanytime.training.schedule import SCHEDULES, Schedule

T = TypeVar("T")


def plain_numbers(settings: Any) -> None:
    """Replace the numbers of numpy and torch in a frozen dataclass, which no checkpoint could hold, by Python's."""
    for own in fields(settings):
        value = getattr(settings, own.name)
        if isinstance(value, np.generic | Tensor) and value.ndim == 0:
            object.__setattr__(settings, own.name, value.item())


def new(before: Any) -> dict[str, Any]:
    """Metadata of a field that old runs did not have: a run's record leaves it out if its value is `before`."""
    return {"before": before}


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """How a run trains. Together with its network and data, these settings identify the run.

    Args:
        epochs: passes over the training set; 200 unless `steps` is given.
        steps: training steps, in place of `epochs`; the last epoch may then be incomplete.
        batch_size: images per batch. A `DataLoader` keeps its own batch size.
        remainder: "keep" an epoch's last, smaller batch, or "drop" it, so that all batches have one size. Not for a
            `DataLoader`, which has its own `drop_last`.
        lr: learning rate at the start of the schedule; 0.1 for SGD, and the optimizer's own if `optimizer` is given.
        optimizer: a function of the list of parameters that returns any torch optimizer, such as
            `functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.05)`; default: `torch.optim.SGD` with the
            next three settings. The schedule multiplies the learning rate of each of its parameter groups.
        momentum: of SGD, in [0, 1).
        weight_decay: of SGD.
        nesterov: use Nesterov momentum.
        schedule: factor of the learning rate over the run. Per epoch: "cosine", "steps" (÷ 10 at ½ and at ¾ of the
            epochs), "constant", or a function of the fraction of epochs done. Per step: "warm-up cosine", which rises
            over the first twentieth of the run and then falls as a cosine.
        loss: `loss(model(images), labels)`, a scalar tensor.
        logits: a function from the network's output to the logits (batch, classes), which accuracies are computed from;
            default: see `measure.logits.find_logits`.
        augment: transform of each training batch, such as `data.crop_flip()`.
        seed: of the order of the images, augmentation, dropout and initial weights.
        precision: "float32", or "bfloat16" for autocast; the weights stay in float32.

    Raises:
        ValueError: a setting outside these limits, by name.
    """

    epochs: int | None = None
    steps: int | None = field(default=None, metadata=new(None))
    batch_size: int = 128
    remainder: Remainder = field(default="keep", metadata=new("keep"))
    lr: float | None = None
    optimizer: Callable[[list[nn.Parameter]], Optimizer] | None = field(default=None, metadata=new(None))
    momentum: float = 0.9
    weight_decay: float = 1e-4
    nesterov: bool = False
    schedule: Schedule = "cosine"
    loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
    logits: Callable[[Any], Any] | None = field(default=None, metadata=new(None))
    augment: Augment | None = None
    seed: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        plain_numbers(self)
        both = self.epochs is not None and self.steps is not None
        remedy = "give the other as None, such as one of a preset"
        require(
            not both,
            "steps",
            "steps or epochs, not both",
            Words(f"{self.steps} steps and {self.epochs} epochs"),
            remedy,
        )
        if self.epochs is None and self.steps is None:
            object.__setattr__(self, "epochs", 200)
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            needed = value is not None or name == "batch_size"
            require(not needed or (isinstance(value, Integral) and value >= 1), name, "a whole number >= 1", value)
        require(isinstance(self.seed, Integral), "seed", "a whole number", self.seed)
        remainders = get_args(Remainder)
        require(self.remainder in remainders, "remainder", f"one of {remainders}", self.remainder)
        if self.optimizer is None:
            object.__setattr__(self, "lr", 0.1 if self.lr is None else self.lr)
        else:
            self._check_optimizer()
        require(self.lr is None or 0 < self.lr < math.inf, "lr", "a number > 0", self.lr)
        require(0 <= self.momentum < 1, "momentum", "a number in [0, 1)", self.momentum)
        require(0 <= self.weight_decay < math.inf, "weight_decay", "a number >= 0", self.weight_decay)
        require(self.momentum > 0 or not self.nesterov, "momentum", "a number > 0 with nesterov", self.momentum)
        known = callable(self.schedule) or self.schedule in SCHEDULES
        require(known, "schedule", f"a function or one of {list(SCHEDULES)}", self.schedule)
        precisions = get_args(Precision)
        require(self.precision in precisions, "precision", f"one of {precisions}", self.precision)
        object.__setattr__(self, "augment", as_augment(self.augment))

    def _check_optimizer(self) -> None:
        remedy = "pass a function: optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3)"
        got = Words(type(self.optimizer).__name__)
        require(callable(self.optimizer), "optimizer", "a function that makes the optimizer", got, remedy)
        for own in fields(self):
            if own.name in ("momentum", "weight_decay", "nesterov"):
                value = getattr(self, own.name)
                remedy = "give it to the optimizer"
                require(value == own.default, own.name, "no value beside an optimizer of your own", value, remedy)

    @property
    def sgd(self) -> dict[str, Any]:
        """The arguments of `torch.optim.SGD`."""
        return {name: getattr(self, name) for name in ("lr", "momentum", "weight_decay", "nesterov")}


def with_keywords_of(*owners: type) -> Callable[[type[T]], type[T]]:
    """Class decorator: `help()` and `inspect.signature` show the keywords of `owners` in place of `**settings`.

    An owner is a dataclass of settings, or the base class that receives the other keywords. A keyword that the class
    itself takes is not repeated. Defaults in the class attribute `defaults` replace those of the owners.
    """

    def decorate(cls: type[T]) -> type[T]:
        signature = inspect.signature(cls.__init__)
        own = [p for p in list(signature.parameters.values())[1:] if p.kind is not p.VAR_KEYWORD]
        keywords = {p.name: p for owner in owners for p in inspect.signature(owner).parameters.values()}
        taken = {p.name for p in own}
        shared = [
            p.replace(default=cls.defaults.get(p.name, p.default))
            for p in keywords.values()
            if p.kind is p.KEYWORD_ONLY and p.name not in taken
        ]
        cls.__signature__ = signature.replace(parameters=own + shared, return_annotation=inspect.Signature.empty)
        return cls

    return decorate


def complete(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings completed by a trainer's defaults: no steps if there are epochs, no rate if there is an optimizer."""
    ruled_out = {"steps"} if settings.get("epochs") is not None else set()
    ruled_out |= {"lr", "weight_decay"} if settings.get("optimizer") is not None else set()
    return {name: value for name, value in defaults.items() if name not in ruled_out} | dict(settings)


def split_settings(keywords: Mapping[str, Any], settings: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """The keyword arguments that a dataclass of settings takes, and the rest."""
    names = {field.name for field in fields(settings)}
    return {k: v for k, v in keywords.items() if k in names}, {k: v for k, v in keywords.items() if k not in names}


def check_keywords(cls: type, keywords: Iterable[str]) -> None:
    """Raise TypeError for a keyword that the class does not take; the error names the nearest one that it takes."""
    known = list(inspect.signature(cls).parameters)
    for name in keywords:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
            raise TypeError(f"{cls.__name__} got an unexpected keyword argument {name!r}{hint}")
