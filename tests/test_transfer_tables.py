"""The trace of λ, the table of w, and what the weights learn."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transfer_runs import ODD, Spy, copied, same, steps, stirred, transfer

from mtanytime.data.images import ImageSet
from mtanytime.transfer import TransferTrainer


def test_trace_and_channels() -> None:
    """Rows at every `trace_every`-th step and the last: mean and spread over all images since the previous row."""
    trainer = stirred(transfer(epochs=6, data=tiny.images(13), batch_size=5, trace_every=2, pairs=ODD))
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
    """A hundred rows per run by default, and always one for the last step."""
    assert transfer(epochs=175).transfer_settings.trace_every == 3
    assert transfer(epochs=3).transfer_settings.trace_every == 1
    result = transfer(trace_every=3).train()
    assert result.trace["step"].unique().tolist() == [3, 4]
    assert result.channels["step"].unique().tolist() == [4]
    assert transfer(trace_every=100).train().trace["step"].unique().tolist() == [4]


def test_tables_of_a_run_in_pieces(tmp_path: Path) -> None:
    """A run stopped between two rows continues its means and spreads: the tables end the same."""

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


class Clue(nn.Module):
    """Shows the image's class, encoded in its first pixel, or the next class: 4 in one of three channels."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, images: Tensor) -> Tensor:
        """Maps (batch, 3, 1, 1)."""
        told = (images[:, 0, 0, 0] * 255 / 100).round().long() + self.shift
        return 4 * F.one_hot(told % 3, 3).to(images.dtype)[:, :, None, None]


class Clues(nn.Module):
    """Layers that help, that mislead, and that do both."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.wrong, self.both = Clue(0), Clue(1), nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Maps (batch, 6, 1, 1)."""
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
    with torch.no_grad():  # regressors that read the clues from the start, so that the wrong one misleads
        for pair in trainer.pairs:
            weight, bias = trainer.student.matching.regressor(pair)
            weight.copy_(torch.eye(3).repeat(len(weight) // 3, 1)[:, :, None, None])
            bias.zero_()
    trainer.train()
    return trainer


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("where", ["relu6", "constant"])
def test_where_is_learned(where: str, seed: int) -> None:
    """The weight of the pair that helps the task rises, and that of the misleading one falls: no sign is wrong."""
    trace = learned(seed, ["right", "wrong"], where=where, what=False).result().trace
    last = trace[trace["step"] == trace["step"].max()].set_index("source")["weight"]
    assert last["right"] > 1.5
    assert last["wrong"] < 0.75 * last["right"]


@pytest.mark.parametrize("seed", range(2))
def test_what_is_learned(seed: int) -> None:
    """Of one layer's channels, those that help get larger weights than those that mislead."""
    channels = learned(seed, ["both"], where="off").result().channels
    weights = channels[channels["step"] == channels["step"].max()]["weight"].tolist()
    assert sum(weights[:3]) > 0.6 > 0.4 > sum(weights[3:])
