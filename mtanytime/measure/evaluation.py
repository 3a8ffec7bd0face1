"""The answers of a network's exits: accuracy, predictions, curves, calibration."""

import sys
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mtanytime.checks import Words, require
from mtanytime.data.batches import batches_of, class_names
from mtanytime.data.images import LabelledImages
from mtanytime.devices import Precision, autocast
from mtanytime.functional import trial_run
from mtanytime.measure.costs import device_and_dtype, exit_costs, exit_table, latencies
from mtanytime.measure.logits import Pick, find_exits, find_logits
from mtanytime.randomness import seeded


def evaluate(
    model: nn.Module,
    data: LabelledImages | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
    logits: Pick | None = None,
) -> float:
    """Return a model's top-1 accuracy in [0, 1], in eval mode; modes and torch's random state are restored.

    `logits` picks the logits from the model's output; default: see `logits.find_logits`.

    Raises:
        ValueError: a label without a column of logits, such as class 1 of a single one.
        FloatingPointError: a logit is NaN, as of a network that diverged.
    """
    classes = class_count(data)

    def correct(output: Any, labels: Tensor) -> Tensor:
        return right_answers(without_nan(find_logits(output, classes, logits)), labels).sum()

    return fraction_correct(model, data, correct, batch_size, precision).item()


@torch.no_grad()
def fraction_correct(
    model: nn.Module,
    data: LabelledImages | DataLoader,
    correct: Callable[[Any, Tensor], Int[Tensor, "*exits"]],
    batch_size: int,
    precision: Precision,
) -> Float[Tensor, "*exits"]:
    """Return the fraction of images that a model in eval mode classifies correctly.

    `correct(output, labels)` counts the correct answers in the model's output for a batch, with a count per exit if
    the output has several. Modes and torch's random state are restored.
    """
    device, dtype = device_and_dtype(model)
    total, images_seen = torch.zeros((), dtype=torch.int64, device=device), 0
    with trial_run(model, device, training=False), seeded(0, device), autocast(device, precision):
        for images, labels in batches_of(data, batch_size, seed=0, shuffle=False).epoch(0):
            total = total + correct(model(images.to(device, dtype)), labels.to(device))
            images_seen += len(labels)
    return total.cpu().double() / images_seen  # on the CPU: not every device has float64


def without_nan(logits: Float[Tensor, "*_"]) -> Float[Tensor, "*_"]:
    """The logits. Raises FloatingPointError for NaN, whose class would count as the first."""
    if logits.isnan().any():
        raise FloatingPointError("logits: expected numbers, got nan; the network may have diverged")
    return logits


def right_answers(
    logits: Float[Tensor, "*exits images classes"], labels: Int[Tensor, " images"]
) -> Bool[Tensor, "*exits images"]:
    """Whether the largest logit is that of the label. Raises ValueError for a label that has none."""
    low, high, classes = labels.min().item(), labels.max().item(), logits.shape[-1]
    require(0 <= low and high < classes, "labels", f"classes from 0 to {classes - 1}", Words(f"{low} to {high}"))
    return logits.argmax(dim=-1) == labels


