"""Write a trained network as graphs that run without torch, with a manifest and the file that runs them."""

import hashlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm import tqdm

from mtanytime.anytime.made_weights import plain_copy
from mtanytime.backbones import Normalized
from mtanytime.checks import Words, mismatch, one_line, require
from mtanytime.data.images import LabelledImages
from mtanytime.deploy.steps import chain_of, networks_to_export
from mtanytime.deploy.weights import Precision, SharedWeights
from mtanytime.devices import processor
from mtanytime.features import bare, unwrapped
from mtanytime.graphs import Graph, installed, trace
from mtanytime.measure.costs import macs
from mtanytime.training.stored_run import StoredRun

PREDICT = Path(__file__).with_name("predict.py")
LARGEST_DIFFERENCE = 1e-3  # between torch and a graph in float32, relative to the largest logit: more is a mistake
TINY = 1e-12
BATCHES = (1, 64)  # images per batch of the times in the manifest
ROUNDS, SECONDS = 12, 5.0  # of timing at most, for each size of batch
FORMAT, MANIFEST = "mtanytime export", "manifest.json"


def export(
    network: nn.Module | StoredRun,
    folder: str | Path,
    *,
    image_shape: Sequence[int] | None = None,
    classes: Sequence[str] | None = None,
    precision: Precision = "float32",
    test: LabelledImages | None = None,
    torch_export: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Write a network to a new folder, from which it runs with onnxruntime and numpy alone.

    The folder holds every exit as a graph of its own (`exit1.onnx`, …; an ordinary network has one exit) and, of a
    network of slices, each step from one answer to the next (`step1.onnx`, …), which hands its state on to the next
    one; `weights.bin`, which all of them share; `predict.py`, which runs them from Python or the command line; the
    exits as programs of torch.export (`exit1.pt2`, …); and `manifest.json`: shape and range of the images, classes,
    normalization (the graphs contain it), multiply-adds, milliseconds measured here on one thread, accuracy and
    versions. Batch norms are folded, batches may have any size.

    Args:
        network: a trained network on any device (an `AnytimeNetwork`, a transfer's target, one of torchvision's), also
            in a `Normalized`, or what `load_run` returned.
        folder: it must be new or empty. A new one appears when all is written. An interrupted export leaves nothing
            behind, except a hidden folder `.export-…` beside it if the process is killed.
        image_shape: channels, height and width; default: a stored run's, else (3, 32, 32).
        classes: names in the order of the outputs; default: a stored run's, or the test set's.
        precision: of the stored weights, see `SharedWeights`; answers are computed in float32. The programs of
            torch.export keep float32.
        test: images to measure each exit's accuracy on, by the written graphs; default: a stored run's figures, in
            float32.
        torch_export: write the programs of torch.export, too.
        progress: show a progress bar.

    Returns:
        The manifest.

    Raises:
        ImportError: the packages of the extra `export` are missing.
        ValueError: a folder that is not empty, a network that cannot be traced, classes or a test set that do not fit,
            or graphs whose answers differ from the network's.
    """
    installed("onnx", "onnxscript", "onnxruntime")
    folder = Path(folder).expanduser().resolve()
    _check_folder(folder)
    job = _job(network, image_shape, classes, test, precision)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as place:
        (Path(place) / "network").mkdir()  # with the usual permissions, which a temporary folder has not
        manifest = _write(job, Path(place) / "network", torch_export, progress)
        _check_folder(folder)  # another process may have written there
        if folder.exists():  # it may be a mounted one, which cannot be replaced; the manifest comes last
            for file in sorted((Path(place) / "network").iterdir(), key=lambda file: file.name == MANIFEST):
                shutil.move(file, folder / file.name)
        else:
            (Path(place) / "network").rename(folder)
    return manifest


@dataclass(frozen=True)
class _Job:
    """A checked request: the network in eval mode on the CPU, and what goes with it."""

    network: nn.Module
    images: Float[Tensor, "batch channel height width"]
    expected: list[Float[np.ndarray, "batch classes"]]  # the exits' logits for these images
    classes: list[str] | None
    test: LabelledImages | None
    precision: Precision
    accuracy: list[float] | None  # of each exit, as the run's trainer measured it


def _job(
    network: nn.Module | StoredRun,
    image_shape: Sequence[int] | None,
    classes: Sequence[str] | None,
    test: LabelledImages | None,
    precision: Precision,
) -> _Job:
    accuracy = None
    if isinstance(network, StoredRun):
        if network.accuracy is not None:
            accuracy = network.accuracy if isinstance(network.accuracy, list) else [network.accuracy]
        if test is not None and network.classes is not None:
            known = list(network.classes)
            require(list(test.classes) == known, "test", f"the run's classes {known}", list(test.classes))
        if image_shape is None:
            image_shape = network.image_shape
        elif network.image_shape not in (None, tuple(image_shape)):
            accuracy = None  # it was measured on other images
        classes, network = network.classes if classes is None else classes, network.network
    shape = (3, 32, 32) if image_shape is None else tuple(image_shape)
    valid = len(shape) == 3 and all(isinstance(size, Integral) and size >= 1 for size in shape)
    require(valid, "image_shape", "three sizes >= 1: channels, height, width", shape)
    shape = tuple(map(int, shape))
    network = plain_copy(bare(network, "network")).eval().cpu().float()
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    if classes is not None:
        named = not isinstance(classes, str) and all(isinstance(name, str) for name in classes)
        require(named, "classes", "a sequence of names", classes)
    with torch.no_grad():
        try:
            answers = [exit_network(images) for exit_network in networks_to_export(network, fold=False)]
        except Exception as error:  # networks raise many kinds
            if isinstance(error, ValueError) and str(error).startswith("network: "):
                raise
            got = Words(f"{shape} ({one_line(str(error), 200)})")
            raise mismatch("image_shape", f"images that {type(network).__name__} can read", got) from error
        outputs, finite = answers[-1].shape[1], all(bool(logits.isfinite().all()) for logits in answers)
        require(finite, "network", "finite logits for random images", Words("some that are not"))
    if test is not None:
        require(test.image_shape == tuple(shape), "test", f"images of shape {shape}", test.image_shape)
        require(len(test.classes) == outputs, "test", f"{outputs} classes, the outputs", len(test.classes))
        if classes is not None:
            order = "the test set's classes in their order"
            require(list(classes) == list(test.classes), "classes", f"{order}, {list(test.classes)}", list(classes))
        classes = test.classes
    if classes is not None:
        require(len(classes) == outputs, "classes", f"{outputs} names, one per output", len(classes))
    if accuracy is not None and len(accuracy) != len(answers):
        accuracy = None  # the run measured one of several exits
    names, expected = None if classes is None else list(classes), [logits.numpy() for logits in answers]
    return _Job(network, images, expected, names, None if test is None else test.to("cpu"), precision, accuracy)


def _write(job: _Job, place: Path, torch_export: bool, progress: bool) -> dict[str, Any]:
    """Write the folder's files, try them, and return the manifest."""
    networks, chain = networks_to_export(job.network), chain_of(job.network, job.images)
    weights = SharedWeights(place, job.precision)
    exits, steps = [], []
    handed_on: list[str] = []  # names, of all steps so far
    graphs = len(networks) + len(chain)
    with tqdm(total=graphs, desc="export", unit="graph", file=sys.stderr, disable=not progress) as bar:
        for k, network in enumerate(networks, 1):
            graph = trace(network, job.images)
            part = _save(graph, place / f"exit{k}.onnx", weights)
            if torch_export:
                part["torch_export"] = f"exit{k}.pt2"
                _save_program(graph.program, place / part["torch_export"])
            exits.append({"exit": k, "macs": macs(network, job.images.shape[1:])} | part)
            bar.update()
        for k, (step, state, count) in enumerate(chain, 1):
            own = [f"state{k}_{i}" for i in range(1, count + 1)]
            graph = trace(step, job.images, state, handed_on, own)
            handed_on += own
            steps.append({"exit": k} | _save(graph, place / f"step{k}.onnx", weights))
            bar.update()
    shutil.copyfile(PREDICT, place / PREDICT.name)
    manifest = _manifest(job, exits, steps)
    for part in (*exits, *steps):
        part["ms"] = {str(batch): 1.0 for batch in BATCHES}  # until they are measured, below
    _save_manifest(manifest, place)
    predictor = _predictor(place)
    _compare(job, predictor, exits, steps)
    for batch in BATCHES:
        _time(predictor, batch, exits, steps)
    if job.test is not None:
        _score(predictor, job.test, exits)
    elif job.precision == "float32" and job.accuracy is not None:
        for part, accuracy in zip(exits, job.accuracy, strict=True):
            part["accuracy"] = accuracy
    _save_manifest(manifest, place)
    return manifest


def _save(graph: Graph, file: Path, weights: SharedWeights) -> dict[str, Any]:
    """Write a graph, its weights apart, and have ONNX check it. Returns what the manifest says of it."""
    onnx = installed("onnx")[0]
    model = graph.onnx
    for node in model.graph.node:
        del node.metadata_props[:]  # paths of source files
        node.doc_string = ""
    shared = weights.move(model)
    file.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(file), full_check=True)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    about = {"graph": file.name, "inputs": list(graph.inputs), "outputs": list(graph.outputs), "opset": opset}
    return about | {"bytes": file.stat().st_size + shared}


