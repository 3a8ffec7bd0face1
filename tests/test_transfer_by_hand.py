"""The trainer's steps against the paper's algorithm written out by hand, and its meta-gradient."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from tiny import TinyNet
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from transfer_runs import ODD, assert_close, copied, double, same, steps, stirred, transfer

from mtanytime.data.batches import Batches
from mtanytime.transfer import Lookahead, TransferTrainer


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
    """The expected result of the next step, by the paper's algorithm and autograd: θ, the gradient of φ and the losses.

    The source and the target are TinyNets without dropout.
    """
    epoch, position = divmod(trainer.step, len(trainer.batches))
    images, labels = next(trainer.batches.epoch(epoch, start=position))
    images = images.double()
    settings = trainer.transfer_settings
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
        if settings.where == "off":
            return torch.ones(len(pooled), 1, dtype=pooled.dtype)
        if settings.where == "constant":
            return F.softplus(10 * own["constant"][i]).expand(len(pooled), 1)
        value = pooled @ own[f"where.{i}.weight"].T + own[f"where.{i}.bias"]
        return value.clamp(0, 6) if settings.where == "relu6" else value.clamp(min=0)

    def matched(state: dict[str, Tensor], features: dict[str, Tensor]) -> Tensor:
        total = torch.zeros(len(images), dtype=torch.float64)
        for i, (m, n) in enumerate(trainer.pairs):
            pooled = source[m].mean(dim=(2, 3))
            what = torch.full_like(pooled, 1 / pooled.shape[1])
            if settings.what:
                what = (pooled @ own[f"what.{i}.weight"].T + own[f"what.{i}.bias"]).softmax(dim=1)
            before = [s for s, t in trainer.pairs[:i] if t == n]
            start = sum(source[s].shape[1] for s in before)
            rows = slice(start, start + source[m].shape[1])
            r = F.conv2d(features[n], state[f"{n} weight"][rows], state[f"{n} bias"][rows])
            s = F.interpolate(source[m], features[n].shape[2:], mode="bilinear", align_corners=False)
            total = total + (where(i, pooled) * what * (r - s).square().mean(dim=(2, 3))).sum(dim=1)
        return settings.beta * total.mean()

    def moved(state: dict[str, Tensor], v: dict[str, Tensor], loss: Callable) -> tuple[dict, dict]:
        at = {k: p.detach().requires_grad_() for k, p in state.items()} if settings.first_order else state
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
        for loss in [match] * settings.inner_steps + [task] if settings.stages == 3 else [both] * settings.inner_steps:
            theta, velocity = moved(theta, velocity, loss)
        x, y = (images, labels) if held_out is None else held_out
        losses["outer_loss"] = F.cross_entropy(maps(target, theta, x)[1], y)
        gradients = torch.autograd.grad(losses["outer_loss"], phi)
        for p, gradient in zip(phi, gradients, strict=True):
            p.grad = gradient
        optimizer = torch.optim.Adam(phi, settings.meta_lr, weight_decay=settings.meta_weight_decay)
        optimizer.load_state_dict(copy.deepcopy(trainer.meta_optimizer.state_dict()))
        optimizer.step()
    return {"theta": after, "phi": phi, "losses": {name: value.item() for name, value in losses.items()}}


def momentum(trainer: TransferTrainer, parameter: nn.Parameter) -> Tensor:
    """A copy of a parameter's momentum buffer; zeros if there is none yet."""
    buffer = trainer.optimizer.state[parameter].get("momentum_buffer")
    return torch.zeros_like(parameter) if buffer is None else buffer.clone()


def assert_steps_are_those_by_hand(trainer: TransferTrainer, held_out: tuple[Tensor, Tensor] | None = None) -> None:
    """Compare three steps, the last with a smaller batch and with momentum."""
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
    """For every switch, number of steps and of stages, losses, θ, the gradient of φ and Adam's step are the paper's."""
    assert_steps_are_those_by_hand(double(data=tiny.images(9), **options))


def test_outer_objective_on_a_held_out_batch() -> None:
    """φ is trained on the given objective, here on held-out images; the objective gets the step's own batch."""
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
    assert "<locals>.outer " in trainer._config()["outer"]  # its name, and a hash of what it holds


def test_fixed_matching_is_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what and where off there is no φ, lookahead or outer loss; a plain torch loop gives the same."""
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


def test_meta_gradient_to_look_at() -> None:
    """`meta_gradient` is the gradient of the lookahead after the real step, and leaves no trace on the run."""
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
    """Recomputes its second part in the backward pass, to save memory."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        maps = checkpoint(self.second, self.first(images), use_reentrant=False)
        return self.classifier(maps.mean(dim=(2, 3)))


class Energy(TinyNet):
    """Uses its own gradient with respect to the images, so training it needs a second derivative."""

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes)."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            slope = torch.autograd.grad(self.first[0](images).tanh().sum(), images, create_graph=True)[0]
        return super().forward(images + 0.1 * slope)


@pytest.mark.parametrize("kind", [Again, Energy])
def test_targets_that_take_a_gradient_themselves(kind: type[TinyNet]) -> None:
    """A target that needs a third derivative is trained with torch's own layers, and a note says so."""
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
