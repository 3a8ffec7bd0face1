"""Learning what and where: the trainer's steps written out by hand, its tables, its switches, and all it refuses."""

import copy
import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
import torchvision
from tiny import TinyNet
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from typechecker import unchecked

from mtanytime.backbones import Normalized
from mtanytime.data.images import Batches, ImageSet
from mtanytime.transfer import Lookahead, MetaNetworks, PairWeights, TransferTrainer

CPU = torch.device("cpu")


def transfer(folder: Path | None = None, **options: Any) -> TransferTrainer:
    """A small transfer; two epochs of two batches of six images, unless told otherwise."""
    settings = {"epochs": 2, "batch_size": 6, "lr": 0.1, "weight_decay": 0.01, "schedule": "constant", "meta_lr": 0.05}
    settings |= {"beta": 0.7, "device": "cpu", "progress": False, "folder": folder, **options}
    source = settings.pop("source", None)
    source = tiny.made(5, seed=2).eval() if source is None else source
    target = settings.pop("target", None)
    data = settings.pop("data", None)
    return TransferTrainer(
        source, tiny.made(4, seed=1) if target is None else target, tiny.images() if data is None else data, **settings
    )


def steps(trainer: TransferTrainer, count: int) -> list[dict[str, float]]:
    """The figures of some further steps."""
    return [dict(report.metrics) for _, report in zip(range(count), trainer, strict=False)]


def stirred(trainer: TransferTrainer, seed: int = 3) -> TransferTrainer:
    """The trainer, with meta-networks that are not at their even start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.meta.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.3)
    return trainer


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A module's state, as it is now."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are the same to the last bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    """Each tensor within a relative error, in the 2-norm."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm().clamp(min=1e-12), f"{a} is not {b}"


# One step, written out by hand.


