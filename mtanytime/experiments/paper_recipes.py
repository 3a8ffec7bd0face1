"""Recipes for the tables of the L2T-ww paper (arXiv:1905.05901) on its own data sets, in its own settings.

32×32 images: from the authors' ResNet-32 (TinyImageNet) to VGG-9. 224×224 images: from torchvision's ResNet-34
(ImageNet) to ResNet-18. A tenth of the training images is for validation, and the test accuracy is that of the best
validation epoch. As in the authors' code, the last, smaller batch of an epoch is a step, too.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtanytime._torchvision import torchvision_module
from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized, load_l2t_resnet32, vgg9
from mtanytime.checks import require
from mtanytime.data.batches import crop_flip
from mtanytime.data.birds_and_dogs import cub200, stanford_dogs
from mtanytime.data.crops import ResizedCrops
from mtanytime.data.images import LabelledImages, Task
from mtanytime.data.public import cifar100, l2t_split, stl10
from mtanytime.data.scenes_and_actions import indoor67, stanford40
from mtanytime.data.splits import VALIDATION_IMAGES, apply_split, balanced_split
from mtanytime.experiments.paper_figures import paper_figure
from mtanytime.experiments.recipe import HOW_TO_GET, Parts, Recipe, Settings, check_files, check_names, run_folder
from mtanytime.experiments.transfer_recipes import target_rows
from mtanytime.torch_files import load_file
from mtanytime.training.checkpoint import load_state
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import PAPER, TransferTrainer
from mtanytime.transfer.baselines import BaselineTrainer

TERMS: dict[str, tuple[str, ...]] = {"lwf": ("lwf",), "at": ("at",), "lwf_at": ("lwf", "at")}
# Arguments of `TransferTrainer`; "pairs" is replaced by the data set's own pairs of that name. "what" is the paper's
# L2T-w, which learns what to transfer between given layers; "l2t" its L2T-ww, which also learns where.
MATCHING: dict[str, dict[str, object]] = {
    "matching_single": {"what": False, "where": "off", "pairs": "single"},
    "matching_one": {"what": False, "where": "off", "pairs": "one"},
    "matching_all": {"what": False, "where": "off"},
    "what_single": {"where": "off", "pairs": "single"},
    "what_one": {"where": "off", "pairs": "one"},
    "l2t": {},
}
METHODS = ("scratch", *TERMS, *MATCHING)
SMALL_PAIRS = {
    "single": [("layer3", "features.13")],
    "one": [("layer1", "features.2"), ("layer2", "features.6"), ("layer3", "features.13")],
}
STAGES = ("layer1", "layer2", "layer3", "layer4")
LARGE_PAIRS = {"single": [("layer4", "layer4")], "one": [(stage, stage) for stage in STAGES]}


@dataclass(frozen=True)
class PaperSet:
    """A data set of the paper.

    Attributes:
        name: as in the paper's tables.
        read: `read(path, workers, cache)` gives the task.
        full_name: of the training set.
        split: the name of the authors' split, if there is one.
        large: whether its images are 224×224.
        meta_lr: Adam's rate on the meta-networks.
    """

    name: str
    read: Callable[[str, int | None, str | None], Task]
    full_name: str
    split: str | None
    large: bool
    meta_lr: float = 1e-4


SETS = {
    "cifar100": PaperSet("CIFAR-100", lambda path, *_: cifar100(path), "CIFAR100", "cifar100", False),
    "stl10": PaperSet("STL-10", lambda path, *_: stl10(path), "STL10", "stl10", False),
    "cub200": PaperSet("CUB-200", lambda *a: _large(cub200, *a), "CUB-200-2011", "cub200", True),
    "mit67": PaperSet("MIT67", lambda *a: _large(indoor67, *a), "MIT Indoor 67", None, True),
    "stanford40": PaperSet("Stanford40", lambda *a: _large(stanford40, *a), "Stanford 40 Actions", None, True, 1e-3),
    "dogs": PaperSet("Dogs", lambda *a: _large(stanford_dogs, *a), "Stanford Dogs", "dog", True),
}


def _large(read: Callable[..., Task], path: str, workers: int | None, cache: str | None) -> Task:
    return read(path, workers=workers, cache=cache)


@cache  # a recipe's trainers are built twice, first to validate them
def read_task(key: str, path: str, split: str, seed: int, workers: int, cache: str) -> tuple[Task, LabelledImages]:
    """A data set of `SETS` as training images, test images and validation images.

    Args:
        key: of `SETS`.
        path: the images, see the set's reader.
        split: a clone of the authors' repository, or an npz file of their splits; "": a balanced split of the paper's
            size, drawn from the seed.
        seed: of that split.
        workers: processes that decode; -1: as many as torch has threads, which a sweep or torchrun limits.
        cache: a folder for decoded images; "": none.

    Raises:
        ValueError: as the reader and `l2t_split`; a `split` for a set of which the authors give none.
    """
    chosen = SETS[key]
    if split:
        known = ", ".join(name for name, each in SETS.items() if each.split is not None)
        require(chosen.split is not None, "split", f"none: the authors' are of {known}", split)
    task = chosen.read(path, torch.get_num_threads() if workers < 0 else workers, cache or None)
    if split:
        return apply_split(task, l2t_split(split, chosen.split))
    train, validation = balanced_split(task.train, VALIDATION_IMAGES[chosen.full_name], seed)
    return Task(train, task.test), validation


@cache
def _source(key: str, path: str) -> nn.Module:
    """The trained source network."""
    if not SETS[key].large:
        return load_l2t_resnet32(path)
    network = torchvision_module().models.resnet34()
    expected = "torchvision's weights of ResNet-34"
    try:
        load_state(network, load_file(path, expected, old_form=True))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path}: expected {expected}, got others: {error}") from error
    return Normalized(network, IMAGENET_MEAN, IMAGENET_STD)


def _target(key: str, classes: int) -> nn.Module:
    network = torchvision_module().models.resnet18(num_classes=classes) if SETS[key].large else vgg9(classes)
    return Normalized(network, IMAGENET_MEAN, IMAGENET_STD)


def _parts(key: str, settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train a target by each of the settings' methods."""
    chosen = SETS[key]
    check_names("methods", settings["methods"], METHODS)
    how = {"images": f"set it to {chosen.name}'s archive, or the folder that holds it (see mtanytime.data)"}
    how["source"] = "set it to torchvision's resnet34-b627a593.pth" if chosen.large else HOW_TO_GET["source"]
    check_files(settings, "images", "source", how=how)
    source = _source(key, settings["source"])
    place = tuple(settings[name] for name in ("images", "split"))
    task, validation = read_task(key, *place, seed, settings["workers"], settings["cache"])
    augment = ResizedCrops(224) if chosen.large else crop_flip()
    names = ("epochs", "batch_size", "lr", "weight_decay", "precision", "checkpoint_seconds")
    shared: dict[str, Any] = {name: settings[name] for name in names}
    shared |= {name: PAPER[name] for name in ("schedule", "remainder")}
    shared |= {"augment": augment, "validation": validation, "seed": seed, "progress": progress}
    layers = {"source_layers": STAGES, "target_layers": STAGES} if chosen.large else {}
    pairs: Mapping[str, Any] = LARGE_PAIRS if chosen.large else SMALL_PAIRS
    make = lambda: _target(key, len(task.classes))  # noqa: E731
    for method in settings["methods"]:
        options = shared | {"folder": run_folder(folder, f"{method}-seed{seed}")}
        if method == "scratch":
            yield method, Trainer(make, task, **options)
        elif method in TERMS:
            weights = {term: settings[f"weight_{term}"] for term in TERMS[method]}
            yield method, BaselineTrainer(source, make, task, terms=weights, pairs=pairs["one"], **layers, **options)
        else:
            arguments = dict(MATCHING[method])
            if "pairs" in arguments:
                arguments["pairs"] = own = pairs[arguments["pairs"]]
                arguments |= {"source_layers": [at for at, _ in own], "target_layers": [to for _, to in own]}
            options |= {name: settings[name] for name in ("beta", "inner_steps", "meta_lr", "meta_every")}
            yield method, TransferTrainer(source, make, task, **PAPER | layers | options | arguments)


