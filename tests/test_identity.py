"""What identifies a run: other settings, functions, networks or data make another run."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import coloured, loader, network
from torch import Tensor, nn

from mtanytime.data.batches import crop_flip
from mtanytime.training.identity import fingerprint, name_of
from mtanytime.training.run_folder import RunFolder
from mtanytime.training.trainer import Trainer


def test_names_in_the_record() -> None:
    """The record distinguishes functions by the settings they hold, not by their addresses."""
    plain: list[tuple[Callable[..., Any] | str | None, object]] = [
        (None, None),
        ("cosine", "cosine"),
        (F.cross_entropy, "cross_entropy"),
        (partial(F.cross_entropy, label_smoothing=0.1), "cross_entropy () {'label_smoothing': 0.1}"),
    ]
    for value, name in plain:
        assert name_of(value) == name
    assert "'label_smoothing': 0.2" in str(name_of(nn.CrossEntropyLoss(label_smoothing=0.2)))
    assert name_of(crop_flip(2)) == name_of(crop_flip(2)) != name_of(crop_flip(3))


def test_other_data_or_loss_is_another_run(tmp_path: Path) -> None:
    """A folder must not return the result of other images or another loss of the same sizes."""

    def weighted(weight: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda output, labels: F.cross_entropy(output, labels, weight=weight)

    def run(seed: int, weight: float) -> Trainer:
        data, settings = loader(coloured(seed=seed)), {"epochs": 1, "device": "cpu", "progress": False}
        return Trainer(network(), data, loss=weighted(torch.full((3,), weight)), folder=tmp_path / "run", **settings)

    run(0, 1.0).train()
    run(0, 1.0)
    with pytest.raises(ValueError, match=r"another run \(train: "):
        run(1, 1.0)
    with pytest.raises(ValueError, match=r"another run \(loss: "):
        run(0, 2.0)


def test_numbers_of_other_libraries_in_the_settings(tmp_path: Path) -> None:
    """A seed from numpy is recorded as a plain number."""
    seed = torch.tensor([7]).numpy()[0]
    with RunFolder(tmp_path, {"seed": seed}).held():
        pass
    RunFolder(tmp_path, {"seed": 7})


def test_fingerprint_tells_tensors_apart() -> None:
    """One changed pixel, name, shape or type changes the fingerprint; scalars and empty tensors have one too."""
    base = torch.arange(6.0)
    prints = [
        fingerprint(tensors)
        for tensors in (
            {"a": base},
            {"b": base},
            {"a": base.reshape(2, 3)},
            {"a": base.double()},
            {"a": base.index_fill(0, torch.tensor(5), 5.0001)},
            {"a": torch.tensor(3)},
            {"a": torch.tensor([])},
            {},
        )
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint({"a": base.reshape(2, 3).t()}) == fingerprint({"a": base.reshape(2, 3).t().contiguous()})