def maps(network: TinyNet, state: dict[str, Tensor], images: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """A TinyNet's maps and logits at the given parameters."""

    def part(name: str, x: Tensor) -> Tensor:
        module = getattr(network, name)
        own = {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}
        return functional_call(module, {**own, **{k: v.clone() for k, v in module.named_buffers()}}, (x,))

    first = part("first", images)
    second = part("second", first)
    return {"first": first, "second": second}, part("classifier", second.mean(dim=(2, 3)))


def by_hand(trainer: TransferTrainer, held_out: tuple[Tensor, Tensor] | None = None) -> dict[str, Any]:
    """What the next step must come to, by the paper's words and autograd alone: θ after it, the gradient of φ, the
    losses. The source and the target are TinyNets without dropout."""
    epoch, position = divmod(trainer.step, len(trainer.batches))
    images, labels = next(trainer.batches.epoch(epoch, start=position))
    images = images.double()
    target, matching, meta = trainer.model, trainer.student.matching, trainer.meta
    theta = {name: p.detach().clone().requires_grad_() for name, p in target.named_parameters()}
    velocity = {name: momentum(trainer, p) for name, p in target.named_parameters()}
    for target_layer, convolution in zip(matching.sources, matching.regressors, strict=True):
        for name, p in convolution.named_parameters():
            theta[f"{target_layer} {name}"] = p.detach().clone().requires_grad_()
            velocity[f"{target_layer} {name}"] = momentum(trainer, p)
    phi = [p.detach().clone().requires_grad_() for p in meta.parameters()]
    own = dict(zip([name for name, _ in meta.named_parameters()], phi, strict=True))
    with torch.no_grad():
        source = maps(trainer.networks[""], dict(trainer.networks[""].named_parameters()), images)[0]

    def where(i: int, pooled: Tensor) -> Tensor:
        if trainer.where == "off":
            return torch.ones(len(pooled), 1, dtype=pooled.dtype)
        if trainer.where == "constant":
            return F.softplus(10 * own["constant"][i]).expand(len(pooled), 1)
        value = pooled @ own[f"where.{i}.weight"].T + own[f"where.{i}.bias"]
        return value.clamp(0, 6) if trainer.where == "relu6" else value.clamp(min=0)

    def matched(state: dict[str, Tensor], features: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(len(images), dtype=torch.float64)
        for i, (m, n) in enumerate(trainer.pairs):
            pooled = source[m].mean(dim=(2, 3))
            what = torch.full_like(pooled, 1 / pooled.shape[1])
            if trainer.what:
                what = (pooled @ own[f"what.{i}.weight"].T + own[f"what.{i}.bias"]).softmax(dim=1)
            before = [s for s, t in trainer.pairs[:i] if t == n]
            start = sum(source[s].shape[1] for s in before)
            rows = slice(start, start + source[m].shape[1])
            r = F.conv2d(features[n], state[f"{n} weight"][rows], state[f"{n} bias"][rows])
            s = F.interpolate(source[m], features[n].shape[2:], mode="bilinear", align_corners=False)
            total = total + (where(i, pooled) * what * (r - s).square().mean(dim=(2, 3))).sum(dim=1)
        return trainer.beta * total.mean()

    def moved(state: dict[str, Tensor], v: dict[str, Tensor], loss: Callable) -> tuple[dict, dict]:
        at = {k: p.detach().requires_grad_() for k, p in state.items()} if trainer.first_order else state
        found = torch.autograd.grad(
            loss(at), list(at.values()), create_graph=True, allow_unused=True, materialize_grads=True
        )
        v = {k: 0.9 * v[k] + g + 0.01 * state[k] for k, g in zip(state, found, strict=True)}
        return {k: state[k] - 0.1 * v[k] for k in state}, v

    def task(state: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(maps(target, state, images)[1], labels)

    def match(state: dict[str, Tensor]) -> Tensor:
        return matched(state, maps(target, state, images)[0])

    def both(state: dict[str, Tensor]) -> Tensor:
        return task(state) + match(state)

    losses = {"loss": both(theta), "task_loss": task(theta), "matching_loss": match(theta)}
    theta, velocity = moved(theta, velocity, both)
    theta = {name: value.detach().requires_grad_() for name, value in theta.items()}
    velocity = {name: value.detach() for name, value in velocity.items()}
    after = theta
    if phi:
        for loss in [match] * trainer.inner_steps + [task] if trainer.stages == 3 else [both] * trainer.inner_steps:
            theta, velocity = moved(theta, velocity, loss)
        x, y = (images, labels) if held_out is None else held_out
        losses["outer_loss"] = F.cross_entropy(maps(target, theta, x)[1], y)
        gradients = torch.autograd.grad(losses["outer_loss"], phi)
        for p, gradient in zip(phi, gradients, strict=True):
            p.grad = gradient
        optimizer = torch.optim.Adam(phi, trainer.meta_lr, weight_decay=trainer.meta_weight_decay)
        optimizer.load_state_dict(copy.deepcopy(trainer.meta_optimizer.state_dict()))
        optimizer.step()
    return {"theta": after, "phi": phi, "losses": {name: value.item() for name, value in losses.items()}}


def momentum(trainer: TransferTrainer, parameter: nn.Parameter) -> Tensor:
    """A copy of a parameter's momentum buffer, zero where there is none yet."""
    found = trainer.optimizer.state[parameter].get("momentum_buffer")
    return torch.zeros_like(parameter) if found is None else found.clone()


def double(**options: Any) -> TransferTrainer:
    """A transfer in float64 with stirred meta-networks, momentum and weight decay as in `by_hand`."""
    source, target = tiny.made(5, seed=2).double().eval(), tiny.made(4, seed=1).double()
    return stirred(transfer(source=source, target=target, momentum=0.9, **options))


def assert_steps_are_those_by_hand(trainer: TransferTrainer, held_out: tuple[Tensor, Tensor] | None = None) -> None:
    """Three steps, the last with a smaller batch and a momentum behind it."""
    for _ in range(3):
        expected = by_hand(trainer, held_out)
        figures = steps(trainer, 1)[0]
        for name, value in expected["losses"].items():
            assert figures[name] == pytest.approx(value, rel=1e-10), name
        assert ("outer_loss" in figures) == ("outer_loss" in expected["losses"])
        regressors = [
            p for convolution in trainer.student.matching.regressors for _, p in convolution.named_parameters()
        ]
        assert_close([*trainer.model.parameters(), *regressors], list(expected["theta"].values()))
        assert_close(list(trainer.meta.parameters()), expected["phi"])
        for ours, theirs in zip(trainer.meta.parameters(), expected["phi"], strict=True):
            assert theirs.grad.abs().max() > 0
            assert_close([ours.grad], [theirs.grad])


ODD = [("second", "first"), ("first", "second"), ("first", "first")]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inner_steps": 1, "mode": "recompute"},
        {"inner_steps": 3, "mode": "unroll"},
        {"stages": 2},
        {"stages": 2, "inner_steps": 1, "beta": 0.1},
        {"where": "off"},
        {"what": False},
        {"what": False, "where": "off"},
        {"where": "constant", "beta": 3.0},
        {"where": "relu", "pairs": ODD},
        {"first_order": True},
        {"first_order": True, "stages": 2, "mode": "recompute"},
        {"pairs": [("second", "second")]},
    ],
    ids=str,
)
def test_steps_by_hand(options: dict[str, Any]) -> None:
    """Every switch, number of steps and stage: losses, θ, the gradient of φ and Adam's step are the paper's."""
    assert_steps_are_those_by_hand(double(data=tiny.images(9), **options))


def test_outer_objective_on_a_held_out_batch() -> None:
    """φ is trained on the objective given, here held-out images, and the objective is handed the step's own batch."""
    images, labels = next(Batches(tiny.images(seed=8), 8, seed=0).epoch(0))
    held_out, seen = (images.double(), labels), []

    def outer(forward: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Tensor:
        seen.append((images, labels))
        return F.cross_entropy(forward(held_out[0]), held_out[1])

    trainer = double(data=tiny.images(9), outer=outer)
    assert len(seen) == 1  # tried before training
    batches = [batch for epoch in range(2) for batch in trainer.batches.epoch(epoch)][:3]
    assert_steps_are_those_by_hand(trainer, held_out)
    assert [(x.tolist(), y.tolist()) for x, y in seen[1:]] == [(x.double().tolist(), y.tolist()) for x, y in batches]
    assert trainer._config()["outer"].endswith("outer")


def test_fixed_matching_is_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what and where off there is no φ: no lookahead and no outer loss; torch's own loop gives the same."""
    trainer = transfer(what=False, where="off", data=tiny.images(10))
    monkeypatch.setattr(Lookahead, "backward", None)
    assert trainer.meta_optimizer is None
    model, pairs = copy.deepcopy(trainer.model).train(), trainer.pairs
    regressors = {}
    for pair in pairs:
        weight, bias = (p.detach().clone() for p in trainer.student.matching.regressor(pair))
        regressors[pair] = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        regressors[pair].load_state_dict({"weight": weight, "bias": bias})
    everything = nn.ModuleList([model, *regressors.values()])
    optimizer = torch.optim.SGD(everything.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    source = trainer.networks[""]
    losses = []
    for epoch in range(2):
        for images, labels in trainer.batches.epoch(epoch):
            with torch.no_grad():
                theirs = {"first": source.first(images), "second": source.second(source.first(images))}
            first = model.first(images)
            ours = {"first": first, "second": model.second(first)}
            matching = sum(
                F.mse_loss(regressors[m, n](ours[n]), F.interpolate(theirs[m], ours[n].shape[2:], mode="bilinear"))
                for m, n in pairs
            )
            loss = F.cross_entropy(model.classifier(ours["second"].mean(dim=(2, 3))), labels) + 0.7 * matching
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    log = trainer.train().log
    assert log["loss"].tolist() == pytest.approx(losses, rel=1e-4)
    assert "outer_loss" not in log.columns
    torch.testing.assert_close(copied(trainer.model), copied(model), rtol=1e-3, atol=1e-5)
    assert trainer.tables["trace"][-1]["weight"] == 1.0
    assert trainer.tables["trace"][-1]["weight_std"] == 0.0


class Kernel(torch.autograd.Function):
    """The identity, with a backward that has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same."""
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The same."""
        return gradient.clone()


class Once(nn.Module):
    """`Kernel` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return Kernel.apply(x)


def test_double_backward_is_asked_only_of_what_is_differentiated_twice() -> None:
    """Fixed matching has no meta-gradient, so a target that can't be differentiated twice may have it."""
    target = nn.Sequential(nn.Conv2d(3, 4, 3), Once(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(RuntimeError, match=r"because of '1' \(Once\)"):
        transfer(target=target, target_layers=["2"])
    transfer(target=target, target_layers=["2"], what=False, where="off").train()


# Several sources.


def test_a_source_that_is_switched_off_is_as_if_it_were_not_there() -> None:
    """λ of the second source at zero: losses, target and meta-gradients are those of the first source alone."""

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


def test_sources_with_their_own_input_size_and_normalisation() -> None:
    """Each source sees the images as it was trained to, whatever the others and the target want."""
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
    """A source computes in its own precision; what is trained is in the target's."""
    trainer = transfer(source=tiny.made(5).to(of_source).eval(), target=tiny.made(4).to(of_target))
    trainer.train()
    assert {p.dtype for p in [*trainer.student.parameters(), *trainer.meta.parameters()]} == {of_target}
    assert next(trainer.networks[""].parameters()).dtype == of_source


def test_a_source_without_parameters() -> None:
    """A hand-made filter bank can be a source too."""
    transfer(source=nn.Sequential(nn.AvgPool2d(2), nn.Tanh()).eval(), source_layers="0").train()


# Tables.


class Spy:
    """Keeps what and where of every real step of a trainer."""

    def __init__(self, trainer: TransferTrainer) -> None:
        self.seen: list[PairWeights] = []
        trainer.meta.register_forward_hook(lambda module, inputs, weights: self.seen.append(weights))

    def of(self, kind: str, pair: tuple[str, str], first: int, last: int) -> Tensor:
        """λ or w of a pair, one row an image, from one step to another, both counted from 1 and included."""
        return torch.cat([getattr(weights, kind)[pair].detach().double() for weights in self.seen[first - 1 : last]])


def test_trace_and_channels() -> None:
    """Rows at every `trace_every`-th step and the last: mean and spread over all images since the row before."""
    trainer = stirred(transfer(epochs=6, data=tiny.images(13), batch_size=5, trace_every=2, pairs=ODD))
    trainer.trace_every = 2
    spy = Spy(trainer)
    result = trainer.train()  # 18 steps of 5, 5 and 3 images
    assert result.trace.columns.tolist() == ["step", "source", "target", "weight", "weight_std"]
    assert result.channels.columns.tolist() == ["step", "source", "target", "channel", "weight"]
    rows = iter(result.trace.itertuples())
    for step in range(2, 19, 2):
        for pair in ODD:
            row = next(rows)
            weights = spy.of("pairs", pair, step - 1, step)
            assert (row.step, row.source, row.target) == (step, *pair)
            assert row.weight == pytest.approx(weights.mean().item(), rel=1e-9)
            assert row.weight_std == pytest.approx(weights.std(correction=0).item(), abs=1e-7)
    assert next(rows, None) is None
    assert result.trace["weight_std"].max() > 0.01
    rows = iter(result.channels.itertuples())
    for first, step in ((1, 10), (11, 18)):
        for pair in ODD:
            weights = spy.of("channels", pair, first, step).mean(dim=0)
            found = [next(rows) for _ in weights]
            assert [row[1:5] for row in found] == [(step, *pair, c) for c in range(len(weights))]
            assert [row.weight for row in found] == pytest.approx(weights.tolist(), rel=1e-9)
            assert sum(row.weight for row in found) == pytest.approx(1, abs=1e-6)
    assert next(rows, None) is None
    log = result.log
    for i, weights in enumerate(spy.seen):
        by_pair = [weights.pairs[pair].mean().item() for pair in ODD]
        assert log["mean_lambda"][i] == pytest.approx(sum(by_pair) / 3, rel=1e-5)
    assert log.columns.tolist()[4:] == [
        "loss",
        "task_loss",
        "matching_loss",
        "accuracy",
        "mean_lambda",
        "outer_loss",
    ]


def test_rows_of_the_trace() -> None:
    """A hundred rows a run by default, and the last step always has one."""
    assert transfer(epochs=175).trace_every == 3
    assert transfer(epochs=3).trace_every == 1
    result = transfer(trace_every=3).train()
    assert result.trace["step"].unique().tolist() == [3, 4]
    assert result.channels["step"].unique().tolist() == [4]
    assert transfer(trace_every=100).train().trace["step"].unique().tolist() == [4]


def test_tables_of_a_run_in_pieces(tmp_path: Path) -> None:
    """Broken off between two rows, the means and spreads go on where they were: the tables end the same."""

    def made(folder: Path | None) -> TransferTrainer:
        return transfer(folder, epochs=6, data=tiny.images(13), batch_size=5, trace_every=4)

    whole = made(None)
    expected = whole.train()
    for count in (3, 2, 6):
        steps(made(tmp_path / "run"), count)
    last = made(tmp_path / "run")
    assert last.step == 11
    result = last.train()
    for name in ("trace", "channels"):
        pd.testing.assert_frame_equal(result.tables[name], expected.tables[name], check_exact=True)
        written = pd.read_csv(tmp_path / "run" / f"{name}.csv")
        pd.testing.assert_frame_equal(written, expected.tables[name], rtol=1e-12)
    assert same(copied(last.student), copied(whole.student))
    assert same(copied(last.meta), copied(whole.meta))


# What is learned.


class Clue(nn.Module):
    """Tells the image's class, or the next one, which its first pixel betrays: 4 in one of three channels."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        """Maps (batch, 3, 1, 1)."""
        told = (images[:, 0, 0, 0] * 255 / 100).round().long() + self.shift
        return 4 * F.one_hot(told % 3, 3).to(images.dtype)[:, :, None, None]


class Clues(nn.Module):
    """Layers that help, that mislead, and that do both, three channels each."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.wrong, self.both = Clue(0), Clue(1), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """The maps."""
        return self.both(torch.cat([self.right(images), self.wrong(images)], dim=1))


def learned(seed: int, layers: list[str], **options: Any) -> TransferTrainer:
    """A trained transfer from `Clues` to a target whose matched layer holds its logits."""

    def target() -> nn.Module:
        features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(features, nn.Conv2d(6, 3, 1), nn.Flatten())

    data = tiny.images(60, seed=seed)
    pixels = data.images.clone()
    pixels[:, 0, 0, 0] = 100 * data.labels
    data = ImageSet(pixels, data.labels, data.classes)
    options |= {"lr": 0.02, "beta": 0.1, "meta_lr": 0.02, "batch_size": 20, "epochs": 25, "seed": seed}
    trainer = transfer(
        source=Clues().eval(), target=target, data=data, source_layers=layers, target_layers=["1"], **options
    )
    with torch.no_grad():  # the regressors tell the clues apart from the start, so that the wrong one is wrong
        for pair in trainer.pairs:
            weight, bias = trainer.student.matching.regressor(pair)
            weight.copy_(torch.eye(3).repeat(len(weight) // 3, 1)[:, :, None, None])
            bias.zero_()
    trainer.train()
    return trainer


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("where", ["relu6", "constant"])
def test_where_is_learned(where: str, seed: int) -> None:
    """The pair that helps the task is turned up and the one that misleads is turned down: no sign is wrong."""
    trace = learned(seed, ["right", "wrong"], where=where, what=False).result().trace
    last = trace[trace["step"] == trace["step"].max()].set_index("source")["weight"]
    assert last["right"] > 1.5
    assert last["wrong"] < 0.75 * last["right"]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_learned(seed: int) -> None:
    """Of one layer's channels, those that help come to count for more than those that mislead."""
    channels = learned(seed, ["both"], where="off").result().channels
    weights = channels[channels["step"] == channels["step"].max()]["weight"].tolist()
    assert sum(weights[:3]) > 0.6 > 0.4 > sum(weights[3:])


# Precision, seeds, data.


def test_bfloat16() -> None:
    """Under autocast losses stay near those of float32, weights stay float32, and λ isn't rounded to three digits."""
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
    """Target, regressors and meta-networks hang on the run's seed and on nothing else."""

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
    """Making the networks, steps, lookaheads and results take nothing from the caller's random numbers."""

    class Noisy(TinyNet):
        """Draws random numbers in eval mode too."""

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
    """A plain DataLoader does in place of a set, and gives the same steps where it gives the same batches."""
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
    """What does not require grad stays as it is, before and after the matched layers."""
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
    """What no loss reaches has gradient zero, not none: weight decay moves it, as it does in the lookahead."""
    target = tiny.made(4, seed=1)
    target.spare = nn.Linear(2, 2)
    before = copied(target.spare)
    transfer(target=target, momentum=0.0, data=tiny.images(6), epochs=2).train()
    torch.testing.assert_close(target.spare.weight.data, before["weight"] * (1 - 0.1 * 0.01) ** 2)


@pytest.mark.parametrize("family", ["efficientnet", "vgg"])
def test_torchvisions_networks(family: str) -> None:
    """Two of torchvision's networks by layer path, with in-place activations and random depth."""

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


# The source stays as it is.


def test_source_is_put_right_and_said() -> None:
    """A source straight from its own training is put in eval mode, and the reader is told."""
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


def test_notes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """What was put right is said before the progress bar."""
    transfer(source=tiny.made(5).train(), progress=True).train()
    assert capsys.readouterr().out.startswith("source: was in train mode, switched to eval mode\n")


def test_source_on_another_device() -> None:
    """A source elsewhere is moved to the run's device, and that is said; one without values can't be."""

    class Elsewhere(TinyNet):
        """Seems to be on another device until it is moved."""

        def __init__(self) -> None:
            super().__init__()
            self.real = copied(self)
            super().to("meta")

        def to(self, device: torch.device) -> "Elsewhere":
            """Bring the real weights."""
            self.load_state_dict(self.real, assign=True)
            return self

    with torch.random.fork_rng([]):
        trainer = transfer(source={"far": Elsewhere().eval().requires_grad_(False)})
    assert trainer.notes == ["source 'far': moved from meta to cpu"]
    trainer.train()
    with pytest.raises(ValueError, match=r"^source: Cannot copy out of meta tensor; no data"):
        transfer(source=tiny.made(5).to("meta"))


def test_source_is_not_changed() -> None:
    """Weights, statistics and gradients of the source are afterwards as before, to the last bit."""
    source = tiny.made(5, seed=2, dropout=0.5)
    for parameter in source.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = copied(source)
    trainer = transfer(source=source)
    for report in trainer:
        if report.step == 2:
            source.train()  # a notebook's cell may do so in between
    assert same(copied(source), before)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in source.parameters())


# Breaking off, memory.


def test_an_error_within_the_lookahead(tmp_path: Path) -> None:
    """Weights half way through a step are not gone on from; nothing of the lookahead is left in the target."""
    calls = iter(range(100))

    def outer(forward: Callable[[Tensor], Any], images: Tensor, labels: Tensor) -> Tensor:
        if next(calls) == broken:
            raise MemoryError("no room")
        return F.cross_entropy(forward(images), labels)

    broken = -1
    whole = transfer(outer=outer)
    whole.train()
    for folder in (None, tmp_path / "run"):
        calls, broken = iter(range(100)), 3
        trainer = transfer(folder, outer=outer)
        parameters, before = list(trainer.model.parameters()), torch.get_rng_state()
        with pytest.raises(MemoryError):
            trainer.train()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(a is b and a.is_leaf for a, b in zip(trainer.model.parameters(), parameters, strict=True))
        assert not any(module._forward_hooks for module in trainer.model.modules())
        if folder is None:
            with pytest.raises(RuntimeError, match="broke off within a step and has no folder"):
                trainer.train()
        else:
            trainer.train()
            assert same(copied(trainer.student), copied(whole.student))
            assert trainer.tables["trace"] == whole.tables["trace"]


@pytest.mark.parametrize(
    ("options", "graphs"),  # of φ, the real step's two losses, the lookahead's three or four, the outer loss
    [({}, 7), ({"mode": "recompute"}, 10), ({"stages": 2, "where": "constant"}, 8)],
    ids=str,
)
def test_no_graph_outlives_its_step(options: dict[str, Any], graphs: int) -> None:
    """Memory does not grow: every graph is gone as its step ends, with no help of the garbage collector."""

    class Token:
        """Lives as long as the node of a graph that it is put on."""

    tokens: list[weakref.ref] = []

    def mark(value: Tensor) -> None:
        value.grad_fn.metadata["token"] = token = Token()
        tokens.append(weakref.ref(token))

    def loss(output: Tensor, labels: Tensor) -> Tensor:
        if output.requires_grad:
            mark(output)
        return F.cross_entropy(output, labels)

    trainer = transfer(loss=loss, target=tiny.made(4, dropout=0.3), **options)
    aligned_loss = trainer.student.matching.aligned_loss

    def marked(*inputs: Any) -> Tensor:
        mark(value := aligned_loss(*inputs))
        return value

    trainer.student.matching.aligned_loss = marked
    trainer.meta.register_forward_hook(lambda module, inputs, weights: mark(weights.pairs["first", "second"]))
    gc.collect()
    gc.disable()
    try:
        for _ in trainer:
            assert len(tokens) == graphs
            assert not any(token() for token in tokens)
            tokens.clear()
    finally:
        gc.enable()


# Bad input.


def refused(error: type[Exception], match: str, folder: Path, **options: Any) -> None:
    """A transfer with these options is refused, and nothing is written."""
    with pytest.raises(error, match=match):
        transfer(folder, **options)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"inner_steps": 0}, r"wanted inner_steps \(T\) a whole number >= 1: with T = 0 the .* no gradient; got 0"),
        ({"inner_steps": -1}, r"wanted inner_steps \(T\) a whole number >= 1: .*; got -1"),
        ({"inner_steps": 1.5}, r"wanted inner_steps \(T\) a whole number >= 1: .*; got 1.5"),
        ({"stages": 4}, "wanted stages 2 or 3; got 4"),
        ({"beta": 0.0}, "wanted beta > 0; got 0.0"),
        ({"beta": -1.0}, "wanted beta > 0; got -1.0"),
        ({"beta": float("nan")}, "wanted beta > 0; got nan"),
        ({"beta": float("inf")}, "wanted beta > 0; got inf"),
        ({"meta_lr": 0.0}, "wanted meta_lr > 0; got 0.0"),
        ({"meta_lr": -1e-4}, "wanted meta_lr > 0; got -0.0001"),
        ({"meta_weight_decay": -1e-4}, "wanted meta_weight_decay >= 0; got -0.0001"),
        ({"trace_every": 0}, "wanted trace_every a whole number >= 1; got 0"),
        ({"trace_every": 2.5}, "wanted trace_every a whole number >= 1; got 2.5"),
        ({"mode": "fast"}, r"wanted mode one of \('keep', 'recompute', 'unroll'\); got 'fast'"),
        ({"mode": "unroll", "first_order": True}, "wanted mode 'keep' or 'recompute' with first_order; got 'unroll'"),
        ({"where": "sigmoid"}, "where: expected one of relu6, relu, constant, off, got 'sigmoid'"),
        ({"where_start": "zero"}, "where_start: expected one of random, even, got 'zero'"),
        ({"source": {}}, "wanted source as a network, or as one or more networks by name; got {}"),
        ({"source": "resnet18"}, "wanted source as a network, or as one or more networks by name; got 'resnet18'"),
        ({"source": {"a/b": tiny.made(3)}}, r"wanted sources with names, without a '/'; got \['a/b'\]"),
        ({"source": {"": tiny.made(3)}}, r"wanted sources with names, without a '/'; got \[''\]"),
        ({"pairs": []}, r"wanted one or more pairs \(source layer, target layer\); got \[\]"),
        ({"pairs": [("first", "first", "first")]}, r"wanted one or more pairs \(source layer, target layer\); got"),
    ],
    ids=lambda value: str(value).split(" at 0x")[0][:40],
)
def test_bad_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], match: str) -> None:
    """Each bad setting is refused with what was wanted and what came, of the wrong type or not."""
    for kind in (TransferTrainer, MetaNetworks):  # as users have them, without the tests' own check of types
        monkeypatch.setattr(kind, "__init__", unchecked(kind.__init__))
    refused(ValueError, match, tmp_path / "run", **options)


