"""Networks whose output holds more than logits: tuples, named tuples, dicts, dataclasses and objects; training and
evaluation outputs that differ (Inception's and GoogLeNet's auxiliary heads); and how a run is told where they are."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import coloured, network, task, trainer
from torch import Tensor, nn

from mtanytime.anytime.trainer import AnytimeTrainer, JointLoss
from mtanytime.measure.evaluation import evaluate, predictions
from mtanytime.measure.logits import find_exits, find_logits
from mtanytime.transfer import TransferTrainer
from mtanytime.transfer.lookahead import first_images

LOGITS, FEATURES = torch.eye(4, 3), torch.zeros(4, 5)
Output = namedtuple("Output", "logits aux")


@dataclass
class Named:
    """Features before logits."""

    features: Tensor
    scores: Tensor


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, LOGITS + 1),
        (FEATURES, LOGITS),
        [FEATURES, LOGITS, None][1:],
        Output(LOGITS, LOGITS + 1),
        {"aux": LOGITS + 1, "logits": LOGITS},
        {"aux": LOGITS + 1, "out": LOGITS},
        {"features": FEATURES, "scores": LOGITS},
        Named(FEATURES, LOGITS),
        SimpleNamespace(loss=torch.zeros(()), logits=LOGITS),
        SimpleNamespace(maps=torch.zeros(4, 3, 2, 2), scores=LOGITS),
    ],
    ids=lambda output: type(output).__name__,
)
def test_logits_are_found(output: Any) -> None:
    """By name, else the first matrix of floats with one column per class."""
    assert find_logits(output, 3) is LOGITS


@pytest.mark.parametrize(
    ("output", "classes"),
    [
        ((FEATURES, FEATURES), 3),
        ((FEATURES, LOGITS), None),
        ((FEATURES,), 3),
        ([LOGITS, LOGITS], 3),
        (torch.zeros(4, 3, 2, 2), 3),
        ({"labels": torch.zeros(4, 3, dtype=torch.int64)}, 3),
        (None, 3),
    ],
)
def test_logits_that_are_not_there(output: Any, classes: int | None) -> None:
    """Nothing is guessed: no such matrix, several without a known number of classes, or an anytime network's exits."""
    with pytest.raises(ValueError, match=r"^model: expected an output that holds logits .*; say .* logits="):
        find_logits(output, classes)


def test_exits_are_found() -> None:
    """A list or plain tuple, also inside a dict; one tensor is one exit."""
    exits = [LOGITS, LOGITS + 1]
    for output in (exits, tuple(exits), {"logits": exits, "features": FEATURES}):
        assert all(a is b for a, b in zip(find_exits(output), exits, strict=True))
    assert find_exits(LOGITS) == [LOGITS]
    embedding = torch.rand(len(LOGITS), 9)
    assert find_exits((embedding, LOGITS), classes=LOGITS.shape[1]) == [LOGITS]  # what is beside them is no exit
    assert find_exits({"x": exits}, pick=lambda output: output["x"]) == exits


class TwoHeads(nn.Module):
    """Two networks; training gives a named tuple of their logits, evaluation the first's alone."""

    def __init__(self, differs: bool = True) -> None:
        super().__init__()
        self.main, self.aux, self.differs = network(), network(seed=1), differs

    def forward(self, images: Tensor) -> Any:
        """Logits, or logits and auxiliary logits."""
        main = self.main(images)
        return Output(main, self.aux(images)) if self.training or not self.differs else main


def both(output: Output, labels: Tensor) -> Tensor:
    """Both heads' losses."""
    return F.cross_entropy(output.logits, labels) + 0.3 * F.cross_entropy(output.aux, labels)


@pytest.mark.parametrize("differs", [True, False])
def test_a_run_with_auxiliary_heads(differs: bool) -> None:
    """The loss gets the whole output; the main head trains as it does alone, and its accuracy is reported."""
    alone = trainer(model=network(), loss=F.cross_entropy).train()
    run = trainer(model=TwoHeads(differs), loss=both)
    result = run.train()
    assert result.log["accuracy"].tolist() == alone.log["accuracy"].tolist()
    assert result.accuracy == alone.accuracy == evaluate(run.model, run.test)
    assert not torch.equal(run.model.aux[0].weight, network(seed=1)[0].weight)
    outputs, labels = predictions(run.model, run.test, progress=False)
    assert (outputs[0].argmax(1) == labels).double().mean() == result.last_accuracy


def test_a_run_is_told_where_the_logits_are() -> None:
    """`logits=` picks them, here the second head's; the run's record names the function."""

    def aux(output: Output) -> Tensor:
        return output.aux

    run = trainer(model=TwoHeads(False), loss=both, logits=aux)
    result = run.train()
    assert result.accuracy == evaluate(run.model.aux, run.test) == evaluate(run.model, run.test, logits=aux)


def test_an_output_without_logits_is_refused_before_training() -> None:
    """With the remedy, not in the first step."""

    class Odd(nn.Sequential):
        def forward(self, images: Tensor) -> list[Tensor]:
            return [super().forward(images)] * 2

    with pytest.raises(ValueError, match=r"model: expected an output that holds logits .* got list of .*logits="):
        trainer(model=Odd(*network()), loss=lambda output, labels: F.cross_entropy(output[0], labels))


def test_a_transfer_to_a_network_with_extras() -> None:
    """The task's loss gets the output as it is; the accuracy is that of its logits."""
    options = {"source_layers": ["2"], "target_layers": ["main.2"], "epochs": 1, "batch_size": 5, "lr": 1e-3}
    run = TransferTrainer(
        network(5, width=3, seed=1).eval(), TwoHeads(), task(), loss=both, progress=False, device="cpu", **options
    )
    assert run.train().accuracy == evaluate(run.model.main, run.test)


def test_an_anytime_network_with_extras() -> None:
    """Exits in a dict: the loss gets the dict, accuracies are those of the exits."""

    class Exits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([network(), network(seed=1)])

        def forward(self, images: Tensor) -> dict[str, Any]:
            return {"exits": [part(images) for part in self.parts], "extra": None}

    options = {"epochs": 1, "batch_size": 5, "device": "cpu", "progress": False}
    loss = lambda output, labels: JointLoss()(output["exits"], labels)  # noqa: E731
    run = AnytimeTrainer(Exits(), task(), loss=loss, logits=lambda output: output["exits"], **options)
    assert run.train().accuracy == [evaluate(part, coloured(5, seed=1)) for part in run.model.parts]


def test_outputs_with_slots_are_cut() -> None:
    """Beside views, the loss is of the labelled images' rows alone."""
    output = _Slotted(torch.arange(8.0).reshape(4, 2))
    assert first_images(output, 4, 3).logits.shape == (3, 2)
    assert output.logits.shape == (4, 2)


@dataclass(slots=True)
class _Slotted:
    logits: Tensor
