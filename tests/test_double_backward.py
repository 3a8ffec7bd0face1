"""The check that a model can be differentiated twice: it names the layer that can't, and leaves no trace."""

import copy
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torchvision.models.swin_transformer import SwinTransformerBlockV2

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


@pytest.mark.parametrize(
    "make",
    [
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, hidden_dim=32, mlp_dim=64),
        lambda: torchvision.models.mobilenet_v3_small(num_classes=3),
        lambda: torchvision.models.SwinTransformer(
            [4, 4],
            12,
            [2],
            [2],
            [4, 4],
            num_classes=3,
            block=SwinTransformerBlockV2,
        ),
    ],
    ids=["attention", "hard-sigmoid", "norms of zero vectors"],
)
def test_what_torch_cannot_differentiate_twice_passes(make: Callable[[], nn.Module]) -> None:
    """Families whose layers torch gives no second derivative, or NaN, are no longer refused."""
    torch.manual_seed(0)
    check_double_backward(make(), pictures(2, 3, 32, 32))


def test_second_derivative_that_is_not_finite() -> None:
    """A norm's second derivative at zero is NaN: where it remains, it is refused before training."""

    class Distance(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.ops.aten.linalg_vector_norm(x - x.detach(), 2, [1], True)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Distance(), nn.Flatten(), nn.Linear(144, 5))
    with pytest.raises(RuntimeError, match=r"because of '1' \(Distance\): its second derivative is not finite"):
        check_double_backward(model, pictures(2, 3, 8, 8))


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
