"""Search, then train: maps learned on held-out labels, and the training with the map that was found."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from mtanytime.data.images import ImageSet
from mtanytime.transfer import PAPER, FreshBatch, TransferMap, TransferTrainer, search_map, search_then_train

SOURCE, DATA = tiny.made(5, seed=2).eval(), tiny.images(24)
SETTINGS = PAPER | {"epochs": 2, "batch_size": 6, "lr": 0.05, "device": "cpu", "progress": False}


def target() -> tiny.TinyNet:
    """The network to train."""
    return tiny.made(4, seed=1)


def test_the_outer_objective_sees_the_held_back_labels_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each split's task gets one half of every class and its outer objective the other half; no image is in both."""
    seen: list[tuple[ImageSet, ImageSet]] = []
    build = TransferTrainer._build

    def recorded(self: TransferTrainer) -> None:
        seen.append((self.batches.data, self.transfer_settings.outer.data))
        build(self)

    monkeypatch.setattr(TransferTrainer, "_build", recorded)
    found = search_map(SOURCE, target, DATA, splits=2, **SETTINGS)
    keys = [[{image.numpy().tobytes() for image in part.images} for part in parts] for parts in seen]
    for (fit, held), (fit_keys, held_keys) in zip(seen, keys, strict=True):
        assert fit.labels.bincount().tolist() == held.labels.bincount().tolist() == [4, 4, 4]
        assert not fit_keys & held_keys
        assert len(fit_keys | held_keys) == 24
    assert keys[0] != keys[1]
    assert found.map == TransferMap.mean(found.maps)
    assert found.maps[0] != found.maps[1]
    assert sum(found.map.pairs.values()) == pytest.approx(4)
    assert found.seconds > 0


def test_search_then_train(tmp_path: Path) -> None:
    """The final training has all labels and the map of the search, and a finished one is read."""
    options = SETTINGS | {"searcher": search_map, "search": {"splits": 2}}
    result, found = search_then_train(SOURCE, target, DATA, tiny.images(9, seed=3), **options)
    again, _ = search_then_train(SOURCE, target, DATA, tiny.images(9, seed=3), folder=tmp_path, **options)
    assert again.log.drop(columns="seconds").equals(result.log.drop(columns="seconds"))
    assert TransferMap.load(tmp_path / "map.json") == found.map
    by_hand = TransferTrainer(SOURCE, target, DATA, tiny.images(9, seed=3), map=found.map, **SETTINGS).train()
    assert by_hand.last_accuracy == result.last_accuracy
    assert len(by_hand.log) == 8
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("log.csv")}
    search_then_train(SOURCE, target, DATA, tiny.images(9, seed=3), folder=tmp_path, **options)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("log.csv")} == before


def test_the_outer_objective_is_the_loss_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss of one's own judges the lookahead, too; cross-entropy would not even take some networks' outputs."""
    seen: list[object] = []
    build = TransferTrainer._build

    def recorded(self: TransferTrainer) -> None:
        seen.append(self.transfer_settings.outer.loss)
        build(self)

    def smoothed(output: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(output, labels, label_smoothing=0.1)

    monkeypatch.setattr(TransferTrainer, "_build", recorded)
    search_map(SOURCE, target, DATA, loss=smoothed, **SETTINGS)
    search_map(SOURCE, target, DATA, **SETTINGS)
    assert seen == [smoothed, F.cross_entropy]


def test_the_test_set_is_checked_before_the_search() -> None:
    """One that only the final training reads must not fail after minutes of search."""

    def searcher(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("the search began")

    with pytest.raises(ValueError, match=r"^test: expected a set of the training set's classes"):
        search_then_train(SOURCE, target, DATA, tiny.images(12, classes=2), searcher=searcher, **SETTINGS)


def test_a_given_network_is_copied_for_the_search() -> None:
    """Only the final training trains it."""
    network = target()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    search_map(SOURCE, network, DATA, **SETTINGS)
    assert all(value.equal(start[name]) for name, value in network.state_dict().items())


def test_meta_every() -> None:
    """A lookahead at every third step: φ moves there and rests between, and the loop costs no outer loss."""
    trainer = TransferTrainer(SOURCE, target, DATA, meta_every=3, meta_lr=0.01, **SETTINGS)
    before, moved = [p.clone() for p in trainer.meta.parameters()], []
    for _ in trainer:
        now = [p.clone() for p in trainer.meta.parameters()]
        moved.append(any(not a.equal(b) for a, b in zip(before, now, strict=True)))
        before = now
    assert moved == [True, False, False, True, False, False, True, False]
    assert trainer.result().log["outer_loss"].notna().tolist() == moved


def test_clipped_and_normalized() -> None:
    """The meta-gradient's norm is bounded, and λ has the mean 1 at every step of a run that would drive it up."""
    trainer = TransferTrainer(
        SOURCE, target, DATA, meta_clip=1e-3, normalize_weights=True, meta_lr=0.5, trace_every=1, **SETTINGS
    )
    norms: list[float] = []
    step = trainer.meta_optimizer.step
    trainer.meta_optimizer.step = lambda: (
        norms.append(torch.stack([p.grad.norm() for p in trainer.meta.parameters()]).norm().item()),
        step(),
    )
    means = trainer.train().trace.groupby("step")["weight"].mean()
    assert max(norms) <= 1e-3 * (1 + 1e-5)
    assert means.tolist() == pytest.approx([1.0] * 8, rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"splits": 0}, "splits: expected a whole number >= 1, got 0"),
        ({"held_out": 1.0}, "held_out: expected a number between 0 and 1"),
        ({"data": DATA.few(1, 0)}, "expected at least 2 images for a split, got 1"),
        (
            {"data": DataLoader(TensorDataset(DATA.images / 255, DATA.labels), 6)},
            "data: expected a Task or an ImageSet",
        ),
        ({"meta_every": 0}, "meta_every: expected a whole number >= 1, got 0"),
        ({"meta_clip": 0.0}, "meta_clip: expected a number > 0, got 0.0"),
        ({"splits": 1.5}, "splits: expected a whole number >= 1, got 1.5"),
        ({"outer": FreshBatch(DATA)}, "outer: expected no value, as the search makes its own"),
        ({"map": "map.json"}, "map: expected no value, as the search makes its own, got 'map.json'"),
        ({"what": False, "where": "off"}, "where: expected a kind of λ to learn, or what=True, got 'off'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_input(options: dict[str, Any], message: str) -> None:
    """Refused before training."""
    with pytest.raises(ValueError, match=message):
        search_map(SOURCE, target, options.pop("data", DATA), **SETTINGS | options)
