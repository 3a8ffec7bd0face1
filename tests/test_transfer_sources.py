"""Several sources, what each of them sees, and that a source stays as it is."""

from functools import partial

import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import TinyNet
from torch import nn
from transfer_runs import assert_close, copied, same, steps, stirred, transfer

from mtanytime.backbones import Normalized
from mtanytime.transfer import FreshBatch, TransferTrainer
from mtanytime.transfer.baselines import BaselineTrainer
from mtanytime.transfer.settings import TransferSettings


def test_a_source_that_diverged() -> None:
    """Its layers are named before training; a loss of nan at the first step would not say whose."""
    source = tiny.made(5).eval()
    source.second[0].weight.data.fill_(torch.nan)
    for trainer in (TransferTrainer, partial(BaselineTrainer, terms={"at": 1.0})):
        with pytest.raises(ValueError, match=r"^source, .*: layers: expected finite maps, got some of second that are"):
            trainer(source, tiny.made(4, seed=1), tiny.images(12), steps=2, device="cpu", progress=False)


def test_a_source_that_is_switched_off_is_as_if_it_were_not_there() -> None:
    """With λ of the second source at zero, losses, target and meta-gradients are those of the first source alone."""

    def made(names: str) -> TransferTrainer:
        networks = {"a": tiny.made(5, seed=2).double().eval(), "b": tiny.made(6, seed=4).double().eval()}
        target = tiny.made(4, seed=1, dropout=0.3).double()
        return transfer(source={name: networks[name] for name in names}, target=target, epochs=4, data=tiny.images(9))

    alone, both = stirred(made("a")), stirred(made("ab"), seed=5)
    place = {pair: both.pairs.index(pair) for pair in alone.pairs}
    with torch.no_grad():
        for pair in alone.pairs:
            ours, theirs = both.student.matching.regressor(pair), alone.student.matching.regressor(pair)
            for a, b in zip(ours, theirs, strict=True):
                a.copy_(b)
        for i, pair in enumerate(both.pairs):
            if pair in place:
                j = alone.pairs.index(pair)
                both.meta.what[i].load_state_dict(alone.meta.what[j].state_dict())
                both.meta.where[i].load_state_dict(alone.meta.where[j].state_dict())
            else:
                both.meta.where[i].weight.zero_()
                both.meta.where[i].bias.fill_(-1000)
    assert len(both.pairs) == 2 * len(alone.pairs) == 8
    for _ in range(5):
        one, two = steps(alone, 1)[0], steps(both, 1)[0]
        for name in ("loss", "task_loss", "matching_loss", "outer_loss", "accuracy"):
            assert two[name] == pytest.approx(one[name], rel=1e-11), name
        assert_close(*([value.double() for value in copied(run.model).values()] for run in (both, alone)))
        for pair, i in place.items():
            j = alone.pairs.index(pair)
            for kind in ("what", "where"):
                ours, theirs = getattr(both.meta, kind)[i], getattr(alone.meta, kind)[j]
                assert theirs.weight.grad.abs().max() > 0
                assert_close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()], 1e-8)
    trace = pd.DataFrame(both.tables["trace"])
    off = trace["source"].str.startswith("b/")
    assert (trace.loc[off, "weight"] == 0).all()
    alone_trace = pd.DataFrame(alone.tables["trace"])
    assert trace.loc[~off, "weight"].tolist() == pytest.approx(alone_trace["weight"].tolist(), rel=1e-9)


def test_sources_with_their_own_input_size_and_normalization() -> None:
    """Each source gets the images in its own size and normalization, independent of the other networks."""
    small = Normalized(tiny.made(3, seed=5), (0.2, 0.3, 0.4), (0.5, 0.6, 0.7), size=6).eval()
    large = Normalized(tiny.made(5, seed=6), (0.5,) * 3, (0.25,) * 3, size=16).double().eval()
    target = Normalized(tiny.made(4, seed=1), (0.4,) * 3, (0.3,) * 3)
    pairs = [("large/second", "first"), ("small/first", "second"), ("large/first", "second")]
    trainer = transfer(source={"small": small, "large": large}, target=target, pairs=pairs)
    images = next(trainer.batches.epoch(0))[0]
    features = trainer.source_features(images)
    assert {name: tuple(value.shape[1:]) for name, value in features.items()} == {
        "small/first": (3, 6, 6),
        "large/second": (10, 8, 8),
        "large/first": (5, 16, 16),
    }
    seen = F.interpolate(images.double(), (16, 16), mode="bilinear", antialias=True)
    expected = large.network.first((seen - 0.5) / 0.25)
    torch.testing.assert_close(features["large/first"], expected.float())
    result = trainer.train()
    assert list(zip(result.trace["source"], result.trace["target"], strict=True))[:3] == pairs


