"""One image at a time: the answers of an anytime network as they come, and the deadline that takes one of them."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
import traitlets
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from tqdm import tqdm

from mtanytime.explore import contents, draw
from mtanytime.explore.widget import Explorer
from mtanytime.functional import trial_run

CLASSES_UP_TO = 24  # in the picture of an image: those that some exit takes for the likeliest


class Run(NamedTuple):
    """What one image gave: the logits of every exit and the milliseconds after which each was there."""

    logits: Float[Tensor, "exits classes"]
    milliseconds: list[float]


class AnytimePlayground(Explorer):
    """Move a deadline: which answer to an image there is by then, how sure it is, and where in the label tree it lies.

    Every image is answered when this is made, alone, several times, and each exit's median time is kept. An answer
    counts if it was there by the deadline. "Play" lets the time run in slow motion. Where no front end runs (GitHub,
    nbconvert), `picture()` is shown, with a line of text.

    Args:
        model: an `AnytimePredictor` of a network that can refine; or a network with `refine`, such as
            `SlicedResNeXt`, also in a `Normalized`; or one with `extract(k)`, whose exits are then run one by one, each
            from the image on, and timed alone.
        images: uint8 (n, 3, height, width), 1 to 64; the network gets them as fractions of 255.
        classes: the names of the network's outputs.
        labels: (n,) the right classes, if they are known.
        taxonomy: an `anytime.Taxonomy` of the classes, for answers from coarse to fine.
        levels: of the exits, as `Taxonomy.assign` takes them; None spreads the levels over the exits.
        repeats: runs of each image; their median is the time.
        progress: a progress bar over the images on stdout, where they take more than a moment.

    Attributes:
        image: the index of the image shown.
        deadline: milliseconds from the moment when the image came.

    Raises:
        ValueError: images of another kind, not one label an image, a model that is none of these or that gives other
            outputs than there are classes, levels without a taxonomy; a choice is not offered.
    """

    CHOICES = ("image", "deadline")

    image = traitlets.Int().tag(sync=True)
    deadline = traitlets.Float().tag(sync=True)

    def __init__(
        self,
        model: Any,
        images: UInt8[np.ndarray, "n 3 h w"],
        classes: Sequence[str],
        labels: Int[np.ndarray, " n"] | Sequence[int] | None = None,
        taxonomy: Any = None,
        levels: int | Sequence[int] | None = None,
        repeats: int = 5,
        progress: bool = True,
    ) -> None:
        contents.check_images(images)
        whole = labels is None or all(isinstance(label, Integral) for label in labels)
        if labels is not None and not (
            len(labels) == len(images) and whole and all(0 <= k < len(classes) for k in labels)
        ):
            raise ValueError(f"wanted {len(images)} labels from 0 to {len(classes) - 1}; got {list(labels)}")
        if taxonomy is not None and tuple(taxonomy.classes) != tuple(classes):
            raise ValueError(f"wanted a taxonomy of the classes {list(classes)}; got one of {list(taxonomy.classes)}")
        if taxonomy is None and levels is not None:
            raise ValueError(f"wanted a taxonomy for the levels {levels}; got none")
        if repeats < 1:
            raise ValueError(f"wanted repeats >= 1; got {repeats}")
        answer = _answerer(model)
        bar = tqdm(images, unit="image", desc="answering", disable=not progress, delay=2, leave=False, file=sys.stdout)
        runs = [_measured(answer, image, repeats) for image in bar]
        if runs[0].logits.shape[1] != len(classes):
            raise ValueError(f"wanted {len(classes)} outputs, one a class; got {runs[0].logits.shape[1]}")
        content, self._answers = _contents(runs, images, list(classes), labels, taxonomy, levels)
        super().__init__(content=content, image=0, deadline=content["most"])

    def answers(self) -> pd.DataFrame:
        """What every exit answers to the image shown: exit, milliseconds, answer, confidence, right (None where the
        label is not known) and in_time, whether it was there by the deadline."""
        table = self._answers[self._answers["image"] == self.image].drop(columns="image").reset_index(drop=True)
        return table.assign(in_time=table["milliseconds"] <= self.deadline)

    def picture(self) -> draw.Picture:
        """The image shown beside the confidence of its answers over time."""
        return draw.answers_by_time(self.answers(), self._shown(), self.deadline)

    def _shown(self) -> UInt8[np.ndarray, "3 h w"]:
        return contents.pixels(self.content["images"][self.image])

    @traitlets.validate("image", "deadline")
    def _offered(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "image" and not 0 <= value < len(self.content["images"]):
            raise ValueError(f"wanted an image from 0 to {len(self.content['images']) - 1}; got {value}")
        if name == "deadline" and not 0 <= value < math.inf:
            raise ValueError(f"wanted a deadline of 0 ms or more, and finite; got {value}")
        return value


Answerer = Callable[[Float[Tensor, "1 3 h w"]], Iterator[tuple[Float[Tensor, "1 classes"], float]]]


def _answerer(model: Any) -> Answerer:
    """What gives an image's logits, exit by exit, each with the milliseconds since the image came."""
    if hasattr(model, "answer_by"):

        def by_predictor(image: Tensor) -> Iterator[tuple[Tensor, float]]:
            found = []
            model.answer_by(image, float("inf"), found.append)
            return iter([(answer.logits.cpu(), answer.milliseconds) for answer in found])

        return by_predictor
    inner = getattr(model, "network", model)
    if not isinstance(model, nn.Module) or not (hasattr(inner, "refine") or hasattr(inner, "extract")):
        wanted = "an AnytimePredictor, or a network with refine or extract"
        raise ValueError(f"wanted {wanted}; got {type(model).__name__}")
    normalised = getattr(model, "normalised", lambda image: image)
    place = next(inner.parameters())

    def prepared(image: Tensor) -> Tensor:
        return normalised(image.to(place.device, place.dtype))

    if hasattr(inner, "refine"):

        def by_steps(image: Tensor) -> Iterator[tuple[Tensor, float]]:
            with trial_run(inner, place.device, training=False):
                started = time.perf_counter()
                for logits in inner.refine(prepared(image)):
                    yield logits.cpu(), 1000 * (time.perf_counter() - started)  # .cpu() waits for an accelerator

        return by_steps
    alone = [inner.extract(k).eval() for k in range(1, inner.exits + 1)]

    @torch.no_grad()
    def one_by_one(image: Tensor) -> list[tuple[Tensor, float]]:
        found = []
        for part in alone:
            started = time.perf_counter()
            found.append((part(prepared(image)).cpu(), 1000 * (time.perf_counter() - started)))
        return found

    return lambda image: iter(one_by_one(image))


