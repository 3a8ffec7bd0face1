"""The training loop: it learns as torch's own loop does, and the same seed gives the same run."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny_runs import coloured, flattened, loader, network, state_of, task, trainer
from torch import Tensor, nn
from torchvision.transforms import v2
from typechecker import unchecked

from mtanytime.backbones import Normalized
from mtanytime.data.batches import Batches
from mtanytime.measure.evaluation import evaluate
from mtanytime.training.schedule import SCHEDULES
from mtanytime.training.settings import TrainerSettings
from mtanytime.training.trainer import Trainer

# Learning.


def test_learns_and_reports() -> None:
    """The simplest use: the loss falls, a separable task is learned, and the tables hold one row per step."""
    run = trainer(epochs=8, lr=0.1, augment=None, model=network())
    reports = list(run)
    result = run.train()
    log = result.log
    assert log["loss"].iloc[-3:].mean() < 0.5 * log["loss"].iloc[:3].mean()
    assert result.accuracy >= 0.9
    assert result.accuracy == evaluate(run.model, run.test)
    assert log.columns.tolist() == ["step", "epoch", "seconds", "lr", "loss", "accuracy", "val_accuracy"]
    assert log["step"].tolist() == list(range(1, run.steps + 1)) == [report.step for report in reports]
    assert run.steps == 8 * math.ceil(18 / 5)
    assert log["epoch"].tolist() == sorted(list(range(1, 9)) * 4) == [report.epoch for report in reports]
    assert log["val_accuracy"].notna().tolist() == ([False] * 3 + [True]) * 8
    assert repr([dict(report.metrics) for report in reports]) == repr(
        log.drop(columns=["step", "epoch", "seconds", "lr"]).to_dict("records")
    )


def test_result_is_read_with_the_best_validation_weights() -> None:
    """As in the paper, the accuracy is that of the best validation epoch, the first of equals, beside the last."""
    run = trainer(epochs=6)
    scores, weights = iter([0.2, 0.6, 0.5, 0.6, 0.1, 0.3]), []
    run._evaluate = lambda data: next(scores) if data is run.validation else evaluate(run.model, data)
    for report in run:
        if report.step % 4 == 0:
            weights.append({name: value.clone() for name, value in run.model.state_dict().items()})
    result = run.result()
    assert flattened(run.model.state_dict()) == flattened(weights[-1])
    assert result.best_epoch == 2
    assert result.last_accuracy == evaluate(run.model, run.test)
    run.load_best()
    assert flattened(run.model.state_dict()) == flattened(weights[1])
    assert result.accuracy == evaluate(run.model, run.test)
    assert run.result() == result


def test_best_weights_within_the_loop(tmp_path: Path) -> None:
    """`load_best` in the body of the loop: neither the steps that follow nor a checkpoint takes the best weights up."""
    expected = trainer()
    expected.train()
    run = trainer(tmp_path / "run", checkpoint_seconds=0.0)
    for report in run:
        if report.step in (6, 7):
            run.load_best()
        if report.step == 7:
            break
    assert trainer(tmp_path / "run").step == 7
    run = trainer(tmp_path / "run")
    for report in run:
        if report.step % 2:
            run.load_best()
    run.train()
    assert state_of(run) == state_of(expected)


def test_without_validation_or_test() -> None:
    """Without validation the last weights count and there are no best ones to load; without a test set, no accuracy."""
    run = trainer(data=task().train, validation=None)
    result = run.train()
    assert (result.accuracy, result.last_accuracy, result.best_epoch) == (None, None, 3)
    with pytest.raises(RuntimeError, match="there was no validation yet; give validation"):
        run.load_best()
    result = trainer(data=task().train, test=task().test, validation=None).train()
    assert result.accuracy == result.last_accuracy is not None


def test_a_given_test_set_replaces_the_tasks() -> None:
    """`test` replaces the test set of a `Task`."""
    other = coloured(7, seed=9)
    assert trainer(test=other).test.images.equal(other.images)
    assert trainer().test.images.equal(task().test.images)


def test_looking_at_the_best_weights_changes_nothing(tmp_path: Path) -> None:
    """A notebook may draw with the best weights during the run and before its result: the run keeps its own weights."""
    expected = trainer()
    result = expected.train()
    for folder in (None, tmp_path / "run"):
        run = trainer(folder)
        for report in run:
            if report.step in (6, 8, 9):
                break
        for _ in range(2):
            run.load_best()
            for report in run:
                if report.step in (9, 12):
                    break
        assert run.step == run.steps
        run.load_best()
        assert run.result().last_accuracy == result.last_accuracy
        assert run.result().accuracy == result.accuracy
        run.model.load_state_dict(expected.model.state_dict())
        assert state_of(run) == state_of(expected)
    again = trainer(tmp_path / "run")
    assert state_of(again) == state_of(expected)


def test_validation_is_balanced_and_from_the_training_images() -> None:
    """A validation set with test images in it, or with a class missing, would make the accuracies wrong."""
    data = task()
    for fraction, held in ((0.25, 2), (0.05, 1), (0.5, 4)):
        run = trainer(data=data, validation=fraction)
        assert run.validation.labels.bincount().tolist() == [held] * 3
        assert run.batches.data.labels.bincount().tolist() == [8 - held] * 3
        both = torch.cat([run.validation.images, run.batches.data.images]).flatten(1)
        assert sorted(both.tolist()) == sorted(data.train.images.flatten(1).tolist())
    other = coloured(2, seed=7)
    run = trainer(data=data, validation=other)
    assert run.validation.images.equal(other.images)
    assert len(run.batches.data) == len(data.train)


def test_frozen_parameters_stay() -> None:
    """Parameters that do not require grad stay as they are: a head can be trained alone."""
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone(), model[10].weight.clone()
    trainer(model=model).train()
    assert torch.equal(model[0].weight, before[0])
    assert not torch.equal(model[10].weight, before[1])


def test_the_given_network_is_the_one_that_is_trained() -> None:
    """A network is trained in place, in its own precision, also inside a `Normalized`."""
    model = Normalized(network().double(), [0.5] * 3, [0.2] * 3)
    run = trainer(model=model)
    assert run.model is model
    run.train()
    assert run.tables["log"][-1]["loss"] > 0


def test_bfloat16() -> None:
    """Training, validation and evaluation work in mixed precision; weights and optimizer stay in float32."""
    run = trainer(precision="bfloat16", epochs=6, lr=0.1, augment=None, model=network())
    result = run.train()
    assert result.accuracy > 0.6
    assert {value.dtype for value in run.model.state_dict().values()} == {torch.float32, torch.int64}
    exact = trainer(epochs=6, lr=0.1, augment=None, model=network()).train()
    difference = (result.log["loss"] - exact.log["loss"]).abs()
    assert 0 < difference[0] < 0.02
    assert 0 <= evaluate(run.model, run.test, precision="bfloat16") <= 1


# Reproducibility.


@pytest.mark.parametrize("kind", ["set", "loader"])
def test_same_seed_same_run(kind: str) -> None:
    """Dropout, augmentation, the order of images and the weights of a network made by a function depend on the seed."""

    def run(seed: int, **options: Any) -> Trainer:
        options |= {"data": loader(task().train), "validation": None} if kind == "loader" else {}
        trained = trainer(seed=seed, model=lambda: nn.Sequential(network(dropout=0.3), nn.Linear(3, 3)), **options)
        trained.train()
        return trained

    first = state_of(run(0))
    torch.rand(3)
    assert state_of(run(0)) == first
    assert state_of(run(1)) != first
    assert state_of(run(0, augment=None)) != first


def test_several_iterators_of_one_trainer() -> None:
    """An iterator continues where the run is, even if another iterator has made steps meanwhile."""
    expected, run = trainer(), trainer()
    expected.train()
    first = iter(run)
    next(first)
    for report in run:
        if report.step == 3:
            break
    assert [report.step for report in first] == list(range(4, run.steps + 1))
    assert state_of(run) == state_of(expected)


def test_the_callers_random_state_is_untouched() -> None:
    """Making a trainer, training, validation and evaluation leave the caller's random state as it was."""

    class Noisy(nn.Module):
        """Draws random numbers in eval mode too."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network(dropout=0.3)

        def forward(self, images: Tensor) -> Tensor:
            return self.network(images + 0.1 * torch.rand_like(images))

    before = torch.get_rng_state()
    for data in (task(), loader(task().train)):
        run = trainer(data=data, model=Noisy, validation=0.25 if data is None else coloured(2), test=coloured(3))
        for _ in run:
            assert torch.equal(torch.get_rng_state(), before)
        run.result()
        assert torch.equal(torch.get_rng_state(), before)
    assert evaluate(run.model, run.test) == evaluate(run.model, run.test)


# Against torch's own loop.


@pytest.mark.parametrize("nesterov", [False, True])
def test_as_a_loop_written_by_hand(nesterov: bool) -> None:
    """Epochs of the trainer equal a loop with torch.optim.SGD and CosineAnnealingLR, in float64."""
    data, epochs = task().train, 3
    run = trainer(
        data=data,
        validation=None,
        epochs=epochs,
        model=network().double(),
        nesterov=nesterov,
        weight_decay=0.01,
        augment=None,
    )
    run.train()
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for epoch in range(epochs):
        for images, labels in Batches(data, 5, seed=0).epoch(epoch):
            loss = F.cross_entropy(model(images.double()), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        scheduler.step()
    np.testing.assert_allclose(run.result().log["loss"], losses, rtol=1e-10)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value, rtol=1e-10, atol=1e-12)


def test_schedules() -> None:
    """The log has the learning rate of each epoch, for schedules by name and by function."""

    def rates(schedule: Any, epochs: int = 8) -> list[float]:
        log = trainer(schedule=schedule, epochs=epochs, lr=0.1, augment=None).train().log
        return log.groupby("epoch")["lr"].first().tolist()

    assert rates("constant") == [0.1] * 8
    assert rates("steps") == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    assert rates("cosine", 4) == pytest.approx([0.1 * (1 + math.cos(math.pi * e / 4)) / 2 for e in range(4)])
    assert rates(lambda progress: 1 - progress, 4) == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert set(SCHEDULES) == {"cosine", "steps", "constant", "warm-up cosine"}  # the last has a test of its own


# Evaluation.


@pytest.mark.parametrize("count", [1, 7, 10])
def test_evaluate_counts(count: int) -> None:
    """Accuracy over batches (the last is smaller) equals a plain count, also with a DataLoader."""
    model, data = network(), coloured(4).subset(range(count))
    with torch.no_grad():
        output = model.eval()(data.images / 255)
    expected = (output.argmax(dim=1) == data.labels).sum().item() / count
    for batch_size in (1, 3, 7, 256):
        assert evaluate(model, data, batch_size=batch_size) == expected
    assert evaluate(model, loader(data, 3)) == expected


def test_evaluate_leaves_the_model_as_it_was() -> None:
    """Modes (also of a single frozen layer), statistics and gradients stay as they were, also after errors."""
    model = network().train()
    model[1].eval()
    before = flattened(model.state_dict())
    evaluate(model, coloured(2))
    assert [module.training for module in model] == [i != 1 for i in range(len(model))]
    assert flattened(model.state_dict()) == before
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="data: expected at least one image, got none"):
        evaluate(model, coloured(2).subset([]))
    with pytest.raises(RuntimeError):
        evaluate(nn.Sequential(model, nn.Linear(9, 9)), coloured(2))
    assert model.training
    assert not model[1].training


def test_evaluate_a_model_without_parameters() -> None:
    """A fixed rule without parameters can be measured beside trained networks."""

    class Brightest(nn.Module):
        """Predicts the strongest colour."""

        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    assert evaluate(Brightest(), coloured(4)) == 1.0


# Output.


def test_progress(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The progress bar goes to stdout, since notebooks compare stderr; without progress nothing is printed."""
    run = trainer(tmp_path / "run", progress=True)
    run.notes.append("a note")
    for report in run:
        if report.step == 5:
            break
    assert capfd.readouterr() == ("", "")
    trainer(tmp_path / "run", progress=True).train()
    out, err = capfd.readouterr()
    assert err == ""
    assert "resuming at step 5 of 12" in out
    assert "12/12" in out
    assert "loss=" in out
    assert "val_accuracy=" in out
    assert "nan" not in out
    trainer(tmp_path / "run", progress=True).train()
    out, err = capfd.readouterr()
    assert (out.splitlines()[-1], err) == ("already finished", "")
    trainer(tmp_path / "run").train()
    trainer().train()
    assert capfd.readouterr() == ("", "")


