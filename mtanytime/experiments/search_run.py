"""A search (for a map, or for the start of a head) and the training with what it found, as one run of a recipe."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Generic, TypeVar

from torch import nn

from mtanytime.checks import require
from mtanytime.data.images import Task
from mtanytime.experiments.recipe import Settings, run_folder
from mtanytime.training.trainer import Trainer, TrainingResult
from mtanytime.transfer.fine_tuning import HeadChoice
from mtanytime.transfer.search import MapSearch, Source, hold_back
from mtanytime.transfer.trainer import TransferTrainer
from mtanytime.transfer.trials import fewest_trials, random_search, train_with_map, trial_search

SEARCHES = ("random_search", "search_then_train")
# λ of a searched map: the same for each of the best pairs, or each pair's probability of being one of them.
WEIGHTS = ("equal", "probability")
Found = TypeVar("Found", MapSearch, HeadChoice)


def trial_rows(found: MapSearch) -> list[dict[str, Any]]:
    """A row per trial of a search: trial, loss, and the pairs that it matched with their weights, as in `Results`."""
    rows = []
    for trial, (loss, tried) in enumerate(zip(found.losses, found.maps, strict=True)):
        matched = {f"{source}→{target}": f"{weight:.6g}" for (source, target), weight in tried.pairs.items() if weight}
        rows.append({"trial": trial, "loss": loss, "pairs": " ".join(matched), "weights": " ".join(matched.values())})
    return rows


class SearchRun(Generic[Found]):
    """A search and the training with its map, in the place of a trainer.

    Args:
        search: does the search, or reads a finished one from its folder.
        train: makes the final trainer for what was found.
        plain: a trainer whose steps cost as much as those of the run; a dry run uses it.
        planned_steps: steps of all trials and of the final training.

    Attributes:
        seconds: of the search and of the final training.
        searched: the search, once it is done.
    """

    def __init__(
        self,
        search: Callable[[], Found],
        train: Callable[[Found], Trainer],
        plain: Trainer,
        planned_steps: int,
    ) -> None:
        self._search, self._train = search, train
        self.plain, self.planned_steps = plain, planned_steps
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
    def model(self) -> nn.Module:
        """The network of the final training; before the search is done, a fresh one of its kind."""
        return (self.plain if self.trainer is None else self.trainer).model

    @property
    def steps(self) -> int:
        """Steps of the final training; 0 before the search is done."""
        return 0 if self.trainer is None else self.trainer.steps

    @property
    def beta(self) -> float:
        """β of all trainings; 0 where nothing is matched."""
        return getattr(self.plain, "beta", 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of training so far, of both."""
        parts = (part for part in (self.searched, self.trainer) if part is not None)
        return sum(part.seconds for part in parts)


def search_run(
    method: str, settings: Settings, source: Source, make: Callable[[], nn.Module], task: Task, options: Any
) -> SearchRun[MapSearch]:
    """The run of a method with a search for a map, "random_search" or "search_then_train", which searches by trials.

    Args:
        method: the name.
        settings: of the recipe: trials, search_steps, search_weights (one of WEIGHTS; a random search draws its
            own), and learn_channels where the search may learn them.
        source, make, task: see `TransferTrainer`; `make` builds the target.
        options: of `TransferTrainer`, with a folder, or None, for the search and the final training.

    Raises:
        ValueError: another method, classes with one label, or as `check_search` and `TransferTrainer`.
    """
    require(method in SEARCHES, "method", f"one of {list(SEARCHES)}", method)
    place = options["folder"]
    options = {name: value for name, value in options.items() if name != "folder"}
    plain = TransferTrainer(source, make, task, **options)  # refuses bad settings before anything is trained
    search = options | {"folder": run_folder(place, "search"), "steps": settings["search_steps"]}
    search["trials"] = settings["trials"]
    searcher = random_search
    if method == "search_then_train":
        searcher = trial_search
        search["channels"] = {} if settings.get("learn_channels") else None
    check_search(settings, None if searcher is random_search else len(plain.pairs))
    hold_back(task.train, 0.5, options["seed"])  # refuses classes with one label

    def weighted() -> MapSearch:
        found = searcher(source, make, task.train, **search)
        if found.best and settings["search_weights"] == "equal":  # a random search has no best pairs
            return replace(found, map=found.map.only(found.best))
        return found

    def train(found: MapSearch) -> TransferTrainer:
        return train_with_map(source, make, task, None, found.map, plain, run_folder(place, "train"), **options)

    steps = settings["trials"] * settings["search_steps"] + plain.steps
    return SearchRun(weighted, train, plain, steps)


def check_search(settings: Settings, pairs: int | None) -> None:
    """Validate a search's settings when a recipe is built, long before its search begins. ValueError otherwise.

    `pairs` is the number of pairs for a `trial_search`; None for a `random_search`, which needs one trial.
    """
    least = 1 if pairs is None else fewest_trials(pairs)
    require(settings["trials"] >= least, "trials", f"a whole number >= {least}", settings["trials"])
    require(settings["search_steps"] >= 1, "search_steps", "a whole number >= 1", settings["search_steps"])
    weights = settings["search_weights"]
    require(weights in WEIGHTS, "search_weights", f"one of {list(WEIGHTS)}", weights)
