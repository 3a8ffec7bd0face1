"""Search by trials: a linear model of the held-out loss finds the pairs that help; its rival draws maps at random."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from project import ROOT
from sklearn.linear_model import BayesianRidge
from torch.nn import functional as F
from typechecker import unchecked

from mtanytime.data.batches import crop_flip
from mtanytime.experiments.search_run import trial_rows
from mtanytime.features import tap
from mtanytime.transfer import (
    PAPER,
    FreshBatch,
    PairSearch,
    TransferMap,
    TransferTrainer,
    extra_images,
    random_search,
    search_map,
    search_then_train,
    teacher,
    trial_search,
)
from mtanytime.transfer import trials as module
from mtanytime.transfer.pair_search import later
from mtanytime.transfer.remembered import Memory
from mtanytime.transfer.trials import calibrated_cross_entropy, random_map

RESULTS = ROOT / "data/results"
SOURCE, DATA = tiny.made(5, seed=2).eval(), tiny.images(24)
SETTINGS = PAPER | {"what": False, "where": "off", "epochs": 1, "batch_size": 6, "lr": 0.05}
SETTINGS |= {"device": "cpu", "progress": False}


def target() -> tiny.TinyNet:
    """The network to train."""
    return tiny.made(4, seed=1)


def planted(
    monkeypatch: pytest.MonkeyPatch, helpful: Sequence[int], pairs: int = 15, noise_only: bool = False, seed: int = 5
) -> list[list[int]]:
    """Replace trainings by losses that the helpful pairs lower and others raise; the pairs of each trial, by number."""
    tried: list[list[int]] = []
    noise = np.random.default_rng(seed)

    def init(self: module._Trials, *_: object) -> None:
        self.seed, self.maps, self.losses, self.seconds, self._folder, self._diverged = 0, [], [], 0.0, None, 0
        self.pairs = [(f"s{i}", "t") for i in range(pairs)]
        self.networks = [""]
        self.channels = {pair: [0.5, 0.5] for pair in self.pairs}

    def run(self: module._Trials, drawn: TransferMap) -> None:
        matched = [i for i, weight in enumerate(drawn.pairs.values()) if weight > 0]
        tried.append(matched)
        gain = 0.0 if noise_only else sum(0.1 if i in helpful else -0.1 for i in matched)
        self.maps.append(drawn)
        self.losses.append(float(np.exp(1 - gain + 0.02 * noise.standard_normal())))

    monkeypatch.setattr(module._Trials, "__init__", init)
    monkeypatch.setattr(module._Trials, "run", run)
    return tried


def test_pairs_that_help_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nine of fifteen pairs help: trials find all but one, after each pair was tried once, and try them more often."""
    helpful = [1, 3, 4, 6, 7, 9, 11, 12, 14]
    tried = planted(monkeypatch, helpful)
    found = trial_search(SOURCE, target, DATA, **SETTINGS)
    kept = {int(source.removeprefix("s")) for source, _ in found.best}
    assert len(kept) == len(found.best) == 9
    assert len(kept & set(helpful)) >= 8  # 5.4 by chance; sixteen losses for fifteen effects
    weights = list(found.map.pairs.values())
    assert sum(weights) == pytest.approx(15)
    assert max(weights) <= 15 / 9 + 1e-9  # of a pair that is surely among the best
    assert sum(weights[i] for i in helpful) > 0.8 * 15  # three fifths by chance
    assert {i for matched in tried[:3] for i in matched} == set(range(15))
    assert all(len(matched) == 6 for matched in tried)
    later = [i for matched in tried[3:] for i in matched]
    assert sum(i in helpful for i in later) / len(later) > 0.75  # three fifths by chance
    assert min(found.effects[f"s{i}", "t"] for i in kept & set(helpful)) > 0


