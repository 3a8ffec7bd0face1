"""The recipes of transfer: the data and arguments that each method receives."""

import pytest
import tiny
import torch

from mtanytime.data.batches import crop_flip
from mtanytime.data.images import Task
from mtanytime.experiments.recipe import changed
from mtanytime.experiments.transfer_recipes import RECIPES, _targets
from mtanytime.training.trainer import Trainer
from mtanytime.transfer import FreshBatch, TransferTrainer


@pytest.mark.parametrize("validation", [None, 0.2])
def test_methods(validation: float | None) -> None:
    """Every method trains on the same images from the same weights.

    The variant with a fresh batch draws it from these images, none of which is a validation image. It starts at λ = 1,
    with L2T-ww's β and its own learning rate of φ.
    """
    task = Task(tiny.images(30), tiny.images(9, seed=1))
    settings = changed(RECIPES["smoke"].settings, {"methods": "scratch,l2t,l2t_another", "meta_lr": "0.2"})
    options = {"augment": crop_flip(1), "validation": validation, "device": "cpu", "progress": False}
    source = tiny.made(5, seed=2).eval()
    trainers: dict[str, Trainer] = dict(_targets(settings, 3, None, source, tiny.TinyNet, task, **options))
    for trainer in trainers.values():
        train, held_back = (task.train, None) if validation is None else task.train.split(validation, 3)
        assert torch.equal(trainer.batches.data.images, train.images)
        assert (trainer.validation is None) == (held_back is None)
        assert held_back is None or torch.equal(trainer.validation.images, held_back.images)
        initial = zip(trainer.model.parameters(), trainers["scratch"].model.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in initial)
    plain, another = trainers["l2t"], trainers["l2t_another"]
    assert isinstance(plain, TransferTrainer)
    assert isinstance(another, TransferTrainer)
    assert isinstance(another.transfer_settings.outer, FreshBatch)
    assert plain.transfer_settings.outer is None
    assert torch.equal(another.transfer_settings.outer.data.images, another.batches.data.images)
    rates = [trainer.transfer_settings.meta_lr for trainer in (plain, another)]
    assert rates == [0.2, settings["meta_lr_l2t_another"]]
    assert another.beta == plain.beta
    weights = another.meta(another.source_features(task.train.images[:4].float() / 255))
    assert all(torch.equal(value, torch.ones(4, 1)) for value in weights.pairs.values())
