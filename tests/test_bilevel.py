"""The meta-gradient against the authors' numbers, a plain unroll and finite differences."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn
from typechecker import unchecked

from mtanytime import backbones
from mtanytime.data.batches import Batches
from mtanytime.data.images import ImageSet
from mtanytime.functional import functional_call
from mtanytime.randomness import get_rng_state, seeded
from mtanytime.transfer import PAPER, TransferTrainer
from mtanytime.transfer.bilevel import (
    InnerStep,
    MetaGradient,
    SGDRule,
    SGDState,
    meta_gradient,
)
from mtanytime.transfer.second_order import second_order

REFERENCE = Path(os.environ.get("MTANYTIME_REFERENCE", Path(__file__).parent / "reference"))
CHECKPOINT = Path(__file__).parents[2] / "shared" / "data" / "tinyimagenet_resnet32.pth.tar"
CASES = sorted(REFERENCE.glob("l2t_*.npz"))


def test_reference_folder_holds_cases() -> None:
    """A wrong MTANYTIME_REFERENCE must not pass by running no case."""
    assert CASES, f"no l2t_*.npz in {REFERENCE}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_reference(path: Path) -> None:
    """Both iterations agree with the authors' code run in float64, tensor by tensor."""
    case = np.load(path)
    config, order = json.loads(str(case["config"])), json.loads(str(case["order"]))
    trainer = reference_trainer(config, order)
    classes = next(shape[0] for name, shape, _ in order if name == "target.classifier.bias")
    x = np.random.RandomState(config["seed"] - 1).standard_normal((config["B"], 3, 32, 32))
    images, labels = torch.from_numpy(x), torch.arange(config["B"]) % classes

    def compare(name: str, ours: Tensor) -> None:
        theirs = torch.from_numpy(np.asarray(case[name])).double()
        error = (ours.detach().double() - theirs).norm() / theirs.norm().clamp(min=1e-300)
        assert error <= 1e-10, f"{name}: relative error {error:.2e}"

    for i in range(2):
        with torch.no_grad():
            weights = trainer.meta(trainer.source_features(images))
        compare(f"iter{i}/lambda", torch.stack([weights.pairs[pair][:, 0] for pair in trainer.pairs]))
        trainer.model.train()
        figures = trainer.train_on_batch(images, labels)
        compare(f"iter{i}/match_loss", torch.tensor(figures["matching_loss"], dtype=torch.float64))
        compare(f"iter{i}/ce_loss", torch.tensor(figures["task_loss"], dtype=torch.float64))
        compare(f"iter{i}/outer_loss", torch.tensor(figures["outer_loss"], dtype=torch.float64))
        ours = target_tensors(trainer)
        names = [name for name, _, _ in order if name.startswith(("target.", "regressor."))]
        compare(f"iter{i}/theta_norm", torch.stack([ours[name].norm() for name in names]))
        for kind, networks in (("what", trainer.meta.what), ("where", trainer.meta.where)):
            for k, network in enumerate(networks):
                for part, parameter in network.named_parameters():
                    compare(f"iter{i}/grad/{kind}.{k}.{part}", parameter.grad)