def test_a_loop_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search without a trainer: a loop that trains in its own way proposes and finds the same pairs."""
    helpful = [1, 3, 4, 6, 7, 9, 11, 12, 14]
    tried = planted(monkeypatch, helpful)
    found = trial_search(SOURCE, target, DATA, **SETTINGS)
    search = PairSearch(list(found.map.pairs), matched=6)
    for loss in found.losses:
        search.add(search.propose(), loss)
    assert tuple(search.best(9)) == found.best
    assert search.probabilities(9) * 15 / 9 == pytest.approx(np.array(list(found.map.pairs.values())))
    assert search.effects()[0].tolist() == list(found.effects.values())
    assert len(tried) == len(search.losses) == 16


def test_a_useless_source_layer_is_left_out() -> None:
    """Each of its pairs is in a few trials only, but all of them do harm: the map of nine has few or none of them."""
    pairs = [(f"layer{i}", f"conv{j}") for i in range(3) for j in range(5)]
    kept = []
    for seed in range(10):
        search, noise = PairSearch(pairs, matched=6, seed=seed), np.random.default_rng(seed)
        for _ in range(16):
            proposed = search.propose()
            harm = sum(source == "layer1" for source, _ in proposed)
            search.add(proposed, math.exp(0.1 * harm + 0.1 * noise.standard_normal()))
        kept.append(sum(source == "layer1" for source, _ in search.best(9)))
    assert sum(kept) <= 5  # 30 by chance, 18 by a model without effects of whole layers


def test_the_likelier_model_decides() -> None:
    """Losses that follow pairs, not layers, are explained by the pairs alone, as in a regression by hand."""
    pairs = [(f"layer{i}", f"conv{j}") for i in range(2) for j in range(2)]
    gain = {("layer0", "conv0"): 0.5, ("layer0", "conv1"): -0.5, ("layer1", "conv0"): -0.4, ("layer1", "conv1"): 0.4}
    search = PairSearch(pairs, matched=1)
    for pair in pairs * 3:
        search.add([pair], math.exp(-gain[pair]))
    columns = np.column_stack([np.eye(4), 3 * later(pairs)])
    fitted = BayesianRidge().fit(np.tile(np.eye(4), (3, 1)) @ columns, list(gain.values()) * 3)
    assert search.effects()[0] == pytest.approx(columns @ fitted.coef_)


def test_a_search_knows_when_its_trials_tell_nothing() -> None:
    """The gap is at least two standard deviations in all stored searches, and seldom when their losses are shuffled."""
    pairs = [(str(stage), str(layer)) for stage in (1, 2, 3) for layer in (2, 6, 13, 20, 27)]
    table = pd.read_csv(RESULTS / "trials_builtin_search.csv", comment="#").fillna({"teacher": "none"})
    losses = table.calibrated_loss.fillna(table.held_out_loss)
    by = [table[column] for column in ("seed", "beta", "teacher", "splits", "proposed_by")]
    by.append(table.groupby(by).cumcount() // 16)

    def clear(trials: pd.DataFrame, losses: list[float]) -> bool:
        search = PairSearch(pairs, 6)
        for matched, loss in zip(trials.pairs, losses, strict=True):
            search.add([tuple(pair.split("-")) for pair in matched.split()], loss)
        gap, deviation = search.gap(9)
        return gap >= 2 * deviation

    searches = [(trials, losses[trials.index].tolist()) for _, trials in table.groupby(by) if len(trials) >= 12]
    random = np.random.default_rng(0)
    assert len(searches) == 29
    assert all(clear(*search) for search in searches)
    shuffled = [clear(trials, random.permutation(losses).tolist()) for trials, losses in searches for _ in range(2)]
    assert np.mean(shuffled) < 0.4


def test_the_gap_of_a_search_by_hand() -> None:
    """The mean of the best pairs minus that of the others, under the posterior of all effects."""
    search = PairSearch([("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")], matched=1)
    for pair, loss in zip(search.pairs * 2, (0.5, 0.6, 2.0, 1.9, 0.7, 0.5, 2.2, 1.8), strict=True):
        search.add([pair], loss)
    mean, covariance = search.effects()
    draws = np.random.default_rng(0).multivariate_normal(mean, covariance, 200_000)
    gaps = draws[:, :2].mean(1) - draws[:, 2:].mean(1)
    assert set(search.best(2)) == {("a", "c"), ("a", "d")}
    assert search.gap(2) == pytest.approx((gaps.mean(), gaps.std()), rel=0.01)
    with pytest.raises(ValueError, match="count: expected a number of pairs, 1 to 3, got 4"):
        search.gap(4)


@pytest.mark.parametrize("tells", [True, False])
def test_a_search_says_so_when_its_trials_tell_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tells: bool
) -> None:
    """Beside the bar of its trials, and in the result."""
    planted(monkeypatch, [1, 3, 4, 6, 7, 9, 11, 12, 14] if tells else [], noise_only=not tells)
    settings = {key: value for key, value in SETTINGS.items() if key != "progress"}
    gap, deviation = trial_search(SOURCE, target, DATA, **settings).gap
    assert (gap >= 2 * deviation) == tells
    assert ("the trials hardly tell the pairs apart" in capsys.readouterr().out) != tells
    assert trial_search(SOURCE, target, DATA, kept=15, **SETTINGS).gap is None


def test_the_probability_to_be_among_the_best() -> None:
    """As often as in numpy's draws of the posterior; all pairs are surely among the best of all."""
    search = PairSearch([("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")], matched=1)
    for pair, loss in zip(search.pairs * 2, (0.5, 0.6, 1.0, 1.9, 0.7, 0.5, 0.6, 1.8), strict=True):
        search.add([pair], loss)
    draws = np.random.default_rng(1).multivariate_normal(*search.effects(), 200_000)
    among = draws >= np.sort(draws, axis=1)[:, -2:-1]
    found = search.probabilities(2)
    assert found == pytest.approx(among.mean(0), abs=0.015)  # three standard errors of 10,000 draws
    assert found.sum() == pytest.approx(2)
    assert found[3] < found[2] < 0.1 < 0.9 < found[0] < found[1]
    assert np.array_equal(found, search.probabilities(2))
    assert search.probabilities(4).tolist() == [1, 1, 1, 1]
    alone, equal = PairSearch([("a", "c")], matched=1), PairSearch(search.pairs, matched=2)
    alone.add([("a", "c")], 0.5)
    assert alone.probabilities(1).tolist() == [1]
    for _ in range(6):
        equal.add(equal.propose(), 0.7)  # all trials alike
    assert equal.probabilities(2).sum() == pytest.approx(2)
    assert equal.effects()[0] == pytest.approx(np.zeros(4), abs=1e-6)
    for count in (0, 5, 1.5):
        with pytest.raises(ValueError, match=f"count: expected a number of pairs, 1 to 4, got {count}"):
            unchecked(PairSearch.probabilities)(search, count)
        with pytest.raises(ValueError, match=f"count: expected a number of pairs, 1 to 4, got {count}"):
            unchecked(PairSearch.best)(search, count)


