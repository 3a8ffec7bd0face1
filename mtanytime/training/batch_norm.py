"""Re-estimate batch-norm statistics where the running ones lag behind the weights.

A batch norm keeps running means of its inputs' mean and variance, updated by the fraction `momentum` per step and used
in evaluation mode. With a small momentum (torchvision's MobileNetV3: 0.01) they average over hundreds of steps in which
the weights have changed, so a network that trains well can answer at chance in evaluation mode.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

USUAL_MOMENTUM = 0.1  # torch's default: statistics of the last ten steps or so


def lagging_batch_norms(model: nn.Module) -> list[str]:
    """Paths of the batch norms whose running statistics average over many more steps than torch's default."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and module.momentum is not None
        and module.momentum < USUAL_MOMENTUM
    ]


def settle_batch_norms(model: nn.Module, images: Iterable[Tensor], device: torch.device | None = None) -> None:
    """Replace all running statistics by those of the present weights, averaged over batches of images.

    Modes and momenta are restored. Dropout and other random layers act as in training, so call it under a seed.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        update_bn(images, model, device)
    finally:
        for module, mode in modes:
            module.training = mode
