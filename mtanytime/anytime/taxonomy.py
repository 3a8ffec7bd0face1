"""The taxonomy task of anytime prediction: early exits answer coarse labels, wide ones fine labels.

The abstract of "Anytime Neural Prediction via Slicing Networks Vertically" (arXiv:1807.02609) names an alternative task
with a hierarchical taxonomy, so that an early answer is already right at its level. No source gives its details: what
follows is our reconstruction.

* Classes form a tree. Its levels count from 1, the groups right below the root, to the classes themselves. A class that
  lies less deep than the deepest one is a group of its own at every level below it.
* Every exit's head gives logits over all classes. The probability of a group is the sum over its classes, so the
  answers of one exit agree between levels by construction, and every exit can be asked at every level.
* Each exit is assigned one level, coarse first; it is trained on, and answers, the group at its level.
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

from mtanytime.checks import require_wanted
from mtanytime.data.images import Tree


class Taxonomy:
    """A label tree over the classes of a task, checked when made.

    Args:
        tree: nested dicts, group name -> group; the innermost hold lists of class names (`ImageSet.tree`).
        classes: the class names in the order of their labels (`ImageSet.classes`).

    Attributes:
        classes: as given.
        levels: how many there are (L); level 1 is the coarsest, level L holds the classes.
        distance: (classes, classes), at how many levels two classes lie in different groups: how many levels up their
            lowest common ancestor is. 0 for a class and itself, 1 for two in one group of level L - 1, L where only the
            root is common. That is the height of the common ancestor, the mistake severity of arXiv:1912.09393, and
            half the edges between the two leaves once all of them lie at depth L: an ultrametric.

    Raises:
        ValueError: a class that is missing, doubled or unknown, an empty group, a root with a single group, or
            something other than a dict, a list or a name; the message names it.
    """

    def __init__(self, tree: Tree, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        paths = _paths(tree, self.classes)
        self.levels = max(map(len, paths.values()))
        paths = {name: path + (name,) * (self.levels - len(path)) for name, path in paths.items()}
        self._names, self._members, groups_at = [], [], []
        for level in range(1, self.levels + 1):
            order = paths if level < self.levels else self.classes  # groups from left to right, classes by label
            keys = list(dict.fromkeys(paths[name][:level] for name in order))
            index, count = {key: i for i, key in enumerate(keys)}, Counter(key[-1] for key in keys)
            groups = torch.tensor([index[paths[name][:level]] for name in self.classes])
            members = [(groups == group).nonzero().flatten() for group in range(len(keys))]
            self._names.append(tuple(key[-1] if count[key[-1]] == 1 else " / ".join(key) for key in keys))
            groups_at.append(groups)
            self._members.append(pad_sequence(members, batch_first=True, padding_value=len(self.classes)))
        require_wanted(self.size(1) > 1, "at least two groups below the root", self.names(1))
        self._groups = torch.stack(groups_at)  # (levels, classes)
        self.distance: Int64[Tensor, "classes classes"] = (self._groups[:, :, None] != self._groups[:, None]).sum(0)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str], classes: Sequence[str]) -> "Taxonomy":
        """The taxonomy in a JSON file: objects for groups, the innermost arrays of class names.

        Raises ValueError, with the path, for a file that is no JSON, a name that stands twice in one object, and what
        `Taxonomy` refuses; OSError where there is no such file.
        """
        try:
            return cls(json.loads(Path(path).read_bytes(), object_pairs_hook=_once), classes)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} holds no label tree of these classes: {error}") from error

    def __repr__(self) -> str:
        sizes = ", ".join(str(self.size(level)) for level in range(1, self.levels + 1))
        return f"Taxonomy({self.levels} levels, coarse to fine: {sizes})"

    def size(self, level: int) -> int:
        """How many groups a level has."""
        return len(self.names(level))

    def names(self, level: int) -> tuple[str, ...]:
        """The groups of a level from left to right; the last level's are the classes, in the order of their labels.

        A name that a level has more than once comes with the groups around it: "small / round".
        """
        return self._names[self._index(level)]

    def groups(self, level: int) -> Int64[Tensor, " classes"]:
        """The group of every class at a level, an index into `names(level)`."""
        return self._groups[self._index(level)]

    def lift(self, groups: Int64[Tensor, "*batch"], level: int, to: int) -> Int64[Tensor, "*batch"]:
        """The groups of level `to` that groups of the same or a finer level lie in; ValueError for a coarser one."""
        require_wanted(self._index(to) <= self._index(level), f"a level from 1 to {level} to lift level {level} to", to)
        some_class = self._members[level - 1][:, 0]
        return self.groups(to)[some_class].to(groups.device)[groups]

    def coarse_logits(self, logits: Float[Tensor, "*batch classes"], level: int) -> Float[Tensor, "*batch groups"]:
        """Logits over the groups of a level from logits over the classes: the logsumexp over each group's classes.

        Their softmax is the sum of the classes' probabilities, their argmax the answer at that level. At least float32;
        at the last level, the logits as they are. ValueError where the logits are not one a class.
        """
        require_wanted(
            logits.shape[-1] == len(self.classes), f"logits of {len(self.classes)} classes", tuple(logits.shape)
        )
        members = self._members[self._index(level)].to(logits.device)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = F.pad(logits, (0, 1), value=-math.inf)  # the class that fills up small groups: probability 0
        return logits.index_select(-1, members.flatten()).unflatten(-1, members.shape).logsumexp(-1)

    def log_probabilities(self, logits: Float[Tensor, "*batch classes"], level: int) -> Float[Tensor, "*batch groups"]:
        """Log probability of every group of a level, see `coarse_logits`. A group's is the sum of its subgroups'."""
        return F.log_softmax(self.coarse_logits(logits, level), dim=-1)

    def assign(self, exits: int | Sequence[int]) -> tuple[int, ...]:
        """The level of each exit, cheapest exit first: checked, or spread evenly over a number of exits.

        Of K exits, exit k gets level ⌈kL/K⌉: coarse first, and where K is no multiple of L, finer levels have more.
        ValueError, which names it, for a level without an exit (so the last exit's is the finest), for an exit whose
        level is coarser than that of the exit before it, and for a level that does not exist.
        """
        if isinstance(exits, Integral):
            require_wanted(exits >= 1, "one exit or more", exits)
            levels = tuple(-(-k * self.levels // int(exits)) for k in range(1, exits + 1))
        else:
            levels = tuple(self._index(level) + 1 for level in exits)
        for k, (level, after) in enumerate(pairwise(levels), 1):
            if after < level:
                raise ValueError(f"exit {k + 1} has level {after}, coarser than exit {k} before it, of level {level}")
        if without := sorted(set(range(1, self.levels + 1)) - set(levels)):
            raise ValueError(f"level {without[0]} of {self.levels} has no exit; the levels of the exits are {levels}")
        return levels

    def _index(self, level: int) -> int:
        """Where the tables have a level."""
        if not isinstance(level, Integral) or not 1 <= level <= self.levels:
            raise ValueError(f"level is {level!r}; wanted a whole number from 1 (coarsest) to {self.levels} (classes)")
        return int(level) - 1


def _paths(tree: Any, classes: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Of every class, from left to right, the names on the way from the root to it, its own included; checked."""
    require_wanted(isinstance(tree, dict), "a label tree, a dict of group names", tree)
    paths: dict[str, tuple[str, ...]] = {}

    def visit(node: Any, path: tuple[str, ...]) -> None:
        place = f"group {' / '.join(path)!r}" if path else "the label tree"
        if not isinstance(node, dict | list):
            raise ValueError(f"{place} is {node!r}; wanted a dict of groups or a list of class names")
        if not node:
            raise ValueError(f"{place} is empty; wanted at least one group or class in it")
        for name in node:
            if not isinstance(name, str):
                raise ValueError(f"{place} holds {name!r}; wanted names that are strings")
            if isinstance(node, dict):
                visit(node[name], (*path, name))
            elif name in paths:
                first = " / ".join(paths[name][:-1])
                raise ValueError(f"class {name!r} stands twice in the label tree: in group {first!r} and in {place}")
            else:
                paths[name] = (*path, name)

    visit(tree, ())
    if doubled := [name for name, count in Counter(classes).items() if count > 1]:
        raise ValueError(f"wanted classes of different names; got {doubled[0]!r} twice")
    if missing := [name for name in classes if name not in paths]:
        raise ValueError(f"the label tree lacks {_few(missing)}; wanted every class in it")
    if unknown := sorted(paths.keys() - set(classes)):
        raise ValueError(f"the label tree has {_few(unknown)}; wanted no others than the classes {_few(classes)}")
    return paths


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, which may not have one name twice (json would keep the last)."""
    for name, count in Counter(name for name, _ in pairs).items():
        if count > 1:
            raise ValueError(f"group {name!r} stands {count} times in one object; wanted it once")
    return dict(pairs)


class CoarseToFineLoss:
    """The loss of an anytime network on the taxonomy task, a `loss` for a trainer.

        Σ_k w_k · ( -log p_k(group of the label at level ℓ_k)  [ - fine · log p_k(label), where ℓ_k is coarse ] )

    averaged over the images; p_k are exit k's probabilities. The first term raises all classes of the true group, each
    in proportion to its probability: it does not tell them apart, and is slow to begin where they are alike. A little
    of the second (`fine` of 0.1 to 0.3) made coarse answers better, too, in trials with linear exits on digits.

    Args:
        taxonomy: the label tree.
        levels_of_exits: the level ℓ_k of every exit, or the number of exits; see `Taxonomy.assign`.
        weights: w_k, one an exit; default 1 each (the paper's unweighted sum).
        fine: how much of the classes' cross-entropy the exits of coarser levels get as well.

    Raises:
        ValueError: levels that `Taxonomy.assign` refuses, weights or `fine` that are negative or not finite, not one
            weight an exit, no weight above 0.
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
        require_wanted(len(self.weights) == len(self.levels), f"{len(self.levels)} weights, one an exit", self.weights)
        require_wanted(
            all(0 <= w < math.inf for w in self.weights) and any(self.weights), "weights >= 0, not all 0", weights
        )
        require_wanted(0 <= self.fine < math.inf, "fine >= 0", fine)
        # What the record of a run tells of this loss, beside its numbers: see training.name_of.
        self.groups = taxonomy._groups

    def __call__(
        self, outputs: Sequence[Float[Tensor, "batch classes"]], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, ""]:
        """The weighted sum over the exits. ValueError where the outputs are not one an exit or not one a class."""
        losses = self.per_exit(outputs, labels)
        return (losses * losses.new_tensor(self.weights)).sum()  # a product by @ would be bfloat16 under autocast

    def per_exit(
        self, outputs: Sequence[Float[Tensor, "batch classes"]], labels: Int64[Tensor, " batch"]
    ) -> Float[Tensor, " exits"]:
        """The K exits' losses, each a mean over the images, before they are weighted."""
        require_wanted(len(outputs) == len(self.levels), f"logits of {len(self.levels)} exits", len(outputs))
        losses = []
        for logits, level in zip(outputs, self.levels, strict=True):
            of_groups = self.taxonomy.log_probabilities(logits, level)
            # Spread over the classes, so that torch checks the labels as it does for a cross-entropy.
            loss = F.nll_loss(of_groups[:, self.taxonomy.groups(level).to(logits.device)], labels)
            if self.fine and level < self.taxonomy.levels:
                loss = loss + self.fine * F.cross_entropy(logits.to(of_groups.dtype), labels)
            losses.append(loss)
        return torch.stack(losses)


@torch.no_grad()
def coarse_to_fine_metrics(
    taxonomy: Taxonomy,
    levels_of_exits: int | Sequence[int],
    outputs: Float[Tensor, "exits images classes"],
    labels: Int64[Tensor, " images"],
) -> pd.DataFrame:
    """How right, how consistent and how far off the answers of all exits are over a data set; one row an exit.

    Columns, fractions of the images in [0, 1] where nothing else is said:

    * `exit` (from 1), `level`: the level assigned to it, at which it answers.
    * `accuracy`: how often the answer, the most probable group at the exit's level, is the right one.
    * `fine_guess`: how often the group of the most probable class is; what a guess at the class would be worth there.
    * `consistent_next`, `consistent_last`: how often the answer of the next exit, and of the last one, lies in the
      group that this exit answered, right or wrong; NaN for the last exit.
    * `mistake_distance`: mean `Taxonomy.distance` between the most probable class and the right one over the images
      where they differ, from 1 to L; of the class whatever the exit's level, so that exits compare. NaN without one.
    * `accuracy_1` … `accuracy_L`: the accuracy that the exit's answer would have at each level.

    Raises:
        ValueError: outputs of other exits or classes, logits that are not finite, no images, labels out of range, or
            levels that `Taxonomy.assign` refuses.
    """
    levels, finest = taxonomy.assign(levels_of_exits), taxonomy.levels
    wanted = (len(levels), len(labels), len(taxonomy.classes))
    require_wanted(outputs.shape == wanted, f"outputs (exits, images, classes) of {wanted}", tuple(outputs.shape))
    require_wanted(len(labels) > 0, "at least one image", len(labels))
    low, high = labels.min().item(), labels.max().item()
    require_wanted(0 <= low and high < wanted[2], f"labels from 0 to {wanted[2] - 1}", f"{low} to {high}")
    require_wanted(bool(outputs.isfinite().all()), "finite logits", "some that are not")
    outputs, labels = outputs.cpu(), labels.cpu()

    right = {of: taxonomy.lift(labels, finest, of) for of in range(1, finest + 1)}
    answered = {of: taxonomy.coarse_logits(outputs, of).argmax(-1) for of in right}  # (exits, images) at each level
    rows = []
    for k, level in enumerate(levels):
        guess, answer = outputs[k].argmax(-1), answered[level][k]
        accuracies = {of: _mean(answered[of][k] == right[of]) for of in right}
        last = len(levels) - 1
        stays = [taxonomy.lift(answered[levels[j]][j], levels[j], level) == answer for j in (min(k + 1, last), last)]
        rows.append(
            {
                "exit": k + 1,
                "level": level,
                "accuracy": accuracies[level],
                "fine_guess": _mean(taxonomy.lift(guess, finest, level) == right[level]),
                "consistent_next": _mean(stays[0]) if k < last else math.nan,
                "consistent_last": _mean(stays[1]) if k < last else math.nan,
                "mistake_distance": _mean(taxonomy.distance[guess, labels][guess != labels]),
                **{f"accuracy_{of}": accuracy for of, accuracy in accuracies.items()},
            }
        )
    return pd.DataFrame(rows)


def _mean(values: Tensor) -> float:
    return values.double().mean().item()
