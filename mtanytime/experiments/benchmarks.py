"""The timings behind `python -m mtanytime bench`: alternatives in turn in one process, so that their ratios hold."""

import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mtanytime.anytime import InclusiveResNeXt, JointLoss, SlicedResNeXt, fold_batch_norms
from mtanytime.backbones import resnet, vgg9
from mtanytime.data.images import ImageSet
from mtanytime.devices import best_device
from mtanytime.experiments.authors_code import authors_iteration, authors_joint_step
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import TransferTrainer

WARM_UP = 3  # rounds that do not count: until then memory is still being fetched from the system
# Each way to work out the meta-gradient, as the settings of a trainer.
TRANSFER_MODES: dict[str, dict[str, Any]] = {
    "ours": {"mode": "keep"},
    "recompute": {"mode": "recompute"},
    "unroll": {"mode": "unroll"},
    "first_order": {"first_order": True},
}
# What one iteration is made of, each beside those before it: the source's forward pass, the target's step on the
# task alone, the step with the matching loss, and all of it with the meta-gradient.
PARTS = ("source", "step", "matching")


def transfer_iteration(name: str, batch: int, inner_steps: int, authors: Path | None = None) -> Callable[[], Any]:
    """One iteration of L2T-ww on the fixed work, ResNet-32 to VGG-9, 15 pairs, random images, in a mode of
    `TRANSFER_MODES`, or one of its `PARTS`, or "authors": by the code in that folder."""
    if name == "authors":
        return authors_iteration(authors, batch, inner_steps, best_device())
    trainer, images, labels = _transfer_work(name, batch, inner_steps)
    if name == "source":
        return partial(trainer.source_features, images)
    return partial(trainer.train_on_batch, images, labels)


def first_order_error(batch: int, inner_steps: int) -> dict[str, float]:
    """How the first-order meta-gradient of the fixed work differs from the exact one at the same place, after a few
    iterations: the relative error in the Euclidean norm, and the cosine between the two."""
    trainer, images, labels = _transfer_work("ours", batch, inner_steps)
    for _ in range(3):
        trainer.train_on_batch(images, labels)
    found = []
    for first_order in (False, True):
        trainer.lookahead = replace(trainer.lookahead, first_order=first_order)
        found.append(torch.cat([gradient.flatten() for gradient in trainer.meta_gradient(images, labels)]))
    exact, approximate = (gradient.double() for gradient in found)
    return {
        "relative_error": round(((approximate - exact).norm() / exact.norm()).item(), 4),
        "cosine": round(torch.cosine_similarity(approximate, exact, dim=0).item(), 4),
    }


def _transfer_work(name: str, batch: int, inner_steps: int) -> tuple[Trainer, Tensor, Tensor]:
    """A trainer in train mode, and the images and labels of its one batch."""
    settings = TRANSFER_MODES.get(name, {} if name == "source" else {"what": False, "where": "off"})
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, 32, 32), generator=generator)
    data = ImageSet(pixels.to(torch.uint8), torch.arange(batch) % 10, tuple("0123456789"[:batch]))
    torch.manual_seed(0)
    source, target = resnet(32, 200).eval(), vgg9(10)
    common = {"epochs": 1, "batch_size": batch, "progress": False}
    common["lr"] = 1e-3  # random images and labels soon diverge at the paper's rate
    if name == "step":
        trainer = Trainer(target, data, **common)
    else:
        trainer = TransferTrainer(source, target, data, inner_steps=inner_steps, **settings, **common)
    images = data.images.to(trainer.device).float() / 255
    labels = data.labels.to(trainer.device)
    trainer.model.train()
    return trainer, images, labels


def bench_transfer(
    batch: int = 64,
    inner_steps: int = 2,
    rounds: int = 5,
    compiled: bool = False,
    progress: bool = True,
    authors: Path | None = None,
) -> dict[str, Any]:
    """Median seconds of one iteration in each mode, taken in turn, and each mode's peak memory in its own process.

    Seconds are under "NAME_s", mebibytes of a whole process under "NAME_mb"; "parts" splits "ours" into the source's
    forward pass, the target's own step, the matching loss in it, and the meta-gradient with the step of the
    meta-networks; "first_order_error" is `first_order_error`'s. With `compiled`, "compiled" has the two parts that
    torch.compile can take, the source's forward pass and the target's own step, as they are and compiled, and
    "compile_s", which their first calls took (a compiled network can't be differentiated twice, so not the lookahead).
    `authors`, a clone of the L2T-ww authors' repository, adds "authors_s" and "authors_mb".
    """
    modes = [*TRANSFER_MODES, *(["authors"] if authors is not None else [])]
    names = [*modes, *PARTS]
    iterations = {name: transfer_iteration(name, batch, inner_steps, authors) for name in names}
    parts_compiled = _compiled_parts(batch, rounds, progress) if compiled else None  # early: a compiler may be missing
    medians = _in_turn(iterations, rounds, progress)
    result: dict[str, Any] = {f"{name}_s": round(medians[name], 4) for name in modes}
    for name in modes:
        result[f"{name}_mb"] = _peak_memory(name, batch, inner_steps, authors)
    result["parts"] = {
        "source_s": round(medians["source"], 4),
        "step_s": round(medians["step"], 4),
        "matching_s": round(medians["matching"] - medians["step"] - medians["source"], 4),
        "meta_gradient_s": round(medians["ours"] - medians["matching"], 4),
    }
    result["first_order_error"] = first_order_error(batch, inner_steps)
    if parts_compiled is not None:
        result["compiled"] = parts_compiled
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


