"""The experiments by name: what each reproduces, how long it takes, what to expect, and its settings.

A recipe is a sequence of trainers, each with a run folder of its own below the recipe's, so a recipe that was stopped
anywhere goes on where it was, and one that is finished only reads its results.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from torch import nn

from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized, load_l2t_resnet32, resnet, vgg9
from mtanytime.datasets import Task, cifar10, cifar10_jpeg, crop_flip, digits, letters
from mtanytime.training import Trainer
from mtanytime.transfer import TransferTrainer

Setting = int | float | str
Settings = Mapping[str, Setting]

# The ways to train the target: the arguments of a `TransferTrainer`, or None from scratch. One-to-one pairs a source
# stage with the target layer of its size.
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


def _targets(
    settings: Settings, seed: int, folder: Path, source: nn.Module, make: Callable[[], nn.Module], task: Task, **options
) -> Iterator[tuple[str, Trainer]]:
    """The target network trained by each of the settings' methods."""
    shared = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay")} | options
    for method in _methods(settings):
        place = folder / f"{method}-seed{seed}"
        if METHODS[method] is None:
            yield method, Trainer(make, task, folder=place, seed=seed, **shared)
        else:
            beta = settings.get(f"beta_{method}", settings["beta"])
            matching = {"beta": beta, "meta_lr": settings["meta_lr"], **METHODS[method]}
            yield method, TransferTrainer(source, make, task, folder=place, seed=seed, **matching, **shared)


def _methods(settings: Settings) -> list[str]:
    methods = str(settings["methods"]).split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"method {unknown[0]!r} is not known (has: {', '.join(METHODS)})")
    return methods


def _built_in(settings: Settings, seed: int, folder: Path, progress: bool) -> Iterator[tuple[str, Trainer]]:
    """The letter network, then the digit network by one method (or by several, separated by commas)."""
    augment = crop_flip(padding=3, flip=False)
    shared = {"augment": augment, "progress": progress, "checkpoint_seconds": settings["checkpoint_seconds"]}
    _methods(settings)
    source = Trainer(
        lambda: resnet(settings["source_depth"], num_classes=37),
        letters(train_per_class=settings["letters_per_class"]),
        epochs=settings["source_epochs"],
        batch_size=64,
        folder=folder / "source",
        **shared,  # the same source for every seed
    )
    yield "source", source
    task = digits(per_class=settings["digits_per_class"], seed=seed)
    make = lambda: vgg9(10, width=settings["target_width"])  # noqa: E731
    yield from _targets(settings, seed, folder, source.model, make, task, **shared)


def _cifar10_few(settings: Settings, seed: int, folder: Path, progress: bool) -> Iterator[tuple[str, Trainer]]:
    """CIFAR-10 with few labels from the authors' TinyImageNet source, a tenth of the labels held back to validate."""
    _methods(settings)
    source = load_l2t_resnet32(settings["source"])
    images = Path(settings["images"])
    whole = cifar10_jpeg(images) if images.suffix == ".npz" else cifar10(images)
    task = Task(whole.train.few(settings["per_class"], seed), whole.test)
    make = lambda: Normalized(vgg9(10), IMAGENET_MEAN, IMAGENET_STD)  # noqa: E731
    options = {"augment": crop_flip(), "validation": 0.1, "progress": progress}
    options["checkpoint_seconds"] = settings["checkpoint_seconds"]
    yield from _targets(settings, seed, folder, source, make, task, **options)


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
    "cifar10-few": Recipe(
        reproduces="L2T-ww with few labels: CIFAR-10, 50 a class, TinyImageNet ResNet-32 to VGG-9, 200 epochs",
        duration="on 2 cores minutes from scratch or with fixed matching, about an hour and a half by l2t",
        expected="the paper's figure shows about 40 % from scratch and 65 % by L2T-ww",
        settings={
            "methods": "l2t",
            "images": "data",
            "source": "data/tinyimagenet_resnet32.pth.tar",
            "per_class": 50,
            "epochs": 200,
            "batch_size": 128,
            "lr": 0.1,
            "weight_decay": 1e-4,
            "beta": 0.5,
            "meta_lr": 1e-4,
            "checkpoint_seconds": 30.0,
        },
        trainers=_cifar10_few,
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
