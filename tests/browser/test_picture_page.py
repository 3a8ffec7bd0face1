"""The page of an exported network in a real browser, from a file and offline: a picture in, sharper answers out."""

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mtanytime as mt
from mtanytime.anytime.slice_shape import SliceShape
from mtanytime.anytime.sliced_resnet import SlicedResNet
from mtanytime.data.images import ImageSet
from mtanytime.deploy.page import export_page

predict = pytest.importorskip("mtanytime.deploy.predict", reason="the extra export is not installed")
VERSION = "1.30.0"
CLASSES = ("ant", "bee", "<cat>", "dog", "elk")


@pytest.fixture(scope="session")
def package(request: pytest.FixtureRequest) -> Path:
    """The archive of onnxruntime-web: downloaded once by npm, and kept with pytest's cache."""
    folder = request.config.cache.mkdir("onnxruntime-web")
    archive = folder / f"onnxruntime-web-{VERSION}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("there is no npm to download onnxruntime-web with")
        command = [npm, "pack", f"onnxruntime-web@{VERSION}"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            pytest.skip(f"npm could not download onnxruntime-web: {done.stderr[-200:]}")
    return archive


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported network of three slices whose answers differ."""
    place = tmp_path_factory.mktemp("picture") / "network"
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = SlicedResNet(5, SliceShape(((4, 4, 4), (8, 8, 8))))
    settings = {"image_shape": (3, 16, 16), "classes": CLASSES, "precision": "float16"}
    mt.export(network, place, torch_export=False, progress=False, **settings)
    return place


def some_images(count: int) -> ImageSet:
    """Plain colours."""
    generator = torch.Generator().manual_seed(1)
    colours = torch.randint(0, 256, (count, 3, 1, 1), generator=generator).byte()
    return ImageSet(colours.expand(-1, -1, 16, 16).contiguous(), [i % 5 for i in range(count)], CLASSES)


def test_a_picture_under_a_deadline(tab: Callable[..., Any], folder: Path, package: Path, tmp_path: Path) -> None:
    """The answers equal onnxruntime's; a shorter deadline leaves steps out; keyboard, examples and errors work."""
    examples = some_images(3)
    path = export_page(folder, tmp_path / "page.html", package, examples=examples)
    page = tab(offline=True)
    page.on("console", lambda message: pytest.fail(message.text) if message.type == "error" else None)
    page.on("request", lambda request: pytest.fail(request.url) if request.url.startswith("http") else None)
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]", timeout=60_000)
    assert "all 3 answers take" in page.locator("#status").inner_text()
    predictor = predict.Predictor(folder)

    def expect(image: np.ndarray) -> None:
        pixels = image[None].astype(np.float32) / 255
        first, *_, last = (predict.softmax(answer.logits)[0] for answer in predictor.answers(pixels))
        order = np.argsort(-last)
        expected = [f"{100 * share:.1f} %" for share in (last[order[0]], first[order[0]])]
        until = time.monotonic() + 20
        while time.monotonic() < until:
            rows = [row.split("\t") for row in page.locator("#answers").inner_text().splitlines()]
            if len(rows) == 4 and [rows[3][2], rows[1][2]] == expected:
                break
            page.locator("#deadline").press("ArrowLeft")  # once more, in case that the machine was busy
            page.locator("#deadline").press("End")
            page.wait_for_timeout(100)
        assert rows[0] == ["exit", "time", *(CLASSES[k] for k in order)]
        assert rows[3][2:] == [f"{100 * last[k]:.1f} %" for k in order]
        assert rows[1][2] == expected[1]
        assert page.locator("#answer").inner_text() == f"{CLASSES[order[0]]}, {expected[0]}"

    page.locator(".example").nth(1).click()
    expect(examples.images[1].numpy())
    file = tmp_path / "picture.png"  # lossless, and of another size: plain colours stay as they are
    Image.fromarray(examples.images[2].permute(1, 2, 0).numpy()).resize((40, 30)).save(file)
    page.locator("#file").set_input_files(file)
    expect(examples.images[2].numpy())
    slider = page.locator("#deadline")
    slider.focus()
    page.keyboard.press("Home")
    page.wait_for_selector("#answers tr.missing")
    assert re.match(r"exit 1 of 3, after [\d.]+ ms", page.locator("#how").inner_text())
    assert page.locator("#answers tr.missing").count() == 2
    assert slider.get_attribute("aria-valuetext") == page.locator("#deadline-text").inner_text()
    (tmp_path / "none.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "none.png")
    page.wait_for_function("() => document.querySelector('#error').textContent !== ''")
    assert page.locator("#error").inner_text().startswith("none.png: expected an image file that this browser can read")


def test_bad_packages(folder: Path, tmp_path: Path) -> None:
    """What is missing and how to get it; a page is not overwritten."""
    with pytest.raises(FileNotFoundError, match=r"expected the npm package, got .*; `npm pack"):
        export_page(folder, tmp_path / "page.html", tmp_path / "none.tgz")
    with pytest.raises(ValueError, match=r"expected a package with dist/ort.wasm.bundle.min.mjs, got"):
        export_page(folder, tmp_path / "page.html", tmp_path)
    (tmp_path / "odd.tgz").write_text("no archive")
    with pytest.raises(ValueError, match="expected an archive of the npm package"):
        export_page(folder, tmp_path / "page.html", tmp_path / "odd.tgz")
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(ValueError, match="file: expected a file that does not exist yet"):
        export_page(folder, tmp_path / "page.html", tmp_path / "odd.tgz")
    odd = ImageSet(torch.zeros(1, 3, 8, 8).byte(), [0], ("a",))
    with pytest.raises(ValueError, match=r"examples: expected images of shape \(3, 16, 16\), got \(3, 8, 8\)"):
        export_page(folder, tmp_path / "new.html", tmp_path / "odd.tgz", examples=odd)
    assert (tmp_path / "page.html").read_text() == "mine"
