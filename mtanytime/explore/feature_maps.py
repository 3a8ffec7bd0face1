"""What a source's channels see: the feature maps of its most and least weighted channels on a few images, in a file."""

import base64
import io
import json
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mtanytime.checks import Words, mismatch, require
from mtanytime.explore import tables
from mtanytime.explore.contents.images import data_uri, require_images
from mtanytime.features import tap
from mtanytime.functional import trial_run
from mtanytime.measure.costs import device_and_dtype
from mtanytime.whole_files import write_whole

FILE = tables.FEATURES
FORM = "mtanytime feature maps 1"
IMAGES_UP_TO = 8
SIDE_UP_TO = 56  # pixels of a map; larger ones are averaged
BYTES_UP_TO = 2_000_000
PNG = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def write_feature_maps(
    path: str | PathLike[str],
    source: nn.Module | Mapping[str, nn.Module],
    images: UInt8[np.ndarray, "n 3 h w"],
    channels: tables.Table,
    each: int = 4,
    force: bool = False,
) -> Path:
    """Write the source's feature maps of the most and least weighted channels of every pair, as small 8-bit pictures.

    `TransferExplorer` shows them when a channel's bar is chosen, and finds the file in a run's folder by itself. Each
    channel has one grey scale for all images, from its least to its largest value. The source is left unchanged.

    Args:
        path: the file, or the run's folder, in which it is called features.json.
        source: the network whose layers the table names; of several networks (layers like `birds/layer1`), a
            dictionary from their names to them. It gets the images divided by 255.
        images: uint8 (n, 3, height, width), at most 8.
        channels: step, source, target, channel, weight: a DataFrame, or the path of a CSV file or of a run's folder;
            the weights at the last step count.
        each: how many channels of the largest and how many of the smallest weight, per pair of layers.
        force: replace an existing file.

    Raises:
        ValueError: the images are not as above, the source lacks a layer or channel of the table, a feature map is not
            finite, the file exists, or it would be larger than 2 MB.
    """
    path = Path(path) / FILE if Path(path).is_dir() else Path(path)
    require(force or not path.exists(), "path", "a new file", Words(f"{path}, which exists"), "use force=True")
    require_images(images)
    require(len(images) <= IMAGES_UP_TO, "images", f"at most {IMAGES_UP_TO} images", len(images))
    require(each >= 1, "each", "a number >= 1", each)
    wanted = _wanted(tables.read_channels(channels), each)
    layers = {}
    for layer, maps in _features(source, images, list(wanted)).items():
        most = max(wanted[layer])
        require(most < maps.shape[1], f"layer {layer}", f"a channel {most}", Words(f"{maps.shape[1]} channels"))
        layers[layer] = {str(channel): _picture(maps[:, channel]) for channel in wanted[layer]}
    content = {"form": FORM, "images": [data_uri(image) for image in images], "layers": layers}
    text = json.dumps(content, separators=(",", ":"))
    size = Words(f"{len(text) / 1e6:.1f} MB")
    require(len(text) <= BYTES_UP_TO, "path", "at most 2 MB", size, "give fewer images or channels")
    write_whole(path, text)
    return path


def _wanted(table: pd.DataFrame, each: int) -> dict[str, list[int]]:
    """Return the channels of each source layer that any pair weights most or least at the last step."""
    last = table[table["step"] == table["step"].max()].sort_values(["weight", "channel"], ascending=[False, True])
    pairs = last.groupby(["source", "target"], sort=False)
    extremes = pd.concat([pairs.head(each), pairs.tail(each)])
    return {str(layer): sorted(set(rows["channel"])) for layer, rows in extremes.groupby("source", sort=False)}


def _features(
    source: nn.Module | Mapping[str, nn.Module], images: UInt8[np.ndarray, "n 3 h w"], layers: list[str]
) -> dict[str, Float[Tensor, "n _ _ _"]]:
    """Return the maps of each layer on the images, on the CPU."""
    if isinstance(source, nn.Module):
        return _of_network(source, images, dict(zip(layers, layers, strict=True)))
    known = ", ".join(source)
    unknown = [layer for layer in layers if layer.partition("/")[0] not in source]
    require(not unknown, "source", "a network for each layer of the table", Words(f"{known}, none for {unknown[:1]}"))
    maps = {}
    for name, network in source.items():
        paths = {layer: layer.partition("/")[2] for layer in layers if layer.partition("/")[0] == name}
        maps |= _of_network(network, images, paths) if paths else {}
    return maps


@torch.no_grad()
def _of_network(
    network: nn.Module, images: UInt8[np.ndarray, "n 3 h w"], paths: dict[str, str]
) -> dict[str, Float[Tensor, "n _ _ _"]]:
    device, dtype = device_and_dtype(network)
    batch = torch.from_numpy(images.astype(np.float32) / 255).to(device, dtype)
    with trial_run(network, device, training=False):
        _, maps = tap(network, list(paths.values()))(batch)
    return {layer: maps[path].float().cpu() for layer, path in paths.items()}


def _picture(maps: Float[Tensor, "n h w"]) -> dict[str, Any]:
    """Return one channel's maps of all images, side by side in a grey picture, and the values of black and white."""
    from PIL import Image

    require(bool(maps.isfinite().all()), "source", "finite feature maps", Words("NaN or infinity"))
    size = tuple(min(side, SIDE_UP_TO) for side in maps.shape[1:])
    small = torch.nn.functional.adaptive_avg_pool2d(maps, size)
    low, high = float(small.min()), float(small.max())
    grey = ((small - low) * (255 / max(high - low, 1e-12))).round().to(torch.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate(list(grey.numpy()), axis=1)).save(file, "PNG", optimize=True)
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"uri": uri, "low": float(f"{low:.4g}"), "high": float(f"{high:.4g}")}


def read_feature_maps(path: str | PathLike[str]) -> dict[str, Any]:
    """Return what `write_feature_maps` wrote: the images, and per layer and channel its maps.

    Raises:
        ValueError: the file is another one, or is damaged.
        OSError: it cannot be read.
    """
    path = Path(path)
    expected = "a file that write_feature_maps wrote"
    require(path.stat().st_size <= BYTES_UP_TO, str(path), expected, Words(f"{path.stat().st_size} bytes"))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        whole = _is_whole(content)
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise mismatch(str(path), expected, Words(f"a file that is damaged ({type(error).__name__})")) from None
    require(whole, str(path), expected, Words("another file"))
    return content


def _is_whole(content: dict[str, Any]) -> bool:
    pictures = [one for layer in content["layers"].values() for one in layer.values()]
    uris = [*content["images"], *(one["uri"] for one in pictures)]
    numbers = [one[name] for one in pictures for name in ("low", "high")]
    return (
        content["form"] == FORM
        and 1 <= len(content["images"]) <= IMAGES_UP_TO
        and all(isinstance(uri, str) and PNG.fullmatch(uri) for uri in uris)
        and all(isinstance(number, (int, float)) and np.isfinite(number) for number in numbers)
        and all(channel.isdecimal() for layer in content["layers"].values() for channel in layer)
    )
