"""Labelled images that stay in their files and are decoded where a batch needs them: sets larger than memory."""

import hashlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import PIL
import torch
from jaxtyping import Int64, Integer, Shaped, UInt8
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mtanytime.checks import Words, mismatch, require
from mtanytime.console import printable
from mtanytime.data.files import SECONDS_BEFORE_BAR, labelled_paths, unlabelled_paths
from mtanytime.data.images import ImageSet, LabelledImages, Tree, check_classes, whole_labels
from mtanytime.data.paths import Paths
from mtanytime.data.pixels import WHITE, Color, check_decoding, read_pixels
from mtanytime.data.record_file import RecordFile

FEW = 64  # images that are decoded sooner than worker processes would start
SAMPLE = 64  # files whose bytes identify a set
_BATCH = 256  # images per batch of a set that is read into memory


@dataclass(frozen=True)
class Decoding:
    """How image files become images of one size.

    Args:
        size: height and width of the images.
        resize: the shorter side is resized to `resize` pixels, of which the middle `size` × `size` are the image.
            Augmentations that take a margin (`ResizedCrops`) get the middle `resize` × `resize`. Default: `size`.
        background: the colour behind transparent pixels.
        workers: processes that decode; 0: this one. Default: one per processor.
        cache: a folder for decoded images. Each image is stored there when it is first decoded (`resize` × `resize` × 3
            bytes), and read from there afterwards.

    Raises:
        ValueError: a size below 1, a resize below size, a negative number of workers.
    """

    size: int = 224
    resize: int | None = None
    background: Color = WHITE
    workers: int | None = None
    cache: str | Path | None = None

    def __post_init__(self) -> None:
        check_decoding(self.size, self.background)
        expected = f"at least {self.size}, the size"
        require(self.resize is None or self.resize >= self.size, "resize", expected, self.resize)
        require(self.workers is None or self.workers >= 0, "workers", "at least 0", self.workers)


