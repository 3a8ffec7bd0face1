"""The taxonomy task: trees, probabilities that agree between levels, the coarse-to-fine loss and its metrics."""

import json
import math
import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from torch import Tensor, nn
from torch.nn import functional as F
from typechecker import unchecked

from mtanytime import data as datasets
from mtanytime.anytime.taxonomy import CoarseToFineLoss, Taxonomy, coarse_to_fine_metrics
from mtanytime.data.images import Tree, leaves
from mtanytime.data.synthetic import handwritten
from mtanytime.training.identity import name_of
from mtanytime.training.trainer import Trainer

# Leaves at depth 2 and 3; "robin" is a group of its own at level 2.
ANIMALS: Tree = {"pet": {"dog": ["pug", "collie"], "cat": ["tabby"]}, "bird": ["robin", "owl"]}
CLASSES = ("owl", "pug", "tabby", "collie", "robin")

SHAPES = st.lists(
    st.recursive(st.integers(1, 4), lambda inner: st.lists(inner, min_size=1, max_size=3), max_leaves=6),
    min_size=2,
    max_size=3,
)


@st.composite
def trees(draw: st.DrawFn) -> tuple[Tree, tuple[str, ...]]:
    """A random tree, its group names used again and again, and its classes in a random order."""
    count = 0

    def grown(shape: int | list) -> list[str] | Tree:
        nonlocal count
        if isinstance(shape, list):
            return {f"g{i}": grown(inner) for i, inner in enumerate(shape)}
        count += shape
        return [f"c{i}" for i in range(count - shape, count)]

    tree = grown(draw(SHAPES))
    return tree, tuple(draw(st.permutations([f"c{i}" for i in range(count)])))


def path_of(tree: Tree | list[str], name: str) -> tuple[str, ...]:
    """The way down to a class, found by search."""
    if isinstance(tree, list):
        return (name,) if name in tree else ()
    return next(((group, *rest) for group, child in tree.items() if (rest := path_of(child, name))), ())


def paths_of(tree: Tree, classes: Sequence[str]) -> list[tuple[str, ...]]:
    """The way down to every class, made as long as the longest."""
    paths = [path_of(tree, name) for name in classes]
    deepest = max(map(len, paths))
    return [path + (path[-1],) * (deepest - len(path)) for path in paths]


def drawn(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Random logits in float64."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The tree


def test_groups_of_a_tree_worked_out_by_hand():
    """Leaves of different depths are the part of the definition that is a choice, so it is written down once."""
    taxonomy = Taxonomy(ANIMALS, CLASSES)
    assert repr(taxonomy) == "Taxonomy(3 levels, coarse to fine: 2, 4, 5)"
    assert taxonomy.levels == 3
    assert taxonomy.names(1) == ("pet", "bird")
    assert taxonomy.names(2) == ("dog", "cat", "robin", "owl")
    assert taxonomy.names(3) == taxonomy.classes == CLASSES
    assert taxonomy.groups(1).tolist() == [1, 0, 0, 0, 1]
    assert taxonomy.groups(2).tolist() == [3, 0, 1, 0, 2]
    assert taxonomy.groups(3).tolist() == [0, 1, 2, 3, 4]
    assert taxonomy.distance.tolist() == [
        [0, 3, 3, 3, 2],
        [3, 0, 2, 1, 3],
        [3, 2, 0, 2, 3],
        [3, 1, 2, 0, 3],
        [2, 3, 3, 3, 0],
    ]
    assert taxonomy.lift(torch.tensor([0, 1, 2, 3]), 2, 1).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("tree", "sizes", "coarsest"),
    [
        (datasets.LETTER_TREE, [2, 4, 37], [26, 11]),
        (datasets.DIGIT_TREE, [2, 10], [4, 6]),
        (datasets.CIFAR10_TREE, [2, 10], [6, 4]),
        (datasets.STL10_TREE, [2, 10], [6, 4]),
        (datasets.CIFAR100_TREE, [20, 100], [5] * 20),
    ],
)
def test_trees_of_the_data_sets(tree: Tree, sizes: list[int], coarsest: list[int]):
    """The trees that the library ships are the ones most people will use."""
    taxonomy = Taxonomy(tree, sorted(leaves(tree)))
    assert [taxonomy.size(level) for level in range(1, taxonomy.levels + 1)] == sizes
    assert taxonomy.groups(1).bincount().tolist() == coarsest
    assert taxonomy.names(1) == tuple(tree)


