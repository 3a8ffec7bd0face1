"""Taps: any network's feature maps by module path, as the network gave them, with nothing left behind."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from typechecker import unchecked

from mtanytime import backbones
from mtanytime.features import image_layers, tap


def pictures(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random images, the same on every run."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def vision_transformer() -> nn.Module:
    """torchvision's vision transformer, small."""
    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64
    )


class Net(nn.Module):
    """A convolution, a batch norm and an in-place ReLU; `forward` may be another one."""

    def __init__(self, forward: Callable[["Net", Tensor], Any] | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5, inplace=True)
        self.unused = nn.Conv2d(3, 4, 3)
        self.pair = nn.Identity()
        self.run = forward

    def forward(self, x: Tensor) -> Any:
        """Channel means, or what the given function makes."""
        if self.run is not None:
            return self.run(self, x)
        return self.drop(self.relu(self.norm(self.conv(x)))).mean((2, 3))


def hooks_of(model: nn.Module) -> int:
    """How many hooks hang on the model."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_resnet18_maps_are_the_stage_outputs() -> None:
    """The plainest use: torchvision's ResNet-18 tapped at its stages gives what running the stages by hand gives."""
    model = torchvision.models.resnet18().eval()
    x = pictures(2, 3, 64, 64)
    output, features = tap(model, ["layer3", "layer1"])(x)
    stem = model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(x)))))
    assert list(features) == ["layer3", "layer1"]
    torch.testing.assert_close(features["layer1"], stem, rtol=0, atol=0)
    torch.testing.assert_close(features["layer3"], model.layer3(model.layer2(stem)), rtol=0, atol=0)
    torch.testing.assert_close(output, model(x), rtol=0, atol=0)


def test_overwritten_batch_norm_is_handed_out_as_it_was() -> None:
    """torchvision's VGG-16-BN writes its ReLU over the batch norm: value and gradient must be those before it."""
    model = torchvision.models.vgg16_bn(num_classes=10, init_weights=False).eval()
    x = pictures(2, 3, 32, 32)
    tapped = tap(model, ["features.4", "features.6"])
    conv, norm = model.features[3], model.features[4]
    inner = F.relu(F.batch_norm(model.features[0](x), *running(model.features[1])))
    wanted = F.batch_norm(F.conv2d(inner, conv.weight, conv.bias, padding=1), *running(norm))
    wanted_grads = torch.autograd.grad(wanted.pow(3).sum(), [conv.weight, norm.bias])
    for _ in range(2):  # the first call copies everything, the second only what it learned to be overwritten
        _, features = tapped(x)
        assert features["features.4"].min() < 0
        torch.testing.assert_close(features["features.4"], wanted)
        grads = torch.autograd.grad(features["features.4"].pow(3).sum(), [conv.weight, norm.bias], retain_graph=True)
        torch.testing.assert_close(grads, wanted_grads)
        torch.testing.assert_close(features["features.6"], F.max_pool2d(F.relu(wanted), 2))


def running(norm: nn.Module) -> tuple[Tensor, ...]:
    """The arguments of `batch_norm` in eval mode."""
    return norm.running_mean, norm.running_var, norm.weight, norm.bias


def test_only_overwritten_maps_are_copied() -> None:
    """Copies cost memory on every step, so a map that nothing overwrites is handed out itself from the second call."""
    kept = {}
    model = Net()
    model.conv.register_forward_hook(lambda _m, _i, output: kept.update(conv=output))
    tapped = tap(model, ["conv", "norm"])
    x = pictures(2, 3, 8, 8)
    assert tapped(x)[1]["conv"] is not kept["conv"]
    assert tapped(x)[1]["conv"] is kept["conv"]


def test_each_mode_learns_for_itself() -> None:
    """In-place dropout overwrites in train mode only, so what evaluation learned must not be used in training."""
    tapped = tap(Net(), ["relu"])
    x = pictures(2, 3, 8, 8)
    for training in (False, True, True, False):
        tapped.train(training)
        output, features = tapped(x)
        assert torch.allclose(features["relu"].mean((2, 3)), output) == (not training)


def test_late_overwriting_is_refused_and_then_mended() -> None:
    """A model that starts to overwrite a map without changing its mode must not hand out a wrong map in silence."""
    model = Net(lambda net, x: (net.norm(net.conv(x)).relu_() if net.late else net.norm(net.conv(x))).mean((2, 3)))
    model.late = False
    tapped = tap(model, ["norm"])
    x = pictures(2, 3, 8, 8)
    tapped(x)
    tapped(x)
    model.late = True
    with pytest.raises(RuntimeError, match="layer 'norm' of Net was overwritten in place"):
        tapped(x)
    assert tapped(x)[1]["norm"].min() < 0