def test_maps_of_probabilities_agree_better() -> None:
    """Of searches with the same effects and other noise: which pairs are the last of the best is chance."""
    pairs = [(f"layer{i}", f"conv{j}") for i in range(3) for j in range(5)]
    effects = np.random.default_rng(0).normal(0, 0.1, len(pairs))

    def found(seed: int) -> tuple[list[float], list[float]]:
        search, noise = PairSearch(pairs, matched=6, seed=seed), np.random.default_rng(seed)
        for _ in range(24):
            proposed = search.propose()
            gain = sum(effects[pairs.index(pair)] for pair in proposed)
            search.add(proposed, math.exp(-gain + 0.1 * noise.standard_normal()))
        best = search.best(9)
        return search.probabilities(9).tolist(), [float(pair in best) for pair in pairs]

    by_probability, equal = (
        np.corrcoef(maps)[np.triu_indices(10, 1)].mean()
        for maps in zip(*(found(seed) for seed in range(10)), strict=True)
    )
    assert by_probability > equal + 0.1


def test_bad_trials_are_refused() -> None:
    """A trial without a finite loss would spoil the model of all pairs; the caller decides what it counts."""
    with pytest.raises(ValueError, match="matched: expected a number of pairs, 1 to 2, got 3"):
        PairSearch([("a", "b"), ("a", "c")], matched=3)
    with pytest.raises(ValueError, match=r"matched: expected a number of pairs, 1 to 2, got 1\.5"):
        unchecked(PairSearch.__init__)(PairSearch.__new__(PairSearch), [("a", "b"), ("a", "c")], 1.5)
    with pytest.raises(ValueError, match="pairs: expected each pair once, got 1 again"):
        PairSearch([("a", "b"), ("a", "b")], matched=1)
    with pytest.raises(ValueError, match="loss: expected a finite number >= 0, got nan"):
        PairSearch([("a", "b")], matched=1).add([("a", "b")], float("nan"))
    with pytest.raises(ValueError, match=r"pairs: expected pairs of the search, got \[\('a', 'c'\)\]"):
        PairSearch([("a", "b")], matched=1).add([("a", "c")], 1.0)


def test_no_pairs_are_tried_twice() -> None:
    """The same training would be repeated, and its loss counted as news; after all of them, a search may go on."""
    search = PairSearch([(source, target) for source in "abc" for target in "de"], matched=3)
    proposed = []
    for trial in range(21):
        assert search.exhausted == (trial >= 20)  # of six pairs, twenty sets of three
        proposed.append(frozenset(search.propose()))
        search.add(list(proposed[-1]), 0.5 if ("a", "d") in proposed[-1] else 2.0)  # the model is soon sure
    assert len(set(proposed[:20])) == 20
    assert proposed[20] in proposed[:20]


