"""MIT Indoor 67 and Stanford 40 Actions: scenes and actions, from the files that the user downloaded."""

from pathlib import Path

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.archives import Archive, folders_of
from mtanytime.data.images import Task
from mtanytime.data.listed import as_authors, lines_of, listed_task

# No checksums were found in two sources, so these archives are checked by their contents alone.
_INDOOR = Archive("indoorCVPR_09.tar", ("Images",), inside="indoorCVPR_09")
_ACTIONS = (
    Archive("Stanford40_JPEGImages.zip", ("JPEGImages",)),
    Archive("Stanford40_ImageSplits.zip", ("actions.txt",), inside="ImageSplits"),
)


def indoor67(
    path: str | Path,
    size: int = 224,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    unpack_to: str | Path | None = None,
) -> Task:
    """Load MIT Indoor 67 (Quattoni, Torralba 2009): 80 training and 20 test images of each of 67 scenes, left on disk.

    `path` is indoorCVPR_09.tar, or the folder with it or with its folder Images; TrainImages.txt and TestImages.txt,
    which are downloads of their own, are beside it. Other arguments and errors as `birds_and_dogs.cub200`. Tested on a
    small archive in the same form, not on the real one.
    """
    (folder,) = folders_of(path, [_INDOOR], unpack_to)
    path = Path(path).expanduser()
    beside = path if path.is_dir() else path.parent
    parts = [_indoor_list(f"{part}Images.txt", [beside, folder, folder.parent]) for part in ("Train", "Test")]
    return listed_task("MIT Indoor 67", folder / "Images", *parts, as_authors(size, workers, cache))


def _indoor_list(name: str, places: list[Path]) -> list[tuple[str, str]]:
    file = next((place / name for place in places if (place / name).is_file()), None)
    if file is None:
        remedy = "download it from the set's page"
        raise mismatch(str(places[0] / name), "the list of the set's images", Words("no such file"), remedy)
    paths = lines_of(file)
    bare = [path for path in paths if "/" not in path]
    require(not bare, str(file), "lines CLASS/IMAGE", Words(", ".join(bare[:3])))
    return [(path.partition("/")[0], path) for path in paths]


def stanford40(
    path: str | Path,
    size: int = 224,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    unpack_to: str | Path | None = None,
) -> Task:
    """Load Stanford 40 Actions (Yao et al. 2011): 4,000 training and 5,532 test images, which stay on disk.

    `path` is Stanford40_JPEGImages.zip, beside Stanford40_ImageSplits.zip, or the folder with both or with JPEGImages
    and ImageSplits. Other arguments and errors as `birds_and_dogs.cub200`. Tested on small archives in the same form,
    not on the real ones.
    """
    folder, lists = folders_of(path, _ACTIONS, unpack_to)
    rows = [line.split()[0] for line in lines_of(lists / "actions.txt")]
    actions = [action for action in rows if action != "action_name"]  # the table's head
    parts = [
        [(action, image) for action in actions for image in lines_of(lists / f"{action}_{part}.txt")]
        for part in ("train", "test")
    ]
    return listed_task("Stanford 40 Actions", folder / "JPEGImages", *parts, as_authors(size, workers, cache))
