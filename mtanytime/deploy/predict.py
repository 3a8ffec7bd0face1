"""Run an exported network with onnxruntime and numpy, without torch.

This file stands alone: it is copied into the folder that `mtanytime.deploy.export` writes, beside the graphs. Python:

    from predict import Predictor

    predictor = Predictor("folder")                    # images: float32 (batch, channels, height, width) in [0, 1]
    for answer in predictor.answers(images):           # every answer, the cheapest first
        print(answer.exit, answer.logits.argmax(1))
    answer = predictor.answer_by(images, deadline=5)   # the best answer within 5 milliseconds
    answer = predictor.until_sure(images, 0.9)         # each image goes on until its class has a probability of 90 %

The command line also needs Pillow: `python predict.py --deadline 5 cat.png dog.jpg`
"""

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime

FORMAT = "mtanytime export"
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # EXIF orientation: Pillow's Image.Transpose
REMEMBERED = 10  # times of each step from which the next one is predicted


class Answer(NamedTuple):
    """An answer to a batch: logits, the exit that gave them (of each image, if they differ), milliseconds it took."""

    logits: np.ndarray
    exit: Any
    milliseconds: float

    @property
    def probabilities(self) -> np.ndarray:
        """The softmax of the logits."""
        return softmax(self.logits)


