"""Runs with any torch optimizer: they learn as torch's own loop does, resume with the same bits, and are refused where
they cannot work."""

from collections import deque
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import coloured, network, state_of, trainer, transfer
from torch import nn

import mtanytime as mt
from mtanytime.data.batches import Batches
from mtanytime.training.checkpoint import get_states, set_states
from mtanytime.training.identity import run_record


class Factored(torch.optim.Optimizer):
    """SGD scaled by a moment of the gradient's rows, as factored optimizers of other libraries keep it."""

    def __init__(self, parameters: Any, lr: float = 0.01) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                rows = parameter.grad.reshape(len(parameter), -1).square().mean(1)
                state["exp_avg_sq_row"] = 0.9 * state.get("exp_avg_sq_row", rows) + 0.1 * rows
                state["kind"] = "row"
                scale = state["exp_avg_sq_row"].sqrt().add(1e-3).view(-1, *[1] * (parameter.ndim - 1))
                parameter.sub_(group["lr"] * parameter.grad / scale)


ADAMW = partial(torch.optim.AdamW, lr=0.01, weight_decay=0.05)
KINDS = {
    "AdamW": ADAMW,
    "RMSprop": partial(torch.optim.RMSprop, lr=0.003, momentum=0.5),
    "SGD": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "Adafactor": partial(torch.optim.Adafactor, lr=0.01),
    "a learning rate that is a tensor": partial(torch.optim.AdamW, lr=torch.tensor(0.01)),
    "an optimizer of another library": Factored,
}


