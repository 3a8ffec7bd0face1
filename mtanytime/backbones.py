"""The papers' networks for small images, and `Normalized`, which keeps a network and its normalization together."""

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime._torchvision import torchvision_module
from mtanytime.checks import Words, mismatch, require
from mtanytime.torch_files import load_file

ChannelValues = Sequence[float] | Shaped[np.ndarray, " channel"] | Shaped[Tensor, " channel"]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def check_image_shape(images: Tensor, channels: int, least: int, network: str) -> None:
    """Raise ValueError unless a network can read the images: their channels, and at least `least` pixels per side."""
    fits = images.ndim == 4 and images.shape[1] == channels and min(images.shape[2:]) >= least
    expected = f"(batch, {channels}, height, width) of at least {least}×{least} pixels for {network}"
    require(fits, "images", expected, tuple(images.shape))


def _initialize(network: nn.Module) -> None:
    """Draw convolutions from He's normal distribution by fan-out and set biases to zero, as torchvision does."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class ResNet(nn.Module):
    """The ResNet-(6k+2) for small images of He et al. 2016 (arXiv:1512.03385, section 4.2), built by `resnet`.

    Deviations, both as in the L2T-ww authors' source network: the stem's convolution has a bias, and the shortcut of a
    block that changes the width is a 1×1 convolution with batch norm, not padding with zero channels.
    """

    feature_layers = ("layer1", "layer2", "layer3")

    def __init__(self, depth: int, num_classes: int, width: int = 16) -> None:
        super().__init__()
        require(depth >= 8 and depth % 6 == 2, "depth", "6k + 2 with k >= 1 (8, 14, 20, 26, 32, ...)", depth)
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
        _initialize(self)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits. Raises ValueError for images without three channels."""
        check_image_shape(images, 3, 1, "ResNet")
        maps = self.relu(self.bn1(self.conv1(images)))
        maps = self.layer3(self.layer2(self.layer1(maps)))
        return self.fc(self.avgpool(maps).flatten(1))


class VGG(nn.Module):
    """The nine-layer VGG with batch norm for small images, the target of L2T-ww (arXiv:1905.05901), built by `vgg9`.

    Eight 3×3 convolutions, 64 M 128 M 256 256 M 512 512 M 512 512 M, each followed by batch norm and ReLU; M is 2×2
    max pooling. Then the mean over the remaining pixels (one for images of 32×32) and a linear layer.
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
        _initialize(self)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, images: Float[Tensor, "batch channel height width"]) -> Float[Tensor, "batch classes"]:
        """Return the logits. Raises ValueError for images smaller than 32×32 or without three channels."""
        check_image_shape(images, 3, 32, "VGG-9, which halves them five times")
        return self.classifier(self.avgpool(self.features(images)).flatten(1))


def _check_sizes(num_classes: int, width: int) -> None:
    for name, size in (("num_classes", num_classes), ("width", width)):
        require(size >= 1, name, "at least 1", size)


def _stage(channels: int, width: int, stride: int, blocks: int) -> nn.Sequential:
    shortcut = None
    if stride != 1 or channels != width:
        shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))
    block = torchvision_module("torchvision.models.resnet").BasicBlock
    first = block(channels, width, stride, shortcut)
    return nn.Sequential(first, *(block(width, width) for _ in range(blocks - 1)))


def resnet(depth: int, num_classes: int, width: int = 16) -> ResNet:
    """Build a ResNet of `depth` 6k + 2 with `width`, 2 `width` and 4 `width` channels in its stages. See `ResNet`."""
    return ResNet(depth, num_classes, width)


def vgg9(num_classes: int, width: int = 64) -> VGG:
    """Build a VGG-9 with 1, 2, 4, 8 and 8 times `width` channels in its stages, for images from 32×32. See `VGG`."""
    return VGG(num_classes, width)


class Normalized(nn.Module):
    """A network together with the normalization that it was trained with; takes images in [0, 1].

    Images are resized to `size` × `size` (bilinear, antialiased; None keeps their size) and normalized to
    (image - mean) / std, with one mean and std per channel. So two networks trained with different normalizations can
    read the same batch. `feature_layers` and `features.image_layers` name layers by their paths inside the wrapped
    network; `features.tap` accepts these, too.
    """

    def __init__(self, network: nn.Module, mean: ChannelValues, std: ChannelValues, size: int | None = None) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            require(hasattr(values, "__len__") and len(values) > 0, name, "one value per channel", values)
        require(len(std) == len(mean), "std", f"one value per channel, as many as mean ({len(mean)})", std)
        require(all(0 < value < math.inf for value in std), "std", "finite values above 0", std)
        require(size is None or size >= 1, "size", "at least 1 pixel, or None to keep the images' own", size)
        self.network = network
        self.size = size
        for name, values in (("mean", mean), ("std", std)):  # of any kind: NumPy's are float64
            buffer = torch.as_tensor(values, dtype=torch.get_default_dtype())
            self.register_buffer(name, buffer.detach().clone().view(1, -1, 1, 1))

    def wrap(self, network: nn.Module) -> "Normalized":
        """Wrap another network in the same normalization and input size, on the same device and in the same dtype.

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
        """The wrapped network's own `feature_layers`. Raises AttributeError if it has none."""
        return self.network.feature_layers

    def forward(self, images: Shaped[Tensor, "batch channel height width"]) -> Any:
        """Run the network on normalized images. Raises ValueError for integers or another number of channels."""
        return self.network(self.normalized(images))

    def normalized(self, images: Shaped[Tensor, "batch channel height width"]) -> Tensor:
        """Resize and normalize images as the network reads them. Raises ValueError as `forward`."""
        floats = images.is_floating_point()
        require(floats, "images", "floats in [0, 1]", images.dtype, "divide uint8 images by 255")
        check_image_shape(images, self.mean.shape[1], 1, "Normalized")
        if self.size is not None and images.shape[2:] != (self.size, self.size):
            precise = images.float() if images.device.type == "cpu" and images.dtype.itemsize < 4 else images
            resized = F.interpolate(precise, size=(self.size, self.size), mode="bilinear", antialias=True)
            images = resized.to(images.dtype)  # on a CPU, torch resizes with antialiasing in float32 and float64 only
        return (images - self.mean) / self.std