def softmax(logits: np.ndarray) -> np.ndarray:
    """The probabilities of classes, from logits (batch, classes)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Predictor:
    """An exported network.

    A network of slices answers in steps: each computes one slice and hands its results on to the next. Other networks
    with several exits run each exit's own graph in turn, from the image.

    Args:
        folder: where the graphs and manifest.json are; by default, where this file is.
        threads: of onnxruntime.

    Attributes:
        manifest: the contents of manifest.json.
        classes: the names of the classes, or None.
        image_shape: channels, height and width.
        exits: how many answers there are.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: a damaged manifest, a missing, truncated or changed file, graphs that do not fit the manifest.
    """

    def __init__(self, folder: str | Path | None = None, threads: int = 1) -> None:
        most = 4 * (os.cpu_count() or 64)
        whole = type(threads) is int
        require(whole and 1 <= threads <= most, "threads", f"a whole number from 1 to {most}", repr(threads))
        self.folder = Path(__file__).parent if folder is None else Path(folder).expanduser()
        self.manifest = _read_manifest(self.folder)
        self.classes: list[str] | None = self.manifest["classes"]
        self.image_shape = tuple(self.manifest["image_shape"])
        self.exits = len(self.manifest["exits"])
        self._steps = self.manifest["steps"] or self.manifest["exits"]
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._sessions: dict[str, Any] = {}
        for part in self._steps:
            self._session(part)
        self._times: dict[int, _Times] = {}  # by number of images

    def answers(self, images: np.ndarray) -> Iterator[Answer]:
        """Yield the answers to a batch one by one, the cheapest first. Raises ValueError for images of another shape.

        `send(keep)` in place of `next()` goes on with the images for which the array `keep` is True.
        """
        images = self._checked(images)
        state: dict[str, np.ndarray] = {"images": images}
        times: _Times | None = self._times.setdefault(len(images), _Times(self.exits))
        started = before = time.perf_counter()
        for k, part in enumerate(self._steps, 1):
            logits, *handed_on = self._session(part).run(None, {name: state[name] for name in part["inputs"]})
            now = time.perf_counter()
            state.update(zip(part["outputs"][1:], handed_on, strict=True))
            if times is not None:
                times.add(k, 1000 * (now - before))
            before = now
            keep = yield Answer(logits, k, 1000 * (now - started))
            if keep is not None:
                keep = np.asarray(keep)
                fits = keep.shape == (len(logits),) and keep.dtype == bool
                require(fits, "keep", f"{len(logits)} of True and False, one per image", f"{keep.dtype} {keep.shape}")
                state = {name: part[keep] for name, part in state.items()}
                times = None  # of a batch that has become smaller nothing is noted

    def answer_by(self, images: np.ndarray, deadline: float) -> Answer:
        """Return the widest answer to a batch that is ready `deadline` milliseconds from now.

        A step that is not expected to end in time (see `expected_ms`) is not started. One that was started is not
        interrupted, so the call may return late by less than one step; its answer, ready too late, is dropped. The
        first answer is always returned, even if it is late. Call `warm_up` before, or the first deadlines rely on the
        manifest's times, from another machine. Raises ValueError for a deadline that is not above 0.
        """
        started = time.perf_counter()
        require(isinstance(deadline, Real) and deadline > 0, "deadline", "a number of milliseconds > 0", repr(deadline))
        best: Answer | None = None
        for answer in self.answers(images):
            elapsed = 1000 * (time.perf_counter() - started)
            if best is None or elapsed <= deadline:
                best = answer._replace(milliseconds=elapsed)
            if answer.exit == self.exits or elapsed + self.expected_ms(answer.exit + 1, len(images)) > deadline:
                return best

    def until_sure(self, images: np.ndarray, probability: float) -> Answer:
        """Refine the answer to each image until its likeliest class has this probability, or all exits have answered.

        Images that are sure leave, and the others go on. The answer's `exit` has one entry per image. Raises ValueError
        for a probability outside [0, 1].
        """
        valid = isinstance(probability, Real) and 0 <= probability <= 1
        require(valid, "probability", "a number from 0 to 1", repr(probability))
        steps, remaining = self.answers(images), np.arange(len(images))
        answer = next(steps)
        logits, taken = answer.logits.copy(), np.ones(len(images), dtype=int)
        while True:
            logits[remaining], taken[remaining] = answer.logits, answer.exit
            keep = ~(answer.probabilities.max(axis=1) >= probability)  # also where it is not a number
            remaining = remaining[keep]
            if not len(remaining) or answer.exit == self.exits:
                return Answer(logits, taken, answer.milliseconds)
            answer = steps.send(keep)

    def predict(self, images: np.ndarray, exit: int | None = None) -> np.ndarray:
        """The logits of one exit, by default the widest, computed by its own graph."""
        exit = self.exits if exit is None else exit
        whole = isinstance(exit, (int, np.integer))
        require(whole and 1 <= exit <= self.exits, "exit", f"an exit from 1 to {self.exits}", repr(exit))
        part = self.manifest["exits"][exit - 1]
        return self._session(part).run(None, {"images": self._checked(images)})[0]

    def warm_up(self, batch: int = 1, rounds: int = REMEMBERED) -> None:
        """Run all steps a few times on this many images, so that later ones can be predicted."""
        require(isinstance(batch, int) and batch >= 1, "batch", "a whole number >= 1", repr(batch))
        images = np.zeros((batch, *self.image_shape), np.float32)
        for _ in range(rounds + 1):
            for _ in self.answers(images):
                pass

    def expected_ms(self, step: int, batch: int) -> float:
        """How long step number `step` is expected to take for this many images.

        Nine of ten of its last times were shorter, as multiples of the first step's time, which is known best since
        every answer begins with it. Before a step has run, the manifest's figures for one image stand in.
        """
        ms = [part["ms"]["1"] for part in self._steps]
        times = self._times.get(batch, _Times(self.exits))
        first = sorted(times.first)[len(times.first) // 2] if times.first else batch * ms[0]
        ratios = sorted(times.ratios[step - 1])  # numpy's quantile would take as long as a thin step
        return first * (ratios[int(0.9 * (len(ratios) - 1))] if ratios else ms[step - 1] / ms[0])

    def _session(self, part: dict[str, Any]) -> Any:
        """The session of a graph, which is loaded once and compared with the manifest."""
        name = part["graph"]
        if name not in self._sessions:
            try:
                session = onnxruntime.InferenceSession(
                    str(self.folder / name), self._options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise mismatch(name, "a graph that onnxruntime reads", " ".join(str(error).split())) from error
            for kind, nodes in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
                names, expected = [node.name for node in nodes], part[kind]
                same = names == expected if kind == "outputs" else sorted(names) == sorted(expected)
                require(same, name, f"{kind} {expected}, as in manifest.json", names)
            columns = session.get_outputs()[0].shape[-1]
            if self.classes is not None and isinstance(columns, int):
                require(len(self.classes) == columns, "manifest.json", f"{columns} classes", len(self.classes))
            self._sessions[name] = session
        return self._sessions[name]

    def _checked(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        expected = f"float32 in [0, 1] of shape (batch, {', '.join(map(str, self.image_shape))})"
        fits = images.ndim == 4 and images.shape[1:] == self.image_shape and len(images) > 0
        require(fits and images.dtype.kind == "f", "images", expected, f"{images.dtype} {images.shape}")
        return np.ascontiguousarray(images, np.float32)


class _Times:
    """The last milliseconds of the first step and, of each step, the last multiples of the first step's time."""

    def __init__(self, steps: int) -> None:
        self.first: deque[float] = deque(maxlen=REMEMBERED)
        self.ratios: list[deque[float]] = [deque(maxlen=REMEMBERED) for _ in range(steps)]

    def add(self, step: int, milliseconds: float) -> None:
        """Note the time of a step (from 1); a first step comes before the others of its run."""
        if step == 1:
            self.first.append(milliseconds)
        self.ratios[step - 1].append(milliseconds / self.first[-1])