@pytest.mark.parametrize(("of_source", "of_target"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_networks_of_different_precision(of_source: torch.dtype, of_target: torch.dtype) -> None:
    """A source computes in its own precision; the trained networks have the target's."""
    trainer = transfer(source=tiny.made(5).to(of_source).eval(), target=tiny.made(4).to(of_target))
    trainer.train()
    assert {p.dtype for p in [*trainer.student.parameters(), *trainer.meta.parameters()]} == {of_target}
    assert next(trainer.networks[""].parameters()).dtype == of_source


def test_a_source_without_parameters() -> None:
    """A filter bank without parameters can be a source too."""
    transfer(source=nn.Sequential(nn.AvgPool2d(2), nn.Tanh()).eval(), source_layers="0").train()


def test_source_is_frozen_and_noted() -> None:
    """A source fresh from its own training is put in eval mode, with a note."""
    source = tiny.made(5, seed=2).train()
    trainer = transfer(source=source)
    assert not any(module.training for module in source.modules())
    assert trainer.notes == [
        "source: was in train mode, switched to eval mode",
        "source: its parameters require grad; it runs without gradients and is not trained",
    ]
    assert all(p.requires_grad for p in source.parameters())
    partly = tiny.made(5, seed=2).eval().requires_grad_(False)
    partly.first[1].train()
    assert transfer(source={"a": partly}).notes == ["source 'a': was in train mode, switched to eval mode"]
    assert transfer(source=tiny.made(5).eval().requires_grad_(False)).notes == []


def test_an_outer_objective_without_use_is_noted() -> None:
    """With the defaults nothing is learned, so it would be passed over in silence."""
    source, outer = tiny.made(5).eval().requires_grad_(False), FreshBatch(tiny.images())
    fixed = {"what": False, "where": "off", "meta_lr": TransferSettings().meta_lr}
    assert transfer(source=source, outer=outer, **fixed).notes == ["outer: not used, as nothing is learned"]
    assert transfer(source=source, outer=outer).notes == []
    several = {"meta_lr": 0.1, "inner_steps": 3, "meta_every": 2}
    (note,) = transfer(source=source, **fixed | several).notes
    assert note == "inner_steps, meta_lr, meta_every: not used, as nothing is learned"


def test_notes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Notes are printed before the progress bar."""
    transfer(source=tiny.made(5).train(), progress=True).train()
    assert capsys.readouterr().out.startswith("source: was in train mode, switched to eval mode\n")


def test_source_on_another_device() -> None:
    """A source on another device is moved to the run's, with a note; one without values can't be."""

    class Elsewhere(TinyNet):
        """Pretends to be on another device until it is moved."""

        def __init__(self) -> None:
            super().__init__()
            self.real = copied(self)
            super().to("meta")

        def to(self, device: torch.device) -> "Elsewhere":
            """Load the real weights."""
            self.load_state_dict(self.real, assign=True)
            return self

    with torch.random.fork_rng([]):
        trainer = transfer(source={"far": Elsewhere().eval().requires_grad_(False)})
    assert trainer.notes == ["source 'far': moved from meta to cpu"]
    trainer.train()
    with pytest.raises(ValueError, match=r"^source: Cannot copy out of meta tensor; no data"):
        transfer(source=tiny.made(5).to("meta"))


def test_source_is_not_changed() -> None:
    """Weights, statistics and gradients of the source are as before, bit for bit."""
    source = tiny.made(5, seed=2, dropout=0.5)
    for parameter in source.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copied(source)
    trainer = transfer(source=source)
    for report in trainer:
        if report.step == 2:
            source.train()  # as a notebook's cell may
    assert same(copied(source), before)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in source.parameters())
