"""Tasks whose right map is known: does the learned map find it?

Each task plants something useless beside the source that reads letters. The map should give it the smaller weight:

* `source`: a second source network, trained on shuffled labels;
* `layer`: a layer of an untrained network in the place of the source's second stage;
* `channels`: noise in the place of half of the last stage's channels.
"""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.backbones import resnet, vgg9
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import ImageSet, Task
from mtanytime.data.synthetic import digits
from mtanytime.data.views import StrongViews
from mtanytime.experiments.recipe import Parts, Recipe, Settings, check_names, run_folder
from mtanytime.experiments.search_run import search_run
from mtanytime.experiments.transfer_recipes import letters_task
from mtanytime.randomness import generator_for
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer.trainer import TransferTrainer
from mtanytime.transfer.transfer_map import TransferMap

TASKS = ("source", "layer", "channels")
METHODS = ("uniform", "matching_one", "matching_not_later", "search_then_train")
ONE = {"layer1": "features.2", "layer2": "features.6", "layer3": "features.13"}  # of the same map size
_SHUFFLED, _NOISE = -20, -21  # purposes of derived seeds


class NoisyChannels(nn.Module):
    """Replace some channels of a map by noise with the channel's own mean and spread over the batch and the pixels.

    The noise is drawn from torch's random state, which a trainer seeds at each step.
    """

    def __init__(self, channels: list[int]) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, maps: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch channel height width"]:
        """The maps with noise in these channels."""
        own = maps[:, self.channels]
        mean, std = own.mean(dim=(0, 2, 3), keepdim=True), own.std(dim=(0, 2, 3), keepdim=True)
        noisy = maps.clone()
        noisy[:, self.channels] = torch.randn_like(own) * std + mean
        return noisy


def planted(settings: Settings, seed: int, folder: Path | None, progress: bool) -> Parts:
    """Train the sources, then a target for each task by each of the settings' methods."""
    check_names("tasks", settings["tasks"], TASKS)
    check_names("methods", settings["methods"], METHODS)
    augment = crop_flip(padding=3, flip=False)
    options = {"augment": augment, "progress": progress, "checkpoint_seconds": settings["checkpoint_seconds"]}
    trained = letters_task(settings["letters_per_class"])
    sources = {}
    for name, data in (("source", trained), ("shuffled", Task(shuffled_labels(trained.train), trained.test))):
        if name == "source" or "source" in settings["tasks"]:
            trainer = Trainer(
                lambda: resnet(settings["source_depth"], 37).to(memory_format=torch.channels_last),
                data,
                epochs=settings["source_epochs"],
                batch_size=64,
                folder=run_folder(folder, name),
                **options,  # without the recipe's seed: all seeds share the sources
            )
            yield name, trainer
            sources[name] = trainer.model
    names = ("steps", "batch_size", "lr", "weight_decay", "precision")
    options |= {name: settings[name] for name in names} | {"seed": seed, "views": settings["views"] or None}
    options |= {"teacher": None, "standardize": False}
    options |= {"schedule": "warm-up cosine", "remainder": "drop", "view_augment": StrongViews(flip=False)}
    make = lambda: vgg9(10, width=settings["target_width"]).to(memory_format=torch.channels_last)  # noqa: E731
    data = digits(per_class=settings["digits_per_class"], seed=seed)
    for task in settings["tasks"]:
        networks, layers = _source_of(task, sources, settings, seed)
        for method in settings["methods"]:
            beta = settings.get(f"beta_{method}_{task}", settings[f"beta_{method}"])
            own = options | {"beta": beta}
            place = run_folder(folder, f"{task}-{method}-seed{seed}")
            own |= {"source_layers": layers, "folder": place}
            if method != "search_then_train":
                pairs = {"uniform": None, "matching_one": _one_to_one(layers), "matching_not_later": "not later"}
                yield f"{task} {method}", TransferTrainer(networks, make, data, pairs=pairs[method], **own)
                continue
            yield f"{task} {method}", search_run(method, settings | {"learn_channels": 1}, networks, make, data, own)


def _one_to_one(layers: dict[str, tuple[str, ...]]) -> list[tuple[str, str]]:
    """Each source layer with the target layer of its map size, as someone who trusts the source would pair them."""
    return [(f"{name}/{layer}", ONE[layer]) for name, of_network in layers.items() for layer in of_network]