def test_unknown_keyword(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt option is no option."""
    monkeypatch.setattr(TransferTrainer, "__init__", unchecked(TransferTrainer.__init__))
    refused(TypeError, "unexpected keyword argument 'epoch'", tmp_path / "run", epoch=3)


TWO = {"a": tiny.made(3, seed=2), "b": tiny.made(3, seed=3)}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"source_layers": ["layer9"]},
            r"^source: layers: expected layers of TinyNet \(.*first.*\), got 'layer9'$",
        ),
        ({"target_layers": ["layer9"]}, r"^target: layers: expected layers of TinyNet \(.*first.*\), got 'layer9'$"),
        ({"pairs": [("first", "frist")]}, r"^target: layers: expected layers of TinyNet \(first.*, got 'frist'$"),
        ({"pairs": [("frist", "first")]}, r"^source: layers: expected layers of TinyNet \(first.*, got 'frist'$"),
        ({"source_layers": []}, r"^source: layers: expected at least one module path of TinyNet, got \(\)"),
        ({"target_layers": []}, r"^target: layers: expected at least one module path of TinyNet, got \(\)"),
        ({"target_layers": ["first", "first"]}, "^target: layers: expected each layer once, got 'first' twice"),
        ({"pairs": [("first", "first")] * 2}, r"wanted each pair once; got \('first', 'first'\)"),
        (
            {"source_layers": ["first"], "target_layers": ["second"], "pairs": [("first", "first")]},
            r"pair \('first', 'first'\) lies outside the layers to match \(source: first; target: second\)",
        ),
        (
            {"source_layers": ["first", "second"], "pairs": [("first", "first")]},
            "layer 'second' is in no pair; wanted every listed layer in a pair",
        ),
        (
            {"target_layers": ["first", "second"], "pairs": [("first", "first")]},
            "layer 'second' is in no pair; wanted every listed layer in a pair",
        ),
        ({"source": TWO, "pairs": [("a/first", "first")]}, r"source 'b' is in no pair; wanted .* \['a', 'b'\]"),
        (
            {"source": TWO, "pairs": [("first", "first")]},
            r"wanted a source layer as 'name/layer' with a name of \['a', 'b'\]; got 'first'",
        ),
        (
            {"source": TWO, "pairs": [("c/first", "first")]},
            r"wanted a source layer as 'name/layer' with a name of \['a', 'b'\]; got 'c/first'",
        ),
        (
            {"source": TWO, "pairs": [("a/first", "first"), ("b/frist", "first")]},
            r"^source 'b': layers: expected layers of TinyNet .*, got 'frist'$",
        ),
        (
            {"source": TWO, "source_layers": ["first"]},
            r"wanted source_layers as a dict with the layers of \['a', 'b'\]; got \['first'\]",
        ),
        (
            {"source": TWO, "source_layers": {"a": ["first"]}},
            r"wanted source_layers as a dict with the layers of \['a', 'b'\]; got {'a'",
        ),
        ({"source_layers": {"a": ["first"]}}, r"wanted source_layers as a list; got {'a'"),
        (
            {"source": nn.Sequential(nn.Conv2d(3, 4, 3))},
            r"^source: Sequential has no feature_layers of its own; wanted source_layers \(features.image_layers",
        ),
        (
            {"target": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())},
            r"^target: Sequential has no feature_layers of its own; wanted target_layers \(features.image_layers",
        ),
    ],
    ids=lambda value: str(value).split(" at 0x")[0][:60],
)
def test_layers_and_pairs(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Layers and pairs that are not there, come twice or are left over are named, with the network they are of."""
    source = options.get("source", tiny.made(3)).values() if isinstance(options.get("source"), dict) else ()
    refused(ValueError, match, tmp_path / "run", **options)
    assert all(network.training for network in source)  # refused before anything was put right


class Cases:
    """Networks that can't be matched, each in one way."""

    class NoGrad(TinyNet):
        """Its second layer is computed without gradients."""

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            with torch.no_grad():
                maps = self.second(self.first(images))
            return self.classifier(maps.mean(dim=(2, 3)))

    class Twice(TinyNet):
        """Runs its first activation twice."""

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            self.first[2](images)
            return super().forward(images)

    class Attention(TinyNet):
        """Fused attention over the second layer's pixels."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            pixels = self.second(self.first(images)).flatten(2).transpose(1, 2)
            return self.classifier(self.attention(pixels, pixels, pixels, need_weights=False)[0].mean(dim=1))


def flat(size: int) -> nn.Module:
    """A network that takes images of one size only."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size**2, 3))


def frozen_first() -> TinyNet:
    """A target whose first layer is not trained."""
    target = tiny.made(4)
    target.first.requires_grad_(False)
    return target


NO_GRADIENT = r"gets no gradient: no trained parameter comes before it in the forward pass \(frozen.*wanted a layer"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"target": tiny.made(4, classes=2)},
            "^target: training labels: expected 0 to 1, one per output of the network, got 2$",
        ),
        (
            {"target": flat(9), "target_layers": ["1"]},
            r"^target: model: expected .* 4 training images of shape \(3, 8, 8\), got Sequential, which fails: mat1",
        ),
        (
            {"source": flat(9), "source_layers": ["1"]},
            r"^source, given images of shape \(3, 8, 8\): mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            {"source": {"a": tiny.made(3), "b": flat(9)}, "source_layers": {"a": ["first"], "b": ["1"]}},
            r"^source 'b', given images of shape \(3, 8, 8\): mat1 and mat2 shapes cannot be multiplied",
        ),
        ({"target": frozen_first()}, f"target layer 'first' {NO_GRADIENT}"),
        ({"target": Cases.NoGrad()}, f"target layer 'first' {NO_GRADIENT}"),
        ({"target": Cases.NoGrad(), "target_layers": ["second"]}, f"target layer 'second' {NO_GRADIENT}"),
        ({"target": nn.Sequential(nn.AvgPool2d(2), flat(4)), "target_layers": ["0"]}, f"layer '0' {NO_GRADIENT}"),
        (
            {"target": tiny.made(4).requires_grad_(False)},
            "model: expected a network with parameters that require grad, got",
        ),
        (
            {"target_layers": ["classifier"]},
            r"^target, given .*: layer 'classifier': expected an image map \(batch 4, channel.*, got \(4, 3\)$",
        ),
        (
            {"source_layers": ["classifier"]},
            r"^source, given .*: layer 'classifier': expected an image map \(batch 4, channel.*, got \(4, 3\)$",
        ),
        (
            {"target": Cases.Twice(), "target_layers": ["first.2"]},
            "^target, .*: layer 'first.2' .* runs more than once",
        ),
        (
            {"source": Cases.Twice(), "source_layers": ["first.2"]},
            "^source, .*: layer 'first.2' .* runs more than once",
        ),
        ({"outer": lambda forward, images, labels: forward(images)}, "^outer .*: wanted a scalar tensor that depends"),
        ({"outer": lambda forward, images, labels: labels.sum()}, "^outer .*: wanted a scalar tensor that depends"),
        ({"outer": lambda forward, images, labels: forward(images, 1)}, "^outer .*lambda.*: .*positional argument"),
    ],
    ids=lambda value: str(value).split(" at 0x")[0][:60],
)
def test_networks_that_do_not_fit(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Networks, labels and objectives that can't work are found on a few images, before anything begins."""
    target = options.get("target")
    before = None if target is None else copied(target)
    refused(ValueError, match, tmp_path / "run", **options)
    assert target is None or same(copied(target), before)


def test_fused_attention_is_named_before_training(tmp_path: Path) -> None:
    """A layer whose backward has no derivative would stop the first step: named at once, with the remedy."""
    match = r"because of 'attention' \(MultiheadAttention\): .*SDPBackend\.MATH"
    with torch.random.fork_rng([]):
        target = Cases.Attention()
    refused(RuntimeError, match, tmp_path / "run", target=target)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        transfer(target=target).train()


def test_source_and_target_are_two_networks(tmp_path: Path) -> None:
    """A target that is its own source, or shares a part of it, would be matched to itself."""
    match = "^{} and the target share layers or parameters; wanted two networks"
    network = tiny.made(4)
    refused(ValueError, match.format("source"), tmp_path / "run", source=network, target=network)
    tied, dropout = tiny.made(4, seed=7), tiny.made(4, seed=8)
    tied.first[0].weight = network.first[0].weight
    dropout.dropout = network.dropout
    for other in (tied, dropout, Normalized(network, (0.5,) * 3, (0.5,) * 3)):
        refused(ValueError, match.format("source 'a'"), tmp_path / "run", source={"a": other}, target=network)
        assert other.training


def test_another_run_is_refused(tmp_path: Path) -> None:
    """What makes a transfer another run is in its record: the source's weights, the pairs, every switch."""
    folder = tmp_path / "run"
    steps(transfer(folder), 1)
    others = {
        "sources": {"source": tiny.made(5, seed=3)},
        "pairs": {"pairs": ODD},
        "what": {"what": False},
        "where": {"where": "relu"},
        "where_start": {"where_start": "even"},
        "beta": {"beta": 0.6},
        "inner_steps": {"inner_steps": 1},
        "stages": {"stages": 2},
        "meta_lr": {"meta_lr": 0.1},
        "meta_weight_decay": {"meta_weight_decay": 0.0},
        "outer": {"outer": lambda forward, images, labels: F.cross_entropy(forward(images), labels)},
        "first_order": {"first_order": True},
        "trace_every": {"trace_every": 2},
    }
    for name, options in others.items():
        with pytest.raises(ValueError, match=rf"already holds another run \({name}: there "):
            transfer(folder, **options)
    assert transfer(folder, mode="recompute").step == 1  # the same numbers, worked out in another way


ACCELERATORS = [
    name for name, there in (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available())) if there
]


