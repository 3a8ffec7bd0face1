"""What channels see: the file's pictures are the source's numbers, of the right channels; foreign files are refused."""

import json
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tables
import torch
from PIL import Image
from torch import nn
from typechecker import unchecked

from mtanytime.explore.contents.images import pixels
from mtanytime.explore.feature_maps import FILE, read_feature_maps, write_feature_maps
from mtanytime.explore.places import explored
from mtanytime.explore.transfer import TransferExplorer


class Source(nn.Module):
    """Layer `maps` has channel k = k times the red of the image, minus 1; dropout and batch norm would change a run."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(3, 8, 1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout(0.5)
        with torch.no_grad():
            self.maps.weight.zero_()
            self.maps.weight[:, 0, 0, 0] = torch.arange(8.0)
            self.maps.bias.fill_(-1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits of no meaning."""
        return self.drop(self.norm(self.maps(images))).mean((2, 3))


def channels(layer: str = "maps") -> pd.DataFrame:
    """Return weights that grow with the channel at the last step, and shrink at the first."""
    steps = ((0, np.arange(8)[::-1]), (9, np.arange(8)))
    rows = [{"step": s, "source": layer, "target": t} for s, _ in steps for t in "uv" for _ in range(8)]
    weights = np.concatenate([np.tile(w, 2) for _, w in steps]) / 28
    return pd.DataFrame(rows).assign(channel=np.tile(np.arange(8), 4), weight=weights)


def images(count: int = 2, size: int = 6) -> np.ndarray:
    """Return random images."""
    return np.random.default_rng(0).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def test_pictures_are_the_sources_numbers(tmp_path: Path) -> None:
    """Grey values, their scale and the chosen channels are those that numpy computes; the source stays as it was."""
    source, pictures = Source(), images()
    before = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    path = write_feature_maps(tmp_path, source, pictures, channels(), each=2)
    assert path == tmp_path / FILE
    content = read_feature_maps(path)
    assert list(content["layers"]) == ["maps"]
    assert sorted(map(int, content["layers"]["maps"])) == [0, 1, 6, 7]
    np.testing.assert_array_equal(pixels(content["images"][1]), pictures[1])
    red = np.concatenate(list(pictures[:, 0]), axis=1) / 255
    for channel in (1, 7):
        held = content["layers"]["maps"][str(channel)]
        grey = np.asarray(Image.open(BytesIO(b64decode(held["uri"].partition(",")[2]))))
        red = np.concatenate(list(pictures[:, 0]), axis=1) / 255
        np.testing.assert_allclose(
            (held["low"], held["high"]), (channel * red.min() - 1, channel * red.max() - 1), 1e-3
        )
        wanted = (red - red.min()) / (red.max() - red.min()) * 255
        assert np.abs(grey - wanted).max() <= 0.51
    assert source.training
    assert all(torch.equal(before[name], tensor) for name, tensor in source.state_dict().items())
    assert (
        path.read_bytes() == write_feature_maps(tmp_path / "again", source, pictures, channels(), each=2).read_bytes()
    )


def test_several_sources_and_large_maps(tmp_path: Path) -> None:
    """Layers of several networks are looked up in theirs; large maps are made smaller."""
    table = pd.concat([channels("birds/maps"), channels("cars/maps")])
    sources = {"birds": Source(), "cars": Source()}
    path = write_feature_maps(tmp_path / "f.json", sources, images(1, 200), table, each=1)
    assert list(read_feature_maps(path)["layers"]) == ["birds/maps", "cars/maps"]
    assert path.stat().st_size < 60_000


def test_explorers_find_the_file(tmp_path: Path) -> None:
    """It is found in a run's folder, once for seeds that share it, and a run without it has none."""
    trace = channels().groupby(["step", "source", "target"], as_index=False)["weight"].mean()
    for name in ("a", "b", "c"):
        folder = tmp_path / name
        folder.mkdir()
        trace.to_csv(folder / "trace.csv", index=False)
        channels().to_csv(folder / "channels.csv", index=False)
        if name != "c":
            write_feature_maps(folder, Source(), images(), folder)
    content = explored(tmp_path / "a")[0]
    assert (len(content["feature_maps"]), content["features"]) == (1, 0)
    assert explored(tmp_path / "a" / "channels.csv")[0]["feature_maps"] == content["feature_maps"]
    explorer = TransferExplorer([tmp_path / name for name in ("a", "b", "c")])
    assert len(explorer.content["feature_maps"]) == 1
    assert [run["features"] for run in explorer.content["runs"]] == [0, 0, None]
    assert TransferExplorer(tables.trace()).content["feature_maps"] == []


def test_what_cannot_be_written(tmp_path: Path) -> None:
    """Bad images, layers, channels and numbers are refused, an existing file is kept, and nothing is left behind."""
    path = tmp_path / "f.json"
    broken = Source()
    with torch.no_grad():
        broken.maps.bias.fill_(torch.nan)
    for change, message in (
        ({"images": images(9)}, "images: expected at most 8 images, got 9"),
        ({"images": images()[0]}, "images: expected a NumPy array of uint8"),
        ({"source": {"birds": Source()}}, r"source: expected a network for each layer of the table, got birds, none"),
        ({"channels": channels("other")}, "other"),
        (
            {"channels": channels().assign(channel=lambda t: t["channel"] + 4)},
            "layer maps: expected a channel 11, got 8",
        ),
        ({"source": broken}, "source: expected finite feature maps"),
        ({"each": 0}, "each: expected a number >= 1"),
    ):
        arguments = {"source": Source(), "images": images(), "channels": channels()} | change
        with pytest.raises(ValueError, match=message):
            unchecked(write_feature_maps)(path, **arguments)
        assert not path.exists()
    path.write_text("mine")
    with pytest.raises(ValueError, match="path: expected a new file"):
        write_feature_maps(path, Source(), images(), channels())
    assert path.read_text() == "mine"


GOOD = {"form": "mtanytime feature maps 1", "images": ["data:image/png;base64,AAAA"]}
MAP = {"uri": "data:image/png;base64,AAAA", "low": 0.0, "high": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[" * 100_000,
        "[]",
        json.dumps({"images": []}),
        json.dumps(GOOD | {"layers": [1]}),
        json.dumps(GOOD | {"layers": {}, "form": "other"}),
        json.dumps(GOOD | {"layers": {}, "images": ["https://example.org/x.png"]}),
        json.dumps(GOOD | {"layers": {"a": {"1": MAP | {"uri": "javascript:alert(1)"}}}}),
        json.dumps(GOOD | {"layers": {"a": {"x": MAP}}}),
        json.dumps(GOOD | {"layers": {"a": {"1": MAP | {"low": "<b>"}}}}),
        '{"form": "mtanytime feature maps 1", "images": ["data:image/png;base64,AA"], "layers": {"a": {"1": NaN}}}',
    ],
)
def test_foreign_files(content: str, tmp_path: Path) -> None:
    """A file in a run's folder that is damaged, or that would load something, is one line of error."""
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match="expected a file that write_feature_maps wrote, got") as caught:
        read_feature_maps(tmp_path / FILE)
    assert "\n" not in str(caught.value)