def read_image(file: str | Path, shape: Sequence[int], resize: bool = False) -> np.ndarray:
    """Read an image file as viewers show it, as float32 in [0, 1], (channels, height, width).

    As `mtanytime.data.image_folder` prepares training images: the orientation of photographs is applied, transparent
    pixels lie on white, 16 bits and floats in [0, 1] are scaled, and an image of another size is resized, keeping its
    aspect ratio, until it covers the network's size, and cropped in the middle.

    Args:
        file: in any format that Pillow reads.
        shape: channels (1 or 3), height and width.
        resize: accept an image of another size, which is otherwise an error.
    """
    from PIL import Image, ImageOps

    channels, height, width = shape
    require(channels in (1, 3), "image_shape", "1 or 3 channels for image files", channels)
    try:
        with Image.open(file) as opened:
            if opened.format == "EPS":
                raise ValueError("PostScript is a program, which is not executed")
            turn = TURNS.get(opened.getexif().get(0x0112))  # the EXIF orientation
            image = opened if turn is None else opened.transpose(turn)
            if image.mode.startswith("I"):  # 16-bit grey, which convert would clip at 255
                image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).round().astype(np.uint8))
            elif image.mode == "F":
                levels = np.asarray(image, np.float64)
                inside = bool(np.isfinite(levels).all() and levels.min() >= 0 and levels.max() <= 1)
                require(
                    inside, "its pixels", "float grey levels in [0, 1]", f"{levels.min():.4g} to {levels.max():.4g}"
                )
                image = Image.fromarray((255 * levels).round().astype(np.uint8))
            if "A" in image.mode or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            image = image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise mismatch(str(file), "an image file", f"{type(error).__name__}: {error}") from error
    if image.size != (width, height):
        got = f"{image.size[0]} × {image.size[1]}"
        require(resize, str(file), f"an image of {width} × {height} pixels", f"{got}; --resize accepts other sizes")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.float32) / 255
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def mismatch(name: str, expected: str, got: object) -> ValueError:
    """An error that says what was expected and what came."""
    return ValueError(f"{name}: expected {expected}, got {got}")


