"""Weights that are computed from other tensors: weight norm, spectral norm, pruning and other parametrizations.

torch has two forms. A parametrization computes the weight at every access. An older form is a hook that computes it
before each call of the layer, so code that reads a weight without calling the layer must run the hooks first.
"""

from copy import deepcopy
from typing import TypeVar

from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

Network = TypeVar("Network", bound=nn.Module)


def refresh_weights(*modules: nn.Module) -> None:
    """Compute the weights that hooks make in these modules (not in their children), as a call of the modules would."""
    for module in modules:
        for hook in _hooks(module):
            hook(module, ())


def has_made_weights(network: nn.Module) -> bool:
    """Whether a hook or parametrization makes a weight of the network."""
    return any(_hooks(module) or parametrize.is_parametrized(module) for module in network.modules())


def plain_copy(network: Network) -> Network:
    """Copy a network; weights that are computed from others are plain parameters in the copy, with their values."""
    derived = {
        id(value): value.detach().clone()
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf  # made by a hook; torch does not copy those
    }
    copied = deepcopy(network, derived)
    modes = [(module, module.training) for module in copied.modules()]
    copied.eval()  # spectral norm would move on at each access in train mode
    for module in list(copied.modules()):
        for hook in _hooks(module):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            else:
                prune.remove(module, hook._tensor_name)
        if parametrize.is_parametrized(module):
            _make_plain(module)
    for module, mode in modes:
        module.training = mode
    return copied


def _make_plain(module: nn.Module) -> None:
    """As torch's `remove_parametrizations`, which would also change the class, shared with the network copied from."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}
    trained = {name for name, made in module.parametrizations.items() if list(made.parameters())}
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        if name in trained:
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


def _hooks(module: nn.Module) -> list[WeightNorm | SpectralNorm | prune.BasePruningMethod]:
    kinds = WeightNorm | SpectralNorm | prune.BasePruningMethod
    return [hook for hook in module._forward_pre_hooks.values() if isinstance(hook, kinds)]