def _compiled_parts(batch: int, rounds: int, progress: bool) -> dict[str, float]:
    """Seconds of a source's forward pass and of a target's training step, as they are and compiled, by turns. Without
    the hooks that training needs, so no more than this can be saved."""
    device = best_device()
    images, labels = torch.rand(batch, 3, 32, 32, device=device), torch.arange(batch, device=device) % 10
    source, target = resnet(32, 200).eval().to(device), vgg9(10).to(device)
    compiled_source, compiled_target = torch.compile(source), torch.compile(vgg9(10).to(device))
    work = {
        "source": partial(_without_gradient, source, images),
        "source_compiled": partial(_without_gradient, compiled_source, images),
        "step": _training_step(target, images, labels),
        "step_compiled": _training_step(compiled_target, images, labels),
    }
    started = time.perf_counter()
    work["source_compiled"]()
    work["step_compiled"]()
    seconds = time.perf_counter() - started
    medians = _in_turn(work, rounds, progress)
    return {f"{name}_s": round(median, 4) for name, median in medians.items()} | {"compile_s": round(seconds, 1)}


def bench_anytime(
    width: int = 64,
    bottleneck: int = 4,
    branches: int = 8,
    blocks: int = 7,
    batch: int = 64,
    rounds: int = 5,
    compiled: bool = False,
    progress: bool = True,
    authors: Path | None = None,
) -> dict[str, Any]:
    """Median seconds, taken in turn, of what an anytime ResNeXt does on 32×32 images, in float32.

    Training steps (forward, backward and SGD): "sliced_joint_s" all exits of a `SlicedResNeXt`, "widest_s" its widest
    sub-network alone, `extract(K)`, and "inclusive_joint_s" all exits of an `InclusiveResNeXt`. Inference with folded
    batch norms: "full_s" one forward pass of the widest, "stepup_s" all answers by `refine`, "first_s" the first of
    them. "batch_1" has the inference again for one image; "unfolded" with the batch norms as they are; with `compiled`,
    "compiled" has "full_s" under torch.compile, and "compile_s", which the first call took. `authors`, a clone of the
    repository of their inclusive ResNeXt, adds "authors_joint_s", a training step of it.
    """
    torch.manual_seed(0)
    sliced = SlicedResNeXt(10, width, bottleneck, branches, blocks)
    inclusive = InclusiveResNeXt(10, width, bottleneck, branches, blocks)
    device = best_device()
    images = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.arange(batch, device=device) % 10
    networks = {"sliced_joint": sliced, "widest": sliced.extract(sliced.exits), "inclusive_joint": inclusive}
    steps = {name: _training_step(network.to(device), images, labels) for name, network in networks.items()}
    if authors is not None:
        steps["authors_joint"] = authors_joint_step(authors, (width, bottleneck, branches, blocks), images, labels)
    medians = _in_turn(steps, rounds, progress)
    medians |= _in_turn(_inference(sliced, images, folded=True), rounds, progress)
    result: dict[str, Any] = {f"{name}_s": round(medians[name], 4) for name in medians}
    for name, part, folded in (("unfolded", images, False), ("batch_1", images[:1], True)):
        times = _in_turn(_inference(sliced, part, folded), rounds if folded is False else 4 * rounds, progress)
        result[name] = {f"{key}_s": round(value, 5) for key, value in times.items()}
    if compiled:
        quick = torch.compile(fold_batch_norms(sliced.extract(sliced.exits)))
        started = time.perf_counter()
        with torch.no_grad():
            quick(images)
        seconds = time.perf_counter() - started
        full = _in_turn({"full": lambda: _without_gradient(quick, images)}, rounds, progress)["full"]
        result["compiled"] = {"full_s": round(full, 4), "compile_s": round(seconds, 1)}
    result["config"] = {
        "width": width,
        "bottleneck": bottleneck,
        "branches": branches,
        "blocks": blocks,
        "batch": batch,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "torch": torch.__version__,
    }
    return result


def _training_step(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    optimizer, loss = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4), JointLoss()
    network.train()

    def step() -> None:
        outputs = network(images)
        total = loss([outputs] if isinstance(outputs, Tensor) else outputs, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def _inference(network: SlicedResNeXt, images: Tensor, folded: bool) -> dict[str, Callable[[], None]]:
    """All answers step by step, the first one, and one pass of the widest sub-network."""
    whole, widest = network.eval(), network.extract(network.exits).eval()
    if folded:
        whole, widest = fold_batch_norms(whole), fold_batch_norms(widest)
    return {
        "stepup": lambda: deque(whole.refine(images), maxlen=0),
        "first": lambda: next(whole.refine(images)),
        "full": lambda: _without_gradient(widest, images),
    }


@torch.no_grad()
def _without_gradient(network: nn.Module, images: Tensor) -> None:
    network(images)


def _in_turn(work: dict[str, Callable[[], Any]], rounds: int, progress: bool) -> dict[str, float]:
    """Median seconds of each piece of work, done by turns so that a slow moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for i in tqdm(range(rounds + WARM_UP), unit="round", file=sys.stderr, disable=not progress):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _peak_memory(name: str, batch: int, inner_steps: int, authors: Path | None) -> float:
    """Peak resident memory, in mebibytes, of a process that runs three iterations of a mode."""
    code = (
        "from pathlib import Path\n"
        "from mtanytime import benchmarks\n"
        f"authors = {None if authors is None else str(authors)!r}\n"
        f"iteration = benchmarks.transfer_iteration({name!r}, {batch}, {inner_steps}, authors and Path(authors))\n"
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