def l2t_resnet32_names() -> dict[str, str]:
    """Map our name of every parameter and buffer of the L2T-ww authors' ResNet-32 to their name.

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
    """Load the L2T-ww authors' source network (ResNet-32, TinyImageNet at 32×32, 200 classes) from their checkpoint.

    The file is in `logs/tinyimagenet-200-resnet32/0/` of their repository alinlab/L2T-ww. The network is returned in
    eval mode on the CPU, with ImageNet's normalization, as they trained it. Their unused `alphas.*` are ignored.
    Raises ValueError for a damaged or foreign file, naming the entries that are missing, unknown or of another shape or
    type. Changed bits are found in files in torch's form since 1.6, which have a checksum.
    """
    expected = "a torch file with the `state_dict` of the L2T-ww authors' ResNet-32"
    checkpoint = load_file(path, expected, old_form=True)
    theirs = checkpoint.get("state_dict") if isinstance(checkpoint, dict) else None
    known = isinstance(theirs, dict) and all(isinstance(name, str) for name in theirs)
    require(known, str(path), expected, Words(f"a file that cannot be read as one ({type(checkpoint).__name__})"))
    theirs = {name: value for name, value in theirs.items() if not name.startswith("alphas.")}
    network, names = resnet(32, 200), l2t_resnet32_names()
    own = {names[name]: value for name, value in network.state_dict().items()}
    both = own.keys() & theirs.keys()
    wrong = {
        "missing": [name for name in own if name not in theirs],
        "unknown": [name for name in theirs if name not in own],
        "of another shape": [name for name in own if name in both and _shape(theirs[name]) != own[name].shape],
    }
    wrong["not of finite numbers"] = [
        name for name in own if name in both.difference(*wrong.values()) and not _finite(theirs[name], own[name].dtype)
    ]
    if any(wrong.values()):
        entries = [f"{len(v)} {k}: {', '.join(v[:3])}{', ...' * (len(v) > 3)}" for k, v in wrong.items() if v]
        expected = "the tensors of the L2T-ww authors' ResNet-32 with 200 classes"
        raise mismatch(str(path), expected, Words(", ".join(entries)))
    network.load_state_dict({ours: theirs[name] for ours, name in names.items()})
    return Normalized(network, IMAGENET_MEAN, IMAGENET_STD).eval()


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, Tensor) else None


def _finite(value: Tensor, dtype: torch.dtype) -> bool:
    """Whether these are finite numbers, in memory, and whole or not as `dtype`."""
    plain = value.layout == torch.strided and not (value.is_quantized or value.is_complex() or value.is_meta)
    return plain and value.is_floating_point() == dtype.is_floating_point and bool(value.isfinite().all())
