"""Images in files on the clock: memory and images per second of `ImageFiles`, beside torchvision's ImageFolder."""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader
from tqdm import tqdm

from mtanytime.checks import require
from mtanytime.data import Batches, image_files

CLASSES, DISTINCT = 100, 50
READERS = ("ImageFiles", "ImageFiles, cache being filled", "ImageFiles, cache filled", "torchvision ImageFolder")


def data_bench(
    count: int = 100_000, pixels: int = 64, size: int = 64, workers: int = 2, batch: int = 256, progress: bool = True
) -> pd.DataFrame:
    """Write JPEG files of noise-like pictures to a temporary folder and read all of them in shuffled batches.

    Each reader runs in a process of its own. `DISTINCT` different pictures are written again and again, to files of
    their own, so that making them is quick. The files were just written, so they come from the system's page cache.

    Args:
        count: files.
        pixels: height and width of the pictures in the files.
        size: height and width of the images that are read.
        workers: processes that decode.
        batch: images per batch.
        progress: show a progress bar.

    Returns:
        One row per reader: reader, images, seconds (of an epoch, workers' start included), images_per_second,
        open_seconds (until the set is made), resident_mb (the largest sum of the resident memory of the process and its
        workers; pages that they share count in each) and shared_mb (the same, with shared pages divided among the
        processes; nan where the system does not tell).

    Raises:
        ValueError: a number below 1.
        RuntimeError: a reader's process failed.
    """
    for name, value in (("count", count), ("pixels", pixels), ("size", size), ("workers", workers), ("batch", batch)):
        require(value >= 1, name, "a number >= 1", value)
    rows = []
    with tempfile.TemporaryDirectory(prefix="mtanytime-bench-") as place:
        root, cache = Path(place) / "pictures", Path(place) / "cache"
        _write(root, count, pixels, progress)
        for reader in READERS:
            settings = {"reader": reader, "root": str(root), "cache": str(cache), "size": size, "batch": batch}
            code = "from mtanytime.experiments.data_bench import main; main()"
            command = [sys.executable, "-c", code, json.dumps(settings | {"workers": workers})]
            finished = subprocess.run(command, capture_output=True, text=True, check=False)
            if finished.returncode:
                raise RuntimeError(f"{reader}: {finished.stderr.strip().splitlines()[-1:]}")
            rows.append({"reader": reader} | json.loads(finished.stdout.splitlines()[-1]))
    return pd.DataFrame(rows)


def _write(root: Path, count: int, pixels: int, progress: bool) -> None:
    noise, pictures = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        small = Image.fromarray(noise.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((pixels, pixels), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        pictures.append(file.getvalue())
    for label in range(CLASSES):
        (root / f"class {label:03}").mkdir(parents=True)
    for i in tqdm(range(count), "writing files", disable=not progress):
        (root / f"class {i % CLASSES:03}" / f"picture {i:07}.JPEG").write_bytes(pictures[i % DISTINCT])


def main() -> None:
    """Read all images with one reader, in this process, and print the figures as JSON."""
    print(json.dumps(_measure(**json.loads(sys.argv[1]))))


def _measure(reader: str, root: str, cache: str, size: int, batch: int, workers: int) -> dict[str, Any]:
    with _Memory() as memory:
        started = time.perf_counter()
        batches = _batches(reader, root, cache, size, batch, workers)
        opened = time.perf_counter()
        count = sum(len(images) for images, _ in batches)
        seconds = time.perf_counter() - opened
    figures = {"images": count, "seconds": seconds, "images_per_second": count / seconds}
    return figures | {"open_seconds": opened - started, "resident_mb": memory.resident, "shared_mb": memory.shared}


def _batches(reader: str, root: str, cache: str, size: int, batch: int, workers: int) -> Iterable[Any]:
    if reader != READERS[-1]:
        data = image_files(root, size, workers=workers, cache=None if reader == READERS[0] else cache)
        return Batches(data, batch, seed=0).epoch(0)
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()]
    data = ImageFolder(root, transforms.Compose(steps))
    return DataLoader(data, batch, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(0))


class _Memory:
    """Watches the memory of this process and its children, in millions of bytes, until the block ends."""

    def __init__(self) -> None:
        self.resident = self.shared = float("nan")
        self._stop, self._thread = Event(), Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        if not Path("/proc/self/smaps_rollup").exists():  # not Linux
            return
        while True:
            parts = [_memory_of(pid) for pid in _family()]
            self.resident, self.shared = (
                np.fmax(before, sum(part[k] for part in parts) / 1000)
                for k, before in enumerate((self.resident, self.shared))
            )
            if self._stop.wait(0.25):
                return


def _family() -> Iterator[int]:
    """This process and its children."""
    yield os.getpid()
    for task in Path("/proc/self/task").iterdir():
        try:
            yield from map(int, (task / "children").read_text().split())
        except OSError:  # it ended meanwhile
            continue


def _memory_of(pid: int) -> tuple[float, float]:
    """Resident memory of a process, and its proportional share of it, in thousands of bytes."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0.0, 0.0
    values = {line.partition(":")[0]: float(line.split()[1]) * 1.024 for line in lines}
    return values["Rss"], values["Pss"]
