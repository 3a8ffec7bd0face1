"""Public data: the papers' data sets, their label trees and the L2T-ww authors' splits."""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn import functional as F

from mtanytime.checks import Words, require
from mtanytime.data.images import ImageSet, Task, Tree


def cifar10(root: str | Path, download: bool = False) -> Task:
    """Load CIFAR-10 (Krizhevsky 2009) with torchvision: 50,000 training and 10,000 test images, 32×32."""
    return _cifar("CIFAR10", root, download, CIFAR10_TREE)


def cifar100(root: str | Path, download: bool = False) -> Task:
    """Load CIFAR-100 (Krizhevsky 2009) with torchvision: 50,000 and 10,000 images, 32×32, 20 superclasses."""
    return _cifar("CIFAR100", root, download, CIFAR100_TREE)


def _cifar(kind: str, root: str | Path, download: bool, tree: Tree) -> Task:
    def load(train: bool) -> ImageSet:
        data = _torchvision(kind, root, download, train=train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(data.targets), tuple(data.classes), tree, kind)

    return Task(load(True), load(False))


def stl10(root: str | Path, size: int = 32, download: bool = False) -> Task:
    """Load the labelled part of STL-10 (Coates 2011) with torchvision: 5,000 training and 8,000 test images.

    They are resized from 96×96 to `size`, by default 32 as in arXiv:1905.05901.
    """

    def load(split: str) -> ImageSet:
        data = _torchvision("STL10", root, download, split=split)
        images = torch.from_numpy(data.data)
        if size != images.shape[-1]:
            chunks = images.split(1000)
            images = torch.cat([F.interpolate(c, (size, size), mode="bilinear", antialias=True) for c in chunks])
        return ImageSet(images, torch.from_numpy(data.labels).long(), tuple(data.classes), STL10_TREE, "STL10")

    return Task(load("train"), load("test"))


def _torchvision(kind: str, root: str | Path, download: bool, **part: Any) -> Any:
    import torchvision

    try:
        return getattr(torchvision.datasets, kind)(str(root), download=download, **part)
    except RuntimeError as error:
        if download:
            raise
        raise FileNotFoundError(f"{kind} is not complete in {root}; pass download=True to download it") from error


def cifar10_jpeg(path: str | Path) -> Task:
    """Load CIFAR-10 from one npz file of JPEGs, slightly lossy.

    Its keys are classes and {train,test}_{jpeg,offsets,labels}. Raises ValueError if one is missing.
    """
    from PIL import Image

    with np.load(path) as file:
        stored = {key: file[key] for key in file.files}
    keys = ["classes", *(f"{part}_{key}" for part in ("train", "test") for key in ("jpeg", "offsets", "labels"))]
    missing = [key for key in keys if key not in stored]
    require(not missing, str(path), f"the keys {keys}", Words(f"{sorted(stored)}, without {missing}"))

    def load(part: str) -> ImageSet:
        data, ends = stored[f"{part}_jpeg"].tobytes(), stored[f"{part}_offsets"].tolist()
        pixels = [np.asarray(Image.open(io.BytesIO(data[a:b]))) for a, b in pairwise(ends)]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(stored[f"{part}_labels"]).long()
        return ImageSet(images, labels, tuple(stored["classes"].tolist()), CIFAR10_TREE, "CIFAR10")

    return Task(load("train"), load("test"))


def l2t_split(path: str | Path, name: str) -> dict[str, Int64[Tensor, " indices"]]:
    """Load the L2T-ww authors' split of cifar100, stl10, cub200 or dog: indices `train`, `val` and `test`.

    `path` is their npz file, with keys such as {name}/train. `train` and `val` are both indices into the training set:
    task.train.subset(split["train"]). Raises ValueError for a name that is not in the file.
    """
    with np.load(path) as file:
        names = sorted({key.split("/")[0] for key in file.files})
        require(name in names, "name", f"one of {names}, the splits in {path}", name)
        return {part: torch.from_numpy(file[f"{name}/{part}"]).long() for part in ("train", "val", "test")}


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
