"""Explore one image at a time: the answers of an anytime network as they come, and the deadline that takes one."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
import traitlets
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from mtanytime._moved import find
from mtanytime.backbones import Normalized
from mtanytime.checks import Words, mismatch, require
from mtanytime.explore import draw
from mtanytime.explore.contents.images import pixels, require_images
from mtanytime.explore.contents.playground import Run, playground_contents
from mtanytime.explore.widget import Explorer
from mtanytime.features import unwrapped, without_wrappers
from mtanytime.functional import trial_run
from mtanytime.measure.costs import device_and_dtype, exit_networks, has_exits


class AnytimePlayground(Explorer):
    """Move a deadline: which answer to an image is there by then, its confidence, and its place in the label tree.

    Every image is answered several times when the playground is made, alone, and the median time of each exit is kept.
    An answer counts if it came by the deadline. "Play" shows the time in slow motion. Without a front end (GitHub,
    nbconvert), `picture()` is shown, with a line of text.

    Args:
        model: an `AnytimePredictor` of a network that can refine; a network with `refine`, such as `SlicedResNeXt`,
            also in a `Normalized`; or one with `extract(k)`, whose exits are then run one by one, each from the image,
            and timed alone.
        images: uint8 (n, 3, height, width), 1 to 64; the network gets them divided by 255.
        classes: the names of the network's outputs.
        labels: (n,) the correct classes, if known: an array, a tensor or a list.
        taxonomy: an `anytime.Taxonomy` of the classes, for answers from coarse to fine.
        levels: of the exits, as `Taxonomy.assign` takes them; None spreads the levels over the exits.
        repeats: runs per image; the median is the time.
        progress: show a progress bar over the images on stdout if they take more than two seconds.

    Attributes:
        image: the index of the image shown.
        deadline: milliseconds from the moment when the image arrived.

    Raises:
        ValueError: the images are not as above, there is not one label per image, the model is of another kind or has
            another number of outputs than there are classes, there are levels without a taxonomy, or a choice is not
            offered.
    """

    CHOICES = ("image", "deadline")

    image = traitlets.Int().tag(sync=True)
    deadline = traitlets.Float().tag(sync=True)

    def __init__(
        self,
        model: Any,
        images: UInt8[np.ndarray, "n 3 h w"],
        classes: Sequence[str],
        labels: Int[np.ndarray, " n"] | Int[Tensor, " n"] | Sequence[int] | None = None,
        taxonomy: Any = None,
        levels: int | Sequence[int] | None = None,
        repeats: int = 5,
        progress: bool = True,
    ) -> None:
        require_images(images)
        classes = list(map(str, classes))  # JSON knows no NumPy integers
        if labels is not None:
            labels = _validated_labels(labels, len(images), len(classes))
        if taxonomy is not None:
            same = tuple(taxonomy.classes) == tuple(classes)
            require(same, "taxonomy", f"a taxonomy of the classes {classes}", list(taxonomy.classes))
        require(taxonomy is not None or levels is None, "levels", "None without a taxonomy", levels)
        require(repeats >= 1, "repeats", "a number >= 1", repeats)
        answer = _answerer(model)
        bar = tqdm(images, unit="image", desc="answering", disable=not progress, delay=2, leave=False, file=sys.stdout)
        runs = [_measured(answer, image, repeats) for image in bar]
        outputs = runs[0].logits.shape[1]
        require(outputs == len(classes), "model", f"{len(classes)} outputs, one per class", outputs)
        content, self._answers = playground_contents(runs, images, classes, labels, taxonomy, levels)
        super().__init__(content=content, image=0, deadline=content["most"])

    def answers(self) -> pd.DataFrame:
        """Return every exit's answer to the image shown: exit, milliseconds, answer, confidence, right, in_time.

        right is None where the label is not known; in_time tells whether the answer came by the deadline.
        """
        table = self._answers[self._answers["image"] == self.image].drop(columns="image").reset_index(drop=True)
        return table.assign(in_time=table["milliseconds"] <= self.deadline)

    def picture(self) -> draw.Picture:
        """Draw the image shown beside the confidence of its answers over time."""
        return draw.answers_by_time(self.answers(), pixels(self.content["images"][self.image]), self.deadline)

    @traitlets.validate("image", "deadline")
    def _validate_choice(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "image":
            last = len(self.content["images"]) - 1
            require(0 <= value <= last, "image", f"an index from 0 to {last}", value)
        else:
            require(bool(0 <= value < math.inf), "deadline", "a finite number of milliseconds >= 0", value)
        return value


def _validated_labels(labels: Iterable[Any], images: int, classes: int) -> list[int]:
    labels = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else list(labels)
    labels = [label.item() if isinstance(label, Tensor) else label for label in labels]
    whole = all(isinstance(label, Integral) and not isinstance(label, bool) for label in labels)
    fits = len(labels) == images and whole and all(0 <= label < classes for label in labels)
    require(fits, "labels", f"{images} labels from 0 to {classes - 1}", labels)
    return labels


Answerer = Callable[[Float[Tensor, "1 3 h w"]], Iterator[tuple[Float[Tensor, "1 classes"], float]]]


def _answerer(model: Any) -> Answerer:
    """Return a function that gives an image's logits exit by exit, with the milliseconds since the image arrived."""
    if hasattr(model, "answer_by"):
        return lambda image: _by_predictor(model, image)
    inner = unwrapped(model) if isinstance(model, nn.Module) else None
    if hasattr(inner, "refine"):
        return lambda image: _by_refining(model, image)
    if has_exits(inner):
        networks = exit_networks(model)
        return lambda image: _one_by_one(networks, image)
    expected = "an AnytimePredictor, or a network with refine or extract"
    raise mismatch("model", expected, Words(type(model).__name__))


