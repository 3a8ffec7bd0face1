"""Public data: the papers' data sets, their label trees and the L2T-ww authors' splits."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from mtanytime._torchvision import torchvision_module
from mtanytime.checks import Words, mismatch, require
from mtanytime.data.archives import Archive, folders_of
from mtanytime.data.images import ImageSet, Task, Tree
from mtanytime.data.splits import check_apart, read_split_files


def cifar10(root: str | Path, download: bool = False, unpack_to: str | Path | None = None) -> Task:
    """Load CIFAR-10 (Krizhevsky 2009) with torchvision: 50,000 training and 10,000 test images, 32×32.

    `root` is torchvision's folder, or the archive cifar-10-python.tar.gz, or a folder with it. The archive is unpacked
    once, beside itself or in `unpack_to`. Raises FileNotFoundError for files that are missing or damaged, and errors as
    `archives.folders_of`.
    """
    return _cifar("CIFAR10", root, download, CIFAR10_TREE, unpack_to)


def cifar100(root: str | Path, download: bool = False, unpack_to: str | Path | None = None) -> Task:
    """Load CIFAR-100 (Krizhevsky 2009) with torchvision: 50,000 and 10,000 images, 32×32, 20 superclasses.

    Arguments and errors as `cifar10`; the archive is cifar-100-python.tar.gz.
    """
    return _cifar("CIFAR100", root, download, CIFAR100_TREE, unpack_to)


def _cifar(kind: str, root: str | Path, download: bool, tree: Tree, unpack_to: str | Path | None) -> Task:
    root = _unpacked(kind, root, download, unpack_to)

    def load(train: bool) -> ImageSet:
        data = _torchvision(kind, root, download, train=train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(data.targets), tuple(data.classes), tree, kind)

    with _files_of(kind, root):
        return Task(load(True), load(False))


def stl10(root: str | Path, size: int = 32, download: bool = False, unpack_to: str | Path | None = None) -> Task:
    """Load the labelled part of STL-10 (Coates 2011) with torchvision: 5,000 training and 8,000 test images.

    They are resized from 96×96 to `size`, by default 32 as in arXiv:1905.05901. Other arguments and errors as
    `cifar10`; the archive is stl10_binary.tar.gz.
    """
    root = _unpacked("STL10", root, download, unpack_to)

    def load(split: str) -> ImageSet:
        data = _torchvision("STL10", root, download, split=split)
        images = torch.from_numpy(data.data)
        if size != images.shape[-1]:
            chunks = images.split(1000)
            images = torch.cat([F.interpolate(c, (size, size), mode="bilinear", antialias=True) for c in chunks])
        return ImageSet(images, torch.from_numpy(data.labels).long(), tuple(data.classes), STL10_TREE, "STL10")

    with _files_of("STL10", root):
        return Task(load("train"), load("test"))


_ARCHIVES = {  # file and the folder in it
    "CIFAR10": ("cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "CIFAR100": ("cifar-100-python.tar.gz", "cifar-100-python"),
    "STL10": ("stl10_binary.tar.gz", "stl10_binary"),
}


def _unpacked(kind: str, root: str | Path, download: bool, unpack_to: str | Path | None) -> Path:
    """The folder that torchvision's reader wants; an archive is unpacked, if that is what there is."""
    root, (name, inside) = Path(root).expanduser(), _ARCHIVES[kind]
    if download or not (root.is_file() or (root / name).is_file()):
        itself = root.name == inside and root.is_dir() and not (root / inside).is_dir()
        return root.parent if itself else root
    reader = getattr(torchvision_module().datasets, kind)
    holds = tuple(file for file, *_ in [*reader.train_list, *reader.test_list])
    if all((root / inside / file).exists() for file in holds):
        return root
    # torchvision's checksum of the archive; after it is unpacked, torchvision compares those of the files
    return folders_of(root, [Archive(name, holds, inside, reader.tgz_md5)], unpack_to)[0].parent


