"""The check that a model can be differentiated twice: it names the layer that can't, and leaves no trace."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

from mtanytime import backbones
from mtanytime.transfer.double_backward import check_double_backward


def pictures(*shape: int) -> Tensor:
    """Random images, the same on every run."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


class Once(torch.autograd.Function):
    """A square whose backward has no derivative."""

    @staticmethod
    def forward(ctx, x):
        """The square."""
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        """Its derivative."""
        return 2 * ctx.saved_tensors[0] * grad


class Square(nn.Module):
    """`Once` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """The square."""
        return Once.apply(x)


def test_fused_attention_is_named_and_the_remedy_works() -> None:
    """A vision transformer's attention kernel has no second derivative; the remedy in the message must work."""
    model = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )
    x = pictures(2, 3, 32, 32)
    named = (
        r"'encoder\.layers\.encoder_layer_0\.self_attention' \(MultiheadAttention\): .*attention.*SDPBackend\.MATH\)`"
    )
    with pytest.raises(RuntimeError, match=named):
        check_double_backward(model, x)
    with sdpa_kernel(SDPBackend.MATH):
        check_double_backward(model, x)


def test_innermost_layer_is_named() -> None:
    """The error names the layer to replace, not the block around it, by its path inside a Normalized."""
    inner = nn.Sequential(nn.BatchNorm2d(4), Square(), nn.ReLU(inplace=True))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), inner, nn.Flatten(), nn.Linear(144, 5))
    model = backbones.Normalized(network, (0.5,) * 3, (0.2,) * 3)
    reason = r"because of '2\.1' \(Square\): trying to differentiate twice a function that was marked with @once_diff"
    with pytest.raises(RuntimeError, match=reason):
        check_double_backward(model, pictures(2, 3, 8, 8))


def test_silent_loss_of_the_second_derivative_is_found() -> None:
    """A custom function that isn't marked raises nothing: torch would take its gradient for a constant."""

    class Kernel(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, grad):
            return (2 * ctx.saved_tensors[0] * grad).detach()

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(Kernel.apply(self.inner(x)))

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), Block())
    with pytest.raises(
        RuntimeError, match=r"because of '2' \(Block\): KernelBackward gives a gradient without a graph"
    ):
        check_double_backward(model, pictures(2, 3, 8, 8))


def test_a_function_outside_any_layer_is_blamed_on_the_forward_pass() -> None:
    """If a module calls the function itself, that module is the innermost to name; here it is the whole network."""

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return Once.apply(super().forward(x))

    with pytest.raises(RuntimeError, match="Net can't be differentiated twice because of its own forward pass"):
        check_double_backward(Net(nn.Conv2d(3, 4, 3)), pictures(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match=r"because of '1' \(Net\)"):
        check_double_backward(nn.Sequential(nn.Conv2d(3, 3, 3), Net(nn.Conv2d(3, 4, 3))), pictures(2, 3, 8, 8))


def test_hard_sigmoid_of_a_known_network_is_found() -> None:
    """A common network, torchvision's MobileNetV3, can't be a target either, and is refused before training."""
    with pytest.raises(RuntimeError, match=r"'features\.1\.block\.1\.scale_activation' \(Hardsigmoid\)"):
        check_double_backward(torchvision.models.mobilenet_v3_small(), pictures(2, 3, 32, 32))


def test_frozen_part_may_be_anything() -> None:
    """A layer that the gradient does not reach is never differentiated, so it may be anything."""
    frozen = nn.Sequential(nn.Conv2d(3, 4, 3), Square()).requires_grad_(False)
    check_double_backward(nn.Sequential(frozen, nn.Conv2d(4, 4, 3)), pictures(2, 3, 8, 8))
    check_double_backward(frozen, pictures(2, 3, 8, 8))


def test_several_outputs_are_all_checked() -> None:
    """An anytime network returns a list of logits, and each of them is checked."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.thin, self.wide, self.square = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), Square()

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.thin(x), self.square(self.wide(x))]

    with pytest.raises(RuntimeError, match=r"because of 'square' \(Square\)"):
        check_double_backward(Net(), pictures(2, 3, 8, 8))


@pytest.mark.parametrize("good", [True, False])
def test_no_trace_is_left(good: bool) -> None:
    """The check runs in train mode just before training, so it must change nothing, whether it passes or fails."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Identity() if good else Square()]
    model = nn.Sequential(*layers, nn.ReLU(inplace=True))
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    versions = [value._version for value in model.state_dict().values()]
    state = torch.get_rng_state()
    with torch.no_grad():  # a caller's no_grad must not hide an obstacle
        if good:
            check_double_backward(model, pictures(2, 3, 8, 8))
        else:
            with pytest.raises(RuntimeError, match=r"'3' \(Square\)"):
                check_double_backward(model, pictures(2, 3, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [value._version for value in model.state_dict().values()] == versions
    assert all(value.grad is None for value in model.parameters())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("make", [backbones.resnet, backbones.vgg9, torchvision.models.resnet18])
def test_usual_targets_pass(make: Callable[..., nn.Module]) -> None:
    """The papers' targets and torchvision's ResNet must not be refused."""
    arguments = {"resnet": (8, 5, 4), "vgg9": (5, 4)}.get(make.__name__, ())
    check_double_backward(make(*arguments), pictures(2, 3, 32, 32))
