"""The small networks: the papers' shapes and parameters, the authors' checkpoint, and clear refusals."""

import io
import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from damage import Creates, altered, checked, damaged, hostile
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalized,
    l2t_resnet32_names,
    load_l2t_resnet32,
    resnet,
    vgg9,
)
from mtanytime.features import tap


def pictures(*shape: int, seed: int = 0) -> Tensor:
    """Random images, the same on every run."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_resnet_layers_and_count() -> None:
    """ResNet-20 has He et al.'s 0.27 million parameters, the stem's bias and the two shortcuts, and halving maps."""
    model = resnet(20, 10)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert len([m for m in convolutions if m.kernel_size == (3, 3)]) == 19
    assert [m for m in convolutions if m.bias is not None] == [model.conv1]
    assert sum(p.numel() for p in model.parameters()) == 269_722 + 16 + (16 * 32 + 64) + (32 * 64 + 128)
    output, features = tap(model, model.feature_layers)(pictures(2, 3, 32, 32))
    assert output.shape == (2, 10)
    assert [tuple(v.shape[1:]) for v in features.values()] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


def test_resnet_depth_and_width_scale() -> None:
    """Every depth 6k + 2 has k blocks per stage, and the width scales all stages, so notebooks can use thin ones."""
    for depth, blocks in ((8, 1), (14, 2), (32, 5)):
        model = resnet(depth, 3, width=4)
        assert [len(stage) for stage in (model.layer1, model.layer2, model.layer3)] == [blocks] * 3
    _, features = tap(model, ["layer1.0", "layer3.4"])(pictures(2, 3, 12, 20))
    assert [tuple(v.shape) for v in features.values()] == [(2, 4, 12, 20), (2, 16, 3, 5)]


def test_vgg9_is_the_papers() -> None:
    """Widths, biases and the layers before each pooling are the paper's, and its reference numbers rely on them."""
    model = vgg9(10)
    convolutions = [m for m in model.features if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [64, 128, 256, 256, 512, 512, 512, 512]
    assert all(m.bias is not None for m in convolutions)
    modules = list(model.features)
    before_pool = [f"features.{i - 1}" for i, m in enumerate(modules) if isinstance(m, nn.MaxPool2d)]
    assert list(model.feature_layers) == before_pool
    _, features = tap(model.eval(), model.feature_layers)(pictures(2, 3, 32, 32))
    assert [tuple(v.shape[1:]) for v in features.values()] == [
        (64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (512, 2, 2)
    ]  # fmt: skip
    assert all(v.min() >= 0 for v in features.values())
    assert vgg9(7, width=8)(pictures(2, 3, 64, 64)).shape == (2, 7)


def test_vgg9_equals_a_forward_pass_by_hand() -> None:
    """The module wiring, checked against the operations written out one by one."""
    model = vgg9(10, width=4).double().eval()
    x = images = pictures(3, 3, 32, 32).double()
    for i, module in enumerate(model.features):
        if isinstance(module, nn.Conv2d):
            norm = model.features[i + 1]
            x = F.conv2d(x, module.weight, module.bias, padding=1)
            x = F.relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias))
        elif isinstance(module, nn.MaxPool2d):
            x = F.max_pool2d(x, 2)
    torch.testing.assert_close(model(images), F.linear(x.flatten(1), model.classifier.weight, model.classifier.bias))


