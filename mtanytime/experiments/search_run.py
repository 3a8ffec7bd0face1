"""A search for a map and the training with it, as one run of a recipe."""

from collections.abc import Callable
from typing import Any

from mtanytime.training.trainer import TrainingResult
from mtanytime.transfer.search import MapSearch
from mtanytime.transfer.trainer import TransferTrainer
from mtanytime.transfer.transfer_map import TransferMap


class SearchRun:
    """A search and the training with its map, in the place of a trainer.

    Args:
        search: does the search, or reads a finished one from its folder.
        train: makes the final trainer for a map.

    Attributes:
        seconds: of the search and of the final training.
        searched: the search, once it is done.
    """

    def __init__(self, search: Callable[[], MapSearch], train: Callable[[TransferMap], TransferTrainer]) -> None:
        self._search, self._train = search, train
        self.searched: MapSearch | None = None
        self.trainer: TransferTrainer | None = None
        self.step = self.steps = self.epochs = 0  # until the search is done, its steps are not known
        self.origin: dict[str, Any] = {}  # what `runner.run` gives every trainer

    def train(self) -> TrainingResult:
        """Do what remains of both and return the final training's result."""
        self.searched = self._search()
        self.trainer = self._train(self.searched.map)
        self.trainer.origin = self.origin
        return self.trainer.train()

    @property
    def seconds(self) -> float:
        """Seconds of training so far, of both."""
        parts = (part for part in (self.searched, self.trainer) if part is not None)
        return sum(part.seconds for part in parts)
