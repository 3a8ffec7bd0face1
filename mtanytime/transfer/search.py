"""Search, then train: learn a transfer map on labels held back, then train on all labels with the map held fixed.

L2T-ww learns where to transfer while it trains, and judges each lookahead on the batch that it was fitted to
(arXiv:1905.05901, Algorithm 1). With few labels that loss is close to zero as soon as they are memorized, and then it
cannot tell one pair from another. Here the labels are split: the task's loss sees one part, the outer objective the
other. Matching needs no labels, so it may use all images. The mean of λ and w over the search and over several splits
is a map, and the final training with it costs what plain matching costs. This is ours, not the paper's.

`random_search` is the rival: maps drawn at random from the same space, trained for a while each, and compared on the
same held-out labels.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from mtanytime.checks import Words, require
from mtanytime.data.images import LabelledImages, Task
from mtanytime.randomness import derive_seed, generator_for
from mtanytime.training.distributed import Processes
from mtanytime.transfer.meta_networks import Pair
from mtanytime.transfer.outer import FreshBatch
from mtanytime.transfer.trainer import TransferResult, TransferTrainer
from mtanytime.transfer.transfer_map import TransferMap

Source = nn.Module | Mapping[str, nn.Module]
Target = nn.Module | Callable[[], nn.Module]
Data = Task | LabelledImages | DataLoader  # a DataLoader is refused with a remedy
# What the search sets for its trainers unless told otherwise: safe from divergence, at a rate at which maps take shape.
SEARCH: dict[str, Any] = {
    "what": True,
    "where": "relu6",
    "where_start": "even",
    "normalize_weights": True,
    "meta_lr": 1e-3,
    "meta_clip": 1.0,
}
_SPLIT, _TRIAL = -8, -9  # purposes of derived seeds


@dataclass(frozen=True)
class MapSearch:
    """The outcome of a search: its map, the map of each split or trial, and the seconds of training it took.

    `scores` has one number per map: the accuracy on the held-out labels of a random search, else nothing.
    """

    map: TransferMap
    maps: tuple[TransferMap, ...]
    seconds: float
    scores: tuple[float, ...] = field(default=())


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
        splits: how many times to split the labels, each with a target of its own; the map is the mean.
        held_out: the fraction of each class's labels for the outer objective, in (0, 1).
        folder: where to keep the runs, one per split, which are resumed; None keeps them in memory.
        seed: of the splits and the trainings.
        settings: the keyword arguments of `TransferTrainer`: steps or epochs, lr, views, …; defaults as there and in
            `SEARCH`.

    Returns:
        The map, with λ of mean 1, the maps of the splits and the seconds.

    Raises:
        ValueError: as `TransferTrainer`; `splits` below 1, `held_out` outside (0, 1), or a class with fewer than two
            labels.
    """
    require(splits >= 1, "splits", "a whole number >= 1", splits)
    train, make = _training_set(data), _maker(target)
    settings = SEARCH | settings
    if settings["where"] not in ("relu6", "relu"):
        settings["where_start"] = "random"  # the others start even of themselves
    batch_size = settings.get("batch_size", 128)
    maps, seconds = [], 0.0
    for split in range(splits):
        own_seed = derive_seed(seed, _SPLIT, split)
        fit, held = train.split(held_out, own_seed)
        outer = FreshBatch(held, batch_size, settings.get("augment"))
        run = {"outer": outer, "seed": own_seed % 2**31, "folder": _folder(folder, f"split{split}")}
        trainer = TransferTrainer(source, make(), fit, **{"progress": False} | settings | run)
        result = trainer.train()
        seconds += result.seconds
        maps.append(result.map.scaled())
    return MapSearch(TransferMap.mean(maps), tuple(maps), seconds)