@given(trees())
def test_groups_partition_the_classes_along_the_tree(drawn_tree: tuple[Tree, tuple[str, ...]]):
    """Two classes share a group exactly where their ways down agree so far, and no group is empty or nameless."""
    tree, classes = drawn_tree
    taxonomy, paths = Taxonomy(tree, classes), paths_of(tree, classes)
    assert taxonomy.levels == len(paths[0])
    for level in range(1, taxonomy.levels + 1):
        groups, names = taxonomy.groups(level).tolist(), taxonomy.names(level)
        assert set(groups) == set(range(taxonomy.size(level)))
        assert len(set(names)) == len(names) == taxonomy.size(level)
        for (a, path), (b, other) in product(zip(groups, paths, strict=True), repeat=2):
            assert (a == b) == (path[:level] == other[:level])
        assert all(names[group].split(" / ")[-1] == path[level - 1] for group, path in zip(groups, paths, strict=True))
        for to in range(1, level + 1):
            assert torch.equal(taxonomy.lift(taxonomy.groups(level), level, to), taxonomy.groups(to))
    assert taxonomy.groups(taxonomy.levels).tolist() == list(range(len(classes)))


@given(trees())
def test_distance_is_an_ultrametric_and_half_the_edges(drawn_tree: tuple[Tree, tuple[str, ...]]):
    """It is compared with the shortest ways in the tree as a graph, by scipy."""
    tree, classes = drawn_tree
    distance, paths = Taxonomy(tree, classes).distance, paths_of(tree, classes)
    nodes = {path[:depth]: None for path in paths for depth in range(len(path) + 1)}
    number = {node: i for i, node in enumerate(nodes)}
    child, parent = zip(*((number[node], number[node[:-1]]) for node in nodes if node), strict=True)
    graph = coo_array((np.ones(len(child)), (child, parent)), shape=(len(nodes), len(nodes)))
    ends = [number[path] for path in paths]
    assert np.array_equal(shortest_path(graph, directed=False)[np.ix_(ends, ends)], 2 * distance.numpy())
    assert torch.equal(distance, distance.T)
    assert torch.equal(distance == 0, torch.eye(len(classes), dtype=torch.bool))
    assert (distance[:, None, :] <= torch.maximum(distance[:, :, None], distance[None])).all()


def test_names_that_come_twice_in_a_level_say_where_they_are():
    """A picture with two lines of one name could not be read."""
    tree = {"small": {"round": ["o"], "tall": ["l"]}, "capital": {"round": ["O"], "flat": ["H"]}}
    assert Taxonomy(tree, "olOH").names(2) == ("small / round", "tall", "capital / round", "flat")


