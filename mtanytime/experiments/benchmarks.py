"""The timings behind `python -m mtanytime bench`.

Alternatives run in turn in one process, so that a slow moment affects all of them and their ratios hold.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from mtanytime.anytime import InclusiveResNeXt, JointLoss, SlicedResNeXt, fold_batch_norms, prepare_steps
from mtanytime.anytime.prepared import PreparedSlices
from mtanytime.backbones import resnet, vgg9
from mtanytime.data.images import ImageSet
from mtanytime.deploy import export
from mtanytime.devices import best_device, synchronize
from mtanytime.experiments.authors_code import authors_iteration, authors_joint_step
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import PAPER, TransferTrainer
from mtanytime.transfer.remembered import Memory, Remembered

Images = Float[Tensor, "batch 3 height width"]
Labels = Int[Tensor, " batch"]
Work = dict[str, Callable[[], Any]]

WARM_UP = 3  # rounds that are not counted: the process still requests memory from the system in them
# The ways to compute the meta-gradient, as arguments of a trainer.
TRANSFER_MODES: dict[str, dict[str, Any]] = {
    "ours": {"mode": "keep"},
    "recompute": {"mode": "recompute"},
    "unroll": {"mode": "unroll"},
    "first_order": {"first_order": True},
}
# Parts of one iteration: the source's forward pass, the target's step on the task's loss alone, and the source's pass
# and the target's step with the matching loss added, where only the meta-gradient is missing; the same with both
# networks in torch's memory format channels_last; and this as a search's trials have it, which run the source once.
PARTS = ("source", "step", "matching", "channels_last", "trial")


class Report(NamedTuple):
    """A benchmark's figures, which `--json` prints, and the fastest and slowest counted round of each timing."""

    figures: dict[str, Any]
    ranges: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class AnytimeSizes:
    """Sizes of the ResNeXts that `bench_anytime` times (see `anytime.resnext`); by default those of the authors."""

    width: int = 64
    bottleneck: int = 4
    branches: int = 8
    blocks: int = 7


def transfer_iteration(name: str, batch: int, inner_steps: int, authors: Path | None = None) -> Callable[[], Any]:
    """Build one iteration of L2T-ww to time: ResNet-32 to VGG-9, 15 pairs, random images.

    Args:
        name: one of `TRANSFER_MODES` or `PARTS`, or "authors" for the authors' code.
        batch: images per batch.
        inner_steps: T, the matching steps of the lookahead.
        authors: the folder with the authors' code.
    """
    if name == "authors":
        return authors_iteration(authors, batch, inner_steps, best_device())
    trainer, images, labels = _transfer_work(name, batch, inner_steps)
    if name == "source":
        return partial(trainer.source_features, images)
    return partial(trainer.train_on_batch, images, labels)


def first_order_error(batch: int, inner_steps: int) -> dict[str, float]:
    """Compare the first-order meta-gradient with the exact one, from the same state after three iterations.

    Returns the relative error in the Euclidean norm and the cosine between the two.
    """
    trainer, images, labels = _transfer_work("ours", batch, inner_steps)
    for _ in range(3):
        trainer.train_on_batch(images, labels)
    gradients = []
    for first_order in (False, True):
        trainer.lookahead = replace(trainer.lookahead, first_order=first_order)
        gradients.append(torch.cat([gradient.flatten() for gradient in trainer.meta_gradient(images, labels)]))
    exact, approximate = (gradient.cpu().double() for gradient in gradients)  # not every accelerator has float64
    return {
        "relative_error": round(((approximate - exact).norm() / exact.norm()).item(), 4),
        "cosine": round(torch.cosine_similarity(approximate, exact, dim=0).item(), 4),
    }


