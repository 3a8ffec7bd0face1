"""The papers' networks for small images, and a wrapper that lets a network travel with its own normalisation."""

from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def _check_images(images: Tensor, channels: int, least: int, name: str) -> None:
    if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < least:
        wanted = f"wanted (batch, {channels}, height, width) with height and width of at least {least}"
        raise ValueError(f"{name} got images of shape {tuple(images.shape)}; {wanted}")


def _initialise(network: nn.Module) -> None:
    """Draw convolutions from He's normal distribution by fan-out, with zero biases, as torchvision does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ResNet(nn.Module):
    """The ResNet-(6k+2) for small images of He et al. 2016 (arXiv:1512.03385, section 4.2), built by `resnet`.

    Deviations, both as in the L2T-ww authors' source network: the stem's convolution has a bias, and a block that
    changes the width has a 1x1 convolution and a batch norm on its shortcut instead of appended zero channels.
    """

    feature_layers = ("layer1", "layer2", "layer3")

    def __init__(self, depth: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth is {depth}; wanted 6k + 2 with k >= 1: 8, 14, 20, 26, 32, ...")
        _check_sizes(num_classes, width)
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        blocks = (depth - 2) // 6
        self.layer1 = _stage(width, width, 1, blocks)
        self.layer2 = _stage(width, 2 * width, 2, blocks)
        self.layer3 = _stage(2 * width, 4 * width, 2, blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)
        _initialise(self)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Class scores. Raises ValueError for images that don't have three channels."""
        _check_images(images, 3, 1, "ResNet")
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.fc(self.avgpool(maps).flatten(1))


class VGG(nn.Module):
    """The nine-layer VGG with batch norm for small images, the target of L2T-ww (arXiv:1905.05901), built by `vgg9`.

    Eight 3x3 convolutions, 64 M 128 M 256 256 M 512 512 M 512 512 M, each followed by batch norm and ReLU; M is a 2x2
    maximum; then the mean over what is left of the image (one pixel for 32x32) and a linear layer.
    """

    feature_layers = ("features.2", "features.6", "features.13", "features.20", "features.27")

    def __init__(self, num_classes: int, width: int = 64) -> None:
        super().__init__()
        _check_sizes(num_classes, width)
        layers: list[nn.Module] = []
        channels = 3
        for stage in ((1,), (2,), (4, 4), (8, 8), (8, 8)):
            for factor in stage:
                layers += [nn.Conv2d(channels, factor * width, 3, padding=1), nn.BatchNorm2d(factor * width)]
                layers += [nn.ReLU(inplace=True)]
                channels = factor * width
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        _initialise(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Class scores. Raises ValueError for images smaller than 32x32 or without three channels."""
        _check_images(images, 3, 32, "VGG-9, which halves the image five times,")
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def _check_sizes(num_classes: int, width: int) -> None:
    if num_classes < 1 or width < 1:
        raise ValueError(f"num_classes is {num_classes} and width is {width}; wanted at least 1 of each")


def _stage(channels: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    first = BasicBlock(channels, width, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(width, width) for _ in range(blocks - 1)))


def resnet(depth: int, num_classes: int, width: int = 16) -> ResNet:
    """A ResNet of `depth` 6k + 2 whose three stages are `width`, 2 `width` and 4 `width` wide. See `ResNet`."""
    return ResNet(depth, num_classes, width)


def vgg9(num_classes: int, width: int = 64) -> VGG:
    """A VGG-9 whose stages are `width` times 1, 2, 4, 8 and 8 wide. Images of at least 32x32. See `VGG`."""
    return VGG(num_classes, width)


class Normalized(nn.Module):
    """A network together with the normalisation that it was trained with; takes images in [0, 1].

    Images are resized to `size` x `size` (bilinear, antialiased; None: they keep their size), then (image - mean) / std
    with one mean and std a channel. So two networks trained with different normalisations can see the same batch.
    `features.tap` and `feature_layers` name the layers of the wrapped network, as if the wrapper were not there.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], size: int | None = None
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"mean is {mean} and std is {std}; wanted one of each a channel, std above zero")
        if size is not None and size < 1:
            raise ValueError(f"size is {size}; wanted at least 1 pixel, or None to keep the images' own")
        self.network = network
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def wrap(self, network: nn.Module) -> "Normalized":
        """Wrap another network in the same normalisation and input size, on the same device and in the same dtype.

        Where one `Normalized` holds another, the new network gets both.
        """
        if isinstance(self.network, Normalized):
            network = self.network.wrap(network)
        channels = self.mean.shape[1]
        wrapper = Normalized(network, (0.0,) * channels, (1.0,) * channels, self.size)
        wrapper.mean, wrapper.std = self.mean.clone(), self.std.clone()
        return wrapper

    @property
    def feature_layers(self) -> tuple[str, ...]:
        """The paper's layers of the wrapped network, where it names them."""
        return self.network.feature_layers

    def forward(self, images: Shaped[Tensor, "batch channel height width"]) -> Any:
        """The network's own output. Raises ValueError for integers or another number of channels."""
        return self.network(self.normalised(images))

    def normalised(self, images: Shaped[Tensor, "batch channel height width"]) -> Tensor:
        """What the network sees of the images. Raises ValueError for integers or another number of channels."""
        if not images.is_floating_point():
            raise ValueError(f"images are {images.dtype}; wanted floats in [0, 1] (uint8 images: images / 255)")
        _check_images(images, self.mean.shape[1], 1, "Normalized")
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            images = F.interpolate(images, size=(self.size, self.size), mode="bilinear", antialias=True)
        return (images - self.mean) / self.std


