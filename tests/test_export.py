"""An exported network answers as torch does, in steps, without torch, and says what is wrong with its folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import Tensor, nn
from typechecker import unchecked

import mtanytime as mt
from mtanytime.__main__ import main
from mtanytime.anytime.cascade import SliceCascade
from mtanytime.anytime.folding import fold_batch_norms
from mtanytime.anytime.slice_shape import SliceShape
from mtanytime.anytime.sliced_resnet import SlicedResNet
from mtanytime.data.pixels import read_pixels
from mtanytime.deploy.export import _job
from mtanytime.deploy.steps import chain_of
from mtanytime.deploy.weights import SharedWeights
from mtanytime.devices import processor
from mtanytime.measure.costs import parameters
from mtanytime.measure.runtimes import write_onnx
from mtanytime.training.stored_run import StoredRun

predict = pytest.importorskip("mtanytime.deploy.predict", reason="the extra export is not installed")


def unsettled(network: nn.Module) -> nn.Module:
    """The network with batch norms far from their start, so that folding and slicing them wrongly shows."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name, low, high in (
                ("weight", 0.5, 2),
                ("bias", -1, 1),
                ("running_mean", -1, 1),
                ("running_var", 1, 3),
            ):
                value = getattr(module, name)
                value.data.copy_(low + (high - low) * torch.rand(value.shape, generator=generator))
    return network


def sliced_resnet() -> nn.Module:
    """Two slices; all norms fold; squeeze-and-excitation and a normalization."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SlicedResNet(5, SliceShape(((6, 4), (8, 8)), stem_stride=1, squeeze=2))
    return mt.Normalized(unsettled(network), (0.4, 0.5, 0.6), (0.2, 0.3, 0.2))


def sliced_resnext() -> nn.Module:
    """Two slices whose norms do not all fold, and 1×1 convolutions."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        sizes = {"slice_widths": (4, 8), "slice_branches": (1, 2)}
        return unsettled(mt.SlicedResNeXt(5, width=12, bottleneck=2, branches=3, blocks=1, **sizes))


def slice_cascade() -> nn.Module:
    """Three slices, each of which hands on a map per stage."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return unsettled(SliceCascade(5, SliceShape(((6, 4, 2), (8, 8, 4)), 2, "inverted", 1, 3, 2)))


def some_images(count: int, seed: int = 0, size: int = 8) -> Tensor:
    """Images in [0, 1]."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sliced ResNet, with class names and a test set."""
    folder = tmp_path_factory.mktemp("export") / "resnet"
    test = mt.data.ImageSet((255 * some_images(20)).byte(), [0, 1, 2, 3, 4] * 4, tuple("abcde"))
    mt.export(sliced_resnet(), folder, image_shape=(3, 8, 8), test=test, progress=False)
    return folder


