"""A trained network comes back from its run folder, in another process, too, with the same logits bit for bit."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from tiny_runs import Begin, network, task, trainer, transfer
from torch import Tensor, nn

import mtanytime as mt
from mtanytime.experiments.runner import load_part, run

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


def normalized() -> mt.Normalized:
    """A tiny network with a normalization."""
    return mt.Normalized(network(), MEAN, STD, size=16)


def logits_of(model: nn.Module) -> Tensor:
    """The logits for the test images, in evaluation mode."""
    with torch.no_grad():
        return model.eval()(task().test.images / 255)


@pytest.mark.usefixtures("one_thread")
def test_the_same_logits_in_another_process(tmp_path: Path, begin: Begin) -> None:
    """Best and last weights come back bit for bit, with classes, normalization, size and accuracies."""
    trained = trainer(tmp_path / "run", model=normalized)
    result = trained.train()
    last = logits_of(trained.model)
    trained.load_best()
    expected = {"best": logits_of(trained.model), "last": last}
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    begin(tiny_runs.store_logits, tmp_path / "run", tmp_path / "logits.pt").join()
    for weights, stored in torch.load(tmp_path / "logits.pt").items():
        assert torch.equal(stored, expected[weights])
    loaded = mt.load_run(tmp_path / "run", normalized)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.image_shape == (3, 8, 8)
    assert loaded.normalization is not None
    assert loaded.normalization[0] == pytest.approx(MEAN)
    assert loaded.normalization[1:] == (pytest.approx(STD), 16)
    assert (loaded.accuracy, loaded.step) == (result.accuracy, 12)
    assert loaded.val_accuracy == result.log["val_accuracy"].max()
    assert loaded.settings["lr"] == 0.05
    assert mt.load_run(tmp_path / "run", normalized, weights="last").accuracy == result.last_accuracy
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


def lazy() -> nn.Module:
    """A network whose layers get their sizes from the first images."""
    body = nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*body, nn.LazyLinear(3))


def test_lazy_layers(tmp_path: Path) -> None:
    """They are initialized for the run's images, and then are the layers that were trained."""
    trained = trainer(tmp_path / "run", model=lazy)
    trained.train()
    state = torch.get_rng_state()
    assert torch.equal(logits_of(mt.load_run(tmp_path / "run", lazy, weights="last").network), logits_of(trained.model))
    assert torch.equal(torch.get_rng_state(), state)


class Noted(nn.Linear):
    """A layer with an extra state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        """Something to remember."""
        return {"seen": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Nothing to do."""


def test_extra_states(tmp_path: Path) -> None:
    """Modules may keep more than tensors."""
    make = lambda: nn.Sequential(nn.Flatten(), Noted(3 * 8 * 8, 3))  # noqa: E731
    trainer(tmp_path / "run", model=make).train()
    mt.load_run(tmp_path / "run", make)


def test_a_stored_network_is_the_next_source(tmp_path: Path) -> None:
    """The target of a transfer and a run that has not finished are loaded, too; a source is used as it is."""
    run = transfer(tmp_path / "first")
    next(iter(run)).step  # noqa: B018
    loaded = mt.load_run(tmp_path / "first", network(dropout=0.3))
    assert torch.equal(logits_of(loaded.network), logits_of(run.model))
    assert loaded.accuracy is None
    target = mt.TransferTrainer(
        loaded.network, network(), task(), source_layers=["2"], target_layers=["2"], epochs=1, progress=False
    )
    target.train()


@pytest.mark.usefixtures("unchecked")
def test_an_anytime_network_for_the_predictor(tmp_path: Path) -> None:
    """The accuracies are one per exit, and the network fits the predictor."""

    def make() -> mt.SlicedResNeXt:
        return mt.SlicedResNeXt(3, 8, 4, 2, 1, (4, 4), (1, 1))

    trained = mt.AnytimeTrainer(make, task(), folder=tmp_path, epochs=1, device="cpu", progress=False)
    result = trained.train()
    loaded = mt.load_run(tmp_path, make)
    assert loaded.accuracy == result.accuracy
    images = task().test.images / 255
    with torch.no_grad():
        for ours, theirs in zip(loaded.network(images), trained.model.eval()(images), strict=True):
            assert torch.equal(ours, theirs)
    mt.AnytimePredictor(loaded.network)
    for call in (mt.AnytimePredictor, partial(mt.measure.predictions, data=task().test), mt.measure.macs):
        with pytest.raises(ValueError, match=r"a torch.nn.Module, got a StoredRun; give its attribute network, a Sli"):
            call(loaded)