@pytest.mark.parametrize(
    ("tree", "classes", "message"),
    [
        ({"a": ["x"], "b": ["y"]}, "xyz", r"the label tree lacks 'z'; wanted every class in it"),
        ({"a": ["x"], "b": ["y"]}, "xyzuvwst", r"lacks 'z', 'u', 'v', 'w', 's' and 1 more; wanted every"),
        ({"a": ["x", "z"], "b": ["y"]}, "xy", r"the label tree has 'z'; wanted no others than the classes 'x', 'y'"),
        ({"a": ["x"], "b": {"c": ["y", "x"]}}, "xy", r"class 'x' stands twice .*: in group 'a' and in group 'b / c'"),
        ({"a": ["x", "x"], "b": ["y"]}, "xy", r"class 'x' stands twice in the label tree: in group 'a' and in group"),
        ({"a": ["x"], "b": ["y"]}, "xyx", r"wanted classes of different names; got 'x' twice"),
        ({"a": ["x"], "b": {"c": []}}, "x", r"group 'b / c' is empty; wanted at least one group or class in it"),
        ({"a": ["x"], "b": {}}, "x", r"group 'b' is empty"),
        ({}, "x", r"the label tree is empty"),
        ({"all": ["x", "y"]}, "xy", r"wanted at least two groups below the root; got \('all',\)"),
        (
            {"a": ["x"], "b": {"c": "y"}},
            "xy",
            r"group 'b / c' is 'y'; wanted a dict of groups or a list of class names",
        ),
        ({"a": ["x"], "b": None}, "xy", r"group 'b' is None; wanted a dict"),
        ({"a": ["x"], "b": {"c": [3]}}, "xy", r"group 'b / c' holds 3; wanted names that are strings"),
        ({"a": ["x"], "b": [["y"]]}, "xy", r"group 'b' holds \['y'\]; wanted names"),
        ({"a": ["x"], "b": {7: ["y"]}}, "xy", r"group 'b' holds 7; wanted names"),
        (["x", "y"], "xy", r"wanted a label tree, a dict of group names; got \['x', 'y'\]"),
        (None, "xy", r"wanted a label tree, a dict of group names; got None"),
    ],
)
def test_trees_that_do_not_fit_are_refused_by_name(tree: object, classes: str, message: str):
    """A class in two groups, or in none, would be trained on wrong labels without a sign."""
    with pytest.raises(ValueError, match=message):
        unchecked(Taxonomy.__init__)(Taxonomy.__new__(Taxonomy), tree, classes)


def test_a_tree_from_json_is_the_tree(tmp_path: Path):
    """Users keep their trees in files, with any letters in the names."""
    tree = {"größer": ANIMALS, "plant": ["ivy"]}
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    classes = (*CLASSES, "ivy")
    read, made = Taxonomy.from_json(path, classes), Taxonomy(tree, classes)
    assert read.levels == made.levels == 4
    for level in range(1, 5):
        assert read.names(level) == made.names(level)
        assert torch.equal(read.groups(level), made.groups(level))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": ["x"], "b": ["y"]', r"tree.json holds no label tree of these classes: .*line 1 column 24"),
        ('{"a": ["x"], "a": ["y"]}', r"tree.json .*: group 'a' stands 2 times in one object; wanted it once"),
        ('{"a": ["x"], "b": ["z"]}', r"tree.json .*: the label tree lacks 'y'"),
        ('{"a": ["x"], "b": 3}', r"tree.json .*: group 'b' is 3"),
        ('{"a":' * 100_000, r"tree.json holds no label tree"),
        ("\xff", r"tree.json holds no label tree"),
    ],
)
def test_files_that_hold_no_tree_are_refused_with_their_path(tmp_path: Path, text: str, message: str):
    """json itself would keep the last of two groups of one name, and name neither file nor group."""
    path = tmp_path / "tree.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        Taxonomy.from_json(path, "xy")
    with pytest.raises(FileNotFoundError):
        Taxonomy.from_json(tmp_path / "none.json", "xy")


@pytest.mark.parametrize("level", [0, 4, -1, 1.5, "1", None])
def test_levels_that_are_not_there_are_refused(level: object):
    """Level -1 would be the last one by Python's rules, and an early exit would be asked for the classes."""
    taxonomy = Taxonomy(ANIMALS, CLASSES)
    asks = [taxonomy.size, taxonomy.names, taxonomy.groups, lambda level: taxonomy.coarse_logits(drawn(5), level)]
    for ask in asks if isinstance(level, int) else [lambda level: unchecked(Taxonomy._index)(taxonomy, level)]:
        with pytest.raises(
            ValueError, match=r"level is .*; wanted a whole number from 1 \(coarsest\) to 3 \(classes\)"
        ):
            ask(level)


def test_groups_are_not_lifted_to_a_finer_level():
    """A group does not say which of its classes is meant."""
    with pytest.raises(ValueError, match=r"wanted a level from 1 to 2 to lift level 2 to; got 3"):
        Taxonomy(ANIMALS, CLASSES).lift(torch.tensor([0]), 2, 3)


# Probabilities


