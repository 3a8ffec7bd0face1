"""Functions with a second derivative of our own: torch's values, and derivatives as finite differences give them."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtanytime.transfer.second_order import second_order


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Random values in float64, some of them beyond ± 3."""
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(causal: bool) -> Callable[[Tensor], Tensor]:
    """Self-attention with two heads."""

    def attend(x: Tensor) -> Tensor:
        q = x.unflatten(-1, (2, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, q.roll(1, -1), q.roll(2, -1), is_causal=causal)

    return attend


def multi_head() -> Callable[[Tensor], Tensor]:
    """torch's module, which calls fused attention where its weights are not wanted."""
    module = nn.MultiheadAttention(4, 2, batch_first=True).double()
    return lambda x: module(x, x, x, need_weights=False)[0]


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "hard-sigmoid": F.hardsigmoid,
    "hard-sigmoid in place": lambda x: F.hardsigmoid(1 * x, inplace=True),
    "hard-swish": F.hardswish,
    "hard-swish in place": lambda x: F.hardswish(1 * x, inplace=True),
    "attention": attention(causal=False),
    "causal attention": attention(causal=True),
    "multi-head attention": multi_head(),
    "normalize": lambda x: F.normalize(x, dim=2),
    "normalize by the 3-norm": lambda x: F.normalize(x, p=3.0, dim=-1),
    "cosine similarity": lambda x: F.cosine_similarity(x, x.roll(1, 2), dim=2),
    "norm of all": torch.norm,
    "norm": lambda x: x.norm(dim=1),
    "1-norm kept": lambda x: x.norm(1, dim=(0, 2), keepdim=True),
    "linalg norm": lambda x: torch.linalg.norm(x, dim=-1),
    "linalg matrix norm": lambda x: torch.linalg.norm(x, "fro", dim=(1, 2)),
    "vector norm": lambda x: torch.linalg.vector_norm(x, dim=(1, 2)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_derivatives(name: str) -> None:
    """Values and first derivatives are torch's; the second ones are those of finite differences."""
    function, x = FUNCTIONS[name], drawn(2, 3, 4).requires_grad_()

    def ours(x: Tensor) -> Tensor:
        with second_order(fast=False):
            return function(x)

    torch.testing.assert_close(ours(x), function(x), rtol=1e-14, atol=1e-15)
    gradients = [torch.autograd.grad(f(x).sin().sum(), x)[0] for f in (ours, function)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-13)  # torch rounds hard-sigmoid's slope to float32
    assert torch.autograd.gradgradcheck(ours, x)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "nor" in name or "cos" in name])
def test_zero_vectors(name: str) -> None:
    """At zero, where torch's second derivative is NaN, all derivatives are finite and the value stays torch's."""
    function, x = FUNCTIONS[name], torch.zeros(2, 3, 4, dtype=torch.float64, requires_grad=True)
    with second_order(fast=False):
        output = function(x)
    assert torch.equal(output, function(x))
    gradient = torch.autograd.grad((output + 1).square().sum(), x, create_graph=True)[0]
    assert gradient.isfinite().all()
    if gradient.requires_grad:
        assert torch.autograd.grad(gradient.square().sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_hard_sigmoid_bit_for_bit(kind: torch.dtype) -> None:
    """The forward pass of MobileNetV3 is the one without the block, in every bit."""
    x = drawn(1000).to(kind)
    with second_order():
        output = F.hardsigmoid(x)
    assert torch.equal(output, F.hardsigmoid(x))


@pytest.mark.parametrize(("shapes", "dim"), [(((2, 4), (2, 1)), 1), (((2, 1, 4), (3, 4)), 2), (((4,), (3, 4)), -1)])
def test_cosine_similarity_of_shapes_that_are_broadcast(shapes: tuple[tuple[int, ...], ...], dim: int) -> None:
    """Such as embeddings and prototypes."""
    one, other = drawn(*shapes[0]), drawn(*shapes[1], seed=1)
    expected = F.cosine_similarity(one, other, dim=dim)
    with second_order():
        torch.testing.assert_close(F.cosine_similarity(one, other, dim=dim), expected)
