"""The exact gradient of an outer loss through a few SGD steps.

L2T-ww (arXiv:1905.05901, Algorithm 1) trains its meta-networks φ with a lookahead. From the current parameters θ, the
target takes a few SGD steps whose losses depend on φ. The outer loss at the resulting parameters is then differentiated
with respect to φ. One SGD step with gradient g, velocity v, momentum μ and weight decay wd is

    d = g(θ, φ) + wd·θ,   v' = μ·v + d,   θ' = θ - lr·v'          (Nesterov: θ' = θ - lr·(d + μ·v'))

Given ā = ∂L/∂θ' and c̄ = ∂L/∂v' from the later steps, its adjoint is

    s = c̄ - lr·ā,   ∂L/∂θ = ā + wd·s + (∂g/∂θ)ᵀs,   ∂L/∂v = μ·s,   ∂L/∂φ += (∂g/∂φ)ᵀs     (Nesterov: see `_adjoint`)

so the steps are differentiated one at a time, in reverse, with one double backward per step.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.randomness import get_rng_state, set_rng_state
from mtanytime.training.distributed import Processes

Tensors = dict[str, Tensor]
Loss = Callable[[Tensors], Tensor]
Sums = Callable[[Sequence[Tensor]], list[Tensor]]  # over the processes
Mode = Literal["keep", "recompute", "unroll"]


@dataclass(frozen=True)
class SGDRule:
    """The settings of `torch.optim.SGD` for one parameter, without dampening."""

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False


@dataclass(frozen=True)
class SGDState:
    """The state that an SGD step starts from; every mapping is by parameter or buffer name.

    A parameter without a `velocity` has not moved yet: its velocity is zero.
    """

    parameters: Mapping[str, Tensor]
    rules: Mapping[str, SGDRule]
    velocity: Mapping[str, Tensor] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def read(cls, module: nn.Module, optimizer: torch.optim.SGD) -> "SGDState":
        """The current state of a module and its optimizer, not copied.

        `parameters` holds the module's parameters that require grad.

        Raises:
            ValueError: for an optimizer with dampening or maximize, which the adjoint does not cover, or one that
                lacks a parameter.
        """
        parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        rules, velocity = sgd_rules(optimizer, parameters), sgd_velocity(optimizer, parameters)
        return cls(parameters, rules, velocity, dict(module.named_buffers()))

    def step(self, gradients: Mapping[str, Tensor]) -> "SGDState":
        """The state after one SGD step, out of place and differentiable; the buffers stay the same."""
        parameters, velocity = {}, {}
        for name, value in self.parameters.items():
            rule, direction = self.rules[name], gradients[name]
            if rule.weight_decay:
                direction = torch.add(direction, value, alpha=rule.weight_decay)
            moving = rule.momentum and name in self.velocity
            v = torch.add(direction, self.velocity[name], alpha=rule.momentum) if moving else direction
            step = torch.add(direction, v, alpha=rule.momentum) if rule.nesterov else v
            parameters[name], velocity[name] = torch.add(value, step, alpha=-rule.lr), v
        return replace(self, parameters=parameters, velocity=velocity)


def sgd_rules(optimizer: torch.optim.SGD, parameters: Mapping[str, Tensor]) -> dict[str, SGDRule]:
    """The optimizer's current settings for each named parameter; raises as `SGDState.read`."""
    names = {id(p): name for name, p in parameters.items()}
    rules = {}
    for group in optimizer.param_groups:
        for setting in ("dampening", "maximize"):
            require(not group[setting], "optimizer", f"SGD without {setting}", Words(f"{setting}={group[setting]}"))
        rule = SGDRule(*(float(group[k]) for k in ("lr", "momentum", "weight_decay")), group["nesterov"])
        rules.update({names[id(p)]: rule for p in group["params"] if id(p) in names})
    if missing := sorted(set(parameters) - set(rules)):
        listed = f"one without {', '.join(missing[:3])}{', …' * (len(missing) > 3)}"
        raise mismatch("optimizer", "one with every parameter that requires grad", Words(listed))
    return rules


def sgd_velocity(optimizer: torch.optim.SGD, parameters: Mapping[str, Tensor]) -> Tensors:
    """The momentum buffer of each named parameter; zeros for one that has not moved yet."""
    buffers = {name: optimizer.state.get(p, {}).get("momentum_buffer") for name, p in parameters.items()}
    return {n: torch.zeros_like(p) if buffers[n] is None else buffers[n] for n, p in parameters.items()}


@dataclass(frozen=True)
class InnerStep:
    """One SGD step of the lookahead.

    `loss` maps a dict of all parameters and buffers by name to a scalar. It may write to the buffers of that dict, as
    batch norm does. `uses_hyper=False` says that the loss does not depend on `hyper`, which saves work.
    """

    loss: Loss
    uses_hyper: bool = True