def reference_trainer(config: dict, order: list) -> TransferTrainer:
    """The stored case's networks, filled as described in ../shared/reference/README.md."""
    filled = {}
    for name, shape, seed in order:
        values = torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))
        source, part = name.startswith("source."), name.split(".")[0]
        if len(shape) >= 2:
            values *= ((1 if source else 2) / np.prod(shape[1:])) ** 0.5
            values *= config.get(f"{part}_scale", 1) if part in ("what", "where") else 1
        elif name.endswith("weight") or (part == "where" and name.endswith("bias")):
            values = (0.5 if source else 1) + 0.1 * values
        else:
            values *= 0.05
        filled[name] = values

    if config["kw_source"] == "checkpoint":
        if not CHECKPOINT.exists():
            pytest.skip(f"{CHECKPOINT.name} is not at ../shared/data")
        source = backbones.load_l2t_resnet32(CHECKPOINT).network.double()
    else:
        source = backbones.resnet(32, len(filled["source.fc.bias"])).double()
        theirs = backbones.l2t_resnet32_names()
        state = source.state_dict()
        source.load_state_dict({ours: filled.get(f"source.{theirs[ours]}", value) for ours, value in state.items()})
    target = backbones.vgg9(len(filled["target.classifier.bias"])).double()
    for name, parameter in target.named_parameters():
        parameter.data = filled[f"target.{name}"]

    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(5)]
    tiny = ImageSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    pairs = [(blocks[s], target.feature_layers[t]) for s, t in config["pairs"]]
    settings = {"lr": config["lr"], "momentum": config["mom"], "weight_decay": config["wd"], "beta": config["beta"]}
    settings |= {"inner_steps": config["T"], "meta_lr": config["mlr"], "meta_weight_decay": 1e-4}
    settings |= {"epochs": 1, "pairs": pairs, "device": "cpu", "progress": False}
    trainer = TransferTrainer(source.eval(), target, tiny, **PAPER | settings)
    with torch.no_grad():
        for name, tensor in target_tensors(trainer).items():
            tensor.copy_(filled[name])
        for kind in ("what", "where"):
            for k, network in enumerate(getattr(trainer.meta, kind)):
                for part, parameter in network.named_parameters():
                    parameter.copy_(filled[f"{kind}.{k}.{part}"])
    return trainer


def target_tensors(trainer: TransferTrainer) -> dict[str, Tensor]:
    """θ under the authors' names; the regressors as views into ours."""
    tensors = {f"target.{name}": p for name, p in trainer.model.named_parameters()}
    for k, pair in enumerate(trainer.pairs):
        weight, bias = trainer.student.matching.regressor(pair)
        tensors |= {f"regressor.{k}.weight": weight, f"regressor.{k}.bias": bias}
    return tensors


# Tiny networks, float64: against autograd alone, finite differences and torch's own optimizer.

CPU = torch.device("cpu")


