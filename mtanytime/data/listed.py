"""Data sets whose images are named in lists: checked against the published figures, and made into a task."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.disk import Decoding, ImageFiles
from mtanytime.data.images import Task

Listed = Sequence[tuple[str, str]]  # (class, path relative to the images' folder)

# Classes, training and test images, as each set's page and paper state them.
_PUBLISHED = {
    "TinyImageNet": (200, 100_000, 10_000),
    "CUB-200-2011": (200, 5_994, 5_794),
    "MIT Indoor 67": (67, 5_360, 1_340),
    "Stanford 40 Actions": (40, 4_000, 5_532),
    "Stanford Dogs": (120, 12_000, 8_580),
}


def listed_task(
    name: str, folder: Path, train: Listed, test: Listed, decoding: Decoding, names: Mapping[str, str] | None = None
) -> Task:
    """Make a task of listed images, in the order of torchvision's ImageFolder: by class, then by file.

    Args:
        name: of the data set.
        folder: that the images' paths are relative to.
        train, test: the class and the path of each image.
        decoding: size of the images, workers and cache.
        names: the classes as they are shown; default: as they are listed.

    Raises:
        ValueError: other numbers of classes and images than published, a class without images, an image in both lists,
            a path that leads outside the folder, or a listed image that is not there.
    """
    published, parts = _PUBLISHED[name], {"training": sorted(train), "test": sorted(test)}
    classes = sorted({kind for part in parts.values() for kind, _ in part})
    for part, listed in parts.items():
        lacking = sorted(set(classes) - {kind for kind, _ in listed})
        require(not lacking, str(folder), f"{part} images of each class", Words(f"none of {', '.join(lacking[:5])}"))
    shown = "{} classes, {:,} training and {:,} test images".format
    counts = (len(classes), len(train), len(test))
    remedy = "the set is incomplete, or another one"
    require(counts == published, str(folder), shown(*published), Words(shown(*counts)), remedy)
    twice = [path for path, count in Counter(path for _, path in [*train, *test]).items() if count > 1]
    require(not twice, str(folder), "each image listed once", Words(", ".join(twice[:3])))
    for part, listed in parts.items():
        outside = [path for _, path in listed if Path(path).is_absolute() or ".." in Path(path).parts]
        require(not outside, str(folder), f"{part} images in this folder", Words(", ".join(outside[:3])))
        missing = [path for _, path in listed if not os.path.isfile(os.path.join(folder, path))]
        if missing:
            got = Words(f"no file; of {len(listed):,} {part} images, {len(missing):,} are missing")
            raise mismatch(str(folder / missing[0]), "an image that is listed", got, "unpack the set again")
    labels = {kind: label for label, kind in enumerate(classes)}
    texts = tuple(classes if names is None else [names.get(kind, kind) for kind in classes])
    sets = []
    for part in parts.values():
        paths, targets = [os.path.join(folder, path) for _, path in part], [labels[kind] for kind, _ in part]
        sets.append(ImageFiles(paths, targets, texts, decoding, name=name))
    return Task(*sets)


def as_authors(size: int, workers: int | None, cache: str | Path | None) -> Decoding:
    """How the L2T-ww authors' code sees a test image: the shorter side at 256 pixels, of which the middle 224×224.

    Other sizes are in proportion. torchvision resizes before it crops, so where the sides are no whole multiples its
    pixels lie a fraction of a pixel beside these.
    """
    return Decoding(size, round(size * 256 / 224), workers=workers, cache=cache)


def lines_of(file: Path) -> list[str]:
    """The lines of a text file that are not empty. Raises ValueError for a file that cannot be read."""
    try:
        text = file.read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise mismatch(str(file), "a list of the data set", Words(error.strerror)) from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def columns_of(file: Path, count: int) -> list[list[str]]:
    """The lines of a text file, each split at its first spaces into `count` parts; ValueError for a line with fewer."""
    rows = [line.split(maxsplit=count - 1) for line in lines_of(file)]
    short = [" ".join(row) for row in rows if len(row) < count]
    require(not short, str(file), f"lines of {count} parts", Words(repr(short[0]) if short else ""))
    return rows
