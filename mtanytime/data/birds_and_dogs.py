"""CUB-200-2011 and Stanford Dogs: birds and dogs in fine classes, from the files that the user downloaded."""

from pathlib import Path

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.archives import Archive, folders_of
from mtanytime.data.images import Task
from mtanytime.data.listed import as_authors, columns_of, listed_task

# Several public readers compare this checksum, avalanche's (ContinualAI) among them; the set's page was not at hand.
_CUB = Archive(
    "CUB_200_2011.tgz",
    ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt", "images"),
    inside="CUB_200_2011",
    md5="97eceeb196236b17998738112f37df78",
)
# Several public readers compare these checksums; the set's page was not at hand.
_DOGS = (
    Archive("images.tar", ("Images",), md5="1bb1f2a596ae7057f99d7d75860002ef"),
    Archive("lists.tar", ("train_list.mat", "test_list.mat"), md5="edbb9f16854ec66506b5f09b583e0656"),
)


def cub200(
    path: str | Path,
    size: int = 224,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    unpack_to: str | Path | None = None,
) -> Task:
    """Load CUB-200-2011 (Wah et al. 2011): 5,994 training and 5,794 test images of 200 birds, which stay on disk.

    The order is that of the L2T-ww authors' split. Tested on a small archive in the same form, not on the real one.

    Args:
        path: CUB_200_2011.tgz, or the folder with it or with its contents.
        size: height and width of the images; the shorter side is first resized to `size` · 256/224, and
            `crops.ResizedCrops(size)` trains on parts of that, as the L2T-ww authors do at 224.
        workers: processes that decode; 0: this one. Default: one per processor.
        cache: a folder for decoded images, see `disk.Decoding`.
        unpack_to: where to unpack the archive, once; default: beside it.

    Raises:
        ValueError: a damaged or incomplete archive or folder, by what is missing; and as `archives.folders_of`.
    """
    (folder,) = folders_of(path, [_CUB], unpack_to)
    names = dict(columns_of(folder / "classes.txt", 2))
    kinds = dict(columns_of(folder / "image_class_labels.txt", 2))
    training = dict(columns_of(folder / "train_test_split.txt", 2))
    images = columns_of(folder / "images.txt", 2)
    for file, known in (("image_class_labels.txt", kinds), ("train_test_split.txt", training)):
        lacking = [path for number, path in images if number not in known]
        require(not lacking, str(folder / file), "a line per image", Words(f"none for {', '.join(lacking[:3])}"))
    unnamed = sorted(set(kinds.values()) - set(names))
    require(not unnamed, str(folder / "classes.txt"), "a line per class", Words(f"none for {', '.join(unnamed[:3])}"))
    parts = {"1": [], "0": []}
    for number, image in images:
        if training[number] not in parts:
            raise mismatch(str(folder / "train_test_split.txt"), "0 or 1 per image", training[number])
        parts[training[number]].append((names[kinds[number]], image))
    return listed_task("CUB-200-2011", folder / "images", parts["1"], parts["0"], as_authors(size, workers, cache))


def stanford_dogs(
    path: str | Path,
    size: int = 224,
    *,
    workers: int | None = None,
    cache: str | Path | None = None,
    unpack_to: str | Path | None = None,
) -> Task:
    """Load Stanford Dogs (Khosla et al. 2011): 12,000 training and 8,580 test images of 120 breeds, left on disk.

    `path` is images.tar, beside lists.tar, or the folder with both or with their contents. Order, other arguments and
    errors as `cub200`. The lists are MATLAB files, of which scipy reads the values and executes nothing. Tested on
    small archives in the same form, not on the real ones.
    """
    folder, lists = folders_of(path, _DOGS, unpack_to)
    parts = [_mat_files(lists / f"{part}_list.mat") for part in ("train", "test")]
    return listed_task("Stanford Dogs", folder / "Images", *parts, as_authors(size, workers, cache))


def _mat_files(file: Path) -> list[tuple[str, str]]:
    """The class and path of each image in a list of Stanford Dogs."""
    from scipy.io import loadmat

    expected = "a MATLAB file with the cells file_list"
    try:
        cells = loadmat(file, variable_names=["file_list"])["file_list"].ravel()
        names = [str(cell.item()) for cell in cells]
    except Exception as error:  # scipy raises many kinds for a damaged file
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise mismatch(str(file), expected, Words(f"another or a damaged one ({reason})")) from error
    bare = [name for name in names if "/" not in name]
    require(not bare, str(file), "paths CLASS/IMAGE", Words(", ".join(bare[:3])))
    return [(name.partition("/")[0], name) for name in names]
