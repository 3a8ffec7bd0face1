"""Folding: make batch norms part of the convolutions before them, for inference."""

from collections import Counter
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from mtanytime.anytime.made_weights import plain_copy
from mtanytime.anytime.slice_layers import SliceConv, SliceNorm
from mtanytime.anytime.slice_pattern import TriangularConv


@torch.no_grad()
def fold_batch_norms(network: nn.Module, dense: bool = False) -> nn.Module:
    """Copy a network in eval mode, with batch norms folded into the convolution before them wherever that is exact.

    It is exact for a norm with running statistics whose input is a convolution's output. Such pairs are found only
    where the two follow each other in an `nn.Sequential`, and in modules that list them in `convolutions_with_norms`;
    other norms, such as torchvision's `conv1` and `bn1`, stay. A norm that is followed by the convolution, as at the
    start of a pre-activation block, stays, and so do a norm and a convolution one of which the network uses twice.
    Weights that hooks or parametrizations make are plain parameters in the copy.

    Example:
        >>> from mtanytime.anytime import fold_batch_norms
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        >>> fold_batch_norms(network)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )

    Args:
        network: the network, which stays as it is.
        dense: for an exit that is not run slice by slice: replace block lower triangular convolutions by ordinary ones,
            with zeros for the absent connections. They multiply more, but take less time.
    """
    folded = plain_copy(network).eval()
    parts = [part for module in folded.modules() for part in module._modules.values()]
    places = Counter(id(part) for part in parts)  # more than one: it is called in several places
    for module in list(folded.modules()):
        pairs = list(getattr(module, "convolutions_with_norms", ()))
        if isinstance(module, nn.Sequential):
            pairs += pairwise(module._modules)
        for first, second in pairs:
            convolution, norm = getattr(module, first), getattr(module, second)
            once = places[id(convolution)] == places[id(norm)] == 1
            plain = type(norm) in (nn.BatchNorm2d, SliceNorm)  # a subclass may also activate
            if once and plain and norm.running_mean is not None and _fold(convolution, norm):
                setattr(module, second, nn.Identity())
    if dense:
        for module in list(folded.modules()):
            for name, part in module.named_children():
                if isinstance(part, TriangularConv):
                    setattr(module, name, _ordinary(part))
    return folded


def _ordinary(convolution: TriangularConv) -> nn.Conv2d:
    """The ordinary convolution that computes the same."""
    weight, bias = convolution.dense(), convolution.bias
    weight = weight[..., None, None] if weight.ndim == 2 else weight
    channels, kernel = (weight.shape[1], weight.shape[0]), weight.shape[2]
    options = {"padding": kernel // 2, "bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    ordinary = nn.utils.skip_init(nn.Conv2d, *channels, kernel, convolution.stride, **options)
    ordinary.weight = nn.Parameter(weight)
    ordinary.bias = bias
    return ordinary


def _fold(convolution: nn.Module, norm: nn.BatchNorm2d) -> bool:
    """Fold a norm into a convolution, in place. Returns False for a module that is not a known convolution."""
    settings = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(convolution, TriangularConv):
        factor = norm.running_var.add(norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight
        bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        bias = bias * factor if norm.bias is None else bias * factor + norm.bias
        for weight, part in zip(convolution.weights, factor.split(list(convolution.outputs)), strict=True):
            weight.mul_(part.view(-1, *[1] * (weight.ndim - 1)))
        convolution.bias = nn.Parameter(bias)
        return True
    if type(convolution) in (nn.Conv2d, SliceConv):
        weight, bias = fuse_conv_bn_weights(convolution.weight, convolution.bias, *settings)
        convolution.weight, convolution.bias = weight, bias
        return True
    return False