def require(holds: bool, name: str, expected: str, got: object) -> None:
    """Raise `mismatch` unless the condition holds."""
    if not holds:
        raise mismatch(name, expected, got)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, all of whose files are there as they were written."""
    file = folder / "manifest.json"
    if not file.exists():
        raise FileNotFoundError(f"folder: expected an exported network with manifest.json, got {folder}")
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise mismatch(str(file), "a manifest in JSON", error) from error
    known = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    require(known, str(file), f'a manifest with format "{FORMAT}"', "another file")
    require(manifest.get("version") == 1, str(file), "version 1 of the format", manifest.get("version"))
    try:
        _check_manifest(manifest, folder)
    except (AttributeError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise mismatch(str(file), "a complete manifest", f"{type(error).__name__}: {error}") from error
    return manifest


def _check_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """ValueError, or one of the errors of missing parts, unless a manifest is complete and its graphs are there."""
    name, exits, steps = str(folder / "manifest.json"), manifest["exits"], manifest["steps"]
    require(len(exits) >= 1 and len(steps) in (0, len(exits)), name, "as many steps as exits, or none", len(steps))
    graphs = {"weights.bin"}
    for kind, parts in (("exit", exits), ("step", steps)):
        for k, part in enumerate(parts, 1):
            expected = f"{kind}{k}.onnx"
            require(part["exit"] == k and part["graph"] == expected, name, f"the {kind}s in order", part["graph"])
            begins = part["inputs"][0] == "images" and part["outputs"][0] == "logits"
            require(begins, name, f"images and logits of {expected}", part["inputs"])
            ms = part["ms"]["1"]
            valid = isinstance(ms, Real) and 0 < ms < math.inf
            require(valid, name, f"milliseconds of {expected}", ms)
            graphs.add(expected)
    shape, classes = manifest["image_shape"], manifest["classes"]
    valid = isinstance(shape, list) and len(shape) == 3 and all(type(size) is int and size >= 1 for size in shape)
    require(valid, name, "an image_shape of three whole numbers >= 1", shape)
    valid = classes is None or (isinstance(classes, list) and all(isinstance(part, str) for part in classes))
    require(valid, name, "classes that are names, or null", classes)
    for graph in sorted(graphs):
        path, size, digest = folder / graph, manifest["files"][graph]["bytes"], manifest["files"][graph]["sha256"]
        there = path.stat().st_size if path.is_file() else "no file"
        require(there == size, str(path), f"{size} bytes, as in manifest.json", there)
        same = hashlib.sha256(path.read_bytes()).hexdigest() == digest
        require(same, str(path), "the contents that manifest.json names", "others")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the answers to image files. Returns the exit status."""
    parser = argparse.ArgumentParser(description="Classify image files with an exported network.")
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--folder", help="the exported network; by default, where this file is")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--deadline", type=float, metavar="MS", help="milliseconds for each image")
    when.add_argument("--sure", type=float, metavar="P", help="stop when a class has this probability, from 0 to 1")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="classes to print (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of onnxruntime (default 1)")
    parser.add_argument("--resize", action="store_true", help="accept images of another size")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a console may lack letters of a name
    try:
        _print_answers(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _print_answers(options: argparse.Namespace) -> None:
    require(options.top >= 1, "--top", "a number >= 1", options.top)
    valid = options.deadline is None or options.deadline > 0
    require(valid, "--deadline", "a number of milliseconds > 0", options.deadline)
    require(options.sure is None or 0 <= options.sure <= 1, "--sure", "a number from 0 to 1", options.sure)
    predictor = Predictor(options.folder, options.threads)
    images = [read_image(file, predictor.image_shape, options.resize)[None] for file in options.images]
    predictor.warm_up()
    for file, image in zip(options.images, images, strict=True):
        print(file)
        if options.deadline is not None:
            answers = [predictor.answer_by(image, options.deadline)]
        elif options.sure is not None:
            answers = [predictor.until_sure(image, options.sure)]
        else:
            answers = list(predictor.answers(image))
        for answer in answers:
            chances = answer.probabilities[0]
            best = np.argsort(-chances)[: options.top]
            names = [_shown(predictor.classes[i]) if predictor.classes else f"class {i}" for i in best]
            text = ", ".join(f"{name} {chances[i]:.1%}" for name, i in zip(names, best, strict=True))
            print(f"  exit {int(np.max(answer.exit))} of {predictor.exits}, {answer.milliseconds:.2f} ms: {text}")


def _shown(name: str) -> str:
    """A name without line breaks and other control characters."""
    return "".join(letter if letter.isprintable() else " " for letter in name)


if __name__ == "__main__":
    sys.exit(main())