def _torchvision(kind: str, root: str | Path, download: bool, **part: Any) -> Any:
    reader = getattr(torchvision_module().datasets, kind)
    try:
        return reader(str(root), download=download, **part)
    except RuntimeError as error:
        if download:
            raise
        # torchvision compares the files' checksums before it unpickles them
        raise FileNotFoundError(
            f"{kind} is not complete in {root}; pass download=True to download it, or again if it is damaged"
        ) from error


@contextmanager
def _files_of(kind: str, root: str | Path) -> Iterator[None]:
    """Name the folder in the error for files with other contents than torchvision's readers take for granted."""
    try:
        yield
    except (OSError, RuntimeError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise mismatch(str(root), f"the files of {kind}", Words(f"others ({reason})"), "download them again") from error


def cifar10_jpeg(path: str | Path) -> Task:
    """Load CIFAR-10 from one npz file of JPEGs, slightly lossy.

    Its keys are classes and {train,test}_{jpeg,offsets,labels}. Raises ValueError for a damaged or foreign file.
    """
    parts = ("train", "test")
    keys = ["classes", *(f"{part}_{key}" for part in parts for key in ("jpeg", "offsets", "labels"))]
    stored = _read_npz(path, keys)
    classes = stored["classes"]
    require(classes.ndim == 1 and classes.dtype.kind == "U", f"{path}: classes", "a list of names", _kind(classes))

    def load(part: str) -> ImageSet:
        jpeg, offsets, labels = (stored[f"{part}_{key}"] for key in ("jpeg", "offsets", "labels"))
        fits = jpeg.ndim == 1 and jpeg.dtype == np.uint8
        require(fits, f"{path}: {part}_jpeg", "the bytes of all files in one row", _kind(jpeg))
        ends = _indices(offsets, len(jpeg) + 1, f"{path}: {part}_offsets")
        fits = len(ends) > 1 and bool((ends.diff() > 0).all())
        require(fits, f"{path}: {part}_offsets", "at least two offsets, increasing", Words("others"))
        targets = _indices(labels, len(classes), f"{path}: {part}_labels")
        require(len(targets) == len(ends) - 1, f"{path}: {part}_labels", f"{len(ends) - 1} labels", len(targets))
        data = jpeg.tobytes()
        pixels = [_rgb(data[a:b], f"{path}: {part} image {i}") for i, (a, b) in enumerate(pairwise(ends.tolist()))]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, targets, tuple(classes.tolist()), CIFAR10_TREE, "CIFAR10")

    return Task(load("train"), load("test"))


def l2t_split(path: str | Path, name: str) -> dict[str, Int64[Tensor, " indices"]]:
    """Load the L2T-ww authors' split of cifar100, stl10, cub200 or dog: indices `train`, `val` and `test`.

    `path` is a copy of their repository or of its folder `split`, with files such as cub200-train, or an npz file with
    keys such as cub200/train. `train` and `val` are both indices into the training set, in the order of the readers of
    this library: `apply_split(task, split)`. Raises ValueError for a name that is not there, a damaged file, and images
    in both `train` and `val`.
    """
    if Path(path).is_dir():
        return read_split_files(Path(path), name)
    names = sorted({key.split("/")[0] for key in _read_npz(path, [])})
    require(name in names, "name", f"one of {names}, the splits in {path}", name)
    keys = {part: f"{name}/{part}" for part in ("train", "val", "test")}
    stored = _read_npz(path, list(keys.values()))
    split = {part: _indices(stored[key], None, f"{path}: {key}") for part, key in keys.items()}
    check_apart(split, f"{path}: {name}")
    return split


_NPZ_BYTES = 2**31  # a damaged or hostile archive may declare more than the memory holds


