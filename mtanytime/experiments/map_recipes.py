"""The learned map beside its rivals on the built-in task: hand-made pairs, random search, and no transfer at all.

All targets train for the same number of steps on the same labelled images; those that match also use as many strong
views. Each has its own strength of matching, chosen on validation digits.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from mtanytime.backbones import resnet, vgg9
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import Task
from mtanytime.data.views import StrongViews
from mtanytime.experiments.probe_run import ProbeRun, timed_probe
from mtanytime.experiments.recipe import Parts, Recipe, Settings, check_names, check_scored_on, row_of, run_folder
from mtanytime.experiments.search_run import search_run
from mtanytime.experiments.transfer_recipes import digits_task, letters_task
from mtanytime.measure.tables import require_columns
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer.outer import FreshBatch
from mtanytime.transfer.trainer import TransferTrainer

PAIRS = {
    "matching_single": [("layer3", "features.13")],
    "matching_one": [("layer1", "features.2"), ("layer2", "features.6"), ("layer3", "features.13")],
    "matching_all": None,
    "matching_not_later": "not later",
}
# Ours: all pairs start alike, and λ is divided by its mean over the pairs.
L2T = {"what": True, "where": "relu6", "where_start": "even", "normalize_weights": True}
WHAT = {"what": True, "where": "off"}  # λ = 1: channel weights alone
LEARNED = {"l2t": None, "l2t_not_later": "not later"}  # the pairs whose λ L2T-ww learns
METHODS = ("scratch", "probe", *PAIRS, "random_search", *LEARNED, "search_then_train")


def baselines_builtin(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train a source on printed letters, then a target on handwritten digits by each of the settings' methods."""
    check_names("methods", settings["methods"], METHODS)
    check_scored_on(settings)
    options = {"augment": crop_flip(padding=3, flip=False), "progress": progress}
    options["checkpoint_seconds"] = settings["checkpoint_seconds"]
    source = Trainer(
        lambda: resnet(settings["source_depth"], 37).to(memory_format=torch.channels_last),
        letters_task(settings["letters_per_class"]),
        epochs=settings["source_epochs"],
        batch_size=64,
        folder=run_folder(folder, "source"),
        **options,  # without the recipe's seed: all seeds share one source
    )
    yield "source", source
    options |= {name: settings[name] for name in ("steps", "batch_size", "lr", "weight_decay", "precision")}
    options |= {"seed": seed, "schedule": "warm-up cosine", "remainder": "drop"}
    task = digits_task(settings["digits_per_class"], seed, settings["scored_on"] == "validation")
    make = lambda: vgg9(10, width=settings["target_width"]).to(memory_format=torch.channels_last)  # noqa: E731
    for method in settings["methods"]:
        place = run_folder(folder, f"{method}-seed{seed}")
        yield method, _trainer(method, settings, source.model, make, task, options | {"folder": place})


def _trainer(
    method: str, settings: Settings, source: nn.Module, make: Callable[[], nn.Module], task: Task, options: Any
) -> Any:
    if method == "scratch":
        return Trainer(make, task, **options)
    if method == "probe":
        probe, seconds = timed_probe(source, task.train)
        return ProbeRun(probe, task, seconds)
    options |= {"views": settings["views"] or None, "view_augment": StrongViews(flip=False)}
    options |= {"teacher": None, "standardize": False}
    options["beta"] = settings[f"beta_{method}"]
    if method in PAIRS:
        return TransferTrainer(source, make, task, pairs=PAIRS[method], **options)
    if method in LEARNED:
        outer = FreshBatch(task.train, settings["batch_size"], options["augment"])
        learned = (L2T if settings["learn_where"] else WHAT) | {"outer": outer, "pairs": LEARNED[method]}
        learned["what"] = bool(settings["learn_what"])
        learned |= {"meta_lr": settings["meta_lr_l2t"], "meta_every": settings["meta_every"]}
        learned |= {"arrived": task.test if settings["measure_arrived"] else None}
        return TransferTrainer(source, make, task, **learned, **options)
    return search_run(method, settings, source, make, task, options)


def rows(part: str, seed: int, trainer: Any, result: TrainingResult | None) -> list[dict[str, Any]]:
    """One row per method: method, seed, accuracy (after the last step), train_seconds (search included)."""
    if part == "source":
        return []
    return [{"method": part, "seed": seed} | row_of(trainer, result)]


def map_agreement(maps: pd.DataFrame) -> pd.DataFrame:
    """How well the maps of different seeds agree: the correlation of λ over the pairs of layers.

    The maps of l2t start even, with one λ for all pairs, so this is also the correlation of their change.

    Args:
        maps: columns method, seed, source, target, weight (λ).

    Returns:
        One row per method and two seeds: method, seed_a, seed_b, correlation (nan for a map that stayed even).
    """
    require_columns(maps, "maps", "method", "seed", "source", "target", "weight")
    agreement = []
    for method, group in maps.groupby("method", sort=False):
        by_seed = group.pivot_table(index=["source", "target"], columns="seed", values="weight").corr()
        for a, b in combinations(by_seed.columns, 2):
            agreement.append({"method": method, "seed_a": a, "seed_b": b, "correlation": by_seed.loc[a, b]})
    return pd.DataFrame(agreement, columns=["method", "seed_a", "seed_b", "correlation"])


RECIPES = {
    "baselines-builtin": Recipe(
        reproduces="the learned map beside its rivals, on built-in data in one training loop",
        duration="half a minute for the source, then 10 to 30 seconds per seed by hand and minutes with a search",
        expected="scratch 32 %, pairs by hand 67 to 72, a search 74, a rule 75, L2T-ww over its pairs 75",
        settings={
            "methods": METHODS,
            "scored_on": "test",
            "source_depth": 14,
            "source_epochs": 2,
            "letters_per_class": 400,
            "digits_per_class": 10,
            "target_width": 16,
            "steps": 240,
            "search_steps": 120,
            "trials": 32,
            "search_weights": "equal",
            "learn_channels": 0,
            "views": 25,
            "batch_size": 25,
            "lr": 0.05,
            "weight_decay": 5e-4,
            "beta_matching_single": 16.0,
            "beta_matching_one": 8.0,
            "beta_matching_all": 4.0,
            "beta_matching_not_later": 4.0,
            "beta_random_search": 2.0,
            "beta_l2t": 2.0,
            "beta_l2t_not_later": 4.0,
            "beta_search_then_train": 2.0,
            "meta_lr_l2t": 1e-3,
            "learn_what": 1,  # 0: l2t learns λ alone, with the weight 1/C for each channel
            "learn_where": 1,  # 0: l2t learns the channels' weights alone, with λ = 1 for each pair
            "meta_every": 1,  # steps from one lookahead of l2t to the next
            "measure_arrived": 0,  # 1: l2t measures R² at every fifth row of its trace
            "precision": "float32",
            "checkpoint_seconds": 30.0,
        },
        trainers=baselines_builtin,
        rows=rows,
        methods=METHODS,
    ),
}
