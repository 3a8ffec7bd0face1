"""The run-time check of signatures, which all tests rely on to find wrong types and shapes in the library."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from typechecker import jaxtyped, unchecked

from mtanytime.backbones import Normalized
from mtanytime.data.images import ImageSet
from mtanytime.measure.evaluation import evaluate
from mtanytime.transfer import Lookahead
from mtanytime.transfer.matching import resize_maps

ROWS, COLUMNS = torch.zeros(2, 3), torch.zeros(3, 2)


@jaxtyped
def added(a: Float[Tensor, "n m"], b: Float[Tensor, "n m"], scale: float = 1.0) -> Float[Tensor, "n m"]:
    """The sum; a scale of 2 stands for a result of another shape, and one of 3 for a call of another function."""
    if scale == 3.0:
        added(a.T, b.T)
    return (a + b)[:1] if scale == 2.0 else a + b


@jaxtyped
def zeros(size: int, wrong: int = 0) -> tuple[Float[Tensor, "{size}"], list[int]]:
    """Vectors whose length an argument names."""
    return torch.zeros(size + wrong), [size]


@jaxtyped
def counted(count: int) -> Iterator[int]:
    """A generator."""
    yield from range(count)


@jaxtyped
@dataclasses.dataclass
class Pair:
    """A dataclass, whose arguments are checked too."""

    first: Float[Tensor, "n 3"]
    second: Float[Tensor, "n 3"]

    @property
    @jaxtyped
    def name(self) -> str:
        """Something of another type."""
        return 3  # type: ignore[return-value]

    @staticmethod
    @jaxtyped
    def of(count: int) -> "Pair":
        """A class that is named before it exists."""
        return Pair(torch.zeros(count, 3), torch.zeros(count, 3))


@pytest.mark.parametrize(
    "call",
    [
        lambda: added(ROWS, COLUMNS),  # axes of two arguments
        lambda: added(ROWS, ROWS, 2.0),  # axes of an argument and of the result
        lambda: added(ROWS, ROWS.long()),
        lambda: added(ROWS, [1.0]),
        lambda: added(ROWS, ROWS, "1"),
        lambda: zeros(3, 1),
        lambda: zeros("3"),
        lambda: counted("3"),
        lambda: Pair(torch.zeros(2, 3), torch.zeros(4, 3)),
        lambda: Pair("first", torch.zeros(4, 3)),
        lambda: Pair.of(2).name,
        lambda: Pair.of("2"),
    ],
)
def test_what_is_wrong_is_refused(call: Callable[[], Any]) -> None:
    """Types and axes, of arguments, results, dataclasses, generators, properties and static methods."""
    with pytest.raises(Exception, match=r"(?i)violates type hint|type-check error"):
        call()


def test_what_is_correct_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    """An integer for a float; other axes within a call and in the next one; and anything where checks are off."""
    assert added(ROWS, ROWS, 1).shape == ROWS.shape
    assert added(COLUMNS, COLUMNS, 3).shape == COLUMNS.shape
    assert len(zeros(4)[0]) == 4
    assert list(counted(3)) == [0, 1, 2]
    assert len(Pair.of(4).second) == 4
    assert unchecked(added)(ROWS, ROWS, 2.0).shape == (1, 3)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert added(ROWS, ROWS, 2.0).shape == (1, 3)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "function",
    [evaluate, ImageSet.__init__, Lookahead.__init__, Normalized.forward, resize_maps],
    ids=lambda function: function.__qualname__,
)
def test_the_library_is_checked(function: Callable) -> None:
    """Functions, methods and dataclasses of the library are those of the import hook, with this check."""
    assert unchecked(function) is not function
    assert function.__code__.co_filename.endswith("typechecker.py")