def test_a_search_ends_when_all_pairs_were_tried() -> None:
    """With two pairs of four per trial, there are six trials."""
    found = trial_search(SOURCE, target, DATA, trials=9, kept=1, **SETTINGS)
    assert len(found.losses) == len({tuple(one.pairs.items()) for one in found.maps}) == 6
    assert [sum(weight > 0 for weight in one.pairs.values()) for one in found.maps] == [2] * 6


@pytest.mark.parametrize(("pairs", "kept"), [(4, None), (4, 1), (5, 3), (15, 1), (15, 3)])
def test_noise_is_seldom_taken_for_knowledge(monkeypatch: pytest.MonkeyPatch, pairs: int, kept: int | None) -> None:
    """With one pair per trial, each loss alone was its pair's effect, and every search was sure of it."""
    clear = []
    for seed in range(20):
        planted(monkeypatch, [], pairs, noise_only=True, seed=seed)
        gap, deviation = trial_search(SOURCE, target, DATA, kept=kept, **SETTINGS).gap
        clear.append(gap >= 2 * deviation)
    assert np.mean(clear) <= 0.4


def test_three_pairs_are_not_told_apart_from_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are only as many choices as pairs: the search says nothing of how sure it is."""
    planted(monkeypatch, [], 3, noise_only=True)
    assert trial_search(SOURCE, target, DATA, **SETTINGS).gap is None


def test_pairs_of_a_json_file() -> None:
    """They are lists there, and count like tuples."""
    pairs = [(source, target) for source in "ab" for target in "cd"]
    of_tuples, of_lists = (PairSearch(pairs, matched=2) for _ in range(2))
    for trial in range(6):
        proposed = of_tuples.propose()
        of_tuples.add(proposed, 0.5 + trial)
        of_lists.add([list(pair) for pair in proposed], 0.5 + trial)
    assert of_lists.effects()[0].tolist() == of_tuples.effects()[0].tolist() != [0] * 4


def test_how_much_later() -> None:
    """The depths of three and five layers, by hand; each of several sources has its own first and last layer."""
    by_hand = [0, 0.25, 0.5, 0.75, 1, 0, 0, 0, 0.25, 0.5, 0, 0, 0, 0, 0]
    assert later([(f"s{i}", f"t{j}") for i in range(3) for j in range(5)]).tolist() == by_hand
    assert later([("a/s0", "t0"), ("a/s1", "t0"), ("a/s1", "t1"), ("b/s0", "t1")]).tolist() == [0, 0, 0, 0.5]
    assert later([("s", "t")]).tolist() == [0]
    slashes = [(f"{layer}/conv", "t0") for layer in ("x", "y", "z")] + [("x/conv", "t1")]
    assert later(slashes, networks=[""]).tolist() == [0, 0, 0, 1]  # three layers of one network
    assert later(slashes).tolist() == [0, 0, 0, 0.5]  # of three networks, by their names
    mixed = [("stem", "t0"), ("body/conv", "t0"), ("body/conv", "t1"), ("stem", "t1")]
    assert later(mixed).tolist() == [0, 0, 0, 1]  # not all have a network's name


def test_what_pairs_have_in_common_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Early layers of the source spoil late ones of the target: sixteen trials show it for all such pairs."""
    planted(monkeypatch, helpful=(), pairs=25)
    monkeypatch.setattr(module._Trials, "__init__", _grid(module._Trials.__init__))
    run = module._Trials.run

    def spoiled(self: module._Trials, drawn: TransferMap) -> None:
        run(self, drawn)
        matched = np.array([weight > 0 for weight in drawn.pairs.values()])
        self.losses[-1] = float(np.exp((later(self.pairs) * matched).sum()))

    monkeypatch.setattr(module._Trials, "run", spoiled)
    found = trial_search(SOURCE, target, DATA, trials=16, kept=15, **SETTINGS)
    effects = np.array(list(found.effects.values()))
    late = later(list(found.effects)) > 0
    assert effects[late].max() < effects[~late].min()
    assert np.corrcoef(effects, -later(list(found.effects)))[0, 1] > 0.9


def _grid(init: Callable[..., None]) -> Callable[..., None]:
    """Five layers of a source with five of a target, in place of the pairs that `init` gives."""

    def of_grid(self: module._Trials, *arguments: object) -> None:
        init(self, *arguments)
        self.pairs = [(f"s{i}", f"t{j}") for i in range(5) for j in range(5)]
        self.channels = {pair: [0.5, 0.5] for pair in self.pairs}

    return of_grid


