"""Transfers of many kinds: precision, seeds, data sets and target networks."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
import torchvision
from tiny import TinyNet
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transfer_runs import Spy, copied, same, steps, stirred, transfer

from mtanytime.data.batches import Batches


def test_bfloat16() -> None:
    """With autocast, losses stay near those of float32, weights stay float32, and λ isn't rounded to bfloat16."""
    runs = {}
    for precision in ("float32", "bfloat16"):
        runs[precision] = trainer = stirred(transfer(precision=precision))
        spy, kinds = Spy(trainer), set()
        for module in (trainer.model.second[0], trainer.student.matching.regressors[0], trainer.networks[""].first[0]):
            module.register_forward_hook(lambda module, inputs, value, kinds=kinds: kinds.add(value.dtype))
        log = trainer.train().log
        assert kinds == {getattr(torch, precision)}  # in the lookahead as in the real step
        assert {p.dtype for p in [*trainer.student.parameters(), *trainer.meta.parameters()]} == {torch.float32}
        for weights in spy.seen:
            fine = torch.cat([*weights.pairs.values(), *weights.channels.values()], dim=1)
            assert fine.dtype == torch.float32
            assert not torch.equal(fine, fine.bfloat16().float())
        runs[precision] = log
    for name in ("loss", "outer_loss", "matching_loss"):
        ours, theirs = runs["bfloat16"][name].tolist(), runs["float32"][name].tolist()
        assert ours == pytest.approx(theirs, rel=0.1)
        assert ours != theirs


def test_seed() -> None:
    """Target, regressors and meta-networks depend on the run's seed and on nothing else."""

    def run(seed: int) -> dict[str, Tensor]:
        trainer = transfer(target=lambda: TinyNet(dropout=0.3), seed=seed)
        start = copied(nn.ModuleList([trainer.student, trainer.meta]))
        trainer.train()
        end = copied(nn.ModuleList([trainer.student, trainer.meta]))
        return {f"{name} {moment}": v for moment, state in (("a", start), ("b", end)) for name, v in state.items()}

    first = run(0)
    torch.rand(3)
    assert same(run(0), first)
    other = run(1)
    for name in ("0.target.model.first.0.weight a", "0.matching.regressors.0.weight a", "1.where.0.weight a"):
        assert not torch.equal(other[name], first[name])


def test_the_callers_random_state_is_untouched() -> None:
    """Initialization, steps, lookaheads and results leave the caller's random state as it is."""

    class Noisy(TinyNet):
        """Draws random numbers, also in eval mode."""

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images + 0.1 * torch.rand_like(images))

    def outer(forward: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(forward(images + torch.rand_like(images)), labels)

    with torch.random.fork_rng([]):
        source = Noisy().eval()
    before = torch.get_rng_state()
    trainer = transfer(source=source, target=lambda: TinyNet(dropout=0.3), outer=outer, test=tiny.images(seed=4))
    assert torch.equal(torch.get_rng_state(), before)
    for _ in trainer:
        assert torch.equal(torch.get_rng_state(), before)
    trainer.result()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_data_loader() -> None:
    """A plain DataLoader works in place of a set, and with the same batches gives the same steps."""
    data = tiny.images(10)
    batch = Batches(data, 10, seed=0, shuffle=False)
    pairs = list(zip(*next(batch.epoch(0)), strict=True))
    trainer, other = transfer(data=DataLoader(pairs, 6), batch_size=1), transfer(data=data)
    other.batches.shuffle = False
    pd.testing.assert_frame_equal(trainer.train().trace, other.train().trace)
    assert same(copied(trainer.model), copied(other.model))


def test_a_last_batch_of_one_image() -> None:
    """The last batch of an epoch may hold a single image."""
    log = transfer(data=tiny.images(13)).train().log
    assert len(log) == 6
    assert log.notna().all(axis=None)


def test_a_target_in_part_frozen() -> None:
    """Frozen parameters stay as they are, before and after the matched layers."""
    target = tiny.made(4, seed=1)
    target.first[0].requires_grad_(False)
    target.classifier.requires_grad_(False)
    before = copied(target)
    trainer = transfer(target=target)
    trainer.train()
    changed = {name for name, p in target.named_parameters() if not torch.equal(before[name], p)}
    assert changed == {f"{n}.{w}" for n in ("first.1", "second.0", "second.1") for w in ("weight", "bias")}
    assert all(p.grad is None for p in target.parameters() if not p.requires_grad)


def test_a_target_with_a_layer_that_does_not_run() -> None:
    """A parameter that no loss reaches has gradient zero, not None: weight decay moves it, as in the lookahead."""
    target = tiny.made(4, seed=1)
    target.spare = nn.Linear(2, 2)
    before = copied(target.spare)
    transfer(target=target, momentum=0.0, data=tiny.images(6), epochs=2).train()
    torch.testing.assert_close(target.spare.weight.data, before["weight"] * (1 - 0.1 * 0.01) ** 2)


@pytest.mark.parametrize("family", ["efficientnet", "vgg"])
def test_torchvisions_networks(family: str) -> None:
    """Two of torchvision's networks by layer path, with in-place activations and stochastic depth."""

    def vgg() -> nn.Module:
        features = torchvision.models.vgg.make_layers([8, "M", 16, "M"], batch_norm=True)
        return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 3))

    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)
        source = torchvision.models.resnet18(num_classes=5).eval()
        target = torchvision.models.efficientnet_b0(num_classes=3) if family == "efficientnet" else vgg()
    trainer = transfer(
        source=source,
        target=target,
        data=tiny.images(8, size=32),
        batch_size=4,
        epochs=1,
        lr=0.001,
        where="constant",
        source_layers=["layer1", "layer3.0.conv1"],
        target_layers=["features.2", "features.4.2.block.3"] if family == "efficientnet" else ["0.1", "0.6"],
    )
    result = trainer.train()
    assert len(result.trace) == 8
    assert all(p.grad.abs().max() > 0 for network in trainer.meta.what for p in network.parameters())


ACCELERATORS = [
    name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if there
]


@pytest.mark.parametrize("mode", ["keep", "recompute"])
@pytest.mark.parametrize("device", ACCELERATORS)
def test_on_an_accelerator(device: str, mode: str) -> None:
    """On an accelerator, a run is near the one on the CPU (without dropout, whose masks differ)."""
    there = steps(transfer(device=device, mode=mode), 3)
    here = steps(transfer(mode=mode), 3)
    for a, b in zip(there, here, strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-3)