def l2t_resnet32_names() -> dict[str, str]:
    """Our name -> the L2T-ww authors' name of every parameter and buffer of their ResNet-32.

    They call the first block of stage s `block{2s-1}` and the other four `blocks{2s}.0` to `blocks{2s}.3`.
    """
    with torch.device("meta"):
        ours = resnet(32, 200).state_dict()
    names = {}
    for name in ours:
        names[name] = name
        if name.startswith("layer"):
            stage, block, rest = name.removeprefix("layer").split(".", 2)
            theirs = f"block{2 * int(stage) - 1}" if block == "0" else f"blocks{2 * int(stage)}.{int(block) - 1}"
            names[name] = f"{theirs}.{rest}"
    return names


def load_l2t_resnet32(path: str | PathLike[str]) -> Normalized:
    """The L2T-ww authors' source network (ResNet-32, TinyImageNet at 32x32, 200 classes) from their checkpoint file.

    The file is in `logs/tinyimagenet-200-resnet32/0/` of their repository alinlab/L2T-ww. Returned in eval mode on the
    CPU, with ImageNet's normalisation, which they trained it with. Their `alphas.*`, unused, are ignored.
    Raises ValueError for a truncated or foreign file, naming the entries that are missing, unknown or of another shape.
    """
    with open(path, "rb") as file:
        try:
            checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            theirs = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("alphas.")}
        except Exception as error:  # torch.load raises many kinds, OSError too, for a damaged or foreign file
            reason = str(error).strip().partition("\n")[0]
            wanted = "wanted the L2T-ww authors' ResNet-32, a torch file holding a `state_dict`"
            raise ValueError(f"{path} can't be read ({type(error).__name__}: {reason}); {wanted}") from error
    network, names = resnet(32, 200), l2t_resnet32_names()
    shapes = {names[name]: value.shape for name, value in network.state_dict().items()}
    wrong = {
        "missing": [name for name in shapes if name not in theirs],
        "unknown": [name for name in theirs if name not in shapes],
        "of another shape": [
            name for name in shapes if name in theirs and getattr(theirs[name], "shape", None) != shapes[name]
        ],
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(v)} {k}: {', '.join(v[:3])}{', ...' * (len(v) > 3)}" for k, v in wrong.items() if v)
        raise ValueError(f"{path} is not the L2T-ww authors' ResNet-32 with 200 classes: {found}")
    network.load_state_dict({ours: theirs[name] for ours, name in names.items()})
    return Normalized(network, IMAGENET_MEAN, IMAGENET_STD).eval()
