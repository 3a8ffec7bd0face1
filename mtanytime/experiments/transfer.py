"""The recipes of paper 1: a source network, then a target network trained by each of several methods."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized, load_l2t_resnet32, resnet, vgg9
from mtanytime.data.images import Task, crop_flip
from mtanytime.data.synthetic import DIGITS_A_CLASS, digits, letters
from mtanytime.experiments.recipe import (
    Parts,
    Settings,
    check_files,
    check_scored_on,
    listed,
    run_folder,
    whole_cifar10,
)
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer import FreshBatch, TransferTrainer

# The ways to train the target: the arguments of a `TransferTrainer`, or None from scratch. One-to-one pairs a source
# stage with the target layer of its size. "l2t_another" is a variant of L2T-ww of ours: it starts at λ = 1, is judged
# on another batch than the step's, and learns φ at a rate of its own, `meta_lr_l2t_another`.
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


BUILT_IN: Settings = {
    "methods": "l2t",
    "betas": "",
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
    """The target network trained by each of the settings' methods, with its own strength β or with each of `betas`;
    `validation` is the share of the training images that is held back."""
    shared = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay")} | options
    if validation is not None:  # here and not by the trainers, so that no method's φ sees what validates
        train, shared["validation"] = task.train.split(validation, seed)
        task = Task(train, task.test)
    another = {"outer": FreshBatch(task.train, settings["batch_size"], options["augment"])}
    for method in _methods(settings):
        if METHODS[method] is None:
            yield method, Trainer(make, task, folder=run_folder(folder, f"{method}-seed{seed}"), seed=seed, **shared)
            continue
        for beta in _betas(settings) or [settings.get(f"beta_{method}", settings["beta"])]:
            among = f"-beta{beta:g}" if _betas(settings) else ""
            yield (
                method,
                TransferTrainer(
                    source,
                    make,
                    task,
                    folder=run_folder(folder, f"{method}{among}-seed{seed}"),
                    seed=seed,
                    beta=beta,
                    meta_lr=settings.get(f"meta_lr_{method}", settings["meta_lr"]),
                    **(METHODS[method] | another if method == "l2t_another" else METHODS[method]),
                    **shared,
                ),
            )


def _betas(settings: Settings) -> list[float]:
    try:
        betas = [float(beta) for beta in str(settings["betas"]).split(",") if beta]
    except ValueError as error:
        raise ValueError(f"betas takes numbers with commas between, like 0.5,2; got {settings['betas']!r}") from error
    if len({f"{beta:g}" for beta in betas}) < len(betas):
        raise ValueError(f"wanted betas that differ, got {settings['betas']!r}")
    return betas


def _methods(settings: Settings) -> list[str]:
    return listed(settings, "method", METHODS)


def _check(settings: Settings) -> None:
    """Refuse, before any work, what a recipe would only stumble over later."""
    _methods(settings)
    _betas(settings)
    check_scored_on(settings)
    if settings.get("scored_on") == "validation" and settings["digits_per_class"] >= DIGITS_A_CLASS:
        raise ValueError(
            f"validation needs digits to hold back: digits_per_class < {DIGITS_A_CLASS}, "
            f"got {settings['digits_per_class']}"
        )


def built_in(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """The letter network, then the digit network by one method (or by several, separated by commas)."""
    augment = crop_flip(padding=3, flip=False)
    shared = {"augment": augment, "progress": progress, "checkpoint_seconds": settings["checkpoint_seconds"]}
    _check(settings)
    source = Trainer(
        lambda: resnet(settings["source_depth"], num_classes=37),
        _letters(settings["letters_per_class"]),
        epochs=settings["source_epochs"],
        batch_size=64,
        folder=run_folder(folder, "source"),
        **shared,  # the same source for every seed
    )
    yield "source", source
    task = _digits(settings["digits_per_class"], seed, settings["scored_on"])
    make = lambda: vgg9(10, width=settings["target_width"])  # noqa: E731
    yield from _targets(settings, seed, folder, source.model, make, task, **shared)


# Every seed has the same; reading or drawing them takes seconds.
@cache
def _letters(per_class: int) -> Task:
    return letters(train_per_class=per_class)


def _digits(per_class: int, seed: int, scored_on: str) -> Task:
    """The digits with few labels, or the like with other digits of the training half in place of the test set."""
    if scored_on == "test":
        return digits(per_class=per_class, seed=seed)
    whole, few = digits(per_class=DIGITS_A_CLASS, test_per_class=1, seed=seed).train, 10 * per_class
    return Task(whole.subset(range(few)), whole.subset(range(few, len(whole))))


def cifar10_few(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """CIFAR-10 with few labels from the authors' TinyImageNet source, a tenth of the labels held back to validate."""
    _check(settings)
    check_files(settings, "source", "images")
    source = load_l2t_resnet32(settings["source"])
    whole = whole_cifar10(settings["images"])
    task = Task(whole.train.few(settings["per_class"], seed), whole.test)
    make = lambda: Normalized(vgg9(10), IMAGENET_MEAN, IMAGENET_STD)  # noqa: E731
    options = {"augment": crop_flip(), "validation": 0.1, "progress": progress}
    options |= {name: settings[name] for name in ("precision", "checkpoint_seconds")}
    yield from _targets(settings, seed, folder, source, make, task, **options)


def rows(part: str, seed: int, trainer: Trainer, result: TrainingResult | None) -> list[dict[str, Any]]:
    """The row of a target network: method, seed, beta, epochs, accuracy, last_accuracy, train_seconds; nan where it
    diverged. Of a source, none."""
    if part not in METHODS:
        return []
    scores = (math.nan, math.nan) if result is None else (result.accuracy, result.last_accuracy)
    which = {"method": part, "seed": seed, "beta": getattr(trainer, "beta", 0.0), "epochs": trainer.epochs}
    return [{**which, "accuracy": scores[0], "last_accuracy": scores[1], "train_seconds": round(trainer.seconds, 1)}]