class Awkward(tiny.TinyNet):
    """A block used under two names, tied weights, and a buffer that is assigned and not written in place."""

    def __init__(self) -> None:
        super().__init__(dropout=0.3)
        self.mix = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
        self.mix_again = self.mix
        self.head, self.tail = nn.Linear(8, 8), nn.Linear(8, 8)
        self.tail.weight = self.head.weight
        self.register_buffer("gain", torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, through all of these parts."""
        if self.training:
            self.gain = self.gain * 1.1
        maps = self.mix_again(self.mix(self.first(images)))
        maps = self.dropout(self.second(maps)).mean(dim=(2, 3)) * self.gain
        return self.classifier(self.tail(self.head(maps).tanh()))


def tiny_trainer(target: nn.Module | None = None, **settings: object) -> TransferTrainer:
    """A transfer in float64 after two steps, so that it has momentum."""
    target = tiny.made(4, seed=1, dropout=0.3) if target is None else target
    settings = PAPER | {
        "lr": 0.1,
        "weight_decay": 0.01,
        "beta": 0.7,
        "meta_lr": 0.05,
        "schedule": "constant",
        **settings,
    }
    settings |= {"epochs": 2, "batch_size": 6, "device": "cpu", "progress": False}
    trainer = TransferTrainer(
        tiny.made(5, seed=2).double().eval(),
        target.double(),
        tiny.images(),
        **settings,
    )
    with seeded(3, CPU), torch.no_grad():
        for network in trainer.meta.what:
            network.weight.normal_(std=0.3)
    for _, _ in zip(range(2), trainer, strict=False):
        pass
    return trainer


def batch() -> tuple[Tensor, Tensor]:
    """Six images that are in no training set."""
    images, labels = next(Batches(tiny.images(seed=5), 6, seed=0).epoch(0))
    return images.double(), labels


def looked_ahead(
    trainer: TransferTrainer, mode: str, seed: int = 7, **settings: Any
) -> tuple[MetaGradient, list[Tensor]]:
    """Outer loss and gradient for λ and w, and that gradient carried on to φ, at a fixed random state."""
    images, labels = batch()
    features = trainer.source_features(images)
    weights, phi = trainer.meta(features), list(trainer.meta.parameters())
    hyper = [value for value in [*weights.pairs.values(), *weights.channels.values()] if value.requires_grad]
    lookahead = replace(trainer.lookahead, mode=mode, **settings)
    with seeded(seed, CPU):
        meta = lookahead.meta_gradient(images, labels, features, weights, [*hyper, *phi])
    return MetaGradient(meta.outer_loss, meta.gradients[: len(hyper)]), meta.gradients[len(hyper) :]


def snapshot(trainer: TransferTrainer) -> dict[str, Tensor]:
    """Everything that a lookahead must not change."""
    momentum = SGDState.read(trainer.student, trainer.optimizer).velocity
    state = {**trainer.student.state_dict(), **{f"momentum {k}": v for k, v in momentum.items()}}
    return {name: value.clone() for name, value in state.items()} | {"rng": get_rng_state(CPU)[0].clone()}


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-10) -> None:
    """Each tensor within a relative error, in the 2-norm."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm().clamp(min=1e-12), f"{a} is not {b}"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"inner_steps": 1},
        {"inner_steps": 3, "nesterov": True},
        {"momentum": 0.0, "weight_decay": 0.0},
        {"stages": 2, "inner_steps": 2},
        {"stages": 2, "inner_steps": 1, "nesterov": True},
        {"where": "constant"},
        {"where": "relu", "what": False},
    ],
    ids=str,
)
def test_modes_equal_plain_unroll(settings: dict) -> None:
    """Step-by-step adjoints, kept or recomputed with dropout, equal autograd through one long graph."""
    trainer = tiny_trainer(**settings)
    unrolled, phi = looked_ahead(trainer, "unroll")
    assert any(g.abs().max() > 0 for g in phi)
    for mode in ("keep", "recompute"):
        found, phi_found = looked_ahead(trainer, mode)
        assert_close([found.outer_loss, *found.gradients], [unrolled.outer_loss, *unrolled.gradients])
        assert_close(phi_found, phi)


