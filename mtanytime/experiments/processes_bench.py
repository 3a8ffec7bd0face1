"""Training steps by one process and by several, side by side.

Each number of processes is started as torchrun does it, all on this machine, in turn. The program that they run is this
file.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from mtanytime.anytime import AnytimeTrainer, SlicedResNet, SliceShape, doubling_widths
from mtanytime.backbones import resnet, vgg9
from mtanytime.checks import Words, require
from mtanytime.data.batches import crop_flip
from mtanytime.data.images import ImageSet
from mtanytime.training.distributed import start
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import PAPER, TransferTrainer

MINUTES = 30  # after which a group of processes is given up


def step_times(counts: Sequence[int] = (1, 2), batch: int = 64, steps: int = 5, threads: int = 1) -> pd.DataFrame:
    """Time a training step of each trainer on 32×32 images.

    They are VGG-9 alone, all exits of a sliced ResNet, and L2T-ww from ResNet-32 to VGG-9.

    Args:
        counts: numbers of processes.
        batch: images per step, of all processes together.
        steps: timed steps, after two that are not.
        threads: torch's threads per process.

    Returns:
        One row per trainer and number of processes: trainer, processes, threads, batch, seconds (the median step),
        speedup (of the first number of processes).

    Raises:
        ValueError: no count, one below 1, or a batch that is smaller than one of them.
        RuntimeError: a process failed; with its message.
    """
    require(len(counts) > 0 and min(counts) >= 1, "counts", "one or more numbers >= 1", counts)
    require(batch >= max(counts), "batch", f"{max(counts)} images or more, one per process", batch)
    for name, value in (("steps", steps), ("threads", threads)):
        require(value >= 1, name, "a number >= 1", value)
    rows = []
    for count in counts:
        for trainer, seconds in _timed_by(count, batch, steps, threads).items():
            settings = {"trainer": trainer, "processes": count, "threads": threads, "batch": batch}
            rows.append(settings | {"seconds": seconds})
    table = pd.DataFrame(rows)
    before = table[table["processes"] == counts[0]].set_index("trainer")["seconds"]
    return table.assign(speedup=table["trainer"].map(before) / table["seconds"])


def _timed_by(count: int, batch: int, steps: int, threads: int) -> dict[str, float]:
    """Seconds per step of each trainer by a number of processes."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        shared = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free.getsockname()[1]}
        free.close()
        file = Path(folder) / "seconds.json"
        command = [sys.executable, "-m", __name__, str(file), str(batch), str(steps)]
        started = []
        for rank in range(count):
            values = shared | {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": threads}
            env = os.environ | {key: str(value) for key, value in values.items()}
            pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=env, **pipes))
        try:
            messages = [process.communicate(timeout=60 * MINUTES)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        for process, message in zip(started, messages, strict=True):
            if process.returncode:
                raise RuntimeError(f"a process failed: {Words(message.strip().splitlines()[-1] if message else '')}")
        return json.loads(file.read_text())


def _trainers(batch: int, steps: int) -> dict[str, Callable[[], Trainer]]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch * steps, 3, 32, 32), generator=generator).to(torch.uint8)
    data = ImageSet(pixels, torch.arange(batch * steps) % 10, tuple("0123456789"[: batch * steps]))
    options: dict[str, Any] = {"batch_size": batch, "epochs": 1, "lr": 0.01, "augment": crop_flip(), "progress": False}
    shape = SliceShape(doubling_widths((26, 11, 13, 14)))
    return {
        "Trainer": lambda: Trainer(lambda: vgg9(10), data, **options),
        "AnytimeTrainer": lambda: AnytimeTrainer(lambda: SlicedResNet(10, shape), data, **options),
        "TransferTrainer": lambda: TransferTrainer(resnet(32, 10), lambda: vgg9(10), data, **PAPER | options),
    }


def main(file: str, batch: str, steps: str) -> None:
    """Time the trainers in this process, together with its siblings, and let the first one write the medians."""
    found = {}
    torch.manual_seed(0)  # the same weights in every process
    with start() as processes:
        for name, make in _trainers(int(batch), int(steps) + 2).items():
            times, before = [], None
            for _ in make():
                now = time.perf_counter()
                times += [] if before is None else [now - before]
                before = time.perf_counter()
            found[name] = statistics.median(times[1:])
        if processes.first:
            Path(file).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