def test_a_run_with_adamw_is_torchs_own_loop() -> None:
    """The same losses and weights as a loop by hand with a cosine schedule from the optimizer's own learning rate."""
    data, epochs = coloured(), 2
    options = {"data": data, "validation": None, "augment": None, "epochs": epochs, "lr": None}
    run = trainer(model=network().double(), optimizer=ADAMW, **options)
    log = run.train().log
    model = network().double()
    optimizer = ADAMW(list(model.parameters()))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses, rates = [], []
    for epoch in range(epochs):
        for images, labels in Batches(data, 5, seed=0).epoch(epoch):
            loss = F.cross_entropy(model(images.double()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    assert log["loss"].tolist() == pytest.approx(losses, rel=1e-9)
    assert log["lr"].tolist() == pytest.approx(rates)
    torch.testing.assert_close(run.model.state_dict(), model.state_dict(), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_runs_have_the_same_bits(tmp_path: Path, kind: str) -> None:
    """The optimizer's state is in the checkpoint."""
    options = {"optimizer": KINDS[kind], "lr": None, "epochs": 2}
    whole = trainer(**options)
    whole.train()
    for report in trainer(tmp_path / "run", **options):
        if report.step == 5:
            break
    resumed = trainer(tmp_path / "run", **options)
    assert resumed.step == 5
    resumed.train()
    assert state_of(resumed) == state_of(whole)


def test_parameter_groups_keep_their_proportions() -> None:
    """The schedule multiplies each group's own learning rate; `lr` replaces a single one."""

    def two(parameters: list[Any]) -> torch.optim.Optimizer:
        groups = [{"params": parameters[:2], "lr": 0.2}, {"params": parameters[2:], "lr": 0.02}]
        return torch.optim.SGD(groups, lr=1.0)

    run = trainer(optimizer=two, lr=None, schedule=lambda progress: 1 - progress, epochs=2)
    for _ in run:
        pass
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([0.1, 0.01])
    assert trainer(optimizer=ADAMW, lr=0.3).rates[0] == 0.3
    with pytest.raises(ValueError, match=r"^lr: expected no lr beside an optimizer with .* \[0.02, 0.2\], got 0.3$"):
        trainer(optimizer=two, lr=0.3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "options",
    [
        {"lr": np.float64(0.05), "weight_decay": np.float64(1e-4), "batch_size": np.int64(8), "epochs": np.int64(2)},
        {"lr": torch.tensor(0.05)},
        {"schedule": lambda progress: np.cos(progress * np.pi / 2)},
        {"schedule": lambda progress: torch.cos(torch.tensor(progress))},
        {"optimizer": lambda p: torch.optim.AdamW(p, np.float64(1e-3), weight_decay=np.float64(0.1)), "lr": None},
        {"validation": np.float32(0.3)},
    ],
    ids=lambda options: " ".join(options),
)
def test_numbers_of_other_libraries(tmp_path: Path, options: dict[str, Any]) -> None:
    """`np.logspace` and its like give the settings of a search; a finished run must be readable again."""
    trainer(tmp_path / "run", **{"epochs": 2} | options).train()
    trainer(tmp_path / "run", **{"epochs": 2} | options).result()
    mt.load_run(tmp_path / "run", trainer().model)


def test_the_optimizer_identifies_a_run(tmp_path: Path) -> None:
    """Only where it is given: runs with the default go on; another optimizer is another run."""
    assert "optimizer" not in run_record(trainer())
    trainer(tmp_path / "run", optimizer=ADAMW, lr=None, epochs=1).train()
    with pytest.raises(ValueError, match="another run"):
        trainer(tmp_path / "run", optimizer=partial(torch.optim.AdamW, lr=0.02), lr=None, epochs=1)


class Tempered(nn.Module):
    """A loss with a temperature that would have to be trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The cross-entropy."""
        return nn.functional.cross_entropy(output * self.scale, labels)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"optimizer": lambda parameters: None}, "^optimizer: expected a function .* returns a torch optimizer, got N"),
        ({"optimizer": partial(torch.optim.AdamW, beta=1)}, "^optimizer: .* got one that fails: .*'beta'"),
        ({"optimizer": torch.optim.LBFGS}, "^optimizer: expected one whose step needs no closure, got 'LBFGS'$"),
        (
            {"optimizer": lambda p: torch.optim.SGD(p[1:], 0.1)},
            "^optimizer: .* got SGD without 1 of 10;",
        ),
        ({"optimizer": ADAMW, "momentum": 0.5}, "^momentum: expected no value beside an optimizer .*, got 0.5; give"),
        (
            {"optimizer": lambda p: torch.optim.AdamW([{"params": p, "kind": Path("body")}])},
            "^optimizer: expected numbers, texts and tensors, which a checkpoint can hold, got a AdamW with others",
        ),
        (
            {"lr": 0.1, "loss": Tempered()},
            r"^loss: expected one without .* to train, got .*Tempered.* with \['scale'\]; make",
        ),
        ({"optimizer": ADAMW, "lr": -1.0}, "^lr: expected a number > 0, got -1.0$"),
    ],
    ids=lambda value: None,
)
def test_refused(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Before training, with nothing written."""
    with pytest.raises(ValueError, match=match):
        trainer(tmp_path / "run", **{"lr": None, **options})
    assert not (tmp_path / "run").exists()


def test_a_state_that_appears_with_the_first_step(tmp_path: Path) -> None:
    """It is checked before a checkpoint is written that could never be read."""

    class Remembering(torch.optim.SGD):
        """Keeps the last learning rates."""

        def step(self, closure: None = None) -> None:
            for parameter in self.param_groups[0]["params"]:
                self.state[parameter].setdefault("rates", deque()).append(1.0)
            super().step(closure)

    run = trainer(tmp_path / "run", optimizer=partial(Remembering, lr=0.1), lr=None)
    with pytest.raises(ValueError, match=r"^optimizer: expected numbers, texts .*, got a Remembering with others"):
        run.train()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 0


def test_a_loss_may_hold_a_network_that_is_not_trained() -> None:
    """A teacher that runs without gradients, for example."""

    class Taught(nn.Module):
        """The cross-entropy, and the agreement with a teacher."""

        def __init__(self) -> None:
            super().__init__()
            self.teacher = nn.Linear(3, 3)

        def forward(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                answers = self.teacher(F.one_hot(labels, 3).float())
            return F.cross_entropy(output, labels) + F.mse_loss(output, answers)

    trainer(loss=Taught(), epochs=1).train()


def test_a_lookahead_needs_sgd() -> None:
    """It repeats SGD's steps. SGD of one's own works; where nothing is looked ahead, any optimizer does."""
    with pytest.raises(ValueError, match=r"^optimizer: expected torch.optim.SGD, .* got AdamW; leave optimizer out"):
        transfer(optimizer=ADAMW, lr=None)
    with pytest.raises(ValueError, match=r"^optimizer: expected SGD without dampening"):
        transfer(optimizer=partial(torch.optim.SGD, momentum=0.9, dampening=0.1))
    default, own = transfer(epochs=1), transfer(epochs=1, optimizer=partial(torch.optim.SGD, **transfer().settings.sgd))
    default.train()
    own.train()
    assert state_of(own) == state_of(default)
    assert transfer(epochs=1, optimizer=ADAMW, lr=None, what=False, where="off").train().accuracy is not None


def test_a_foreign_state_leaves_the_network_as_it_was() -> None:
    """What an optimizer refuses does not change the modules."""
    run, other = trainer(), trainer()
    other.train()
    states = get_states(other.modules, other.optimizers) | {"step": 3, "seconds": 1.0, "best": None, "scores": None}
    first = next(iter(states["optimizers"].values()))["state"]
    first[0]["momentum_buffer"] = torch.zeros(5)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"momentum_buffer: expected shape"):
        set_states(states, run.modules, run.optimizers)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())
