"""The exact gradient of an outer loss with respect to what steers a few SGD steps before it.

L2T-ww (arXiv:1905.05901, Algorithm 1) learns its meta-networks φ by looking ahead: from the present parameters θ the
target takes a few SGD steps whose losses depend on φ, and the loss at the place it arrives at is differentiated with
respect to φ. One step of SGD with gradient g, velocity v, momentum μ and weight decay wd is

    d = g(θ, φ) + wd·θ,   v' = μ·v + d,   θ' = θ - lr·v'          (Nesterov: θ' = θ - lr·(d + μ·v'))

and its adjoint, for ā = ∂L/∂θ' and c̄ = ∂L/∂v' from the steps after it, is

    s = c̄ - lr·ā,   ∂L/∂θ = ā + wd·s + (∂g/∂θ)ᵀs,   ∂L/∂v = μ·s,   ∂L/∂φ += (∂g/∂φ)ᵀs     (Nesterov: see `_adjoint`)

so a lookahead is differentiated one step at a time, in reverse, with one double backward a step. Nothing here changes
the state it starts from: parameters, velocity, buffers and random state are the caller's afterwards as before.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mtanytime.randomness import get_rng_state, set_rng_state
from mtanytime.transfer.second_order import second_order

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors], Tensor]
Mode = Literal["keep", "recompute", "unroll"]


@dataclass(frozen=True)
class SGDRule:
    """The settings of one parameter's SGD step, as in `torch.optim.SGD` without dampening."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


@dataclass(frozen=True)
class InnerStep:
    """One SGD step of the lookahead.

    `loss` maps a dict of all parameters and buffers by name to a scalar, and may write the buffers of that dict (batch
    norm does); `uses_hyper` is False when the loss cannot depend on what is being learned, which saves work, as does
    `hyper_comes_last`: no convolution, batch norm or matching error comes after what is being learned, other than as
    the matching error's weights.
    """

    loss: Loss
    uses_hyper: bool = True
    hyper_comes_last: bool = False


@dataclass(frozen=True)
class MetaGradient:
    """The outer loss (a detached scalar) and its gradient, one tensor for each one in `hyper`."""

    outer_loss: Tensor
    gradients: list[Tensor]


def sgd_rules(optimizer: torch.optim.SGD, parameters: Mapping[str, Tensor]) -> dict[str, SGDRule]:
    """Read each named parameter's present settings from torch's optimiser; ValueError for what the adjoint lacks."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    rules = {}
    for group in optimizer.param_groups:
        if group["dampening"] or group["maximize"]:
            raise ValueError(
                f"the lookahead knows SGD without dampening and maximize; "
                f"got dampening={group['dampening']}, maximize={group['maximize']}"
            )
        rule = SGDRule(*(float(group[k]) for k in ("lr", "momentum", "weight_decay")), group["nesterov"])
        rules.update({names[id(p)]: rule for p in group["params"] if id(p) in names})
    if missing := sorted(set(parameters) - set(rules)):
        raise ValueError(f"the optimiser lacks parameters {missing[:3]}{'…' if len(missing) > 3 else ''}")
    return rules


def sgd_velocity(optimizer: torch.optim.SGD, parameters: Mapping[str, Tensor]) -> Tensors:
    """Each named parameter's momentum buffer; zeros where torch has made none yet, which is the same step."""
    buffers = {name: optimizer.state[p].get("momentum_buffer") for name, p in parameters.items()}
    return {n: torch.zeros_like(p) if buffers[n] is None else buffers[n] for n, p in parameters.items()}


