"""Small transfers, and how tests step through and compare them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from mtanytime.transfer import PAPER, PairWeights, TransferTrainer

CPU = torch.device("cpu")


def transfer(folder: Path | None = None, **options: Any) -> TransferTrainer:
    """A small transfer as in the paper: two epochs of two batches of six images, unless `options` say otherwise."""
    settings = PAPER | {
        "epochs": 2,
        "batch_size": 6,
        "lr": 0.1,
        "weight_decay": 0.01,
        "schedule": "constant",
        "meta_lr": 0.05,
    }
    settings |= {"beta": 0.7, "device": "cpu", "progress": False, "folder": folder, **options}
    source = settings.pop("source", None)
    source = tiny.made(5, seed=2).eval() if source is None else source
    target = settings.pop("target", None)
    data = settings.pop("data", None)
    return TransferTrainer(
        source, tiny.made(4, seed=1) if target is None else target, tiny.images() if data is None else data, **settings
    )


def steps(trainer: TransferTrainer, count: int) -> list[dict[str, float]]:
    """The metrics of some further steps."""
    return [dict(report.metrics) for _, report in zip(range(count), trainer, strict=False)]


def stirred(trainer: TransferTrainer, seed: int = 3) -> TransferTrainer:
    """The trainer, with random numbers added to its meta-networks' initial weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.meta.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype), alpha=0.3)
    return trainer


def copied(module: nn.Module) -> dict[str, Tensor]:
    """A copy of a module's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def assert_close(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    """Each tensor within a relative error, in the 2-norm."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= tolerance * b.norm().clamp(min=1e-12), f"{a} is not {b}"


def double(**options: Any) -> TransferTrainer:
    """A transfer in float64 with stirred meta-networks, and momentum and weight decay as in `by_hand`."""
    source, target = tiny.made(5, seed=2).double().eval(), tiny.made(4, seed=1).double()
    return stirred(transfer(source=source, target=target, momentum=0.9, **options))


ODD = [("second", "first"), ("first", "second"), ("first", "first")]


class Spy:
    """Records the weights of every real step of a trainer."""

    def __init__(self, trainer: TransferTrainer) -> None:
        self.seen: list[PairWeights] = []
        trainer.meta.register_forward_hook(lambda module, inputs, weights: self.seen.append(weights))

    def of(self, kind: str, pair: tuple[str, str], first: int, last: int) -> Tensor:
        """λ or w of a pair, one row per image, for steps `first` to `last`, counted from 1."""
        return torch.cat([getattr(weights, kind)[pair].detach().double() for weights in self.seen[first - 1 : last]])


def refused(error: type[Exception], match: str, folder: Path, **options: Any) -> None:
    """Check that a transfer with these options is refused and writes nothing."""
    with pytest.raises(error, match=match):
        transfer(folder, **options)
    assert not folder.exists()
