"""Search for a map by trials: complete trainings with a few pairs each, judged by their loss on held-out labels.

A lookahead of a few steps values what helps within a few steps (the short-horizon bias of arXiv:1803.02021). A trial is
a complete training. It matches some of the pairs, all with the same weight. `pair_search` proposes the pairs, and
learns from the held-out losses what each pair contributes. The λ of a pair is proportional to the probability that it
is among the best. The channel weights can be learned beforehand, by lookaheads. This is ours, not the paper's.
`search_then_train` adds the training with the map.

`random_search` is the rival: it tries as many random maps and keeps the one with the lowest loss.
"""

import json
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from mtanytime.checks import Words, mismatch, require
from mtanytime.data.images import LabelledImages
from mtanytime.measure.evaluation import predictions
from mtanytime.randomness import derive_seed, generator_for
from mtanytime.training.distributed import Processes
from mtanytime.transfer.meta_networks import Pair
from mtanytime.transfer.pair_search import TRIAL, PairSearch
from mtanytime.transfer.remembered import LIMIT, Memory, Remembered
from mtanytime.transfer.search import (
    SPLIT,
    Data,
    MapSearch,
    Source,
    Target,
    check_count,
    hold_back,
    maker,
    refuse_settings,
    search_map,
    subfolder,
    training_set,
    without_layers,
)
from mtanytime.transfer.teacher import fit_teacher
from mtanytime.transfer.trainer import TransferResult, TransferTrainer
from mtanytime.transfer.transfer_map import TransferMap
from mtanytime.whole_files import write_whole

# From so many pairs on, a trial matches two or more. With fewer pairs, or one per trial, there are only as many choices
# as pairs, so trials cannot show how much of their differences is chance.
_TOLD_APART = 4
# Defaults of the search for channel weights.
_CHANNELS: dict[str, Any] = {"meta_lr": 3e-3, "meta_every": 2}


def trial_search(
    source: Source,
    target: Target,
    data: Data,
    *,
    trials: int = 16,
    kept: int | None = None,
    channels: Mapping[str, Any] | None = None,
    held_out: float = 0.5,
    folder: str | Path | None = None,
    **settings: Any,
) -> MapSearch:
    """Learn from trials which pairs to match, and weight each by its probability of being among the best.

    With few trials, chance decides which pairs just make the cut, so nearly all pairs are matched, doubtful ones with a
    small λ. A map of the best pairs alone, with equal λ, is `found.map.only(found.best)`; on our built-in task, maps by
    probability agree better between seeds.

    A trial is judged by its cross-entropy on the held-out labels after temperature scaling, whatever `loss` it was
    trained with. One that diverges counts with the highest loss so far, but at least with the loss of guessing. All
    trials see the same images, so the source answers each batch once; up to 1 GiB of its answers is kept for that.

    Args:
        source, target, data, held_out: see `search_map`. All trials share one split of the labels.
        trials: how many targets to train; enough for each pair to be tried once. Fewer are trained if there are no
            other pairs to try. Many short ones are better than a few long ones: on our built-in task, 32 of 120 steps
            give maps that agree better between seeds than 16 of 240 (see RESULTS.md).
        kept: how many pairs count as the best; default: three fifths of all, at least one. A trial matches two thirds
            of that number, but at least two of four or more pairs, so that trials tell pairs apart.
        channels: settings of a `search_map` that first learns the channel weights, with equal λ for all pairs; all
            trials and the map then use these weights. An empty dict means the defaults; None, equal weights. The
            search uses the trials' pairs and split of the labels, so it takes no layers, `held_out`, `splits` or
            `seed`.
        folder: where to keep the trials, which are resumed; None keeps them in memory.
        settings: the keyword arguments of `TransferTrainer`: steps or epochs, lr, views, seed, …; with progress=True,
            each trial shows its steps in place of one bar that counts trials. With standardize="network", the default,
            the scale of the features is that of the pairs that a trial matches, so all trials match equally strongly.

    Returns:
        The map, with λ of mean 1 over all pairs (see `PairSearch.probabilities`); the maps of the trials, their losses,
        the effect of each pair, the best pairs, and how sure the search is of them (`gap`).

    Raises:
        ValueError: as `search_map`; too few trials, or `kept` outside 1 … the number of pairs.
        FloatingPointError: all trials diverged.
    """
    check_count("trials", trials)
    fixed = ("held_out", "splits", "seed", "outer", "map", "pairs", "source_layers", "target_layers")
    refuse_settings(channels or {}, *fixed)
    tried = _Trials(source, target, data, held_out, folder, settings)
    count = len(tried.pairs)
    kept = _kept(count) if kept is None else kept
    whole = isinstance(kept, Integral) and 1 <= kept <= count
    require(whole, "kept", f"a number of pairs, 1 to {count}", kept)
    search = PairSearch(tried.pairs, _matched(kept, count), tried.seed, tried.networks)
    least = len(search.first)
    require(trials >= least, "trials", f"at least {least}, so that each of {count} pairs is tried", trials)
    if channels is not None:
        tried.learn_channels(channels)
    for _ in _counted(trials, settings):
        if search.exhausted:
            break
        pairs = tried.next_pairs(search.propose())
        tried.run(tried.map_of(pairs))
        search.add(pairs, tried.losses[-1])
    tried.check()
    by_pair = dict(zip(tried.pairs, search.effects()[0].tolist(), strict=True))
    probabilities = dict(zip(tried.pairs, search.probabilities(kept).tolist(), strict=True))
    found, best = TransferMap(probabilities, tried.channels).scaled(), tuple(search.best(kept))
    gap = search.gap(kept) if kept < count and count >= _TOLD_APART else None
    if gap is not None and gap[0] < 2 * gap[1] and _is_shown(settings):
        tqdm.write(
            f"search: the trials hardly tell the pairs apart (the best {kept} lower the log loss by {gap[0]:.2f} ± "
            f"{gap[1]:.2f} more than the others); more trials, steps or labels may help",
            file=sys.stdout,
        )
    return MapSearch(found, tuple(tried.maps), tried.seconds, tuple(tried.losses), by_pair, best, gap)


