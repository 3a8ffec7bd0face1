"""The experiments by name: what each reproduces, how long it takes, what to expect, and its settings.

A recipe is a sequence of trainers, each with a run folder of its own below the recipe's, so a recipe that was stopped
anywhere goes on where it was, and one that is finished only reads its results.
"""

import difflib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.module_tracker import ModuleTracker

from mtanytime.experiments import anytime, transfer
from mtanytime.experiments.recipe import Recipe, Results, Setting, Settings
from mtanytime.experiments.transfer import BUILT_IN
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import TransferTrainer

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
        trainers=transfer.built_in,
        rows=transfer.rows,
    ),
    "built-in": Recipe(
        reproduces="the paper's question on a stand-in: printed letters to handwritten digits, ten labels a class",
        duration="source half a minute, then about a minute for each method on 2 cores",
        expected="means of 8 seeds: 35 % from scratch, 74 % by matching_one, 69 % by l2t (notebook 03)",
        settings=BUILT_IN,
        trainers=transfer.built_in,
        rows=transfer.rows,
    ),
    "cifar10-few": Recipe(
        reproduces="L2T-ww with few labels: CIFAR-10, 50 a class, TinyImageNet ResNet-32 to VGG-9, 200 epochs",
        duration="at one thread 10 to 25 minutes from scratch or with fixed matching, about 2 hours by l2t",
        expected="after the last epoch 12 to 51 %, 45 % by l2t; with lr=0.01, at which scratch trains, 44 to 53 %",
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
            "meta_lr_l2t_another": 1e-3,
            "precision": "float32",
            "checkpoint_seconds": 30.0,
        },
        trainers=transfer.cifar10_few,
        rows=transfer.rows,
    ),
    "anytime-cifar10": Recipe(
        reproduces="anytime networks side by side on CIFAR-10, at a scale for 2 cores: accuracy against multiply-adds",
        duration="at one thread about 10 minutes for sliced and for MSDNet, 25 for inclusive and for the separate ones",
        expected="between 60 and 70 % at each exit after 8 epochs on 10,000 images",
        settings=anytime.CIFAR10,
        trainers=anytime.cifar10,
        rows=anytime.rows,
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
            name = f"{part}, seed {seed}" + f", β {beta:g}" * (beta > 0)
            if progress:
                print(name)
            try:
                result = trainer.train()
            except FloatingPointError as error:
                result = None
                if not chosen.rows(part, seed, trainer, None):  # without a source there is nothing to transfer
                    raise
                print(f"{name} diverged: {error}")
            rows += chosen.rows(part, seed, trainer, result)
            if result is not None and getattr(trainer, "meta_optimizer", None) is not None:
                which, trace = {"method": part, "seed": seed, "beta": beta}, result.trace
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
            if part == "source" and seed != seeds[0]:
                continue  # the same for every seed
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
        beta = min(trainer.beta, 0.5)  # which costs the same, and does not diverge
        trainer.lookahead = replace(trainer.lookahead, beta=beta)
    images, labels = (part.to(trainer.device) for part in next(trainer.batches.epoch(0)))
    trainer.model.train()
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _NoTracker()
    with counter:
        trainer.train_on_batch(images, labels)  # and warms up
    started = time.perf_counter()
    trainer.train_on_batch(images, labels)
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
