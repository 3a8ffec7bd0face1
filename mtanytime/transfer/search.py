"""Search for a map by lookaheads: learn what and where to transfer on labels held back from the task's loss.

L2T-ww learns where to transfer while it trains, and judges each lookahead on the batch that it was fitted to
(arXiv:1905.05901, Algorithm 1). With few labels that loss is close to zero as soon as they are memorized, and then it
cannot tell one pair from another. Here the labels are split: the task's loss sees one part, the outer objective the
other. Matching needs no labels, so it may use all images. The mean of λ and w over the search and over several splits
is a map, and a training with it costs what plain matching costs. This is ours, not the paper's.

`trial_search`, in `trials`, judges maps by complete trainings instead of lookaheads.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from mtanytime.checks import Words, require
from mtanytime.data.images import LabelledImages, Task
from mtanytime.randomness import derive_seed
from mtanytime.transfer.meta_networks import Pair
from mtanytime.transfer.outer import FreshBatch
from mtanytime.transfer.trainer import TransferTrainer
from mtanytime.transfer.transfer_map import TransferMap

Source = nn.Module | Mapping[str, nn.Module]
Target = nn.Module | Callable[[], nn.Module]
Data = Task | LabelledImages | DataLoader  # a DataLoader is refused with a remedy
# Defaults of the search's trainers: they do not diverge, and the rate is high enough for maps to take shape.
SEARCH: dict[str, Any] = {
    "what": True,
    "where": "relu6",
    "where_start": "even",
    "normalize_weights": True,
    "meta_lr": 1e-3,
    "meta_clip": 1.0,
}
SPLIT = -8  # purpose of derived seeds


@dataclass(frozen=True)
class MapSearch:
    """The outcome of a search: its map, the map of each split or trial, and the seconds of training it took.

    `losses` holds each trial's loss on the held-out labels; it is empty for a search by lookahead. `effects` holds what
    `trial_search` estimates for each pair: by how much it lowers the logarithm of that loss. `best` holds the `kept`
    pairs with the largest effects, the best first (empty for other searches); `map.only(best)` matches them alone.
    `gap` is their mean effect minus that of the others, and its standard deviation (see `PairSearch.gap`); None without
    others, and for fewer than four pairs, which trials cannot tell apart from chance.
    """

    map: TransferMap
    maps: tuple[TransferMap, ...]
    seconds: float
    losses: tuple[float, ...] = ()
    effects: Mapping[Pair, float] = field(default_factory=dict)
    best: tuple[Pair, ...] = ()
    gap: tuple[float, float] | None = None


def search_map(
    source: Source,
    target: Target,
    data: Data,
    *,
    splits: int = 1,
    held_out: float = 0.5,
    folder: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> MapSearch:
    """Learn a map with the outer objective on labels that the task's loss does not see.

    Args:
        source: the trained network or networks (see `TransferTrainer`).
        target: a function that makes the target network, or the network, which is copied.
        data: the labelled images; of a `Task`, the training set.
        splits: how many times to split the labels; each split trains its own target, and the map is their mean.
        held_out: the fraction of each class's labels for the outer objective, in (0, 1).
        folder: where to keep the runs, one per split, which are resumed; None keeps them in memory.
        seed: of the splits and the trainings.
        settings: the keyword arguments of `TransferTrainer`: steps or epochs, lr, views, …; defaults as there and in
            `SEARCH`. The outer objective is the `loss` on batches of `batch_size` held-out images, 128 by default.

    Returns:
        The map, with λ of mean 1, the maps of the splits and the seconds.

    Raises:
        ValueError: as `TransferTrainer`; `splits` below 1, `held_out` outside (0, 1), a class with fewer than two
            labels, nothing to learn, or an `outer` or `map`, which the search sets itself.
    """
    check_count("splits", splits)
    refuse_settings(settings, "outer", "map")
    train, make = training_set(data), maker(target)
    settings = SEARCH | settings
    learns = settings["what"] or settings["where"] != "off"
    require(learns, "where", "a kind of λ to learn, or what=True", settings["where"])
    if settings["where"] not in ("relu6", "relu"):
        settings["where_start"] = "random"  # the other kinds start with equal λ anyway
    batch_size = settings.get("batch_size", 128)
    maps, seconds = [], 0.0
    for split in range(splits):
        own_seed = derive_seed(seed, SPLIT, split)
        fit, held = hold_back(train, held_out, own_seed)
        outer = FreshBatch(held, batch_size, settings.get("augment"), settings.get("loss", F.cross_entropy))
        run = {"outer": outer, "seed": own_seed % 2**31, "folder": subfolder(folder, f"split{split}")}
        trainer = TransferTrainer(source, make(), fit, **{"progress": False} | settings | run)
        result = trainer.train()
        seconds += result.seconds
        maps.append(result.map.scaled())
    return MapSearch(TransferMap.mean(maps), tuple(maps), seconds)


def check_count(name: str, count: object) -> None:
    """Raise ValueError unless this is a whole number >= 1."""
    require(isinstance(count, Integral) and count >= 1, name, "a whole number >= 1", count)


def refuse_settings(settings: Mapping[str, Any], *names: str) -> None:
    """Raise ValueError for settings that a search sets itself and would ignore."""
    for name in names:
        require(name not in settings, name, "no value, as the search makes its own", settings.get(name))


def training_set(data: Data) -> LabelledImages:
    """The labelled images whose labels a search may hold back."""
    train = data.train if isinstance(data, Task) else data
    remedy = "a DataLoader's labels cannot be split: split its data set"
    require(isinstance(train, LabelledImages), "data", "a Task or an ImageSet", Words(type(train).__name__), remedy)
    return train


def hold_back(train: LabelledImages, held_out: float, seed: int) -> tuple[LabelledImages, LabelledImages]:
    """Split the labelled images by class: those that the task's loss sees, and those that are held back."""
    require(0 < held_out < 1, "held_out", "a number between 0 and 1", held_out)
    return train.split(held_out, seed)


def maker(target: Target) -> Callable[[], Target]:
    """A function that returns a fresh `target` for a trainer: a copy of a network, or the function that makes one."""
    return (lambda: deepcopy(target)) if isinstance(target, nn.Module) else (lambda: target)


def without_layers(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for a training with a map, without layers: the map names them, and others need not be tapped."""
    return {key: value for key, value in settings.items() if key not in ("pairs", "source_layers", "target_layers")}


def subfolder(folder: str | Path | None, name: str) -> Path | None:
    """A folder in the folder, if there is one."""
    return None if folder is None else Path(folder).expanduser() / name
