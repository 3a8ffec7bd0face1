"""Fine-tuning the source: the new head, what it starts from, and the choice between the two starts."""

from pathlib import Path

import pytest
import tiny
import torch
import torchvision
from torch import nn

from mtanytime.backbones import Normalized, resnet
from mtanytime.training.trainer import Trainer
from mtanytime.transfer.fine_tuning import HEADS, choose_head, with_head
from mtanytime.transfer.probe import fit_probe


def source() -> nn.Module:
    """A small ResNet with five classes and normalization."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Normalized(resnet(8, 5), (0.5,) * 3, (0.2,) * 3).eval()


def test_the_head_from_the_probe_answers_as_the_probe_does() -> None:
    """Before training, the network in eval mode is a linear probe of the last layer; the source stays as it was."""
    network, data = source(), tiny.images(30, classes=3, size=16)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    started = with_head(network, data, "probe")
    probe = fit_probe(network, data, layers=["layer3"])
    images = data.images / 255
    torch.testing.assert_close(started.eval()(images), probe(images))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in started.parameters())


@pytest.mark.parametrize("name", ["alexnet", "mobilenet_v3_small", "squeezenet1_0"])
def test_the_last_linear_layer_makes_way(name: str) -> None:
    """torchvision's heads have different names; a network that ends in a convolution has no such layer."""
    network, data = getattr(torchvision.models, name)(num_classes=7).eval(), tiny.images(6, classes=3, size=64)
    if name == "squeezenet1_0":
        with pytest.raises(ValueError, match=r"^source: expected a network with a linear layer at its end"):
            with_head(network, data)
        return
    assert with_head(network, data)(data.images[:2] / 255).shape == (2, 3)
    assert network(data.images[:2] / 255).shape == (2, 7)


def test_the_better_head_is_chosen(tmp_path: Path) -> None:
    """With a rate too small to learn anything, the probe's head wins by the probe's own accuracy; a folder resumes."""
    network, data = source(), tiny.images(60, classes=3, size=16)
    options = {"steps": 1, "lr": 1e-9, "batch_size": 48, "folder": str(tmp_path)}
    choice = choose_head(network, data, seed=1, **options)
    assert choice.head == max(HEADS, key=choice.scores.__getitem__)
    assert choose_head(network, data, seed=1, **options) == choice


def test_few_labels() -> None:
    """With fewer labels per class than folds, the probe takes as many folds as there are; torch's draws stay."""
    before = torch.get_rng_state()
    network = with_head(source(), tiny.images(9, classes=3, size=16), "probe")
    assert network(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_source_without_a_probe_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe's start comes second, but what it refuses must not fail after the first one's training."""
    monkeypatch.setattr(Trainer, "train_on_batch", None)
    network, data = torchvision.models.mobilenet_v3_small(num_classes=7), tiny.images(30, classes=3, size=32)
    with pytest.raises(ValueError, match=r"^source: expected a network that names its feature_layers"):
        choose_head(network, data, steps=1, batch_size=12, progress=False)


def test_bad_input() -> None:
    """A head that does not read the means of the last layer, and a source that names no layers."""
    data = tiny.images(30, classes=3, size=16)
    with pytest.raises(ValueError, match=r"^source: expected a network that names its feature_layers"):
        with_head(torchvision.models.mobilenet_v3_small(num_classes=7), data, "probe")
    network = source()
    network.network.fc = nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 5))
    with pytest.raises(ValueError, match=r"^source: expected a head that reads the 64 means of the last of feature_la"):
        with_head(network, data, "probe")
