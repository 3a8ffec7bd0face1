"""Label trees for the tests of the taxonomy task: one by hand, random ones, and paths through them."""

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from mtanytime.data.images import Tree

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
    """A random tree, in which group names repeat, and its classes in a random order."""
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
    """The path from the root to a class, found by search."""
    if isinstance(tree, list):
        return (name,) if name in tree else ()
    return next(((group, *rest) for group, child in tree.items() if (rest := path_of(child, name))), ())


def paths_of(tree: Tree, classes: Sequence[str]) -> list[tuple[str, ...]]:
    """The path to every class, extended to the length of the longest one."""
    paths = [path_of(tree, name) for name in classes]
    deepest = max(map(len, paths))
    return [path + (path[-1],) * (deepest - len(path)) for path in paths]


def drawn(*shape: int, seed: int = 0, scale: float = 3.0) -> Tensor:
    """Random logits in float64."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
