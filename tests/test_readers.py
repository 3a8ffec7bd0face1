"""The papers' data sets from downloaded files: made-up archives in their forms, whole, incomplete and damaged."""

import shutil
from pathlib import Path

import made_archives
import numpy as np
import pytest
import torch
from made_archives import READERS, TORCHVISION, files_of, make, torchvision_archive
from PIL import Image

import mtanytime.data.listed as listed
from mtanytime.data import ImageSet, imagenet_folder, tiny_imagenet

OPTIONS = {"size": 7, "workers": 0}
CLASSES = {
    "CUB-200-2011": ("001.Ibis", "002.Kiwi"),
    "Stanford Dogs": ("n01-Akita", "n02-Boxer"),
    "MIT Indoor 67": ("bar", "gym"),
    "Stanford 40 Actions": ("cooking", "riding"),
    "TinyImageNet": ("n01 goldfish", "n02 crane"),
}
# The number of each picture (see `made_archives.picture`): training images, then test images, in ImageFolder's order.
ORDER = {name: ([0, 1, 3, 4], [2, 5]) for name in CLASSES} | {"CUB-200-2011": ([1, 0, 4, 3], [2, 5])}
GREY = {"CUB-200-2011": 1, "Stanford Dogs": 0}  # a picture that is no RGB one


