"""Image files: find the images in a folder, and read them into memory."""

import os
import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from tqdm import tqdm

from mtanytime._torchvision import torchvision_module
from mtanytime.checks import Words, mismatch, require
from mtanytime.console import printable
from mtanytime.data.images import ImageSet
from mtanytime.data.pixels import WHITE, Color, check_decoding, read_pixels

SECONDS_BEFORE_BAR = 2.0  # a handful of files is read before a progress bar would show


def image_folder(
    root: str | Path, size: int = 224, *, background: Color = WHITE, workers: int | None = None
) -> ImageSet:
    """Read images from one sub-folder per class into memory, with a progress bar.

    Each image is decoded as a viewer shows it (see `pixels.read_pixels`), its shorter side resized to `size` and its
    middle kept as a square. Files in folders inside a class's folder belong to that class. Files and folders whose
    names begin with a dot, and macOS's `__MACOSX`, are passed over, as are files without an image's extension. A test
    set is another folder: `Task(image_folder("birds/train", 224), image_folder("birds/test", 224))`.

    Args:
        root: the folder.
        size: height and width of the images.
        background: the colour behind transparent pixels.
        workers: threads that decode; default: one per processor.

    Raises:
        ValueError: a folder without such sub-folders, a class without images, or a file that cannot be decoded.
    """
    root = Path(root).expanduser()
    paths, labels, classes = labelled_paths(root)
    images = _read(paths, size, background, workers, f"reading {root}")
    return ImageSet(images, torch.tensor(labels), classes, name=root.name)


def unlabelled_folder(
    root: str | Path, size: int = 224, *, background: Color = WHITE, workers: int | None = None
) -> ImageSet:
    """Read all images in a folder and the folders inside it into memory, as one class named "unlabelled".

    For images without labels, such as `TransferTrainer(unlabelled=…)` takes; arguments and errors as `image_folder`.
    Links to folders are passed over.
    """
    root = Path(root).expanduser()
    paths = unlabelled_paths(root)
    images = _read(paths, size, background, workers, f"reading {root}")
    return ImageSet(images, torch.zeros(len(paths), dtype=torch.int64), ("unlabelled",), name=root.name)


def _read(
    paths: Sequence[str], size: int, background: Color, workers: int | None, title: str
) -> UInt8[Tensor, "n 3 size size"]:
    check_decoding(size, background)
    require(workers is None or workers >= 1, "workers", "at least 1", workers)
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def read(i: int) -> None:
        images[i] = read_pixels(paths[i], size, background=background)

    with ThreadPool(workers) as pool:
        done = pool.imap(read, range(len(paths)))
        for _ in tqdm(done, printable(title), len(paths), file=sys.stdout, delay=SECONDS_BEFORE_BAR):
            pass
    return images


def labelled_paths(root: Path) -> tuple[list[str], list[int], tuple[str, ...]]:
    """Find the images in one sub-folder per class: their paths and labels, in torchvision's order, and the classes.

    Raises ValueError for a folder without such sub-folders, and for a class without images.
    """
    expected, paths, labels = "a folder of images, one sub-folder per class", [], []
    try:
        names = (entry.name for entry in os.scandir(root) if entry.is_dir())
        classes = tuple(sorted(name for name in names if _visible(name)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise mismatch(str(root), expected, Words(str(error))) from error
    require(bool(classes), str(root), expected, Words("no sub-folders"))
    for label, name in enumerate(classes):
        found = _images_below(root / name)
        require(bool(found), str(root), expected, Words(f"no images in {name!r}"))
        paths += found
        labels += [label] * len(found)
    return paths, labels, classes


def unlabelled_paths(root: Path) -> list[str]:
    """Find all images in a folder and the folders inside it, sorted. Raises ValueError if there are none."""
    require(root.is_dir(), str(root), "a folder with images", Words("a file" if root.exists() else "no such folder"))
    paths = sorted(path for path in map(Path, _images_below(root, follow=False)) if path.is_file())
    require(len(paths) > 0, str(root), "a folder with images", Words("none"))
    return list(map(str, paths))


def _images_below(folder: Path, follow: bool = True) -> list[str]:
    """The images in a folder and below it, folder by folder, without hidden ones.

    Links to folders are not followed, or with `follow` all but those to an outer folder.
    """
    paths = []
    for place, inside, names in os.walk(folder, followlinks=follow):
        inside[:] = [name for name in inside if _visible(name) and not _leads_back(os.path.join(place, name))]
        paths.append((place, sorted(name for name in names if _visible(name) and is_image(name))))
    return [os.path.join(place, name) for place, names in sorted(paths) for name in names]


def _leads_back(folder: str) -> bool:
    """Whether a folder is a link to one that it lies in, and so would hold all images again."""
    if not os.path.islink(folder):
        return False
    return Path(os.path.realpath(os.path.dirname(folder))).is_relative_to(os.path.realpath(folder))


def is_image(name: str) -> bool:
    """Whether a file's name has the extension of an image, in lower or upper case."""
    extensions = torchvision_module("torchvision.datasets.folder").IMG_EXTENSIONS
    return os.path.splitext(name)[1].lower() in extensions


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
