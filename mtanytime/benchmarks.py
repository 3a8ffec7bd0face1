"""The timings behind `python -m mtanytime bench`: alternatives in turn in one process, so that their ratios hold."""

import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from mtanytime.backbones import resnet, vgg9
from mtanytime.datasets import ImageSet
from mtanytime.transfer import TransferTrainer

# Each way to work out the meta-gradient, as the settings of a trainer.
TRANSFER_MODES: dict[str, dict[str, Any]] = {
    "ours": {"mode": "keep"},
    "recompute": {"mode": "recompute"},
    "unroll": {"mode": "unroll"},
    "first_order": {"first_order": True},
}


def transfer_iteration(name: str, batch: int, inner_steps: int) -> Callable[[], Any]:
    """One iteration of L2T-ww on the fixed work, ResNet-32 to VGG-9, 15 pairs, random images; "matching" has no
    lookahead: the real step alone."""
    settings = {"what": False, "where": "off"} if name == "matching" else TRANSFER_MODES[name]
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, 32, 32), generator=generator)
    data = ImageSet(pixels.to(torch.uint8), torch.arange(batch) % 10, tuple("0123456789"[:batch]))
    torch.manual_seed(0)
    trainer = TransferTrainer(
        resnet(32, 200).eval(),
        vgg9(10),
        data,
        epochs=1,
        batch_size=batch,
        lr=1e-3,  # random images and labels soon diverge at the paper's rate
        inner_steps=inner_steps,
        progress=False,
        **settings,
    )
    images = data.images.to(trainer.device).float() / 255
    labels = data.labels.to(trainer.device)
    trainer.model.train()
    if name == "matching":
        return lambda: trainer._step(images, labels)

    def iteration() -> None:
        trainer._step(images, labels)
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()

    return iteration


def bench_transfer(batch: int = 64, inner_steps: int = 2, rounds: int = 5, progress: bool = True) -> dict[str, Any]:
    """Median seconds of one iteration in each mode, taken in turn, and each mode's peak memory in its own process.

    Seconds are under "NAME_s", mebibytes of a whole process under "NAME_mb"; "parts" splits "ours" into the source's
    forward pass with the real step, and the meta-gradient with the step of the meta-networks.
    """
    names = [*TRANSFER_MODES, "matching"]
    iterations = {name: transfer_iteration(name, batch, inner_steps) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in tqdm(range(rounds + 1), unit="round", file=sys.stderr, disable=not progress):
        for name in names:
            started = time.perf_counter()
            iterations[name]()
            if i > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result: dict[str, Any] = {f"{name}_s": round(medians[name], 4) for name in TRANSFER_MODES}
    for name in TRANSFER_MODES:
        result[f"{name}_mb"] = _peak_memory(name, batch, inner_steps)
    result["parts"] = {
        "source_and_real_step_s": round(medians["matching"], 4),
        "meta_gradient_s": round(medians["ours"] - medians["matching"], 4),
    }
    result["config"] = {
        "source": "ResNet-32",
        "target": "VGG-9",
        "pairs": 15,
        "batch": batch,
        "inner_steps": inner_steps,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "torch": torch.__version__,
    }
    return result


def _peak_memory(name: str, batch: int, inner_steps: int) -> float:
    """Peak resident memory, in mebibytes, of a process that runs three iterations of a mode."""
    code = (
        "from mtanytime import benchmarks\n"
        f"iteration = benchmarks.transfer_iteration({name!r}, {batch}, {inner_steps})\n"
        "for _ in range(3): iteration()\n"
        "print(benchmarks.peak_mebibytes())"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(finished.stdout.splitlines()[-1])


def peak_mebibytes() -> float:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux ru_maxrss begins with the peak of the process that started this one
        return round(int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 2**10, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def processor() -> str:
    """What the machine computes with, as it calls itself."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    file = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*:\s*(.+)", file.read_text()) if file.exists() else None
    return f"{cores} cores of {named.group(1).strip() if named else platform.processor() or platform.machine()}"