@given(trees(), st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 100.0]))
def test_probabilities_sum_to_one_and_agree_between_levels(
    drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, scale: float
):
    """A group's probability is the sum of its classes' and of its subgroups', here added one by one."""
    taxonomy = Taxonomy(*drawn_tree)
    logits = drawn(3, len(taxonomy.classes), seed=seed, scale=scale)
    classes = logits.softmax(-1)
    finer = None
    for level in range(taxonomy.levels, 0, -1):
        probabilities = taxonomy.log_probabilities(logits, level).exp()
        added = torch.zeros(3, taxonomy.size(level), dtype=torch.float64)
        for c, group in enumerate(taxonomy.groups(level).tolist()):
            added[:, group] += classes[:, c]
        torch.testing.assert_close(probabilities, added, rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
        if finer is not None:
            inside = taxonomy.lift(torch.arange(taxonomy.size(level + 1)), level + 1, level)
            sums = torch.stack([finer[:, inside == group].sum(1) for group in range(taxonomy.size(level))], 1)
            torch.testing.assert_close(probabilities, sums, rtol=1e-10, atol=1e-14)
        finer = probabilities


def test_coarse_logits_take_any_leading_shape_and_are_exact_for_the_classes():
    """All exits are asked at once, and the last level's answer must be the plain argmax, ties of rounding included."""
    taxonomy = Taxonomy(ANIMALS, CLASSES)
    logits = drawn(2, 4, 5).float()
    assert torch.equal(taxonomy.coarse_logits(logits, 3), logits)
    one_by_one = torch.stack([torch.stack([taxonomy.coarse_logits(row, 1) for row in rows]) for rows in logits])
    torch.testing.assert_close(taxonomy.coarse_logits(logits, 1), one_by_one, rtol=0, atol=0)
    assert taxonomy.coarse_logits(logits.bfloat16(), 2).dtype == torch.float32
    with pytest.raises(ValueError, match=r"wanted logits of 5 classes; got \(3, 4\)"):
        taxonomy.coarse_logits(drawn(3, 4), 1)


@given(trees(), st.integers(0, 2**31))
def test_the_answer_is_at_least_as_probable_as_the_guess_at_a_class(
    drawn_tree: tuple[Tree, tuple[str, ...]], seed: int
):
    """Why a coarse answer sums: in the exit's own eyes, it is right at its level at least as often as a fine guess."""
    taxonomy = Taxonomy(*drawn_tree)
    logits = drawn(8, len(taxonomy.classes), seed=seed, scale=1.0)
    for level in range(1, taxonomy.levels + 1):
        probabilities = taxonomy.log_probabilities(logits, level).exp()
        guess = taxonomy.groups(level)[logits.argmax(-1)]
        of_guess = probabilities.gather(1, guess[:, None])[:, 0]
        answer = taxonomy.coarse_logits(logits, level).argmax(-1)
        of_answer = probabilities.gather(1, answer[:, None])[:, 0]
        assert (of_answer >= of_guess - 1e-12).all()


# Exits


@given(st.integers(1, 12), st.integers(2, 4))
def test_exits_spread_evenly_over_the_levels(exits: int, levels: int):
    """Coarse first, finest last, and of two levels the finer one has as many exits or one more."""
    tree: Tree | list[str] = ["y", "z"]  # grows one level with each turn
    for depth in range(levels - 1):
        tree = {f"g{depth}": tree, f"h{depth}": [f"x{depth}"]}
    taxonomy = Taxonomy(tree, leaves(tree))
    assert taxonomy.levels == levels
    if exits < levels:
        with pytest.raises(ValueError, match=rf"level \d of {levels} has no exit; the levels of the exits are"):
            taxonomy.assign(exits)
        return
    assigned = taxonomy.assign(exits)
    counts = [assigned.count(level) for level in range(1, levels + 1)]
    assert len(assigned) == sum(counts) == exits
    assert list(assigned) == sorted(assigned)
    assert max(counts) - min(counts) <= 1
    assert taxonomy.assign(assigned) == assigned


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        ((1, 1, 3), r"level 2 of 3 has no exit; the levels of the exits are \(1, 1, 3\)"),
        ((2, 3), r"level 1 of 3 has no exit"),
        ((1, 2, 2), r"level 3 of 3 has no exit"),
        ((), r"level 1 of 3 has no exit"),
        (2, r"level 1 of 3 has no exit; the levels of the exits are \(2, 3\)"),
        (0, r"wanted one exit or more; got 0"),
        ((1, 3, 2, 3), r"exit 3 has level 2, coarser than exit 2 before it, of level 3"),
        ((1, 2, 3, 4), r"level is 4; wanted a whole number from 1 \(coarsest\) to 3 \(classes\)"),
        ((0, 1, 2, 3), r"level is 0; wanted"),
    ],
)
def test_levels_of_exits_that_make_no_sense_are_refused(exits: int | tuple[int, ...], message: str):
    """A level that no exit answers, or an answer that gets coarser, is a mistake to hear of before the training."""
    taxonomy = Taxonomy(ANIMALS, CLASSES)
    for use in (taxonomy.assign, lambda exits: CoarseToFineLoss(taxonomy, exits)):
        with pytest.raises(ValueError, match=message):
            use(exits)


