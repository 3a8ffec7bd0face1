"""The outer objective on images of its own: which it draws, that φ follows them, and that runs repeat and resume."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor

from mtanytime.datasets import ImageSet, crop_flip
from mtanytime.transfer import OtherImages, TransferTrainer


def transfer(folder: Path | None = None, seed: int = 0, **options: Any) -> TransferTrainer:
    """A small transfer of two epochs of two batches whose outer objective has images of its own."""
    outer = OtherImages(tiny.images(9, seed=8), 4, crop_flip(1))
    settings = {"epochs": 2, "batch_size": 6, "lr": 0.1, "meta_lr": 0.05, "device": "cpu", "progress": False}
    settings |= {"outer": outer, "folder": folder, "seed": seed, **options}
    return TransferTrainer(tiny.made(5, seed=2).eval(), tiny.made(4, seed=1), tiny.images(), **settings)


def drawn(objective: OtherImages, seed: int) -> Tensor:
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
    """Different images of the set, with their own labels, in the dtype of the step's batch; by torch's random state."""
    data, losses = tiny.images(9, seed=8), []

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        losses.append(labels.tolist())
        return F.cross_entropy(output, labels)

    for size in (4, 9, 20):
        objective = OtherImages(data, size, loss=loss)
        images = drawn(objective, seed=0)
        assert images.dtype == torch.float64
        place = [(data.images == (255 * image).round().byte()).all(dim=(1, 2, 3)).nonzero().item() for image in images]
        assert len(set(place)) == len(place) == min(size, 9)
        assert losses.pop() == data.labels[place].tolist()
        assert torch.equal(drawn(objective, seed=0), images)
        assert not torch.equal(drawn(objective, seed=1), images)
    whole = OtherImages(data, 9, crop_flip(2))
    assert not torch.equal(drawn(whole, seed=0), drawn(OtherImages(data, 9), seed=0))


def test_learning_follows_the_other_images(tmp_path: Path) -> None:
    """Other images, another φ, at the same seed; the same ones, the same φ, also after a break."""
    whole = transfer()
    whole.train()
    again, batch = transfer(), transfer(outer=None)
    again.train()
    batch.train()
    assert torch.equal(phi(again), phi(whole))
    assert not torch.equal(phi(batch), phi(whole))
    assert torch.equal(phi(transfer()), phi(transfer(outer=None)))  # the start is the same
    first = transfer(tmp_path / "run")
    next(iter(first))
    first._save()
    second = transfer(tmp_path / "run")
    assert second.step == 1
    second.train()
    assert torch.equal(phi(second), phi(whole))


def test_a_folder_of_other_settings(tmp_path: Path) -> None:
    """A run is not taken up with other outer images, or another augmentation of them."""
    transfer(tmp_path / "run").train()
    for outer in (OtherImages(tiny.images(9, seed=9), 4, crop_flip(1)), OtherImages(tiny.images(9, seed=8), 4)):
        with pytest.raises(ValueError, match="outer"):
            transfer(tmp_path / "run", outer=outer)


@pytest.mark.parametrize(("data", "size"), [(tiny.images(0), 4), (tiny.images(3), 0), ("images", 4)])
def test_bad_input(data: ImageSet, size: int) -> None:
    """An empty set, an empty batch, something else than a set."""
    with pytest.raises((ValueError, TypeError), match=r"ImageSet|images"):
        OtherImages(data, size)
