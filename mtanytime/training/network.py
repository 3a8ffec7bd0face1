"""The network of a run, ready to train: made under the run's seed, on the device, with its lazy layers initialized."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.batches import Batches
from mtanytime.randomness import derive_seed, seeded
from mtanytime.training.trial import training_probe

_INITIAL = -1  # first part of the derived seed


def make_network(
    model: nn.Module | Callable[[], nn.Module], batches: Batches, seed: int, device: torch.device
) -> nn.Module:
    """The network on the device. A function that makes it is called, and lazy layers are initialized, under the seed.

    Raises ValueError for a network without parameters to train, a scripted one, and a wrapped one, whose weights would
    have other names than those of the network itself.
    """
    with seeded(derive_seed(seed, _INITIAL), device):
        network = (model if isinstance(model, nn.Module) else model()).to(device)
        _check_plain(network)
        initialize_lazy_layers(network, batches)
    trainable = any(parameter.requires_grad for parameter in network.parameters())
    require(trainable, "model", "a network with parameters that require grad", type(network).__name__)
    return network


def initialize_lazy_layers(network: nn.Module, batches: Batches) -> None:
    """Initialize layers such as `nn.LazyLinear` by a pass in train mode over a few images; nothing else changes.

    Raises ValueError for a network that does not take the images, and for a lazy layer that does not run.
    """
    if any(map(_uninitialized, network.modules())):
        initialize_layers_for(network, training_probe(batches, next(network.parameters()))[0])


def initialize_layers_for(network: nn.Module, images: Float[Tensor, "batch channel height width"]) -> None:
    """Initialize lazy layers for images of this shape. Raises as `initialize_lazy_layers`."""
    lazy = {path: module for path, module in network.named_modules() if _uninitialized(module)}
    if not lazy:
        return
    modes = [(module, module.training) for module in network.modules()]
    kept = {name: value.clone() for name, value in network.named_buffers() if not is_lazy(value)}
    try:
        with torch.no_grad():
            network.train()(images)
    except Exception as error:
        expected = f"a network that takes {len(images)} images of shape {tuple(images.shape[1:])}"
        raise mismatch("model", expected, Words(f"{type(network).__name__}, which fails: {error}")) from error
    finally:
        for module, mode in modes:
            module.training = mode
    for module in lazy.values():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and not _uninitialized(module):
            module.reset_running_stats()
    for name, value in network.named_buffers():
        if name in kept:
            value.copy_(kept[name])
    idle = [path for path, module in lazy.items() if _uninitialized(module)]
    require(not idle, "model", "lazy layers that run in train mode", Words(f"{', '.join(idle)}, which does not"))


def _uninitialized(module: nn.Module) -> bool:
    return isinstance(module, LazyModuleMixin) and module.has_uninitialized_params()


def _check_plain(network: nn.Module) -> None:
    kind, remedy = type(network).__name__, ""
    if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
        remedy = "pass the network inside, its attribute module"
    elif any(hasattr(module, "_orig_mod") for module in network.modules()):  # what torch.compile returns
        kind, remedy = "a network from torch.compile", "call network.compile(), which compiles in place, and pass it"
    elif any(isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        kind, remedy = "a network of torch.jit", "pass the Python network that it was made from"
    require(not remedy, "model", "the network itself", Words(kind), remedy)