def test_initialization_is_the_authors() -> None:
    """A target starts as in the paper's code: He's normal by fan-out, the classifier at 0.01, biases at zero."""
    torch.manual_seed(0)
    model, source = vgg9(100), resnet(32, 100)
    for m in [*model.modules(), *source.modules()]:
        if isinstance(m, nn.Conv2d):
            fan_out = m.out_channels * m.kernel_size[0] ** 2
            assert m.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
            assert m.bias is None or not m.bias.any()
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.classifier.bias.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(18, 10), r"depth: expected 6k \+ 2 with k >= 1 .*, got 18$"),
        (lambda: resnet(2, 10), r"depth: expected 6k \+ 2 with k >= 1 .*, got 2$"),
        (lambda: resnet(8, 0), "num_classes: expected at least 1, got 0"),
        (lambda: vgg9(0), "num_classes: expected at least 1, got 0"),
        (lambda: vgg9(3, width=0), "width: expected at least 1, got 0"),
        (
            lambda: resnet(8, 3)(pictures(2, 1, 32, 32)),
            r"images: expected \(batch, 3, height, width\) .* for ResNet, got \(2, 1, 32, 32\)",
        ),
        (
            lambda: vgg9(3, 4)(pictures(2, 3, 16, 32)),
            r"images: expected .* 32×32 pixels for VGG-9, .*, got \(2, 3, 16, 32\)",
        ),
        (
            lambda: Normalized(resnet(8, 3), (0.5,), (0.5, 0.5)),
            r"std: expected one value per channel.*, got \(0.5, 0.5\)",
        ),
        (lambda: Normalized(resnet(8, 3), (0.5,), (0.0,)), r"std: expected finite values above 0, got \(0.0,\)"),
        (lambda: Normalized(resnet(8, 3), (0.5,), (0.5,), size=0), "size: expected at least 1 pixel, .*, got 0"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    """The message must say what was expected and what came; it must not come from deep inside torch."""
    with pytest.raises(ValueError, match=message):
        make()


def test_normalized_is_normalization_and_resizing_before_the_network() -> None:
    """Source and target see one batch in [0, 1], each by its own mean, std and size."""
    network = resnet(8, 3, 4).eval()
    model = Normalized(network, IMAGENET_MEAN, IMAGENET_STD, size=24)
    x = pictures(2, 3, 48, 40)
    small = F.interpolate(x, size=(24, 24), mode="bilinear", antialias=True)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(model(x), network((small - mean[:, None, None]) / std[:, None, None]))
    torch.testing.assert_close(model(small), model(x))
    assert Normalized(network, IMAGENET_MEAN, IMAGENET_STD)(x).shape == (2, 3)
    assert model.feature_layers == network.feature_layers


def test_normalized_moves_and_saves_its_statistics() -> None:
    """Mean and std must follow the network to another device or precision and into its checkpoint."""
    model = Normalized(resnet(8, 3, 4), IMAGENET_MEAN, IMAGENET_STD)
    assert {"mean", "std"} < set(model.state_dict())
    assert model.to(torch.float64)(pictures(2, 3, 16, 16).double()).dtype == torch.float64
    assert model.to("meta").mean.device.type == "meta"
    other = Normalized(resnet(8, 3, 4), (0.0,) * 3, (1.0,) * 3)
    model = Normalized(resnet(8, 3, 4), IMAGENET_MEAN, IMAGENET_STD)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other.mean.flatten(), torch.tensor(IMAGENET_MEAN))


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda values: [np.float64(value) for value in values]])
def test_normalized_takes_statistics_of_any_kind(kind: Callable) -> None:
    """Means and deviations come from NumPy or torch, in float64; the network stays in float32."""
    values = (0.5, 0.25, 1.0)
    wrapped = Normalized(nn.Conv2d(3, 1, 1), kind(values), kind(values))
    assert wrapped(torch.rand(2, 3, 4, 4)).dtype == torch.float32
    assert torch.equal(wrapped.std, Normalized(nn.Identity(), values, values).std)
    assert Normalized(nn.Identity(), [0, 0, 0], [1, 1, 1]).mean.dtype == torch.float32


def test_normalized_wraps_another_network_alike() -> None:
    """The exits cut out of an anytime network must see the images as the whole network does, to the bit."""
    model = Normalized(resnet(8, 3, 4), IMAGENET_MEAN, IMAGENET_STD, size=24).double()
    other = nn.Identity()
    wrapper = model.wrap(other)
    assert type(wrapper) is Normalized
    assert wrapper.network is other
    assert wrapper.size == 24
    assert torch.equal(wrapper.mean, model.mean)
    assert torch.equal(wrapper.std, model.std)
    assert wrapper.mean.dtype == torch.float64
    images = pictures(2, 3, 48, 40).double()
    assert torch.equal(wrapper(images), model.normalized(images))
    wrapper.mean.zero_()
    assert model.mean.any()
    assert model.to("meta").wrap(other).std.device.type == "meta"
    twice = Normalized(Normalized(resnet(8, 3, 4), (0.5,) * 3, (0.5,) * 3), (0.1,) * 3, (0.2,) * 3)
    assert torch.equal(twice.wrap(other)(images.float()), twice.network.normalized(twice.normalized(images.float())))