# Losses that are not finite.


def test_a_loss_that_is_not_finite_stops(tmp_path: Path) -> None:
    """The error names step and learning rate; the last good checkpoint is kept and the run continues from it."""
    expected, run = trainer(), trainer(tmp_path / "run")
    expected.train()
    for report in run:
        if report.step == 3:
            break
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    loss, count = run.loss, 0

    def broken(output: Tensor, labels: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return loss(output, labels) * (math.nan if count == 3 else 1)

    run.loss = broken
    wanted = r"loss is nan at step 6 \(learning rate 0.0375; the last checkpoint is from step 3\)"
    with pytest.raises(FloatingPointError, match=wanted):
        run.train()
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    run.train()
    assert state_of(run) == state_of(expected)


def test_weights_that_are_not_finite_are_not_kept(tmp_path: Path) -> None:
    """A finite loss can make infinite weights: they must not replace a good checkpoint or go unnoticed."""

    def burst(run: Trainer, at: int) -> None:
        real = run.train_on_batch

        def step(images: Tensor, labels: Tensor) -> dict[str, float]:
            figures = real(images, labels)
            if run.step + 1 == at:
                run.model[0].weight.data[0] = math.inf
            return figures

        run.train_on_batch = step

    run = trainer(tmp_path / "run", checkpoint_seconds=0.0)
    burst(run, 3)
    wanted = (
        r"weights of the model are not finite after step 3 \(learning rate 0.05; the last checkpoint is from step 2\)"
    )
    with pytest.raises(FloatingPointError, match=wanted):
        run.train()
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 2
    run = trainer()
    burst(run, run.steps)
    with pytest.raises(FloatingPointError, match="not finite after step 12"):
        run.train()
    with pytest.raises(RuntimeError, match="no folder with a checkpoint to return to"):
        run.train()


class _Draws(nn.Module):
    """A network that draws from the global generators of numpy and Python in training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            images = images * (1 + 0.1 * np.random.rand()) + 0.1 * random.random()
        return self.inner(images)


@pytest.mark.parametrize("kind", ["network", "function", "transform"])
def test_every_generator_is_seeded(kind: str, tmp_path: Path) -> None:
    """A run repeats and resumes bit for bit, whichever generators its network or augmentation draws from."""

    class OwnTransform(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return (image * np.random.uniform(0.5, 1)).clamp(0, 1)

    augment = {
        "network": None,
        "function": lambda images, generator: (images + 0.1 * torch.rand_like(images) * np.random.rand()).clamp(0, 1),
        "transform": v2.Compose([OwnTransform()]),
    }[kind]

    def run(folder: Path | None = None, stop: int = 6) -> list[float]:
        model = _Draws() if kind == "network" else network()
        options = {"augment": augment, "steps": 6, "batch_size": 8, "lr": 0.05, "folder": folder}
        made = Trainer(model, coloured(), **options, progress=False, device="cpu")
        for report in made:
            if report.step == stop:
                break
        return [row["loss"] for row in made.tables["log"]]

    whole = run()
    np.random.rand()
    random.random()
    assert run() == whole
    run(tmp_path, stop=3)
    assert run(tmp_path) == whole


class _Remembers(nn.Module):
    """A loss with a buffer that each call changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, output: Tensor, labels: Tensor) -> Tensor:
        value = F.cross_entropy(output, labels)
        self.mean.mul_(0.9).add_(0.1 * value.detach())
        return value + self.mean


def test_a_loss_that_remembers_is_refused() -> None:
    """Its buffers would be lost on resume; the trial leaves them as they were. Constant ones are settings."""
    loss = _Remembers()
    with pytest.raises(ValueError, match=r"loss: expected one without buffers that change, got .* with \['mean'\]"):
        trainer(loss=loss)
    assert loss.mean == 0
    trainer(loss=nn.CrossEntropyLoss(weight=torch.ones(3)))


def test_names_of_the_log_are_taken() -> None:
    """A metric called step would make the log unreadable."""

    class Own(Trainer):
        def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
            return super().train_on_batch(images, labels) | {"step": 1.0}

    with pytest.raises(ValueError, match="train_on_batch: expected other names than the log's own"):
        Own(network(), coloured(), steps=2, batch_size=8, progress=False, device="cpu").train()


@pytest.mark.parametrize("seed", [1.7, "1", None])
def test_seeds_are_whole_numbers(seed: Any) -> None:
    """Others would be rounded, or fail within torch."""
    with pytest.raises(ValueError, match="seed: expected a whole number"):
        unchecked(TrainerSettings.__init__)(TrainerSettings.__new__(TrainerSettings), seed=seed)