@pytest.mark.parametrize("mode", ["keep", "recompute"])
@pytest.mark.parametrize("device", ACCELERATORS)
def test_on_an_accelerator(device: str, mode: str) -> None:
    """Where there is a GPU, a run on it is near the one on the CPU; without dropout, whose masks differ."""
    there = steps(transfer(device=device, mode=mode), 3)
    here = steps(transfer(mode=mode), 3)
    for a, b in zip(there, here, strict=True):
        assert a == pytest.approx(b, rel=1e-2, abs=1e-3)


def test_meta_gradient_to_look_at() -> None:
    """It is the gradient of the step that follows the real one, and leaves no trace on the run."""
    trainer = stirred(double())
    images, labels = next(trainer.batches.epoch(0))
    meta = copied(trainer.meta)
    trainer.model.train()
    trainer.train_on_batch(images.double(), labels)
    expected = [parameter.grad for parameter in trainer.meta.parameters()]
    trainer.meta.load_state_dict(meta)  # as it was for the real step
    trainer.model.eval()
    student = copied(trainer.student)
    found = trainer.meta_gradient(images, labels)
    assert_close(found, expected)
    assert same(student, copied(trainer.student))
    assert same(meta, copied(trainer.meta))
    assert not trainer.model.training
    with pytest.raises(RuntimeError, match="what and where are off"):
        transfer(what=False, where="off").meta_gradient(images, labels)


class Again(TinyNet):
    """Runs its second part anew in the backward pass, to save memory."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        maps = checkpoint(self.second, self.first(images), use_reentrant=False)
        return self.classifier(maps.mean(dim=(2, 3)))


class Energy(TinyNet):
    """Sees its own slope on the images, so training it takes a gradient of a gradient already."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            slope = torch.autograd.grad(self.first[0](images).tanh().sum(), images, create_graph=True)[0]
        return super().forward(images + 0.1 * slope)


@pytest.mark.parametrize("kind", [Again, Energy])
def test_targets_that_take_a_gradient_themselves(kind: type[TinyNet]) -> None:
    """What does not go with the quick layers is trained with torch's own, and the run says so."""
    made = {}
    for mode in ("keep", "unroll"):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            target = kind(4, activation=nn.Softplus).double()
        layers = {"target_layers": ["first"] if kind is Again else ["second"]}
        trainer = stirred(transfer(target=target, mode=mode, **layers, source=tiny.made(5, seed=2).double().eval()))
        assert any("torch's own layers" in note for note in trainer.notes)
        steps(trainer, 1)
        made[mode] = [parameter.grad for parameter in trainer.meta.parameters()]
    assert_close(made["keep"], made["unroll"])
