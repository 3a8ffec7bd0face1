"""The experiments by name: what each reproduces, how long it takes, what to expect, and its settings.

A recipe is a sequence of trainers, each with a run folder of its own below the recipe's, so a recipe that was stopped
anywhere goes on where it was, and one that is finished only reads its results.
"""

import difflib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from mtanytime.backbones import IMAGENET_MEAN, IMAGENET_STD, Normalized, load_l2t_resnet32, resnet, vgg9
from mtanytime.datasets import DIGITS_A_CLASS, Task, cifar10, cifar10_jpeg, crop_flip, digits, letters
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


Parts = Iterator[tuple[str, Trainer]]


class Results(NamedTuple):
    """What a recipe came to.

    `table`: a row a target network: method, seed, beta, epochs, accuracy, last_accuracy, train_seconds. `maps`:
    method, seed, beta and the last rows of each learned run's trace (step, source, target, weight, weight_std); None
    where nothing was learned.
    """

    table: pd.DataFrame
    maps: pd.DataFrame | None


@dataclass(frozen=True)
class Recipe:
    """An experiment: `trainers(settings, seed, folder, progress)` gives its trainers by name, in order; a later one is
    made when those before it are trained. Without a folder they stay in memory."""

    reproduces: str
    duration: str
    expected: str
    settings: Settings
    trainers: Callable[[Settings, int, Path | None, bool], Parts]


def _targets(
    settings: Settings,
    seed: int,
    folder: Path | None,
    source: nn.Module,
    make: Callable[[], nn.Module],
    task: Task,
    **options: Any,
) -> Parts:
    """The target network trained by each of the settings' methods, with its own strength β or with each of `betas`."""
    shared = {name: settings[name] for name in ("epochs", "batch_size", "lr", "weight_decay")} | options
    for method in _methods(settings):
        if METHODS[method] is None:
            yield method, Trainer(make, task, folder=_place(folder, f"{method}-seed{seed}"), seed=seed, **shared)
            continue
        for beta in _betas(settings) or [settings.get(f"beta_{method}", settings["beta"])]:
            among = f"-beta{beta:g}" if _betas(settings) else ""
            yield (
                method,
                TransferTrainer(
                    source,
                    make,
                    task,
                    folder=_place(folder, f"{method}{among}-seed{seed}"),
                    seed=seed,
                    beta=beta,
                    meta_lr=settings["meta_lr"],
                    **METHODS[method],
                    **shared,
                ),
            )


def _place(folder: Path | None, name: str) -> Path | None:
    return None if folder is None else folder / name


def _betas(settings: Settings) -> list[float]:
    try:
        betas = [float(beta) for beta in str(settings["betas"]).split(",") if beta]
    except ValueError as error:
        raise ValueError(f"betas takes numbers with commas between, like 0.5,2; got {settings['betas']!r}") from error
    if len({f"{beta:g}" for beta in betas}) < len(betas):
        raise ValueError(f"wanted betas that differ, got {settings['betas']!r}")
    return betas


def _methods(settings: Settings) -> list[str]:
    methods = str(settings["methods"]).split(",")
    if unknown := [method for method in methods if method not in METHODS]:
        raise ValueError(f"method {unknown[0]!r} is not known (has: {', '.join(METHODS)})")
    if len(set(methods)) < len(methods):
        raise ValueError(f"wanted each method once, got {settings['methods']!r}")
    return methods


def _check(settings: Settings) -> None:
    """Refuse, before any work, what a recipe would only stumble over later."""
    _methods(settings)
    _betas(settings)
    if settings.get("scored_on", "test") not in ("test", "validation"):
        raise ValueError(f"scored_on is 'test' or 'validation'; got {settings['scored_on']!r}")
    if settings.get("scored_on") == "validation" and settings["digits_per_class"] >= DIGITS_A_CLASS:
        raise ValueError(
            f"validation needs digits to hold back: digits_per_class < {DIGITS_A_CLASS}, "
            f"got {settings['digits_per_class']}"
        )