@pytest.mark.parametrize("mode", ["keep", "recompute"])
def test_awkward_target(mode: str) -> None:
    """Shared blocks, tied weights and assigned buffers: the same gradient in every mode, and no trace."""
    with seeded(4, CPU):
        target = Awkward()
    trainer = tiny_trainer(target, source_layers=["first", "second"])
    shared = trainer.model.mix[0].weight
    before = snapshot(trainer)
    reference, _ = looked_ahead(trainer, "unroll")
    found, _ = looked_ahead(trainer, mode)
    assert_close(found.gradients, reference.gradients)
    after = snapshot(trainer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert trainer.model.mix_again[0].weight is shared
    assert trainer.model.head.weight is trainer.model.tail.weight
    assert trainer.model.gain.item() == pytest.approx(1.1**2)  # the two real steps and no step of a lookahead


@pytest.mark.parametrize("settings", [{}, {"stages": 2, "nesterov": True}], ids=str)
def test_finite_differences(settings: dict) -> None:
    """The gradient of φ agrees with finite differences of the outer loss, with dropout in the target."""
    trainer = tiny_trainer(tiny.made(4, seed=1, dropout=0.3, activation=nn.Softplus), **settings)
    _, phi = looked_ahead(trainer, "keep")
    generator = torch.Generator().manual_seed(0)
    for parameter, gradient in zip(trainer.meta.parameters(), phi, strict=True):
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                parameter.add_(step * direction)
            losses.append(looked_ahead(trainer, "keep")[0].outer_loss)
            with torch.no_grad():
                parameter.sub_(step * direction)
        slope = (losses[0] - losses[1]) / 2e-5
        assert slope.item() == pytest.approx((gradient * direction).sum().item(), rel=1e-5, abs=1e-9)


def test_first_order_drops_the_hessian_only() -> None:
    """With one step from θ there is no Hessian term to drop, so first order is exact; with two it is not."""
    one = tiny_trainer(stages=2, inner_steps=1)
    exact, _ = looked_ahead(one, "keep")
    for mode in ("keep", "recompute"):
        assert_close(looked_ahead(one, mode, first_order=True)[0].gradients, exact.gradients)
    two = tiny_trainer(inner_steps=2)
    exact, _ = looked_ahead(two, "keep")
    approximate, _ = looked_ahead(two, "keep", first_order=True)
    assert torch.equal(approximate.outer_loss, exact.outer_loss)
    for a, b in zip(approximate.gradients, exact.gradients, strict=True):
        assert (a - b).abs().max() > 1e-6 * b.abs().max()
    assert_close(looked_ahead(two, "recompute", first_order=True)[0].gradients, approximate.gradients)


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_step_is_torchs(momentum: float, weight_decay: float, nesterov: bool) -> None:
    """The lookahead's step is that of torch.optim.SGD, also for an unreached parameter with gradient zero."""
    generator = torch.Generator().manual_seed(0)
    module = nn.ParameterList(torch.randn(5, generator=generator).double() for _ in range(2))
    moved, unreached = module
    settings = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, **settings)
    state = SGDState.read(module, optimizer)
    state = replace(state, parameters={name: p.detach().clone() for name, p in state.parameters.items()})
    for _ in range(3):
        moved.grad = torch.randn(5, generator=generator).double()
        unreached.grad = torch.zeros(5).double()
        state = state.step({name: p.grad for name, p in module.named_parameters()})
        optimizer.step()
        assert_close(list(state.parameters.values()), [moved.detach(), unreached.detach()], 1e-14)
        if momentum:
            velocity = SGDState.read(module, optimizer).velocity
            assert_close([state.velocity[name] for name in velocity], list(velocity.values()), 1e-14)