def search_then_train(
    source: Source,
    target: Target,
    data: Data,
    test: LabelledImages | None = None,
    *,
    searcher: Callable[..., MapSearch] = trial_search,
    search: Mapping[str, Any] | None = None,
    folder: str | Path | None = None,
    **settings: Any,
) -> tuple[TransferResult, MapSearch]:
    """Learn a map on held-out labels, then train a target on all labels with the map held fixed.

    Args:
        source, target, data, test: see `TransferTrainer`; `target` as for `search_map`. A given network is trained in
            place after the search.
        searcher: `trial_search`, or `search_map`, which learns by lookaheads.
        search: keyword arguments for the searcher alone: held_out, trials or splits, …; its steps or epochs replace
            those of the final training, such as {"trials": 32, "steps": 120} beside steps=240.
        folder: where to keep the runs, which are resumed: the search in its sub-folder "search", the map in "map.json",
            and the final training in "train".
        settings: the keyword arguments of `TransferTrainer` for both.

    Returns:
        The result of the final training, and the search.

    Raises:
        ValueError: as the searcher and `TransferTrainer`, before the search.
    """
    # What only the final training reads, such as the test set, must not fail after the search.
    unchecked = {"teacher": None, "standardize": False}  # slow, and checked by the search
    plain = TransferTrainer(source, maker(target)(), data, test, **dict(settings) | unchecked)
    searched = searcher(source, target, data, folder=subfolder(folder, "search"), **_for_search(settings, search or {}))
    place = subfolder(folder, "train")
    trainer = train_with_map(source, target, data, test, searched.map, plain, place, **settings)
    if folder is not None and Processes().first:
        searched.map.save(subfolder(folder, "map.json"))
    return trainer.train(), searched