def test_a_recipes_network_without_its_function(tmp_path: Path) -> None:
    """The run folder of a recipe names the recipe, so its networks need no function."""
    settings = {"epochs": 1, "letters_per_class": 2, "digits_per_class": 2, "batch_size": 10}
    table = run("smoke", tmp_path, [0], settings, progress=False).table
    loaded = load_part(tmp_path / "l2t-seed0")
    assert loaded.accuracy == table["accuracy"][0]
    assert isinstance(loaded.network, mt.backbones.VGG)
    assert loaded.origin["part"] == "l2t"
    assert loaded.classes == tuple("0123456789")
    assert isinstance(load_part(tmp_path / "source").network, mt.backbones.ResNet)
    trainer(tmp_path / "own").train()
    with pytest.raises(ValueError, match=r"^run: expected the run folder of a recipe's network.*load_run"):
        load_part(tmp_path / "own")


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ({"recipe": "smoke"}, "run: expected a run with its recipe, part, settings and classes"),
        ({"recipe": "smoke", "part": "l2t", "settings": [1]}, "run: expected a run with its recipe, part, settings"),
        ({"recipe": "smok", "part": "l2t", "settings": {}}, "recipe: expected the name of a recipe, got 'smok'"),
        ({"recipe": "smoke", "part": "l2t", "settings": {}}, "expected the settings of a network of smoke, got others"),
    ],
)
def test_origins_that_make_no_network(origin: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A checkpoint whose recipe or settings are not those of this version says so, in one line."""
    trainer(tmp_path, epochs=1).train()
    checkpoint = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    checkpoint["network"]["origin"] = origin
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(ValueError, match=message) as caught:
        load_part(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("maker", ["trainer", "transfer"])
def test_a_run_of_the_version_before(root: Path, maker: str) -> None:
    """A checkpoint of version 0.1 knows no classes and is loaded all the same."""
    folder = root / "tests" / "reference" / "old_run" / maker
    stored = torch.load(folder / "checkpoint.pt", weights_only=True)
    loaded = mt.load_run(folder, lambda: network(dropout=0.3), weights="last")
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, stored["modules"]["model"][name])
    assert (loaded.classes, loaded.image_shape, loaded.step) == (None, None, 6)


def other_activation() -> nn.Sequential:
    """`tiny_runs.network` with tensors of the same names and shapes, and another function."""
    other = network(dropout=0.3)
    other[2] = nn.GELU()
    return other


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (lambda: network(width=5, dropout=0.3), "with other modules or settings"),
        (lambda: network(dropout=0.1), "with other modules or settings"),
        (other_activation, "with other modules or settings"),
    ],
)
def test_another_network_is_refused(tmp_path: Path, model: Any, match: str) -> None:
    """Weights in a network with another activation would give other answers without a word."""
    trainer(tmp_path, epochs=1).train()
    with pytest.raises(ValueError, match=f"^model: expected the network that was trained in .*{match}"):
        mt.load_run(tmp_path, model)


def test_folders_without_a_run(tmp_path: Path) -> None:
    """An empty folder and a checkpoint of something else are named."""
    with pytest.raises(FileNotFoundError, match=r"^folder: expected the folder of a run, got .*no checkpoint\.pt"):
        mt.load_run(tmp_path, network)
    trainer(tmp_path / "run", epochs=1).train()
    (tmp_path / "run" / "config.json").write_text(json.dumps([1]))
    with pytest.raises(ValueError, match=r"config\.json: expected the record of a run"):
        mt.load_run(tmp_path / "run", lambda: network(dropout=0.3))
