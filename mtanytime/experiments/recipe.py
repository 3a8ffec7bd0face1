"""What the recipes of both papers share: their settings, run folders, checks, and CIFAR-10."""

import difflib
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from mtanytime.checks import mismatch, require
from mtanytime.data.images import Task
from mtanytime.data.public import cifar10, cifar10_jpeg, cifar100
from mtanytime.training.trainer import Trainer, TrainingResult

Setting = int | float | str | tuple[int, ...] | tuple[float, ...] | tuple[str, ...]
Settings = Mapping[str, Setting]
Parts = Iterator[tuple[str, Trainer]]
Rows = Callable[[str, int, Trainer, TrainingResult | None], list[dict[str, Any]]]

_KINDS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("a text", "names")}
HOW_TO_GET = {
    "source": "set it to the L2T-ww authors' logs/tinyimagenet-200-resnet32/0/ checkpoint (from alinlab/L2T-ww)",
    "images": "set it to a folder with torchvision's CIFAR-10; `data.cifar10(folder, download=True)` downloads it",
}


class Results(NamedTuple):
    """The tables of a finished recipe.

    `table`: the rows that the recipe's `rows` returns for each network. `maps`: method, seed, beta and the last rows
    of the trace (step, source, target, weight, weight_std) of each run that learned a map, or λ of the map that a
    search found (step 0, without weight_std); None if no run did.
    `trials`: method, seed, trial, loss (on held-out labels, in nats), pairs ("source→target", separated by spaces) and
    weights (their λ) of each trial of a search; None without searches by trials.
    """

    table: pd.DataFrame
    maps: pd.DataFrame | None = None
    trials: pd.DataFrame | None = None


@dataclass(frozen=True)
class Recipe:
    """A named experiment.

    Attributes:
        reproduces, duration, expected: what `list` prints about it.
        settings: each setting's default; its type is the type that `changed` parses to.
        trainers: `trainers(settings, seed, folder, progress)` yields (part, trainer) for each network in order. A later
            trainer is built after the earlier ones have been trained. With folder None, nothing is written.
        rows: `rows(part, seed, trainer, result)` returns the rows that a trained network adds to the table of results;
            `result` is None for a run that diverged, whose accuracies are nan.
        methods: the names that the setting `methods` may hold, if there is one.
        network: `network(part, settings, classes)` builds the part's network, for that number of classes; None where it
            needs the source.
    """

    reproduces: str
    duration: str
    expected: str
    settings: Settings
    trainers: Callable[[Settings, int, Path | None, bool], Parts]
    rows: Rows
    methods: tuple[str, ...] = ()
    network: Callable[[str, Settings, int], nn.Module] | None = None

    def is_source(self, part: str, seed: int, trainer: Any) -> bool:
        """Whether a part is a source: it has no row in the results, and all seeds share it."""
        return not self.rows(part, seed, trainer, None)


def changed(settings: Settings, changes: Mapping[str, Setting]) -> dict[str, Setting]:
    """Settings with overrides applied.

    Args:
        settings: the defaults, whose types the overrides take.
        changes: each override as a value, or as text: "10", "0.05", or elements separated by commas, "19,14,16,22".

    Raises:
        ValueError: an unknown setting, with the nearest one, or a value of another type.
    """
    for name in changes:
        if name not in settings:
            raise mismatch("setting", "one of the recipe's settings", name, nearest(name, settings))
    return dict(settings) | {name: _parse(name, settings[name], as_text(value)) for name, value in changes.items()}


def as_text(value: Setting) -> str:
    """A setting as the command line takes it: the elements of a tuple are separated by commas."""
    return ",".join(str(part).removesuffix(".0") for part in value) if isinstance(value, tuple | list) else str(value)


def _parse(name: str, default: Setting, text: str) -> Setting:
    """Text as a value of the default's type; an empty tuple stands for a tuple of floats."""
    is_tuple = isinstance(default, tuple)
    kind = (type(default[0]) if default else float) if is_tuple else type(default)
    try:
        if is_tuple:
            return tuple(kind(part) for part in text.split(",")) if text else ()
        return kind(text)
    except ValueError as error:
        expected = f"{_KINDS[kind][is_tuple]}{' separated by commas' * is_tuple}, such as {as_text(default) or '0.5,2'}"
        raise mismatch(name, expected, text) from error


def nearest(name: str, known: Collection[str]) -> str:
    """A hint for a mistyped name: the most similar known one, or all of them if none is similar."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
    return f"the nearest is {matches[0]!r}" if matches else f"choose from {', '.join(known)}"


def run_folder(folder: Path | None, name: str) -> Path | None:
    """The folder of one of a recipe's runs; None for a recipe that writes nothing."""
    return None if folder is None else folder / name


def row_of(trainer: Any, result: TrainingResult | None) -> dict[str, Any]:
    """The measured part of a row: accuracy (after the last step; nan if the run diverged) and train_seconds."""
    accuracy = math.nan if result is None else result.last_accuracy
    return {"accuracy": accuracy, "train_seconds": round(trainer.seconds, 1)}


def check_names(setting: str, names: Sequence[str], known: Collection[str]) -> None:
    """Validate a setting that lists names: at least one, each of them known and given once. ValueError otherwise."""
    require(len(names) > 0, setting, f"one or more of {', '.join(known)}", names)
    for name in names:
        require(name in known, setting, f"names among {', '.join(known)}", name)
    require(len(set(names)) == len(names), setting, "each name once", as_text(tuple(names)))


def check_scored_on(settings: Settings) -> None:
    """Validate `scored_on`, which is "test" or "validation". ValueError otherwise."""
    scored_on = settings["scored_on"]
    require(scored_on in ("test", "validation"), "scored_on", "'test' or 'validation'", scored_on)


def standardization(settings: Settings) -> bool | str:
    """`standardize` of `TransferSettings` by the recipe's number: 0 off, 1 per pair, 2 one scale per network.

    ValueError for another number.
    """
    units = {0: False, 1: True, 2: "network"}
    number = settings["standardize"]
    require(number in units, "standardize", "0 (off), 1 (a scale per pair) or 2 (one per network)", number)
    return units[number]


def check_files(settings: Settings, *names: str, how: Mapping[str, str] = HOW_TO_GET) -> None:
    """Check that the files or folders that these settings name exist. ValueError that says `how` to get them if not."""
    for name in names:
        require(Path(settings[name]).exists(), name, "an existing file or folder", settings[name], how[name])


@cache
def load_cifar10(place: str) -> Task:
    """CIFAR-10, from torchvision's folder or, if the name ends in .npz, from one file of JPEGs; read once."""
    return cifar10_jpeg(place) if place.endswith(".npz") else cifar10(place)


@cache
def load_cifar100(place: str) -> Task:
    """CIFAR-100, from torchvision's folder or its archive; read once."""
    return cifar100(place)
