"""The recipes of paper 2: anytime networks trained in the same way on one task, one row of results per exit."""

import math
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import nn

from mtanytime.anytime import (
    AnytimeNetwork,
    AnytimeTrainer,
    InclusiveResNeXt,
    JointLoss,
    MSDNet,
    SliceCascade,
    SlicedResNet,
    SlicedResNeXt,
    SliceShape,
    doubling_widths,
    resnext,
)
from mtanytime.backbones import Normalized
from mtanytime.checks import mismatch, require
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import ImageSet, Task
from mtanytime.data.splits import balanced_split
from mtanytime.experiments.recipe import (
    Parts,
    Recipe,
    Settings,
    check_files,
    check_names,
    check_scored_on,
    load_cifar10,
    load_cifar100,
    run_folder,
)
from mtanytime.measure.costs import exit_costs, macs, parameters
from mtanytime.training.trainer import Trainer, TrainingResult

CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)  # the authors' normalization
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
MODELS = ("sliced", "inclusive", "msdnet", "separate")
VALIDATION_PER_CLASS = 500  # held-out training images that `scored_on=validation` scores on
HELD_BACK_SEED = 100  # of "anytime-cifar10-full": every run holds back the same images
SLICE_BLOCKS = ("basic", "inverted", "resnext")
EXIT_WEIGHTS = {"sliced": "slice_weights", "msdnet": "msdnet_weights"}  # settings; the other models' exits count 1
SLICE_READS = {"layers": SlicedResNet, "stages": SliceCascade}  # what a slice reads of the slices before it