def test_a_trial_sees_its_part_of_the_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is that of the held-out images, none of which was trained on, by a second computation."""
    trainers: list[TransferTrainer] = []
    build = TransferTrainer._build

    def recorded(self: TransferTrainer) -> None:
        trainers.append(self)
        build(self)

    monkeypatch.setattr(TransferTrainer, "_build", recorded)
    found = trial_search(SOURCE, target, DATA, trials=2, kept=3, **SETTINGS)
    seen = {image.numpy().tobytes() for image in trainers[-1].batches.data.images}
    held = [i for i, image in enumerate(DATA.images) if image.numpy().tobytes() not in seen]
    assert len(held) == len(seen) == 12
    with torch.no_grad():
        logits = trainers[-1].model.eval()(DATA.images[held].float() / 255)
    by_temperature = [F.cross_entropy(logits / t, DATA.labels[held]).item() for t in np.geomspace(0.01, 100, 4000)]
    assert found.losses[-1] == pytest.approx(min(by_temperature), rel=1e-4)


def test_being_too_sure_costs_nothing() -> None:
    """A network's loss does not depend on the scale of its logits; worse than a guess it cannot be."""
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 4
    logits[range(50), labels] += 1
    loss = calibrated_cross_entropy(logits, labels)
    assert loss < F.cross_entropy(logits, labels) < F.cross_entropy(5 * logits, labels)
    assert calibrated_cross_entropy(5 * logits, labels) == pytest.approx(loss, rel=1e-4)
    assert calibrated_cross_entropy(-logits, labels) == pytest.approx(np.log(4), rel=0.01)


def test_a_source_is_run_once_for_all_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """All trials have the same images, so the source's answers are kept: the same losses, and no more passes."""
    passes: list[int] = []
    source = tiny.made(5, seed=2).eval()
    source.register_forward_hook(lambda _, images, __: passes.append(len(images[0])))
    options = {"trials": 5, "kept": 3} | SETTINGS | {"views": 4, "augment": crop_flip()}

    def search(limit: int, **changed: Any) -> tuple[tuple[float, ...], int]:
        monkeypatch.setattr(module, "LIMIT", limit)
        passes.clear()
        found = trial_search(source, target, DATA, **options | changed)
        return found.losses, passes.count(6 + 4)  # of a step: six labelled images and four views

    steps = 2  # of 12 images
    assert search(2**30) == (search(0)[0], steps)
    assert search(0)[1] == 5 * steps
    one_batch = (6 + 4) * 4 * (3 * 8 * 8 + 5 * 8 * 8 + 10 * 4 * 4)  # bytes of images and maps
    assert search(one_batch)[1] == steps + 4
    two = search(2**30, precision="bfloat16")
    assert two == (search(0, precision="bfloat16")[0], steps)


def test_a_memory_tells_batches_apart() -> None:
    """Batches with the same sum are not taken for each other, and an image that changes in place is not either."""
    memory = Memory(tap(SOURCE, ["first", "second"]))
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for batch in (images, images.flip(0), images.clone(), images.double().float()):
        output, maps = memory.answer(batch)
        expected, of_layers = tap(SOURCE, ["first", "second"])(batch)
        assert torch.equal(output, expected)
        assert all(torch.equal(maps[layer], of_layers[layer]) for layer in of_layers)
    known = memory.answer(images)[0]
    assert memory.answer(images.clone())[0] is known
    images[0, 0, 0, 0] += 1
    assert not torch.equal(memory.answer(images)[0], known)


