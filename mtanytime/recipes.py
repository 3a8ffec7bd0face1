"""The experiments by name: what each reproduces, how long it takes, what to expect, and its settings.

A recipe is a sequence of trainers, each with a run folder of its own below the recipe's, so a recipe that was stopped
anywhere goes on where it was, and one that is finished only reads its results.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mtanytime.backbones import resnet, vgg9
from mtanytime.datasets import crop_flip, digits, letters
from mtanytime.training import Trainer
from mtanytime.transfer import TransferTrainer

Setting = int | float | str
Settings = Mapping[str, Setting]

# The built-in task's ways to train the target: the arguments of a `TransferTrainer`, or None from scratch. One-to-one
# pairs a source stage with the target layer of its size.
METHODS: dict[str, dict[str, object] | None] = {
    "scratch": None,
    "matching_all": {"what": False, "where": "off"},
    "matching_one": {
        "what": False,
        "where": "off",
        "pairs": [("layer1", "features.2"), ("layer2", "features.6"), ("layer3", "features.13")],
    },
    "what": {"where": "off"},
    "where": {"what": False},
    "l2t": {},
}


@dataclass(frozen=True)
class Recipe:
    """An experiment: `trainers(settings, seed, folder, progress)` gives its trainers by name, in order; a later one is
    made when those before it are trained."""

    reproduces: str
    duration: str
    expected: str
    settings: Settings
    trainers: Callable[[Settings, int, Path, bool], Iterator[tuple[str, Trainer]]]


def _built_in(settings: Settings, seed: int, folder: Path, progress: bool) -> Iterator[tuple[str, Trainer]]:
    """The letter network, then the digit network by one method (or by all, separated by commas)."""
    augment = crop_flip(padding=3, flip=False)
    shared = {"augment": augment, "progress": progress, "checkpoint_seconds": settings["checkpoint_seconds"]}
    methods = str(settings["methods"]).split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"method {unknown[0]!r} is not known (has: {', '.join(METHODS)})")
    source = Trainer(
        lambda: resnet(settings["source_depth"], num_classes=37),
        letters(train_per_class=settings["letters_per_class"]),
        epochs=settings["source_epochs"],
        batch_size=64,
        folder=folder / "source",
        **shared,  # the same source for every seed
    )
    yield "source", source
    target = {
        "epochs": settings["epochs"],
        "batch_size": settings["batch_size"],
        "lr": settings["lr"],
        "weight_decay": settings["weight_decay"],
        "seed": seed,
        **shared,
    }
    task = digits(per_class=settings["digits_per_class"], seed=seed)
    for method in methods:
        options = METHODS[method]
        place = folder / f"{method}-seed{seed}"
        make = lambda: vgg9(10, width=settings["target_width"])  # noqa: E731
        if options is None:
            yield method, Trainer(make, task, folder=place, **target)
        else:
            matching = {"beta": settings["beta"], "meta_lr": settings["meta_lr"], **options}
            yield method, TransferTrainer(source.model, make, task, folder=place, **matching, **target)


BUILT_IN: Settings = {
    "methods": "l2t",
    "source_depth": 14,
    "source_epochs": 2,
    "letters_per_class": 400,
    "digits_per_class": 10,
    "target_width": 16,
    "epochs": 60,
    "batch_size": 50,
    "lr": 0.05,
    "weight_decay": 5e-4,
    "beta": 0.5,
    "meta_lr": 1e-3,
    "checkpoint_seconds": 30.0,
}

RECIPES: dict[str, Recipe] = {
    "smoke": Recipe(
        reproduces="nothing: the whole path of L2T-ww on built-in data, small, for tests",
        duration="about half a minute on 2 cores",
        expected="runs to its end; accuracies near chance",
        settings={
            **BUILT_IN,
            "source_depth": 8,
            "source_epochs": 1,
            "letters_per_class": 20,
            "target_width": 4,
            "epochs": 10,
            "batch_size": 40,
            "checkpoint_seconds": 2.0,
        },
        trainers=_built_in,
    ),
    "built-in": Recipe(
        reproduces="the paper's question on a stand-in: printed letters to handwritten digits, ten labels a class",
        duration="source half a minute, then about a minute for each method on 2 cores",
        expected="one seed gave 24 % from scratch and 53 % by l2t (notebook 00)",
        settings=BUILT_IN,
        trainers=_built_in,
    ),
}


def recipe(name: str) -> Recipe:
    """A recipe by name; ValueError with the nearest name for an unknown one."""
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}{_nearest(name, RECIPES)}")
    return RECIPES[name]


def changed(settings: Settings, changes: Mapping[str, str]) -> dict[str, Setting]:
    """Settings with some given anew as text; ValueError for an unknown name or a value of another kind."""
    result = dict(settings)
    for name, text in changes.items():
        if name not in result:
            raise ValueError(f"there is no setting {name!r}{_nearest(name, result)}")
        kind = type(result[name])
        try:
            result[name] = kind(text)
        except ValueError as error:
            raise ValueError(f"{name} takes {kind.__name__}, like {result[name]!r}; got {text!r}") from error
    return result


def run(
    name: str, folder: Path, seed: int = 0, changes: Mapping[str, str] | None = None, progress: bool = True
) -> pd.DataFrame:
    """Run a recipe to its end, or what is left of it; a row a trainer: method, seed, accuracy, last_accuracy,
    train_seconds. Bad settings and a folder with another run raise ValueError before anything is written."""
    chosen = recipe(name)
    rows = []
    for part, trainer in chosen.trainers(changed(chosen.settings, changes or {}), seed, folder, progress):
        result = trainer.train()
        rows.append(
            {
                "method": part,
                "seed": seed,
                "accuracy": result.accuracy,
                "last_accuracy": result.last_accuracy,
                "train_seconds": round(result.seconds, 1),
            }
        )
    return pd.DataFrame(rows)


def _nearest(name: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    return f"; the nearest is {near[0]!r}" if near else f" (has: {', '.join(names)})"
