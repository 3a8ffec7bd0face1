"""Re-estimate batch-norm statistics that lag behind the weights.

A batch norm keeps running means of its inputs' mean and variance, updated by the fraction `momentum` per step and used
in evaluation mode. With a small momentum (torchvision's MobileNetV3: 0.01) they average over hundreds of steps in which
the weights have changed, so a network that trains well can perform at chance level in evaluation mode.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mtanytime.data.batches import Batches, changes_size
from mtanytime.data.images import LabelledImages
from mtanytime.devices import Precision, autocast
from mtanytime.randomness import generator_for, seeded

Images = Float[Tensor, "batch channel height width"]

USUAL_MOMENTUM = 0.1  # torch's default: statistics of about the last ten steps
MOST_IMAGES = 4096  # enough for a mean and a variance per channel


def lagging_batch_norms(model: nn.Module) -> list[str]:
    """Paths of the batch norms whose running statistics average over many more steps than torch's default.

    A momentum of 0 does not count: it keeps given statistics on purpose.
    """
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and module.momentum is not None
        and 0 < module.momentum < USUAL_MOMENTUM
    ]


def settle_batch_norms(model: nn.Module, images: Iterable[Tensor], device: torch.device | None = None) -> None:
    """Replace lagging running statistics by new ones under the current weights, averaged over batches of images.

    Everything else stays: modes, momenta, other buffers, and the statistics of batch norms that the network's own
    `train` method keeps in evaluation mode. Dropout and other random layers act as in training, so call it under a
    seed.

    Example:
        >>> from mtanytime.training.batch_norm import settle_batch_norms
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=0.01))
        >>> settle_batch_norms(network, (torch.rand(32, 3, 8, 8) for _ in range(4)))
    """
    settings = [(module, module.training, getattr(module, "momentum", None)) for module in model.modules()]
    kept = {name: value.clone() for name, value in model.named_buffers()}
    paths = lagging_batch_norms(model)
    try:
        model.train()
        settled = [module for path in paths if (module := model.get_submodule(path)).training]
        for module in settled:
            module.reset_running_stats()
            module.momentum = None  # a mean over all batches
        with torch.no_grad():
            for batch in images if settled else ():
                model(batch if device is None else batch.to(device))
        for path in paths:
            if model.get_submodule(path) in settled:
                for name in ("running_mean", "running_var"):
                    kept.pop(f"{path}.{name}" if path else name, None)
    finally:
        for name, value in model.named_buffers():
            if name in kept:
                value.copy_(kept[name])
        for module, mode, momentum in settings:
            module.training = mode
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = momentum


def settle_for_evaluation(model: nn.Module, training: Batches, seed: int, precision: Precision) -> None:
    """Settle lagging batch norms on up to 4096 training images; a network without any stays as it is.

    The images are chosen under the seed. They are not augmented, as in evaluation, unless that changes their size.
    Those of an image set come in batches of nearly the same size, at most that of the training batches. A `DataLoader`
    keeps its own batches.
    """
    if lagging_batch_norms(model):
        like = next(model.parameters())
        with seeded(seed, like.device), autocast(like.device, precision):
            batches = _settling_batches(training, seed)
            settle_batch_norms(model, (images.to(like.device, like.dtype) for images in batches))


def _settling_batches(training: Batches, seed: int) -> Iterator[Images]:
    data = training.data
    if isinstance(data, LabelledImages):
        generator = generator_for(seed)
        chosen = torch.randperm(len(data), generator=generator)[:MOST_IMAGES]
        resized = changes_size(training)
        margin = resized and getattr(training.augment, "takes_margin", False)
        for images, _ in data.batches(chosen.tensor_split(math.ceil(len(chosen) / training.batch_size)), margin):
            images = images.float().div_(255)
            yield training.augment(images, generator) if resized else images
        return
    first, seen = None, 0
    for images, _ in Batches(data, None, seed, training.augment if changes_size(training) else None).epoch(0):
        first = first or len(images)
        if 2 * len(images) >= first:  # every batch counts the same, so a much smaller last one is left out
            yield images
            seen += len(images)
        if seen >= MOST_IMAGES:
            return
