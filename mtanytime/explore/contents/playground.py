"""What an `AnytimePlayground` shows: every exit's answer to each image, its time, and its place in the label tree."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mtanytime.checks import require
from mtanytime.explore.contents.common import Contents
from mtanytime.explore.contents.images import data_uri

CLASSES_UP_TO = 24  # drawn per image: the classes that are likeliest at some exit


class Run(NamedTuple):
    """The answers to one image: logits of every exit, and the milliseconds after which each exit had answered."""

    logits: Float[Tensor, "exits classes"]
    milliseconds: list[float]


@dataclass(frozen=True)
class LabelTree:
    """The groups of classes from coarse to fine; a network without a taxonomy has the one level of its classes.

    Attributes:
        names: per level, the name of each group; the groups of the last level are the classes.
        groups: per level, the group of each class.
        parents: per level, the group of the level above that each group belongs to; none at the first level.
        levels: the level (from 1) at which each exit answers.
    """

    names: list[list[str]]
    groups: list[Int[Tensor, " classes"]]
    parents: list[list[int]]
    levels: tuple[int, ...]


def playground_contents(
    runs: Sequence[Run],
    images: UInt8[np.ndarray, "n 3 h w"],
    classes: list[str],
    labels: Iterable[int] | None,
    taxonomy: Any,
    levels: int | Sequence[int] | None,
) -> tuple[Contents, pd.DataFrame]:
    """Return what an `AnytimePlayground` shows, and the same answers as a table.

    Args:
        runs: the answers to each image.
        images: the images.
        classes: the names of the network's outputs.
        labels: the correct classes, if known.
        taxonomy: an `anytime.Taxonomy` of the classes, or None.
        levels: of the exits, as `Taxonomy.assign` takes them; None spreads the levels over the exits.

    Raises:
        ValueError: the levels are not one per exit.
    """
    tree = _label_tree(classes, taxonomy, levels, exits=len(runs[0].logits))
    truths = None if labels is None else [int(label) for label in labels]
    answers, shown, shares, rows = [], [], [], []
    for i, run in enumerate(runs):
        by_level = _probabilities(run, tree)
        answers.append(_answers(run, by_level, tree, None if truths is None else truths[i]))
        shown.append(_shown_groups(by_level, tree))
        of_shown = [level[:, groups] for level, groups in zip(by_level, shown[-1], strict=True)]
        shares.append([[_rounded(level[k].tolist()) for level in of_shown] for k in range(len(tree.levels))])
        rows += [_row(i, k, answer, tree) for k, answer in enumerate(answers[-1], 1)]
    left_out = any(len(groups[-1]) < len(classes) for groups in shown)
    content = {
        "kind": "playground",
        "title": "Anytime prediction, one image at a time",
        "summary": _summary(len(images), len(tree.levels), len(classes), len(tree.names)),
        "note": "Times were measured once, on the machine that made this, one image at a time."
        + (f" Only the likeliest classes are drawn, about {CLASSES_UP_TO} per image." if left_out else ""),
        "images": [data_uri(image) for image in images],
        "truths": None if truths is None else [classes[label] for label in truths],
        "levels": tree.names,
        "parents": tree.parents,
        "answers": [[answer | {"confidence": round(answer["confidence"], 4)} for answer in one] for one in answers],
        "shown": shown,
        "shares": shares,
        "most": float(f"{1.05 * max(answer['ms'] for one in answers for answer in one):.3g}"),
    }
    return content, pd.DataFrame(rows)


def _label_tree(classes: list[str], taxonomy: Any, levels: int | Sequence[int] | None, exits: int) -> LabelTree:
    if taxonomy is None:
        return LabelTree([classes], [torch.arange(len(classes))], [[]], (1,) * exits)
    assigned = taxonomy.assign(exits if levels is None else levels)
    require(len(assigned) == exits, "levels", f"one level per exit of the model, {exits}", assigned)
    depth = range(1, taxonomy.levels + 1)
    names, groups = [list(taxonomy.names(level)) for level in depth], [taxonomy.groups(level) for level in depth]
    parents: list[list[int]] = [[]]
    for above, here in pairwise(groups):
        parents.append([int(above[(here == group).nonzero()[0, 0]]) for group in range(int(here.max()) + 1)])
    return LabelTree(names, groups, parents, tuple(assigned))


def _probabilities(run: Run, tree: LabelTree) -> list[Float[Tensor, "exits _"]]:
    """Return per level the probability of each group: the sum over its classes."""
    classes = run.logits.softmax(dim=1)
    return [
        classes.new_zeros(len(classes), len(names)).index_add_(1, groups, classes)
        for names, groups in zip(tree.names, tree.groups, strict=True)
    ]


def _answers(run: Run, by_level: list[Tensor], tree: LabelTree, label: int | None) -> list[dict[str, Any]]:
    """Return each exit's answer: the likeliest group of the level at which it answers."""
    answers = []
    for k, level in enumerate(tree.levels):
        confidence, group = by_level[level - 1][k].max(dim=0)
        right = None if label is None else bool(tree.groups[level - 1][label] == group)
        milliseconds = round(run.milliseconds[k], 4)
        answer = {"ms": milliseconds, "level": level - 1, "group": int(group), "right": right}
        answers.append(answer | {"confidence": float(confidence)})
    return answers


def _row(image: int, exit: int, answer: dict[str, Any], tree: LabelTree) -> dict[str, Any]:
    """Return an answer as a row of the table."""
    row = {"image": image, "exit": exit, "milliseconds": answer["ms"]}
    name = tree.names[answer["level"]][answer["group"]]
    return row | {"answer": name, "confidence": answer["confidence"], "right": answer["right"]}


def _shown_groups(by_level: list[Float[Tensor, "exits _"]], tree: LabelTree) -> list[list[int]]:
    """Return per level the groups to draw, with groups of the same parent side by side.

    These are the groups of the classes that are likeliest at any exit, and of the likeliest class in every group that
    is an exit's answer.
    """
    classes = by_level[-1].amax(dim=0)
    shown = set(classes.argsort(descending=True, stable=True)[:CLASSES_UP_TO].tolist())
    for k, level in enumerate(tree.levels):
        members = tree.groups[level - 1] == by_level[level - 1][k].argmax()
        shown.add(int((classes * members).argmax()))
    groups = [sorted({int(group_of[name]) for name in shown}) for group_of in tree.groups]
    for level in range(1, len(groups)):
        above = groups[level - 1]
        groups[level].sort(key=lambda group: (above.index(tree.parents[level][group]), group))
    return groups


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 4) for value in values]


def _summary(images: int, exits: int, classes: int, levels: int) -> str:
    """Return one line about a playground: "2 images, 3 exits, 3 classes"."""
    counts = {"image": images, "exit": exits, "class": classes}
    plural = {"image": "images", "exit": "exits", "class": "classes"}
    summary = ", ".join(f"{count} {plural[name] if count > 1 else name}" for name, count in counts.items())
    return summary + (f" in {levels} levels" if levels > 1 else "")
