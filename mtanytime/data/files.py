"""Image files: read a folder of images into memory."""

import sys
from collections.abc import Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder
from tqdm import tqdm

from mtanytime.checks import Words, mismatch, require
from mtanytime.console import printable
from mtanytime.data.images import ImageSet
from mtanytime.data.pixels import WHITE, Color, read_pixels

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
        background: the color behind transparent pixels.
        workers: threads that decode; default: one per processor.

    Raises:
        ValueError: a folder without such sub-folders, a class without images, or a file that cannot be decoded.
    """
    root = Path(root).expanduser()
    require(size >= 1, "size", "at least 1 pixel", size)
    require(workers is None or workers >= 1, "workers", "at least 1", workers)
    try:
        folder = _VisibleFolder(str(root), is_valid_file=lambda path: _is_image(Path(path), Path(root)))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise mismatch(str(root), "a folder of images, one sub-folder per class", Words(str(error))) from error
    images = _read([Path(path) for path, _ in folder.samples], size, background, workers, f"reading {root}")
    return ImageSet(images, torch.tensor(folder.targets), tuple(folder.classes), name=Path(root).name)


def unlabelled_folder(
    root: str | Path, size: int = 224, *, background: Color = WHITE, workers: int | None = None
) -> ImageSet:
    """Read all images in a folder and the folders inside it into memory, as one class named "unlabelled".

    For images without labels, such as `TransferTrainer(unlabelled=…)` takes; arguments and errors as `image_folder`.
    """
    root = Path(root).expanduser()
    require(size >= 1, "size", "at least 1 pixel", size)
    paths = sorted(path for path in Path(root).rglob("*") if _is_image(path, Path(root)) and path.is_file())
    require(len(paths) > 0, str(root), "a folder with images", Words("none"))
    images = _read(paths, size, background, workers, f"reading {root}")
    return ImageSet(images, torch.zeros(len(paths), dtype=torch.int64), ("unlabelled",), name=Path(root).name)


def _read(
    paths: Sequence[Path], size: int, background: Color, workers: int | None, title: str
) -> UInt8[Tensor, "n 3 size size"]:
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)

    def read(i: int) -> None:
        images[i] = read_pixels(paths[i], size, background=background)

    with ThreadPool(workers) as pool:
        done = pool.imap(read, range(len(paths)))
        for _ in tqdm(done, printable(title), len(paths), file=sys.stdout, delay=SECONDS_BEFORE_BAR):
            pass
    return images


class _VisibleFolder(ImageFolder):
    """torchvision's ImageFolder without hidden folders."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        """The sub-folders that are no hidden ones, sorted, and their labels."""
        classes = sorted(entry.name for entry in Path(directory).iterdir() if entry.is_dir() and _visible(entry.name))
        if not classes:
            raise FileNotFoundError("no sub-folders")
        return classes, {name: label for label, name in enumerate(classes)}


def _is_image(path: Path, root: Path) -> bool:
    known = path.suffix.lower() in IMG_EXTENSIONS
    return known and all(map(_visible, path.relative_to(root).parts))


def _visible(name: str) -> bool:
    return not name.startswith(".") and name != "__MACOSX"
