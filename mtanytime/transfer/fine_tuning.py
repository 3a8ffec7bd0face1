"""Fine-tuning the source itself: the usual choice if the target may keep the source's architecture.

A copy of the source gets a head for the task's classes and is trained on the task (Yosinski, Clune, Bengio, Lipson
2014, arXiv:1411.1792). The head starts at random, or from a linear probe of the features that it reads (Kumar,
Raghunathan, Jones, Ma, Liang 2022, arXiv:2202.10054); `choose_head` compares the two on held-out labels.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.images import LabelledImages, Task
from mtanytime.features import bare
from mtanytime.functional import functional_call, trial_run
from mtanytime.measure.logits import find_logits
from mtanytime.randomness import derive_seed
from mtanytime.training.identity import describe_frozen
from mtanytime.training.settings import with_keywords_of
from mtanytime.training.trainer import Trainer
from mtanytime.transfer.l2sp import PenalizedLoss
from mtanytime.transfer.probe import fit_probe
from mtanytime.transfer.settings import FEW_LABELS

Head = Literal["new", "probe"]
HEADS: tuple[Head, ...] = get_args(Head)
_SPLIT = -12  # purpose of a derived seed


@with_keywords_of(Trainer)
class FineTuning(Trainer):
    """Train a network from `with_head`; the run's identity includes the trained network that it starts from.

    Args:
        start: the trained network.
        model, data, test, options: as for `Trainer`, some with `TransferTrainer`'s defaults, which suit few labels.
    """

    defaults: ClassVar[Mapping[str, Any]] = FEW_LABELS

    def __init__(
        self,
        start: nn.Module,
        model: nn.Module | Callable[[], nn.Module],
        data: Task | LabelledImages | DataLoader,
        test: LabelledImages | DataLoader | None = None,
        **options: Any,
    ) -> None:
        self._start = describe_frozen(start)
        super().__init__(model, data, test, **options)

    def _build(self) -> None:
        if isinstance(self.loss, PenalizedLoss):
            remedy = "pass that network itself to FineTuning"
            other = Words("one of another network, which would have no effect")
            require(self.loss.network is self.model, "loss", "a penalty of the network that is trained", other, remedy)
        super()._build()

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"start": self._start}


@dataclass(frozen=True)
class HeadChoice:
    """The better head, the accuracy of each on the held-out labels, and the seconds of both trainings."""

    head: Head
    scores: Mapping[Head, float]
    seconds: float


def with_head(source: nn.Module, data: LabelledImages, head: Head = "new") -> nn.Module:
    """A copy of the source for the data's classes: its last linear layer is replaced.

    Args:
        source: the trained network; unchanged.
        data: the labelled images, whose classes the head gets.
        head: "new", drawn from torch's random state, or "probe", fitted to the features that the old head reads.

    Raises:
        ValueError: an unknown `head`, data that is no image set, or a source whose last linear layer does not give its
            logits. For "probe", also as `fit_probe`, and for a head that does not read one row of features per image.
    """
    require(head in HEADS, "head", f"one of {HEADS}", head)
    _check_set(data)
    source = bare(source, "source")
    path, old = _head(source)
    size = old.in_features, len(data.classes)
    images = data.load(torch.arange(min(len(data), 2))).to(old.weight.device) / 255
    expected = f"a network whose last linear layer, {path!r}, gives its logits"
    other = size[1] + (2 if size[1] + 1 == old.out_features else 1)  # not the old one, which an unchanged head gives
    trial = nn.utils.skip_init(nn.Linear, size[0], other).to(old.weight)
    _try(_replaced(source, path, trial), images, other, expected)
    new = nn.Linear(*size) if head == "new" else nn.utils.skip_init(nn.Linear, *size)
    network = _replaced(source, path, new.to(old.weight))
    if head == "probe":
        as_map = nn.Unflatten(1, (old.in_features, 1, 1))
        reader = _replaced(source, path, nn.Sequential(as_map, nn.Flatten()))
        _try(reader, images, None, f"a head, {path!r}, that reads one row of features per image")
        probe = fit_probe(reader, data, layers=[f"{path}.0"], folds=None)
        network.get_submodule(path).load_state_dict(probe.linear.state_dict())
    return network


def choose_head(
    source: nn.Module,
    data: LabelledImages,
    *,
    held_out: float = 0.2,
    folder: str | Path | None = None,
    seed: int = 0,
    **options: Any,
) -> HeadChoice:
    """Fine-tune with each kind of head on a part of the labels, and choose by the accuracy on the rest.

    Args:
        source, data: see `with_head`.
        held_out: the fraction of each class's labels to choose by, in (0, 1).
        folder: where to keep the runs, one per head, which are resumed; None keeps them in memory.
        seed: of the split and of the trainings.
        options: the keyword arguments of `FineTuning`: steps or epochs, lr, …

    Returns:
        The choice; the new head if both are equally good.

    Raises:
        ValueError: as `with_head` and `Trainer`; `held_out` outside (0, 1), or a class with too few labels; before any
            training.
    """
    _check_set(data)
    require(0 < held_out < 1, "held_out", "a number between 0 and 1", held_out)
    counts = torch.bincount(data.labels.cpu(), minlength=len(data.classes))
    fewest = int(counts.min())
    few = Words(f"{fewest} of {data.classes[counts.argmin()]!r}")
    require(fewest >= 3, "data", "at least 3 images per class, two to fit a probe to and one to choose by", few)
    fit, held = data.split(held_out, derive_seed(seed, _SPLIT))
    probed = with_head(source, fit, "probe")  # its errors must come before any training
    scores, seconds = {}, 0.0
    for head in HEADS:
        place = None if folder is None else Path(folder) / head
        make = partial(with_head, source, fit) if head == "new" else partial(deepcopy, probed)
        result = FineTuning(source, make, fit, held, folder=place, seed=seed, **{"progress": False} | options).train()
        scores[head] = result.last_accuracy
        seconds += result.seconds
    return HeadChoice(max(HEADS, key=scores.__getitem__), scores, seconds)


def _check_set(data: LabelledImages) -> None:
    remedy = "give its attribute train" if isinstance(data, Task) else ""
    require(isinstance(data, LabelledImages), "data", "an ImageSet", Words(type(data).__name__), remedy)


def _replaced(source: nn.Module, path: str, head: nn.Module) -> nn.Module:
    """A copy of a network, to be trained, with another module at a path."""
    network = deepcopy(source).requires_grad_()
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, head)
    return network


def _try(network: nn.Module, images: Tensor, classes: int | None, expected: str) -> None:
    """Raise ValueError unless a network takes a few images and, if `classes` are given, answers with as many logits."""
    try:
        with torch.no_grad(), trial_run(network, images.device, training=False) as buffers:
            output = functional_call(network, buffers, images.to(next(network.parameters()).dtype))
            columns = classes if classes is None else find_logits(output, classes).shape[1]
    except Exception as error:
        raise mismatch("source", expected, Words(f"{type(network).__name__}, which fails: {error}")) from error
    require(columns == classes, "source", expected, Words(f"{columns} logits with a head of {classes}"))


def _head(network: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer and its path."""
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    require(bool(linear), "source", "a network with a linear layer at its end", Words(type(network).__name__))
    return linear[-1]