def test_normalized_refuses_what_is_no_image_in_01() -> None:
    """Bytes and greyscale are the usual slips, and would train in silence or break inside a convolution."""
    model = Normalized(resnet(8, 3, 4), IMAGENET_MEAN, IMAGENET_STD)
    with pytest.raises(ValueError, match=r"images: expected floats in \[0, 1\], got torch\.uint8; divide"):
        model(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"images: expected \(batch, 3, .* for Normalized, got \(2, 1, 32, 32\)"):
        model(pictures(2, 1, 32, 32))


def test_authors_names_cover_every_tensor() -> None:
    """The mapping carries the reference cases too, so it must be one to one and know every name that they use."""
    names = l2t_resnet32_names()
    assert list(names) == list(resnet(32, 200).state_dict())
    assert len(set(names.values())) == len(names)
    assert names["layer1.0.conv1.weight"] == "block1.conv1.weight"
    assert names["layer2.0.downsample.1.running_var"] == "block3.downsample.1.running_var"
    assert names["layer3.4.bn2.num_batches_tracked"] == "blocks6.3.bn2.num_batches_tracked"
    assert names["conv1.bias"] == "conv1.bias"


def test_authors_names_are_those_of_the_reference_case(shared: Callable[[str], Path]) -> None:
    """The reference numbers fill parameters by the authors' names: the sets and shapes must be the same."""
    with np.load(shared("reference/l2t_hypergradient.npz")) as case:
        order = json.loads(str(case["order"]))
    theirs = {name.removeprefix("source."): tuple(shape) for name, shape, _ in order if name.startswith("source.")}
    names = l2t_resnet32_names()
    assert {names[k]: tuple(v.shape) for k, v in resnet(32, 200).named_parameters()} == theirs
    targets = {name.removeprefix("target."): tuple(shape) for name, shape, _ in order if name.startswith("target.")}
    assert {k: tuple(v.shape) for k, v in vgg9(10).named_parameters()} == targets


