"""Blocks of sliced networks against torchvision's, and the shapes that they are built from."""

import pytest
import torch
from torch import nn
from torchvision.models.mobilenetv2 import InvertedResidual as ReferenceInverted
from torchvision.models.resnet import BasicBlock as ReferenceBasic
from torchvision.ops import SqueezeExcitation as ReferenceSqueeze
from typechecker import unchecked

from mtanytime.anytime import SlicedResNet, SliceShape, doubling_widths
from mtanytime.anytime.blocks import BasicBlock, InvertedResidual, SqueezeExcitation, skip_connection


def copy_tensors(ours: nn.Module, reference: nn.Module) -> None:
    """Give a block of one slice the weights and statistics of torchvision's block, in the order of the layers."""
    tensors = [value for name, value in reference.state_dict().items() if "num_batches" not in name]
    places = [value for name, value in ours.state_dict().items() if "num_batches" not in name]
    for place, value in zip(places, tensors, strict=True):
        place.copy_(value.view_as(place))


def with_statistics(module: nn.Module) -> nn.Module:
    """The module in eval mode, with batch norms that are not in their initial state."""
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_var, 0.5, 2)
        for values in (norm.weight, norm.bias, norm.running_mean):
            nn.init.uniform_(values, 0.1, 0.5)
    return module.eval()


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (6, 1), (4, 2)])
def test_basic_block_is_the_usual_one(outputs: int, stride: int) -> None:
    """With one slice, the block of He et al., whose shortcut is the identity or pooling, 1×1 and norm; odd sizes."""
    torch.manual_seed(0)
    shortcut = None
    if len(skip_connection((4,), (outputs,), stride)):
        pool = [nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)] if stride == 2 else []
        shortcut = nn.Sequential(*pool, nn.Conv2d(4, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
    reference = with_statistics(ReferenceBasic(4, outputs, stride, shortcut))
    ours = BasicBlock((4,), (outputs,), stride).eval()
    names = dict(reference.named_children())
    ordered = nn.ModuleList(names[name] for name in ("conv1", "bn1", "conv2", "bn2", "downsample") if names.get(name))
    copy_tensors(ours, ordered)
    maps = torch.randn(2, 4, 7, 5)
    torch.testing.assert_close(ours(maps), reference(maps))


def test_inverted_residual_is_the_usual_one() -> None:
    """With one slice, the block of MobileNetV2, where no activation reaches the 6 at which that one clips."""
    torch.manual_seed(0)
    reference = with_statistics(ReferenceInverted(4, 4, 1, 3))
    ours = InvertedResidual((4,), (4,), 1, 3).eval()
    copy_tensors(ours, reference)
    maps = torch.randn(2, 4, 6, 6) / 10
    torch.testing.assert_close(ours(maps), reference(maps))


def test_squeeze_and_excitation_is_the_usual_one() -> None:
    """With one slice, torchvision's layer; the number of inner channels is rounded up."""
    torch.manual_seed(0)
    reference, ours = ReferenceSqueeze(5, 3), SqueezeExcitation((5,), 2)
    for convolution, theirs in ((ours.conv1, reference.fc1), (ours.conv2, reference.fc2)):
        convolution.weights[0].data.copy_(theirs.weight[:, :, 0, 0])
        convolution.bias.data.copy_(theirs.bias)
    maps = torch.randn(2, 5, 3, 3)
    torch.testing.assert_close(ours(maps), reference(maps))


def test_widths_that_double() -> None:
    """Without rounding each slice doubles; with it, each prefix is the nearest multiple, halves rounded up."""
    assert doubling_widths((26, 11), 3) == ((26, 11), (52, 22), (104, 44))
    assert doubling_widths((26, 11, 13, 14), 3, 8)[1] == (56, 16, 32, 24)  # of 52 74 100 128: 56 72 104 128
    assert doubling_widths((20, 20), 1, 16) == ((16, 32),)  # of 20 40: 16 48


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": ()}, r"widths: expected stages with the same number of slices, at least one, got \(\)"),
        ({"widths": ((4, 4), (8,))}, "widths: expected stages with the same number of slices"),
        ({"widths": ((4, 0), (8, 8))}, "widths: expected a whole number from 1, got 0"),
        ({"blocks": (1, 1, 1)}, r"blocks: expected one number, or 2, one per stage, got \(1, 1, 1\)"),
        ({"blocks": 0}, "blocks: expected a whole number from 1, got 0"),
        ({"block": "dense"}, r"block: expected one of \['basic', 'inverted'\], got 'dense'"),
        ({"stem_stride": 3}, "stem_stride: expected 1 or 2, got 3"),
        ({"expansion": 0}, "expansion: expected a whole number from 1, got 0"),
        ({"squeeze": -1}, "squeeze: expected a whole number from 0, got -1"),
    ],
)
def test_bad_shapes(change: dict, message: str) -> None:
    """A shape that no network can have is refused with the argument's name."""
    with pytest.raises(ValueError, match=message):
        unchecked(SliceShape.__init__)(object.__new__(SliceShape), **{"widths": ((4, 4), (8, 8)), **change})


def test_widths_that_do_not_fill_a_slice() -> None:
    """A slice whose channels are rounded away is refused, with the stage."""
    message = r"first: expected slices that keep channels when prefixes are multiples of 16 in stage 1, got \(26, 11\)"
    with pytest.raises(ValueError, match=message):
        doubling_widths((26, 11), 3, 16)
    with pytest.raises(ValueError, match="first: expected a whole number from 1, got 0"):
        doubling_widths((26, 0), 3)


def test_bad_images() -> None:
    """Images that the network cannot read are refused, also by an exit alone and before the first step."""
    network = SlicedResNet(3, SliceShape(((4, 4), (8, 8))))
    for call in (network, network.extract(1), lambda images: next(network.refine(images))):
        with pytest.raises(ValueError, match=r"at least 4×4 pixels for .*, got \(2, 3, 2, 8\)"):
            call(torch.rand(2, 3, 2, 8))
    with pytest.raises(ValueError, match="k: expected an exit from 1 to 2, got 3"):
        network.extract(3)