def _save_program(program: Any, file: Path) -> None:
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of source files
    torch.export.save(program, file)


def _manifest(job: _Job, exits: list[dict[str, Any]], steps: list[dict[str, Any]]) -> dict[str, Any]:
    network = job.network
    normalization = None
    if isinstance(network, Normalized):
        mean, std = network.mean.flatten().tolist(), network.std.flatten().tolist()
        normalization = {"mean": mean, "std": std, "size": network.size}
    packages = ("mtanytime", "torch", "onnx", "onnxscript", "onnxruntime")
    return {
        "format": FORMAT,
        "version": 1,
        "network": type(unwrapped(network)).__name__,
        "image_shape": list(job.images.shape[1:]),
        "image_range": [0, 1],
        "normalization": normalization,  # the graphs contain it
        "classes": job.classes,
        "precision": job.precision,
        "exits": exits,
        "steps": steps,
        "measured_on": {"processor": processor(torch.device("cpu")), "threads": 1, "runtime": "onnxruntime"},
        "versions": {name: metadata.version(name) for name in packages},
    }


def _save_manifest(manifest: dict[str, Any], place: Path) -> None:
    """Write the manifest, with the size and the checksum of every other file."""
    manifest["files"] = {
        file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        for file in sorted(place.iterdir())
        if file.name not in (MANIFEST, "__pycache__")
    }
    (place / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _predictor(place: Path) -> Any:
    from mtanytime.deploy.predict import Predictor  # imported here because it needs onnxruntime

    return Predictor(place)


def _compare(job: _Job, predictor: Any, exits: list[Any], steps: list[Any]) -> None:
    """Note the largest difference between a graph's answers and the network's; ValueError if that is a mistake."""
    images = job.images.numpy()
    given = [(exits, [predictor.predict(images, k) for k in range(1, len(exits) + 1)])]
    if steps:
        given.append((steps, [answer.logits for answer in predictor.answers(images)]))
    for parts, answers in given:
        for part, logits, right in zip(parts, answers, job.expected, strict=True):
            remedy = 'export with precision="float32"'
            require(bool(np.isfinite(logits).all()), part["graph"], "finite logits", Words("some that are not"), remedy)
            difference = float(np.abs(logits - right).max())
            part["largest_difference"] = difference
            small = difference <= LARGEST_DIFFERENCE * float(np.abs(right).max()) + TINY
            if job.precision == "float32" and not small:
                got = Words(f"a difference of {difference:g}")
                raise mismatch(part["graph"], "the network's answers", got, "the network may depend on the batch")


def _time(predictor: Any, batch: int, exits: list[dict[str, Any]], steps: list[dict[str, Any]]) -> None:
    """Note the milliseconds of every exit and of the chain for a batch, all in turn: lower quartiles of some rounds."""
    images = np.random.default_rng(0).random((batch, *predictor.image_shape), dtype=np.float32)
    alone: list[list[float]] = []
    chain: list[list[float]] = []
    started = time.perf_counter()
    while len(alone) < 3 or (len(alone) < ROUNDS and time.perf_counter() - started < SECONDS):
        alone.append([])
        for k in range(1, len(exits) + 1):
            before = time.perf_counter()
            predictor.predict(images, k)
            alone[-1].append(1000 * (time.perf_counter() - before))
        if steps:
            chain.append([answer.milliseconds for answer in predictor.answers(images)])
    for part, ms in zip(exits, np.percentile(alone[1:], 25, axis=0), strict=True):
        part["ms"][str(batch)] = round(float(ms), 4)
    if steps:
        own = np.percentile(np.diff(chain[1:], prepend=0, axis=1), 25, axis=0)
        for part, ms, total in zip(steps, own, np.percentile(chain[1:], 25, axis=0), strict=True):
            part["ms"][str(batch)] = round(float(ms), 4)
            part.setdefault("chain_ms", {})[str(batch)] = round(float(total), 4)


def _score(predictor: Any, test: LabelledImages, exits: list[dict[str, Any]]) -> None:
    """Note each exit's accuracy on test images."""
    right = np.zeros(len(exits))
    for images, labels in test.batches(torch.arange(len(test)).split(max(BATCHES))):
        pixels = images.numpy().astype(np.float32) / 255
        for k in range(1, len(exits) + 1):
            right[k - 1] += (predictor.predict(pixels, k).argmax(axis=1) == labels.numpy()).sum()
    for part, count in zip(exits, right, strict=True):
        part["accuracy"] = count / len(test)


def _check_folder(folder: Path) -> None:
    """ValueError unless a folder is new or empty."""
    if folder.exists():
        require(folder.is_dir(), "folder", "a new folder", Words(f"the file {folder}"))
        if any(folder.iterdir()):
            kind = "another export" if (folder / MANIFEST).exists() else "other files"
            raise mismatch("folder", "a new or empty folder", Words(f"{folder}, which holds {kind}"))