def batch_accuracy(logits: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> float:
    """Return the top-1 accuracy of a batch, in [0, 1]."""
    return (logits.argmax(dim=1) == labels).float().mean().item()


@torch.no_grad()
def predictions(
    network: nn.Module,
    data: LabelledImages | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: bool = True,
    logits: Pick | None = None,
) -> tuple[Float[Tensor, "exits images classes"], Int[Tensor, " images"]]:
    """Return the logits of all exits in eval mode and the labels, on the CPU.

    A network whose output is one tensor has one exit. `logits` picks the logits, or the list of the exits' logits, from
    another output; default: see `logits.find_exits`. Modes and torch's random state are restored. Logits are float32
    or wider, whatever precision they were computed in.

    Raises:
        ValueError: the exits give logits of different shapes.
    """
    device, dtype = device_and_dtype(network)
    batches = batches_of(data, batch_size, seed=0, shuffle=False)
    outputs, labels, classes = [], [], class_count(data)
    with trial_run(network, device, training=False), seeded(0, device), autocast(device, precision):
        for images, batch_labels in tqdm(
            batches.epoch(0), "predicting", len(batches), unit="batch", file=sys.stdout, disable=not progress
        ):
            output = network(images.to(device, dtype))
            exits = find_exits(output, classes, logits)
            shapes = [tuple(part.shape) for part in exits]
            require(len(set(shapes)) == 1, "network", "logits of the same shape from all exits", shapes)
            stacked = torch.stack(exits)
            outputs.append(stacked.to("cpu", torch.promote_types(stacked.dtype, torch.float32)))
            labels.append(batch_labels.cpu())
    return torch.cat(outputs, dim=1), torch.cat(labels)


def class_count(data: LabelledImages | DataLoader) -> int | None:
    """Return the number of a set's classes, None if it does not name them."""
    names = class_names(data)
    return None if names is None else len(names)


def curve(
    model: str,
    network: nn.Module,
    data: LabelledImages | DataLoader,
    *,
    seed: int | None = None,
    latency_batch: int | None = None,
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: bool = True,
) -> pd.DataFrame:
    """Measure accuracy against cost, one row per exit: model, exit, macs, macs_own_head, params[, latency_ms],
    accuracy[, seed].

    Args:
        model: the name of the network in the table.
        network: an anytime network, or any classifier as a network of one exit; see `exit_costs` and `predictions`.
        data: the images to classify.
        seed: names the run in the column seed; no such column if None.
        latency_batch: adds the median time of a batch of this size (`latencies`); None measures no time.
        batch_size: images per forward pass of `predictions`.
        precision: of the forward passes.
        progress: show progress bars on stdout.

    Raises:
        ValueError: the logits are not finite, or the network does not give one answer per exit.
    """
    images = batches_of(data, 1, seed=0, shuffle=False).batch(0, 0)[0][:1]
    image_shape = tuple(images.shape[1:])
    table = exit_costs(network, image_shape)
    device, dtype = device_and_dtype(network)
    with trial_run(network, device, training=False), torch.no_grad():
        answers = len(find_exits(network(images.to(device, dtype)), class_count(data)))
    require(answers == len(table), type(network).__name__, f"{len(table)} answers, one per exit", answers)
    table.insert(0, "model", model)
    if latency_batch is not None:
        with autocast(device, precision):
            table["latency_ms"] = latencies(network, image_shape, (latency_batch,), progress=progress)["latency_ms"]
    outputs, labels = predictions(network, data, batch_size=batch_size, precision=precision, progress=progress)
    table["accuracy"] = _correct(outputs, labels).double().mean(dim=1).numpy()
    return table if seed is None else table.assign(seed=seed)


def calibration(
    outputs: Float[Tensor, "exits images classes"], labels: Int[Tensor, " images"], bins: int = 15
) -> pd.DataFrame:
    """Measure how well each exit's confidence matches its accuracy: columns exit, accuracy, confidence, ece.

    The confidence in an answer is its softmax probability; the table has the mean. ece is the expected calibration
    error of Guo et al. 2017 (arXiv:1706.04599, equation 3): images fall into `bins` equal intervals (a, b] of
    confidence, and the absolute difference of accuracy and mean confidence is averaged over the intervals, weighted by
    their number of images.

    Raises:
        ValueError: a label is not a class, the logits are not finite, or shapes do not match.
    """
    require(bins >= 1, "bins", "a number >= 1", bins)
    correct = _correct(outputs, labels).double()
    confidence = outputs.cpu().double().softmax(dim=2).amax(dim=2)
    interval = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
    excess = torch.zeros(len(outputs), bins, dtype=torch.float64).scatter_add_(1, interval, confidence - correct)
    ece = excess.abs().sum(dim=1) / len(labels)
    return exit_table({"accuracy": correct.mean(dim=1), "confidence": confidence.mean(dim=1), "ece": ece})


def flips(outputs: Float[Tensor, "exits images classes"], labels: Int[Tensor, " images"]) -> pd.DataFrame:
    """Measure how often later exits change correctness, as fractions of all images; one row per exit from the second.

    right_to_wrong and wrong_to_right compare an exit with the one before. ever_right_to_wrong counts images that are
    wrong here but were correct at any earlier exit; ever_wrong_to_right those that are correct here but were wrong at
    any earlier exit. Errors as in `calibration`.
    """
    correct = _correct(outputs, labels)
    now, before = correct[1:], correct[:-1]
    ever_right, ever_wrong = (answers.cummax(dim=0).values.bool() for answers in (before.byte(), (~before).byte()))
    changes = {
        "right_to_wrong": before & ~now,
        "wrong_to_right": ~before & now,
        "ever_right_to_wrong": ever_right & ~now,
        "ever_wrong_to_right": ever_wrong & now,
    }
    return exit_table({name: change.double().mean(dim=1) for name, change in changes.items()}, first=2)


def _correct(outputs: Tensor, labels: Tensor) -> Bool[Tensor, "exits images"]:
    """Return whether each exit's answer to each image is correct, on the CPU, after checking logits and labels."""
    shapes = Words(f"shapes {tuple(outputs.shape)} and {tuple(labels.shape)}")
    matching = outputs.ndim == 3 and labels.shape == outputs.shape[1:2] and outputs.numel() > 0
    require(matching, "outputs and labels", "shapes (exits, images, classes) and (images,)", shapes)
    right = right_answers(outputs, labels.to(outputs.device))
    broken = (~outputs.isfinite().all(dim=2)).nonzero()
    if len(broken):
        k, image = broken[0].tolist()
        require(False, "outputs", "finite logits", Words(f"other ones at exit {k + 1} for image {image}"))
    return right.cpu()