def random_search(
    source: Source,
    target: Target,
    data: Data,
    *,
    trials: int,
    held_out: float = 0.5,
    folder: str | Path | None = None,
    seed: int = 0,
    **settings: Any,
) -> MapSearch:
    """Draw maps at random, train a target with each, and choose the one with the best accuracy on held-out labels.

    λ is drawn uniformly from all weights with the mean 1 (a flat Dirichlet distribution); the channel weights are the
    softmax of standard normal numbers. The first of equally good maps wins. All trials share one split.

    Args:
        trials: how many maps to try; with `steps`, the budget.
        source, target, data, held_out, folder, seed, settings: see `search_map`; `SEARCH` does not apply.

    Raises:
        ValueError: as `search_map`; `trials` below 1.
    """
    require(trials >= 1, "trials", "a whole number >= 1", trials)
    fit, held = _training_set(data).split(held_out, derive_seed(seed, _SPLIT, 0))
    make, maps, scores, seconds = _maker(target), [], [], 0.0
    settings = {"progress": False, "seed": seed} | settings
    plain = TransferTrainer(source, make(), fit, held, **settings)  # to read pairs and channels
    settings["teacher"] = plain.teacher  # a probe is fitted once
    for trial in range(trials):
        drawn = random_map(plain.pairs, plain.student.matching.source_channels, derive_seed(seed, _TRIAL, trial))
        run = {"map": drawn, "folder": _folder(folder, f"trial{trial}")}
        result = TransferTrainer(source, make(), fit, held, **settings | run).train()
        maps.append(drawn)
        scores.append(result.last_accuracy)
        seconds += result.seconds
    best = max(range(trials), key=scores.__getitem__)
    return MapSearch(maps[best], tuple(maps), seconds, tuple(scores))


def random_map(pairs: list[Pair], source_channels: Mapping[str, int], seed: int) -> TransferMap:
    """A map drawn at random: λ uniformly from all weights with the mean 1, w the softmax of standard normal numbers."""
    generator = generator_for(seed)
    exponential = -torch.rand(len(pairs), generator=generator, dtype=torch.float64).clamp(min=1e-12).log()
    weights = dict(zip(pairs, (exponential / exponential.mean()).tolist(), strict=True))
    channels = {}
    for pair in pairs:
        normal = torch.randn(source_channels[pair[0]], generator=generator, dtype=torch.float64)
        channels[pair] = normal.softmax(0).tolist()
    return TransferMap(weights, channels)


def search_then_train(
    source: Source,
    target: Target,
    data: Data,
    test: LabelledImages | None = None,
    *,
    search: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> tuple[TransferResult, MapSearch]:
    """Learn a map on held-back labels, then train a target on all labels with the map held fixed.

    Args:
        source, target, data, test: see `TransferTrainer`; `target` as for `search_map`. A given network is trained in
            place after the search.
        search: keyword arguments of `search_map` for the search alone: splits, held_out, steps, meta_lr, …
        folder: where to keep the runs, which are resumed: the search in its sub-folder "search", the map in "map.json",
            and the final training in "train".
        settings: the keyword arguments of `TransferTrainer` for both.

    Returns:
        The result of the final training, and the search.
    """
    searched = search_map(source, target, data, folder=_folder(folder, "search"), **settings | dict(search or {}))
    if folder is not None and Processes().first:
        searched.map.save(Path(folder) / "map.json")
    options = {"map": searched.map, "folder": _folder(folder, "train")}
    return TransferTrainer(source, target, data, test, **settings | options).train(), searched


def _training_set(data: Data) -> LabelledImages:
    train = data.train if isinstance(data, Task) else data
    remedy = "a DataLoader's labels cannot be split: split its data set"
    require(isinstance(train, LabelledImages), "data", "a Task or an ImageSet", Words(type(train).__name__), remedy)
    return train


def _maker(target: Target) -> Callable[[], Target]:
    """A function that gives a fresh target: copies of a network, or the function that makes it."""
    return (lambda: deepcopy(target)) if isinstance(target, nn.Module) else (lambda: target)


def _folder(folder: str | Path | None, name: str) -> Path | None:
    return None if folder is None else Path(folder) / name
