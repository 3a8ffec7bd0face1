"""Fine-tuning the source: the new head, what it starts from, and the choice between the two starts."""

import inspect
from pathlib import Path

import pytest
import tiny
import torch
import torchvision
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from mtanytime.backbones import Normalized, resnet
from mtanytime.data.images import Task
from mtanytime.training.trainer import Trainer
from mtanytime.transfer.fine_tuning import HEADS, FineTuning, choose_head, with_head
from mtanytime.transfer.l2sp import L2SP, PenalizedLoss
from mtanytime.transfer.probe import STRENGTHS, fit_probe
from mtanytime.transfer.settings import FEW_LABELS


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


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vit"])
def test_a_head_from_the_probe_of_any_network(name: str) -> None:
    """The probe reads what the head reads, so networks that name no layers start from it, too, in their own dtype."""
    data, models = tiny.images(9, classes=3, size=32), torchvision.models
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vit = lambda: models.VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=7)  # noqa: E731
        network = (models.mobilenet_v3_small(num_classes=7) if name == "mobilenet_v3_small" else vit()).eval().double()
    head = next(path for path, module in reversed(list(network.named_modules())) if isinstance(module, nn.Linear))
    features: list[torch.Tensor] = []
    handle = network.get_submodule(head).register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    images = data.images / 255.0
    network(images.double())
    handle.remove()
    started = with_head(network, data, "probe")
    read = features[0].detach()
    scaled = StandardScaler().fit_transform(read)
    rows = [
        LogisticRegression(C=c, max_iter=2000).fit(scaled, data.labels).predict_log_proba(scaled) for c in STRENGTHS
    ]
    ours = started.eval()(images.double()).log_softmax(1).detach()
    errors = [(ours - torch.from_numpy(row)).abs().max() for row in rows]
    assert min(errors) < 1e-3


class Tokens(nn.Module):
    """A network whose head reads each place, and which has a linear layer after it that is not the head if `last`."""

    def __init__(self, last: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)
        if last:
            self.gate = nn.Linear(4, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The mean of the places' logits."""
        tokens = self.body(images).flatten(2).mT
        if hasattr(self, "gate"):
            tokens = tokens * self.gate(tokens.mean(1, keepdim=True))
        return self.head(tokens).mean(1)


def test_what_is_no_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last linear layer need not be the head; what the second start refuses must not fail after the first's run."""
    monkeypatch.setattr(Trainer, "train_on_batch", None)
    data = tiny.images(30, classes=3, size=16)
    assert with_head(Tokens(), data)(data.images / 255).shape == (30, 3)
    with pytest.raises(ValueError, match=r"^source: expected a head, 'head', that reads one row of features per image"):
        choose_head(Tokens(), data, steps=1, batch_size=12, progress=False)
    with pytest.raises(ValueError, match=r"^source: expected a network whose last linear layer, 'gate', gives its log"):
        with_head(Tokens(last=True), data)
    with pytest.raises(ValueError, match=r"^source: expected a network whose last linear layer, 'gate', gives its log"):
        with_head(Tokens(last=True), tiny.images(40, classes=4, size=16))  # as many as the gate has outputs


@pytest.mark.usefixtures("unchecked")
def test_bad_input() -> None:
    """What is no image set, and fewer labels than a probe and a choice need."""
    data = tiny.images(30, classes=3, size=16)
    for function in (with_head, choose_head):
        with pytest.raises(ValueError, match=r"^data: expected an ImageSet, got Task; give its attribute train$"):
            function(source(), Task(data, data))
        with pytest.raises(ValueError, match=r"^data: expected an ImageSet, got DataLoader$"):
            function(source(), DataLoader(TensorDataset(data.images / 255, data.labels)))
    with pytest.raises(ValueError, match=r"^data: expected at least 3 images per class, .* got 2 of 'class 0'$"):
        choose_head(source(), data.subset(range(6)))
    with pytest.raises(ValueError, match=r"^held_out: expected a number between 0 and 1, got 1.5$"):
        choose_head(source(), data, held_out=1.5)


def test_the_defaults_are_those_of_the_transfer() -> None:
    """The least that a transfer must beat has its settings: equal batches, warm-up and as many steps."""
    shown = inspect.signature(FineTuning).parameters
    assert {name: shown[name].default for name in FEW_LABELS} == FEW_LABELS


def test_l2sp_is_resumed_with_another_fresh_head(tmp_path: Path) -> None:
    """The weights come from the checkpoint, so those of the network that is given do not identify the run."""
    torch.manual_seed(0)
    base, data = tiny.made(4, seed=1), tiny.images(12)
    settings = {"steps": 4, "batch_size": 6, "weight_decay": 0.0, "device": "cpu", "progress": False}

    def trainer(alpha: float = 0.1) -> FineTuning:
        network = with_head(base, data)
        loss = PenalizedLoss(network, L2SP(base, alpha))
        return FineTuning(base, network, data, loss=loss, folder=tmp_path / "run", **settings)

    for report in trainer():
        if report.step == 2:
            break
    resumed = trainer()
    assert resumed.step == 2
    resumed.train()
    with pytest.raises(ValueError, match=r"another run \(loss: "):
        trainer(0.2)
    next(base.parameters()).data.add_(1)
    with pytest.raises(ValueError, match=r"another run \("):
        trainer()


def test_a_penalty_of_another_network_is_refused() -> None:
    """It would have no effect: the network that is trained is made later, or is a copy."""
    source, data = tiny.made(5, seed=1), tiny.images()
    network = with_head(source, data)
    loss = PenalizedLoss(network, L2SP(source, new=["classifier"]))
    options = {"loss": loss, "steps": 2, "batch_size": 6, "weight_decay": 0.0, "progress": False, "device": "cpu"}
    FineTuning(source, network, data, **options)
    with pytest.raises(ValueError, match="loss: expected a penalty of the network that is trained"):
        FineTuning(source, lambda: with_head(source, data), data, **options)