def meta_gradient(
    steps: Sequence[InnerStep],
    outer: Loss,
    parameters: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    rules: Mapping[str, SGDRule],
    hyper: Sequence[Tensor],
    *,
    mode: Mode = "keep",
    first_order: bool = False,
    quick: bool = True,
) -> MetaGradient:
    """Differentiate `outer` after the SGD `steps` with respect to the leaf tensors `hyper`.

    The steps and the outer loss draw random numbers (dropout) as they run, one after another.

    Args:
        steps: the lookahead, first to last; each reads `hyper` through its closure.
        outer: the loss at the parameters that the steps arrive at.
        parameters, velocity, buffers: where the lookahead starts, by name; left as they are.
        rules: the SGD settings of each parameter.
        hyper: tensors that require grad.
        mode: "keep" holds every step's graph until it is used (fastest); "recompute" runs each step again in reverse,
            with the same dropout masks and buffers, so that the memory of activations does not grow with the number of
            steps; "unroll" leaves all to autograd through one long graph (the plain reference for tests).
        quick: convolutions and batch norms by `second_order`, which a loss that itself takes a gradient, or runs a part
            again (`torch.utils.checkpoint`), does not go with; "unroll" never does.
        first_order: drop ∂g/∂θ, the Hessian terms, and keep ∂g/∂φ (a reconstruction: the paper has no such variant).
    """
    if mode not in ("keep", "recompute", "unroll"):
        raise ValueError(f"mode is one of 'keep', 'recompute', 'unroll'; got {mode!r}")
    if mode == "unroll" and first_order:
        raise ValueError("first_order goes with mode 'keep' or 'recompute'; got mode 'unroll'")
    if not any(step.uses_hyper for step in steps):
        raise ValueError("no inner step uses what is to be learned, so its gradient would be zero; wanted at least one")
    device = next(iter(parameters.values())).device
    rng_at_start = get_rng_state(device)
    try:
        if mode == "unroll":
            return _unrolled(steps, outer, parameters, velocity, buffers, rules, hyper)
        return _step_by_step(
            steps, outer, parameters, velocity, buffers, rules, hyper, mode == "keep", first_order, quick
        )
    finally:
        set_rng_state(rng_at_start, device)


def _step_by_step(
    steps: Sequence[InnerStep],
    outer: Loss,
    parameters: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    rules: Mapping[str, SGDRule],
    hyper: Sequence[Tensor],
    keep: bool,
    first_order: bool,
    quick: bool,
) -> MetaGradient:
    """Run the steps forward one by one, each from detached leaves, then go back through them with the adjoint."""
    device = next(iter(parameters.values())).device
    theta, v, running = dict(parameters), dict(velocity), dict(buffers)
    twice = [  # what of step i is differentiated again: the first step's parameters do not depend on hyper
        (step.uses_hyper, i > 0 and not first_order) for i, step in enumerate(steps)
    ]

    def layers(step: InnerStep, by_theta: bool) -> AbstractContextManager[None]:
        return second_order(by_theta or not step.hyper_comes_last) if quick else nullcontext()

    visited = []
    for step, (by_hyper, by_theta) in zip(steps, twice, strict=True):
        before = (theta, running, get_rng_state(device))
        graph = keep and (by_hyper or by_theta)
        leaves, gradients, running = _gradient(step.loss, theta, running, graph, layers(step, by_theta))
        visited.append((leaves, gradients) if graph else before)
        theta, v = _sgd_step(theta, v, {n: g.detach() for n, g in gradients.items()}, rules)
        if not graph:
            del leaves, gradients

    leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
    outer_loss = outer({**leaves, **_clones(running)})
    found = torch.autograd.grad(outer_loss, [*leaves.values(), *hyper], allow_unused=True, materialize_grads=True)
    adjoint_theta = dict(zip(leaves, found[: len(leaves)], strict=True))
    adjoint_v: dict[str, Tensor | None] = dict.fromkeys(adjoint_theta)
    totals = list(found[len(leaves) :])
    del leaves, found

    for step, (by_hyper, by_theta) in zip(reversed(steps), reversed(twice), strict=True):
        record = visited.pop()
        signal, adjoint_theta, adjoint_v = _adjoint(adjoint_theta, adjoint_v, rules)
        if not (by_hyper or by_theta):
            continue
        if keep:
            leaves, gradients = record
        else:
            theta, running, rng = record
            set_rng_state(rng, device)
            leaves, gradients, _ = _gradient(step.loss, theta, running, True, layers(step, by_theta))
        reached = [name for name, gradient in gradients.items() if gradient.requires_grad]
        inputs = [*(hyper if by_hyper else ()), *(leaves.values() if by_theta else ())]
        if not reached:  # the gradient is a constant: nothing to differentiate again
            continue
        found = torch.autograd.grad(
            [gradients[n] for n in reached], inputs, [signal[n] for n in reached], allow_unused=True
        )
        if by_hyper:
            totals = [t if f is None else t + f for t, f in zip(totals, found, strict=False)]
        if by_theta:
            for name, f in zip(leaves, found[len(found) - len(leaves) :], strict=True):
                if f is not None:
                    adjoint_theta[name] += f
        del leaves, gradients, found, record
    return MetaGradient(outer_loss.detach(), totals)


