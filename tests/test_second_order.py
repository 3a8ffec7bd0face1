"""Convolution and batch norm differentiated twice, against torch's own second derivatives and finite differences."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mtanytime.transfer.second_order import second_order

CONVOLUTIONS = {
    "plain": ((4, 2, 3, 3), {"padding": 1}),
    "no bias": ((4, 2, 3, 3), {"padding": (0, 1), "bias": False}),
    "strided": ((4, 2, 3, 2), {"stride": (2, 1), "padding": 1}),
    "dilated": ((4, 2, 2, 2), {"dilation": 2}),
    "groups": ((4, 1, 3, 3), {"padding": 1, "groups": 2}),
    "padding by a word": ((4, 2, 3, 3), {"padding": "same"}),
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """A random leaf in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def layer(name: str) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """A layer as a function of its maps and parameters, and values for them."""
    if name == "batch norm":
        return lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (drawn(3, 2, 4, 5), drawn(2), drawn(2, seed=1))
    if name == "batch norm of vectors":
        return lambda x, w, b: F.batch_norm(x, None, None, w, b, True), (drawn(5, 3), drawn(3), drawn(3, seed=1))
    shape, options = CONVOLUTIONS[name]
    options = dict(options)
    maps, weight = drawn(2, 2, 5, 5), drawn(*shape, seed=1)
    if not options.pop("bias", True):
        return lambda x, w: F.conv2d(x, w, **options), (maps, weight)
    return lambda x, w, b: F.conv2d(x, w, b, **options), (maps, weight, drawn(shape[0], seed=2))


LAYERS = ["batch norm", "batch norm of vectors", *CONVOLUTIONS]


def twice(function: Callable[..., Tensor], values: tuple[Tensor, ...]) -> list[Tensor]:
    """Output, first and second derivatives, each of a nonlinear scalar function of the previous ones."""
    output = function(*values)
    first = torch.autograd.grad(output.sin().sum(), values, create_graph=True)
    return [output, *first, *torch.autograd.grad(sum(g.sin().sum() for g in first), values)]


@pytest.mark.parametrize("name", LAYERS)
def test_equals_torchs_own(name: str) -> None:
    """The derivatives are torch's own; only their duration may differ."""
    function, values = layer(name)
    expected = twice(function, values)
    with second_order():
        found = twice(function, values)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_finite_differences(name: str) -> None:
    """The formulas against finite differences, independent of torch's second derivative."""
    function, values = layer(name)

    def quick(*inputs: Tensor) -> Tensor:
        with second_order():
            return function(*inputs)

    assert torch.autograd.gradgradcheck(quick, values)


@pytest.mark.parametrize("name", ["batch norm", "plain", "groups"])
def test_what_the_incoming_gradient_depends_on(name: str) -> None:
    """With for_parameters=False, the second derivative still reaches what a layer's incoming gradient depends on."""
    function, values = layer(name)
    scale = drawn(1, seed=3)
    wanted = []
    for mode in (lambda: second_order(False), lambda: second_order(True)):
        with mode():
            output = function(*values)
        first = torch.autograd.grad((scale * output.square()).sum(), values, create_graph=True)
        wanted.append(torch.autograd.grad(sum(g.sin().sum() for g in first), scale)[0])
    torch.testing.assert_close(*wanted)


def second_derivative(precision: torch.dtype, block: Callable[[], AbstractContextManager[None]]) -> Tensor:
    """The product of a small network's Hessian with a fixed vector; the forward pass runs in this precision."""
    torch.manual_seed(0)
    first, second = torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.Conv2d(8, 16, 3, stride=2)
    norms = torch.nn.BatchNorm2d(8), torch.nn.BatchNorm2d(16)
    network = torch.nn.Sequential(first, norms[0], torch.nn.ReLU(), second, norms[1], torch.nn.ReLU())
    images, weights = torch.randn(32, 3, 9, 9), [p for p in network.parameters() if p.ndim > 1]
    with block(), torch.autocast("cpu", precision, enabled=precision == torch.bfloat16):
        maps = network(images)
        if block is second_order:
            assert "_BatchNorm" in network[:2](images).grad_fn.name()
            assert "_Convolution" in first(images).grad_fn.name()
    loss = torch.nn.functional.cross_entropy(maps.float().mean((2, 3)), torch.arange(32) % 16)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    return torch.cat(
        [h.flatten() for h in torch.autograd.grad(slopes, weights, [torch.randn_like(w) for w in weights])]
    )


def test_mixed_precision() -> None:
    """In bfloat16 autocast the fast layers are used too, and are no further from float32 than torch's own."""
    exact = second_derivative(torch.float32, nullcontext)
    ours, theirs = (second_derivative(torch.bfloat16, block) for block in (second_order, nullcontext))
    error = [((found - exact).norm() / exact.norm()).item() for found in (ours, theirs)]
    assert 0 < error[0] < 1.1 * error[1] < 0.2


def test_running_statistics() -> None:
    """A batch norm in the block updates its buffers as torch's does, in train mode only."""
    ours, theirs = torch.nn.BatchNorm2d(3), torch.nn.BatchNorm2d(3)
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    for training in (True, False):
        with second_order():
            output = ours.train(training)(images)
        torch.testing.assert_close(output, theirs.train(training)(images))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), theirs.buffers(), strict=True))


@pytest.mark.parametrize("name", ["batch norm", "plain"])
def test_a_third_time_is_refused(name: str) -> None:
    """A third derivative, which the formulas do not have, is an error, not a wrong number."""
    function, values = layer(name)
    with second_order():
        output = function(*values)
    first = torch.autograd.grad(output.sin().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="the layers of second_order have no third derivative"):
        torch.autograd.grad(first[1].sin().sum(), values[0], create_graph=True)


def test_torchs_own_outside_the_block() -> None:
    """Layers called before or after the block are torch's."""
    function, values = layer("plain")
    with second_order():
        assert "_Convolution" in function(*values).grad_fn.name()
    assert function(*values).grad_fn.name() == "ConvolutionBackward0"


def test_what_torch_refuses() -> None:
    """A batch norm of the wrong size is torch's error, in the block as outside, not a read out of bounds."""
    with second_order(), pytest.raises(RuntimeError, match="running_mean should contain 5 elements not 3"):
        torch.nn.BatchNorm2d(3)(torch.randn(4, 5, 2, 2))


def test_frozen_parameters() -> None:
    """Frozen parts get no gradient, and the others get torch's."""
    for name in ("batch norm", "plain"):
        function, (maps, weight, bias) = layer(name)
        values = (maps, weight.detach(), bias)
        leaves = (maps, bias)
        found = []
        for block in (second_order, nullcontext):
            with block():
                output = function(*values)
            first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
            found.append([*first, *torch.autograd.grad(sum(g.sin().sum() for g in first), leaves)])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs)
