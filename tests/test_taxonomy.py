"""The taxonomy: trees, probabilities that agree between levels, and the levels of exits."""

import json
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from damage import PLAIN, altered, checked, damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from label_trees import ANIMALS, CLASSES, drawn, paths_of, trees
from long_mode import examples
from scipy.sparse import coo_array
from scipy.sparse.csgraph import shortest_path
from typechecker import unchecked

from mtanytime import data
from mtanytime.anytime.taxonomy import CoarseToFineLoss, Taxonomy
from mtanytime.data.images import Tree, leaves

# The tree


def test_groups_of_a_tree_worked_out_by_hand():
    """How leaves of different depths are treated is a choice, so one example is worked out by hand."""
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
        (data.LETTER_TREE, [2, 4, 37], [26, 11]),
        (data.DIGIT_TREE, [2, 10], [4, 6]),
        (data.CIFAR10_TREE, [2, 10], [6, 4]),
        (data.STL10_TREE, [2, 10], [6, 4]),
        (data.CIFAR100_TREE, [20, 100], [5] * 20),
    ],
)
def test_trees_of_the_data_sets(tree: Tree, sizes: list[int], coarsest: list[int]):
    """Most users will use the trees that the library ships."""
    taxonomy = Taxonomy(tree, sorted(leaves(tree)))
    assert [taxonomy.size(level) for level in range(1, taxonomy.levels + 1)] == sizes
    assert taxonomy.groups(1).bincount().tolist() == coarsest
    assert taxonomy.names(1) == tuple(tree)


@given(trees())
def test_groups_partition_the_classes_along_the_tree(drawn_tree: tuple[Tree, tuple[str, ...]]):
    """Two classes share a group exactly if their paths agree to its level; no group is empty, and names are unique."""
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
    """The distance is compared with scipy's shortest paths in the tree as a graph."""
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


def test_names_that_occur_twice_at_a_level_include_their_groups():
    """A plot with two lines of the same name could not be read."""
    tree = {"small": {"round": ["o"], "tall": ["l"]}, "capital": {"round": ["O"], "flat": ["H"]}}
    assert Taxonomy(tree, "olOH").names(2) == ("small / round", "tall", "capital / round", "flat")


@pytest.mark.parametrize(
    ("tree", "classes", "message"),
    [
        ({"a": ["x"], "b": ["y"]}, "xyz", r"tree: expected every class, got a tree without 'z'$"),
        (
            {"a": ["x"], "b": ["y"]},
            "xyzuvwst",
            r"tree: expected every class, got .* without 'z', 'u', 'v', 'w', 's' and 1 more",
        ),
        ({"a": ["x", "z"], "b": ["y"]}, "xy", r"tree: expected no other names than the classes 'x', 'y', got 'z'"),
        (
            {"a": ["x"], "b": {"c": ["y", "x"]}},
            "xy",
            r"tree, group 'b / c': expected each class once .*, got 'x', also in group 'a'",
        ),
        (
            {"a": ["x", "x"], "b": ["y"]},
            "xy",
            r"tree, group 'a': expected each class once in the tree, got 'x', also in group 'a'",
        ),
        ({"a": ["x"], "b": ["y"]}, "xyx", r"classes: expected different names, got 'x' twice"),
        ({"a": ["x"], "b": {"c": []}}, "x", r"tree, group 'b / c': expected at least one group or class, got \[\]"),
        ({"a": ["x"], "b": {}}, "x", r"tree, group 'b': expected at least one group or class, got {}"),
        ({}, "x", r"tree: expected at least one group or class, got {}"),
        ({"all": ["x", "y"]}, "xy", r"tree: expected at least two groups below the root, got \('all',\)"),
        (
            {"a": ["x"], "b": {"c": "y"}},
            "xy",
            r"tree, group 'b / c': expected a dict of groups or a list of class names, got 'y'",
        ),
        ({"a": ["x"], "b": None}, "xy", r"tree, group 'b': expected a dict of groups .*, got None"),
        ({"a": ["x"], "b": {"c": [3]}}, "xy", r"tree, group 'b / c': expected names that are strings, got 3"),
        ({"a": ["x"], "b": [["y"]]}, "xy", r"tree, group 'b': expected names that are strings, got \['y'\]"),
        ({"a": ["x"], "b": {7: ["y"]}}, "xy", r"tree, group 'b': expected names that are strings, got 7"),
        (["x", "y"], "xy", r"tree: expected a dict from group names to groups, got \['x', 'y'\]"),
        (None, "xy", r"tree: expected a dict from group names to groups, got None"),
    ],
)
def test_trees_that_do_not_fit_are_refused_by_name(tree: object, classes: str, message: str):
    """A class in two groups, or in none, would silently be trained on wrong labels."""
    with pytest.raises(ValueError, match=message):
        unchecked(Taxonomy.__init__)(Taxonomy.__new__(Taxonomy), tree, classes)


