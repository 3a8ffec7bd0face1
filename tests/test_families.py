"""Families of networks as sources and targets: the meta-gradient is exact, and torchvision's classifiers all train."""

import os
from collections.abc import Callable

import pytest
import tiny
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm
from transfer_runs import assert_close, copied, same, stirred, transfer

from mtanytime.backbones import Normalized
from mtanytime.data.images import ImageSet
from mtanytime.features import image_layers, tap
from mtanytime.transfer import FeatureMatching, TransferTrainer


def seeded(make: object, *arguments: object, **options: object) -> nn.Module:
    """A network with weights from a seed; torch's random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments, **options)


def vision_transformer() -> nn.Module:
    """torchvision's, tiny; its head is not zero, or no gradient would reach its layers."""
    network = seeded(torchvision.models.VisionTransformer, 8, 4, 2, 2, hidden_dim=8, mlp_dim=12, num_classes=3)
    seeded(nn.init.normal_, network.heads.head.weight)
    return network


def check_meta_gradient(trainer: TransferTrainer) -> None:
    """The meta-gradient of the trainer's lookahead is that of plain autograd through one graph, and not zero."""
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.arange(6) % 3
    ours = stirred(trainer).meta_gradient(images, labels)
    object.__setattr__(trainer.lookahead, "mode", "unroll")
    assert any(gradient.abs().max() > 0 for gradient in ours)  # λ of a pair may be zero
    assert_close(ours, trainer.meta_gradient(images, labels), 1e-9)


@pytest.mark.parametrize("teaches", [True, False])
def test_meta_gradient_of_a_transformer(teaches: bool) -> None:
    """A ViT's tokens teach a CNN and a CNN teaches a ViT, with the exact gradient."""
    transformer, convolutional = vision_transformer().double(), tiny.made(4, seed=1).double()
    source, target = (transformer, convolutional) if teaches else (convolutional, transformer)
    blocks = ["encoder.layers.encoder_layer_0", "encoder.layers.encoder_layer_1"]
    layers = {"source_layers" if teaches else "target_layers": blocks}
    check_meta_gradient(transfer(source=source.eval(), target=target, **layers))


def reparametrized(how: Callable[[nn.Module], nn.Module], seed: int) -> nn.Module:
    """A TinyNet whose convolutions' weights are made by a hook or a parametrization."""
    network = tiny.made(4, seed=seed).double()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in [*network.modules()]:
            if isinstance(module, nn.Conv2d):
                how(module)
    return network


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "how",
    [
        weight_norm,
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
        parametrizations.spectral_norm,
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
    ],
    ids=["weight norm by a hook", "weight norm", "spectral norm by a hook", "spectral norm", "pruning"],
)
def test_meta_gradient_of_weights_made_by_hooks(how: Callable[[nn.Module], nn.Module]) -> None:
    """Weights that are computed from other parameters, in both networks, get the exact gradient."""
    check_meta_gradient(transfer(source=reparametrized(how, 2).eval(), target=reparametrized(how, 1)))


class Skipping(tiny.TinyNet):
    """A network that skips its block in half of the passes in train mode."""

    feature_layers = ("first", "block")

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        maps = self.second(self.first(images))
        if not self.training or torch.rand(()) < 0.5:
            maps = maps + self.block(maps)
        return self.classifier(maps.mean(dim=(2, 3)))


@pytest.mark.parametrize("seed", range(4))
def test_blocks_skipped_at_random(seed: int) -> None:
    """Stochastic depth by hand: the meta-gradient is exact whichever passes skip the block, and the run trains."""
    trainer = transfer(source=tiny.made(5, seed=2).double().eval(), target=seeded(Skipping).double())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        images, labels = torch.rand(6, 3, 8, 8).double(), torch.arange(6) % 3
        gradients = []
        for mode in ("keep", "recompute", "unroll"):
            torch.set_rng_state(state)
            object.__setattr__(trainer.lookahead, "mode", mode)
            gradients.append(trainer.meta_gradient(images, labels))
    for ours in gradients[:2]:
        assert_close(ours, gradients[2], 1e-9)
    trainer.train()


def test_a_skipped_layer_is_not_matched() -> None:
    """The loss without a layer is that of the other pairs alone; without any it is zero, and can be differentiated."""
    generator = torch.Generator().manual_seed(0)
    matching = FeatureMatching([("s", "a"), ("s", "b")], {"s": 2}, {"a": 3, "b": 4}, generator)
    source, a = torch.rand(5, 2, 4, 4, generator=generator), torch.rand(5, 3, 4, 4, generator=generator)
    weights = {layer: torch.rand(5, 2, generator=generator, requires_grad=True) for layer in "ab"}
    weight, bias = matching.regressor(("s", "a"))
    expected = ((F.conv2d(a, weight, bias) - source).square().mean((2, 3)) * weights["a"]).sum(1)
    aligned = matching.align({"s": source}, {"a": (4, 4)})
    torch.testing.assert_close(matching.aligned_loss({"a": a}, aligned, weights), expected)
    both = matching.align({"s": source}, {"a": (4, 4), "b": (4, 4)})
    torch.testing.assert_close(matching.aligned_loss({"a": a}, both, weights), expected)
    nothing = matching.aligned_loss({}, both, weights)
    assert torch.equal(nothing, torch.zeros(5))
    assert nothing.requires_grad


