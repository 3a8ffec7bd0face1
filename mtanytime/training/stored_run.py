"""A trained network from its run folder: in evaluation mode, with its classes, normalization and accuracy."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from mtanytime.backbones import Normalized
from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import class_names
from mtanytime.training.checkpoint import State, check_contents, load_state, read_checkpoint, unchanged_on_error
from mtanytime.training.identity import Row, same_structure, structure_of
from mtanytime.training.network import initialize_layers_for
from mtanytime.training.run_folder import read_record

Weights = Literal["best", "last"]


@dataclass(frozen=True)
class StoredRun:
    """A trained network and what its run folder says about it.

    Attributes:
        network: the network, in evaluation mode.
        classes: the names of its classes in the order of its outputs; None for a run of version 0.1, or if the training
            set had no names.
        image_shape: (channels, height, width) of the test images, or, without any, of the augmented training images;
            None for a run of version 0.1.
        accuracy: on the test images, of the weights that the network holds: a fraction, or one per exit; None without a
            test set and for a run that has not finished.
        val_accuracy: of the best validation epoch; None without validation.
        step: the training step of the checkpoint.
        settings: the record of the run, its config.json.
        origin: the recipe, part and settings that made the network, if a recipe did.
    """

    network: nn.Module
    classes: tuple[str, ...] | None
    image_shape: tuple[int, ...] | None
    accuracy: float | list[float] | None
    val_accuracy: float | None
    step: int
    settings: Row
    origin: dict[str, Any]

    @property
    def normalization(self) -> tuple[list[float], list[float], int | None] | None:
        """Mean and std per channel and the input size of a `Normalized` network; None for others."""
        if not isinstance(self.network, Normalized):
            return None
        return self.network.mean.flatten().tolist(), self.network.std.flatten().tolist(), self.network.size


def load_run(
    folder: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module],
    *,
    weights: Weights = "best",
    device: str | torch.device = "cpu",
) -> StoredRun:
    """Load a trained network from its run folder; nothing is written there.

    Args:
        folder: the run folder of a `Trainer`, `TransferTrainer` (its target) or `AnytimeTrainer`, finished or not.
        model: a network like the trained one, which receives the weights, or the function that makes it. The folder
            holds no code, so it cannot make the network itself.
        weights: "best", those of the best validation epoch (the last ones without validation), or "last".
        device: where to put the network.

    Raises:
        FileNotFoundError: there is no checkpoint in the folder.
        ValueError: a damaged checkpoint, or a network with other modules or tensors than the trained one.
    """
    require(weights in get_args(Weights), "weights", f"one of {get_args(Weights)}", weights)
    checkpoint, record = read_run(folder)
    with torch.random.fork_rng([]):
        network = model if isinstance(model, nn.Module) else model()
    about, best = checkpoint.get("network", {}), checkpoint["best"]
    if about.get("image_shape") is not None:
        with torch.random.fork_rng([]):
            initialize_layers_for(network, torch.zeros(2, *about["image_shape"]))
    expected, came = f"the network that was trained in {folder}", type(network).__name__
    if "structure" in about and not same_structure(about["structure"], structure_of(network)):
        raise mismatch("model", expected, Words(f"{came} with other modules or settings"))
    state = checkpoint["modules"]["model"] if best is None or weights == "last" else best["model"]
    try:
        with unchanged_on_error(network):
            load_state(network, state)
    except (RuntimeError, TypeError, ValueError) as error:
        raise mismatch("model", expected, Words(f"{came}, whose tensors differ: {error}")) from error
    classes, shape = about.get("classes"), about.get("image_shape")
    scores, score = checkpoint["scores"] or {}, "accuracy" if weights == "best" else "last_accuracy"
    return StoredRun(
        network.to(device).eval(),
        None if classes is None else tuple(classes),
        None if shape is None else tuple(shape),
        scores.get(score),
        None if best is None else best["val_accuracy"],
        checkpoint["step"],
        record,
        about.get("origin", {}),
    )


def read_run(folder: str | os.PathLike[str]) -> tuple[State, Row]:
    """The checkpoint and the record of the run in a folder. Raises as `load_run`."""
    path = Path(folder).expanduser() / "checkpoint.pt"
    if not path.exists():
        raise FileNotFoundError(f"folder: expected the folder of a run, got {folder}, which holds no checkpoint.pt")
    checkpoint = read_checkpoint(path)
    try:
        check_contents(checkpoint)
    except ValueError as error:
        raise mismatch(str(path), "the checkpoint of a run", Words(f"one that is none ({error})")) from error
    return checkpoint, read_record(path.parent)


def describe_network(model: nn.Module, data: Any, images: Tensor) -> State:
    """What a checkpoint says about a run's network: its structure, its classes and the shape of its images."""
    classes = class_names(data)
    return {
        "structure": structure_of(model),
        "classes": None if classes is None else list(classes),
        "image_shape": list(images.shape[1:]),
    }