def test_a_tree_from_json_is_the_tree(tmp_path: Path):
    """Users keep their trees in files, and names may have any letters."""
    tree = {"größer": ANIMALS, "plant": ["ivy"]}
    path = tmp_path / "tree.json"
    path.write_text(json.dumps(tree, ensure_ascii=False), encoding="utf-8")
    classes = (*CLASSES, "ivy")
    read, direct = Taxonomy.from_json(path, classes), Taxonomy(tree, classes)
    assert read.levels == direct.levels == 4
    for level in range(1, 5):
        assert read.names(level) == direct.names(level)
        assert torch.equal(read.groups(level), direct.groups(level))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"a": ["x"], "b": ["y"]',
            r"tree.json: expected a label tree of these classes, got one with an error: .*line 1 column 24",
        ),
        ('{"a": ["x"], "a": ["y"]}', r"tree.json: .* group 'a': expected one entry in its object, got 2 entries"),
        ('{"a": ["x"], "b": ["z"]}', r"tree.json: .* tree: expected every class, got a tree without 'y'"),
        ('{"a": ["x"], "b": 3}', r"tree.json: .* group 'b': expected .*, got 3"),
        ('{"a":' * 100_000, r"tree.json: expected a label tree"),
        ("\xff", r"tree.json: expected a label tree"),
    ],
)
def test_files_without_a_valid_tree_are_refused_with_their_path(tmp_path: Path, text: str, message: str):
    """json alone would keep the last of two groups with one name; the message must name the file and the group."""
    path = tmp_path / "tree.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        Taxonomy.from_json(path, "xy")
    with pytest.raises(FileNotFoundError):
        Taxonomy.from_json(tmp_path / "none.json", "xy")


@settings(max_examples=examples(20))
@given(st.data())
def test_damaged_files(data: st.DataObject) -> None:
    """Random bytes, damaged trees, and trees with parts of other types: each class once, or the file is named."""
    tree = {"animal": {"pet": ["cat", "dog"], "wild": ["fox"]}, "plant": ["ivy"]}
    other = altered(tree, PLAIN).map(lambda content: json.dumps(content, default=str).encode())
    with TemporaryDirectory() as folder:
        path = Path(folder) / "tree.json"
        path.write_bytes(data.draw(st.one_of(damaged(json.dumps(tree).encode()), other)))
        found = checked(lambda path: Taxonomy.from_json(path, ("cat", "dog", "fox", "ivy")), path)
    assert found is None or found.names(found.levels) == ("cat", "dog", "fox", "ivy")


@pytest.mark.parametrize("level", [0, 4, -1, 1.5, "1", None])
def test_unknown_levels_are_refused(level: object):
    """By Python's rules, level -1 would be the last one, and an early exit would have to predict the classes."""
    taxonomy = Taxonomy(ANIMALS, CLASSES)
    asks = [taxonomy.size, taxonomy.names, taxonomy.groups, lambda level: taxonomy.coarse_logits(drawn(5), level)]
    for ask in asks if isinstance(level, int) else [lambda level: unchecked(Taxonomy._index)(taxonomy, level)]:
        with pytest.raises(
            ValueError, match=r"level: expected a whole number from 1 \(coarsest\) to 3 \(classes\), got"
        ):
            ask(level)