def _source_of(
    task: str, sources: dict[str, nn.Module], settings: Settings, seed: int
) -> tuple[dict[str, nn.Module], dict[str, tuple[str, ...]]]:
    """The source networks of a task by name, and their layers; what is useless has a name of its own."""
    trained, stages = sources["source"], ("layer1", "layer2", "layer3")
    if task == "source":
        return {"trained": trained, "useless": sources["shuffled"]}, {"trained": stages, "useless": stages}
    if task == "layer":
        with torch.random.fork_rng([]):
            torch.default_generator.manual_seed(seed)
            untrained = resnet(settings["source_depth"], 37).to(memory_format=torch.channels_last)
        return {"trained": trained, "useless": untrained}, {"trained": ("layer1", "layer3"), "useless": ("layer2",)}
    noisy = deepcopy(trained)
    noisy.layer3 = nn.Sequential(noisy.layer3, NoisyChannels(noise_channels(trained.fc.in_features, seed)))
    return {"trained": noisy}, {"trained": stages}


def noise_channels(channels: int, seed: int) -> list[int]:
    """Half of the channels, drawn by the seed."""
    return torch.randperm(channels, generator=generator_for(seed, _NOISE))[: channels // 2].sort().values.tolist()


def shuffled_labels(data: ImageSet) -> ImageSet:
    """The set with its labels in random order, so that they tell nothing about the images."""
    order = torch.randperm(len(data), generator=generator_for(0, _SHUFFLED))
    return ImageSet(data.images, data.labels[order.to(data.labels.device)], data.classes, name=f"{data.name}, shuffled")


def right_first(task: str, found: TransferMap, seed: int) -> bool:
    """Whether a map gives what is useful the larger weight: in the mean over pairs, or over the channels."""
    if task == "channels":
        last = [weights for (source, _), weights in found.channels.items() if source.endswith("layer3")]
        noise = noise_channels(len(last[0]), seed)
        shares = [sum(weights[channel] for channel in noise) for weights in last]
        return sum(shares) / len(shares) < 0.5
    useful, other = (
        [weight for (source, _), weight in found.pairs.items() if source.startswith(name)]
        for name in ("trained/", "useless/")
    )
    return sum(useful) / len(useful) > sum(other) / len(other)


def rows(part: str, seed: int, trainer: Any, result: TrainingResult | None) -> list[dict[str, Any]]:
    """One row per target: task, seed, method, accuracy, right_first (false without a search); sources have none."""
    if " " not in part:
        return []
    task, method = part.split()
    searched = getattr(trainer, "searched", None)
    right = searched is not None and right_first(task, searched.map, seed)
    accuracy = math.nan if result is None else result.last_accuracy
    return [{"task": task, "seed": seed, "method": method, "accuracy": accuracy, "right_first": right}]


RECIPES = {
    "planted": Recipe(
        reproduces="nothing: tasks whose right map is known, on built-in data",
        duration="a minute for the sources, then about ten minutes per task and seed on one core",
        expected="test accuracy, uniform to searched: source 43 to 64 %, layer 64 to 70 %, channels 66 to 70 %",
        settings={
            "tasks": TASKS,
            "methods": ("uniform", "search_then_train"),
            "source_depth": 14,
            "source_epochs": 2,
            "letters_per_class": 400,
            "digits_per_class": 10,
            "target_width": 16,
            "steps": 240,
            "search_steps": 240,
            "trials": 16,
            "search_weights": "equal",
            "views": 25,
            "batch_size": 25,
            "lr": 0.05,
            "weight_decay": 5e-4,
            "beta_uniform": 2.0,  # strengths were chosen on other seeds, see data/results/planted_betas.csv
            "beta_uniform_source": 1.0,  # with twice as many pairs
            "beta_matching_one": 8.0,
            "beta_matching_one_source": 4.0,
            "beta_matching_not_later": 4.0,
            "beta_matching_not_later_source": 4.0,
            "beta_search_then_train": 2.0,
            "precision": "float32",
            "checkpoint_seconds": 30.0,
        },
        trainers=planted,
        rows=rows,
        methods=METHODS,
    ),
}
