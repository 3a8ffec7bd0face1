"""Convolution and batch norm with a fast second derivative.

torch's own second derivatives are general, and slow. That of batch norm takes dozens of passes over the maps. That of
convolution computes the weight's part with batch and channels swapped, at half the speed of a weight gradient. On a
CPU this costs a third of the time of an exact meta-gradient. The second derivatives here use only torch's fused first
derivatives and give the same numbers.

*Convolution.* With ḡ = ∂L/∂y, the first derivative is ∂L/∂x = W ⋆ᵀ ḡ, ∂L/∂W = x ⋆ ḡ and ∂L/∂bias = Σ ḡ, linear in ḡ.
For incoming gradients a, A, z of these three, the second derivative is

    for ḡ: conv(a, W) + conv(x, A) + z,   for x: ∂L/∂x with A in place of W,   for W: ∂L/∂W with a in place of x

*Batch norm.* With x̂ the normalized map, σ = 1/√(var + eps), means over batch and space, and the projection
P(u) = u - mean(u) - x̂·mean(u·x̂), the first derivative is

    ∂L/∂x = γσ·P(ḡ),   ∂L/∂γ = Σ x̂·ḡ,   ∂L/∂β = Σ ḡ

For incoming gradients a, b, c of these three and with f = Σ a·γσ·P(ḡ), the second derivative is

    for ḡ: γσ·P(a) + b·x̂ + c,   for γ: f/γ,   for x: σ·P(u) - σ·x̂·f/N,   u = b·ḡ - γσ·(a·mean(ḡ·x̂) + ḡ·mean(a·x̂))

so each P is one call of torch's first derivative.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from mtanytime.training.shared_batch_norm import batch_norms_are_shared
from mtanytime.transfer.smooth import REPLACEMENTS

_for_parameters: ContextVar[bool] = ContextVar("for_parameters", default=True)
Maps = Float[Tensor, "batch channel *space"]
Channels = Float[Tensor, " channel"]
Images = Float[Tensor, "batch _ _ _"]
Kernels = Float[Tensor, "output input height width"]


@contextmanager
def second_order(for_parameters: bool = True, *, fast: bool = True) -> Iterator[None]:
    """Context in which 2-d convolutions, and batch norms in train mode, get the fast second derivative.

    They have no third derivative. Batch norms without γ and β or over several processes, convolutions with a named
    padding, and calls that torch refuses remain torch's own. Functions that torch cannot differentiate twice get a
    second derivative, too (see `smooth`).

    Example:
        >>> from mtanytime.transfer.second_order import second_order
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
        >>> with second_order():  # the forward pass is enough
        ...     loss = network(torch.rand(4, 3, 8, 8)).pow(3).mean()
        >>> gradients = torch.autograd.grad(loss, list(network.parameters()), create_graph=True)
        >>> sum(gradient.square().sum() for gradient in gradients).backward()  # a gradient penalty

    Args:
        for_parameters: if False, only a layer's incoming gradient gets a second derivative, not its maps and
            parameters. This is faster, and enough if the result does not depend on them through this layer.
        fast: if False, convolutions and batch norms remain torch's own.

    Raises:
        RuntimeError: in a backward pass that needs a third derivative.
    """
    before = _for_parameters.set(for_parameters)
    try:
        with _Replaced(fast):
            yield
    finally:
        _for_parameters.reset(before)


def for_parameters() -> bool:
    """The setting of the surrounding `second_order` block; True outside one."""
    return _for_parameters.get()


def refuse_a_third_derivative() -> None:
    """Raise RuntimeError if called in a backward pass that is itself recorded for differentiation.

    For the backward of a first derivative.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the layers of second_order have no third derivative; use torch's own, outside of the second_order block"
        )


