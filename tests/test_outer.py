"""The outer objective on a fresh batch: what it draws, its effect on φ, and that runs are reproducible and resume."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typechecker import unchecked

from mtanytime.data.batches import crop_flip
from mtanytime.data.images import ImageSet
from mtanytime.transfer import PAPER, FreshBatch, TransferTrainer


def transfer(folder: Path | None = None, seed: int = 0, **options: Any) -> TransferTrainer:
    """A small transfer of two epochs of two batches with an outer objective on fresh batches."""
    outer = FreshBatch(tiny.images(9, seed=8), 4, crop_flip(1))
    settings = PAPER | {"epochs": 2, "batch_size": 6, "lr": 0.1, "meta_lr": 0.05, "device": "cpu", "progress": False}
    settings |= {"outer": outer, "folder": folder, "seed": seed, **options}
    return TransferTrainer(tiny.made(5, seed=2).eval(), tiny.made(4, seed=1), tiny.images(), **settings)


def drawn(objective: FreshBatch, seed: int) -> Tensor:
    """The images that an objective judges the network on."""
    seen: list[Tensor] = []

    def forward(images: Tensor) -> Tensor:
        seen.append(images)
        return images.mean(dim=(2, 3)).requires_grad_()

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        objective(forward, torch.zeros(2, 3, 8, 8, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))
    return seen[0]


def phi(trainer: TransferTrainer) -> Tensor:
    """The parameters of a trainer's meta-networks."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.meta.parameters()])


def test_what_is_drawn() -> None:
    """Distinct images with their labels, in the dtype of the step's batch, following torch's random state."""
    data, losses = tiny.images(9, seed=8), []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        losses.append(labels.tolist())
        return F.cross_entropy(output, labels)

    for size in (4, 9, 20):
        objective = FreshBatch(data, size, loss=loss)
        images = drawn(objective, seed=0)
        assert images.dtype == torch.float64  # of the step's batch
        place = [(data.images == (255 * image).round().byte()).all(dim=(1, 2, 3)).nonzero().item() for image in images]
        assert len(set(place)) == len(place) == min(size, 9)
        assert losses.pop() == data.labels[place].tolist()
        assert torch.equal(drawn(objective, seed=0), images)
        assert not torch.equal(drawn(objective, seed=1), images)
    whole = FreshBatch(data, 9, crop_flip(2))
    assert not torch.equal(drawn(whole, seed=0), drawn(FreshBatch(data, 9), seed=0))


def test_learning_follows_the_other_batch(tmp_path: Path) -> None:
    """At the same seed, φ depends on the set to draw from; with the same set it is the same, also after a break."""
    whole, again = transfer(), transfer()
    others = [transfer(outer=None), transfer(outer=FreshBatch(tiny.images(9, seed=9), 4, crop_flip(1)))]
    for trainer in (whole, again, *others):
        assert torch.equal(phi(trainer), phi(transfer(seed=0)))  # the start is the same
        trainer.train()
    assert torch.equal(phi(again), phi(whole))
    assert not any(torch.equal(phi(other), phi(whole)) for other in others)
    next(iter(transfer(tmp_path / "run")))
    resumed = transfer(tmp_path / "run")
    assert resumed.step == 1
    resumed.train()
    assert torch.equal(phi(resumed), phi(whole))


def test_a_folder_of_other_settings(tmp_path: Path) -> None:
    """A run is not resumed with another set to draw from, batch size, augmentation or loss."""
    data = tiny.images(9, seed=8)
    run = transfer(tmp_path / "run")
    run.train()
    assert run.folder.config["outer"].startswith("AnotherBatch {")  # as in runs from before it was renamed
    for outer in (
        FreshBatch(tiny.images(9, seed=9), 4, crop_flip(1)),
        FreshBatch(data, 5, crop_flip(1)),
        FreshBatch(data, 4),
        FreshBatch(data, 4, crop_flip(1), partial(F.cross_entropy, label_smoothing=0.1)),
        FreshBatch(data, 4, crop_flip(1), nn.CrossEntropyLoss(label_smoothing=0.1)),
    ):
        with pytest.raises(ValueError, match=r"already holds another run \(outer"):
            transfer(tmp_path / "run", outer=outer)


def test_bad_input() -> None:
    """An empty set, something other than a set, an empty batch, and labels that the network has no output for."""
    data = tiny.images(3)
    for images, size, wanted in (
        (tiny.images(0), 4, "^data: expected an ImageSet with images, got "),
        ("images", 4, "^data: expected an ImageSet with images, got 'images'$"),
        (data, 0, "^batch_size: expected a whole number >= 1, got 0$"),
        (data, 1.5, "^batch_size: expected a whole number >= 1, got 1.5$"),
    ):
        with pytest.raises(ValueError, match=wanted):
            unchecked(FreshBatch.__init__)(FreshBatch.__new__(FreshBatch), images, size)
    with pytest.raises(ValueError, match="outer labels: expected 0 to 2, one per output of the network, got 3"):
        transfer(outer=FreshBatch(tiny.images(8, classes=4), 4))


def test_fresh_images_have_the_classes_of_training() -> None:
    """In another order, φ would be trained on wrong labels."""
    data = tiny.images()
    other = ImageSet(data.images, data.labels, data.classes[::-1])
    options = {"epochs": 1, "batch_size": 6, "progress": False, "device": "cpu"}
    with pytest.raises(ValueError, match="outer: expected images of the training set's classes"):
        TransferTrainer(tiny.made(5), tiny.made(), data, **PAPER | options | {"outer": FreshBatch(other, 6)})
