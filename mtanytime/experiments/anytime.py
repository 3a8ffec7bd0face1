"""The recipes of paper 2: anytime networks trained alike on one task, a row of the table for each of their exits."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from mtanytime.anytime import AnytimeTrainer, InclusiveResNeXt, JointLoss, MSDNet, SlicedResNeXt, resnext
from mtanytime.backbones import Normalized
from mtanytime.data.images import Task, crop_flip
from mtanytime.experiments.recipe import (
    Parts,
    Settings,
    check_files,
    check_scored_on,
    listed,
    run_folder,
    whole_cifar10,
)
from mtanytime.measure.costs import exit_costs, macs, parameters
from mtanytime.training.trainer import Trainer, TrainingResult

CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)  # as the authors normalise


CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)


MODELS = ("sliced", "inclusive", "msdnet", "separate")


VALIDATION_A_CLASS = 500  # training images to score on in place of the test set


CIFAR10: Settings = {
    "models": "sliced,msdnet,inclusive,separate",
    "scored_on": "test",
    "images": "data",
    "per_class": 1000,
    "epochs": 8,
    "batch_size": 64,
    "lr": 0.2,  # this and the slices were chosen on held-back images: data/results/anytime_cifar10_search.csv
    "weight_decay": 5e-4,
    "precision": "bfloat16",
    "slice_widths": "19,14,16,22",
    "slice_branches": "4,2,2,2",
    "slice_weights": "1,0.5,0.5,2",
    "bottleneck": 4,
    "blocks": 2,
    "distillation": 0.0,
    "inclusive_width": 64,
    "inclusive_branches": 8,
    "inclusive_exits": 4,
    "msdnet_blocks": 7,
    "msdnet_base": 2,
    "msdnet_step": 1,
    "msdnet_initialization": "fan_out",
    "checkpoint_seconds": 30.0,
}


def cifar10(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Each of the settings' models; "separate" is a network of its own for each exit of "inclusive"."""
    models = listed(settings, "model", MODELS)
    check_scored_on(settings)
    check_files(settings, "images")
    exits, branches = settings["inclusive_exits"], settings["inclusive_branches"]
    if exits < 1 or branches % exits:
        raise ValueError(f"wanted inclusive_exits that divide inclusive_branches; got {exits} and {branches}")
    task = _task(settings, seed)
    shared = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay", "precision")}
    shared |= {"nesterov": True, "schedule": "warm-up cosine", "augment": crop_flip()}
    shared |= {"seed": seed, "progress": progress, "checkpoint_seconds": settings["checkpoint_seconds"]}
    classes = len(task.classes)
    for model in models:
        if model == "separate":
            for k in range(1, exits + 1):
                sizes = (settings["inclusive_width"], settings["bottleneck"], branches * k // exits, settings["blocks"])
                make = lambda sizes=sizes: _normalised(resnext(classes, *sizes))  # noqa: E731
                part = f"separate-{k}"
                yield part, Trainer(make, task, folder=run_folder(folder, f"{part}-seed{seed}"), **shared)
            continue
        make = lambda model=model: _normalised(_network(model, classes, settings))  # noqa: E731
        weights = _numbers(settings, "slice_weights") if model == "sliced" else None
        loss = JointLoss(weights, settings["distillation"])
        place = run_folder(folder, f"{model}-seed{seed}")
        yield model, AnytimeTrainer(make, task, loss=loss, folder=place, **shared)


def rows(part: str, seed: int, trainer: Trainer, result: TrainingResult | None) -> list[dict[str, Any]]:
    """A row for each exit: model, seed, exit, macs, macs_own_head, params, accuracy, last_accuracy, epochs,
    train_seconds (of the whole network); nan where it diverged."""
    network = trainer.model.network
    model, _, number = part.partition("-")
    if number:
        cost = macs(network)
        costs = [{"exit": int(number), "macs": cost, "macs_own_head": cost, "params": parameters(network)}]
    else:
        costs = exit_costs(network)[["exit", "macs", "macs_own_head", "params"]].to_dict("records")
    unknown = [math.nan] * len(costs)
    best = unknown if result is None else [result.accuracy] if number else result.accuracy
    last = unknown if result is None else [result.last_accuracy] if number else result.last_accuracy
    common = {"epochs": trainer.epochs, "train_seconds": round(trainer.seconds, 1)}
    return [
        {"model": model, "seed": seed, **cost, "accuracy": accuracy, "last_accuracy": last_accuracy, **common}
        for cost, accuracy, last_accuracy in zip(costs, best, last, strict=True)
    ]


def _task(settings: Settings, seed: int) -> Task:
    """So many training images of each class; in place of the test set, other training images where asked for."""
    whole, count = whole_cifar10(settings["images"]), settings["per_class"]
    if settings["scored_on"] == "test":
        return Task(whole.train.few(count, seed), whole.test)
    drawn, split = whole.train.few(count + VALIDATION_A_CLASS, seed), count * len(whole.classes)
    return Task(drawn.subset(range(split)), drawn.subset(range(split, len(drawn))))


def _normalised(network: nn.Module) -> Normalized:
    return Normalized(network, CIFAR_MEAN, CIFAR_STD)


def _network(model: str, classes: int, settings: Settings) -> nn.Module:
    if model == "sliced":
        widths, branches = _numbers(settings, "slice_widths", int), _numbers(settings, "slice_branches", int)
        sizes = (sum(widths), settings["bottleneck"], sum(branches), settings["blocks"])
        return SlicedResNeXt(classes, *sizes, slice_widths=widths, slice_branches=branches)
    if model == "inclusive":
        sizes = (settings["inclusive_width"], settings["bottleneck"], settings["inclusive_branches"])
        return InclusiveResNeXt(classes, *sizes, settings["blocks"], settings["inclusive_exits"])
    options = {name: settings[f"msdnet_{name}"] for name in ("blocks", "base", "step", "initialization")}
    return MSDNet(classes, **options)


def _numbers(settings: Mapping[str, Any], name: str, kind: type = float) -> list[Any]:
    try:
        return [kind(number) for number in str(settings[name]).split(",")]
    except ValueError as error:
        raise ValueError(f"{name} takes numbers with commas between, got {settings[name]!r}") from error
