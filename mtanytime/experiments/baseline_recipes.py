"""Recipes that compare transfer with what one could do instead: CIFAR-10 with few labels, one training loop for all."""

from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized, load_l2t_resnet32, vgg9
from mtanytime.checks import require
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import ImageSet, Task
from mtanytime.experiments.map_recipes import L2T
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
from mtanytime.experiments.search_run import SearchRun, search_run
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer import TransferTrainer
from mtanytime.transfer.baselines import BaselineTrainer
from mtanytime.transfer.fine_tuning import FineTuning, Head, choose_head, with_head
from mtanytime.transfer.l2sp import L2SP, PenalizedLoss
from mtanytime.transfer.outer import FreshBatch

VALIDATION_PER_CLASS = 1000  # training images to score on in place of the test set; in no unlabelled pool
PAIRS = {  # the last source stage with the target layer of its size; each stage with the layer of its size
    "single": [("layer3", "features.13")],
    "one": [("layer1", "features.2"), ("layer2", "features.6"), ("layer3", "features.13")],
    "all": None,
    "not later": "not later",  # the rule that searches on digits suggest
}
# What each method adds to a target's training on the task. "_views" and "_unlabelled" join half a batch of strong views
# or of unlabelled images to half a batch of labelled ones (or `extra_images` to a whole one); "recommended" also
# distills the answers of the probe. Methods in `LEARNED` learn their map and have the views; the maps of the others are
# fixed.
MATCHING: dict[str, str] = {
    "matching_single": "single",
    "matching_one": "one",
    "matching_all": "all",
    "matching_all_views": "all",
    "matching_not_later_views": "not later",
    "matching_all_unlabelled": "all",
    "recommended": "all",
    "recommended_unlabelled": "all",
}
# L2T-ww with our settings (see `RESULTS.md`), a lookahead at every `meta_every`-th step; and searches by trials.
L2T_PAIRS = {"l2t": "all", "l2t_not_later": "not later"}
LEARNED = (*L2T_PAIRS, "random_search", "search_then_train")
TERMS: dict[str, tuple[str, ...]] = {
    "lwf": ("lwf",),
    "at": ("at",),
    "lwf_at": ("lwf", "at"),
    "semckd": ("semckd",),
    "reviewkd": ("reviewkd",),
    "probe_distilled": ("teacher",),
}
# These keep the source's own architecture. "fine_tuning" takes the better of the two starts of its head, chosen on
# labels held back in a quarter of the steps.
ON_SOURCE = ("probe", "fine_tuning", "fine_tuning_new", "fine_tuning_probe", "l2sp")
METHODS = ("scratch", *TERMS, *MATCHING, *LEARNED, *ON_SOURCE)