def _built_in(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """The letter network, then the digit network by one method (or by several, separated by commas)."""
    augment = crop_flip(padding=3, flip=False)
    shared = {"augment": augment, "progress": progress, "checkpoint_seconds": settings["checkpoint_seconds"]}
    _check(settings)
    source = Trainer(
        lambda: resnet(settings["source_depth"], num_classes=37),
        _letters(settings["letters_per_class"]),
        epochs=settings["source_epochs"],
        batch_size=64,
        folder=_place(folder, "source"),
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


@cache
def _cifar10(place: str) -> Task:
    return cifar10_jpeg(place) if place.endswith(".npz") else cifar10(place)


def _digits(per_class: int, seed: int, scored_on: str) -> Task:
    """The digits with few labels, or the like with other digits of the training half in place of the test set."""
    if scored_on == "test":
        return digits(per_class=per_class, seed=seed)
    whole, few = digits(per_class=DIGITS_A_CLASS, test_per_class=1, seed=seed).train, 10 * per_class
    return Task(whole.subset(range(few)), whole.subset(range(few, len(whole))))


def _cifar10_few(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """CIFAR-10 with few labels from the authors' TinyImageNet source, a tenth of the labels held back to validate."""
    _check(settings)
    for file in ("source", "images"):
        if not Path(settings[file]).exists():
            raise ValueError(f"there is no {settings[file]!r}: set {file}=…, {_WHERE[file]}")
    source = load_l2t_resnet32(settings["source"])
    whole = _cifar10(settings["images"])
    task = Task(whole.train.few(settings["per_class"], seed), whole.test)
    make = lambda: Normalized(vgg9(10), IMAGENET_MEAN, IMAGENET_STD)  # noqa: E731
    options = {"augment": crop_flip(), "validation": 0.1, "progress": progress}
    options["checkpoint_seconds"] = settings["checkpoint_seconds"]
    yield from _targets(settings, seed, folder, source, make, task, **options)


_WHERE = {
    "source": "the L2T-ww authors' logs/tinyimagenet-200-resnet32/0/ checkpoint (their repository alinlab/L2T-ww)",
    "images": "a folder with torchvision's CIFAR-10 (datasets.cifar10(folder, download=True) puts it there)",
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
        expected="means of 8 seeds: 35 % from scratch, 74 % by matching_one, 69 % by l2t (notebook 03)",
        settings=BUILT_IN,
        trainers=_built_in,
    ),
    "cifar10-few": Recipe(
        reproduces="L2T-ww with few labels: CIFAR-10, 50 a class, TinyImageNet ResNet-32 to VGG-9, 200 epochs",
        duration="on 2 cores minutes from scratch or with fixed matching, about an hour and a half by l2t",
        expected="one seed by l2t gave 42 % at the best validation epoch, 45 % at the last",
        settings={
            "methods": "l2t",
            "betas": "",
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
    name: str,
    folder: Path,
    seeds: Sequence[int] = (0,),
    changes: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Results:
    """Run a recipe to its end, or what is left of it, seed after seed.

    A run that diverges has a row without accuracy, and the others go on. Bad settings raise ValueError before anything
    is written, a folder with another run when its turn comes.
    """
    chosen = recipe(name)
    settings = changed(chosen.settings, changes or {})
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"wanted different seeds, got {list(seeds)}")
    for _ in chosen.trainers(settings, seeds[0], None, False):
        pass  # each checks its settings when it is made
    rows, maps = [], []
    for seed in seeds:
        for part, trainer in chosen.trainers(settings, seed, folder, progress):
            beta = getattr(trainer, "beta", 0.0)
            if progress:
                print(f"{part}, seed {seed}" + f", β {beta:g}" * (beta > 0))
            result = None
            try:
                result = trainer.train()
            except FloatingPointError as error:
                if part not in METHODS:  # without a source there is nothing to transfer
                    raise
                print(f"{part}, seed {seed}, β {beta:g} diverged: {error}")
            if part not in METHODS:
                continue
            accuracy = math.nan if result is None else result.accuracy
            last_accuracy = math.nan if result is None else result.last_accuracy
            which = {"method": part, "seed": seed, "beta": beta}
            scores = {"epochs": trainer.epochs, "accuracy": accuracy, "last_accuracy": last_accuracy}
            rows.append({**which, **scores, "train_seconds": round(trainer.seconds, 1)})
            if result is not None and getattr(trainer, "meta_optimizer", None) is not None:
                trace = result.trace
                maps.append(trace[trace["step"] == trace["step"].max()].assign(**which)[[*which, *trace.columns]])
    return Results(pd.DataFrame(rows), pd.concat(maps, ignore_index=True) if maps else None)


def plan(
    name: str, folder: Path, seeds: Sequence[int] = (0,), changes: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """What `run` would do, without writing: for each network part, seed, steps, done, macs (multiply-adds of all the
    steps), seconds (of the steps that are left; the final test comes on top).

    Two steps of each network are run and timed here and their multiply-adds counted by torch's flop counter; a later
    seed is taken to cost what the first does.
    """
    chosen = recipe(name)
    settings = changed(chosen.settings, changes or {})
    costs: dict[str, tuple[int, float]] = {}
    for seed in seeds:
        for part, trainer in chosen.trainers(settings, seed, folder, False):
            if part not in METHODS and seed != seeds[0]:
                continue  # a source is the same for every seed
            beta = getattr(trainer, "beta", 0.0)
            if part not in costs:
                costs[part] = _cost(trainer)
            macs, seconds = costs[part]
            left = trainer.steps - trainer.step
            yield {
                "part": part,
                "seed": seed,
                "beta": beta,
                "steps": trainer.steps,
                "done": trainer.step,
                "macs": macs * trainer.steps,
                "seconds": seconds * left,
            }


def _cost(trainer: Trainer) -> tuple[int, float]:
    """Multiply-adds and seconds of one step on the first batch, a whole one. The network is afterwards as before, the
    trainer is of no more use."""
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    if isinstance(trainer, TransferTrainer):
        trainer.beta = min(trainer.beta, 0.5)  # which costs the same, and does not diverge
    images, labels = (part.to(trainer.device) for part in next(trainer.batches.epoch(0)))
    trainer.model.train()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoTracker()
    with counter:
        trainer._step(images, labels)  # and warms up
    started = time.perf_counter()
    trainer._step(images, labels)
    seconds = time.perf_counter() - started
    trainer.model.load_state_dict(before)
    return counter.get_total_flops() // 2, seconds


class _NoTracker(ModuleTracker):
    """Of the total alone: torch's own tracker of modules hooks into backward passes in ways autograd.grad refuses."""

    def __enter__(self) -> "_NoTracker":
        return self

    def __exit__(self, *error: object) -> None:
        pass


def _nearest(name: str, names: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
    return f"; the nearest is {near[0]!r}" if near else f" (has: {', '.join(names)})"