# The loss


@given(trees(), st.integers(0, 2**31), st.sampled_from([0.0, 0.3]))
def test_loss_is_the_sum_written_out(drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, fine: float):
    """Every image, exit and class by itself, with Python's numbers and the tree's own paths."""
    tree, classes = drawn_tree
    taxonomy, paths, rng = Taxonomy(tree, classes), paths_of(tree, classes), random.Random(seed)
    exits = taxonomy.levels + 2
    levels, weights = taxonomy.assign(exits), [rng.random() for _ in range(exits)]
    labels = [rng.randrange(len(classes)) for _ in range(3)]
    outputs = [drawn(3, len(classes), seed=seed + k) for k in range(exits)]
    wanted = []
    for logits, level in zip(outputs, levels, strict=True):
        loss = 0.0
        for row, label in zip(logits.tolist(), labels, strict=True):
            total = math.fsum(map(math.exp, row))
            group = [math.exp(x) for x, path in zip(row, paths, strict=True) if path[:level] == paths[label][:level]]
            loss -= math.log(math.fsum(group) / total)
            if level < taxonomy.levels:
                loss -= fine * math.log(math.exp(row[label]) / total)
        wanted.append(loss / len(labels))
    loss = CoarseToFineLoss(taxonomy, levels, weights, fine)
    assert loss.per_exit(outputs, torch.tensor(labels)).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    total = math.fsum(w * value for w, value in zip(weights, wanted, strict=True))
    assert loss(outputs, torch.tensor(labels)).item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    plain = CoarseToFineLoss(taxonomy, exits, fine=fine)(outputs, torch.tensor(labels))
    assert plain.item() == pytest.approx(math.fsum(wanted), rel=1e-9, abs=1e-12)


def test_gradient_of_a_coarse_loss_is_its_closed_form():
    """p - p within the true group; and torch's finite differences agree for all exits together."""
    taxonomy, labels = Taxonomy(ANIMALS, CLASSES), torch.tensor([0, 1, 4, 3])
    outputs = [drawn(4, 5, seed=k).requires_grad_() for k in range(3)]
    loss = CoarseToFineLoss(taxonomy, 3)
    for logits, level, value in zip(outputs, loss.levels, loss.per_exit(outputs, labels), strict=True):
        p = logits.detach().softmax(-1)
        inside = p * (taxonomy.groups(level)[None] == taxonomy.groups(level)[labels][:, None])
        wanted = (p - inside / inside.sum(1, keepdim=True)) / 4
        torch.testing.assert_close(torch.autograd.grad(value, logits)[0], wanted, rtol=1e-10, atol=1e-14)
    uneven = CoarseToFineLoss(taxonomy, 3, [0.5, 1.0, 2.0], fine=0.3)
    assert torch.autograd.gradcheck(lambda *outputs: uneven(outputs, labels), outputs)


@given(trees(), st.integers(0, 2**31), st.sampled_from([1e2, 1e4, 1e30]))
def test_loss_and_gradient_stay_finite_for_extreme_logits(
    drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, scale: float
):
    """A group whose probability underflows is where a sum of probabilities would give log 0 and a gradient of nan."""
    taxonomy = Taxonomy(*drawn_tree)
    labels = torch.arange(len(taxonomy.classes))
    signs = drawn(taxonomy.levels, len(labels), len(labels), seed=seed).sign()
    outputs = (scale * signs).float().requires_grad_()
    loss = CoarseToFineLoss(taxonomy, taxonomy.levels, fine=0.1)
    value = loss(list(outputs), labels)
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert outputs.grad.isfinite().all()


