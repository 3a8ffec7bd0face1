"""Check before training whether a model's gradient can be differentiated again, and name the layer if not."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mtanytime.features import hooked, unwrapped
from mtanytime.functional import functional_call, trial_run
from mtanytime.transfer.second_order import second_order


def _nodes(roots: list[Tensor]) -> set[Any]:
    """All autograd nodes behind the tensors."""
    nodes: set[Any] = set()
    queue = [root.grad_fn for root in roots]
    while queue:
        node = queue.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            queue += [following for following, _ in node.next_functions]
    return nodes


def _refusal(outputs: Any, inputs: Any) -> RuntimeError | None:
    """The reason why a function of the outputs can't be differentiated twice with respect to the inputs, or None."""
    roots = [value for value in tree_leaves(outputs) if isinstance(value, Tensor) and value.requires_grad]
    leaves = [value for value in tree_leaves(inputs) if isinstance(value, Tensor) and value.requires_grad]
    if not roots or not leaves:
        return None
    silent: list[str] = []

    def look(name: str, grads_out: tuple[Tensor | None, ...], grads_in: tuple[Tensor | None, ...]) -> None:
        if any(grad is not None and grad.requires_grad for grad in grads_in):
            silent.extend(name for grad in grads_out if grad is not None and not grad.requires_grad and grad.any())

    hooks = [node.register_hook(partial(look, node.name())) for node in _nodes(roots)]
    try:
        loss = sum(root.square().mean() for root in roots)  # a square, so that its gradient depends on the outputs
        grads = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        if silent:
            return RuntimeError(f"{silent[0]} gives a gradient without a graph, which torch would take for a constant.")
        slopes = [grad for grad in grads if grad is not None and grad.requires_grad]
        if slopes:
            # backward, not grad: grad skips nodes that lead to no leaf, where `once_differentiable` would raise.
            norm = sum(slope.square().sum() for slope in slopes)
            norm.backward(retain_graph=True)
            again = torch.autograd.grad(norm, leaves, retain_graph=True, allow_unused=True)
            if norm.isfinite() and not all(value.isfinite().all() for value in again if value is not None):
                return RuntimeError("its second derivative is not finite")
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return error
    finally:
        for hook in hooks:
            hook.remove()
    return None


def check_double_backward(model: nn.Module, images: Float[Tensor, "batch channel height width"]) -> None:
    """Raise RuntimeError if the model's gradient can't be differentiated again; the error names the innermost module.

    The meta-gradient of L2T-ww differentiates through gradient steps, so the backward of every layer needs a
    derivative. Some functions have none, or one that is not finite; `second_order` replaces those of torch that it
    knows. The model runs on `images` in train mode, as in training, so batch norm needs two or more. Its
    buffers, mode and gradients and torch's random state stay the same.
    """
    network = unwrapped(model)
    calls: dict[str, tuple[Any, Any]] = {}

    def record(path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        calls.setdefault(path, (output, (args, kwargs, list(module.parameters()))))

    with trial_run(model, images.device, training=True) as buffers, torch.enable_grad():
        # Detached copies of the parameters collect the gradients, so that the model's own stay the same.
        weights = {k: v.detach().requires_grad_(v.requires_grad) for k, v in model.named_parameters()}
        layers = [path for path, _ in network.named_modules()]
        with second_order(fast=False), hooked(network, layers, record):
            output = functional_call(model, {**weights, **buffers}, images.detach().clone())
        reason = _refusal(output, list(weights.values()))
        if reason is None:
            return
        culprit = ""
        # Each module's part of the graph lies between its output and its inputs, so no module has to run again.
        for path in sorted(calls, key=lambda path: -path.count(".") - bool(path)):
            if (refusal := _refusal(*calls[path])) is not None:
                culprit, reason = path, refusal
                break
    what = f"{culprit!r} ({type(network.get_submodule(culprit)).__name__})" if culprit else "its own forward pass"
    remedy = "replace it by a layer with a second derivative, or freeze it and all layers before it"
    reason = str(reason).strip().rstrip(".")
    raise RuntimeError(f"{type(network).__name__} can't be differentiated twice because of {what}: {reason}; {remedy}")


def allows_fast_layers(model: nn.Module, images: Float[Tensor, "batch channel height width"]) -> bool:
    """Whether the model's gradient can be differentiated again with the layers of `second_order`.

    False for a model that computes gradients itself or recomputes activations (`torch.utils.checkpoint`): it needs a
    third derivative of its layers. Raises RuntimeError as `check_double_backward` if torch's own layers fail, too.
    """
    try:
        with second_order():
            check_double_backward(model, images)
    except RuntimeError:
        check_double_backward(model, images)
        return False
    return True