def test_groups_are_not_lifted_to_a_finer_level():
    """A group does not determine one of its classes."""
    with pytest.raises(
        ValueError, match=r"to: expected a level from 1 to 2, since groups of level 2 are lifted, got 3"
    ):
        Taxonomy(ANIMALS, CLASSES).lift(torch.tensor([0]), 2, 3)


# Probabilities


@given(trees(), st.integers(0, 2**31), st.sampled_from([0.1, 3.0, 100.0]))
def test_probabilities_sum_to_one_and_agree_between_levels(
    drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, scale: float
):
    """A group's probability is the sum over its classes and over its subgroups, here added one by one."""
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
    """All exits are evaluated at once; the last level must give the plain argmax, even where logits are tied."""
    taxonomy = Taxonomy(ANIMALS, CLASSES)
    logits = drawn(2, 4, 5).float()
    assert torch.equal(taxonomy.coarse_logits(logits, 3), logits)
    one_by_one = torch.stack([torch.stack([taxonomy.coarse_logits(row, 1) for row in rows]) for rows in logits])
    torch.testing.assert_close(taxonomy.coarse_logits(logits, 1), one_by_one, rtol=0, atol=0)
    assert taxonomy.coarse_logits(logits.bfloat16(), 2).dtype == torch.float32
    with pytest.raises(ValueError, match=r"logits: expected \(\.\.\., 5\), one per class, got \(3, 4\)"):
        taxonomy.coarse_logits(drawn(3, 4), 1)


@given(trees(), st.integers(0, 2**31))
def test_the_answer_is_at_least_as_probable_as_the_guess_at_a_class(
    drawn_tree: tuple[Tree, tuple[str, ...]], seed: int
):
    """The reason for the sums: by its own probabilities, a coarse prediction is at least as good as a fine guess."""
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
    """Coarse first, finest last; of two levels, the finer one has as many exits or one more."""
    tree: Tree | list[str] = ["y", "z"]  # grows one level with each turn
    for depth in range(levels - 1):
        tree = {f"g{depth}": tree, f"h{depth}": [f"x{depth}"]}
    taxonomy = Taxonomy(tree, leaves(tree))
    assert taxonomy.levels == levels
    if exits < levels:
        with pytest.raises(
            ValueError, match=rf"exits: expected each level from 1 to {levels} at some exit, got \(.*; add level \d"
        ):
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
        ((1, 1, 3), r"exits: expected each level from 1 to 3 at some exit, got \(1, 1, 3\); add level 2"),
        ((2, 3), r"got \(2, 3\); add level 1"),
        ((1, 2, 2), r"got \(1, 2, 2\); add level 3"),
        ((), r"got \(\); add level 1"),
        (2, r"exits: expected each level from 1 to 3 at some exit, got \(2, 3\); add level 1"),
        (0, r"exits: expected at least one exit, got 0"),
        ((1, 3, 2, 3), r"exits: expected level 3 or finer for exit 3, after exit 2, got level 2"),
        ((1, 2, 3, 4), r"level: expected a whole number from 1 \(coarsest\) to 3 \(classes\), got 4"),
        ((0, 1, 2, 3), r"level: expected a whole number from 1 .*, got 0"),
    ],
)
def test_invalid_levels_of_exits_are_refused(exits: int | tuple[int, ...], message: str):
    """A level without an exit, or predictions that become coarser, must be reported before training."""
    taxonomy = Taxonomy(ANIMALS, CLASSES)
    for use in (taxonomy.assign, lambda exits: CoarseToFineLoss(taxonomy, exits)):
        with pytest.raises(ValueError, match=message):
            use(exits)
