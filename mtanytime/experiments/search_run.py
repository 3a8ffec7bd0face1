"""A search (for a map, or for the start of a head) and the training with what it found, as one run of a recipe."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from mtanytime.checks import require
from mtanytime.experiments.recipe import Settings
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer.fine_tuning import HeadChoice
from mtanytime.transfer.search import MapSearch
from mtanytime.transfer.trials import fewest_trials

Found = TypeVar("Found", MapSearch, HeadChoice)


class SearchRun(Generic[Found]):
    """A search and the training with its map, in the place of a trainer.

    Args:
        search: does the search, or reads a finished one from its folder.
        train: makes the final trainer for what was found.

    Attributes:
        seconds: of the search and of the final training.
        searched: the search, once it is done.
    """

    def __init__(self, search: Callable[[], Found], train: Callable[[Found], Trainer]) -> None:
        self._search, self._train = search, train
        self.searched: Found | None = None
        self.trainer: Trainer | None = None
        self.step = self.epochs = 0  # until the search is done, its steps are not known
        self.origin: dict[str, Any] = {}  # what `runner.run` gives every trainer

    def train(self) -> TrainingResult:
        """Do what remains of both and return the final training's result."""
        self.searched = self._search()
        self.trainer = self._train(self.searched)
        self.trainer.origin = self.origin
        return self.trainer.train()

    @property
    def steps(self) -> int:
        """Steps of the final training; 0 before the search is done."""
        return 0 if self.trainer is None else self.trainer.steps

    @property
    def seconds(self) -> float:
        """Seconds of training so far, of both."""
        parts = (part for part in (self.searched, self.trainer) if part is not None)
        return sum(part.seconds for part in parts)


def check_search(settings: Settings, pairs: int | None) -> None:
    """Validate `trials` and `search_steps` when a recipe is built, long before its search begins. ValueError otherwise.

    `pairs` is the number of pairs for a `trial_search`; None for a `random_search`, which needs one trial.
    """
    least = 1 if pairs is None else fewest_trials(pairs)
    require(settings["trials"] >= least, "trials", f"a whole number >= {least}", settings["trials"])
    require(settings["search_steps"] >= 1, "search_steps", "a whole number >= 1", settings["search_steps"])