class ImageFiles(LabelledImages):
    """Labelled images in files, decoded batch by batch in worker processes, as `image_folder` decodes them.

    It can replace an `ImageSet` of the same files everywhere, and training on it gives the same bits. Only the paths
    and the labels are held in memory. A run is identified by the files' names, sizes and labels and by the bytes of
    `SAMPLE` of them: reading every file at each start would take as long as an epoch, and modification times differ
    in a copied folder.

    Args:
        paths: the image files.
        labels: the index of each image's class.
        classes: the names of the classes.
        decoding: size of the images, workers and cache.
        tree: a label tree that holds every class once.
        name: what messages and records call the set.

    Attributes:
        labels, classes, tree, name: as given.
        decoding: as given.

    Raises:
        ValueError: labels or a tree that do not fit; a cache that belongs to other files or does not fit on its disk.
            Later, from `load` and `batches`: a file that is missing or cannot be decoded, by its path.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        labels: Integer[Tensor, " n"] | Integer[np.ndarray, " n"] | Sequence[int],
        classes: Sequence[str] | Shaped[np.ndarray, " classes"],
        decoding: Decoding = Decoding(),
        tree: Tree | None = None,
        name: str = "images",
    ) -> None:
        require(len(paths) > 0, "paths", "at least one file", Words("none"))
        self.labels, self.classes = whole_labels(labels, len(paths)), tuple(map(str, classes))
        self.tree, self.name = tree, name
        check_classes(self.labels, self.classes, tree)
        self.decoding, self._device = decoding, torch.device("cpu")
        self._rows = torch.arange(len(paths))  # into the paths; a subset has some of them
        stored = decoding.resize or decoding.size
        self._decoder = _Decoder(Paths(paths, _folder_of(paths)), stored, decoding.background)
        if decoding.cache is not None:
            content = self._decoder.content()
            file = Path(decoding.cache).expanduser() / f"{stored}px-{content[:16]}.images"
            self._decoder.cache = RecordFile(file, content, len(paths), stored)
        self._identity: dict[str, Tensor] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return 3, self.decoding.size, self.decoding.size

    @property
    def device(self) -> torch.device:
        """Where images and labels are handed out."""
        return self._device

    def path(self, index: int) -> str:
        """The path of an image."""
        return self._decoder.paths[int(self._rows[index])]

    def load(self, indices: Int64[Tensor, " k"]) -> UInt8[Tensor, "k channels height width"]:
        """Return the images at `indices`, in that order, decoded in this process."""
        return self._middle(_raised(self._decoder.read(self._rows[indices.cpu()].numpy(), self._workers())))

    def batches(
        self, indices: Sequence[Int64[Tensor, " _"]], margin: bool = False
    ) -> Iterator[tuple[UInt8[Tensor, "_ channels height width"], Int64[Tensor, " _"]]]:
        """Iterate over batches of images and labels, given the indices of each; the workers decode some in advance.

        With `margin`, the images are the middle `resize` × `resize` pixels.
        """
        rows = [self._rows[index.cpu()].numpy() for index in indices]
        for index, images in zip(indices, self._decoded(rows), strict=True):
            images = _raised(images)
            images = images.to(self._device) if margin else self._middle(images)
            yield images, self.labels[index.to(self._device)]

    def in_memory(self) -> ImageSet:
        """Read all images into memory, with a progress bar."""
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        index = torch.arange(len(self)).split(_BATCH)
        with tqdm(
            desc=printable(f"reading {self.name}"), total=len(self), file=sys.stdout, delay=SECONDS_BEFORE_BAR
        ) as bar:
            for part, (batch, _) in zip(index, self.batches(index), strict=True):
                images[part] = batch.cpu()
                bar.update(len(part))
        return ImageSet(images, self.labels.cpu(), self.classes, self.tree, self.name).to(self._device)

    def identifying(self) -> dict[str, Tensor]:
        """Return what tells this set from others: names, sizes, labels, geometry and hashes of a sample of the files.

        Raises ValueError for a file of the sample that cannot be read.
        """
        if self._identity is None:
            chosen = torch.linspace(0, len(self) - 1, min(SAMPLE, len(self))).round().tolist()
            digests = [_digest(self.path(int(i))) for i in chosen]
            decoding = self.decoding
            names = bytearray(self._decoder.paths.names(self._rows))
            self._identity = {
                "names": torch.frombuffer(names, dtype=torch.uint8) if names else torch.empty(0, dtype=torch.uint8),
                "sizes": torch.from_numpy(self._decoder.sizes(self._rows.numpy())),
                "sample": torch.tensor([list(digest) for digest in digests], dtype=torch.uint8),
                "geometry": torch.tensor([decoding.size, decoding.resize or decoding.size, *decoding.background]),
                "labels": self.labels.cpu(),
            }
        return self._identity

    def to(self, device: torch.device | str) -> "ImageFiles":
        """Return a set of the same files that hands out its images on a device."""
        other = copy(self)
        other._device, other.labels = torch.device(device), self.labels.to(device)
        return other

    def _select(self, index: Int64[Tensor, " k"]) -> "ImageFiles":
        other = copy(self)
        other._rows, other.labels, other._identity = self._rows[index.cpu()], self.labels[index], None
        return other

    def _workers(self) -> int:
        if multiprocessing.current_process().daemon:  # which may not start processes
            return 0
        chosen = self.decoding.workers
        return _processors() if chosen is None else chosen

    def _decoded(self, rows: Sequence[Int64[np.ndarray, " _"]]) -> Iterator["Tensor | _Failure"]:
        workers = min(self._workers(), len(rows))
        if workers == 0 or len(rows) == 1 or sum(map(len, rows)) <= FEW:
            return (self._decoder.read(part, self._workers()) for part in rows)
        # A generator of its own: the loader would draw from torch's random state.
        options = {"num_workers": workers, "generator": Generator(), "worker_init_fn": _leave_interrupts}
        return iter(DataLoader(self._decoder, None, sampler=rows, **options))

    def _middle(self, images: UInt8[Tensor, "_ 3 _ _"]) -> UInt8[Tensor, "_ 3 _ _"]:
        size = self.decoding.size
        start = (images.shape[-1] - size) // 2
        return images[:, :, start : start + size, start : start + size].to(self._device)


class _Failure(str):
    """Why a batch could not be decoded: an exception of a worker would arrive with its process's traceback."""

    __slots__ = ()


def _raised(images: Tensor | _Failure) -> UInt8[Tensor, "_ 3 _ _"]:
    if isinstance(images, _Failure):
        raise ValueError(str(images))
    return images


