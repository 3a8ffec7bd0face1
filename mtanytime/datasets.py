"""Images in memory: the built-in tasks, the papers' data sets, splits, and batches that a run can resume in.

Images are uint8 tensors; `Batches` hands them out as floats in [0, 1] (a network normalises its own input).
Everything random comes from a seed through an explicit torch.Generator: the same seed gives the same bytes.
"""

import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from mtanytime import characters

Tree = dict[str, Any]  # name -> ... -> list of class names
Augment = Callable[[Tensor, Generator], Tensor]

# The classes of EMNIST's balanced split without its digits (arXiv:1702.05373): small letters only where they do not
# look like the capital.
LETTER_TREE: Tree = {
    "capital": {"straight": list("AEFHIKLMNTVWXYZ"), "round": list("BCDGJOPQRSU")},
    "small": {"with a loop": list("abdegq"), "without": list("fhnrt")},
}
DIGITS_A_CLASS = 87  # handwritten ones that training has of every class, and testing as well
DIGIT_TREE: Tree = {"with a loop": list("0689"), "without": list("123457")}


def derive_seed(seed: int, *parts: int) -> int:
    """A 63-bit seed for one purpose (an epoch, a batch) of a run: stable, and unrelated to its neighbours."""
    digest = hashlib.blake2b(repr((int(seed), *map(int, parts))).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _generator(seed: int, *parts: int) -> Generator:
    return Generator().manual_seed(derive_seed(seed, *parts))


def leaves(tree: Tree | list[str]) -> list[str]:
    """The class names of a label tree, left to right."""
    return list(tree) if isinstance(tree, list) else [leaf for child in tree.values() for leaf in leaves(child)]


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images of one size in memory, checked when made; ValueError says what was wanted and what came.

    `tree`, if given, holds every class once. A class may be empty (a subset); `few` and `split` refuse it by name.
    """

    images: UInt8[Tensor, "n channels height width"]
    labels: Int64[Tensor, " n"]
    classes: tuple[str, ...]
    tree: Tree | None = None
    name: str = "images"

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{self.name}: images must be uint8 (n, 3, height, width), got {_describe(images)}")
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise ValueError(
                f"{self.name}: labels must be int64 ({len(images)},), one an image, got {_describe(labels)}"
            )
        if labels.device != images.device:
            raise ValueError(f"{self.name}: images are on {images.device}, labels on {labels.device}")
        if len(labels) and not (labels.min() >= 0 and labels.max() < len(self.classes)):
            low, high = labels.min().item(), labels.max().item()
            raise ValueError(f"{self.name}: labels must be 0 to {len(self.classes) - 1}, got {low} to {high}")
        if self.tree is not None and sorted(leaves(self.tree)) != sorted(self.classes):
            odd = sorted(set(leaves(self.tree)) ^ set(self.classes)) or "a class twice"
            raise ValueError(f"{self.name}: the tree must hold each class once, differs in {odd}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return f"ImageSet({self.name}: {len(self)} images {shape}, {len(self.classes)} classes, {self.images.device})"

    def to(self, device: torch.device | str) -> "ImageSet":
        """The same set with its tensors on `device`."""
        return self._with(self.images.to(device), self.labels.to(device))

    def subset(self, indices: Integer[Tensor, " k"] | Sequence[int]) -> "ImageSet":
        """The images at `indices`, in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        if len(index) and not (index.min() >= 0 and index.max() < len(self)):
            low, high = index.min().item(), index.max().item()
            raise ValueError(f"{self.name}: indices must be 0 to {len(self) - 1}, got {low} to {high}")
        return self._with(self.images[index], self.labels[index])

    def few(self, per_class: int, seed: int) -> "ImageSet":
        """`per_class` random images of each class."""
        chosen = self._by_class(seed)
        for name, index in zip(self.classes, chosen, strict=True):
            if not 1 <= per_class <= len(index):
                raise ValueError(f"{self.name}: wanted {per_class} images a class, class {name!r} has {len(index)}")
        return self.subset(torch.stack([index[:per_class] for index in chosen], 1).flatten())

    def split(self, fraction: float, seed: int) -> tuple["ImageSet", "ImageSet"]:
        """(training, validation): `fraction` of each class goes to validation, rounded, at least one to each side."""
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
        sides: tuple[list[Tensor], list[Tensor]] = ([], [])
        for name, index in zip(self.classes, self._by_class(seed), strict=True):
            if len(index) < 2:
                raise ValueError(f"{self.name}: a split needs 2 images a class, class {name!r} has {len(index)}")
            held = min(max(round(fraction * len(index)), 1), len(index) - 1)
            sides[0].append(index[held:])
            sides[1].append(index[:held])
        train, validation = (self.subset(torch.cat(side).sort().values) for side in sides)
        return train, validation

    def _by_class(self, seed: int) -> list[Tensor]:
        return _shuffled_by_class(self.labels.cpu(), len(self.classes), _generator(seed))

    def _with(self, images: Tensor, labels: Tensor) -> "ImageSet":
        return ImageSet(images, labels, self.classes, self.tree, self.name)


@dataclass(frozen=True, eq=False)
class Task:
    """A training and a test set of the same classes and image size."""

    train: ImageSet
    test: ImageSet

    def __post_init__(self) -> None:
        for what, of in (("classes", lambda s: s.classes), ("image shape", lambda s: tuple(s.images.shape[1:]))):
            if of(self.train) != of(self.test):
                raise ValueError(f"{self.name}: {what} of train {of(self.train)} and test {of(self.test)} differ")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.train.classes

    @property
    def name(self) -> str:
        """What the task is called."""
        return self.train.name


def _describe(value: Any) -> str:
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _shuffled_by_class(labels: Int64[Tensor, " n"], classes: int, generator: Generator) -> list[Tensor]:
    order = torch.randperm(len(labels), generator=generator)
    return [order[labels[order] == c] for c in range(classes)]


# Built-in tasks


def letters(
    size: int = 32, train_per_class: int = 400, test_per_class: int = 50, seed: int = 0, clutter: float = 0.6
) -> Task:
    """Letters in clutter: 37 classes of printed letters, the large source task. Built in; takes seconds.

    Images (n, 3, size, size), size from 16 to 64; image i shows class i mod 37. clutter: 0 (plain ground) to 1 (hard).
    `characters` describes fonts, warps, colours and clutter.
    """
    atlas = characters.printed("".join(sorted(leaves(LETTER_TREE))))

    def draw(per_class: int, part: int) -> ImageSet:
        pools = list(torch.arange(len(atlas))[:, None])
        return _drawn("letters in clutter", LETTER_TREE, atlas, pools, per_class, size, clutter, _generator(seed, part))

    return Task(draw(train_per_class, 0), draw(test_per_class, 1))


def digits(size: int = 32, per_class: int = 10, test_per_class: int = 200, seed: int = 0, clutter: float = 0.6) -> Task:
    """Handwritten digits in clutter: ten classes with few labels, the target task; sizes and clutter as in `letters`.

    Half of scikit-learn's 1,797 digits are for training, the other half for testing, whatever the seed: no test image
    is a training digit warped anew. A class has 87 digits or more on each side; where more images are asked for, its
    digits come again, each in a new warp, colour and clutter (so a part that `split` holds back then shares digits with
    the rest). Image i shows class i mod 10.
    """
    atlas, _ = characters.handwritten()

    def draw(per_class: int, part: int) -> ImageSet:
        pools, generator = _digit_pools(test=part == 1), _generator(seed, part)
        return _drawn("digits in clutter", DIGIT_TREE, atlas, pools, per_class, size, clutter, generator)

    return Task(draw(per_class, 0), draw(test_per_class, 1))


def _digit_pools(test: bool) -> list[Tensor]:
    """Of each class, the indices of the handwritten digits that training, or testing, draws from."""
    by_class = _shuffled_by_class(characters.handwritten()[1], 10, _generator(1797))
    return [index[len(index) // 2 :] if test else index[: len(index) // 2] for index in by_class]


def _drawn(
    name: str,
    tree: Tree,
    atlas: Tensor,
    pools: list[Tensor],
    per_class: int,
    size: int,
    clutter: float,
    generator: Generator,
) -> ImageSet:
    """`per_class` images of each class c, of the glyphs `atlas[pools[c]]` in turn, over pieces of letters."""
    if per_class < 1:
        raise ValueError(f"{name}: wanted 1 image a class or more, got {per_class}")
    shuffled = [pool[torch.randperm(len(pool), generator=generator)] for pool in pools]
    glyphs = torch.stack([pool[torch.arange(per_class) % len(pool)] for pool in shuffled], 1).flatten()
    scraps = characters.printed("".join(sorted(leaves(LETTER_TREE))))
    images = characters.draw(atlas, glyphs, scraps, size, clutter, generator)
    return ImageSet(images, torch.arange(len(pools)).repeat(per_class), tuple(sorted(leaves(tree))), tree, name)


# Batches


def crop_flip(padding: int = 4, flip: bool = True) -> Augment:
    """Augmentation of whole batches: pad with black, crop at random to the old size, flip left-right every other time.

    As torchvision's RandomCrop(size, padding) and RandomHorizontalFlip, but drawn for each image from one generator
    (on the CPU, so the same on every device).
    """

    def augment(images: Float[Tensor, "b c h w"], generator: Generator) -> Float[Tensor, "b c h w"]:
        b, _, h, w = images.shape
        top, left = torch.randint(2 * padding + 1, (2, b, 1), generator=generator)
        rows, columns = top + torch.arange(h), left + torch.arange(w)
        if flip:
            flipped = torch.rand(b, 1, generator=generator) < 0.5
            columns = torch.where(flipped, columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = F.pad(images, [padding] * 4)
        which = torch.arange(b, device=images.device)[:, None, None]
        # Indices around the channel slice put it last.
        return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

    return augment


class Batches:
    """The batches of every epoch: `for images, labels in batches.epoch(e)`, images float in [0, 1], labels int64.

    Stateless: the order of epoch e and the augmentation of its batch i depend on (seed, e) and (seed, e, i) alone, so
    a run resumes anywhere: `epoch(e, start=i)` goes on at batch i. The last, incomplete batch is used.

    A DataLoader keeps its own batch size and order: pass batch_size None. Its random numbers, as far as torch draws
    them (its sampler, torchvision's transforms), come from the derived seed too; start draws and drops; `shuffle`
    does not apply. Workers that live on between epochs (persistent_workers) keep their own random state.
    """

    def __init__(
        self,
        data: ImageSet | DataLoader,
        batch_size: int | None,
        seed: int,
        augment: Augment | None = None,
        shuffle: bool = True,
    ) -> None:
        if isinstance(data, DataLoader):
            if batch_size not in (None, data.batch_size):
                raise ValueError(f"a DataLoader has its own batch size {data.batch_size}, got {batch_size}: pass None")
        elif batch_size is None or batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, got {batch_size}")
        if not len(data):
            raise ValueError("no images to take batches of")
        self.data, self.batch_size, self.seed, self.augment, self.shuffle = data, batch_size, seed, augment, shuffle

    def __len__(self) -> int:
        return len(self.data) if isinstance(self.data, DataLoader) else -(-len(self.data) // self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Float[Tensor, "b 3 h w"], Int64[Tensor, " b"]]]:
        """Batches start, start + 1, … of an epoch, on the set's device."""
        if not 0 <= start <= len(self):
            raise ValueError(f"start must be 0 to {len(self)}, the batches of an epoch, got {start}")
        if isinstance(self.data, DataLoader):
            batches = islice(self._from_loader(epoch), start, None)
        else:
            batches = self._from_set(epoch, start)
        return self._augmented(batches, epoch, start)

    def _augmented(self, batches: Iterator, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for i, (images, labels) in enumerate(batches, start):
            if self.augment is not None:
                images = self.augment(images, _generator(self.seed, epoch, i))
            yield images, labels

    def _from_set(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        n, data = len(self.data), self.data
        order = torch.randperm(n, generator=_generator(self.seed, epoch)) if self.shuffle else torch.arange(n)
        for index in order.to(data.labels.device).split(self.batch_size)[start:]:
            yield data.images[index].float().div_(255), data.labels[index]

    def _from_loader(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        seed = derive_seed(self.seed, epoch)
        if self.data.generator is not None:
            self.data.generator.manual_seed(seed)
        state, batches, first = Generator().manual_seed(seed).get_state(), None, True
        while True:
            # The loader draws from torch's global generator at every batch: lend it a state of its own.
            outside = torch.get_rng_state()
            torch.set_rng_state(state)
            try:
                batches = iter(self.data) if batches is None else batches
                batch = next(batches, None)
                state = torch.get_rng_state()
            finally:
                torch.set_rng_state(outside)
            if batch is None:
                return
            if first:
                _check_batch(batch)
            first = False
            yield batch[0].float(), batch[1]


def _check_batch(batch: Any) -> None:
    """Refuses what a DataLoader must not yield: anything but images in [0, 1] and int64 labels."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        raise ValueError(f"a batch must be (images, labels), got {type(batch).__name__}")
    images, labels = batch
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be float (batch, 3, height, width), got {_describe(images)}")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):
        raise ValueError(f"images must lie in [0, 1], got {low:.3g} to {high:.3g}: leave mean and std to Normalized")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be int64 ({len(images)},), got {_describe(labels)}")


# Data sets on disk


def cifar10(root: str | Path, download: bool = False) -> Task:
    """CIFAR-10 (Krizhevsky 2009) through torchvision: 50,000 and 10,000 images, 32x32."""
    return _cifar("CIFAR10", root, download, CIFAR10_TREE)


def cifar100(root: str | Path, download: bool = False) -> Task:
    """CIFAR-100 (Krizhevsky 2009) through torchvision: 50,000 and 10,000 images, 32x32, 20 superclasses."""
    return _cifar("CIFAR100", root, download, CIFAR100_TREE)


def _cifar(kind: str, root: str | Path, download: bool, tree: Tree) -> Task:
    def load(train: bool) -> ImageSet:
        data = _torchvision(kind, root, download, train=train)
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        return ImageSet(images, torch.tensor(data.targets), tuple(data.classes), tree, kind)

    return Task(load(True), load(False))


def stl10(root: str | Path, size: int = 32, download: bool = False) -> Task:
    """STL-10's labelled part (Coates 2011): 5,000 and 8,000 images, 96x96, resized to 32 as in arXiv:1905.05901."""

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
        raise FileNotFoundError(f"{kind} is not complete in {root}: pass download=True to fetch it there") from error


def image_folder(root: str | Path, size: int = 224) -> ImageSet:
    """Images in one folder a class (torchvision's ImageFolder), read into memory with a progress bar.

    Each is made RGB, its shorter side resized to `size`, and its middle kept. A test set is another folder:
    Task(image_folder("birds/train", 224), image_folder("birds/test", 224)).
    """
    from PIL import Image, ImageOps
    from torchvision.datasets import ImageFolder

    try:
        folder = ImageFolder(str(root))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ValueError(f"wanted a folder of images at {root}, in one sub-folder a class; {error}") from error
    images = torch.empty(len(folder), 3, size, size, dtype=torch.uint8)

    def read(i: int) -> None:
        path = folder.samples[i][0]
        try:
            with Image.open(path) as image:
                image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR)
        except OSError as error:
            raise ValueError(f"cannot read the image {path}: {error}") from error
        images[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    with ThreadPool() as pool:
        for _ in tqdm(pool.imap(read, range(len(folder))), f"reading {root}", len(folder), file=sys.stdout):
            pass
    return ImageSet(images, torch.tensor(folder.targets), tuple(folder.classes), name=Path(root).name)


def cifar10_jpeg(path: str | Path) -> Task:
    """CIFAR-10 from one file of JPEGs: keys classes, and {train,test}_{jpeg,offsets,labels}. Slightly lossy."""
    from PIL import Image

    with np.load(path) as file:
        stored = {key: file[key] for key in file.files}
    wanted = ["classes", *(f"{part}_{key}" for part in ("train", "test") for key in ("jpeg", "offsets", "labels"))]
    if missing := [key for key in wanted if key not in stored]:
        raise ValueError(f"{path} lacks {missing} (has: {sorted(stored)})")

    def load(part: str) -> ImageSet:
        data, ends = stored[f"{part}_jpeg"].tobytes(), stored[f"{part}_offsets"].tolist()
        pixels = [np.asarray(Image.open(io.BytesIO(data[a:b]))) for a, b in pairwise(ends)]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(stored[f"{part}_labels"]).long()
        return ImageSet(images, labels, tuple(stored["classes"].tolist()), CIFAR10_TREE, "CIFAR10")

    return Task(load("train"), load("test"))


def l2t_split(path: str | Path, name: str) -> dict[str, Int64[Tensor, " indices"]]:
    """The L2T-ww authors' split of cifar100, stl10, cub200 or dog: indices `train`, `val`, `test`.

    `path` is their npz file, with keys {name}/train and so on; `train` and `val` both index the set's training part:
    task.train.subset(split["train"]).
    """
    with np.load(path) as file:
        names = sorted({key.split("/")[0] for key in file.files})
        if name not in names:
            raise ValueError(f"no split {name!r} in {path} (has: {', '.join(names)})")
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