def cifar10_baselines(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train a VGG-9 on CIFAR-10 with few labels by each of the methods, in one training loop; and the source itself."""
    check_names("methods", settings["methods"], METHODS)
    check_scored_on(settings)
    check_files(settings, "source", "images")
    source = _source(settings["source"])
    task, pool = _task(settings["images"], settings["per_class"], settings["scored_on"], seed)
    shared = {name: settings[name] for name in ("steps", "lr", "weight_decay", "precision", "checkpoint_seconds")}
    shared |= {"schedule": "warm-up cosine", "remainder": "drop", "augment": crop_flip(), "seed": seed}
    shared["progress"] = progress
    for method in settings["methods"]:
        options = shared | {"folder": run_folder(folder, f"{method}-seed{seed}"), "batch_size": settings["batch_size"]}
        yield method, _trainer(method, settings, source, task, pool, options)


def rows(part: str, seed: int, trainer: Any, result: TrainingResult | None) -> list[dict[str, Any]]:
    """One row: method, network, seed, steps, accuracy (after the last step), train_seconds; nan if it diverged."""
    network = "source" if part in ON_SOURCE else _network_name(trainer.model)
    row = row_of(trainer, result)
    return [{"method": part, "network": network, "seed": seed, "steps": trainer.steps} | row]


def target_network(part: str, settings: Settings, classes: int) -> nn.Module:
    """The target of a method, with fresh weights. ValueError for methods that train the source's own network."""
    require(part not in ON_SOURCE, "part", "a method that trains a target", part, "its network is the source's")
    network = Normalized(vgg9(classes, width=settings["width"]), IMAGENET_MEAN, IMAGENET_STD)
    return network.to(memory_format=torch.channels_last)  # faster on a CPU


def _trainer(
    method: str, settings: Settings, source: nn.Module, task: Task, pool: ImageSet, options: dict[str, Any]
) -> Any:
    make = lambda: target_network(method, settings, 10)  # noqa: E731
    if method == "scratch":
        return Trainer(make, task, **options)
    if method == "probe":
        probe, seconds = timed_probe(source, task.train)
        return ProbeRun(probe, task, seconds)
    if method in ON_SOURCE:
        return _on_source(method, settings, source, task, options)
    extra = settings["extra_images"]  # beside the batch; 0: half of the batch in their place
    labelled, extra = (settings["batch_size"], extra) if extra else (settings["batch_size"] // 2,) * 2
    if "views" in method or method == "recommended" or method in LEARNED:
        options |= {"views": extra, "batch_size": labelled}
    if "unlabelled" in method:
        options |= {"unlabelled": pool, "unlabelled_per_step": extra, "batch_size": labelled}
    if method.startswith("recommended") or method == "probe_distilled":
        options["teacher"] = timed_probe(source, task.train)[0]
    if method in TERMS:
        weights = {term: settings[f"weight_{term}"] for term in TERMS[method]}
        return BaselineTrainer(source, make, task, terms=weights, pairs=PAIRS["one"], **options)
    options |= {"standardize": standardization(settings), "teacher_weight": settings["weight_teacher"]}
    beta = settings.get(f"beta_{method}", settings["beta"])
    options = {"views": None, "teacher": None, "beta": beta} | options
    if method in L2T_PAIRS:
        outer = FreshBatch(task.train, labelled, options["augment"])
        options |= L2T | {"outer": outer, "pairs": PAIRS[L2T_PAIRS[method]]}
        return TransferTrainer(source, make, task, meta_every=settings["meta_every"], meta_lr=1e-3, **options)
    if method in LEARNED:
        return search_run(method, settings, source, make, task, options)
    return TransferTrainer(source, make, task, pairs=PAIRS[MATCHING[method]], **options)


def _on_source(method: str, settings: Settings, source: nn.Module, task: Task, options: dict[str, Any]) -> Any:
    """Fine-tune a copy of the source with a head for the task's classes."""
    options |= {"lr": settings["lr_fine_tuning"]}
    if method == "l2sp":
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(options["seed"])
            network = with_head(source, task.train)
        options["weight_decay"] = 0.0
        penalty = L2SP(source, settings["l2sp_alpha"], settings["l2sp_beta"])
        return FineTuning(source, network, task, loss=PenalizedLoss(network, penalty), **options)
    place = options.pop("folder")

    def trainer(head: Head, folder: Path | None) -> FineTuning:
        return FineTuning(source, lambda: with_head(source, task.train, head), task, folder=folder, **options)

    if method != "fine_tuning":
        return trainer(method.removeprefix("fine_tuning_"), place)
    trial = options | {"steps": max(1, options["steps"] // 4)}
    search = partial(choose_head, source, task.train, folder=run_folder(place, "choice"), **trial)
    steps = options["steps"] + 2 * trial["steps"]
    return SearchRun(
        search, lambda choice: trainer(choice.head, run_folder(place, "train")), trainer("new", None), steps
    )


# A recipe's trainers are built twice, first to validate them: the source and the task are the same objects.
@cache
def _source(path: str) -> Normalized:
    return load_l2t_resnet32(path).to(memory_format=torch.channels_last)


@lru_cache(maxsize=2)  # for each seed 100 MB and more
def _task(images: str, per_class: int, scored_on: str, seed: int) -> tuple[Task, ImageSet]:
    """The labelled images with the images to score on, and the other training images, whose labels are not read."""
    cifar = load_cifar10(images)
    held = cifar.train.few(VALIDATION_PER_CLASS, seed=10_000)  # the same for every seed of labels
    rest = _without(cifar.train, held)
    few = rest.few(per_class, seed)
    return Task(few, cifar.test if scored_on == "test" else held), _without(rest, few)


def _without(data: ImageSet, taken: ImageSet) -> ImageSet:
    """The images of a set that are not in a subset of it."""
    known = {image.numpy().tobytes() for image in taken.images}
    return data.subset([i for i, image in enumerate(data.images) if image.numpy().tobytes() not in known])


def _network_name(model: nn.Module) -> str:
    width = model.network.features[0].out_channels
    return {32: "vgg9-half", 64: "vgg9"}.get(width, f"vgg9-{width}")


BASELINES: Settings = {
    "methods": ("probe", "scratch", "fine_tuning", "matching_all", "matching_all_views", "recommended"),
    "scored_on": "test",
    "images": "data",
    "source": "data/tinyimagenet_resnet32.pth.tar",
    "per_class": 50,
    "width": 32,
    "steps": 4000,
    "batch_size": 64,
    "extra_images": 0,
    "meta_every": 1,
    "trials": 16,
    "search_steps": 500,
    "search_weights": "equal",
    "lr": 0.05,
    "lr_fine_tuning": 0.02,
    "weight_decay": 5e-4,
    "beta": 2.0,  # strengths were chosen on validation images, see data/results/baselines_cifar10_search.csv
    "beta_matching_single": 4.0,
    "beta_matching_one": 8.0,
    "beta_matching_not_later_views": 4.0,
    "beta_l2t_not_later": 4.0,
    "standardize": 0,
    "weight_lwf": 0.3,
    "weight_at": 1000.0,
    "weight_semckd": 30.0,
    "weight_reviewkd": 30.0,
    "weight_teacher": 1.0,
    "l2sp_alpha": 0.001,
    "l2sp_beta": 0.01,
    "precision": "bfloat16",
    "checkpoint_seconds": 60.0,
}

RECIPES = {
    "cifar10-baselines": Recipe(
        reproduces="transfer beside what one could do instead: CIFAR-10, 50 labels per class, VGG-9 of half the width",
        duration="about 20 minutes per method and seed on one core with bfloat16; longer where the processor lacks it; "
        "three times as long with a search, several times with l2t (see --dry-run)",
        expected="test accuracy: probe 61.7 %, scratch 45.4, matching_all 60.3, recommended 63.8",
        settings=BASELINES,
        trainers=cifar10_baselines,
        rows=rows,
        network=target_network,
        methods=METHODS,
    ),
    "cifar10-long": Recipe(
        reproduces="the same at full width: 4,000 steps of 32 labelled images and 32 views or unlabelled ones",
        duration="70 to 80 minutes per method and seed on one core with bfloat16",
        expected="test accuracy: probe 61.7 %, fine-tuned source 68.0 %, recommended 65.7 %, unlabelled 65.8 %",
        settings=BASELINES | {"width": 64, "methods": ("probe", "recommended", "recommended_unlabelled")},
        trainers=cifar10_baselines,
        rows=rows,
        network=target_network,
        methods=METHODS,
    ),
}
