"""What the exits of a network answer: accuracy, predictions, curves, calibration."""

import sys
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from mtanytime.checks import require_wanted
from mtanytime.data.images import ImageSet, batches_of
from mtanytime.devices import Precision, autocast
from mtanytime.functional import trial_run
from mtanytime.measure.costs import exit_costs, latencies, reference_tensor, table_by_exit
from mtanytime.randomness import seeded


def evaluate(
    model: nn.Module,
    data: ImageSet | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
) -> float:
    """Top-1 accuracy in [0, 1] of a model in eval mode; its modes and torch's random state are put back."""
    right = lambda output, labels: (output.argmax(dim=1) == labels).sum()  # noqa: E731
    return fraction_correct(model, data, right, batch_size, precision).item()


@torch.no_grad()
def fraction_correct(
    model: nn.Module,
    data: ImageSet | DataLoader,
    right: Callable[[Any, Tensor], Int[Tensor, "*exits"]],
    batch_size: int,
    precision: Precision,
) -> Float[Tensor, "*exits"]:
    """What `right(output, labels)` counts, batch by batch in eval mode, as a share of the images."""
    like = next(model.parameters(), torch.empty(0))
    modes = [(module, module.training) for module in model.modules()]
    total, count = torch.zeros((), dtype=torch.int64, device=like.device), 0
    model.eval()
    try:
        with seeded(0, like.device), autocast(like.device, precision):
            for images, labels in batches_of(data, batch_size, seed=0, shuffle=False).epoch(0):
                total = total + right(model(images.to(like.device, like.dtype)), labels.to(like.device))
                count += len(labels)
    finally:
        for module, mode in modes:
            module.training = mode
    return total.double() / count


def batch_accuracy(output: Float[Tensor, "batch classes"], labels: Int[Tensor, " batch"]) -> float:
    """Top-1 accuracy of a batch, in [0, 1]."""
    return (output.argmax(dim=1) == labels).float().mean().item()


# What its exits answer.


@torch.no_grad()
def predictions(
    network: nn.Module,
    data: ImageSet | DataLoader,
    *,
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: bool = True,
) -> tuple[Float[Tensor, "exits images classes"], Int[Tensor, " images"]]:
    """Logits of all exits in eval mode, and the labels, on the CPU; an output that is one tensor is one exit.

    Modes and torch's random state are put back. Logits are float32 or wider, whatever the precision they are computed
    in. ValueError for exits that tell different numbers of classes apart.
    """
    like, batches = reference_tensor(network), batches_of(data, batch_size, seed=0, shuffle=False)
    outputs, labels = [], []
    with trial_run(network, like.device, False), seeded(0, like.device), autocast(like.device, precision):
        for images, truth in tqdm(
            batches.epoch(0), "predicting", len(batches), unit="batch", file=sys.stdout, disable=not progress
        ):
            output = network(images.to(like.device, like.dtype))
            exits = [output] if isinstance(output, Tensor) else list(output)
            if len({logits.shape for logits in exits}) != 1:
                raise ValueError(f"wanted logits of one shape from all exits; got {[tuple(o.shape) for o in exits]}")
            logits = torch.stack(exits)
            outputs.append(logits.to("cpu", torch.promote_types(logits.dtype, torch.float32)))
            labels.append(truth.cpu())
    return torch.cat(outputs, dim=1), torch.cat(labels)


def curve(
    model: str,
    network: nn.Module,
    data: ImageSet | DataLoader,
    *,
    seed: int | None = None,
    latency_batch: int | None = None,
    batch_size: int = 256,
    precision: Precision = "float32",
    progress: bool = True,
) -> pd.DataFrame:
    """A network's curve on a set: model, exit, macs, macs_own_head, params[, latency_ms], accuracy[, seed].

    `exit_costs` and `predictions` say how its columns are measured. `model` and `seed` name the run; `latency_batch`
    adds the median time of a batch of so many images (`latencies`). ValueError also for logits that are not finite.
    """
    image_shape = tuple(next(batches_of(data, 1, seed=0, shuffle=False).epoch(0))[0].shape[1:])
    table = exit_costs(network, image_shape)
    table.insert(0, "model", model)
    if latency_batch is not None:
        table["latency_ms"] = latencies(network, image_shape, (latency_batch,), progress=progress)["latency_ms"]
    outputs, labels = predictions(network, data, batch_size=batch_size, precision=precision, progress=progress)
    if len(outputs) != len(table):
        raise ValueError(f"{type(network).__name__} gives {len(outputs)} answers; wanted one an exit, {len(table)}")
    table["accuracy"] = _correct(outputs, labels).double().mean(dim=1).numpy()
    return table if seed is None else table.assign(seed=seed)


def calibration(
    outputs: Float[Tensor, "exits images classes"], labels: Int[Tensor, " images"], bins: int = 15
) -> pd.DataFrame:
    """How far each exit's confidence can be believed: exit, accuracy, confidence, ece.

    Confidence is the largest softmax probability (here its mean); ece the expected calibration error of Guo et al. 2017
    (arXiv:1706.04599, equation 3): images fall into `bins` equal intervals (a, b] of confidence, and |accuracy - mean
    confidence| is averaged over them, weighted by their images. ValueError for labels that are no class, and logits
    that are not finite.
    """
    require_wanted(bins >= 1, "bins >= 1", bins)
    right = _correct(outputs, labels).double()
    confidence = outputs.double().softmax(dim=2).amax(dim=2)
    place = torch.bucketize(confidence, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1])
    excess = torch.zeros(len(outputs), bins, dtype=torch.float64).scatter_add_(1, place, confidence - right)
    ece = excess.abs().sum(dim=1) / len(labels)
    return table_by_exit({"accuracy": right.mean(dim=1), "confidence": confidence.mean(dim=1), "ece": ece})


def flips(outputs: Float[Tensor, "exits images classes"], labels: Int[Tensor, " images"]) -> pd.DataFrame:
    """How often a wider answer changes what is right, as fractions of all images; a row for each exit after the first.

    right_to_wrong and wrong_to_right compare with the exit before. ever_right_to_wrong: wrong here, right at one or
    more of the earlier exits; ever_wrong_to_right: right here, wrong at one or more. Errors as in `calibration`.
    """
    right = _correct(outputs, labels)
    now, before = right[1:], right[:-1]
    ever_right, ever_wrong = (answers.cummax(dim=0).values.bool() for answers in (before.byte(), (~before).byte()))
    changes = {
        "right_to_wrong": before & ~now,
        "wrong_to_right": ~before & now,
        "ever_right_to_wrong": ever_right & ~now,
        "ever_wrong_to_right": ever_wrong & now,
    }
    return table_by_exit({name: change.double().mean(dim=1) for name, change in changes.items()}, first=2)


def _correct(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether each exit's answer to each image is right (exits, images); checks both."""
    if outputs.ndim != 3 or labels.shape != outputs.shape[1:2] or not outputs.numel():
        came = f"{tuple(outputs.shape)} and {tuple(labels.shape)}"
        raise ValueError(f"wanted logits (exits, images, classes) and labels (images,); got {came}")
    if not (labels.min() >= 0 and labels.max() < outputs.shape[2]):
        low, high = labels.min().item(), labels.max().item()
        raise ValueError(f"wanted labels 0 to {outputs.shape[2] - 1}, the logits' classes; got {low} to {high}")
    broken = ~outputs.isfinite().all(dim=2)
    if broken.any():
        k, image = broken.nonzero()[0].tolist()
        raise ValueError(f"logits of exit {k + 1} for image {image} are not finite; wanted finite ones")
    return outputs.argmax(dim=2) == labels