def test_inference_mode_and_vmap_copy() -> None:
    """Where torch's version counter does not count, an overwritten map would otherwise slip through unseen."""
    model = Net().eval()
    tapped = tap(model, ["norm"])
    x = pictures(5, 2, 3, 8, 8)
    wanted = model.norm(model.conv(x[0]))
    tapped(x[0])
    with torch.inference_mode():
        assert torch.equal(tapped(x[0])[1]["norm"], wanted)
        assert torch.equal(tapped(x[0])[1]["norm"], wanted)
    mapped = torch.func.vmap(lambda images: tapped(images)[1]["norm"])(x)
    torch.testing.assert_close(mapped[0], wanted)


@pytest.mark.parametrize("make", [torchvision.models.efficientnet_b0, vision_transformer])
def test_other_families(make: Callable[[], nn.Module]) -> None:
    """EfficientNet's stages and a vision transformer's patch convolution are image maps like any other."""
    layer, shape = {"efficientnet_b0": ("features.3", (2, 40, 4, 4))}.get(make.__name__, ("conv_proj", (2, 32, 4, 4)))
    _, features = tap(make().eval(), [layer])(pictures(2, 3, 32, 32))
    assert features[layer].shape == shape


def test_no_image_map_is_refused() -> None:
    """Logits, sequences of a 1-d convolution, a tuple and integers can't be matched; each is named."""
    x = pictures(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"layer 'heads': expected an image map .*, got \(2, 1000\)$"):
        tap(vision_transformer(), ["heads"])(x)
    with pytest.raises(ValueError, match=r"layer '1': expected an image map .*, got \(2, 4, 1024\)$"):
        tap(nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 1)), ["1"])(x)
    for value, found in (
        (lambda x: (x, x), "a tuple"),
        (lambda x: x.int(), "torch.int32"),
        (lambda x: x[:1], r"\(1, 3,"),
    ):
        model = Net(lambda net, x, value=value: net.pair(value(x)))
        with pytest.raises(ValueError, match=f"layer 'pair': expected an image map .*, got {found}"):
            tap(model, ["pair"])(x)
        assert hooks_of(model) == 0


def test_layer_must_run_exactly_once() -> None:
    """A reused ReLU has no single map and an unused layer none: both are said, with the layer's name."""
    x = pictures(2, 3, 64, 64)
    with pytest.raises(RuntimeError, match=r"layer 'layer1\.0\.relu' of ResNet runs more than once"):
        tap(torchvision.models.resnet18(), ["layer1.0.relu"])(x)
    with pytest.raises(RuntimeError, match="layer 'unused' of Net does not run"):
        tap(Net(), ["conv", "unused"])(x)


def test_unknown_layers_are_refused_with_the_nearest_names() -> None:
    """The message alone should be enough to correct a typing error, without hundreds of names to read."""
    model = torchvision.models.resnet18()
    message = r"^layers: expected layers of ResNet \(layer1, layer2, layer3, .*, got 'layer9'$"
    with pytest.raises(ValueError, match=message) as caught:
        tap(model, ["layer1", "layer9"])
    assert len(str(caught.value)) < 200
    with pytest.raises(ValueError, match=r"expected layers of ResNet .*, got ''"):
        tap(model, [""])
    with pytest.raises(ValueError, match="layers: expected each layer once, got 'layer1' twice"):
        tap(model, ["layer1", "layer2", "layer1"])
    with pytest.raises(ValueError, match=r"layers: expected at least one module path of ResNet, got \(\)"):
        tap(model, [])


def test_a_single_path_is_one_layer() -> None:
    """A bare string would otherwise be read letter by letter."""
    assert tap(Net(), "conv").layers == ("conv",)


def test_hooks_live_only_during_a_call() -> None:
    """The user's model must stay as it was, also when its forward pass breaks down."""
    model = Net()
    tapped = tap(model, ["conv", "norm"])
    assert hooks_of(model) == 0
    tapped(pictures(2, 3, 8, 8))
    assert hooks_of(model) == 0
    with pytest.raises(RuntimeError):
        tapped(pictures(2, 5, 8, 8))
    assert hooks_of(model) == 0