def _for_search(settings: Mapping[str, Any], search: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a search; its own steps replace the epochs of the final training, and the other way round."""
    replaced = {other for own, other in (("steps", "epochs"), ("epochs", "steps")) if search.get(own) is not None}
    return {name: value for name, value in settings.items() if name not in replaced} | dict(search)


def train_with_map(
    source: Source,
    target: Target,
    data: Data,
    test: LabelledImages | None,
    found: TransferMap,
    plain: TransferTrainer,
    folder: Path | None,
    **settings: Any,
) -> TransferTrainer:
    """The trainer of a target with a map that was found, for trainings whose settings are those of the search.

    The teacher "probe" is the best one over all sources and layers, as in the search, and not over those that the map
    uses. Raises ValueError as `TransferTrainer`, with the remedy for a folder with the training of another map.

    Args:
        source, target, data, test, folder, settings: see `TransferTrainer`.
        found: the map.
        plain: a trainer of the same sources and data with all layers.
    """
    options = without_layers(settings) | {"map": found, "folder": folder}
    if options.get("teacher", "probe") == "probe":
        options["teacher"], _ = fit_teacher(plain.sources, plain.batches.data, plain.outputs, plain.seed)
    try:
        return TransferTrainer(source, target, data, test, **options)
    except ValueError as error:
        if folder is None or not folder.exists():
            raise
        raise ValueError(f"{error}; the search is kept: remove {folder} to train with its map") from error


def random_search(
    source: Source,
    target: Target,
    data: Data,
    *,
    trials: int,
    held_out: float = 0.5,
    folder: str | Path | None = None,
    **settings: Any,
) -> MapSearch:
    """Draw maps at random, train a target with each, and choose the one with the lowest loss on held-out labels.

    The number of pairs that a map matches is drawn uniformly, then the pairs themselves. Their λ follow a flat
    Dirichlet distribution, scaled to the mean 1 over all pairs. The channels have equal weights. The first of equally
    good maps wins. All trials share one split of the labels.

    Args:
        trials: how many maps to try; with `steps`, the budget.
        source, target, data, held_out, folder, settings: see `trial_search`.

    Raises:
        ValueError: as `trial_search`; `trials` below 1.
        FloatingPointError: all trials diverged.
    """
    check_count("trials", trials)
    tried = _Trials(source, target, data, held_out, folder, settings)
    for trial in _counted(trials, settings):
        tried.run(random_map(tried.pairs, tried.channels, derive_seed(tried.seed, TRIAL, trial)))
    tried.check()
    best = int(np.argmin(tried.losses))
    return MapSearch(tried.maps[best], tuple(tried.maps), tried.seconds, tuple(tried.losses))


def random_map(pairs: Sequence[Pair], channels: Mapping[Pair, Sequence[float]], seed: int) -> TransferMap:
    """A random map with given channel weights; how many pairs, which ones, and their λ (mean 1 over all) are drawn."""
    generator = generator_for(seed)
    count = int(torch.randint(1, len(pairs) + 1, (1,), generator=generator))
    chosen = torch.randperm(len(pairs), generator=generator)[:count]
    exponential = -torch.rand(count, generator=generator, dtype=torch.float64).clamp(min=1e-12).log()
    weights = torch.zeros(len(pairs), dtype=torch.float64)
    weights[chosen] = exponential * len(pairs) / exponential.sum()
    return TransferMap(dict(zip(pairs, weights.tolist(), strict=True)), channels)


def calibrated_cross_entropy(logits: Float[Tensor, "images classes"], labels: Int[Tensor, " images"]) -> float:
    """The cross-entropy in nats after temperature scaling, at the best temperature between 1/100 and 100."""
    from scipy.optimize import minimize_scalar

    logits = logits.double()

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    return float(minimize_scalar(loss, bounds=(-math.log(100), math.log(100)), method="bounded").fun)


class _Trials:
    """Targets, each trained with its own map on one part of the labels, and their losses on the other part."""

    def __init__(
        self,
        source: Source,
        target: Target,
        data: Data,
        held_out: float,
        folder: str | Path | None,
        settings: Mapping[str, Any],
    ) -> None:
        refuse_settings(settings, "outer", "map")
        self._source, self._make, self._folder = source, maker(target), folder
        self._settings = {"progress": False} | dict(settings)
        self.seed: int = self._settings.get("seed", 0)
        self._target, self._data, self._held_out = target, training_set(data), held_out
        self._fit, self._held = hold_back(self._data, held_out, derive_seed(self.seed, SPLIT, 0))
        plain = TransferTrainer(source, self._make(), self._fit, **self._settings)  # to read pairs and channels
        self._settings["teacher"] = plain.teacher  # a probe is fitted once
        if plain.extra_images.unlabelled is not None:
            self._settings["unlabelled"] = plain.extra_images.unlabelled.data  # a folder is read once
        self.pairs, self.networks = list(plain.pairs), list(plain.networks)
        self.channels = TransferMap.uniform(self.pairs, plain.student.matching.source_channels).channels
        self._settings = {key: value for key, value in without_layers(self._settings).items() if key != "arrived"}
        self._diverged = 0
        # All trials have one seed, so the same batches and views. The sources are a third of a step's work.
        self._memories = {name: Memory(network, LIMIT // len(plain.sources)) for name, network in plain.sources.items()}
        self.maps: list[TransferMap] = []
        self.losses: list[float] = []
        self.seconds = 0.0

    def learn_channels(self, settings: Mapping[str, Any]) -> None:
        """Learn the channel weights of all later trials by lookaheads, on the same split of the labels."""
        options = _CHANNELS | self._settings | {"what": True, "where": "off", "pairs": self.pairs} | dict(settings)
        place, first = subfolder(self._folder, "channels"), subfolder(self._folder, "trial0")
        later = place is not None and first.exists() and not place.exists()
        remedy = "choose another folder"
        require(not later, "channels", f"None, as for the trials in {self._folder}", dict(settings), remedy)
        found = search_map(self._source, self._target, self._data, held_out=self._held_out, folder=place, **options)
        self.channels = found.map.channels
        self.seconds += found.seconds

    def map_of(self, chosen: Sequence[Pair]) -> TransferMap:
        """The map that matches only these pairs, with equal λ whose mean over all pairs is 1."""
        return TransferMap(dict.fromkeys(self.pairs, 1.0), self.channels).only(chosen)

    def next_pairs(self, proposed: Sequence[Pair]) -> list[Pair]:
        """The pairs of the next trial: those of its file if it was begun, else the proposed ones, now in its file.

        Proposals depend on rounding, which differs between machines. So a machine that resumes a search
        reads the pairs, and several processes take those of the first.
        """
        processes, pairs = Processes(), list(proposed)
        with processes.together():
            if self._folder is not None and processes.first:
                place = subfolder(self._folder, f"trial{len(self.maps)}")
                file = place.with_suffix(".json")
                stored = _read_pairs(file)
                if len(stored) == len(pairs) and set(stored) <= set(self.pairs):
                    pairs = stored
                elif not (stored and place.exists()):  # else the trainer refuses the proposed ones
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(file, json.dumps(pairs))
        pairs = processes.from_first(pairs)
        return [pair for pair in self.pairs if pair in pairs]

    def run(self, drawn: TransferMap) -> None:
        """Train a target with a map, or read a finished trial, and add its loss on the held-out labels."""
        place = subfolder(self._folder, f"trial{len(self.maps)}")
        trainer = TransferTrainer(self._source, self._make(), self._fit, map=drawn, folder=place, **self._settings)
        for name, source in trainer.sources.items():
            trainer.sources[name] = Remembered(self._memories[name], source.layers)
        try:
            trainer.train()
            loss = self._loss_of(trainer, place)
        except FloatingPointError:
            loss = math.nan
        if not math.isfinite(loss):  # diverged: no better than guessing, or than any trial so far
            self._diverged += 1
            loss = max([math.log(len(self._fit.classes)), *self.losses])
        self.seconds += trainer.seconds
        self.maps.append(drawn)
        self.losses.append(loss)

    def _loss_of(self, trainer: TransferTrainer, place: Path | None) -> float:
        """The loss on the held-out labels, the same in all processes; that of a finished trial is read.

        λ depends on its last digits, which differ between machines.
        """
        processes, file = Processes(), None if place is None else place / "loss.json"
        with processes.together():
            loss = None if file is None or not processes.first else _read_loss(file)
        loss = processes.from_first(loss)
        if loss is None:
            logits = self._settings.get("logits")
            outputs, labels = predictions(trainer.model, self._held, progress=False, logits=logits)
            loss = processes.from_first(calibrated_cross_entropy(outputs[-1], labels))
            if file is not None and math.isfinite(loss) and processes.first:
                write_whole(file, json.dumps(loss))
        return loss

    def check(self) -> None:
        """Raise FloatingPointError if all trials diverged, and warn if more than half of them did."""
        count, remedy = len(self.losses), "a smaller lr or beta may help"
        if self._diverged == count:
            raise FloatingPointError(f"all {count} trials diverged; {remedy}")
        if 2 * self._diverged > count:
            warnings.warn(f"{self._diverged} of {count} trials diverged; {remedy}", stacklevel=3)


def _counted(trials: int, settings: Mapping[str, Any]) -> tqdm:
    """The numbers of the trials, with a progress bar unless `progress` says whether the trials show theirs."""
    return tqdm(range(trials), "search", unit="trial", file=sys.stdout, disable=not _is_shown(settings))


def _is_shown(settings: Mapping[str, Any]) -> bool:
    """Whether the search itself reports on stdout: `progress` says whether each trial does."""
    return "progress" not in settings and Processes().first


def _read_pairs(file: Path) -> list[Pair]:
    """The pairs of a trial that was begun; none without the file. Raises ValueError for a damaged one."""
    if not file.exists():
        return []
    try:
        return [(source, target) for source, target in json.loads(file.read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        remedy = "remove it and the folder of its name"
        raise mismatch(str(file), "the pairs of a trial", Words("a damaged file"), remedy) from error


def _read_loss(file: Path) -> float | None:
    """The loss of a finished trial; None without the file. Raises ValueError for a damaged one."""
    if not file.exists():
        return None
    try:
        return float(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise mismatch(str(file), "the loss of a trial", Words("a damaged file"), "remove it") from error


def fewest_trials(pairs: int) -> int:
    """The least number of trials with which `trial_search` tries each pair, with its default `kept`."""
    return math.ceil(pairs / _matched(_kept(pairs), pairs))


def _kept(pairs: int) -> int:
    return max(1, round(0.6 * pairs))


def _matched(kept: int, pairs: int) -> int:
    return max(2 if pairs >= _TOLD_APART else 1, round(2 / 3 * kept))