def _transfer_work(name: str, batch: int, inner_steps: int) -> tuple[Trainer, Images, Labels]:
    """A trainer in train mode, and its one batch."""
    arguments = TRANSFER_MODES.get(name, {} if name == "source" else {"what": False, "where": "off"})
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (batch, 3, 32, 32), generator=generator)
    data = ImageSet(pixels.to(torch.uint8), torch.arange(batch) % 10, tuple("0123456789"[:batch]))
    torch.manual_seed(0)
    layout = torch.channels_last if name in ("channels_last", "trial") else torch.contiguous_format
    source, target = (network.to(memory_format=layout) for network in (resnet(32, 200).eval(), vgg9(10)))
    common = {"epochs": 1, "batch_size": batch, "progress": False}
    common["lr"] = 1e-3  # at the paper's rate, training on random images and labels soon diverges
    if name == "step":
        trainer = Trainer(target, data, **common)
    else:
        trainer = TransferTrainer(source, target, data, inner_steps=inner_steps, **PAPER | arguments | common)
    if name == "trial":
        (tapped,) = trainer.sources.values()
        trainer.sources[""] = Remembered(Memory(tapped), tapped.layers)
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
) -> Report:
    """Time one iteration of L2T-ww in each mode, in turn, and measure each mode's peak memory in its own process.

    Args:
        batch, inner_steps: the size of the work (see `transfer_iteration`).
        rounds: counted rounds; the figures are medians over them.
        compiled: also time under torch.compile the parts that it can compile. A compiled network cannot be
            differentiated twice, so the lookahead is not among them.
        progress: show a progress bar.
        authors: a clone of the L2T-ww authors' repository, whose code is timed too.

    Returns figures:
        "MODE_s", seconds, and "MODE_mb", mebibytes of a whole process, for each of `TRANSFER_MODES` and "authors".
        "parts", seconds of "ours" in parts: the source's forward pass, the target's own step, the matching loss in that
        step, and the meta-gradient with the step of the meta-networks. "fixed_weights": seconds of a
        step without a meta-gradient, by the memory format of both networks, and in the later trials of a search, which
        remember the source's answers ("trial_s", channels_last). "first_order_error": see that function.
        "compiled": seconds of the source's forward pass and the target's own step, plain and compiled, and "compile_s",
        the duration of the first compiled calls. "config".
    """
    modes = [*TRANSFER_MODES, *(["authors"] if authors is not None else [])]
    iterations = {name: transfer_iteration(name, batch, inner_steps, authors) for name in (*modes, *PARTS)}
    parts_compiled = _compiled_parts(batch, rounds, progress) if compiled else None  # early: a compiler may be missing
    seconds = _in_turn(iterations, rounds, progress)
    medians = _medians(seconds)
    figures: dict[str, Any] = {f"{name}_s": round(medians[name], 4) for name in modes}
    for name in modes:
        figures[f"{name}_mb"] = _peak_memory(name, batch, inner_steps, authors)
    figures["parts"] = {
        "source_s": round(medians["source"], 4),
        "step_s": round(medians["step"], 4),
        "matching_s": round(medians["matching"] - medians["step"] - medians["source"], 4),
        "meta_gradient_s": round(medians["ours"] - medians["matching"], 4),
    }
    figures["fixed_weights"] = {
        "contiguous_s": round(medians["matching"], 4),
        "channels_last_s": round(medians["channels_last"], 4),
        "trial_s": round(medians["trial"], 4),
    }
    figures["first_order_error"] = first_order_error(batch, inner_steps)
    if parts_compiled is not None:
        figures["compiled"] = parts_compiled
    figures["config"] = {
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
    return Report(figures, _ranges(seconds))


def _compiled_parts(batch: int, rounds: int, progress: bool) -> dict[str, float]:
    """Median seconds of a source's forward pass and a target's training step, plain and compiled, in turn.

    The networks lack the hooks that training needs, so this is an upper bound of what compilation saves.
    """
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
    medians = _medians(_in_turn(work, rounds, progress))
    return {f"{name}_s": round(median, 4) for name, median in medians.items()} | {"compile_s": round(seconds, 1)}


def bench_anytime(
    sizes: AnytimeSizes | None = None,
    batch: int = 64,
    rounds: int = 5,
    compiled: bool = False,
    progress: bool = True,
    authors: Path | None = None,
    onnxruntime: bool = False,
) -> Report:
    """Time training steps and inference of anytime ResNeXts on 32×32 images in float32, in turn.

    Args:
        sizes: of the networks; by default those of the authors.
        batch: images per batch.
        rounds: counted rounds; the figures are medians over them.
        compiled: also time the widest sub-network under torch.compile, which compiles it for each batch size.
        progress: show a progress bar.
        authors: a clone of the repository of the authors' inclusive ResNeXt, of which a training step is timed too.
        onnxruntime: also export the network, which takes minutes, and time its inference by ONNX Runtime.

    Returns figures:
        Seconds of training steps (forward, backward and SGD): "sliced_joint_s", all exits of a `SlicedResNeXt`;
        "widest_s", its widest sub-network alone, `extract(K)`; "inclusive_joint_s", all exits of an `InclusiveResNeXt`;
        "authors_joint_s", all exits of the authors' network. Seconds of inference with folded batch norms: "full_s",
        one forward pass of the widest sub-network; "stepup_s", all outputs by `prepare_steps(…).refine`; "first_s", the
        first of them. Other ways of inference, in turn with that one: "unfolded", with batch norms, and
        "channels_last", in that memory layout, both by the network's own `refine`; "joined", "stepup_s" where each
        slice's maps are concatenated with those of earlier slices, in place of `refine`'s preallocated buffers;
        "compiled", "full_s" under torch.compile, and "compile_s", the duration of the first call; "onnxruntime".
        "batch_1", "unfolded_batch_1", …: the same for one image. "config".
    """
    sizes = sizes or AnytimeSizes()
    torch.manual_seed(0)
    sliced = SlicedResNeXt(10, **asdict(sizes))
    inclusive = InclusiveResNeXt(10, **asdict(sizes))
    device = best_device()
    images = torch.rand(batch, 3, 32, 32, device=device)
    labels = torch.arange(batch, device=device) % 10
    networks = {"sliced_joint": sliced, "widest": sliced.extract(sliced.exits), "inclusive_joint": inclusive}
    steps = {name: _training_step(network.to(device), images, labels) for name, network in networks.items()}
    if authors is not None:
        steps["authors_joint"] = authors_joint_step(authors, tuple(asdict(sizes).values()), images, labels)
    seconds = _in_turn(steps, rounds, progress)
    with tempfile.TemporaryDirectory() as folder:
        predictor = _exported(sliced, Path(folder), progress) if onnxruntime else None
        inference: dict[str, Any] = {}
        for suffix, part, factor in (("", images, 1), ("_batch_1", images[:1], 4)):
            ways, compile_seconds = inference_ways(sliced, part, compiled)
            if predictor is not None:
                ways["onnxruntime"] = _exported_inference(predictor, part)
            calls = {f"{way} {name}": call for way, work in ways.items() for name, call in work.items()}
            timed = _in_turn(calls, factor * rounds, progress)
            medians = _medians(timed)
            for way, work in ways.items():
                inference[way + suffix] = {f"{name}_s": round(medians[f"{way} {name}"], 5) for name in work}
            if compiled:
                inference["compiled" + suffix]["compile_s"] = round(compile_seconds, 1)
            if not suffix:
                seconds |= {name: timed[f"folded {name}"] for name in ways["folded"]}
    figures: dict[str, Any] = {f"{name}_s": round(median, 4) for name, median in _medians(seconds).items()}
    figures["batch_1"] = inference.pop("folded_batch_1")
    figures |= {way: values for way, values in inference.items() if way != "folded"}
    figures["config"] = {
        **asdict(sizes),
        "batch": batch,
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "rounds": rounds,
        "torch": torch.__version__,
    }
    return Report(figures, _ranges(seconds))


def _training_step(network: nn.Module, images: Images, labels: Labels) -> Callable[[], None]:
    optimizer, loss = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4), JointLoss()
    network.train()

    def step() -> None:
        outputs = network(images)
        total = loss([outputs] if isinstance(outputs, Tensor) else outputs, labels)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    return step