def test_tapped_holds_the_model_itself() -> None:
    """Optimizers and checkpoints must reach the user's own parameters through the tapped network."""
    model = Net()
    tapped = tap(model, ["conv"])
    assert set(tapped.parameters()) == set(model.parameters())
    assert set(tapped.state_dict()) == {f"model.{name}" for name in model.state_dict()}
    assert copy.deepcopy(tapped)(pictures(2, 3, 8, 8))[1]["conv"].shape == (2, 4, 8, 8)


def test_functional_call_differentiates_twice() -> None:
    """The meta-gradient runs the tapped network on other tensors than its own and differentiates the result twice."""
    tapped = tap(Net().double(), ["norm", "conv"])
    x = pictures(2, 3, 6, 6, dtype=torch.float64)
    buffers = dict(tapped.named_buffers())
    names, values = zip(*tapped.named_parameters(), strict=True)
    values = [value.detach().clone().requires_grad_() for value in values]

    def first_gradient(*values: Tensor) -> tuple[Tensor, ...]:
        own = {name: buffer.clone() for name, buffer in buffers.items()}
        _, features = functional_call(tapped, {**dict(zip(names, values, strict=True)), **own}, (x,))
        used = [value for name, value in zip(names, values, strict=True) if "unused" not in name]
        loss = features["norm"].pow(3).mean() + features["conv"].pow(3).mean()
        return torch.autograd.grad(loss, used, create_graph=True)

    gradients = first_gradient(*values)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    assert torch.autograd.gradcheck(first_gradient, values)


def test_normalized_paths_are_those_of_the_network() -> None:
    """A network's layer names must not change when its normalization is wrapped around it."""
    network = torchvision.models.resnet18().eval()
    model = backbones.Normalized(network, backbones.IMAGENET_MEAN, backbones.IMAGENET_STD, size=64)
    x = pictures(2, 3, 64, 64)
    _, features = tap(model, ["layer2"])(x)
    _, wanted = tap(network, ["layer2"])((x - model.mean) / model.std)
    assert torch.equal(features["layer2"], wanted["layer2"])
    assert image_layers(model, x) == image_layers(network, x)
    with pytest.raises(ValueError, match=r"expected layers of ResNet \(.*, got 'network.layer9'$"):
        tap(model, ["network.layer9"])


def test_paths_of_named_modules_work_through_normalized() -> None:
    """A path copied from `named_modules()` must work as it is, and the features must be found under that path."""
    network = torchvision.models.resnet18().eval()
    inner = backbones.Normalized(network, backbones.IMAGENET_MEAN, backbones.IMAGENET_STD)
    x = pictures(2, 3, 64, 64)
    for model, prefix in ((inner, "network."), (backbones.Normalized(inner, (0.0,) * 3, (1.0,) * 3), "network." * 2)):
        paths = [path for path, _ in model.named_modules()]
        layers = [f"{prefix}layer1", "layer3"]
        assert layers[0] in paths
        _, features = tap(model, layers)(x)
        _, wanted = tap(model, ["layer1", f"{prefix}layer3"])(x)
        assert list(features) == layers
        assert list(wanted) == ["layer1", f"{prefix}layer3"]
        assert all(map(torch.equal, features.values(), wanted.values()))
        with pytest.raises(ValueError, match=f"layers: expected each layer once, got '{prefix}layer1' twice"):
            tap(model, ["layer1", f"{prefix}layer1"])


def test_the_inner_network_has_the_first_claim_to_a_path() -> None:
    """A recorded layer must stay the same one, even if the network has a submodule called "network" itself."""
    network = nn.Module()
    network.network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.Conv2d(2, 5, 1))
    network.forward = network.network.forward
    model = backbones.Normalized(network, (0.5,) * 3, (0.5,) * 3)
    features = tap(model, ["network.0", "network.network.1"])(pictures(2, 3, 4, 4))[1]
    assert [tuple(maps.shape) for maps in features.values()] == [(2, 2, 4, 4), (2, 5, 4, 4)]
    whole = backbones.Normalized(nn.Conv2d(3, 2, 1), (0.5,) * 3, (0.5,) * 3)
    output, features = tap(whole, ["network"])(pictures(2, 3, 4, 4))
    assert torch.equal(features["network"], output)


def test_image_layers_needs_floats() -> None:
    """Images of an image set are uint8: the error says what to do."""
    with pytest.raises(ValueError, match=r"images: expected a tensor of floats in \[0, 1\], got torch.uint8; divide"):
        unchecked(image_layers)(tiny.made(), tiny.images(2).images)