def test_a_trial_that_diverges_is_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One map of several that diverges must not end the search; it counts as no better than a guess."""
    step = TransferTrainer.train_on_batch

    def diverging(self: TransferTrainer, *batch: torch.Tensor) -> dict[str, float]:
        if ("first", "first") in self.pairs:
            self._finite(float("nan"), "loss")
        return step(self, *batch)

    monkeypatch.setattr(TransferTrainer, "train_on_batch", diverging)
    found = trial_search(SOURCE, target, DATA, trials=5, kept=1, **SETTINGS)
    diverged = [loss for one, loss in zip(found.maps, found.losses, strict=True) if one.pairs["first", "first"] > 0]
    assert diverged
    assert min(diverged) >= np.log(3)
    assert ("first", "first") not in found.best
    assert found.map.pairs["first", "first"] < 1  # what a pair has by chance


@pytest.mark.parametrize("search", [trial_search, random_search])
def test_trials_that_all_diverge(search: Callable[..., Any]) -> None:
    """Equal losses would give the first pairs of the list as the map. A search of which most diverge says so."""
    with pytest.raises(FloatingPointError, match=r"^all 4 trials diverged; a smaller lr or beta may help$"):
        search(SOURCE, target, DATA, trials=4, **SETTINGS | {"lr": 1e30})
    with pytest.raises(FloatingPointError, match=r"^all 4 trials diverged"):
        search_then_train(SOURCE, target, DATA, searcher=search, search={"trials": 4, "lr": 1e30}, **SETTINGS)


def test_a_search_of_which_most_trials_diverge(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on, with a warning."""
    step, trained = TransferTrainer.train_on_batch, []

    def diverging(self: TransferTrainer, *batch: torch.Tensor) -> dict[str, float]:
        trained.extend([self] * (self not in trained))
        if len(trained) < 4:
            self._finite(float("nan"), "loss")
        return step(self, *batch)

    monkeypatch.setattr(TransferTrainer, "train_on_batch", diverging)
    with pytest.warns(UserWarning, match=r"^3 of 4 trials diverged; a smaller lr or beta may help$"):
        found = trial_search(SOURCE, target, DATA, trials=4, kept=1, **SETTINGS)
    rows = trial_rows(found)
    assert [row["trial"] for row in rows] == [0, 1, 2, 3]
    assert [row["loss"] for row in rows] == [pytest.approx(math.log(3))] * 3 + [found.losses[3]]
    assert {len(row["pairs"].split()) for row in rows} == {2}


def test_what_a_search_does_not_take_from_the_final_training(tmp_path: Path) -> None:
    """Its own steps replace epochs, and what arrived is measured at the end alone."""
    options = {name: value for name, value in SETTINGS.items() if name != "steps"} | {"epochs": 2}
    options |= {"arrived": tiny.images(12, seed=3), "folder": tmp_path}
    result, _ = search_then_train(SOURCE, target, DATA, search={"trials": 4, "steps": 1}, **options)
    assert len(result.arrived) > 0
    assert not list((tmp_path / "search").rglob("arrived.csv"))
    assert pd.read_csv(tmp_path / "search" / "trial0" / "log.csv")["step"].max() == 1


def test_search_then_train_by_trials(tmp_path: Path) -> None:
    """The final training has the map of the trials and no other layers, and what is finished is read again."""
    options = SETTINGS | {"search": {"trials": 4, "kept": 1}, "folder": tmp_path}
    options |= {"source_layers": ["first", "second"], "target_layers": ["first", "second"]}
    result, found = search_then_train(SOURCE, target, DATA, tiny.images(9, seed=3), **options)
    assert list(result.map.pairs) == [pair for pair, weight in found.map.pairs.items() if weight > 0]
    assert len(found.losses) == 4
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("log.csv")}
    _, again = search_then_train(SOURCE, target, DATA, tiny.images(9, seed=3), **options)
    assert again.losses == found.losses
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("log.csv")} == before


def test_a_search_goes_on_with_its_own_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine's last bits may propose other pairs; the trials that were begun keep theirs."""
    found = trial_search(SOURCE, target, DATA, trials=6, kept=3, folder=tmp_path, **SETTINGS)
    (tmp_path / "trial5.json").unlink()  # not begun
    monkeypatch.setattr(PairSearch, "propose", lambda search: search.pairs[-2:])
    (tmp_path / "trial5").rename(tmp_path / "elsewhere")
    again = trial_search(SOURCE, target, DATA, trials=6, kept=3, folder=tmp_path, **SETTINGS)
    assert again.maps[:5] == found.maps[:5]
    assert again.losses[:5] == found.losses[:5]
    assert min(list(again.maps[5].pairs.values())[-2:]) > 0


def test_pairs_of_another_search_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of a trial that was not begun, with as many pairs as another `kept` needs, gives way."""
    for name in ("trial0", "trial3"):
        (tmp_path / f"{name}.json").write_text(json.dumps([["first", "first"]]))
    found = trial_search(SOURCE, target, DATA, trials=6, folder=tmp_path, **SETTINGS)
    for i, tried in enumerate(found.maps):
        stored = [tuple(pair) for pair in json.loads((tmp_path / f"trial{i}.json").read_text())]
        assert set(stored) == {pair for pair, weight in tried.pairs.items() if weight > 0}


def test_a_finished_trial_keeps_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine computes other last digits, which would change λ, and the training with the map be refused."""
    options = SETTINGS | {"search": {"trials": 6, "kept": 2}, "folder": tmp_path}
    _, found = search_then_train(SOURCE, target, DATA, **options)
    monkeypatch.setattr(module, "calibrated_cross_entropy", lambda *_: 9.0)
    _, again = search_then_train(SOURCE, target, DATA, **options)
    assert (again.losses, again.map) == (found.losses, found.map)
    (tmp_path / "search" / "trial0" / "loss.json").write_text("{}")
    with pytest.raises(ValueError, match=r"loss\.json: expected the loss of a trial, got a damaged file; remove it"):
        search_then_train(SOURCE, target, DATA, **options)


