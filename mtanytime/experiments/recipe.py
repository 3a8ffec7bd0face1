"""What the recipes of both papers share."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mtanytime.data.images import Task
from mtanytime.data.public import cifar10, cifar10_jpeg
from mtanytime.training.trainer import Trainer, TrainingResult

Setting = int | float | str
Settings = Mapping[str, Setting]
Parts = Iterator[tuple[str, Trainer]]


class Results(NamedTuple):
    """What a recipe came to.

    `table`: what the recipe's `rows` gave for each network. `maps`: method, seed, beta and the last rows of each
    learned run's trace (step, source, target, weight, weight_std); None where nothing was learned.
    """

    table: pd.DataFrame
    maps: pd.DataFrame | None


@dataclass(frozen=True)
class Recipe:
    """An experiment: `trainers(settings, seed, folder, progress)` gives its trainers by name, in order; a later one is
    made when those before it are trained. Without a folder they stay in memory. `rows(part, seed, trainer, result)` is
    what a trained network adds to the table of results, with nan in it where `result` is None, a run that diverged."""

    reproduces: str
    duration: str
    expected: str
    settings: Settings
    trainers: Callable[[Settings, int, Path | None, bool], Parts]
    rows: Callable[[str, int, Trainer, TrainingResult | None], list[dict[str, Any]]]


def run_folder(folder: Path | None, name: str) -> Path | None:
    """Where a recipe keeps one of its runs."""
    return None if folder is None else folder / name


def listed(settings: Settings, kind: str, known: Collection[str]) -> list[str]:
    """The names in the setting "methods" or "models", with commas between; ValueError for an unknown or doubled one."""
    names = str(settings[f"{kind}s"]).split(",")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{kind} {unknown[0]!r} is not known (has: {', '.join(known)})")
    if len(set(names)) < len(names):
        raise ValueError(f"wanted each {kind} once, got {settings[f'{kind}s']!r}")
    return names


def check_scored_on(settings: Settings) -> None:
    """ValueError for another word than "test" or "validation"."""
    if settings.get("scored_on", "test") not in ("test", "validation"):
        raise ValueError(f"scored_on is 'test' or 'validation'; got {settings['scored_on']!r}")


@cache
def whole_cifar10(place: str) -> Task:
    """CIFAR-10 from torchvision's folder or, for a name that ends in .npz, from one file of JPEGs."""
    return cifar10_jpeg(place) if place.endswith(".npz") else cifar10(place)


def check_files(settings: Settings, *names: str) -> None:
    """ValueError, which says where to get it, for a setting that names a file that is not there."""
    for name in names:
        if not Path(settings[name]).exists():
            raise ValueError(f"there is no {settings[name]!r}: set {name}=…, {_WHERE[name]}")


_WHERE = {
    "source": "the L2T-ww authors' logs/tinyimagenet-200-resnet32/0/ checkpoint (their repository alinlab/L2T-ww)",
    "images": "a folder with torchvision's CIFAR-10 (datasets.cifar10(folder, download=True) puts it there)",
}
