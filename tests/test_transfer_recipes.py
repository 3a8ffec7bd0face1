"""The recipes of transfer: what the variant that judges the lookahead on other images is given."""

import pytest
import tiny
import torch

from mtanytime.datasets import Task, crop_flip
from mtanytime.recipes import RECIPES, changed
from mtanytime.training import Trainer
from mtanytime.transfer import OtherImages, TransferTrainer
from mtanytime.transfer_recipes import METHODS, _targets


@pytest.mark.parametrize("validation", [None, 0.2])
def test_other_images(validation: float | None) -> None:
    """They are the images that are trained on, without those that validate; λ is 1 at the start, β and the network are
    L2T-ww's, and a learning rate of φ of its own holds for this variant alone."""
    task = Task(tiny.images(30), tiny.images(9, seed=1))
    settings = changed(RECIPES["smoke"].settings, {"methods": "scratch,l2t,l2t_other", "meta_lr": "0.2"})
    options = {"augment": crop_flip(1), "validation": validation, "device": "cpu", "progress": False}
    source = tiny.made(5, seed=2).eval()
    found: dict[str, Trainer] = dict(_targets(settings, 3, None, source, tiny.made, task, **options))
    plain, other = found["l2t"], found["l2t_other"]
    assert isinstance(plain, TransferTrainer)
    assert isinstance(other, TransferTrainer)
    assert isinstance(other.outer, OtherImages)
    assert plain.outer is None
    assert torch.equal(other.outer.images, found["scratch"].batches.data.images)
    assert len(other.outer.images) == (30 if validation is None else 24)
    assert (plain.meta_lr, other.meta_lr) == (0.2, settings["meta_lr_l2t_other"])
    assert other.beta == plain.beta
    weights = other.meta(other._source_features(task.train.images[:4].float() / 255))
    assert all(torch.equal(value, torch.ones(4, 1)) for value in weights.pairs.values())
    assert set(METHODS) >= set(found)