def test_more_trials_for_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may find another map, whose training needs the place of the one before; the search is not lost."""
    options = SETTINGS | {"test": tiny.images(9, seed=3), "folder": tmp_path}
    losses = iter([0.1, 9.0, 9.0, 0.01])  # the first trial is the best of two, and then the last of four
    monkeypatch.setattr(module, "calibrated_cross_entropy", lambda *_: next(losses))
    search_then_train(SOURCE, target, DATA, search={"trials": 2, "kept": 3}, **options)
    before = (tmp_path / "map.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds another run .* the search is kept: remove .*train to train with"):
        search_then_train(SOURCE, target, DATA, search={"trials": 4, "kept": 3}, **options)
    assert (tmp_path / "map.json").read_bytes() == before


def test_the_final_training_has_the_teacher_of_the_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best probe of all sources and layers, not the best of those that the map uses."""
    two, read = {"a": SOURCE, "b": tiny.made(5, seed=3).eval()}, []
    fit = teacher.fit_teacher
    both = lambda sources, *rest: read.append([*sources]) or fit(sources, *rest)  # noqa: E731
    monkeypatch.setattr(teacher, "fit_teacher", both)
    monkeypatch.setattr(module, "fit_teacher", both)
    options = SETTINGS | {"teacher": "probe", "search": {"trials": 8, "kept": 1}}
    search_then_train(two, target, DATA, **options)
    assert read == [["a", "b"], ["a", "b"]]  # for the trials, on their part of the labels, and for the end


def test_a_damaged_file_of_a_trial(tmp_path: Path) -> None:
    """It is named; after a loss of power a file may be empty."""
    (tmp_path / "trial0.json").write_text("")
    with pytest.raises(ValueError, match=r"trial0\.json: expected the pairs of a trial, got a damaged file; remove it"):
        trial_search(SOURCE, target, DATA, trials=6, kept=1, folder=tmp_path, **SETTINGS)


def test_sources_that_a_map_leaves_out_are_not_needed() -> None:
    """With one pair, a trial uses one of two sources; the other is left out instead of being refused."""
    two = {"a": SOURCE, "b": tiny.made(5, seed=3).eval()}
    found = trial_search(two, target, DATA, trials=8, kept=1, **SETTINGS)
    assert {pair[0].split("/")[0] for pair in found.map.pairs} == {"a", "b"}
    trainer = TransferTrainer(two, target, DATA, map=found.map.only(found.best), **SETTINGS)
    assert len(trainer.pairs) == len(trainer.networks) == 1


def test_random_search() -> None:
    """The drawn map with the least loss on the held-out labels wins; the draws depend on the seed alone."""
    found = random_search(SOURCE, target, DATA, trials=4, seed=3, **SETTINGS)
    assert found.map == found.maps[int(np.argmin(found.losses))]
    again = random_search(SOURCE, target, DATA, trials=2, seed=3, **SETTINGS)
    assert (again.maps, again.losses) == (found.maps[:2], found.losses[:2])


def test_trials_are_counted(capsys: pytest.CaptureFixture) -> None:
    """A search shows one bar, whose trials are silent; progress=False shows nothing."""
    silent = {name: value for name, value in SETTINGS.items() if name != "progress"}
    random_search(SOURCE, target, DATA, trials=2, **silent)
    shown = capsys.readouterr().out
    assert "2/2" in shown
    assert "step" not in shown
    random_search(SOURCE, target, DATA, trials=2, **SETTINGS)
    assert not capsys.readouterr().out


def test_channels_are_learned_first(tmp_path: Path) -> None:
    """All trials and the map have the channels of one search by lookahead with λ = 1, whose seconds count."""
    options = SETTINGS | {"folder": tmp_path, "trials": 4, "kept": 1}
    found = trial_search(SOURCE, target, DATA, channels={"meta_every": 1}, **options)
    alone = search_map(SOURCE, target, DATA, **SETTINGS | {"what": True, "meta_lr": 3e-3})
    assert found.map.channels == alone.map.channels
    assert len({*found.map.channels["first", "second"]}) > 1
    assert all(one.channels == found.map.channels for one in found.maps)
    assert (tmp_path / "channels/split0/channels.csv").exists()
    again = trial_search(SOURCE, target, DATA, channels={"meta_every": 1}, **options)
    assert (again.map, again.seconds) == (found.map, found.seconds)
    of_caller = trial_search(SOURCE, target, DATA, channels={}, trials=4, kept=1, **SETTINGS | {"meta_lr": 0.1})
    same = search_map(SOURCE, target, DATA, **SETTINGS | {"what": True, "meta_lr": 0.1, "meta_every": 2})
    assert of_caller.map.channels == same.map.channels