def test_image_layers_lists_what_can_be_tapped() -> None:
    """What the list offers for choosing, tap must be able to give, with the shape that the list promises."""
    x = pictures(2, 3, 32, 32)
    layers = image_layers(torchvision.models.resnet18(), x)
    assert layers["layer2"] == (128, 4, 4)
    assert layers["avgpool"] == (512, 1, 1)
    assert not {"fc", "layer1.0.relu", ""} & set(layers)
    offered = image_layers(vision_transformer(), x)
    assert offered["conv_proj"] == offered["encoder.layers.encoder_layer_1"] == (32, 4, 4)
    assert offered["encoder.layers.encoder_layer_1.mlp.0"] == (64, 4, 4)
    model = Net()
    offered = image_layers(model, x)
    _, features = tap(model, list(offered))(x)
    assert {layer: tuple(value.shape[1:]) for layer, value in features.items()} == offered


def test_tokens_are_the_maps_of_their_patches() -> None:
    """A vision transformer's tokens, without the class token, lie on the grid of its patches, in both modes."""
    model = vision_transformer()
    x = pictures(2, 3, 32, 32)
    layer = "encoder.layers.encoder_layer_0"
    tokens = model.encoder.layers[0](
        model.encoder.pos_embedding + torch.cat([model.class_token.expand(2, -1, -1), model._process_input(x)], dim=1)
    )
    tapped = tap(model, [layer, "conv_proj"])
    for training in (False, True, False):
        maps = tapped.train(training)(x)[1][layer]
        torch.testing.assert_close(maps[:, :, 1, 2], tokens[:, 1 + 4 + 2])
        assert maps.shape == (2, 32, 4, 4)
    assert tap(model, [layer], grid=(2, 8))(x)[1][layer].shape == (2, 32, 2, 8)
    model.token_grid = (8, 2)
    assert tap(model, [layer])(x)[1][layer].shape == (2, *image_layers(model, x)[layer]) == (2, 32, 8, 2)
    model.token_grid = (5, 5)
    with pytest.raises(ValueError, match=f"layer '{layer}': expected at least 5 × 5 tokens, got 17"):
        tap(model, [layer])(x)


def test_channels_last_are_permuted_and_channels_first_stay_the_same_tensor() -> None:
    """A Swin's maps, (batch, height, width, channel), come as any other map; a CNN's are the very same tensors."""
    swin = torchvision.models.SwinTransformer([4, 4], 12, [1, 1], [2, 2], [4, 4], num_classes=3).eval()
    x = pictures(2, 3, 32, 32)
    maps = tap(swin, ["features.1"])(x)[1]["features.1"]
    assert torch.equal(maps, swin.features[1](swin.features[0](x)).permute(0, 3, 1, 2))
    assert image_layers(swin, x)["features.2"] == (24, 4, 4)


def test_layouts_are_found_once_per_mode() -> None:
    """The hot path has only the hooks of the tapped layers: the recorder's run on the first call in a mode."""
    model = Net()
    counts = []
    model.conv.register_forward_hook(lambda module, _args, _output: counts.append(len(module._forward_hooks)))
    tapped = tap(model, ["norm"])
    for _ in range(3):
        tapped(pictures(2, 3, 8, 8))
    assert counts == [2, 1, 1]


def test_networks_that_were_compiled_in_place() -> None:
    """Compiled code may skip hooks, as here: the layers are found all the same, and a tap that sees none says why."""
    model = Net().eval()
    shapes = image_layers(model, pictures(2, 3, 8, 8))
    for module in model.modules():
        module._compiled_call_impl = module.forward
    assert image_layers(model, pictures(2, 3, 8, 8)) == shapes
    with pytest.raises(RuntimeError, match=r"'norm' of Net was not seen: .*; call network.compile\(\) after tap"):
        tap(model, ["norm"])(pictures(2, 3, 8, 8))


def test_norm_over_the_whole_map() -> None:
    """A LayerNorm over (channel, height, width) says nothing about the layout of what follows it."""
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.LayerNorm((5, 8, 8)), nn.ReLU())
    assert image_layers(model, pictures(2, 3, 8, 8))["2"] == (5, 8, 8)


def test_image_layers_leaves_the_model_untouched() -> None:
    """Looking at a model before a run must not change the run: no mode, buffer, gradient or random number."""
    model = Net(lambda net, x: F.dropout(net.norm(net.conv(x)), 0.5, training=True))
    model.norm.eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert set(image_layers(model, pictures(2, 3, 8, 8))) == {"conv", "norm"}
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value.grad is None for value in model.parameters())
    assert model.training
    assert not model.norm.training
    assert hooks_of(model) == 0
