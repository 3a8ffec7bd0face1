"""Names that look like markup, paths, formulas or line breaks stay text: in run folders, tables, pictures and pages."""

import json
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tables
import torch
from PIL import Image
from tiny_runs import network, task, trainer
from torch import nn

import mtanytime as mt
from mtanytime.explore.budget import BudgetExplorer
from mtanytime.explore.export import export_csv
from mtanytime.explore.playground import AnytimePlayground
from mtanytime.explore.transfer import TransferExplorer

LAYERS = ["<script>", "two\nlines", "</script>", "'\"", "$x$", "\u2028", "\r", "a,b", "=1+1", "%s{x}", "\ud800"]
ODD = [*LAYERS, "..", "../up", "<!--<script>", "&lt;", "\x1b[31m", "\x00", "#1", " "]


def state_of(page: Path) -> dict[str, Any]:
    """What the page's script reads, after checking that the page has two scripts."""
    text = page.read_text("utf-8")
    assert text.count("<script") == text.count("</script") == 2
    return json.loads(re.search(r'id="state">(.*?)</script>', text, re.S).group(1))


def odd_transfer(folder: Path | None) -> mt.TransferTrainer:
    """A transfer of four steps from two sources; they and all layers have odd names."""

    def make() -> nn.Module:
        return nn.Sequential(OrderedDict(zip(LAYERS, network().children(), strict=True)))

    sources = {name: make().eval() for name in ("..", "a\nb")}
    layers = {
        "source_layers": {name: [LAYERS[1], LAYERS[6]] for name in sources},
        "target_layers": LAYERS[2:3],
    }
    settings = {"steps": 4, "batch_size": 5, "lr": 0.01, "beta": 0.1, "trace_every": 1}
    settings |= {"views": None, "teacher": None, "device": "cpu", "progress": False}
    return mt.TransferTrainer(sources, make(), task(), folder=folder, **layers, **settings)


def test_layers_and_sources_in_a_run_folder(tmp_path: Path) -> None:
    """A run whose layers have odd names is resumed with the numbers of an uninterrupted one, and becomes a page."""
    whole, folder = odd_transfer(None).train(), tmp_path / "a <script>\n$run$"
    for report in odd_transfer(folder):
        if report.step == 2:
            break
    resumed = odd_transfer(folder).train()
    for name in ("trace", "channels"):
        assert resumed.tables[name].equals(whole.tables[name])
    assert {name.partition("/")[2] for name in resumed.trace["source"]} == {"two\nlines", "\r"}
    export_csv(folder, tmp_path / "page.html")
    content = state_of(tmp_path / "page.html")["content"]
    assert content["sources"] == list(dict.fromkeys(whole.trace["source"]))
    assert content["targets"] == ["</script>"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [folder.name, "page.html"]


def test_names_in_pages(tmp_path: Path) -> None:
    """Names of layers and models arrive unchanged, and the page keeps its two scripts."""
    trace = tables.trace(sources=tuple(ODD), targets=tuple(reversed(ODD)), steps=(0,))
    content = state_of(TransferExplorer(trace).save_html(tmp_path / "trace.html"))["content"]
    assert content["sources"] == ODD
    assert content["targets"] == ODD[::-1]
    curve = pd.concat([tables.curve(seeds=1).query("model == 'sliced'").assign(model=name) for name in ODD])
    content = state_of(BudgetExplorer(curve).save_html(tmp_path / "curve.html"))["content"]
    assert [model["name"] for model in content["models"]] == ODD


@pytest.mark.parametrize("labels", [[2, 0], torch.tensor([2, 0])])
def test_classes_and_labels_of_a_playground(labels: Any, tmp_path: Path) -> None:
    """Odd names of classes arrive unchanged; labels may be a list or a tensor."""
    classes = ("<script>", "two\nlines", "</script>")
    model = mt.SlicedResNeXt(3, 8, 4, 2, 1, (4, 4), (1, 1)).eval()
    images = task().test.images[:2].numpy()
    playground = AnytimePlayground(model, images, classes, labels, repeats=1, progress=False)
    content = state_of(playground.save_html(tmp_path / "page.html"))["content"]
    assert content["truths"] == ["</script>", "<script>"]
    assert content["levels"] == [list(classes)]


def test_class_folders(tmp_path: Path) -> None:
    """Folders of images may have any name that the file system takes, bytes that are not UTF-8 included."""
    names = sorted([*(name for name in LAYERS if "/" not in name and name != "\ud800"), "\udcff"])
    for name in names:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (8, 8), (20 * len(name), 0, 0)).save(tmp_path / "images" / name / f"{i} \n.png")
    data = mt.data.image_folder(tmp_path / "images", 8)
    assert data.classes == tuple(names)
    make = lambda: network(len(names), dropout=0.3)  # noqa: E731
    trainer(tmp_path / "run", model=make(), data=mt.data.Task(data, data), epochs=1, validation=None).train()
    assert mt.load_run(tmp_path / "run", make()).classes == tuple(names)
    (tmp_path / "images" / names[0] / "x\n.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"x \.png: expected an image file") as caught:
        mt.data.image_folder(tmp_path / "images", 8)
    assert len(str(caught.value).splitlines()) == 1