def test_loss_of_low_precision_logits_is_worked_out_in_float32():
    """Under autocast a head gives bfloat16, in which a sum over classes would lose the small ones."""
    taxonomy, labels = Taxonomy(ANIMALS, CLASSES), torch.tensor([0, 1, 4, 3])
    outputs = [drawn(4, 5, seed=k).bfloat16() for k in range(3)]
    loss = CoarseToFineLoss(taxonomy, 3, fine=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(outputs, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss([logits.float() for logits in outputs], labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1, 1]}, r"wanted 3 weights, one an exit; got \(1.0, 1.0\)"),
        ({"weights": [1, -1, 1]}, r"wanted weights >= 0, not all 0; got \[1, -1, 1\]"),
        ({"weights": [1, math.nan, 1]}, r"wanted weights >= 0"),
        ({"weights": [1, math.inf, 1]}, r"wanted weights >= 0"),
        ({"weights": [0, 0, 0]}, r"wanted weights >= 0, not all 0"),
        ({"fine": -0.1}, r"wanted fine >= 0; got -0.1"),
        ({"fine": math.nan}, r"wanted fine >= 0; got nan"),
    ],
)
def test_loss_refuses_settings_that_make_no_sense(settings: dict, message: str):
    """A negative weight would train an exit away from its labels."""
    with pytest.raises(ValueError, match=message):
        CoarseToFineLoss(Taxonomy(ANIMALS, CLASSES), 3, **settings)


def test_loss_refuses_outputs_that_are_not_the_exits_and_classes():
    """One exit too few would be trained on the levels of others."""
    loss, labels = CoarseToFineLoss(Taxonomy(ANIMALS, CLASSES), 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"wanted logits of 3 exits; got 2"):
        loss([drawn(2, 5)] * 2, labels)
    with pytest.raises(ValueError, match=r"wanted logits of 5 classes; got \(2, 6\)"):
        loss([drawn(2, 6)] * 3, labels)
    for label in (-1, 5):  # as F.cross_entropy does; an index into a table would take -1 for the last class
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            loss([drawn(2, 5)] * 3, torch.tensor([0, label]))


# Training


