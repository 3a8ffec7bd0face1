"""The trial before training: a network runs on a few images of each set, so that errors show at once.

The trial leaves no trace: modes, buffers and torch's random state are as before.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from mtanytime.backbones import Normalized
from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import Batches, known_labels
from mtanytime.data.images import LabelledImages
from mtanytime.devices import Precision, autocast
from mtanytime.features import without_wrappers
from mtanytime.functional import functional_call, trial_run
from mtanytime.randomness import generator_for
from mtanytime.training.identity import name_of

FEW_TO_CHOOSE_BY = 500  # validation images; with fewer, the standard error of an accuracy of 50 % is above 2 points
_LOG_COLUMNS = {"step", "epoch", "seconds", "lr", "val_accuracy"}
Images = Float[Tensor, "batch channel height width"]
Labels = Int[Tensor, " batch"]


def training_probe(batches: Batches, like: Tensor) -> tuple[Images, Labels]:
    """Up to 4 augmented training images and labels; as many as the smallest batch of an epoch has, if that is fewer.

    Batch norm in train mode may not take a single image: a last batch of one must fail here and not after an epoch.
    """
    images, labels = probe(batches.data, like, smallest_batch(batches) or 4, seed=batches.seed)
    if batches.augment is not None:
        images = batches.augment(images, generator_for(batches.seed, -1))
        require(len(images) == len(labels), "augment", f"a transform that keeps {len(labels)} images", len(images))
    return images.to(like.device, like.dtype), labels


def smallest_batch(batches: Batches) -> int | None:
    """The size of an epoch's smallest batch; None if a DataLoader does not say."""
    data, size = batches.data, batches.batch_size
    if isinstance(data, LabelledImages):
        rest = len(data) % size
        return size if rest == 0 else min(size, len(data)) if batches.remainder == "drop" else rest
    if data.batch_size is None or isinstance(data.dataset, IterableDataset):
        return None
    return data.batch_size if data.drop_last else len(data.sampler) % data.batch_size or data.batch_size


def cautions(batches: Batches, validation: LabelledImages | DataLoader | None) -> list[str]:
    """Notes on settings that cost accuracy: a small last batch, or too few validation images to choose an epoch by."""
    notes, least = [], smallest_batch(batches)
    size, in_set = batches.batch_size or batches.data.batch_size, isinstance(batches.data, LabelledImages)
    if least is not None and len(batches) > 1 and 4 * least < size:
        option = 'remainder="drop"' if in_set else "drop_last=True in the DataLoader"
        notes.append(
            f"training: an epoch's last batch has {least} of {size} images, too few for batch norm and a whole step; "
            f"{option} leaves it out"
        )
    elif least is not None and least < size and batches.remainder == "drop" and not in_set:
        notes.append(
            f"training: a DataLoader keeps its last batch, here of {least} of {size} images, whatever `remainder` is; "
            "drop_last=True in the DataLoader leaves it out"
        )
    if isinstance(validation, LabelledImages) and len(validation) < FEW_TO_CHOOSE_BY:
        notes.append(
            f"validation: {len(validation)} images are too few to choose the best epoch by, as accuracy does; "
            "last_accuracy is that of the last step"
        )
    return notes


def other_sizes(model: nn.Module, batches: Batches, **sets: LabelledImages | DataLoader | None) -> list[str]:
    """Notes on image sets of another size than the augmented training images, unless the network resizes its input."""
    network = without_wrappers(model)
    if isinstance(network, Normalized) and network.size is not None:
        return []
    size = training_probe(batches, next(model.parameters()))[0].shape[2:]
    return [
        f"{name}: its images have {'×'.join(map(str, images.image_shape[1:]))} pixels, those of the training steps "
        f"{'×'.join(map(str, size))}"
        for name, images in sets.items()
        if isinstance(images, LabelledImages) and images.image_shape[1:] != size
    ]


