"""Running statistics that lag behind the weights are found and re-estimated."""

import pytest
import torch
from torch import nn

from mtanytime.training.batch_norm import lagging_batch_norms, settle_batch_norms


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