class TwoExits(nn.Module):
    """A network of two heads on one TinyNet's logits: the list of their answers."""

    def __init__(self, classes: int):
        super().__init__()
        self.body, self.heads = tiny.made(classes=4), nn.ModuleList(nn.Linear(4, classes) for _ in range(2))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of both exits."""
        maps = self.body(images)
        return [head(maps) for head in self.heads]


class AnytimeSteps(Trainer):
    """As little as trains a network that gives a list."""

    def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Do one SGD step on the loss."""
        loss = self.loss(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


def test_a_trainer_takes_the_loss_and_tells_two_of_them_apart(tmp_path: Path):
    """A run that was begun with other levels, weights or tree must not be resumed as if it were the same."""
    data = tiny.images(24, classes=4)
    tree = {"even": ["class 0", "class 2"], "odd": ["class 1", "class 3"]}
    taxonomy = Taxonomy(tree, data.classes)

    def trainer(loss: CoarseToFineLoss) -> AnytimeSteps:
        settings = {"epochs": 12, "batch_size": 8, "lr": 0.05, "progress": False, "device": "cpu"}
        return AnytimeSteps(lambda: TwoExits(4), data, loss=loss, folder=tmp_path / "run", **settings)

    log = trainer(CoarseToFineLoss(taxonomy, 2)).train().log
    assert log["loss"].tail(6).mean() < 0.9 * log["loss"].head(6).mean()
    record = json.loads((tmp_path / "run" / "config.json").read_text())["loss"]
    assert "'levels': (1, 2), 'weights': (1.0, 1.0)" in record
    assert trainer(CoarseToFineLoss(taxonomy, (1, 2), [1, 1])).step == 36  # the same run, finished

    swapped = Taxonomy({"low": ["class 0", "class 1"], "high": ["class 2", "class 3"]}, data.classes)
    others = [
        CoarseToFineLoss(swapped, 2),
        CoarseToFineLoss(taxonomy, 2, [1, 2]),
        CoarseToFineLoss(taxonomy, 2, fine=0.1),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"loss: there .*CoarseToFineLoss .*here .*CoarseToFineLoss"):
            trainer(other)
    losses = [CoarseToFineLoss(taxonomy, 3), CoarseToFineLoss(taxonomy, (1, 1, 2)), *others]
    assert len({name_of(loss) for loss in losses}) == len(losses)
    with pytest.raises(ValueError, match=r"^loss: expected a function .*: wanted logits of 3 exits; got 2"):
        trainer(losses[0])


def linear_exits(loss: Callable, inputs: list[Tensor], labels: Tensor, train: Tensor, test: Tensor) -> pd.DataFrame:
    """The metrics on the digits' tree of one linear exit for each of the inputs, trained together."""
    weights = [torch.zeros(x.shape[1] + 1, 10, requires_grad=True) for x in inputs]
    optimizer = torch.optim.Adam(weights, lr=0.1)

    def outputs(index: Tensor) -> list[Tensor]:
        return [x[index] @ w[:-1] + w[-1] for x, w in zip(inputs, weights, strict=True)]

    for _ in range(100):
        optimizer.zero_grad()
        loss(outputs(train), labels[train]).backward()
        optimizer.step()
    taxonomy = Taxonomy(datasets.DIGIT_TREE, "0123456789")
    return coarse_to_fine_metrics(taxonomy, len(inputs), torch.stack(outputs(test)), labels[test])


def test_an_early_answer_is_right_at_its_level_more_often_than_a_fine_guess():
    """The point of the task, on handwritten digits of which the early exit sees six random features.

    The guess is that of an early exit with the same features, trained on the digits themselves.
    """
    glyphs, labels = handwritten()
    pixels = F.adaptive_avg_pool2d(glyphs[:, 1].float() / 255, 8).flatten(1)
    coarse_to_fine = CoarseToFineLoss(Taxonomy(datasets.DIGIT_TREE, "0123456789"), 2, fine=0.3)
    gains = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        train, test = torch.randperm(len(labels), generator=generator).split(900)
        inputs = [pixels @ torch.randn(64, 6, generator=generator) / 8, pixels]
        ours = linear_exits(coarse_to_fine, inputs, labels, train, test)
        plain = linear_exits(
            lambda outputs, y: sum(F.cross_entropy(x, y) for x in outputs), inputs, labels, train, test
        )
        gains.append(ours["accuracy"][0] - plain["fine_guess"][0])
        assert ours["accuracy"][1] > 0.9
    assert np.mean(gains) > 0.01


# Metrics


def test_metrics_of_an_example_worked_out_by_hand():
    """Three images, of which the thin exit is right about the group where a guess at the class would be wrong."""
    taxonomy = Taxonomy({"a": ["a1", "a2"], "b": ["b1", "b2"]}, ("a1", "a2", "b1", "b2"))
    probabilities = torch.tensor(
        [
            [[0.3, 0.3, 0.4, 0.0], [0.1, 0.2, 0.3, 0.4], [0.4, 0.0, 0.3, 0.3]],  # answers a, b, b; guesses b1, b2, a1
            [[0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.1, 0.9], [0.9, 0.1, 0.0, 0.0]],  # a, b, a; a1, b2, a1
            [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]],  # a2, b1, b1
        ]
    )
    table = coarse_to_fine_metrics(taxonomy, (1, 1, 2), (probabilities + 1e-9).log(), torch.tensor([0, 3, 2]))
    wanted = {
        "exit": [1, 2, 3],
        "level": [1, 1, 2],
        "accuracy": [1, 2 / 3, 1 / 3],
        "fine_guess": [1 / 3, 2 / 3, 1 / 3],
        "consistent_next": [2 / 3, 2 / 3, math.nan],
        "consistent_last": [1, 2 / 3, math.nan],
        "mistake_distance": [2, 2, 1],  # b1 and a1 for a1 and b1; a1 for b1; a2 for a1 and b1 for b2
        "accuracy_1": [1, 2 / 3, 1],
        "accuracy_2": [1 / 3, 2 / 3, 1 / 3],
    }
    pd.testing.assert_frame_equal(table, pd.DataFrame(wanted), check_dtype=False, rtol=1e-12, atol=0)