def build_network(model: str, settings: Settings, classes: int) -> nn.Module:
    """Build a network of the recipe with fresh weights, without the normalization that the recipe wraps it in.

    Args:
        model: "sliced", "inclusive", "msdnet", or "separate-K", the K-th exit of "inclusive" as an ordinary network.
        settings: the recipe's settings, `RECIPES["anytime-cifar10-full"].settings` or those that `changed` returns.
        classes: number of classes.

    Raises:
        ValueError: an unknown model, or sizes that the network does not accept.
    """
    bottleneck, blocks = settings["bottleneck"], settings["blocks"]
    width, branches, exits = (settings[f"inclusive_{name}"] for name in ("width", "branches", "exits"))
    separate = {f"separate-{k}": branches * k // exits for k in range(1, exits + 1)}
    if model == "sliced":
        return _sliced(settings, classes)
    if model == "inclusive":
        return InclusiveResNeXt(classes, width, bottleneck, branches, blocks, exits)
    if model == "msdnet":
        options = {name: settings[f"msdnet_{name}"] for name in ("blocks", "base", "step", "initialization")}
        return MSDNet(classes, **options)
    if model in separate:
        return resnext(classes, width, bottleneck, separate[model], blocks)
    raise mismatch("model", f"one of {', '.join(('sliced', 'inclusive', 'msdnet', *separate))}", model)


def _sliced(settings: Settings, classes: int) -> AnytimeNetwork:
    """The sliced network of these settings: a `SlicedResNeXt`, or a network of the blocks that `slice_block` names."""
    block = settings.get("slice_block", "resnext")
    require(block in SLICE_BLOCKS, "slice_block", f"one of {list(SLICE_BLOCKS)}", block)
    reads = settings.get("slice_reads", "layers")
    require(reads in SLICE_READS, "slice_reads", f"one of {list(SLICE_READS)}", reads)
    if block == "resnext":  # which reads layers
        widths, branches = settings["slice_widths"], settings["slice_branches"]
        if isinstance(widths, str):
            expected = "the first stage's alone with slice_block=resnext, where widths double from stage to stage"
            require("/" not in widths, "slice_widths", expected, widths)
            widths = slice_widths(widths, 1)[0]
        return SlicedResNeXt(
            classes, sum(widths), settings["bottleneck"], sum(branches), settings["blocks"], widths, branches
        )
    widths = slice_widths(settings["slice_widths"], len(settings["slice_blocks"]), settings["slice_multiple"])
    options = {name: settings[f"slice_{name}"] for name in ("blocks", "block", "stem_stride", "expansion", "squeeze")}
    return SLICE_READS[reads](classes, SliceShape(widths, **options))


def slice_widths(text: str, stages: int, multiple: int = 1) -> tuple[tuple[int, ...], ...]:
    """Channels of each slice in each stage, from a setting.

    Args:
        text: "26,11,13,14", the slices' channels in the first stage, which double from stage to stage, or
            "16,16/32,32/64,64" for all stages.
        stages: see `doubling_widths`; not used if all stages are given.
        multiple: see `doubling_widths`; if all stages are given, their prefixes must be multiples of it.

    Raises:
        ValueError: another text, prefixes that are no multiples, or as `doubling_widths`.
    """
    try:
        widths = tuple(tuple(int(size) for size in stage.split(",")) for stage in text.split("/"))
    except ValueError as error:
        expected = "whole numbers separated by commas, with a slash between stages, such as 16,16/32,32/64,64"
        raise mismatch("slice_widths", expected, text) from error
    if len(widths) == 1:
        return doubling_widths(widths[0], stages, multiple)
    fits = multiple < 2 or all(end % multiple == 0 for stage in widths for end in accumulate(stage))
    require(fits, "slice_widths", f"prefixes in multiples of {multiple}, the slice_multiple, in every stage", text)
    return widths


def cifar10(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train each of the settings' models; "separate" is one ordinary network per exit of "inclusive"."""
    check_names("models", settings["models"], MODELS)
    check_scored_on(settings)
    check_files(settings, "images")
    exits, branches = settings["inclusive_exits"], settings["inclusive_branches"]
    divides = exits >= 1 and branches % exits == 0
    require(divides, "inclusive_exits", f"a divisor of inclusive_branches ({branches})", exits)
    task, validation = _sets(settings, seed)
    shared = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay", "precision")}
    shared |= {"nesterov": True, "schedule": "warm-up cosine", "augment": crop_flip()}
    shared |= PAPER_LOOP | {"validation": validation} if validation is not None else {}
    shared |= {"seed": seed, "progress": progress, "checkpoint_seconds": settings["checkpoint_seconds"]}
    for model in settings["models"]:
        for part in [f"separate-{k}" for k in range(1, exits + 1)] if model == "separate" else [model]:
            make = partial(_build_normalized, part, settings, len(task.classes))
            options = shared | {"folder": run_folder(folder, f"{part}-seed{seed}")}
            if model == "separate":
                yield part, Trainer(make, task, **options)
            else:
                weights = settings[EXIT_WEIGHTS[model]] if model in EXIT_WEIGHTS else ()
                loss = JointLoss(weights or None, settings["distillation"])
                yield part, AnytimeTrainer(make, task, loss=loss, **options)


def rows(part: str, seed: int, trainer: Trainer, result: TrainingResult | None) -> list[dict[str, Any]]:
    """One row per exit: model, seed, exit, macs, macs_own_head, params, accuracy, last_accuracy, epochs, train_seconds.

    `train_seconds` is that of the whole network. The accuracies of a run that diverged are nan.
    """
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


def _sets(settings: Settings, seed: int) -> tuple[Task, ImageSet | None]:
    """The task and, where the settings have `validation_images` as in the paper, so many of the training images."""
    if "validation_images" not in settings:
        return _task(settings, seed), None
    loaders, name = {"cifar10": load_cifar10, "cifar100": load_cifar100}, settings["data_set"]
    require(name in loaders, "data_set", f"one of {', '.join(loaders)}", name)
    cifar = loaders[name](settings["images"])
    train, validation = balanced_split(cifar.train, settings["validation_images"], seed)
    return Task(train, cifar.test if settings["scored_on"] == "test" else validation), validation


def _task(settings: Settings, seed: int) -> Task:
    """`per_class` training images of each class, and the test set or, to make choices, other training images.

    Settings without `per_class` stand for all training images; those that are held back are then the same in every run.
    """
    cifar = load_cifar10(settings["images"])
    if "per_class" not in settings:
        if settings["scored_on"] == "test":
            return Task(cifar.train, cifar.test)
        fraction = VALIDATION_PER_CLASS * len(cifar.classes) / len(cifar.train)
        return Task(*cifar.train.split(fraction, HELD_BACK_SEED))
    count = settings["per_class"]
    if settings["scored_on"] == "test":
        return Task(cifar.train.few(count, seed), cifar.test)
    images, split = cifar.train.few(count + VALIDATION_PER_CLASS, seed), count * len(cifar.classes)
    return Task(images.subset(range(split)), images.subset(range(split, len(images))))


def _build_normalized(part: str, settings: Settings, classes: int) -> Normalized:
    return Normalized(build_network(part, settings, classes), CIFAR_MEAN, CIFAR_STD)


CIFAR10: Settings = {
    "models": ("sliced", "msdnet", "inclusive", "separate"),
    "scored_on": "test",
    "images": "data",
    "per_class": 1000,
    "epochs": 8,
    "batch_size": 64,
    "lr": 0.2,  # this and the slices were chosen on held-out images: data/results/anytime_cifar10_search.csv
    "weight_decay": 5e-4,
    "precision": "bfloat16",
    "slice_widths": (19, 14, 16, 22),
    "slice_branches": (4, 2, 2, 2),
    "slice_weights": (1.0, 0.5, 0.5, 2.0),
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
    "msdnet_weights": (),
    "checkpoint_seconds": 30.0,
}

CIFAR10_FULL: Settings = {
    **{name: value for name, value in CIFAR10.items() if name != "per_class"},
    "models": ("sliced", "msdnet", "inclusive"),
    "epochs": 10,
    "lr": 0.1,
    "precision": "float32",  # bfloat16 is quicker on a GPU, and many times slower on a processor without it
    "slice_reads": "stages",
    "slice_block": "inverted",
    "slice_widths": "16,8,16,16/48,16,24,24/128,32,48,48",
    "slice_multiple": 1,
    "slice_blocks": (2, 2, 2),
    "slice_stem_stride": 2,
    "slice_expansion": 4,
    "slice_squeeze": 0,
    "slice_weights": (),
}

PAPER_LOOP: dict[str, Any] = {"nesterov": False, "schedule": "steps"}  # rates ÷ 10 at half and at three quarters
PAPER: Settings = {  # of arXiv:1807.02609 and its code; the slices, of the same widths, are our reconstruction
    **{name: value for name, value in CIFAR10.items() if name not in ("per_class", "slice_weights")},
    "data_set": "cifar10",
    "models": ("inclusive", "sliced", "msdnet"),
    "validation_images": 5000,
    "epochs": 300,
    "lr": 0.1,
    "weight_decay": 1e-4,
    "blocks": 7,
    "inclusive_exits": 8,
    "slice_widths": (8,) * 8,
    "slice_branches": (1,) * 8,
    "slice_weights": (),
}


def _paper_recipe(data_set: str, name: str, figures: str) -> Recipe:
    return Recipe(
        reproduces=f"the anytime paper on {name}: eight nested ResNeXts, 300 epochs; and the sliced one, and MSDNet",
        duration="see --dry-run; meant for a GPU, and not run to the end here",
        expected=f"an independent run of the authors' code: {figures} % at the first and the last exit of inclusive",
        settings=PAPER | {"data_set": data_set},
        trainers=cifar10,
        rows=rows,
        network=_build_normalized,
    )


RECIPES = {
    "anytime-cifar10-paper": _paper_recipe("cifar10", "CIFAR-10", "90.28 and 94.34"),
    "anytime-cifar100-paper": _paper_recipe("cifar100", "CIFAR-100", "66.83 and 74.39"),
    "anytime-cifar10": Recipe(
        reproduces="anytime networks side by side on CIFAR-10, at a scale for 2 cores: accuracy against multiply-adds",
        duration="on one thread about 10 minutes for sliced or MSDNet, 25 for inclusive or all separate ones",
        expected="60 to 70 % at each exit after 8 epochs on 10,000 images",
        settings=CIFAR10,
        trainers=cifar10,
        rows=rows,
        network=_build_normalized,
    ),
    "anytime-cifar10-full": Recipe(
        reproduces="anytime networks side by side on all 50,000 training images of CIFAR-10",
        duration="on one core half an hour for sliced or MSDNet in bfloat16, about three hours for inclusive",
        expected="on test images sliced 81.6 to 83.4 %, MSDNet 79.5 to 83.1 %",
        settings=CIFAR10_FULL,
        trainers=cifar10,
        rows=rows,
        network=_build_normalized,
    ),
}