def as_numbers(metrics: Any) -> dict[str, float]:
    """What a trainer's `train_on_batch` returned, as Python's numbers. ValueError for anything else, by name."""
    expected = "a dictionary of numbers by name"
    require(isinstance(metrics, Mapping), "train_on_batch", expected, Words(type(metrics).__name__))
    own = sorted(_LOG_COLUMNS & set(metrics))
    require(not own, "train_on_batch", f"other names than the log's own {sorted(_LOG_COLUMNS)}", own)
    numbers = {}
    for name, value in metrics.items():
        try:
            numbers[name] = float(value.item() if isinstance(value, Tensor) else value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise mismatch("train_on_batch", expected, Words(f"{name!r}, a {type(value).__name__}")) from error
    return numbers


def probe(data: LabelledImages | DataLoader, like: Tensor, size: int = 4, seed: int = 0) -> tuple[Images, Labels]:
    """Up to 4 images and labels of a set, on the device of `like`, the images in its type.

    If all of a set's labels are known, the images all get the highest: if the network has an output for that, it has
    one for all. `seed` is for a `DataLoader`.
    """
    size, known = min(size, 4), known_labels(data)
    if isinstance(data, LabelledImages):
        few = data.subset(torch.arange(min(size, len(data))))
        images, labels = next(Batches(few, 4, seed=0, shuffle=False).epoch(0))
    else:
        images, labels = next(Batches(data, None, seed=seed).epoch(0))
        images, labels = images[:size], labels[:size]
    labels = labels if known is None else known.max().expand(len(images))
    return images.to(like.device, like.dtype), labels.to(like.device)


def try_network(
    model: nn.Module,
    loss: Callable[[Any, Tensor], Tensor],
    batches: Batches,
    others: Mapping[str, LabelledImages | DataLoader | None],
    logits_of: Callable[[Any], Tensor],
    precision: Precision,
) -> int:
    """Run a network on a few training images in train mode, with the loss, and on some of other sets in eval mode.

    Args:
        model: the network.
        loss: the training loss, `loss(output, labels)`.
        batches: batches of the training set.
        others: further sets by name; None for a missing one.
        logits_of: the logits in the network's output, which labels are checked against.
        precision: of the forward pass.

    Returns:
        The number of the network's outputs (classes).

    Raises:
        ValueError: the network does not take the images, it has no output for a label, or the loss does not take its
            output, does not return a scalar tensor or has parameters of its own to train.
    """
    parameter = next(model.parameters())
    images, labels = training_probe(batches, parameter)
    remedy = ""
    if smallest_batch(batches) == 1:  # batch norm over one value per channel has no variance
        option = 'remainder="drop"' if isinstance(batches.data, LabelledImages) else "drop_last=True in the DataLoader"
        remedy = (
            f"an epoch's last batch has one image, which batch norm may not take: choose another batch size or {option}"
        )
    output = _forward(model, "training", images, precision, remedy)
    outputs = _check_output(logits_of(output), "training", labels)
    _check_loss(loss, output, labels, model)
    for name, data in others.items():
        if data is not None:
            images, labels = probe(data, parameter, seed=batches.seed)
            output = _forward(model, name, images, precision)
            outputs = _check_output(logits_of(output), name, labels)
    return outputs


@torch.no_grad()
def _forward(model: nn.Module, name: str, images: Tensor, precision: Precision, remedy: str = "") -> Any:
    """The output for images of a set, in train mode for the training set."""
    with trial_run(model, images.device, training=name == "training") as buffers:
        try:
            with autocast(images.device, precision):
                return functional_call(model, buffers, images)
        except Exception as error:
            expected = f"a network that takes {len(images)} {name} images of shape {tuple(images.shape[1:])}"
            got = Words(f"{type(model).__name__}, which fails: {error}")
            raise mismatch("model", expected, got, remedy) from error


def _check_output(logits: Tensor, name: str, labels: Tensor) -> int:
    check_labels(name, labels, logits.shape[1])
    return logits.shape[1]


def _check_loss(loss: Callable[[Any, Tensor], Tensor], output: Any, labels: Tensor, model: nn.Module) -> None:
    before = {name: buffer.clone() for name, buffer in loss.named_buffers()} if isinstance(loss, nn.Module) else {}
    try:
        if isinstance(loss, nn.Module):
            with trial_run(loss, labels.device, training=loss.training) as buffers:
                value = functional_call(loss, buffers, output, labels)
        else:
            value = loss(output, labels)
    except Exception as error:
        came = Words(f"{name_of(loss)}, which fails: {error}")
        raise mismatch("loss", "a function of the network's output and the labels", came) from error
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    require(shape == (), "loss", "a function that returns a scalar tensor", Words(shape))
    if not isinstance(loss, nn.Module):
        return
    changed = [name for name, value in before.items() if not torch.equal(value, buffers[name])]
    remedy = "keep them in the network: a checkpoint has no place for them"
    require(not changed, "loss", "one without buffers that change", Words(f"{name_of(loss)} with {changed}"), remedy)
    if not value.requires_grad:
        return
    known = {id(parameter) for parameter in model.parameters()}
    own = {name: p for name, p in loss.named_parameters() if p.requires_grad and id(p) not in known}
    gradients = torch.autograd.grad(value, list(own.values()), allow_unused=True) if own else ()
    trained = [name for name, gradient in zip(own, gradients, strict=True) if gradient is not None]
    remedy = "make them parameters of the network, or set requires_grad=False: they are neither trained nor kept"
    require(not trained, "loss", "one without parameters to train", Words(f"{name_of(loss)} with {trained}"), remedy)


@torch.no_grad()
def check_mean(
    loss: Callable[[Any, Tensor], Tensor], model: nn.Module, images: Images, labels: Labels, precision: Precision
) -> None:
    """Raise ValueError unless the loss of a few images is the mean of the losses of two parts of them."""
    parameter = next(model.parameters())
    images, labels = images.to(parameter.device, parameter.dtype), labels.to(parameter.device)

    def of(rows: slice) -> float:
        with trial_run(model, images.device, training=False) as buffers, autocast(images.device, precision):
            return loss(functional_call(model, buffers, images[rows]), labels[rows]).item()

    count = len(labels)
    middle = count // 3
    total, first, second = of(slice(count)), of(slice(middle)) if middle else 0.0, of(slice(middle, count))
    mean = (middle * first + (count - middle) * second) / count
    tolerance = 2e-2 if precision == "bfloat16" else 1e-3
    got = Words(f"{total:.4g} for {count} images, and {first:.4g} and {second:.4g} for two parts of them")
    near = not math.isfinite(total) or abs(total - mean) <= tolerance * max(abs(total), abs(mean))
    require(near, "loss", "a mean over the images, which several processes can share", got)


def check_labels(name: str, labels: Labels, outputs: int | None) -> None:
    """Raise ValueError for a label that the network has no output for. On a GPU the loss itself would end the process.

    Args:
        name: the set's name, for the error.
        labels: labels of the set.
        outputs: the number of the network's outputs; None checks nothing.
    """
    if outputs is not None and len(wrong := labels[(labels < 0) | (labels >= outputs)]):
        raise mismatch(f"{name} labels", f"0 to {outputs - 1}, one per output of the network", int(wrong[0]))
