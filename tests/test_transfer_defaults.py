"""What `TransferTrainer` does when it is told nothing, and how the paper's method is asked for."""

import inspect
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import mtanytime as mt
from mtanytime.data.images import ImageSet
from mtanytime.training.identity import record
from mtanytime.transfer import PAPER, TransferTrainer, teacher
from mtanytime.transfer.lookahead import first_images
from mtanytime.transfer.probe import LinearProbe, fit_probe

LABELLED = tiny.images(24)
SMALL = {"steps": 4, "batch_size": 6, "lr": 0.001, "device": "cpu", "progress": False}


def transfer(source: Any = None, data: Any = LABELLED, **options: Any) -> TransferTrainer:
    """Four steps of six images at a low rate, as random features hardly vary; all else by default."""
    source = tiny.made(5, seed=2).eval() if source is None else source
    return TransferTrainer(source, tiny.made(4, seed=1), data, **SMALL | options)


def test_the_defaults() -> None:
    """Fixed weights, as many views as labelled images, and the probe's answers: as if each had been asked for."""
    shown = inspect.signature(TransferTrainer).parameters
    expected = {"what": False, "where": "off", "views": "batch", "teacher": "probe", "steps": 4000, "lr": 0.05}
    assert {name: shown[name].default for name in expected} == expected
    source = tiny.made(5, seed=2).eval()
    run = transfer(source)
    assert len({standard.scale for standard in run.student.matching.standards.values()}) == 1
    assert (run.settings.schedule, run.settings.remainder) == ("warm-up cosine", "drop")
    probe = fit_probe(source, LABELLED, scoring="log_loss")
    by_hand = transfer(source, teacher=probe, views=6)
    log = run.train().log.drop(columns="seconds")
    assert log.equals(by_hand.train().log.drop(columns="seconds"))
    assert "distillation_loss" in log
    assert run.meta_optimizer is None
    assert "outer_loss" not in log


def test_epochs_and_an_optimizer_rule_out_defaults() -> None:
    """Epochs take the place of the default's steps, and an optimizer has its own rate and weight decay."""
    assert transfer(steps=None, epochs=2).steps == 8
    run = transfer(lr=None, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    assert run.settings.lr is None


def test_the_papers_settings(tmp_path: Path) -> None:
    """`**PAPER` learns what and where with nothing beside, and its record is that of runs from before the defaults."""
    run = transfer(**PAPER | {"epochs": 1, "steps": None}, folder=tmp_path)
    assert {"what": True, "where": "relu6", "beta": 0.5}.items() <= record(run.transfer_settings).items()
    assert not {"views", "view_augment", "standardize"} & record(run.transfer_settings).keys()
    assert "teacher" not in run._config()
    assert (run.settings.batch_size, run.settings.lr, run.settings.weight_decay) == (128, 0.1, 1e-4)
    assert run._teacher is None
    assert not run.extra_images


def test_unlabelled_images_take_the_place_of_views() -> None:
    """Beside unlabelled images there are no views unless they are asked for."""
    assert transfer(unlabelled=tiny.images(12, seed=9)).extra_images.views is None
    assert transfer(unlabelled=tiny.images(12, seed=9), views=3).extra_images.views == 3


def test_a_resumed_run_keeps_its_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted on another machine, the probe would not be the same bit for bit: the checkpoint holds the run's own."""
    whole = transfer().train()
    begun = transfer(folder=tmp_path)
    next(iter(begun))

    def other(*arguments: Any, **options: Any) -> LinearProbe:
        probe = fit_probe(*arguments, **options)
        probe.linear.weight += 1e-3
        return probe

    monkeypatch.setattr(teacher, "fit_probe", other)
    resumed = transfer(folder=tmp_path).train()
    assert resumed.log.drop(columns="seconds").equals(whole.log.drop(columns="seconds"))


def test_the_better_source_teaches() -> None:
    """Of several sources, the one whose probe has the lower log loss, which the note names."""
    blind = tiny.made(5, seed=3).eval()
    torch.nn.init.zeros_(blind.first[0].weight)
    run = transfer({"blind": blind, "seeing": tiny.made(5, seed=2).eval()})
    assert any(note.startswith("teacher: the linear probe of 'seeing' of ") for note in run.notes)
    assert run.teacher.source.model is run.networks["seeing"]


def test_a_loader() -> None:
    """The probe is fitted to a loader's images, and its batches get as many views as they have images."""
    data = TensorDataset(LABELLED.images / 255, LABELLED.labels)
    run = transfer(data=DataLoader(data, 8, shuffle=True))
    assert run.extra_images.views == 8
    assert torch.isfinite(torch.tensor(run.train().log["distillation_loss"])).all()


def test_labels_that_no_probe_can_be_fitted_to() -> None:
    """One label of a class: an error that says how to go on without a teacher."""
    data = ImageSet(LABELLED.images[:4], torch.tensor([0, 1, 2, 2]), LABELLED.classes)
    with pytest.raises(ValueError, match=r"^teacher: no probe of the source can be fitted: data: .*pass teacher=None$"):
        transfer(data=data)
    transfer(data=data, teacher=None).train()


def test_the_probe_and_the_target_have_the_datas_classes() -> None:
    """torchvision's 1,000 classes left as they are, and a loader without images of the last class: both are named."""
    with pytest.raises(ValueError, match=r"^target: expected 3 outputs, one per class .*, got 1000; or pass teacher=N"):
        TransferTrainer(tiny.made(5).eval(), tiny.made(4, classes=1000), LABELLED, **SMALL)
    loader = DataLoader(TensorDataset(LABELLED.images / 255, LABELLED.labels % 2), 8)
    with pytest.raises(ValueError, match=r"^target: expected 2 outputs, one per class of the labelled images, got 3"):
        transfer(data=loader)


def test_a_loader_of_few_labels() -> None:
    """Two per class make two folds, as in an image set."""
    data = TensorDataset(LABELLED.images[:6] / 255, LABELLED.labels[:6])
    assert transfer(data=DataLoader(data, 6)).train().log["distillation_loss"].notna().all()


@dataclass(frozen=True)
class Named:
    """A frozen output."""

    logits: Tensor
    loss: Tensor


@pytest.mark.parametrize("kind", ["tuple", "namedtuple", "dict", "ordered", "frozen", "object", "nested"])
def test_the_labelled_part_of_an_output(kind: str) -> None:
    """Of every tensor with a row for each image, the first rows; what is none stays, and the output is not changed."""
    logits, loss = torch.rand(5, 3), torch.rand(())
    output, read = {
        "tuple": ((logits, loss), lambda o: o[0]),
        "namedtuple": (namedtuple("Output", "logits loss")(logits, loss), lambda o: o.logits),
        "dict": ({"logits": logits, "loss": loss}, lambda o: o["logits"]),
        "ordered": (OrderedDict(logits=logits, loss=loss), lambda o: o["logits"]),
        "frozen": (Named(logits, loss), lambda o: o.logits),
        "object": (SimpleNamespace(logits=logits, loss=loss), lambda o: o.logits),
        "nested": ([{"logits": logits}, None, "text"], lambda o: o[0]["logits"]),
    }[kind]
    cut = first_images(output, 5, 2)
    assert type(cut) is type(output)
    assert torch.equal(read(cut), logits[:2])
    assert torch.equal(read(output), logits)
    assert mt.measure.logits.find_logits(output if kind != "nested" else output[0]) is logits
