"""Multiply-adds of every kind of layer, against formulas by hand; what is not counted is named."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from mtanytime.measure.costs import UncountedWarning, macs
from mtanytime.measure.operators import counting

H = 32  # hidden units
RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}  # matrices of a step, each from input and state


def count(module: nn.Module, *inputs: Tensor) -> tuple[int, list[str]]:
    """Multiply-adds of one call, and what they lack."""
    with torch.no_grad(), counting() as counted:
        module(*inputs)
    return counted.macs, counted.uncounted


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers(kind: str) -> None:
    """Each of 16 steps multiplies a vector of 48 inputs and of 32 states by the gates' matrices."""
    layer = getattr(nn, kind)(48, H, batch_first=True)
    assert count(layer, torch.rand(1, 16, 48)) == (16 * RECURRENT[kind] * H * (48 + H), [])


@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_cells(kind: str) -> None:
    """One step."""
    assert count(getattr(nn, f"{kind}Cell")(48, H), torch.rand(1, 48)) == (RECURRENT[kind] * H * (48 + H), [])


def test_attention() -> None:
    """Projections of query, key, value and output, and the two products of 10 tokens with 10."""
    layer = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    x = torch.rand(1, 10, 16)
    assert count(layer, x, x, x) == (4 * 10 * 16 * 16 + 2 * 10 * 10 * 16, [])
    layer = nn.TransformerEncoderLayer(16, 4, 64, batch_first=True).eval()
    assert count(layer, x) == (4 * 10 * 16 * 16 + 2 * 10 * 10 * 16 + 2 * 10 * 16 * 64, [])


def test_bilinear() -> None:
    """Every output is a bilinear form."""
    assert count(nn.Bilinear(5, 6, 7), torch.rand(2, 5), torch.rand(2, 6)) == (2 * 5 * 6 * 7, [])


def test_deformable_convolution() -> None:
    """As the ordinary convolution of the same shape."""
    layer = torchvision.ops.DeformConv2d(4, 8, 3, padding=1)
    assert count(layer, torch.rand(1, 4, 6, 6), torch.rand(1, 18, 6, 6)) == (6 * 6 * 8 * 4 * 9, [])


class Function(nn.Module):
    """A module of a function."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        """The function's value."""
        return self.function(*inputs)


@pytest.mark.parametrize(
    ("function", "shapes", "expected"),
    [
        (torch.mv, [(5, 7), (7,)], 35),
        (torch.addmv, [(5,), (5, 7), (7,)], 35),
        (torch.dot, [(7,), (7,)], 7),
        (torch.addr, [(5, 7), (5,), (7,)], 35),
        (lambda a, b: torch.einsum("bij,bjk->bik", a, b), [(2, 3, 4), (2, 4, 5)], 2 * 3 * 4 * 5),
        (lambda x, w: nn.functional.conv1d(x, w, groups=2), [(1, 4, 9), (6, 2, 3)], 7 * 6 * 2 * 3),
        (lambda x, w: nn.functional.conv_transpose2d(x, w), [(1, 2, 4, 4), (2, 3, 2, 2)], 16 * 2 * 3 * 4),
    ],
)
def test_functions(function, shapes: list[tuple[int, ...]], expected: int) -> None:
    """Matrix–vector products are counted as matrix products are."""
    assert count(Function(function), *(torch.rand(shape) for shape in shapes)) == (expected, [])


def test_convolutions_and_linear_layers() -> None:
    """The usual ones; batch norm, activations and pooling count nothing and are not reported."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.append(nn.Linear(4, 5)).eval()
    assert count(network, torch.rand(1, 3, 8, 8)) == (36 * 4 * 27 + 20, [])


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_gradients_of_grouped_convolutions(groups: int) -> None:
    """Those of the maps and of the weights each multiply as often as the convolution: 8/groups inputs per output."""
    layer, maps = nn.Conv2d(8, 8, 3, padding=1, groups=groups), torch.rand(2, 8, 5, 6, requires_grad=True)
    once = 2 * 5 * 6 * 9 * 8 * (8 // groups)
    with counting() as forward:
        out = layer(maps)
    with counting() as backward:
        out.sum().backward()
    assert (forward.macs, backward.macs) == (once, 2 * once)


def test_what_is_not_counted_is_named() -> None:
    """Distances, Fourier transforms, and operators of other libraries."""
    assert count(Function(torch.cdist), torch.rand(40, 3), torch.rand(50, 3))[1] in ([], ["aten::_cdist_forward"])
    assert count(Function(torch.fft.rfft2), torch.rand(8, 8))[1] == ["aten::_fft_r2c"]

    @torch.library.custom_op("mtanytimetest::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x @ x

    assert count(Function(double), torch.rand(4, 4))[1] == ["mtanytimetest::double"]


def test_macs_of_a_network_with_a_recurrent_layer() -> None:
    """Rows of pixels read by an LSTM; the heads of an anytime network are still told apart (see test_costs)."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.fc = nn.LSTM(48, H, batch_first=True), nn.Linear(H, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.rnn(images.permute(0, 2, 1, 3).flatten(2))[0][:, -1])

    assert macs(Rows(), (3, 16, 16)) == 163_936
    with pytest.warns(UncountedWarning, match="Function: the multiply-adds lack those of aten::_fft_r2c"):
        assert macs(Function(torch.fft.rfft2), (3, 16, 16)) == 0