class _Replaced(TorchFunctionMode):
    """Calls our batch norm and convolution in place of torch's, if `fast`, and the functions of `smooth`."""

    def __init__(self, fast: bool) -> None:
        super().__init__()
        self.fast = fast

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.fast and func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        if self.fast and func is F.conv2d:
            return self._conv2d(*args, **(kwargs or {}))
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,  # named as in F.batch_norm, which is called with keywords
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        own = (
            not training
            or batch_norms_are_shared()
            or input.ndim < 2
            or input.numel() <= input.shape[1]
            or any(value is None or value.shape != input.shape[1:2] for value in (weight, bias))
            or any(value is not None and value.shape != input.shape[1:2] for value in (running_mean, running_var))
            or not _same_precision(input, weight)
        )
        if own:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        settings = (momentum, eps, for_parameters())
        return _BatchNorm.apply(input, weight, bias, running_mean, running_var, settings)

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        device = input.device.type
        if torch.is_autocast_enabled(device) and torch.float64 not in (input.dtype, weight.dtype):
            dtype = torch.get_autocast_dtype(device)  # as autocast casts the arguments of torch's own
            input, weight, bias = (None if value is None else value.to(dtype) for value in (input, weight, bias))
        if isinstance(padding, str) or input.ndim != 4 or input.dtype != weight.dtype:
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        geometry = (*(list(_pair(value)) for value in (stride, padding, dilation)), False, [0, 0], groups)
        return _Convolution.apply(input, weight, bias, geometry, for_parameters())


def _same_precision(maps: Maps, gamma: Channels) -> bool:
    """Whether torch's batch norm takes both: of one type or, as in autocast, maps in 16 bits with γ in float32."""
    return maps.dtype == gamma.dtype or (maps.dtype.itemsize == 2 and gamma.dtype == torch.float32)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Images,
        weight: Kernels,
        bias: Channels | None,
        geometry: tuple[Any, ...],
        for_parameters: bool,
    ) -> Images:
        ctx.geometry, ctx.for_parameters, ctx.with_bias = geometry, for_parameters, bias is not None
        ctx.save_for_backward(x, weight)
        return torch.convolution(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Images) -> tuple[Tensor | None, ...]:
        needed = [*ctx.needs_input_grad[:2], ctx.with_bias and ctx.needs_input_grad[2]]
        found = _ConvolutionBackward.apply(g, *ctx.saved_tensors, ctx.geometry, ctx.for_parameters, needed)
        return *found, None, None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        g: Images,
        x: Images,
        weight: Kernels,
        geometry: tuple[Any, ...],
        for_parameters: bool,
        needed: list[bool],
    ) -> tuple[Images | None, Kernels | None, Channels | None]:
        ctx.geometry, ctx.for_parameters, ctx.shape = geometry, for_parameters, g.shape
        ctx.save_for_backward(g if for_parameters else None, x, weight)
        ctx.set_materialize_grads(False)
        return _convolution_backward(g, x, weight, geometry, needed)

    @staticmethod
    def backward(
        ctx: FunctionCtx, a: Images | None, big_a: Kernels | None, z: Channels | None
    ) -> tuple[Images | None, Images | None, Kernels | None, None, None, None]:
        refuse_a_third_derivative()
        g, x, weight = ctx.saved_tensors
        geometry = ctx.geometry
        for_g = for_x = for_weight = None
        if big_a is not None:
            for_g = torch.convolution(x, big_a, z, *geometry)
        if a is not None:
            along = torch.convolution(a, weight, None if big_a is not None else z, *geometry)
            for_g = along if for_g is None else for_g.add_(along)
        if for_g is None and z is not None:
            for_g = z.view(1, -1, 1, 1).expand(ctx.shape)
        if ctx.for_parameters and big_a is not None and ctx.needs_input_grad[1]:
            for_x = _convolution_backward(g, x, big_a, geometry, [True, False, False])[0]
        if ctx.for_parameters and a is not None and ctx.needs_input_grad[2]:
            for_weight = _convolution_backward(g, a, weight, geometry, [False, True, False])[1]
        return for_g, for_x, for_weight, None, None, None


