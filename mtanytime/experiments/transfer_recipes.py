"""The recipes of paper 1: a source network, then a target network trained by each of several methods."""

import math
from collections.abc import Callable, Collection
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from torch import nn

from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized, load_l2t_resnet32, resnet, vgg9
from mtanytime.checks import require
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import Task
from mtanytime.data.synthetic import DIGITS_A_CLASS, digits, letters
from mtanytime.experiments.recipe import (
    Parts,
    Recipe,
    Rows,
    Settings,
    check_files,
    check_names,
    check_scored_on,
    load_cifar10,
    run_folder,
)
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer import PAPER, FreshBatch, TransferTrainer

# How each method trains the target: arguments of `TransferTrainer`; None trains from scratch. "matching_one" pairs each
# source stage with the target layer of the same size. "l2t_another" is our variant of L2T-ww: it starts at λ = 1,
# evaluates the lookahead on another batch than the step's, and learns φ at its own rate, `meta_lr_l2t_another`.
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
    "l2t_another": {"where_start": "even"},
}


def built_in(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train a source on printed letters, then a target on handwritten digits by each of the settings' methods."""
    _check(settings)
    check_scored_on(settings)
    count, held_back = settings["digits_per_class"], settings["scored_on"] == "validation"
    fits = count < DIGITS_A_CLASS or not held_back
    require(fits, "digits_per_class", f"less than {DIGITS_A_CLASS}, so that validation has digits", count)
    options = {
        "augment": crop_flip(padding=3, flip=False),
        "progress": progress,
        "checkpoint_seconds": settings["checkpoint_seconds"],
    }
    source = Trainer(
        lambda: _built_in_network("source", settings, 37),
        letters_task(settings["letters_per_class"]),
        epochs=settings["source_epochs"],
        batch_size=64,
        folder=run_folder(folder, "source"),
        **options,  # without the recipe's seed: all seeds share one source
    )
    yield "source", source
    make = lambda: _built_in_network("target", settings, 10)  # noqa: E731
    yield from _targets(settings, seed, folder, source.model, make, digits_task(count, seed, held_back), **options)


def cifar10_few(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train a target on CIFAR-10 with few labels from the authors' TinyImageNet source by each of the methods.

    A tenth of the labelled images is held back for validation: 50 images, too few to choose an epoch by, so read
    `last_accuracy`. As in the authors' code, the last batch of an epoch, of two images, is a step, too.
    """
    _check(settings)
    check_files(settings, "source", "images")
    source = load_l2t_resnet32(settings["source"])
    cifar = load_cifar10(settings["images"])
    task = Task(cifar.train.few(settings["per_class"], seed), cifar.test)
    make = lambda: _cifar10_network("target", settings, 10)  # noqa: E731
    options = {"augment": crop_flip(), "validation": 0.1, "progress": progress}
    options |= {name: settings[name] for name in ("precision", "checkpoint_seconds")}
    yield from _targets(settings, seed, folder, source, make, task, **options)


def _built_in_network(part: str, settings: Settings, classes: int) -> nn.Module:
    if part == "source":
        return resnet(settings["source_depth"], classes)
    return vgg9(classes, width=settings["target_width"])


def _cifar10_network(part: str, settings: Settings, classes: int) -> nn.Module:
    return Normalized(vgg9(classes), IMAGENET_MEAN, IMAGENET_STD)


def target_rows(methods: Collection[str]) -> Rows:
    """A recipe's `rows`, one per target network: method, seed, beta, epochs, accuracy, last_accuracy, train_seconds.

    A source, which is none of the methods, has none. The accuracies of a run that diverged are nan.
    """

    def rows(part: str, seed: int, trainer: Trainer, result: TrainingResult | None) -> list[dict[str, Any]]:
        if part not in methods:
            return []
        scores = (math.nan, math.nan) if result is None else (result.accuracy, result.last_accuracy)
        run = {"method": part, "seed": seed, "beta": getattr(trainer, "beta", 0.0), "epochs": trainer.epochs}
        return [{**run, "accuracy": scores[0], "last_accuracy": scores[1], "train_seconds": round(trainer.seconds, 1)}]

    return rows


rows = target_rows(METHODS)


def _check(settings: Settings) -> None:
    """Validate before any work the settings that would otherwise fail late."""
    check_names("methods", settings["methods"], METHODS)
    betas = settings["betas"]
    require(len({f"{beta:g}" for beta in betas}) == len(betas), "betas", "different numbers", betas)


def _targets(
    settings: Settings,
    seed: int,
    folder: Path | None,
    source: nn.Module,
    make: Callable[[], nn.Module],
    task: Task,
    validation: float | None = None,
    **options: Any,
) -> Parts:
    """Train the target by each of the settings' methods, at the method's own strength β or at each of `betas`.

    `validation` is the fraction of the training images that is held back.
    """
    shared = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay")} | options
    if validation is not None:  # split here rather than in the trainers, so that no method's φ sees these images
        train, shared["validation"] = task.train.split(validation, seed)
        task = Task(train, task.test)
    fresh_batch = FreshBatch(task.train, settings["batch_size"], options["augment"])
    for method in settings["methods"]:
        arguments = METHODS[method]
        if arguments is None:
            yield method, Trainer(make, task, folder=run_folder(folder, f"{method}-seed{seed}"), seed=seed, **shared)
            continue
        if method == "l2t_another":
            arguments = arguments | {"outer": fresh_batch}
        for beta in settings["betas"] or [settings.get(f"beta_{method}", settings["beta"])]:
            suffix = f"-beta{beta:g}" if settings["betas"] else ""
            own = {"folder": run_folder(folder, f"{method}{suffix}-seed{seed}"), "seed": seed, "beta": beta}
            own["meta_lr"] = settings.get(f"meta_lr_{method}", settings["meta_lr"])
            yield method, TransferTrainer(source, make, task, **PAPER | shared | arguments | own)


@cache  # the same for every seed, and rendering them takes seconds
def letters_task(per_class: int) -> Task:
    """The printed letters that the source learns."""
    return letters(train_per_class=per_class)


@lru_cache(maxsize=8)  # a recipe's trainers are built twice, first to validate them
def digits_task(per_class: int, seed: int, held_back: bool) -> Task:
    """The digits with few labels; with `held_back`, the test images are the remaining digits of the training half."""
    if not held_back:
        return digits(per_class=per_class, seed=seed)
    train, few = digits(per_class=DIGITS_A_CLASS, test_per_class=1, seed=seed).train, 10 * per_class
    return Task(train.subset(range(few)), train.subset(range(few, len(train))))


BUILT_IN: Settings = {
    "methods": ("l2t",),
    "betas": (),
    "scored_on": "test",
    "source_depth": 14,
    "source_epochs": 2,
    "letters_per_class": 400,
    "digits_per_class": 10,
    "target_width": 16,
    "epochs": 60,
    "batch_size": 25,
    "lr": 0.05,
    "weight_decay": 5e-4,
    "beta": 4.0,  # strengths chosen on validation digits, see data/results/transfer_builtin_search.csv
    "beta_matching_one": 16.0,
    "meta_lr": 1e-4,
    "meta_lr_l2t_another": 1e-3,
    "checkpoint_seconds": 30.0,
}
SMOKE: Settings = {
    **BUILT_IN,
    "source_depth": 8,
    "source_epochs": 1,
    "letters_per_class": 20,
    "target_width": 4,
    "epochs": 10,
    "batch_size": 40,
    "checkpoint_seconds": 2.0,
}
CIFAR10_FEW: Settings = {
    "methods": ("l2t",),
    "betas": (),
    "images": "data",
    "source": "data/tinyimagenet_resnet32.pth.tar",
    "per_class": 50,
    "epochs": 200,
    "batch_size": 128,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "beta": 0.5,
    "meta_lr": 1e-4,
    "meta_lr_l2t_another": 1e-3,
    "precision": "float32",
    "checkpoint_seconds": 30.0,
}

RECIPES = {
    "smoke": Recipe(
        reproduces="nothing: all of L2T-ww on built-in data, small, for tests",
        duration="about half a minute on 2 cores",
        expected="finishes; accuracies near chance",
        settings=SMOKE,
        trainers=built_in,
        rows=rows,
        methods=tuple(METHODS),
        network=_built_in_network,
    ),
    "built-in": Recipe(
        reproduces="the paper's question on a substitute: printed letters to handwritten digits, ten labels per class",
        duration="half a minute for the source, then about a minute per method on 2 cores",
        expected="means of 8 seeds: 35 % from scratch, 74 % by matching_one, 69 % by l2t (RESULTS.md)",
        settings=BUILT_IN,
        trainers=built_in,
        rows=rows,
        methods=tuple(METHODS),
        network=_built_in_network,
    ),
    "cifar10-few": Recipe(
        reproduces="L2T-ww with few labels: CIFAR-10, 50 per class, TinyImageNet ResNet-32 to VGG-9, 200 epochs",
        duration="on one thread 10 to 25 minutes from scratch or with fixed matching, about 2 hours by l2t",
        expected="after the last epoch 12 to 51 %, 45 % by l2t; with lr=0.01, at which scratch trains, 44 to 53 %",
        settings=CIFAR10_FEW,
        trainers=cifar10_few,
        rows=rows,
        methods=tuple(METHODS),
        network=_cifar10_network,
    ),
}
