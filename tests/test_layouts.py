"""The channel axis of every kind of layer is found, and tokens become maps."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from mtanytime.layouts import record_layouts, to_map

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def made(name: str) -> nn.Module:
    """A small network of a family."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name == "swin":
            return SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
        if name == "convnext":
            return ConvNeXt([CNBlockConfig(12, 24, 1), CNBlockConfig(24, None, 1)], num_classes=3).eval()
        if name == "vit":
            return VisionTransformer(64, 16, 1, 2, 12, 24, num_classes=3).eval()
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(4)).eval()


def outputs(network: nn.Module, images: Tensor = IMAGES) -> dict[str, tuple[str | None, tuple[int, ...]]]:
    """Layout and shape of every layer's output."""
    found: dict[str, tuple[str | None, tuple[int, ...]]] = {}
    with record_layouts(network) as recorder, torch.no_grad():
        for path, module in network.named_modules():

            def keep(_module: nn.Module, _args: object, output: object, path: str = path) -> None:
                if isinstance(output, Tensor):
                    found[path] = recorder.layout(output), tuple(output.shape)

            module.register_forward_hook(keep)
        network(images)
    return found


@pytest.mark.parametrize(
    ("family", "layer", "layout", "channels"),
    [
        ("cnn", "0", "channels first", 8),
        ("cnn", "2", "channels first", 8),
        ("swin", "features.0.0", "channels first", 12),
        ("swin", "features.0.1", "channels last", 12),
        ("swin", "features.0", "channels last", 12),
        ("swin", "features.1", "channels last", 12),
        ("swin", "features.1.0.mlp.0", "channels last", 48),
        ("swin", "features.2", "channels last", 24),
        ("swin", "permute", "channels first", 24),
        ("convnext", "features.0", "channels first", 12),
        ("convnext", "features.1", "channels first", 12),
        ("convnext", "features.1.0.block.2", "channels last", 12),
        ("convnext", "features.1.0.block.3", "channels last", 48),
        ("convnext", "features.1.0.block.6", "channels first", 12),
        ("convnext", "features.2.0", "channels first", 12),
        ("vit", "conv_proj", "channels first", 12),
        ("vit", "encoder.layers.encoder_layer_0", "tokens", 12),
        ("vit", "encoder.ln", "tokens", 12),
    ],
)
def test_layout(family: str, layer: str, layout: str, channels: int) -> None:
    """Channels are never taken for rows of pixels."""
    found, shape = outputs(made(family))[layer]
    assert found == layout
    assert shape[1 if layout == "channels first" else -1] == channels


def test_what_is_no_map_has_no_layout() -> None:
    """Logits and token ids."""
    found = outputs(made("vit"))
    assert found["heads"][0] is None
    assert found[""][0] is None


def test_tokens_become_the_grid_of_patches() -> None:
    """Token t of the map's row r and column c is the patch at that place; the class token is left out."""
    network = made("vit")
    with torch.no_grad():
        tokens = network._process_input(IMAGES)
        expected = network.conv_proj(IMAGES)
    whole = torch.cat([torch.zeros(2, 1, 12), tokens], dim=1)
    torch.testing.assert_close(to_map(whole, "tokens", (64, 64)), expected)
    torch.testing.assert_close(to_map(whole, "tokens", (64, 64), grid=(4, 4)), expected)
    last = expected.permute(0, 2, 3, 1)
    torch.testing.assert_close(to_map(last, "channels last", (64, 64)), expected)