def test_authors_checkpoint_gives_what_its_weights_say(shared: Callable[[str], Path]) -> None:
    """The loaded network against the authors' tensors under the authors' names, written out with plain operations."""
    path = shared("data/tinyimagenet_resnet32.pth.tar")
    model = load_l2t_resnet32(path)
    weights = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]

    def norm(x: Tensor, name: str) -> Tensor:
        keys = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{key}"] for key in keys))

    def block(x: Tensor, name: str, stride: int = 1) -> Tensor:
        inner = F.relu(norm(F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1), f"{name}.bn1"))
        inner = norm(F.conv2d(inner, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        if stride > 1:
            x = norm(F.conv2d(x, weights[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
        return F.relu(inner + x)

    images = pictures(4, 3, 32, 32)
    x = (images - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], weights["conv1.bias"], padding=1), "bn1"))
    stages = []
    for stage in (1, 2, 3):
        x = block(x, f"block{2 * stage - 1}", 1 if stage == 1 else 2)
        for i in range(4):
            x = block(x, f"blocks{2 * stage}.{i}")
        stages.append(x)
    logits = F.linear(x.mean((2, 3)), weights["fc.weight"], weights["fc.bias"])
    assert not any(module.training for module in model.modules())
    output, features = tap(model, model.feature_layers)(images)
    assert torch.isfinite(output).all()
    torch.testing.assert_close(output, logits, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(features.values(), stages, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def checkpoint(**changes: object) -> dict[str, object]:
    """A file like the authors', with some entries changed, added or (None) removed."""
    names, state = l2t_resnet32_names(), resnet(32, 200).state_dict()
    theirs = {names[k]: v for k, v in state.items()} | {"alphas.0": torch.zeros(1)} | changes
    return {"state_dict": {k: v for k, v in theirs.items() if v is not None}, "num_classes": 200}


def test_authors_form_is_read_back(tmp_path: Path) -> None:
    """Without the real file too: a file of their form loads strictly, and the unused `alphas` are no obstacle."""
    form = checkpoint()
    torch.save(form, tmp_path / "model.pth.tar")
    model = load_l2t_resnet32(str(tmp_path / "model.pth.tar"))
    assert torch.equal(model.network.layer2[1].conv1.weight, form["state_dict"]["blocks4.0.conv1.weight"])


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    """A wrong download is the commonest trouble with checkpoints; the message must say what is wrong with the file."""
    path = tmp_path / "model.pth.tar"
    with pytest.raises(FileNotFoundError):
        load_l2t_resnet32(path)
    stream = io.BytesIO()
    torch.save(checkpoint(), stream)
    for content in (b"", b"<html>404</html>", stream.getvalue()[:50_000]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError,
            match=r"model\.pth\.tar: expected .* authors' ResNet-32, got a truncated or foreign file",
        ):
            load_l2t_resnet32(path)
    foreign = [
        ([1, 2], "cannot be read"),
        (resnet(32, 200).state_dict(), "cannot be read"),
        (checkpoint(**{"fc.bias": None, "extra": torch.zeros(1)}), r"1 missing: fc\.bias, 1 unknown: extra$"),
        (checkpoint(**{"fc.bias": 3}), r"1 of another shape: fc\.bias$"),
        (checkpoint(**{"fc.weight": torch.zeros(10, 64)}), r"1 of another shape: fc\.weight$"),
        (
            {"state_dict": resnet(14, 200).state_dict()},
            r"missing: block1\.conv1\.weight, .*, \.\.\., \d+ unknown: layer1",
        ),
    ]
    for content, message in foreign:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_l2t_resnet32(path)


def test_values_of_another_kind_are_refused(tmp_path: Path) -> None:
    """torch would cast complex and whole numbers in silence; NaN would make every answer NaN."""
    bias, path = torch.zeros(200), tmp_path / "model.pth.tar"
    for other in (bias.long(), bias.to(torch.complex64), bias / 0, torch.zeros(200, device="meta")):
        torch.save(checkpoint(**{"fc.bias": other}), path)
        with pytest.raises(ValueError, match=r"1 not of finite numbers: fc\.bias$"):
            load_l2t_resnet32(path)
    torch.save(checkpoint(**{"fc.bias": bias.double() + 0.5}), path)
    assert torch.equal(load_l2t_resnet32(path).network.fc.bias, bias + 0.5)


def in_bytes(content: object, archive: bool = True) -> bytes:
    """The bytes of a file of torch, as an archive or in the form from before torch 1.6."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


FORM = checkpoint()
FILES = {True: in_bytes(FORM), False: in_bytes(FORM, archive=False)}


@settings(max_examples=examples(10))
@given(data=st.data(), archive=st.booleans(), whole=st.booleans())
def test_damaged_files(data: st.DataObject, archive: bool, whole: bool) -> None:
    """Random, truncated and bit-flipped files in both of torch's forms, and whole ones with parts of other types.

    An archive's checksums find every change; a file of the older form has none, and gives finite numbers or an error.
    """
    content = in_bytes(data.draw(altered(FORM)), archive) if whole else data.draw(damaged(FILES[archive]))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.pth.tar"
        path.write_bytes(content)
        model = checked(load_l2t_resnet32, path)
    if model is not None:
        for ours, theirs in l2t_resnet32_names().items():
            value = model.network.state_dict()[ours]
            assert value.isfinite().all()
            assert whole or not archive or torch.equal(value, FORM["state_dict"][theirs])


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_that_execute_code(archive: bool, tmp_path: Path) -> None:
    """Code in a file of either form, or in a plain pickle, is not executed."""
    mark, path = tmp_path / "executed", tmp_path / "model.pth.tar"
    within = checkpoint(**{"fc.bias": Creates(mark)})
    for content in (*hostile(mark), in_bytes(Creates(mark), archive), in_bytes(within, archive)):
        path.write_bytes(content)
        assert checked(load_l2t_resnet32, path) is None
    assert not mark.exists()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_normalized_resizes_in_reduced_precision(dtype: torch.dtype) -> None:
    """On a CPU, torch itself resizes with antialiasing in float32 and float64 only."""
    wrapped = Normalized(nn.Identity(), (0.5,) * 3, (0.2,) * 3, size=6)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = deepcopy(wrapped).to(dtype)(images)
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), wrapped(images.float()), atol=0.05, rtol=0.02)