@dataclass(frozen=True)
class MetaGradient:
    """The outer loss, a detached scalar, and its gradient: one tensor per tensor in `hyper`."""

    outer_loss: Tensor
    gradients: list[Tensor]


def meta_gradient(
    steps: Sequence[InnerStep],
    outer: Loss,
    state: SGDState,
    hyper: Sequence[Tensor],
    *,
    mode: Mode = "keep",
    first_order: bool = False,
    processes: Processes | None = None,
) -> MetaGradient:
    """Differentiate `outer` after the SGD `steps` with respect to `hyper`.

    The steps and the outer loss draw random numbers (dropout) in the order in which they run. Parameters, velocity,
    buffers and torch's random state are left as they were. A loss is faster to differentiate if it runs its network
    within `second_order`.

    Example:
        >>> from torch.func import functional_call
        >>> from torch.nn.functional import cross_entropy
        >>> from mtanytime.transfer import InnerStep, SGDState, meta_gradient
        >>> network, images, labels = nn.Linear(4, 3), torch.rand(9, 4), torch.arange(9) % 3
        >>> sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
        >>> weights = torch.ones(6, requires_grad=True)  # of the training images: the hyper-parameters
        >>> def inner(tensors):
        ...     losses = cross_entropy(functional_call(network, tensors, images[:6]), labels[:6], reduction="none")
        ...     return (weights * losses).mean()
        >>> def outer(tensors):
        ...     return cross_entropy(functional_call(network, tensors, images[6:]), labels[6:])
        >>> meta_gradient([InnerStep(inner)] * 3, outer, SGDState.read(network, sgd), [weights]).gradients[0].shape
        torch.Size([6])

    Args:
        steps: the SGD steps, first to last; their losses read `hyper` through their closures.
        outer: the loss at the parameters that the steps reach.
        state: where the steps start.
        hyper: leaf tensors that require grad.
        mode: "keep" holds every step's graph until it is used (fastest). "recompute" runs each step again in reverse,
            with the same dropout masks and buffers, so the memory for activations does not grow with the number of
            steps. "unroll" leaves everything to autograd in one graph (the plain reference for tests).
        first_order: drop the Hessian terms ∂g/∂θ and keep ∂g/∂φ (our approximation; the paper has no such variant).
        processes: the processes that share a batch and hold the same parameters; default: this one alone. Each
            process computes its part of the batch's losses, and gets its part of the outer loss and of the gradient:
            sum these parts over the processes.

    Raises:
        ValueError: for an unknown mode, `first_order` with "unroll", or steps of which none uses `hyper`.
    """
    check_mode(mode, first_order)
    require(any(step.uses_hyper for step in steps), "steps", "at least one that uses hyper", Words("none"))
    device = next(iter(state.parameters.values())).device
    rng_at_start = get_rng_state(device)
    sums, sums_in_graph = (list, list) if processes is None else (processes.sums, processes.sums_in_graph)
    try:
        if mode == "unroll":
            return _unrolled(steps, outer, state, hyper, sums_in_graph)
        return _step_by_step(steps, outer, state, hyper, mode == "keep", first_order, sums)
    finally:
        set_rng_state(rng_at_start, device)


def check_mode(mode: str, first_order: bool) -> None:
    """Raise ValueError for an unknown mode, or one without a first-order form."""
    require(mode in get_args(Mode), "mode", f"one of {', '.join(get_args(Mode))}", mode)
    require(mode != "unroll" or not first_order, "mode", "keep or recompute with first_order", mode)