@pytest.mark.parametrize("name", READERS)
def test_a_whole_set(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes, labels, order and pixels are those in the files, from the archive, its folder and the unpacked files."""
    first = make(tmp_path, name, monkeypatch)
    tasks = [READERS[name](first, **OPTIONS), READERS[name](tmp_path, **OPTIONS)]
    for file in files_of(name):  # unpacked by hand, in the folder itself
        target = tmp_path / Path(file).stem
        if (tmp_path / file).suffix in (".zip", ".tar", ".tgz"):
            (tmp_path / file).unlink()
            shutil.copytree(target, tmp_path / "by hand", dirs_exist_ok=True)
        else:
            shutil.copy(tmp_path / file, tmp_path / "by hand")
    tasks.append(READERS[name](tmp_path / "by hand", **OPTIONS))
    for task in tasks:
        assert (task.name, task.classes) == (name, CLASSES[name])
        assert task.train.labels.tolist() == [0, 0, 1, 1]
        assert task.test.labels.tolist() == [0, 1]
        assert task.train.image_shape == (3, 7, 7)
        for data, order in zip((task.train, task.test), ORDER[name], strict=True):
            images = data.load(torch.arange(len(data)))
            for image, number in zip(images, order, strict=True):
                if number != GREY.get(name):
                    wanted = torch.tensor([40 * number, 20, 250 - 40 * number])
                    assert (image[:, 3, 3] - wanted).abs().max() <= 4, (name, number)  # JPEG rounds


@pytest.mark.parametrize("kind", TORCHVISION)
def test_archives_of_cifar_and_stl10(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The downloaded file, its folder, another folder to unpack to, and the folder that torchvision makes."""
    archive = torchvision_archive(tmp_path, kind, monkeypatch)
    read, elsewhere = TORCHVISION[kind], tmp_path / "elsewhere"
    tasks = [read(archive, unpack_to=elsewhere), read(archive), read(tmp_path)]
    archive.unlink()
    folder = tmp_path / archive.name.removesuffix(".tar.gz") if kind != "STL10" else tmp_path / "stl10_binary"
    inside = next(path for path in folder.iterdir() if path.is_dir())
    tasks += [read(folder), read(inside)]
    for task in tasks:
        assert torch.equal(task.train.images, tasks[0].train.images)
        assert task.test.labels.tolist() == [1, 0]


def test_a_changed_archive_of_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum is compared before anything is unpacked, and unpickled later."""
    archive = torchvision_archive(tmp_path, "CIFAR10", monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"gz: expected the published archive, whose MD5 checksum is .*download"):
        made_archives.cifar10(archive)
    assert list(tmp_path.iterdir()) == [archive]


@pytest.mark.parametrize("name", READERS)
def test_the_published_numbers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set with other numbers of images than published is not taken for it."""
    published = dict(listed._PUBLISHED)
    first = make(tmp_path, name, monkeypatch)
    monkeypatch.setattr(listed, "_PUBLISHED", published)
    with pytest.raises(ValueError, match=r"expected \d+ classes, .* got 2 classes, 4 training and 2 test images"):
        READERS[name](first, **OPTIONS)


ABSENT = [  # a file, or a folder of a class, in the unpacked set -> what the error names
    ("CUB-200-2011", "CUB_200_2011/CUB_200_2011/classes.txt", r"one without classes.txt; complete it"),
    (
        "CUB-200-2011",
        "CUB_200_2011/CUB_200_2011/images/002.Kiwi",
        r"Kiwi.a.jpg: .* 4 training images, 2 are miss",
    ),
    ("CUB-200-2011", "CUB_200_2011/CUB_200_2011/images/001.Ibis/c.jpg", r"c.jpg: expected an image that is listed"),
    ("Stanford Dogs", "lists/test_list.mat", r"one without test_list.mat; complete it, or delete .*lists, to unpack"),
    ("Stanford Dogs", "images/Images/n01-Akita", r"n01-Akita.n01_0.jpg: expected an image that is listed"),
    ("MIT Indoor 67", "TestImages.txt", r"TestImages.txt: expected the list of the set's images, got no such file"),
    ("MIT Indoor 67", "indoorCVPR_09/indoorCVPR_09/Images", r"one without Images; complete it"),
    (
        "Stanford 40 Actions",
        "Stanford40_ImageSplits/ImageSplits/riding_train.txt",
        r"riding_train.txt: expected a list",
    ),
    (
        "TinyImageNet",
        "tiny-imagenet-200/tiny-imagenet-200/train/n02",
        r"images of each class, got none of n02",
    ),
    ("TinyImageNet", "tiny-imagenet-200/tiny-imagenet-200/val/val_annotations.txt", r"without val/val_annotations.txt"),
]


@pytest.mark.parametrize(("name", "absent", "message"), ABSENT)
def test_what_is_missing_is_named(
    name: str, absent: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class's folder, an index file or an image that went missing after unpacking."""
    first = make(tmp_path, name, monkeypatch)
    READERS[name](first, **OPTIONS)
    place = tmp_path / absent
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    with pytest.raises(ValueError, match=message):
        READERS[name](tmp_path, **OPTIONS)


WRONG = [  # a list with other lines -> what the error names
    ("train_test_split.txt", b"1 1\n2 1\n", "split.txt: expected a line per image, got none for 001.Ibis/c.jpg"),
    ("train_test_split.txt", b"1 1\n2 1\n3 2\n4 1\n5 1\n6 0\n", "split.txt: expected 0 or 1 per image, got '2'"),
    ("classes.txt", b"1 001.Ibis\n", "classes.txt: expected a line per class, got none for 2"),
    ("images.txt", b"1\n", "images.txt: expected lines of 2 parts, got '1'"),
    ("images.txt", b"1 ../x\n2 001.Ibis/a.jpg\n3 a\n4 b\n5 c\n6 d\n", "expected training images in this folder"),
    ("images.txt", b"1 x\n2 x\n3 a\n4 b\n5 c\n6 d\n", "images: expected each image listed once, got x"),
]


@pytest.mark.parametrize(("file", "content", "message"), WRONG)
def test_wrong_lists(file: str, content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists that do not fit each other, or name a file outside the set."""
    files = files_of("CUB-200-2011")["CUB_200_2011.tgz"] | {f"CUB_200_2011/{file}": content}
    first = make(tmp_path, "CUB-200-2011", monkeypatch, **{"CUB_200_2011.tgz": files})
    with pytest.raises(ValueError, match=message):
        READERS["CUB-200-2011"](first, **OPTIONS)


@pytest.mark.parametrize("content", [b"", b"MATLAB 5.0 MAT-file" + bytes(200), b"\x89HDF\r\n\x1a\n" + bytes(600)])
def test_damaged_lists_of_dogs(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """scipy raises many kinds of errors; the file is named."""
    lists = files_of("Stanford Dogs")["lists.tar"] | {"test_list.mat": content}
    first = make(tmp_path, "Stanford Dogs", monkeypatch, **{"lists.tar": lists})
    with pytest.raises(ValueError, match=r"test_list.mat: expected a MATLAB file with the cells file_list, got"):
        READERS["Stanford Dogs"](first, **OPTIONS)


def test_the_second_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lists' archive alone finds the images beside it; without these, the error names what is missing."""
    make(tmp_path, "Stanford Dogs", monkeypatch)
    assert len(READERS["Stanford Dogs"](tmp_path / "lists.tar", **OPTIONS).train) == 4
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(tmp_path / "lists.tar", alone)
    with pytest.raises(ValueError, match=r"expected a folder with Images, got one without Images; .* put images.tar"):
        READERS["Stanford Dogs"](alone / "lists.tar", **OPTIONS)
    with pytest.raises(ValueError, match=r"nowhere: expected images.tar and lists.tar, or the folder they are in"):
        READERS["Stanford Dogs"](tmp_path / "nowhere", **OPTIONS)


def test_tiny_imagenet_in_memory_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pixels either way; memory is the default, as 64×64 fit."""
    first = make(tmp_path, "TinyImageNet", monkeypatch)
    memory, disk = tiny_imagenet(first, 9, workers=0), tiny_imagenet(first, 9, workers=0, in_memory=False)
    assert isinstance(memory.train, ImageSet)
    assert not isinstance(disk.train, ImageSet)
    assert torch.equal(memory.test.images, disk.test.load(torch.arange(2)))


def test_imagenet_folder(tmp_path: Path) -> None:
    """Classes by folder; a class that only one part has is named, and so is a validation folder that is not sorted."""
    for place in ("train/n01", "train/n02", "val/n01"):
        (tmp_path / place).mkdir(parents=True)
        Image.fromarray(np.full((9, 12, 3), 7, np.uint8)).save(tmp_path / place / "a.JPEG")
    with pytest.raises(ValueError, match=r"val: expected the 2 classes of train, got folders that differ in 1, .* n02"):
        imagenet_folder(tmp_path, 8, workers=0)
    shutil.copytree(tmp_path / "val/n01", tmp_path / "val/n02")
    task = imagenet_folder(tmp_path, 8, workers=0)
    assert task.classes == ("n01", "n02")
    assert len(task.train) == len(task.test) == 2
    (tmp_path / "flat/train/n01").mkdir(parents=True)
    (tmp_path / "flat/val").mkdir()
    for place in ("train/n01", "val"):
        shutil.copy(tmp_path / "val/n01/a.JPEG", tmp_path / "flat" / place)
    with pytest.raises(ValueError, match=r"val: expected a folder of images, one sub-folder per class, got no sub-fol"):
        imagenet_folder(tmp_path / "flat", 8, workers=0)