def _convolution_backward(
    g: Images, x: Images, weight: Kernels, geometry: tuple[Any, ...], needed: list[bool]
) -> tuple[Images | None, Kernels | None, Channels | None]:
    return torch.ops.aten.convolution_backward(g, x, weight, [weight.shape[0]], *geometry, needed)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Maps,
        gamma: Channels,
        beta: Channels,
        running_mean: Channels | None,
        running_var: Channels | None,
        settings: tuple[float, float, bool],
    ) -> Maps:
        momentum, ctx.eps, ctx.for_parameters = settings
        y, mean, sigma = torch.native_batch_norm(x, gamma, beta, running_mean, running_var, True, momentum, ctx.eps)
        ctx.save_for_backward(x, gamma, mean, sigma)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, g: Maps) -> tuple[Tensor | None, ...]:
        found = _BatchNormBackward.apply(g, *ctx.saved_tensors, ctx.eps, ctx.for_parameters)
        return *found, None, None, None


class _BatchNormBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        g: Maps,
        x: Maps,
        gamma: Channels,
        mean: Channels,
        sigma: Channels,
        eps: float,
        for_parameters: bool,
    ) -> tuple[Maps, Channels, Channels]:
        ctx.eps, ctx.for_parameters = eps, for_parameters
        found = _first_derivative(g, x, gamma, mean, sigma, eps)
        ctx.save_for_backward(g if for_parameters else None, x, gamma, mean, sigma, *found[1:])
        ctx.set_materialize_grads(False)
        return found

    @staticmethod
    def backward(
        ctx: FunctionCtx, a: Maps | None, b: Channels | None, c: Channels | None
    ) -> tuple[Maps | None, Maps | None, Channels | None, None, None, None, None]:
        refuse_a_third_derivative()
        g, x, gamma, mean, sigma, g_xhat, g_sum = ctx.saved_tensors
        b = torch.zeros_like(gamma) if b is None else b
        c = torch.zeros_like(gamma) if c is None else c
        for_g = F.batch_norm(x, mean, sigma.pow(-2) - ctx.eps, b, c, eps=ctx.eps)  # b·x̂ + c
        if a is None:
            f, a_xhat = torch.zeros_like(gamma), torch.zeros_like(gamma)
        else:
            along, a_xhat, a_sum = _first_derivative(a, x, gamma, mean, sigma, ctx.eps)
            for_g += along
        if not ctx.for_parameters:
            return for_g, None, None, None, None, None, None
        n = x.numel() / x.shape[1]

        def per_channel(values: Channels) -> Tensor:
            return values.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))

        if a is None:
            u = g * per_channel(b)
        else:
            products = torch.linalg.vecdot(a.flatten(2), g.flatten(2)).sum(0) if a.ndim > 2 else (a * g).sum(0)
            f_over_gamma = sigma * (products - (a_sum * g_sum + a_xhat * g_xhat) / n)
            f = gamma * f_over_gamma
            scale = gamma * sigma / n
            u = g * per_channel(b - scale * a_xhat)
            u.addcmul_(a, per_channel(scale * g_xhat), value=-1)
        for_x = _first_derivative(u, x, torch.ones_like(gamma), mean, sigma, ctx.eps)[0]
        slope = sigma * sigma * f / n  # of x in σ·x̂·f/N
        for_x.addcmul_(x, per_channel(slope), value=-1).add_(per_channel(slope * mean))
        return for_g, for_x, None if a is None else f_over_gamma, None, None, None, None


def _first_derivative(
    g: Maps, x: Maps, gamma: Channels, mean: Channels, sigma: Channels, eps: float
) -> tuple[Maps, Channels, Channels]:
    """γσ·P(g), Σ g·x̂ and Σ g."""
    return torch.ops.aten.native_batch_norm_backward(
        g, x, gamma, None, None, mean, sigma, True, eps, [True, True, True]
    )