def _recipe(key: str) -> Recipe:
    chosen = SETS[key]
    settings: dict[str, Any] = {
        "methods": ("scratch", "l2t"),
        "images": "data",
        "source": "data/resnet34-b627a593.pth" if chosen.large else "data/tinyimagenet_resnet32.pth.tar",
        "split": "",
        "epochs": 200,
        "batch_size": 64 if chosen.large else 128,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "beta": 0.5,
        "inner_steps": 2,
        "meta_lr": chosen.meta_lr,
        "meta_every": 1,
        "weight_lwf": 1.0,
        "weight_at": 1000.0,
        "workers": -1,
        "cache": "",
        "precision": "float32",
        "checkpoint_seconds": 300.0,
    }
    figures = [(paper_figure(chosen.name, method), method) for method in ("l2t", "scratch")]
    marks = ["" if figure.verified else " (recalled, not looked up again)" for figure, _ in figures]
    shown = [f"{figure.percent} % by {method}{mark}" for (figure, method), mark in zip(figures, marks, strict=True)]
    networks = "ResNet-34 to ResNet-18, 224×224" if chosen.large else "ResNet-32 to VGG-9, 32×32"
    return Recipe(
        reproduces=f"the L2T-ww paper's table on {chosen.name}: {networks}, 200 epochs",
        duration="see --dry-run; meant for a GPU, and not run to the end here",
        expected=f"the paper: {', '.join(shown)}",
        settings=settings,
        trainers=lambda *arguments: _parts(key, *arguments),
        rows=target_rows(METHODS),
        methods=METHODS,
        network=lambda part, settings, classes: _target(key, classes),
    )


RECIPES = {f"l2t-{key}": _recipe(key) for key in SETS}