def inference_ways(network: SlicedResNeXt, images: Images, compiled: bool = False) -> tuple[dict[str, Work], float]:
    """The ways of inference that `bench_anytime` names, and the seconds that torch.compile took, if it is among them.

    Each way's calls return logits: "stepup" all outputs, "first" the first one, "full" the widest one.
    """
    network = network.eval()
    widest = network.extract(network.exits)
    folded, last = ([fold_batch_norms(network), fold_batch_norms(widest)] for _ in range(2))
    layout = torch.channels_last
    ways = {
        "folded": _inference(prepare_steps(network), folded[1], images),
        "unfolded": _inference(network, widest, images),
        "channels_last": _inference(*(part.to(memory_format=layout) for part in last), images.to(memory_format=layout)),
        "joined": {"stepup": partial(_joined_steps, folded[0], images)},
    }
    if not compiled:
        return ways, 0.0
    ways["compiled"] = {"full": partial(_without_gradient, torch.compile(fold_batch_norms(widest)), images)}
    started = time.perf_counter()
    ways["compiled"]["full"]()
    return ways, time.perf_counter() - started


def _inference(network: SlicedResNeXt | PreparedSlices, widest: nn.Module, images: Images) -> Work:
    """All outputs step by step, the first output, and one pass of the widest sub-network."""
    return {
        "stepup": lambda: list(network.refine(images)),
        "first": lambda: next(network.refine(images)),
        "full": partial(_without_gradient, widest, images),
    }