def assert_like_torch(network: nn.Module, folder: Path, size: int = 8) -> None:
    """Every exit alone, every step, what steps hand on, and the programs of torch.export, for batches of any size."""
    predictor = predict.Predictor(folder)
    inner = network.network if isinstance(network, mt.Normalized) else network
    network.eval()
    for count in (1, 3):
        images = some_images(count, count, size)
        with torch.no_grad():
            expected = network(images)
        answers = list(predictor.answers(images.numpy()))
        assert [answer.exit for answer in answers] == list(range(1, inner.exits + 1))
        for k, right in enumerate(expected, 1):
            np.testing.assert_allclose(answers[k - 1].logits, right, atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(predictor.predict(images.numpy(), k), right, atol=1e-5, rtol=1e-5)
            program = torch.export.load(folder / f"exit{k}.pt2").module()
            torch.testing.assert_close(program(images), right, atol=1e-5, rtol=1e-5)
    state: dict[str, np.ndarray] = {"images": images.numpy()}
    for part, (step, example, count) in zip(predictor.manifest["steps"], chain_of(network, images), strict=True):
        np.testing.assert_equal([state[name].shape for name in part["inputs"][1:]], [list(e.shape) for e in example])
        outputs = predictor._session(part).run(None, {name: state[name] for name in part["inputs"]})
        state |= dict(zip(part["outputs"], outputs, strict=True))
        with torch.no_grad():
            handed_on = step(images, tuple(example))[1:]
        assert len(handed_on) == count == len(part["outputs"]) - 1
        for name, right in zip(part["outputs"][1:], handed_on, strict=True):
            np.testing.assert_allclose(state[name], right, atol=1e-5, rtol=1e-5)


def test_sliced_resnet(exported: Path) -> None:
    """With everything that the manifest says of it."""
    network = sliced_resnet()
    assert_like_torch(network, exported)
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["classes"] == list("abcde")
    assert manifest["image_shape"] == [3, 8, 8]
    assert manifest["normalization"]["mean"] == pytest.approx([0.4, 0.5, 0.6])
    parts = [*manifest["exits"], *manifest["steps"]]
    assert all(part["ms"]["1"] > 0 and part["ms"]["64"] > 0 and part["largest_difference"] <= 1e-5 for part in parts)
    assert [part["macs"] for part in manifest["exits"]] == [
        mt.measure.macs(network.network.eval().extract(k), (3, 8, 8)) for k in (1, 2)
    ]
    assert all((part["accuracy"] * 20) % 1 == pytest.approx(0) for part in manifest["exits"])
    folded = fold_batch_norms(network.network)
    once = 4 * sum(p.numel() for p in folded.parameters() if p.ndim > 1)
    assert (exported / "weights.bin").stat().st_size < 1.1 * once  # exits and steps share the weights
    for file in exported.glob("*.onnx"):
        assert str(Path.cwd()).encode() not in file.read_bytes(), f"{file} names folders of this machine"


def test_sliced_resnext(tmp_path: Path) -> None:
    """Buffers that are filled in place become concatenations, a product becomes a convolution."""
    network = sliced_resnext().train()
    mt.export(network, tmp_path / "out", image_shape=(3, 8, 8), progress=False)
    assert network.training
    assert_like_torch(network, tmp_path / "out")


def test_slice_cascade(tmp_path: Path) -> None:
    """Each step hands on the outputs of its stages and its features, and computes one slice."""
    network = slice_cascade()
    mt.export(network, tmp_path / "out", image_shape=(3, 8, 8), progress=False)
    assert_like_torch(network, tmp_path / "out")
    steps = json.loads((tmp_path / "out" / "manifest.json").read_text())["steps"]
    assert [len(part["outputs"]) for part in steps] == [4, 4, 4]  # logits, two stages, features


@pytest.mark.parametrize(("precision", "most", "share"), [("float16", 0.01, 0.6), ("int8", 0.2, 0.4)])
def test_precision(precision: str, most: float, share: float, tmp_path: Path) -> None:
    """An ordinary network is one exit; rounded weights are smaller and answer almost alike, in float32."""
    network = tiny.made(16)
    stored = StoredRun(network.eval(), ("x", "y", "z"), (3, 8, 8), 0.5, None, 1, {}, {})
    manifest = mt.export(stored, tmp_path / "out", precision=precision, torch_export=False, progress=False)
    (part,) = manifest["exits"]
    assert manifest["steps"] == []
    assert "accuracy" not in part
    assert 0 < part["largest_difference"] < most
    weights = 4 * sum(p.numel() for p in network.parameters() if p.ndim > 1)
    assert (tmp_path / "out" / "weights.bin").stat().st_size < share * weights
    images = some_images(2).numpy()
    predictor = predict.Predictor(tmp_path / "out")
    np.testing.assert_allclose(predictor.predict(images), network(torch.from_numpy(images)).detach(), atol=most)
    (answer,) = predictor.answers(images)
    assert (predictor.classes, answer.exit) == (["x", "y", "z"], 1)


def test_deadlines(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not expected to end in time is not started; the first one always is."""
    predictor, image = predict.Predictor(exported), some_images(1).numpy()
    ms = [part["ms"]["1"] for part in predictor.manifest["steps"]]
    assert [predictor.expected_ms(k, 3) for k in (1, 2)] == pytest.approx([3 * ms[0], 3 * ms[1]])
    assert predictor.answer_by(image, 1e6).exit == 2
    assert predictor.answer_by(image, 1e-6).exit == 1
    predictor.warm_up()
    times = predictor._times[1]
    assert [len(part) for part in (times.first, *times.ratios)] == [predict.REMEMBERED] * 3

    def remember(first: float, *ratios: float) -> None:
        times.first.extend([first] * predict.REMEMBERED)
        times.ratios[1].clear()
        times.ratios[1].extend(ratios)

    remember(100, *[2] * 9, 80)  # one slow moment does not count
    assert predictor.expected_ms(2, 1) < 100 * 80 / 2
    remember(100, 2)
    assert predictor.answer_by(image, 190).exit == 1
    remember(100, 2)
    answer = predictor.answer_by(image, 210)
    assert answer.exit == 2
    assert 0 < answer.milliseconds < 210
    assert len(times.ratios[1]) == 2  # and it has learned how long the step took


def test_images_leave_when_they_are_sure(exported: Path) -> None:
    """Each image has the answer of the first exit that is sure enough, as if it had been alone."""
    predictor, images = predict.Predictor(exported), some_images(40, 5).numpy()
    first, last = predictor.answers(images)
    at = float(np.median(first.probabilities.max(axis=1)))
    answer = predictor.until_sure(images, at)
    sure = first.probabilities.max(axis=1) >= at
    assert set(answer.exit) == {1, 2}
    assert (answer.exit == np.where(sure, 1, 2)).all()
    expected = np.where(sure[:, None], first.logits, last.logits)
    np.testing.assert_allclose(answer.logits, expected, atol=1e-5)
    assert (predictor.until_sure(images, 0.0).exit == 1).all()
    assert (predictor.until_sure(images * np.nan, 0.0).exit == 2).all()
    for keep in (np.array([1, 0] * 20), [True]):
        steps = predictor.answers(images)
        next(steps)
        with pytest.raises(ValueError, match="keep: expected 40 of True and False, one per image"):
            steps.send(keep)


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "mtanytime", "onnx", "onnxscript", "pandas", "scipy"):
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def command_line(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the folder's own file where torch cannot be imported."""
    command = [sys.executable, "-I", "-c", WITHOUT_TORCH, str(folder / "predict.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_command_line_without_torch(exported: Path, tmp_path: Path) -> None:
    """Image files in, classes' names out; a copy of the folder on another machine needs nothing else."""
    folder = tmp_path / "copied"
    shutil.copytree(exported, folder)
    pixels = (some_images(1)[0].permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(pixels).save(tmp_path / "small.png")
    Image.fromarray(pixels).resize((20, 10)).save(tmp_path / "large.jpg")
    (tmp_path / "none.png").write_text("no picture")
    done = command_line(folder, str(tmp_path / "small.png"))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == str(tmp_path / "small.png")
    assert lines[1].startswith("  exit 1 of 2, ")
    logits = predict.Predictor(exported).predict(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255)
    assert f" ms: {'abcde'[logits.argmax()]} {predict.softmax(logits).max():.1%}, " in lines[2]
    both = [str(tmp_path / name) for name in ("small.png", "large.jpg")]
    done = command_line(folder, *both, "--resize", "--deadline", "5000", "--top", "1", "--threads", "2")
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [
        both[0],
        "  exit 2 of 2",
        both[1],
        "  exit 2 of 2",
    ]
    assert len(command_line(folder, both[0], "--sure", "0").stdout.splitlines()) == 2
    for arguments, error in (
        (both, "large.jpg: expected an image of 8 × 8 pixels, got 20 × 10; --resize accepts other sizes"),
        ([str(tmp_path / "none.png")], "none.png: expected an image file, got UnidentifiedImageError"),
        ([both[0], "--deadline", "0"], "--deadline: expected a number of milliseconds > 0, got 0.0"),
        ([both[0], "--sure", "2"], "--sure: expected a number from 0 to 1, got 2.0"),
        ([both[0], "--threads", "0"], "threads: expected a whole number from 1 to "),
        ([both[0], "--folder", str(tmp_path)], "expected an exported network with manifest.json"),
    ):
        done = command_line(folder, *arguments)
        assert done.returncode == 1
        assert error in done.stderr
        assert "Traceback" not in done.stderr


def cut(file: Path) -> None:
    """Keep the first half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def changed(manifest: Path, change: Any) -> None:
    """Change the contents of a manifest."""
    contents = json.loads(manifest.read_text())
    change(contents)
    manifest.write_text(json.dumps(contents))


def rotated(step: dict[str, Any]) -> list[str]:
    """A step's outputs, the last of them after the logits."""
    first, *others, last = step["outputs"]
    return [first, last, *others]


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda f: cut(f / "step2.onnx"), r"step2.onnx: expected \d+ bytes, as in manifest.json, got \d+"),
        (lambda f: cut(f / "weights.bin"), r"weights.bin: expected \d+ bytes"),
        (lambda f: (f / "exit1.onnx").unlink(), r"exit1.onnx: expected \d+ bytes, as in manifest.json, got no file"),
        (lambda f: cut(f / "manifest.json"), "manifest.json: expected a manifest in JSON"),
        (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json: expected a manifest with format"),
        (lambda f: changed(f / "manifest.json", lambda m: m.update(version=2)), "expected version 1"),
        (lambda f: changed(f / "manifest.json", lambda m: m.pop("classes")), "expected a complete manifest"),
        (
            lambda f: changed(f / "manifest.json", lambda m: m["steps"].pop()),
            "expected as many steps as exits, or none, got 1",
        ),
        (
            lambda f: changed(f / "manifest.json", lambda m: m["steps"].reverse()),
            "expected the steps in order, got step2.onnx",
        ),
        (
            lambda f: changed(f / "manifest.json", lambda m: m["steps"][0]["outputs"].pop()),
            r"step1.onnx: expected outputs .*, as in manifest.json, got",
        ),
        (
            lambda f: changed(f / "manifest.json", lambda m: m["steps"][0]["outputs"].sort(reverse=True)),
            "expected images and logits of step1.onnx",
        ),
        (
            lambda f: changed(
                f / "manifest.json", lambda m: m["steps"][0]["outputs"].insert(1, m["steps"][0]["outputs"].pop())
            ),
            r"step1.onnx: expected outputs .*, as in manifest.json",
        ),
        (
            lambda f: changed(f / "manifest.json", lambda m: m["exits"][0].update(graph="exit2.onnx")),
            "expected the exits in order, got exit2.onnx",
        ),
        (
            lambda f: changed(f / "manifest.json", lambda m: m["exits"][0].update(graph="../exit1.onnx")),
            "expected the exits in order",
        ),
        (lambda f: changed(f / "manifest.json", lambda m: m["files"].pop("weights.bin")), "complete manifest"),
        (lambda f: changed(f / "manifest.json", lambda m: m.update(classes=["a"])), "expected 5 classes, got 1"),
        (lambda f: changed(f / "manifest.json", lambda m: m.update(classes="abcde")), "classes that are names"),
        (lambda f: changed(f / "manifest.json", lambda m: m.update(image_shape=[3, -8, 8])), "an image_shape of three"),
        (
            lambda f: changed(f / "manifest.json", lambda m: m["exits"][0]["ms"].update({"1": 0})),
            "milliseconds of exit1",
        ),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest in JSON"),
    ],
)
def test_damaged_folder(damage: Any, error: str, exported: Path, tmp_path: Path) -> None:
    """One clear error when the folder is opened."""
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    damage(folder)
    with pytest.raises(ValueError, match=error):
        predict.Predictor(folder)


def test_files_that_are_not_read_may_be_missing(exported: Path, tmp_path: Path) -> None:
    """Where there is no torch, its programs only take space; the runner may be edited or kept elsewhere."""
    folder = tmp_path / "small"
    shutil.copytree(exported, folder)
    for file in (*folder.glob("*.pt2"), folder / "predict.py"):
        file.unlink()
    assert predict.Predictor(folder).exits == 2


def test_images_are_read_as_for_training(tmp_path: Path) -> None:
    """Orientation, transparency, 16 bits and cropping as in `image_folder`, or answers would silently be worse."""
    generator = np.random.default_rng(0)
    rgb = generator.integers(0, 256, (48, 64, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "photo.png", exif=turned)
    Image.fromarray(np.dstack([rgb, rgb[..., :1]])).save(tmp_path / "clear.png")
    Image.fromarray(generator.integers(0, 65536, (48, 64), dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(generator.random((48, 64), dtype=np.float32)).save(tmp_path / "floats.tiff")
    for file in (*tmp_path.glob("*.png"), tmp_path / "floats.tiff"):
        ours = predict.read_image(file, (3, 16, 16), resize=True)
        np.testing.assert_allclose(ours, read_pixels(file, 16).numpy() / 255, atol=1e-6)
    Image.fromarray(np.full((8, 8), 3, np.float32)).save(tmp_path / "bright.tiff")
    with pytest.raises(ValueError, match=r"float grey levels in \[0, 1\], got 3 to 3"):
        predict.read_image(tmp_path / "bright.tiff", (3, 8, 8))
    (tmp_path / "program.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    with pytest.raises(ValueError, match="PostScript is a program"):
        predict.read_image(tmp_path / "program.png", (3, 16, 16))


def test_a_foreign_graph_of_the_same_size(exported: Path, tmp_path: Path) -> None:
    """The checksum tells it."""
    folder = tmp_path / "damaged"
    shutil.copytree(exported, folder)
    contents = bytearray((folder / "exit1.onnx").read_bytes())
    contents[len(contents) // 2] ^= 1
    (folder / "exit1.onnx").write_bytes(contents)
    with pytest.raises(ValueError, match=r"exit1.onnx: expected the contents that manifest.json names"):
        predict.Predictor(folder)


class Branching(nn.Module):
    """A network that asks what its images are, which no graph can."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits, of one kind or another."""
        features = images.mean(dim=(2, 3))
        return features if features.sum() > 0 else -features


def test_bad_arguments(exported: Path, tmp_path: Path) -> None:
    """Each is refused before anything is written, and nothing is overwritten."""
    network, before = tiny.made(), {path: path.read_bytes() for path in exported.iterdir() if path.is_file()}
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    images = tiny.images(size=16)
    usual = {"network": network, "folder": tmp_path / "new", "image_shape": (3, 8, 8), "progress": False}
    for arguments, error in (
        ({"folder": exported}, r"folder: expected a new or empty folder, got .*, which holds another export"),
        ({"folder": tmp_path / "notes"}, "which holds other files"),
        ({"folder": tmp_path / "notes" / "a.txt"}, "expected a new folder, got the file"),
        ({"image_shape": (3, 8)}, r"image_shape: expected three sizes >= 1: channels, height, width, got \(3, 8\)"),
        ({"classes": ("a", "b")}, "classes: expected 3 names, one per output, got 2"),
        ({"test": images}, r"test: expected images of shape \(3, 8, 8\), got \(3, 16, 16\)"),
        ({"test": tiny.images(classes=4)}, "test: expected 3 classes, the outputs, got 4"),
        ({"image_shape": (5, 8, 8)}, r"image_shape: expected images that TinyNet can read, got \(5, 8, 8\)"),
        ({"classes": "abc"}, "classes: expected a sequence of names, got 'abc'"),
        ({"network": Branching()}, "network: expected one that torch.export traces for a batch of any size"),
    ):
        with pytest.raises(ValueError, match=error):
            mt.export(**usual | arguments)
    with pytest.raises(ValueError, match="precision: expected one of"):
        SharedWeights(tmp_path, "float64")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes"]
    assert before == {path: path.read_bytes() for path in exported.iterdir() if path.is_file()}


def test_images_of_another_kind(exported: Path) -> None:
    """Shape and type are named."""
    predictor = predict.Predictor(exported)
    expected = r"images: expected float32 in \[0, 1\] of shape \(batch, 3, 8, 8\), got "
    for images, got in (
        (np.zeros((1, 3, 9, 8), np.float32), r"float32 \(1, 3, 9, 8\)"),
        (np.zeros((3, 8, 8), np.float32), r"float32 \(3, 8, 8\)"),
        (np.zeros((1, 3, 8, 8), np.uint8), "uint8"),
        (np.zeros((0, 3, 8, 8), np.float32), r"float32 \(0, 3, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=expected + got):
            next(predictor.answers(images))
        with pytest.raises(ValueError, match=expected):
            predictor.predict(images)
    with pytest.raises(ValueError, match="exit: expected an exit from 1 to 2, got 3"):
        predictor.predict(some_images(1).numpy(), 3)


def test_equal_weights_are_stored_once(tmp_path: Path) -> None:
    """Also where two tensors of one graph are equal."""
    onnx = pytest.importorskip("onnx")
    weights = SharedWeights(tmp_path)
    large = np.arange(128, dtype=np.float32).reshape(2, 64)
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in (("a", large), ("b", large), ("c", -large))]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], tensors))
    assert weights.move(model) == 2 * large.nbytes
    assert (tmp_path / "weights.bin").read_bytes() == large.tobytes() + (-large).tobytes()


def test_absent_connections_are_not_stored(tmp_path: Path) -> None:
    """An exit runs ordinary convolutions, but their zeros are made when the graph is loaded."""
    shape = SliceShape(((16, 16), (32, 32)))
    exit = fold_batch_norms(SlicedResNet(5, shape).extract(2))
    write_onnx(exit, tmp_path / "exit.onnx")
    graph = pytest.importorskip("onnx").load(tmp_path / "exit.onnx").graph
    stored = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    assert stored < 1.01 * parameters(exit) < 0.9 * parameters(fold_batch_norms(exit, dense=True))
    assert sum(node.op_type == "Conv" for node in graph.node) == 6  # the first, two per block, one beside the second


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`export RUN FOLDER` takes network, classes and image shape from the run; an error is one line."""
    stored = StoredRun(tiny.made().eval(), ("x", "y", "z"), (3, 8, 8), 0.75, None, 1, {}, {})
    monkeypatch.setattr("mtanytime.__main__.load_part", lambda folder, weights: stored)
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    assert "accuracy 75.0%" in capsys.readouterr().out
    assert predict.Predictor(tmp_path / "out").classes == ["x", "y", "z"]
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 1
    assert "which holds another export" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "new"), "--page", str(tmp_path / "page.html")]) == 1
    assert "--onnxruntime-web: expected the npm package, for --page, got None" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_shared_convolution(tmp_path: Path) -> None:
    """Two norms after one convolution cannot both be folded into it; graphs are compared with the network itself."""
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fold_batch_norms(nn.Sequential(block, block)).modules())
    shared = nn.Conv2d(3, 3, 3, padding=1)
    norms = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    network = nn.Sequential(shared, norms[0], nn.ReLU(), shared, norms[1], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    unsettled(network).eval()
    images = some_images(4)
    torch.testing.assert_close(fold_batch_norms(network)(images), network(images))
    job = _job(network, (3, 8, 8), None, None, "float32")
    torch.testing.assert_close(torch.from_numpy(job.expected[0]), network(job.images).detach())


class Masked(nn.Module):
    """A network with a mask of -inf, as attention has one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.register_buffer("mask", torch.full((64, 64), -torch.inf).triu(1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        values = self.linear(images.mean(1).flatten(1))
        return ((values[:, :, None] * values[:, None] + self.mask).softmax(2) @ values[:, :, None])[:, :, 0]


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_values_that_cannot_be_rounded(precision: str, tmp_path: Path) -> None:
    """What is not finite stays as it is, and so do the answers."""
    torch.manual_seed(0)
    manifest = mt.export(Masked(), tmp_path / "new", image_shape=(3, 8, 8), precision=precision, progress=False)
    assert manifest["exits"][0]["largest_difference"] < 0.02


def test_homes_are_found(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path with ~ is meant to be in one's home."""
    monkeypatch.setenv("HOME", str(exported.parent))
    monkeypatch.setenv("USERPROFILE", str(exported.parent))
    assert predict.Predictor(f"~/{exported.name}").exits > 1
    with pytest.raises(ValueError, match="a file that does not exist yet"):
        mt.deploy.export_page(exported, f"~/{exported.name}", "onnxruntime-web")


def test_one_accuracy_of_several_exits() -> None:
    """A run that measured one exit says nothing about the others; found before the graphs are written."""
    run = StoredRun(sliced_resnet(), None, (3, 8, 8), 0.5, None, 1, {}, {})
    assert _job(run, None, None, None, "float32").accuracy is None


def test_classes_in_another_order() -> None:
    """The accuracy would be of other classes than the manifest names."""
    run = StoredRun(tiny.made(), ("class 2", "class 1", "class 0"), (3, 8, 8), 0.5, None, 1, {}, {})
    with pytest.raises(ValueError, match=r"^test: expected the run's classes \['class 2', .*, got \['class 0', "):
        _job(run, None, None, tiny.images(), "float32")


class Picky(nn.Module):
    """A network with one size of images, which it asserts, as torchvision's ViT does."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        assert images.shape[2] == 16, "Wrong image height!"
        return images.mean(dim=(2, 3))


def test_networks_that_assert(tmp_path: Path) -> None:
    """Whatever a network raises, the error names the size that was tried."""
    with pytest.raises(ValueError, match=r"image_shape: expected images that Picky can read, got .*Wrong image height"):
        mt.export(Picky(), tmp_path / "new", image_shape=(3, 8, 8), progress=False)


def test_times_are_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU, what runs on the CPU is not said to run on the GPU."""
    cpu = processor()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    assert processor() == processor(torch.device("cuda")) == "a GPU"
    assert processor(torch.device("cpu")) == cpu


def test_accuracy_of_another_image_size_is_left_out() -> None:
    """A run's accuracy is of the images that it was measured on."""
    run = StoredRun(sliced_resnet(), None, (3, 16, 16), [0.5, 0.6], None, 1, {}, {})
    assert _job(run, None, None, None, "float32").accuracy == [0.5, 0.6]
    assert _job(run, (3, 8, 8), None, None, "float32").accuracy is None


def test_classes_in_another_order_than_the_test_set() -> None:
    """The answers would have the wrong names, beside an accuracy scored with the right ones."""
    test = tiny.images(classes=5, size=8)
    names = list(test.classes)
    with pytest.raises(ValueError, match="classes: expected the test set's classes in their order"):
        _job(sliced_resnet(), (3, 8, 8), names[::-1], test, "float32")
    assert unchecked(_job)(sliced_resnet(), (3, 8, 8), np.array(names), test, "float32").classes == names


def test_weights_too_small_for_a_factor() -> None:
    """Weights of a channel that has decayed are stored as 0 in int8, without a division by 0."""
    onnx = pytest.importorskip("onnx")
    weights = SharedWeights.__new__(SharedWeights)
    weights.precision = "int8"
    array = np.stack([np.full(6, 1e-44, np.float32), np.linspace(-1, 1, 6, dtype=np.float32)])
    with np.errstate(divide="raise", invalid="raise"):
        whole, _, _ = weights._stored(onnx, "weight", array)
    assert (whole[0] == 0).all()
    assert abs(whole[1]).max() == 127
