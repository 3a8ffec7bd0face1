"""Replacements for functions whose second derivative torch lacks or computes as NaN; their values are the same.

torch has no second derivative of hard-sigmoid (MobileNetV3) or of fused attention (transformers). That of a vector's
norm is NaN at zero, although its subgradient there is zero; Swin V2 normalizes the zero queries and keys of padded
tokens. Here it is zero as well, and attention runs in torch's plain kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn.attention import SDPBackend, sdpa_kernel

Values = Float[Tensor, "*shape"]


class _HardSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Values) -> Values:
        ctx.save_for_backward((x > -3) & (x < 3))
        return F.hardsigmoid(x)

    @staticmethod
    def backward(ctx: FunctionCtx, g: Values) -> Values:
        (linear,) = ctx.saved_tensors
        return torch.where(linear, g / 6, 0.0)


def _hardsigmoid(input: Values, inplace: bool = False) -> Values:  # named as in torch, also below
    output = _HardSigmoid.apply(input)
    return input.copy_(output) if inplace else output


def _attention(*args: Any, **kwargs: Any) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(*args, **kwargs)


def _multi_head_attention(*args: Any, **kwargs: Any) -> Any:
    with sdpa_kernel(SDPBackend.MATH):
        return F.multi_head_attention_forward(*args, **kwargs)


def _at_zero(input: Values, dim: int | tuple[int, ...] | None) -> Tensor:
    """Where the vectors along `dim` are zero, (…, 1, …)."""
    return (input == 0).all(dim=tuple(range(input.ndim)) if dim is None else dim, keepdim=True)


def _vector_norm(
    input: Values, ord: float = 2, dim: int | tuple[int, ...] | None = None, keepdim: bool = False, **kwargs: Any
) -> Tensor:
    if not input.is_floating_point() or input.ndim == 0 or kwargs.get("out") is not None:
        return torch.linalg.vector_norm(input, ord, dim, keepdim, **kwargs)
    zero = _at_zero(input, dim)
    norm = torch.linalg.vector_norm(input.masked_fill(zero, 1), ord, dim, True, **kwargs).masked_fill(zero, 0)
    return norm if keepdim else norm.squeeze() if dim is None else norm.squeeze(dim)


def _norm(
    input: Values,
    p: float | str | None = "fro",
    dim: int | tuple[int, ...] | None = None,
    keepdim: bool = False,
    **kwargs: Any,
) -> Tensor:
    if p in ("nuc", None) or kwargs.get("out") is not None:
        return torch.norm(input, p, dim, keepdim, **kwargs)
    kwargs = {name: value for name, value in kwargs.items() if value is not None}
    return _vector_norm(input, 2 if p == "fro" else p, dim, keepdim, **kwargs)


def _linalg_norm(
    input: Values, ord: float | str | None = None, dim: int | tuple[int, ...] | None = None, *args: Any, **kwargs: Any
) -> Tensor:
    if ord in (None, "fro") or (not isinstance(ord, str) and (isinstance(dim, int) or input.ndim == 1)):
        return _vector_norm(input, 2 if ord in (None, "fro") else ord, dim, *args, **kwargs)
    return torch.linalg.norm(input, ord, dim, *args, **kwargs)


def _normalize(input: Values, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None) -> Values:
    if out is not None:
        return F.normalize(input, p, dim, eps, out)
    return input / _vector_norm(input, p, dim, True).clamp_min(eps).expand_as(input)


def _cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    x1, x2 = torch.broadcast_tensors(x1, x2)
    return (_normalize(x1, 2, dim, eps) * _normalize(x2, 2, dim, eps)).sum(dim)


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    F.normalize: _normalize,
    F.cosine_similarity: _cosine_similarity,
    torch.norm: _norm,
    Tensor.norm: _norm,
    torch.linalg.norm: _linalg_norm,
    torch.linalg.vector_norm: _vector_norm,
}