def _measured(answer: Answerer, image: UInt8[np.ndarray, "3 h w"], repeats: int) -> Run:
    """Run an image `repeats` times, after one run that warms up."""
    batch = torch.from_numpy(image.astype(np.float32) / 255)[None]
    runs = [list(answer(batch)) for _ in range(repeats + 1)][1:]
    logits = torch.cat([logits for logits, _ in runs[0]]).float()
    return Run(logits, [float(np.median([run[k][1] for run in runs])) for k in range(len(logits))])


def _contents(
    runs: Sequence[Run],
    images: UInt8[np.ndarray, "n 3 h w"],
    classes: list[str],
    labels: Iterable[int] | None,
    taxonomy: Any,
    levels: int | Sequence[int] | None,
) -> tuple[contents.Contents, pd.DataFrame]:
    """What the front end draws, and the same answers as a table."""
    exits = len(runs[0].logits)
    depth = 1 if taxonomy is None else taxonomy.levels
    assigned = (1,) * exits if taxonomy is None else taxonomy.assign(exits if levels is None else levels)
    names = [classes] if taxonomy is None else [list(taxonomy.names(level)) for level in range(1, depth + 1)]
    groups = [torch.arange(len(classes))] if taxonomy is None else [taxonomy.groups(k + 1) for k in range(depth)]
    if len(assigned) != exits:
        raise ValueError(f"wanted levels of the model's {exits} exits; got {assigned}")
    parents: list[list[int]] = [[]]
    for above, here in pairwise(groups):
        parents.append([int(above[(here == group).nonzero()[0, 0]]) for group in range(int(here.max()) + 1)])
    truths = None if labels is None else [int(label) for label in labels]
    all_answers, all_shown, all_shares, rows = [], [], [], []
    for i, run in enumerate(runs):
        leaves = run.logits.softmax(dim=1)
        by_level = [
            leaves.new_zeros(exits, len(n)).index_add_(1, g, leaves) for n, g in zip(names, groups, strict=True)
        ]
        shown = _shown_groups(by_level, groups, parents, assigned)
        answers = []
        for k, level in enumerate(assigned):
            confidence, group = by_level[level - 1][k].max(dim=0)
            right = None if truths is None else bool(groups[level - 1][truths[i]] == group)
            milliseconds = round(run.milliseconds[k], 4)
            answer = {"ms": milliseconds, "level": level - 1, "group": int(group), "right": right}
            answers.append(answer | {"confidence": round(float(confidence), 4)})
            row = {"image": i, "exit": k + 1, "milliseconds": milliseconds, "answer": names[level - 1][int(group)]}
            rows.append(row | {"confidence": float(confidence), "right": right})
        all_answers.append(answers)
        all_shown.append(shown)
        of_shown = [part[:, group] for part, group in zip(by_level, shown, strict=True)]
        all_shares.append([[[round(p, 4) for p in part[k].tolist()] for part in of_shown] for k in range(exits)])
    left_out = any(len(shown[-1]) < len(classes) for shown in all_shown)
    count = len(images)
    content = {
        "kind": "playground",
        "title": "Anytime prediction, one image at a time",
        "summary": f"{count} image{'s' * (count > 1)}, {exits} exit{'s' * (exits > 1)}, {len(classes)} classes"
        + (f" in {depth} levels" if depth > 1 else ""),
        "note": "Times were measured once, on the machine that made this, one image at a time."
        + (f" Of the classes some {CLASSES_UP_TO} are drawn: the likeliest." if left_out else ""),
        "images": [contents.data_uri(image) for image in images],
        "truths": None if truths is None else [classes[label] for label in truths],
        "levels": names,
        "parents": parents,
        "answers": all_answers,
        "shown": all_shown,
        "shares": all_shares,
        "most": float(f"{1.05 * max(answer['ms'] for answers in all_answers for answer in answers):.3g}"),
    }
    return content, pd.DataFrame(rows)


def _shown_groups(
    shares: list[Float[Tensor, "exits _"]],
    groups: list[Int[Tensor, " classes"]],
    parents: list[list[int]],
    assigned: Sequence[int],
) -> list[list[int]]:
    """Of every level the groups to draw, those below one group side by side: all, or those of the classes that are
    likeliest at any exit, and of the likeliest class of every group that an exit answers with."""
    classes = shares[-1].amax(dim=0)
    shown = set(classes.argsort(descending=True, stable=True)[:CLASSES_UP_TO].tolist())
    for k, level in enumerate(assigned):
        members = groups[level - 1] == shares[level - 1][k].argmax()
        shown.add(int((classes * members).argmax()))
    found = [sorted({int(of[one]) for one in shown}) for of in groups]
    for level in range(1, len(found)):
        above = found[level - 1]
        found[level].sort(key=lambda group: (above.index(parents[level][group]), group))
    return found