@pytest.mark.parametrize(
    ("tokens", "size", "grid"),
    [(197, (224, 224), (14, 14)), (261, (224, 224), (16, 16)), (49, (56, 56), (7, 7)), (33, (64, 128), (4, 8))],
)
def test_grid(tokens: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
    """ViT, DINOv2 with registers, tokens alone, images that are not square."""
    assert to_map(torch.zeros(1, tokens, 5), "tokens", size).shape == (1, 5, *grid)


def test_tokens_without_a_grid() -> None:
    """What fits no grid is refused with the way out."""
    with pytest.raises(ValueError, match="expected a grid of tokens shaped like the images, 224 × 224, got 120 tokens"):
        to_map(torch.zeros(1, 120, 5), "tokens", (224, 224), name="encoder")
    with pytest.raises(ValueError, match="encoder: expected at least 9 × 9 tokens, got 64"):
        to_map(torch.zeros(1, 64, 5), "tokens", (224, 224), grid=(9, 9), name="encoder")


def test_a_permute_that_is_no_module() -> None:
    """ConvNeXt as its authors and timm write it: the block ends with `x.permute(0, 3, 1, 2)` in its forward pass."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(3, 12, 4, 4), nn.LayerNorm(12), nn.Linear(12, 12)

        def forward(self, images: Tensor) -> Tensor:
            return self.linear(self.norm(self.conv(images).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)

    found = outputs(nn.Sequential(Block()).eval())
    assert found["0"] == ("channels first", (2, 12, 16, 16))
    assert found["0.linear"][0] == "channels last"


@pytest.mark.parametrize("height", [64, 96])
def test_a_permute_where_channels_and_pixels_are_as_many(height: int) -> None:
    """A residual block of such a ConvNeXt: no shape tells its 16 channels from 16 pixels, so calls of permute must."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(16, 16, 1), nn.LayerNorm(16), nn.Linear(16, 16)

        def forward(self, maps: Tensor) -> Tensor:
            return maps + torch.permute(self.linear(self.norm(self.conv(maps).permute(0, 2, 3, 1))), (0, 3, 1, 2))

    images = torch.cat([IMAGES, IMAGES], dim=2)[:, :, :height]
    found = outputs(nn.Sequential(nn.Conv2d(3, 16, 4, 4), Block()).eval(), images)
    assert found["1"] == ("channels first", (2, 16, height // 4, 16))
    assert found["1.linear"][0] == "channels last"


def test_a_concatenation_as_wide_as_a_branch() -> None:
    """The last convolution's 32 channels are no map 32 pixels wide: those of GoogLeNet and DenseNet, at some sizes."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 32, 1)

        def forward(self, images: Tensor) -> Tensor:
            return torch.cat([self.left(images), self.right(images)], dim=1)

    found = outputs(nn.Sequential(Branches()).eval(), IMAGES[:, :, :32, :32])
    assert found["0"] == ("channels first", (2, 48, 32, 32))


class Mixer(nn.Module):
    """An MLP-Mixer of one block, with the transposes in its forward pass, as its authors and timm write it."""

    def __init__(self, channels: int, hidden: int, normalize: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 16, 16)
        self.norm, self.norm2 = (nn.LayerNorm(channels) if normalize else nn.Identity() for _ in range(2))
        self.pixels1, self.pixels2 = nn.Linear(16, hidden), nn.Linear(hidden, 16)
        self.act = nn.GELU()
        self.channels1, self.channels2 = nn.Linear(channels, 24), nn.Linear(24, channels)
        self.transposed = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (batch, tokens, channels)."""
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        turned = self.norm(tokens).transpose(1, 2)
        tokens = tokens + self.pixels2(self.act(self.pixels1(turned))).transpose(1, 2)
        tokens = tokens + self.channels2(self.channels1(self.norm2(tokens)))
        self.transposed(tokens.transpose(1, 2))
        return tokens


@pytest.mark.parametrize("normalize", [True, False], ids=["Mixer", "ResMLP"])
@pytest.mark.parametrize(("channels", "hidden"), [(12, 8), (12, 12), (12, 16), (16, 8), (16, 16)])
def test_a_linear_layer_across_the_pixels(channels: int, hidden: int, normalize: bool) -> None:
    """Channels are not taken for tokens; where there are as many tokens as channels (16), neither is told apart."""
    found = outputs(nn.Sequential(Mixer(channels, hidden, normalize)).eval())
    layouts = {path.removeprefix("0."): layout for path, (layout, _) in found.items()}
    assert [layouts[path] for path in ("pixels1", "act", "pixels2", "transposed")] == [None] * 4
    assert [layouts[path] for path in ("stem", "channels1")] == ["channels first", "tokens"]
    told = None if channels == 16 else "tokens"
    assert [layouts[path] for path in ("channels2", "0")] == [told] * 2


def test_a_linear_layer_along_rows() -> None:
    """Maps (B, H, W, C) whose rows a Linear mixes after a permute to (B, C, H, W): the channels are first there."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.rows = nn.Conv2d(3, 12, 16, 16), nn.LayerNorm(12), nn.Linear(4, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.rows(self.norm(self.stem(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    found = outputs(nn.Sequential(Rows()).eval())
    assert found["0.norm"] == ("channels last", (2, 4, 4, 12))
    assert found["0.rows"] == ("channels first", (2, 12, 4, 4))