@torch.no_grad()
def _joined_steps(network: SlicedResNeXt, images: Images) -> list[Tensor]:
    """All outputs step by step, without buffers."""
    outputs, earlier = [], []
    for _ in range(network.exits):
        logits, handed_on = network.one_slice(images, earlier)
        outputs.append(logits)
        earlier.append(handed_on)
    return outputs


def _exported(network: SlicedResNeXt, folder: Path, progress: bool) -> Any:
    from mtanytime.deploy.predict import Predictor  # imported here because it needs onnxruntime

    export(network, folder / "network", torch_export=False, progress=progress)
    return Predictor(folder / "network", threads=torch.get_num_threads())


def _exported_inference(predictor: Any, images: Images) -> Work:
    pixels = images.cpu().numpy()
    return {
        "stepup": lambda: deque(predictor.answers(pixels), maxlen=0),
        "first": lambda: next(predictor.answers(pixels)),
        "full": lambda: predictor.predict(pixels),
    }


@torch.no_grad()
def _without_gradient(network: Callable[[Images], Any], images: Images) -> Any:
    return network(images)


def _in_turn(work: Work, rounds: int, progress: bool) -> dict[str, list[float]]:
    """Seconds of each piece of work in each counted round; a round does every piece once."""
    device = best_device()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for i in tqdm(range(rounds + WARM_UP), unit="round", file=sys.stderr, disable=not progress):
        for name, call in work.items():
            started = time.perf_counter()
            call()
            synchronize(device)
            if i >= WARM_UP:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def _ranges(seconds: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    return {name: (min(values), max(values)) for name, values in seconds.items()}


def _peak_memory(name: str, batch: int, inner_steps: int, authors: Path | None) -> float:
    """Peak resident memory, in mebibytes, of a process that runs three iterations in one mode."""
    code = (
        "from pathlib import Path\n"
        "from mtanytime.experiments import benchmarks\n"
        f"authors = {None if authors is None else str(authors)!r}\n"
        f"iteration = benchmarks.transfer_iteration({name!r}, {batch}, {inner_steps}, authors and Path(authors))\n"
        "for _ in range(3): iteration()\n"
        "print(benchmarks.peak_mebibytes())"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if finished.returncode:
        reason = (finished.stderr.strip().splitlines() or [f"status {finished.returncode}"])[-1]
        raise RuntimeError(f"the process that measures the peak memory of {name!r} failed: {reason}")
    return float(finished.stdout.splitlines()[-1])


def peak_mebibytes() -> float:
    """Peak resident memory of this process so far, in mebibytes."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, ru_maxrss includes the peak of the process that started this one
        return round(int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text()).group(1)) / 2**10, 1)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