def _step_by_step(
    steps: Sequence[InnerStep],
    outer: Loss,
    state: SGDState,
    hyper: Sequence[Tensor],
    keep: bool,
    first_order: bool,
    sums: Sums,
) -> MetaGradient:
    """Run the steps forward, each from detached leaves, then pull the adjoint back through them in reverse."""
    device = next(iter(state.parameters.values())).device
    rules = state.rules
    twice = [  # is each step's gradient differentiated by hyper, by θ? the first step's θ does not depend on hyper
        (step.uses_hyper, i > 0 and not first_order) for i, step in enumerate(steps)
    ]
    visited = []
    for step, (by_hyper, by_theta) in zip(steps, twice, strict=True):
        start = (replace(state, velocity={}), get_rng_state(device))  # enough to run the step again
        graph = keep and (by_hyper or by_theta)
        leaves, gradients, buffers = _gradient(step.loss, state, graph)
        visited.append((leaves, gradients) if graph else start)
        summed = sums([gradient.detach() for gradient in gradients.values()])
        state = replace(state.step(dict(zip(gradients, summed, strict=True))), buffers=buffers)
        del summed
        if not graph:
            del leaves, gradients

    leaves = {name: value.detach().requires_grad_() for name, value in state.parameters.items()}
    outer_loss = outer({**leaves, **_clones(state.buffers)})
    slopes = torch.autograd.grad(outer_loss, [*leaves.values(), *hyper], allow_unused=True, materialize_grads=True)
    adjoint_theta = dict(zip(leaves, sums(slopes[: len(leaves)]), strict=True))
    adjoint_v: dict[str, Tensor | None] = dict.fromkeys(adjoint_theta)
    totals = list(slopes[len(leaves) :])
    del leaves, slopes, state, start

    for step, (by_hyper, by_theta) in zip(reversed(steps), reversed(twice), strict=True):
        record = visited.pop()
        signal, adjoint_theta, adjoint_v = _adjoint(adjoint_theta, adjoint_v, rules)
        if not (by_hyper or by_theta):
            continue
        if keep:
            leaves, gradients = record
        else:
            before, rng = record
            set_rng_state(rng, device)
            leaves, gradients, _ = _gradient(step.loss, before, True)
        reached = [name for name, gradient in gradients.items() if gradient.requires_grad]
        inputs = [*(hyper if by_hyper else ()), *(leaves.values() if by_theta else ())]
        if not reached:  # the gradient is constant
            continue
        slopes = torch.autograd.grad(
            [gradients[n] for n in reached], inputs, [signal[n] for n in reached], allow_unused=True
        )
        if by_hyper:
            totals = [t if s is None else t + s for t, s in zip(totals, slopes, strict=False)]
        if by_theta:
            for_theta = zip(leaves, slopes[len(slopes) - len(leaves) :], strict=True)
            for_theta = {name: slope for name, slope in for_theta if slope is not None}
            for name, slope in zip(for_theta, sums(list(for_theta.values())), strict=True):
                adjoint_theta[name] += slope
        del leaves, gradients, slopes, record
    return MetaGradient(outer_loss.detach(), totals)


def _unrolled(
    steps: Sequence[InnerStep], outer: Loss, state: SGDState, hyper: Sequence[Tensor], sums_in_graph: Sums
) -> MetaGradient:
    """The same gradient by autograd alone, through one graph of all steps."""
    state = replace(state, parameters={n: p.detach().requires_grad_() for n, p in state.parameters.items()})
    for step in steps:
        tensors = {**state.parameters, **_clones(state.buffers)}
        gradients = torch.autograd.grad(
            step.loss(tensors),
            list(state.parameters.values()),
            create_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        buffers = {name: tensors[name].detach() for name in state.buffers}
        totals = sums_in_graph(gradients)
        state = replace(state.step(dict(zip(state.parameters, totals, strict=True))), buffers=buffers)
    outer_loss = outer({**state.parameters, **_clones(state.buffers)})
    gradients = torch.autograd.grad(outer_loss, list(hyper), allow_unused=True, materialize_grads=True)
    return MetaGradient(outer_loss.detach(), list(gradients))


def _gradient(loss: Loss, state: SGDState, create_graph: bool) -> tuple[Tensors, Tensors, Tensors]:
    """The loss's gradient at detached copies of the parameters: these leaves, the gradients, and the buffers after it.

    A parameter that the loss does not reach has a zero gradient, not None: momentum and weight decay still move it.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in state.parameters.items()}
    tensors = {**leaves, **_clones(state.buffers)}
    gradients = torch.autograd.grad(
        loss(tensors), list(leaves.values()), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    buffers = {name: tensors[name].detach() for name in state.buffers}
    return leaves, dict(zip(leaves, gradients, strict=True)), buffers


def _clones(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name: value.clone() for name, value in tensors.items()}


def _adjoint(
    adjoint_theta: Mapping[str, Tensor], adjoint_v: Mapping[str, Tensor | None], rules: Mapping[str, SGDRule]
) -> tuple[Tensors, Tensors, Tensors]:
    """Pull the adjoints back through one SGD step, without the term (∂g/∂θ)ᵀs, which the caller adds; None is zero.

    Returns s = ∂L/∂g, ∂L/∂θ without that term, and ∂L/∂v. With Nesterov momentum θ' depends on d twice, once through
    v': then c' = c̄ - lr·μ·ā reaches v', s = c' - lr·ā and ∂L/∂v = μ·c'.
    """
    signal, theta, v = {}, {}, {}
    for name, a in adjoint_theta.items():
        rule, c = rules[name], adjoint_v[name]
        factor = -rule.lr * (rule.momentum if rule.nesterov else 1.0)
        reaching_v = factor * a if c is None else torch.add(c, a, alpha=factor)
        s = torch.add(reaching_v, a, alpha=-rule.lr) if rule.nesterov else reaching_v
        signal[name] = s
        theta[name] = torch.add(a, s, alpha=rule.weight_decay)  # a new tensor, which the caller adds to in place
        v[name] = rule.momentum * reaching_v
    return signal, theta, v
