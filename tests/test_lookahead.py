"""Algorithm 1 without a trainer: a loop of one's own against `TransferTrainer`, and bad settings."""

import inspect
from collections.abc import Callable
from itertools import chain
from typing import Any

import lookahead_loop
import pytest
import tiny
import torch
from torch import nn
from typechecker import unchecked

from mtanytime.features import tap
from mtanytime.transfer import PAPER, FeatureMatching, Lookahead, MetaNetworks, Student, TransferTrainer

PAIRS = [("first", "second"), ("second", "first"), ("second", "second")]


class Spare(tiny.TinyNet):
    """Has a layer that no loss reaches: momentum and weight decay move it in the loop as in the trainer."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Linear(2, 2)


def networks() -> tuple[nn.Module, nn.Module]:
    """A source and a target in float64."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(1)
        return tiny.made(5, seed=2).double(), Spare().double()


def test_own_loop_equals_the_trainer() -> None:
    """The README's loop ends with the trainer's θ, φ and momentum after two epochs with a smaller last batch."""
    source, target = networks()
    settings = {"pairs": PAIRS, "epochs": 2, "batch_size": 6, "schedule": "constant", "beta": 2.0, "meta_lr": 0.01}
    settings |= {"device": "cpu", "progress": False}
    trainer = TransferTrainer(source.eval(), target, tiny.images(10), **PAPER | settings)
    batches = [(x.double(), y) for x, y in chain.from_iterable(trainer.batches.epoch(epoch) for epoch in range(2))]
    matching, meta = trainer.student.matching.state_dict(), trainer.meta.state_dict()
    start = {name: value.clone() for name, value in [*matching.items(), *meta.items()]}
    trainer.train()

    def as_in_the_trainer(kind: type[nn.Module]) -> Callable[..., nn.Module]:
        """The class, with the initial weights of the trainer."""

        def make(*args: Any) -> nn.Module:
            module = kind(*args).double()
            module.load_state_dict({name: start[name] for name in module.state_dict()})
            return module

        return make

    with pytest.MonkeyPatch.context() as patch:
        for kind in (FeatureMatching, MetaNetworks):
            patch.setattr(lookahead_loop, kind.__name__, as_in_the_trainer(kind))
        source, target = networks()
        student, meta = lookahead_loop.train(source, target, batches, PAIRS, beta=2.0, meta_lr=0.01)
    for ours, theirs in ((student, trainer.student), (meta, trainer.meta)):
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-12, atol=1e-12)
    assert any(not torch.equal(value, start[name]) for name, value in meta.state_dict().items())


def test_the_loop_is_short() -> None:
    """A loop of one's own takes at most 25 lines."""
    assert len(inspect.getsource(lookahead_loop.train).splitlines()) <= 25


def made(**switches: Any) -> tuple[Lookahead, MetaNetworks, tuple[Any, ...]]:
    """A lookahead, its meta-networks, and a batch with its source features."""
    source, target = networks()
    layers, images = ["first", "second"], tiny.images(6).images.double() / 255
    channels = {"first": 5, "second": 10}, {"first": 4, "second": 8}
    student = Student(tap(target, layers), FeatureMatching(PAIRS, *channels).double())
    meta = MetaNetworks(PAIRS, channels[0], **switches).double()
    with torch.no_grad():
        features = tap(source.eval(), layers)(images)[1]
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    return Lookahead(student, optimizer), meta, (images, torch.arange(6) % 3, features)


def test_backward_adds_to_the_gradient_of_phi() -> None:
    """`.grad` accumulates, as in torch, and what it gets is `meta_gradient`'s, from the same θ and without a trace."""
    lookahead, meta, batch = made()
    losses = lookahead.losses(*batch, meta(batch[2]))
    lookahead.step(losses)
    before = {name: value.clone() for name, value in lookahead.student.state_dict().items()}
    phi = list(meta.parameters())
    expected = lookahead.meta_gradient(*batch, meta(batch[2]), phi)
    assert torch.equal(lookahead.backward(losses), expected.outer_loss)
    lookahead.backward(lookahead.losses(*batch, meta(batch[2])))
    for parameter, gradient in zip(phi, expected.gradients, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient, rtol=1e-10, atol=1e-14)
    named = dict(lookahead.student.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in named.items())


def test_constant_weights_are_refused() -> None:
    """With what and where off, or with weights computed under no_grad, there is nothing to learn."""
    for switches in ({"what": False, "where": "off"}, {}):
        lookahead, meta, batch = made(**switches)
        with torch.no_grad():
            weights = meta(batch[2])
        with pytest.raises(ValueError, match=r"^weights: expected pair weights that require grad, got constant ones$"):
            lookahead.backward(lookahead.losses(*batch, weights))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"beta": 0.0}, "beta: expected a number > 0, got 0.0"),
        ({"inner_steps": 0}, "inner_steps: expected a whole number >= 1, got 0; without a matching step "),
        ({"stages": 4}, "stages: expected 2 or 3, got 4"),
        ({"mode": "fast"}, "mode: expected one of keep, recompute, unroll, got 'fast'"),
        ({"mode": "unroll", "first_order": True}, "mode: expected keep or recompute with first_order, got 'unroll'"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    """Each bad setting is refused by name when the lookahead is made."""
    lookahead, _, _ = made()
    with pytest.raises(ValueError, match=f"^{message}"):
        unchecked(Lookahead.__init__)(Lookahead.__new__(Lookahead), lookahead.student, lookahead.optimizer, **settings)
