"""ImageNet by class folders, and TinyImageNet, from the files that the user downloaded."""

from pathlib import Path

from mtanytime.checks import Words, require
from mtanytime.data.archives import Archive, folders_of
from mtanytime.data.disk import Decoding, ImageFiles
from mtanytime.data.files import is_image, labelled_paths
from mtanytime.data.images import Task
from mtanytime.data.listed import as_authors, columns_of, lines_of, listed_task

# Several public readers compare this checksum, avalanche's (ContinualAI) among them; the set's page was not at hand.
_TINY = Archive(
    "tiny-imagenet-200.zip",
    ("wnids.txt", "words.txt", "train", "val", "val/val_annotations.txt"),
    inside="tiny-imagenet-200",
    md5="90528d7ca1a48142e341f4ef8d21d0de",
)


def tiny_imagenet(
    path: str | Path,
    size: int = 64,
    *,
    in_memory: bool = True,
    workers: int | None = None,
    cache: str | Path | None = None,
    unpack_to: str | Path | None = None,
) -> Task:
    """Load TinyImageNet (Stanford CS231n): 100,000 training images of 200 classes, and 10,000 validation images.

    The test set is the set's own validation part, as its test part has no labels. A class is called by its WordNet
    number and first name, such as "n01443537 goldfish". Tested on a small archive in the same form, not on the real
    one.

    Args:
        path: tiny-imagenet-200.zip, or the folder with it or with its contents.
        size: height and width of the images, which have 64.
        in_memory: read the images into memory (1.4 GB at 64×64, 0.3 GB at 32×32), or leave them on disk.
        workers, cache, unpack_to: as `birds_and_dogs.cub200`.

    Raises:
        ValueError: as `birds_and_dogs.cub200`.
    """
    (folder,) = folders_of(path, [_TINY], unpack_to)
    kinds = lines_of(folder / "wnids.txt")
    train = [(kind, f"train/{kind}/images/{name}") for kind in kinds for name in _images(folder / "train" / kind)]
    rows = columns_of(folder / "val" / "val_annotations.txt", 3)
    test = [(kind, f"val/images/{name}") for name, kind, _ in rows]
    unknown = sorted({kind for kind, _ in test} - set(kinds))
    require(not unknown, str(folder / "wnids.txt"), "all classes", Words(f"none of {', '.join(unknown[:3])}"))
    words = dict(columns_of(folder / "words.txt", 2))
    names = {kind: f"{kind} {words[kind].partition(',')[0]}" for kind in kinds if kind in words}
    task = listed_task("TinyImageNet", folder, train, test, Decoding(size, workers=workers, cache=cache), names)
    return Task(task.train.in_memory(), task.test.in_memory()) if in_memory else task


def _images(folder: Path) -> list[str]:
    place = folder / "images"
    return sorted(file.name for file in place.iterdir() if is_image(file.name)) if place.is_dir() else []


def imagenet_folder(
    path: str | Path, size: int = 224, *, workers: int | None = None, cache: str | Path | None = None
) -> Task:
    """Load a folder with the folders train and val, each with one sub-folder per class; the images stay on disk.

    For ImageNet (ILSVRC 2012) in this usual form, and for parts of it. How many images there are is not checked.

    Args:
        path: the folder.
        size, workers, cache: as `birds_and_dogs.cub200`.

    Raises:
        ValueError: no folders by class, a class without images, or other classes in val than in train.
    """
    path = Path(path).expanduser()
    decoding = as_authors(size, workers, cache)
    found = {part: labelled_paths(path / part) for part in ("train", "val")}
    (_, _, classes), (_, _, others) = found.values()
    odd = sorted(set(classes) ^ set(others))
    got = Words(f"folders that differ in {len(odd)}, such as {', '.join(odd[:3])}")
    require(not odd, str(path / "val"), f"the {len(classes)} classes of train", got)
    train, test = (ImageFiles(*part, decoding, name=path.name) for part in found.values())
    return Task(train, test)
