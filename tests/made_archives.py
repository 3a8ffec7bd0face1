"""Tiny archives in the forms of the papers' data sets: two classes, three images each."""

import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

import mtanytime.data.listed as listed
from mtanytime.data import cifar10, cifar100, cub200, indoor67, stanford40, stanford_dogs, stl10, tiny_imagenet

Files = dict[str, bytes]  # contents by the paths in an archive

READERS: dict[str, Callable] = {
    "CUB-200-2011": cub200,
    "Stanford Dogs": stanford_dogs,
    "MIT Indoor 67": indoor67,
    "Stanford 40 Actions": stanford40,
    "TinyImageNet": tiny_imagenet,
}


def picture(number: int, mode: str = "RGB", kind: str = "JPEG") -> bytes:
    """An image of one color, 12 × 9 pixels."""
    file = io.BytesIO()
    Image.new("RGB", (12, 9), (40 * number, 20, 250 - 40 * number)).convert(mode).save(file, kind)
    return file.getvalue()


def files_of(name: str) -> dict[str, Files]:
    """The contents of a set's downloads by their names: the first two images of a class are for training."""
    if name == "CUB-200-2011":
        kinds = ("001.Ibis", "002.Kiwi")
        images = [f"{kind}/{letter}.jpg" for kind in kinds for letter in "bac"]  # not sorted, as in the real list
        rows = {
            "images.txt": images,
            "image_class_labels.txt": [int(image[2]) for image in images],
            "train_test_split.txt": [int(not image.endswith("c.jpg")) for image in images],
            "classes.txt": kinds,
        }
        texts = {k: "".join(f"{i} {v}\n" for i, v in enumerate(values, 1)).encode() for k, values in rows.items()}
        pictures = {f"images/{image}": picture(i, "L" if i == 1 else "RGB") for i, image in enumerate(images)}
        whole = {f"CUB_200_2011/{path}": content for path, content in (texts | pictures).items()}
        return {"CUB_200_2011.tgz": {"attributes.txt": b"1 x\n"} | whole}
    if name == "Stanford Dogs":
        kinds = ("n01-Akita", "n02-Boxer")
        images = [f"{kind}/{kind[:3]}_{i}.jpg" for kind in kinds for i in range(3)]
        pictures = {f"Images/{image}": picture(i, "CMYK" if i == 0 else "RGB") for i, image in enumerate(images)}
        lists = {}
        for part, chosen in (("train", "01"), ("test", "2")):
            file = io.BytesIO()
            cells = np.array([image for image in images if image[-5] in chosen], dtype=object)[:, None]
            savemat(file, {"file_list": cells, "labels": np.arange(len(cells))[:, None]})
            lists[f"{part}_list.mat"] = file.getvalue()
        return {"images.tar": pictures, "lists.tar": lists}
    if name == "MIT Indoor 67":
        images = [f"{kind}/{i} ü.JPG" for kind in ("bar", "gym") for i in range(3)]
        pictures = {f"indoorCVPR_09/Images/{image}": picture(i) for i, image in enumerate(images)}
        lists = {
            f"{part}Images.txt": "\r\n".join(image for image in images if image.split("/")[1][0] in chosen).encode()
            for part, chosen in (("Train", "01"), ("Test", "2"))
        }
        return {"indoorCVPR_09.tar": pictures} | {file: {"": text} for file, text in lists.items()}
    if name == "Stanford 40 Actions":
        actions = ("cooking", "riding")
        images = {f"JPEGImages/{a}_00{i}.jpg": picture(i + 3 * (a == "riding")) for a in actions for i in range(3)}
        lists = {"ImageSplits/actions.txt": b"action_name\tnumber_of_images\ncooking\t\t3\nriding\t\t3\n"}
        for action in actions:
            lists[f"ImageSplits/{action}_train.txt"] = f"{action}_000.jpg\n{action}_001.jpg\n".encode()
            lists[f"ImageSplits/{action}_test.txt"] = f"{action}_002.jpg\n".encode()
        return {"Stanford40_JPEGImages.zip": images, "Stanford40_ImageSplits.zip": lists}
    kinds = ("n01", "n02")
    train = {f"train/{kind}/images/{kind}_{i}.JPEG": picture(i + 3 * (kind == "n02")) for kind in kinds for i in (0, 1)}
    test = {f"val/images/val_{i}.JPEG": picture(2 + 3 * i) for i in (0, 1)}
    texts = {
        "wnids.txt": b"n02\nn01\n",
        "words.txt": b"n01\tgoldfish, Carassius auratus\nn02\tcrane\nn03\telse\n",
        "val/val_annotations.txt": b"val_0.JPEG\tn01\t0\t0\t9\t9\nval_1.JPEG\tn02\t0\t0\t9\t9\n",
    }
    both = {f"tiny-imagenet-200/{path}": content for path, content in (train | test | texts).items()}
    return {"tiny-imagenet-200.zip": both}