class _Decoder(Dataset):
    """Decodes some of many files at once; sent to worker processes."""

    def __init__(self, paths: Paths, size: int, background: Color) -> None:
        self.paths, self.size, self.background = paths, size, background
        self.cache: RecordFile | None = None

    def __getitem__(self, rows: Int64[np.ndarray, " k"]) -> UInt8[Tensor, "k 3 size size"] | _Failure:
        return self.read(rows, threads=1)

    def read(self, rows: Int64[np.ndarray, " k"], threads: int) -> UInt8[Tensor, "k 3 size size"] | _Failure:
        """The images of some files, or why one of them cannot be read."""
        # numpy's memory: what torch asks for is aligned, so a freed block of its size does not serve it again
        pixels = np.empty((len(rows), 3, self.size, self.size), np.uint8)
        try:
            if threads > 1 and len(rows) > 4:
                with ThreadPool(min(threads, len(rows))) as pool:
                    for _ in pool.imap(lambda i: self._read(int(rows[i]), pixels[i]), range(len(rows))):
                        pass
            else:
                for i, row in enumerate(rows.tolist()):
                    self._read(row, pixels[i])
        except ValueError as error:
            return _Failure(error)
        except OSError as error:
            got = Words(error.strerror or type(error).__name__)
            return _Failure(mismatch(str(error.filename), "an image file", got))
        return torch.from_numpy(pixels)

    def _read(self, row: int, pixels: UInt8[np.ndarray, "3 size size"]) -> None:
        if self.cache is not None and self.cache.read(row, pixels):
            return
        pixels[:] = read_pixels(self.paths[row], self.size, background=self.background).numpy()
        if self.cache is not None:
            self.cache.write(row, pixels)

    def sizes(self, rows: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, " k"]:
        """The bytes of some files; -1 for those that are missing."""
        return self._stat(rows)[:, 0].copy()

    def content(self) -> str:
        """A hash of what a cache of all files holds: their names, sizes and times, the geometry, and the decoder."""
        rows = np.arange(len(self.paths))
        digest = hashlib.sha256(self.paths.names(torch.from_numpy(rows)))
        digest.update(self._stat(rows).tobytes())
        digest.update(repr((self.size, self.background, PIL.__version__)).encode())
        return digest.hexdigest()

    def _stat(self, rows: Int64[np.ndarray, " k"]) -> Int64[np.ndarray, "k 2"]:
        values = np.full((len(rows), 2), -1, np.int64)
        for i, row in enumerate(rows.tolist()):
            try:
                status = os.stat(self.paths[row])
            except OSError:  # named when it is to be decoded
                continue
            values[i] = status.st_size, status.st_mtime_ns
        return values


def image_files(
    root: str | Path,
    size: int = 224,
    *,
    resize: int | None = None,
    background: Color = WHITE,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> ImageFiles:
    """Find images in one sub-folder per class, as `image_folder` does, and leave them on disk.

    Args:
        root: the folder.
        size, resize, background, workers, cache: see `Decoding`.

    Raises:
        ValueError: a folder without such sub-folders, or a class without images; and as `ImageFiles`.
    """
    decoding = Decoding(size, resize, background, workers, cache)
    root = Path(root).expanduser()
    paths, labels, classes = labelled_paths(root)
    return ImageFiles(paths, labels, classes, decoding, name=root.name)


def unlabelled_files(
    root: str | Path,
    size: int = 224,
    *,
    background: Color = WHITE,
    workers: int | None = None,
    cache: str | Path | None = None,
) -> ImageFiles:
    """Find all images in a folder and the folders inside it, as one class named "unlabelled"; they stay on disk.

    For `TransferTrainer(unlabelled=…)`; arguments and errors as `image_files`.
    """
    decoding = Decoding(size, None, background, workers, cache)
    root = Path(root).expanduser()
    paths = unlabelled_paths(root)
    return ImageFiles(paths, torch.zeros(len(paths), dtype=torch.int64), ("unlabelled",), decoding, name=root.name)


def similar_files(data: LabelledImages, others: LabelledImages) -> LabelledImages:
    """The images of a set that may be equal to some of another set.

    If both are in files, these are the files that have as many bytes as some file of the other set, so that few must be
    decoded; equal images in files of other sizes are missed. Otherwise, the whole set is returned.
    """
    if not (isinstance(data, ImageFiles) and isinstance(others, ImageFiles)):
        return data
    sizes = (part._decoder.sizes(part._rows.numpy()) for part in (data, others))
    return data.subset(np.flatnonzero(np.isin(*sizes)).tolist())


def _leave_interrupts(worker: int) -> None:
    """Ctrl+C reaches workers too, but when a run stops is decided by the process that trains."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _folder_of(paths: Sequence[str | Path]) -> str:
    """The deepest folder that all paths are in."""
    return os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])


def _digest(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()[:16]
    except OSError as error:
        raise mismatch(path, "an image file", Words(error.strerror or type(error).__name__)) from error


def _processors() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