def _read_npz(path: str | Path, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of an npz file by key, all of them without `keys`; ValueError for a damaged or foreign file."""
    expected = "an npz file" + f" with the keys {list(keys)}" * bool(keys)
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
            if size > _NPZ_BYTES:
                raise ValueError(f"it expands to {size} bytes")
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of its part {damaged} is wrong")
        with np.load(path, allow_pickle=False) as file:
            present = sorted(file.files)
            stored = {key: file[key] for key in keys or present if key in present}
    except FileNotFoundError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise mismatch(str(path), expected, Words(f"a damaged or foreign file ({reason})")) from error
    missing = [key for key in keys if key not in stored]
    require(not missing, str(path), f"the keys {list(keys)}", Words(f"{present}, without {missing}"))
    foreign = [key for key, array in stored.items() if not isinstance(array, np.ndarray)]
    require(not foreign, str(path), expected, Words(f"parts that are no arrays: {foreign}"))
    return stored


def _kind(array: np.ndarray) -> Words:
    return Words(f"shape {array.shape} of {array.dtype}")


def _indices(array: np.ndarray, end: int | None, argument: str) -> Int64[Tensor, " indices"]:
    """A row of indices from 0, below `end` where one is given."""
    require(array.ndim == 1 and array.dtype.kind in "iu", argument, "a row of integers", _kind(array))
    least, most = (int(array.min()), int(array.max())) if len(array) else (0, 0)
    fits = least >= 0 and (not len(array) or most < (2**63 if end is None else end))
    expected = "integers from 0" if end is None else f"integers from 0 to {end - 1}"
    require(fits, argument, expected, Words(f"{least} to {most}"))
    return torch.from_numpy(array.astype(np.int64))


def _rgb(data: bytes, argument: str) -> np.ndarray:
    """The pixels of a 32×32 colour image; its size is compared before it is decoded."""
    from PIL import Image

    from mtanytime.data.pixels import refuse_postscript

    expected = "an RGB image of 32×32 pixels"
    try:
        image = Image.open(io.BytesIO(data))
        refuse_postscript(image)
        found = Words(f"{image.mode} of {image.width}×{image.height}")
        pixels = np.asarray(image) if (image.mode, image.size) == ("RGB", (32, 32)) else None
    except Exception as error:  # Pillow raises many kinds
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise mismatch(argument, expected, Words(f"bytes that cannot be read as one ({reason})")) from error
    if pixels is None:
        raise mismatch(argument, expected, found)
    return pixels


CIFAR10_TREE: Tree = {
    "animal": ["bird", "cat", "deer", "dog", "frog", "horse"],
    "vehicle": ["airplane", "automobile", "ship", "truck"],
}


STL10_TREE: Tree = {
    "animal": ["bird", "cat", "deer", "dog", "horse", "monkey"],
    "vehicle": ["airplane", "car", "ship", "truck"],
}


CIFAR100_TREE: Tree = {
    superclass: classes.split()
    for superclass, classes in {
        "aquatic mammals": "beaver dolphin otter seal whale",
        "fish": "aquarium_fish flatfish ray shark trout",
        "flowers": "orchid poppy rose sunflower tulip",
        "food containers": "bottle bowl can cup plate",
        "fruit and vegetables": "apple mushroom orange pear sweet_pepper",
        "household electrical devices": "clock keyboard lamp telephone television",
        "household furniture": "bed chair couch table wardrobe",
        "insects": "bee beetle butterfly caterpillar cockroach",
        "large carnivores": "bear leopard lion tiger wolf",
        "large man-made outdoor things": "bridge castle house road skyscraper",
        "large natural outdoor scenes": "cloud forest mountain plain sea",
        "large omnivores and herbivores": "camel cattle chimpanzee elephant kangaroo",
        "medium-sized mammals": "fox porcupine possum raccoon skunk",
        "non-insect invertebrates": "crab lobster snail spider worm",
        "people": "baby boy girl man woman",
        "reptiles": "crocodile dinosaur lizard snake turtle",
        "small mammals": "hamster mouse rabbit shrew squirrel",
        "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
        "vehicles 1": "bicycle bus motorcycle pickup_truck train",
        "vehicles 2": "lawn_mower rocket streetcar tank tractor",
    }.items()
}
