"""Devices with less than the CPU has: no float64 (Apple's mps), a random state that takes no device argument.

Such a device is emulated on the CPU: only what `Tensor.cpu()` returns, and what follows from it, may become float64.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import coloured, network, task, trainer, transfer
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from mtanytime import measure
from mtanytime.anytime import AnytimePredictor, SlicedResNeXt
from mtanytime.anytime.early_exit import choose_thresholds, exits_taken
from mtanytime.anytime.trainer import AnytimeTrainer
from mtanytime.functional import trial_run


class WithoutFloat64(TorchFunctionMode):
    """Refuse float64 for every tensor but those that `cpu()` returned and what is made without a device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        converts = function in (Tensor.double, Tensor.to, Tensor.type) and isinstance(args[0], Tensor)
        wide = function is Tensor.double or torch.float64 in (*args[1:], *kwargs.values())
        if converts and wide and args[0].dtype != torch.float64 and not getattr(args[0], "on_cpu", False):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        result = function(*args, **kwargs)
        if function is Tensor.cpu:
            result = result.view_as(result)
        if function is Tensor.cpu or any(getattr(value, "on_cpu", False) for value in tree_leaves(args)):
            for value in tree_leaves(result):
                if isinstance(value, Tensor):
                    value.on_cpu = True
        return result


@pytest.fixture
def without_float64() -> Iterator[None]:
    """A device that refuses float64, as long as the test runs."""
    with WithoutFloat64():
        yield


def sliced() -> SlicedResNeXt:
    """A tiny network of two exits."""
    return SlicedResNeXt(3, 8, 2, 4, 1, (4, 4), (2, 2))


def test_the_emulation_refuses(without_float64: None) -> None:
    """A conversion on the device fails, one on the CPU does not."""
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2).double()
    with pytest.raises(TypeError, match="float64"):
        torch.ones(2).to(torch.float64)
    assert torch.ones(2).cpu().double().dtype == torch.float64


def test_trainers_ask_for_no_float64(without_float64: None) -> None:
    """Training with validation, a transfer with lookahead, and an anytime network with validation."""
    assert trainer(epochs=1).train().accuracy is not None
    assert transfer(epochs=1).train().accuracy is not None
    options = {"epochs": 1, "batch_size": 5, "device": "cpu", "progress": False, "validation": 0.25}
    data = task()
    big = type(data)(coloured(size=32), coloured(5, size=32))
    assert len(AnytimeTrainer(sliced, big, **options).train().accuracy) == 2


def test_measuring_asks_for_no_float64(without_float64: None) -> None:
    """Accuracy, predictions, curve, calibration and flips."""
    data = coloured(size=32)
    assert 0 <= measure.evaluate(network(), data) <= 1
    outputs, labels = measure.predictions(sliced(), data, progress=False)
    measure.calibration(outputs, labels)
    measure.flips(outputs, labels)
    measure.curve("sliced", sliced(), data, progress=False)


def test_inference_asks_for_no_float64(without_float64: None) -> None:
    """The predictor within a budget, by a deadline and with early exit."""
    predictor, images = AnytimePredictor(sliced()), torch.rand(4, 3, 32, 32)
    assert predictor.predict(images, 1e12).exit == 2
    assert predictor.answer_by(images, 1e6).exit == 2
    outputs = torch.stack(list(sliced().eval()(images))).detach()
    thresholds = choose_thresholds(outputs, [1.0, 2.0], 1.5)
    assert set(exits_taken(outputs, thresholds).tolist()) <= {1, 2}
    logits, taken = predictor.leave_early(images, [2.0, 0.0])
    assert taken.tolist() == [2] * 4
    torch.testing.assert_close(logits, predictor.predict(images, 2, "exit").logits)


def test_a_trial_run_where_the_random_state_takes_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.mps has one random state and its functions take no device; a trial run restores it."""
    states = [torch.tensor([1], dtype=torch.uint8)]
    backend = SimpleNamespace(get_rng_state=lambda: states[-1], set_rng_state=states.append)
    monkeypatch.setattr(torch, "mps", backend)
    with trial_run(network(), torch.device("mps"), training=True):
        states.append(torch.tensor([2], dtype=torch.uint8))
    assert states[-1] is states[0]