def pack(file: Path, files: Files) -> None:
    """Write an archive, of the kind that its name says, or a plain file for contents without a path."""
    if "" in files:
        file.write_bytes(files[""])
    elif file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path, content in files.items():
                archive.writestr(path, content)
    else:
        with tarfile.open(file, "w:" if file.suffix == ".tar" else "w:gz") as archive:
            for path, content in files.items():
                member = tarfile.TarInfo(path)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


def make(folder: Path, name: str, patch: pytest.MonkeyPatch, **changed: Files) -> Path:
    """Write a set's downloads to a folder, some of them changed, and expect their numbers; return the first one."""
    counts = dict(listed._PUBLISHED) | {name: (2, 4, 2)}
    patch.setattr(listed, "_PUBLISHED", counts)
    patch.setattr("mtanytime.data.archives._check_md5", lambda file, md5: None)
    downloads = files_of(name) | changed
    for file, files in downloads.items():
        pack(folder / file, files)
    return folder / next(iter(downloads))


def torchvision_archive(folder: Path, kind: str, patch: pytest.MonkeyPatch) -> Path:
    """Write the archive of CIFAR or STL-10 with two images per file, and have torchvision expect its checksums."""
    import hashlib

    reader, noise = getattr(datasets, kind), np.random.default_rng(0)
    names = [name for name, *_ in [*reader.train_list, *reader.test_list]]
    if kind == "STL10":
        pixels = noise.integers(0, 256, (2, 3, 96, 96), dtype=np.uint8).tobytes()
        files = {name: b"\2\1" if name.endswith("y.bin") else pixels for name in names}
        words = "airplane bird car cat deer dog horse monkey ship truck"
        files |= {"class_names.txt": words.replace(" ", "\n").encode()}
    else:
        label, classes = ("labels", cifar10_names()) if kind == "CIFAR10" else ("fine_labels", cifar100_names())
        content = {"data": noise.integers(0, 256, (2, 3072), dtype=np.uint8), label: [1, 0]}
        files = dict.fromkeys(names, pickle.dumps(content, 2))
        files[reader.meta["filename"]] = pickle.dumps({reader.meta["key"]: classes}, 2)
        digest = hashlib.md5(files[reader.meta["filename"]]).hexdigest()
        patch.setattr(reader, "meta", reader.meta | {"md5": digest})
    for part in ("train_list", "test_list"):
        patch.setattr(reader, part, [[name, hashlib.md5(files[name]).hexdigest()] for name, _ in getattr(reader, part)])
    archive = folder / reader.filename
    pack(archive, {f"{reader.base_folder}/{name}": content for name, content in files.items()})
    patch.setattr(reader, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return archive


def cifar10_names() -> list[str]:
    """The classes of CIFAR-10 in order."""
    return ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar100_names() -> list[str]:
    """The classes of CIFAR-100 in order."""
    from mtanytime.data import CIFAR100_TREE, leaves

    return sorted(leaves(CIFAR100_TREE))


TORCHVISION: dict[str, Callable] = {"CIFAR10": cifar10, "CIFAR100": cifar100, "STL10": stl10}