def _by_predictor(predictor: Any, image: Tensor) -> Iterator[tuple[Tensor, float]]:
    answers = []
    predictor.answer_by(image, math.inf, answers.append)
    return iter([(answer.logits.cpu(), answer.milliseconds) for answer in answers])


def _by_refining(model: nn.Module, image: Tensor) -> Iterator[tuple[Tensor, float]]:
    device, dtype = device_and_dtype(model)
    with trial_run(model, device, training=False):
        started = time.perf_counter()
        for logits in _refine(model, image.to(device, dtype)):
            yield logits.cpu(), 1000 * (time.perf_counter() - started)  # .cpu() waits for an accelerator


def _refine(model: nn.Module, images: Tensor) -> Iterator[Tensor]:
    """Run `refine` of a network, also in a `Normalized`."""
    model = without_wrappers(model)
    if isinstance(model, Normalized):
        return _refine(model.network, model.normalized(images))
    return model.refine(images)


@torch.no_grad()
def _one_by_one(networks: list[nn.Module], image: Tensor) -> Iterator[tuple[Tensor, float]]:
    answers = []
    for network in networks:
        device, dtype = device_and_dtype(network)
        started = time.perf_counter()
        logits = network(image.to(device, dtype)).cpu()
        answers.append((logits, 1000 * (time.perf_counter() - started)))
    return iter(answers)


def _measured(answer: Answerer, image: UInt8[np.ndarray, "3 h w"], repeats: int) -> Run:
    """Answer an image `repeats` times, after one run to warm up."""
    batch = torch.from_numpy(image.astype(np.float32) / 255)[None]
    runs = [list(answer(batch)) for _ in range(repeats + 1)][1:]
    logits = torch.cat([logits for logits, _ in runs[0]]).float()
    require(bool(logits.isfinite().all()), "model", "finite logits", Words("NaN or infinity"))
    return Run(logits, [float(np.median([run[k][1] for run in runs])) for k in range(len(logits))])


def __getattr__(name: str) -> object:
    """Look up a name that was here before version 0.2."""
    return find("explore.playground", name)