def test_channels_are_not_learned_after_trials(tmp_path: Path) -> None:
    """The trials of a folder are of one kind; found before the channels are learned."""
    trial_search(SOURCE, target, DATA, trials=4, kept=1, folder=tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match=r"channels: expected None, as for the trials in .*; choose another folder"):
        trial_search(SOURCE, target, DATA, trials=4, kept=1, channels={}, folder=tmp_path, **SETTINGS)
    assert not (tmp_path / "channels").exists()


def test_random_maps_cover_the_space() -> None:
    """One, two or three pairs equally often; λ has the mean 1 and, for a number, the spread of a Dirichlet draw."""
    pairs = [("a", "x"), ("a", "y"), ("b", "x")]
    channels = {pair: [0.25, 0.75] for pair in pairs}
    draws = torch.tensor([list(random_map(pairs, channels, seed).pairs.values()) for seed in range(3000)])
    torch.testing.assert_close(draws.mean(1), torch.ones(3000))
    counts = (draws > 0).sum(1)
    torch.testing.assert_close(counts.bincount(minlength=4)[1:] / 3000, torch.full((3,), 1 / 3), rtol=0.1, atol=0)
    full = draws[counts == 3]
    torch.testing.assert_close(full.var(0) / 9, torch.full((3,), 2 / 9 / 4), rtol=0.2, atol=0)  # (k-1)/(k²(k+1)), k=3
    assert random_map(pairs, channels, 0).channels == channels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 1, "kept": 1}, "trials: expected at least 2, so that each of 4 pairs is tried, got 1"),
        ({"kept": 5}, "kept: expected a number of pairs, 1 to 4, got 5"),
        ({"kept": 0}, "kept: expected a number of pairs, 1 to 4, got 0"),
        ({"held_out": 1.0}, "held_out: expected a number between 0 and 1, got 1.0"),
        ({"trials": 4.5}, "trials: expected a whole number >= 1, got 4.5"),
        ({"kept": 1.5}, "kept: expected a number of pairs, 1 to 4, got 1.5"),
        ({"map": "map.json"}, "map: expected no value, as the search makes its own, got 'map.json'"),
        ({"outer": FreshBatch(DATA)}, "outer: expected no value, as the search makes its own"),
        ({"channels": {"held_out": 0.3}}, "held_out: expected no value, as the search makes its own, got 0.3"),
        ({"channels": {"pairs": [("first", "second")]}}, "pairs: expected no value, as the search makes its own, got"),
        ({"channels": {"splits": 2}}, "splits: expected no value, as the search makes its own, got 2"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before a target is trained, be it for the channels."""
    monkeypatch.setattr(TransferTrainer, "train_on_batch", None)
    with pytest.raises(ValueError, match=message):
        trial_search(SOURCE, target, DATA, **{"channels": {}} | SETTINGS | options)


def test_answers_that_are_not_finite_are_a_bad_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite weights may give logits that overflow; nan must neither win a random search nor stop the linear model."""
    loss, calls = module.calibrated_cross_entropy, iter([float("nan"), *range(3)])
    monkeypatch.setattr(module, "calibrated_cross_entropy", lambda *batch: next(calls) + loss(*batch))
    found = random_search(SOURCE, target, DATA, trials=4, seed=3, **SETTINGS)
    assert found.losses[0] == pytest.approx(np.log(3))
    assert found.map == found.maps[1]


def test_a_folder_of_unlabelled_images_is_read_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Decoding it takes longer than a trial."""
    reads: list[Path] = []
    monkeypatch.setattr(extra_images, "unlabelled_folder", lambda *place: reads.append(place) or tiny.images(8))
    random_search(SOURCE, target, DATA, trials=3, unlabelled=tmp_path, **SETTINGS)
    assert len(reads) == 1


def test_random_search_needs_a_trial() -> None:
    """No trials, no map."""
    with pytest.raises(ValueError, match="trials: expected a whole number >= 1, got 0"):
        random_search(SOURCE, target, DATA, trials=0, **SETTINGS)