@given(trees(), st.integers(0, 2**31), st.integers(1, 6))
def test_metrics_are_what_a_loop_over_images_counts(drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, images: int):
    """Every figure again as an exact fraction, from the tree's own paths."""
    tree, classes = drawn_tree
    taxonomy, paths = Taxonomy(tree, classes), paths_of(tree, classes)
    levels = taxonomy.assign(taxonomy.levels + 1)
    outputs = drawn(len(levels), images, len(classes), seed=seed, scale=1.0)
    labels = torch.randint(len(classes), (images,), generator=torch.Generator().manual_seed(seed))
    rows = coarse_to_fine_metrics(taxonomy, levels, outputs, labels).to_dict("records")

    def answer(row: list[float], level: int) -> tuple[str, ...]:
        sums: dict[tuple[str, ...], float] = {}
        for x, path in zip(row, paths, strict=True):
            sums[path[:level]] = sums.get(path[:level], 0) + math.exp(x)
        return max(sums, key=sums.get)

    answers = [[answer(row, level) for row in rows] for rows, level in zip(outputs.tolist(), levels, strict=True)]
    truth = [paths[label] for label in labels.tolist()]
    for k, (level, row) in enumerate(zip(levels, rows, strict=True)):
        guesses = [answer(values, taxonomy.levels) for values in outputs[k].tolist()]
        share = {
            "accuracy": [a == t[:level] for a, t in zip(answers[k], truth, strict=True)],
            "fine_guess": [g[:level] == t[:level] for g, t in zip(guesses, truth, strict=True)],
        }
        for of in range(1, taxonomy.levels + 1):
            asked = [answer(values, of) for values in outputs[k].tolist()]
            share[f"accuracy_{of}"] = [a == t[:of] for a, t in zip(asked, truth, strict=True)]
        if k + 1 < len(levels):
            for name, j in (("next", k + 1), ("last", -1)):
                stays = [later[:level] == a for later, a in zip(answers[j], answers[k], strict=True)]
                share[f"consistent_{name}"] = stays
        far = [  # where two ways part, they stay apart, whatever the names
            taxonomy.levels - next(i for i, (a, b) in enumerate(zip(g, t, strict=True)) if a != b)
            for g, t in zip(guesses, truth, strict=True)
            if g != t
        ]
        assert {name: Fraction(sum(values), images) for name, values in share.items()} == {
            name: Fraction(row[name]).limit_denominator(100) for name in share
        }
        assert row["mistake_distance"] == pytest.approx(np.mean(far) if far else math.nan, nan_ok=True)
        assert (row["exit"], row["level"]) == (k + 1, level)
        assert math.isnan(row["consistent_next"]) == math.isnan(row["consistent_last"]) == (k + 1 == len(levels))


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (drawn(2, 4, 5), [0, 1, 2, 3], r"wanted outputs \(exits, images, classes\) of \(3, 4, 5\); got \(2, 4, 5\)"),
        (drawn(3, 4, 6), [0, 1, 2, 3], r"of \(3, 4, 5\); got \(3, 4, 6\)"),
        (drawn(3, 2, 5), [0, 5], r"wanted labels from 0 to 4; got '0 to 5'"),
        (drawn(3, 2, 5), [-1, 4], r"wanted labels from 0 to 4; got '-1 to 4'"),
        (drawn(3, 2, 5) / 0, [0, 4], r"wanted finite logits"),
        (drawn(3, 0, 5), [], r"wanted at least one image; got 0"),
    ],
)
def test_metrics_refuse_what_they_cannot_count(outputs: Tensor, labels: list[int], message: str):
    """The argmax of nan is some class, and label -1 the last one: both would give plausible figures."""
    with pytest.raises(ValueError, match=message):
        coarse_to_fine_metrics(Taxonomy(ANIMALS, CLASSES), 3, outputs, torch.tensor(labels, dtype=torch.int64))