def test_wrappers_are_taken_off_a_source() -> None:
    """DataParallel and torch.compile: the same maps by the network's own paths and by those with the wrapper's."""
    network = tiny.made(4).eval()
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = tap(network, ["first"])(x)[1]["first"]
    for wrapped, path in ((nn.DataParallel(network), "module.first"), (torch.compile(network), "_orig_mod.first")):
        for layer in ("first", path):
            assert torch.equal(tap(wrapped, [layer])(x)[1][layer], expected)
        assert image_layers(wrapped, x) == image_layers(network, x)
        normalized = Normalized(wrapped, (0.5,) * 3, (0.2,) * 3)
        plain = Normalized(network, (0.5,) * 3, (0.2,) * 3)
        assert torch.equal(tap(normalized, ["first"])(x)[1]["first"], tap(plain, ["first"])(x)[1]["first"])
        assert normalized.network is wrapped
    assert transfer(source=nn.DataParallel(network)).sources[""].model is network
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert transfer(source=nn.parallel.DistributedDataParallel(network)).sources[""].model is network
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_networks_whose_layers_are_hidden() -> None:
    """torch.jit and wrappers deep inside a network are refused with the way out."""
    network, x = tiny.made(4).eval(), torch.rand(2, 3, 8, 8)
    for hidden in (torch.jit.trace(network, x), torch.jit.script(network)):
        with pytest.raises(ValueError, match=r"^source: expected a network of Python modules, got a torch\.jit one"):
            transfer(source=hidden, source_layers=["first"])
    network.first = nn.DataParallel(network.first)
    with pytest.raises(ValueError, match=r"^source: expected .* wrapped parts, got DataParallel at 'first'"):
        transfer(source=network)


FAMILIES: dict[str, tuple[str, int]] = {  # the smallest variant and the size of its images
    "AlexNet": ("alexnet", 64),
    "ConvNeXt": ("convnext_tiny", 32),
    "DenseNet": ("densenet121", 32),
    "EfficientNet": ("efficientnet_b0", 32),
    "EfficientNetV2": ("efficientnet_v2_s", 32),
    "GoogLeNet": ("googlenet", 32),
    "Inception": ("inception_v3", 75),
    "MaxViT": ("maxvit_t", 224),
    "MNASNet": ("mnasnet0_5", 32),
    "MobileNetV2": ("mobilenet_v2", 32),
    "MobileNetV3": ("mobilenet_v3_small", 32),
    "RegNet": ("regnet_y_400mf", 32),
    "ResNet": ("resnet18", 32),
    "ResNeXt": ("resnext50_32x4d", 32),
    "ShuffleNetV2": ("shufflenet_v2_x0_5", 32),
    "SqueezeNet": ("squeezenet1_0", 32),
    "Swin": ("swin_t", 32),
    "SwinV2": ("swin_v2_t", 32),
    "VGG": ("vgg11_bn", 32),
    "ViT": ("vit_b_32", 64),
    "WideResNet": ("wide_resnet50_2", 32),
}
LONG = os.environ.get("MTANYTIME_LONG")


@pytest.mark.parametrize("as_target", [True, False], ids=["target", "source"])
@pytest.mark.parametrize("family", FAMILIES if LONG else ["MobileNetV3"])
def test_families_of_torchvision(family: str, as_target: bool) -> None:
    """One step of L2T-ww with every family of torchvision's classifiers, as target and as source, random weights."""
    name, size = FAMILIES[family]
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    options |= {"image_size": size} if name == "vit_b_32" else {}
    network = seeded(getattr(torchvision.models, name), num_classes=3, **options)
    if name == "vit_b_32":
        seeded(nn.init.normal_, network.heads.head.weight, std=0.1)
    pixels = torch.randint(0, 256, (4, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = ImageSet(pixels, torch.arange(4) % 3, ("a", "b", "c"))
    offered = [layer for layer, shape in image_layers(network, pixels[:2] / 255).items() if min(shape[1:]) > 1]
    layer, other = offered[2 * len(offered) // 3], seeded(tiny.TinyNet, 4).eval()
    settings = {"source_layers" if not as_target else "target_layers": [layer]}
    source, target = (other, network) if as_target else (network.eval(), other)
    trainer = transfer(source=source, target=target, data=data, batch_size=4, epochs=1, lr=0.01, **settings)
    before = copied(trainer.meta)
    trainer.train()
    after = copied(trainer.meta)
    assert all(value.isfinite().all() for value in [*after.values(), *trainer.model.parameters()])
    assert not same(before, after)
