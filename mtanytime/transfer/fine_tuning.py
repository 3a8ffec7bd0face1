"""Fine-tuning the source itself: the usual choice if the target may keep the source's architecture.

A copy of the source gets a head for the task's classes and is trained on the task (Yosinski, Clune, Bengio, Lipson
2014, arXiv:1411.1792). The head starts at random, or from a linear probe of the source's last layer (Kumar,
Raghunathan, Jones, Ma, Liang 2022, arXiv:2202.10054); `choose_head` compares the two on held-back labels.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from mtanytime.checks import Words, require
from mtanytime.data.images import LabelledImages
from mtanytime.randomness import derive_seed
from mtanytime.training.identity import fingerprint
from mtanytime.training.trainer import Trainer
from mtanytime.transfer.probe import fit_probe, folds_of

Head = Literal["new", "probe"]
HEADS: tuple[Head, ...] = get_args(Head)
_SPLIT = -12  # purpose of a derived seed


class FineTuning(Trainer):
    """A trainer whose run is also identified by the trained network that it starts from."""

    def __init__(self, start: nn.Module, *arguments: Any, **options: Any) -> None:
        self._start = fingerprint(start.state_dict())
        super().__init__(*arguments, **options)

    def _config(self) -> dict[str, Any]:
        return super()._config() | {"start": self._start}


@dataclass(frozen=True)
class HeadChoice:
    """The better head, the accuracy of each on the held-back labels, and the seconds of both trainings."""

    head: Head
    scores: Mapping[Head, float]
    seconds: float


def with_head(source: nn.Module, data: LabelledImages, head: Head = "new") -> nn.Module:
    """A copy of the source for the data's classes: its last linear layer is replaced.

    Args:
        source: the trained network; unchanged.
        data: the labelled images, whose classes the head gets.
        head: "new", drawn from torch's random state, or "probe", fitted to the spatial means of the last of the
            source's `feature_layers`, which the old head must read.

    Raises:
        ValueError: an unknown `head`, or a source without a linear layer. For "probe", also as `fit_probe`, and for a
            source that names no `feature_layers` or whose head reads something else.
    """
    require(head in HEADS, "head", f"one of {HEADS}", head)
    network = deepcopy(source).requires_grad_()
    path, old = _head(network)
    size = old.in_features, len(data.classes)
    if head == "new":
        new = nn.Linear(*size).to(old.weight)
    else:
        layers = getattr(source, "feature_layers", None)
        require(bool(layers), "source", "a network that names its feature_layers, whose last the probe reads", layers)
        probe = fit_probe(source, data, layers=layers[-1:], folds=folds_of(data))
        read = probe.linear.in_features
        require(
            read == old.in_features, "source", f"a head that reads the {read} means of the last of feature_layers", path
        )
        new = nn.utils.skip_init(nn.Linear, *size).to(old.weight)
        new.load_state_dict(probe.linear.state_dict())
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, new)
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
        options: the keyword arguments of `Trainer`: steps or epochs, lr, …

    Returns:
        The choice; the new head if both are equally good.

    Raises:
        ValueError: as `with_head` and `Trainer`; `held_out` outside (0, 1), or a class with too few labels; before any
            training.
    """
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


def _head(network: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer and its path."""
    linear = [(path, module) for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    require(bool(linear), "source", "a network with a linear layer at its end", Words(type(network).__name__))
    return linear[-1]