def test_lookahead_leaves_no_trace() -> None:
    """Parameters, momentum, batch-norm statistics and torch's random state are as before."""
    trainer = tiny_trainer()
    for mode in ("keep", "recompute"):
        before = snapshot(trainer)
        looked_ahead(trainer, mode)
        after = snapshot(trainer)
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_modes_train_alike() -> None:
    """A run in the memory-saving mode ends with the same bits."""
    ends = []
    for mode in ("keep", "recompute"):
        trainer = tiny_trainer(mode=mode)
        trainer.train()
        ends.append([*trainer.model.state_dict().values(), *trainer.meta.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("mode", ["keep", "recompute", "unroll"])
def test_quadratic_by_hand(mode: str) -> None:
    """Two SGD steps on φ·x²/2 from x = 2 with φ = 3, lr = 0.1, wd = 0 and momentum 0.5, judged by x²/2.

    v₁ = φx = 6, x₁ = x - 0.1·v₁ = 1.4;  v₂ = 0.5·v₁ + φx₁ = 7.2, x₂ = x₁ - 0.1·v₂ = 0.68, outer loss 0.68²/2 = 0.2312.
    dv₁ = x = 2, dx₁ = -0.2;  dv₂ = 0.5·dv₁ + x₁ + φ·dx₁ = 1 + 1.4 - 0.6 = 1.8, dx₂ = -0.2 - 0.18 = -0.38, and so the
    gradient is x₂·dx₂ = 0.68 · -0.38 = -0.2584; at first order, without φ·dx₁, it is 0.68 · -0.44 = -0.2992.
    """
    x, phi = nn.Parameter(torch.tensor(2.0).double()), torch.tensor(3.0).double().requires_grad_()
    state = SGDState.read(nn.ParameterDict({"x": x}), torch.optim.SGD([x], lr=0.1, momentum=0.5))
    steps = [InnerStep(lambda tensors: phi * tensors["x"] ** 2 / 2)] * 2
    for first_order in [False] if mode == "unroll" else [False, True]:
        meta = meta_gradient(steps, lambda t: t["x"] ** 2 / 2, state, [phi], mode=mode, first_order=first_order)
        assert meta.outer_loss.item() == pytest.approx(0.2312, rel=1e-12)
        assert meta.gradients[0].item() == pytest.approx(-0.2992 if first_order else -0.2584, rel=1e-12)


def test_outer_objective_that_reads_hyper() -> None:
    """An outer loss that also depends on φ directly has both parts in its gradient."""
    phi = torch.tensor(3.0).double().requires_grad_()
    state = SGDState({"x": torch.tensor(2.0).double()}, {"x": SGDRule(0.1)})
    steps = [InnerStep(lambda tensors: phi * tensors["x"] ** 2)]
    meta = meta_gradient(steps, lambda tensors: tensors["x"] + phi**2, state, [phi])
    assert meta.gradients[0].item() == pytest.approx(-0.1 * 2 * 2 + 2 * 3)


def test_refusals() -> None:
    """SGD settings that the adjoint does not cover, and a lookahead that learns nothing, are refused."""
    module, other = nn.ParameterDict({"p": torch.zeros(1)}), nn.ParameterDict({"q": torch.zeros(1)})
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    for settings in ({"momentum": 0.9, "dampening": 0.5}, {"maximize": True}):
        name = list(settings)[-1]
        wanted = f"^optimizer: expected SGD without {name}, got {name}={settings[name]}$"
        with pytest.raises(ValueError, match=wanted):
            SGDState.read(module, torch.optim.SGD(module.parameters(), 0.1, **settings))
    with pytest.raises(ValueError, match=r"^optimizer: expected one with every parameter .*, got one without q$"):
        SGDState.read(other, optimizer)
    arguments = (lambda tensors: tensors["p"].sum(), SGDState.read(module, optimizer), [torch.ones(1).requires_grad_()])
    step = InnerStep(lambda tensors: tensors["p"].sum(), uses_hyper=False)
    with pytest.raises(ValueError, match=r"^steps: expected at least one that uses hyper, got none$"):
        meta_gradient([step], *arguments)
    with pytest.raises(ValueError, match=r"^mode: expected one of keep, recompute, unroll, got 'kept'$"):
        unchecked(meta_gradient)([step], *arguments, mode="kept")
    with pytest.raises(ValueError, match=r"^mode: expected keep or recompute with first_order, got 'unroll'$"):
        meta_gradient([InnerStep(step.loss)], *arguments, mode="unroll", first_order=True)


@pytest.mark.parametrize("layers", [nullcontext, second_order])
@pytest.mark.parametrize("mode", ["keep", "recompute"])
def test_what_is_learned_may_come_first(mode: str, layers: Callable[[], AbstractContextManager]) -> None:
    """A mask on the images lies before every layer: its gradient passes through all of them, also in the first step."""
    network = tiny.made(4, seed=1).double()
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    labels, mask = torch.arange(6) % 3, torch.ones(3, 1, 1, dtype=torch.float64, requires_grad=True)

    def masked(state: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(network, state, images * mask), labels)

    def loss(state: dict[str, Tensor]) -> Tensor:
        with layers():
            return masked(state)

    def outer(state: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(functional_call(network, state, images), labels)

    state = SGDState.read(network, torch.optim.SGD(network.parameters(), 0.1, momentum=0.9))
    ours = meta_gradient([InnerStep(loss)] * 2, outer, state, [mask], mode=mode).gradients[0]
    theirs = meta_gradient([InnerStep(masked)] * 2, outer, state, [mask], mode="unroll").gradients[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)
