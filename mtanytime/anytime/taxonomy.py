"""The taxonomy task of anytime prediction: early exits predict coarse labels, wide exits fine labels.

The abstract of "Anytime Neural Prediction via Slicing Networks Vertically" (arXiv:1807.02609) names an alternative task
with a hierarchical taxonomy, in which an early answer is correct at its level. No source gives the details; this is our
reconstruction:

* Classes form a tree. Its levels count from 1, the groups directly below the root, to L, the classes themselves. A
  class above the deepest level forms a group of its own at every level below it.
* Every exit's head computes logits over all classes. The probability of a group is the sum over its classes. So the
  predictions of one exit agree between levels by construction, and every exit can be evaluated at every level.
* Each exit is assigned one level, coarse first; it is trained on, and predicts, the group at its level.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.images import Tree


class Taxonomy:
    """A validated label tree over the classes of a task.

    Args:
        tree: nested dicts, group name -> group; the innermost hold lists of class names (`ImageSet.tree`).
        classes: the class names in the order of their labels (`ImageSet.classes`).

    Attributes:
        classes: as given.
        levels: the number of levels (L); level 1 is the coarsest, level L holds the classes.
        distance: (classes, classes), the number of levels at which two classes are in different groups: 0 for a class
            and itself, 1 for two classes in one group of level L - 1, L for two with only the root in common. It is the
            height of their lowest common ancestor (the mistake severity of arXiv:1912.09393) and, with all leaves at
            depth L, half the number of edges between them: an ultrametric.

    Raises:
        ValueError: a class that is missing, listed twice or unknown, an empty group, a root with a single group, or a
            node that is not a dict, a list or a name; the message names it.
    """

    def __init__(self, tree: Tree, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        paths = _paths(tree, self.classes)
        self.levels = max(map(len, paths.values()))
        paths = {name: path + (name,) * (self.levels - len(path)) for name, path in paths.items()}
        self._names, self._members, groups_at = [], [], []
        for level in range(1, self.levels + 1):
            order = paths if level < self.levels else self.classes  # groups left to right, classes by label
            keys = list(dict.fromkeys(paths[name][:level] for name in order))
            index, count = {key: i for i, key in enumerate(keys)}, Counter(key[-1] for key in keys)
            groups = torch.tensor([index[paths[name][:level]] for name in self.classes])
            members = [(groups == group).nonzero().flatten() for group in range(len(keys))]
            self._names.append(tuple(key[-1] if count[key[-1]] == 1 else " / ".join(key) for key in keys))
            groups_at.append(groups)
            self._members.append(pad_sequence(members, batch_first=True, padding_value=len(self.classes)))
        require(self.size(1) > 1, "tree", "at least two groups below the root", self.names(1))
        self._groups = torch.stack(groups_at)  # (levels, classes)
        self.distance: Int64[Tensor, "classes classes"] = (self._groups[:, :, None] != self._groups[:, None]).sum(0)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str], classes: Sequence[str]) -> "Taxonomy":
        """Read a taxonomy from a JSON file: objects are groups, arrays hold class names.

        Raises ValueError, with the path, for a file that is not JSON, a name that occurs twice in one object, and as
        `Taxonomy`; OSError if the file cannot be read.
        """
        try:
            tree = json.loads(Path(path).read_bytes(), object_pairs_hook=_unique_names)
            require(isinstance(tree, dict), "tree", "an object of groups", tree)
            return cls(tree, classes)
        except (ValueError, RecursionError) as error:
            raise mismatch(str(path), "a label tree of these classes", Words(f"one with an error: {error}")) from error

    def __repr__(self) -> str:
        sizes = ", ".join(str(self.size(level)) for level in range(1, self.levels + 1))
        return f"Taxonomy({self.levels} levels, coarse to fine: {sizes})"

    def size(self, level: int) -> int:
        """Return the number of groups of a level."""
        return len(self.names(level))

    def names(self, level: int) -> tuple[str, ...]:
        """Return the group names of a level, left to right; at level L, the classes in the order of their labels.

        A name that occurs more than once at a level is given with the groups that contain it: "small / round".
        """
        return self._names[self._index(level)]

    def groups(self, level: int) -> Int64[Tensor, " classes"]:
        """Return the group of every class at a level, as an index into `names(level)`."""
        return self._groups[self._index(level)]

    def lift(self, groups: Int64[Tensor, "*batch"], level: int, to: int) -> Int64[Tensor, "*batch"]:
        """Return the groups of level `to` that contain groups of a level; ValueError if `to` is finer than `level`."""
        coarser = self._index(to) <= self._index(level)
        require(coarser, "to", f"a level from 1 to {level}, since groups of level {level} are lifted", to)
        any_class = self._members[level - 1][:, 0]
        return self.groups(to)[any_class].to(groups.device)[groups]

    def coarse_logits(self, logits: Float[Tensor, "*batch classes"], level: int) -> Float[Tensor, "*batch groups"]:
        """Return logits over the groups of a level: the logsumexp over the logits of each group's classes.

        Their softmax is the sum of the classes' probabilities; their argmax is the prediction at that level. They are
        at least float32; at level L they equal the class logits. Raises ValueError unless there is a logit per class.
        """
        shape = tuple(logits.shape)
        require(shape[-1] == len(self.classes), "logits", f"(..., {len(self.classes)}), one per class", shape)
        members = self._members[self._index(level)].to(logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = F.pad(logits, (0, 1), value=-math.inf)  # for the padding of small groups: probability 0
        return logits.index_select(-1, members.flatten()).unflatten(-1, members.shape).logsumexp(-1)

    def log_probabilities(self, logits: Float[Tensor, "*batch classes"], level: int) -> Float[Tensor, "*batch groups"]:
        """Return the log probability of every group of a level. A group's probability is the sum of its subgroups'."""
        return F.log_softmax(self.coarse_logits(logits, level), dim=-1)

    def assign(self, exits: int | Sequence[int]) -> tuple[int, ...]:
        """Return the level of each exit, cheapest first: validate the given levels, or spread L levels over K exits.

        Of K exits, exit k gets level ⌈kL/K⌉: coarse first, and if K is not a multiple of L, finer levels have more
        exits. Raises ValueError for a level that does not exist or has no exit (so the last exit has the finest level),
        and for an exit with a coarser level than the exit before it. The message names it.
        """
        if isinstance(exits, Integral):
            require(exits >= 1, "exits", "at least one exit", exits)
            levels = tuple(-(-k * self.levels // int(exits)) for k in range(1, exits + 1))
        else:
            levels = tuple(self._index(level) + 1 for level in exits)
        for k, (level, after) in enumerate(pairwise(levels), 1):
            finer = f"level {level} or finer for exit {k + 1}, after exit {k}"
            require(after >= level, "exits", finer, Words(f"level {after}"))
        if unused := sorted(set(range(1, self.levels + 1)) - set(levels)):
            raise mismatch(
                "exits", f"each level from 1 to {self.levels} at some exit", levels, f"add level {unused[0]}"
            )
        return levels

    def _index(self, level: int) -> int:
        """The index of a level in the tables, from 0."""
        exists = isinstance(level, Integral) and 1 <= level <= self.levels
        require(exists, "level", f"a whole number from 1 (coarsest) to {self.levels} (classes)", level)
        return int(level) - 1


def _paths(tree: Any, classes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Map every class, left to right, to the names on the path from the root to it, including its own. Validates."""
    require(isinstance(tree, dict), "tree", "a dict from group names to groups", tree)
    paths: dict[str, tuple[str, ...]] = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        place = f"tree, group {' / '.join(path)!r}" if path else "tree"
        require(isinstance(node, dict | list), place, "a dict of groups or a list of class names", node)
        require(len(node) > 0, place, "at least one group or class", node)
        for name in node:
            require(isinstance(name, str), place, "names that are strings", name)
            if isinstance(node, dict):
                visit(node[name], (*path, name))
            elif name in paths:
                first = " / ".join(paths[name][:-1])
                raise mismatch(place, "each class once in the tree", Words(f"{name!r}, also in group {first!r}"))
            else:
                paths[name] = (*path, name)

    visit(tree, ())
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    require(not repeated, "classes", "different names", Words(f"{_listed(repeated)} twice"))
    missing = [name for name in classes if name not in paths]
    require(not missing, "tree", "every class", Words(f"a tree without {_listed(missing)}"))
    unknown = sorted(paths.keys() - set(classes))
    require(not unknown, "tree", f"no other names than the classes {_listed(classes)}", Words(_listed(unknown)))
    return paths


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object. Raises ValueError for a repeated name, of which json would keep the last."""
    for name, count in Counter(name for name, _ in pairs).items():
        require(count == 1, f"group {name!r}", "one entry in its object", Words(f"{count} entries"))
    return dict(pairs)


class CoarseToFineLoss:
    """The loss of an anytime network on the taxonomy task, for a trainer's `loss`.

        Σ_k w_k · ( -log p_k(group of the label at level ℓ_k)  [ - fine · log p_k(label), if ℓ_k < L ] )

    averaged over the images, where p_k are exit k's probabilities. The first term increases all classes of the true
    group in proportion to their probabilities: it does not separate them, and starts slowly if they are similar. The
    second term separates them; whether it improves coarse predictions depends on the task (see notebook 06).

    Args:
        taxonomy: the label tree.
        levels_of_exits: the level ℓ_k of every exit, or the number of exits; see `Taxonomy.assign`.
        weights: w_k, one per exit; default 1 each (the paper's unweighted sum).
        fine: weight of the classes' cross-entropy in the losses of exits at coarser levels.

    Raises:
        ValueError: levels that `Taxonomy.assign` refuses, weights or `fine` that are negative or not finite, weights
            that are not one per exit or are all 0.
    """

    def __init__(
        self,
        taxonomy: Taxonomy,
        levels_of_exits: int | Sequence[int],
        weights: Sequence[float] | None = None,
        fine: float = 0.0,
    ) -> None:
        self.taxonomy, self.levels, self.fine = taxonomy, taxonomy.assign(levels_of_exits), float(fine)
        self.weights = (1.0,) * len(self.levels) if weights is None else tuple(map(float, weights))
        one_each = len(self.weights) == len(self.levels)
        require(one_each, "weights", f"{len(self.levels)}, one per exit", self.weights)
        finite = all(0 <= w < math.inf for w in self.weights) and any(self.weights)
        require(finite, "weights", "finite numbers >= 0, not all 0", weights)
        require(0 <= self.fine < math.inf, "fine", "a finite number >= 0", fine)
        self.groups = taxonomy._groups  # identifies the taxonomy in the record of a run: see training.name_of

    def __call__(
        self, outputs: Sequence[Float[Tensor, "batch classes"]], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """Return the weighted sum over the exits. Raises ValueError unless the outputs fit the exits and classes."""
        losses = self.per_exit(outputs, labels)
        return (losses * losses.new_tensor(self.weights)).sum()  # a product by @ would be bfloat16 under autocast

    def per_exit(
        self, outputs: Sequence[Float[Tensor, "batch classes"]], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, " exits"]:
        """Return each exit's unweighted loss, a mean over the images."""
        require(len(outputs) == len(self.levels), "outputs", f"logits of {len(self.levels)} exits", len(outputs))
        losses = []
        for logits, level in zip(outputs, self.levels, strict=True):
            log_groups = self.taxonomy.log_probabilities(logits, level)
            # Expanded to the classes, so that torch checks the labels as it does for a cross-entropy.
            loss = F.nll_loss(log_groups[:, self.taxonomy.groups(level).to(logits.device)], labels)
            if self.fine and level < self.taxonomy.levels:
                loss = loss + self.fine * F.cross_entropy(logits.to(log_groups.dtype), labels)
            losses.append(loss)
        return torch.stack(losses)


@torch.no_grad()
def coarse_to_fine_metrics(
    taxonomy: Taxonomy,
    levels_of_exits: int | Sequence[int],
    outputs: Float[Tensor, "exits images classes"],
    labels: Int64[Tensor, " images"],
) -> pd.DataFrame:
    """Measure accuracy, consistency and severity of mistakes of all exits on a data set; one row per exit.

    Columns; unless noted, fractions of the images in [0, 1]:

    * `exit` (from 1) and `level`, the level assigned to it. Its prediction is the most probable group at that level.
    * `accuracy`: how often the prediction is correct.
    * `kappa`: the same beyond chance, Cohen's κ (1960): 0 for random guesses with the same frequencies of groups, 1 if
      always correct, so that levels with few and with many groups can be compared.
    * `fine_guess`: how often the group of the most probable class is correct.
    * `consistent_next`, `consistent_last`: how often the prediction of the next exit, or of the last one, is inside
      the group that this exit predicted, correct or not; NaN for the last exit.
    * `mistake_distance`: mean `Taxonomy.distance`, from 1 to L, between the most probable class and the correct one
      over the images where they differ; of classes at any level, so that exits can be compared. NaN without mistakes.
    * `accuracy_1` … `accuracy_L`, `kappa_1` … `kappa_L`: the same for the exit's prediction at each level.

    Raises:
        ValueError: outputs that do not fit the exits and classes, logits that are not finite, no images, labels out of
            range, levels that `Taxonomy.assign` refuses.
    """
    levels, finest = taxonomy.assign(levels_of_exits), taxonomy.levels
    shape = (len(levels), len(labels), len(taxonomy.classes))
    require(outputs.shape == shape, "outputs", f"(exits, images, classes) = {shape}", tuple(outputs.shape))
    require(len(labels) > 0, "labels", "at least one image", len(labels))
    low, high = labels.min().item(), labels.max().item()
    require(0 <= low and high < shape[2], "labels", f"0 to {shape[2] - 1}", Words(f"{low} to {high}"))
    require(bool(outputs.isfinite().all()), "outputs", "finite logits", Words("some that are not"))
    outputs, labels = outputs.cpu(), labels.cpu()

    truth = {at: taxonomy.lift(labels, finest, at) for at in range(1, finest + 1)}
    predicted = {at: taxonomy.coarse_logits(outputs, at).argmax(-1) for at in truth}  # (exits, images) at each level
    last = len(levels) - 1
    rows = []
    for k, level in enumerate(levels):
        guess, prediction = outputs[k].argmax(-1), predicted[level][k]
        accuracies = {at: _mean(predicted[at][k] == truth[at]) for at in truth}
        consistent = [
            taxonomy.lift(predicted[levels[j]][j], levels[j], level) == prediction for j in (min(k + 1, last), last)
        ]
        rows.append(
            {
                "exit": k + 1,
                "level": level,
                "accuracy": accuracies[level],
                "kappa": _kappa(prediction, truth[level]),
                "fine_guess": _mean(taxonomy.lift(guess, finest, level) == truth[level]),
                "consistent_next": _mean(consistent[0]) if k < last else math.nan,
                "consistent_last": _mean(consistent[1]) if k < last else math.nan,
                "mistake_distance": _mean(taxonomy.distance[guess, labels][guess != labels]),
                **{f"accuracy_{at}": accuracy for at, accuracy in accuracies.items()},
                **{f"kappa_{at}": _kappa(predicted[at][k], truth[at]) for at in truth},
            }
        )
    return pd.DataFrame(rows)


def _mean(values: Tensor) -> float:
    return values.double().mean().item()


def _kappa(prediction: Int64[Tensor, " images"], truth: Int64[Tensor, " images"]) -> float:
    """Cohen's κ; NaN if one group is always correct and always predicted."""
    groups = int(max(prediction.max(), truth.max())) + 1
    predicted, true = (part.bincount(minlength=groups).double() / len(truth) for part in (prediction, truth))
    chance = (predicted * true).sum().item()
    return math.nan if chance == 1 else (_mean(prediction == truth) - chance) / (1 - chance)
