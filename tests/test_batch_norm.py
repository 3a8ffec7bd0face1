"""Running statistics that lag behind the weights are found and re-estimated."""

from pathlib import Path

import pytest
import tiny_runs
import torch
from torch import nn
from torchvision.transforms import v2

from mtanytime.measure.evaluation import evaluate
from mtanytime.training.batch_norm import lagging_batch_norms, settle_batch_norms
from mtanytime.training.trainer import Trainer


def network(momentum: float | None = 0.01) -> nn.Sequential:
    """Convolution, batch norm, dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=momentum), nn.Dropout(0.5)).eval()


@pytest.mark.parametrize(("momentum", "lags"), [(0.01, ["1"]), (0.1, []), (0.5, []), (None, [])])
def test_lagging(momentum: float | None, lags: list[str]) -> None:
    """A small momentum lags; torch's default, larger ones and the cumulative average do not."""
    assert lagging_batch_norms(network(momentum)) == lags


def test_without_running_statistics_nothing_lags() -> None:
    """Batch statistics in evaluation mode, too."""
    assert lagging_batch_norms(nn.BatchNorm2d(4, momentum=0.01, track_running_stats=False)) == []


def test_settled_statistics_are_those_of_the_images() -> None:
    """Mean and unbiased variance of the layer's input, averaged over batches; momentum and modes as before."""
    model, batches = network(), torch.rand(3, 8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).unbind()
    settle_batch_norms(model, batches)
    with torch.no_grad():
        maps = [model[0](images).transpose(0, 1).flatten(1) for images in batches]
    mean = torch.stack([part.mean(1) for part in maps]).mean(0)
    variance = torch.stack([part.var(1) for part in maps]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.01
    assert not any(module.training for module in model.modules())


def test_only_lagging_statistics_settle() -> None:
    """Networks with several kinds: those of torch's momentum, those kept by momentum 0, other buffers, and batch norms
    that the network's own `train` keeps in evaluation mode stay as they are; an error leaves no trace."""

    class Frozen(nn.Sequential):
        """Keeps its last batch norm in evaluation mode."""

        def train(self, mode: bool = True) -> "Frozen":
            super().train(mode)
            self[4].eval()
            return self

    model = Frozen(*(nn.BatchNorm2d(3, momentum=momentum) for momentum in (0.01, 0.1, 0.0, None, 0.01)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(RuntimeError):
        settle_batch_norms(model, [torch.rand(4, 3, 5, 5), torch.rand(4, 2, 5, 5)])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    settle_batch_norms(model, [torch.rand(4, 3, 5, 5)])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.running_mean", "0.running_var"}
    assert [norm.momentum for norm in model] == [0.01, 0.1, 0.0, None, 0.01]


# In a run.


def slow(momentum: float = 0.01) -> nn.Sequential:
    """A network whose batch norms have this momentum."""
    model = tiny_runs.network(dropout=0.3)
    for part in model:
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = momentum
    return model


def settled_by_hand(model: nn.Sequential, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Mean and variance of the first batch norm's input over all training images in batches of equal size."""
    with torch.no_grad():
        maps = [model[0](images).transpose(0, 1).flatten(1) for images in batches]
    means, variances = [part.mean(1) for part in maps], [part.var(1) for part in maps]
    return {"mean": torch.stack(means).mean(0), "var": torch.stack(variances).mean(0)}


@pytest.mark.parametrize("loader", [False, True])
def test_a_run_is_evaluated_with_settled_statistics(loader: bool) -> None:
    """The network that is stored after a run is the evaluated one: its statistics are those of the training images,
    not augmented, under the last weights. One batch holds all images here, so their order does not matter."""
    data = tiny_runs.coloured()
    source = tiny_runs.loader(data, 24) if loader else data
    options = {"batch_size": 24, "augment": None, "validation": None}
    run = tiny_runs.trainer(model=slow(), data=source, test=tiny_runs.coloured(5, seed=1), **options)
    result = run.train()
    expected = settled_by_hand(run.model, [data.images / 255])
    torch.testing.assert_close(run.model[1].running_mean, expected["mean"])
    torch.testing.assert_close(run.model[1].running_var, expected["var"])
    assert result.accuracy == evaluate(run.model, run.test)
    assert run.model[1].num_batches_tracked == run.steps


def test_settling_on_images_of_the_size_that_is_trained_on() -> None:
    """An augmentation that changes the size is kept: the network may take images of that size alone."""
    model = slow()
    model[-1] = nn.LazyLinear(3)
    model = nn.Sequential(*(part for part in model if not isinstance(part, nn.AdaptiveAvgPool2d)))
    test = tiny_runs.coloured(5, seed=1, size=6)
    run = tiny_runs.trainer(model=model, augment=v2.CenterCrop(6), validation=None, test=test, batch_size=24)
    run.train()
    images = tiny_runs.coloured().images[:, :, 1:7, 1:7] / 255
    expected = settled_by_hand(run.model, [images])
    torch.testing.assert_close(run.model[1].running_mean, expected["mean"])
    torch.testing.assert_close(run.model[1].running_var, expected["var"])


def test_the_best_weights_are_settled_ones() -> None:
    """Validation judges settled networks, and the best of them is stored with the statistics it was judged with."""
    run = tiny_runs.trainer(model=slow(), epochs=4)
    result = run.train()
    best = run._best["val_accuracy"]
    run.load_best()
    assert evaluate(run.model, run.validation) == best
    assert evaluate(run.model, run.test) == result.accuracy


@pytest.mark.parametrize("at", [4, 7])
def test_a_resumed_run_settles_to_the_same_bits(tmp_path: Path, at: int) -> None:
    """Stopped at a validation and within an epoch."""
    whole = tiny_runs.trainer(model=slow())
    whole.train()
    for report in tiny_runs.trainer(tmp_path / "run", model=slow()):
        if report.step == at:
            break
    resumed = tiny_runs.trainer(tmp_path / "run", model=slow())
    assert resumed.train().accuracy == whole.result().accuracy
    assert tiny_runs.state_of(resumed) == tiny_runs.state_of(whole)


def test_usual_momenta_run_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks with torch's momentum do not pass through the estimation at all."""
    monkeypatch.setattr("mtanytime.training.batch_norm.settle_batch_norms", None)
    tiny_runs.trainer(model=slow(0.1), epochs=1).train()


def test_the_training_steps_stay_the_same() -> None:
    """Settling changes what evaluation reads and no training step: weights and losses are those without validation."""
    sets = (None, tiny_runs.coloured(2))
    runs = [tiny_runs.trainer(model=slow(), data=tiny_runs.coloured(), validation=part) for part in sets]
    first, second = (run.train().log["loss"].tolist() for run in runs)
    assert first == second
    assert torch.equal(runs[0].model[0].weight, runs[1].model[0].weight)


class _FrozenStem(nn.Module):
    """A batch norm that `train` keeps in evaluation mode, before one that lags."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.late = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.01)

    def train(self, mode: bool = True) -> "_FrozenStem":
        super().train(mode)
        self.stem.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.late(self.conv(self.stem(images)))


def test_frozen_statistics_count_while_others_settle() -> None:
    """A frozen batch norm normalizes by its own statistics then, as in training and evaluation."""
    torch.manual_seed(0)
    model = _FrozenStem()
    model.stem.running_mean.fill_(0.5)
    model.stem.running_var.fill_(0.01)
    images = torch.rand(16, 3, 6, 6)
    settle_batch_norms(model.eval(), [images])
    with torch.no_grad():
        maps = model.conv(model.stem(images)).transpose(0, 1).flatten(1)
    torch.testing.assert_close(model.late.running_mean, maps.mean(1))
    torch.testing.assert_close(model.late.running_var, maps.var(1))
    assert (model.stem.running_mean == 0.5).all()


def test_batches_of_a_loader_settle_at_the_size_of_training() -> None:
    """An augmentation that changes the size is applied there, too."""
    data = tiny_runs.loader(tiny_runs.coloured(size=12), 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.01), nn.Flatten(), nn.Linear(4 * 36, 3))
    Trainer(model, data, augment=v2.RandomCrop(8), steps=2, progress=False, device="cpu").train()
    assert model[1].running_mean.abs().min() > 1e-3  # settled at the end: two steps alone would hardly move it