def _unrolled(
    steps: Sequence[InnerStep],
    outer: Loss,
    parameters: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    rules: Mapping[str, SGDRule],
    hyper: Sequence[Tensor],
) -> MetaGradient:
    """The same gradient by autograd alone, through one graph of all steps."""
    theta = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    v, running = dict(velocity), dict(buffers)
    for step in steps:
        state = {**theta, **_clones(running)}
        loss = step.loss(state)
        found = torch.autograd.grad(
            loss, list(theta.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        theta, v = _sgd_step(theta, v, dict(zip(theta, found, strict=True)), rules)
        running = {name: state[name].detach() for name in running}
    outer_loss = outer({**theta, **_clones(running)})
    found = torch.autograd.grad(outer_loss, list(hyper), allow_unused=True, materialize_grads=True)
    return MetaGradient(outer_loss.detach(), list(found))


def _gradient(
    loss: Loss,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    create_graph: bool,
    layers: AbstractContextManager[None],
) -> tuple[Tensors, Tensors, Tensors]:
    """The loss's gradient at detached leaves: the leaves, the gradients (zero, not none, where the loss does not
    reach: momentum and weight decay still move such a parameter), and the buffers after it. The loss runs within
    `layers`."""
    leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
    state = {**leaves, **_clones(buffers)}
    with layers:
        value = loss(state)
    found = torch.autograd.grad(
        value, list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return leaves, dict(zip(leaves, found, strict=True)), {name: state[name].detach() for name in buffers}


def _clones(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: value.clone() for name, value in tensors.items()}


def _sgd_step(
    parameters: Mapping[str, Tensor],
    velocity: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    rules: Mapping[str, SGDRule],
) -> tuple[Tensors, Tensors]:
    """One differentiable SGD step, out of place: new parameters and new velocities."""
    theta, v = {}, {}
    for name, value in parameters.items():
        rule, direction = rules[name], gradients[name]
        if rule.weight_decay:
            direction = torch.add(direction, value, alpha=rule.weight_decay)
        v[name] = torch.add(direction, velocity[name], alpha=rule.momentum) if rule.momentum else direction
        step = torch.add(direction, v[name], alpha=rule.momentum) if rule.nesterov else v[name]
        theta[name] = torch.add(value, step, alpha=-rule.lr)
    return theta, v


def _adjoint(
    adjoint_theta: Mapping[str, Tensor], adjoint_v: Mapping[str, Tensor | None], rules: Mapping[str, SGDRule]
) -> tuple[Tensors, Tensors, Tensors]:
    """Pull the adjoints back over one SGD step, up to the term (∂g/∂θ)ᵀs, which the caller adds; None is zero.

    Returns s = ∂L/∂g, ∂L/∂θ without that term, and ∂L/∂v. With Nesterov momentum θ' reads d twice, once through v':
    c' = c̄ - lr·μ·ā is what reaches v', s = c' - lr·ā, ∂L/∂v = μ·c'.
    """
    signal, theta, v = {}, {}, {}
    for name, a in adjoint_theta.items():
        rule, c = rules[name], adjoint_v[name]
        factor = -rule.lr * (rule.momentum if rule.nesterov else 1.0)
        reaching_v = factor * a if c is None else torch.add(c, a, alpha=factor)
        s = torch.add(reaching_v, a, alpha=-rule.lr) if rule.nesterov else reaching_v
        signal[name] = s
        theta[name] = torch.add(a, s, alpha=rule.weight_decay)  # a new tensor, which the caller adds to
        v[name] = rule.momentum * reaching_v
    return signal, theta, v
