"""Training all exits at once: the joint loss, the log, the curve, and resume."""

from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms import v2

from mtanytime.anytime import AnytimeTrainer, InclusiveResNeXt, JointLoss, SlicedResNeXt, evaluate_exits
from mtanytime.data.batches import Batches, crop_flip
from mtanytime.measure.costs import exit_costs
from mtanytime.training.stored_run import load_run


def made() -> SlicedResNeXt:
    """A network of three exits and three classes."""
    return SlicedResNeXt(3, width=6, bottleneck=2, branches=3, blocks=1)


def trainer(folder: Path | None = None, **options: object) -> AnytimeTrainer:
    """A short run on random images."""
    settings = {"epochs": 3, "batch_size": 6, "lr": 0.05, "validation": tiny.images(6, seed=2), "progress": False}
    settings |= {"model": made, "data": tiny.images(), "test": tiny.images(9, seed=1), "folder": folder}
    return AnytimeTrainer(**settings | options)


def some_outputs(exits: int = 3) -> tuple[list[Tensor], Tensor]:
    """Random logits of all exits, and labels."""
    generator = torch.Generator().manual_seed(0)
    outputs = [torch.randn(5, 4, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(exits)]
    return outputs, torch.tensor([0, 1, 2, 3, 0])


def test_joint_loss_is_the_sum() -> None:
    """By default it is the paper's sum of the exits' cross-entropies; with weights, a weighted sum."""
    outputs, labels = some_outputs()
    losses = [F.cross_entropy(logits, labels) for logits in outputs]
    torch.testing.assert_close(JointLoss()(outputs, labels), sum(losses))
    torch.testing.assert_close(JointLoss([1, 0, 2.5])(outputs, labels), losses[0] + 2.5 * losses[2])


def test_distillation_by_hand() -> None:
    """Each thinner exit learns the softened prediction of the widest one, which gets no gradient from it."""
    outputs, labels = some_outputs(2)
    plain = JointLoss()(outputs, labels)
    added = JointLoss(distillation=0.7, temperature=3.0)(outputs, labels) - plain
    by_hand = 0.0
    for image in range(5):
        p = torch.softmax(outputs[1][image] / 3, 0)
        q = torch.softmax(outputs[0][image] / 3, 0)
        by_hand += 0.7 * 9 * (p * (p / q).log()).sum() / 5
    torch.testing.assert_close(added, by_hand)
    thin, wide = torch.autograd.grad(added, outputs, allow_unused=True)
    assert thin.abs().max() > 0
    assert wide is None or wide.abs().max() < 1e-12


def test_bad_losses() -> None:
    """Bad weights are refused: their signs when the loss is made, their number when it is called."""
    outputs, labels = some_outputs()
    with pytest.raises(ValueError, match=r"^weights: expected 3 weights, one per exit, got \(1.0, 2.0\)$"):
        JointLoss([1, 2])(outputs, labels)
    for weights in ([0, 0], [1, -1], [1, float("nan")]):
        with pytest.raises(ValueError, match=r"^weights: expected numbers >= 0, not all 0, got"):
            JointLoss(weights)
    with pytest.raises(ValueError, match=r"^temperature: expected a number > 0, got 0"):
        JointLoss(temperature=0)


def test_a_step_is_torchs_own() -> None:
    """The run's first steps are plain SGD on the summed cross-entropies of the same batches."""
    run = trainer(epochs=1, validation=None, momentum=0.9, weight_decay=1e-3)
    twin = made()
    twin.load_state_dict(run.model.state_dict())
    sgd = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for images, labels in Batches(tiny.images(), 6, seed=0).epoch(0):
        sgd.zero_grad()
        sum(F.cross_entropy(logits, labels) for logits in twin(images)).backward()
        sgd.step()
    run.train()
    for ours, theirs in zip(run.model.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_result_has_one_accuracy_per_exit() -> None:
    """The result's accuracies are those of `evaluate_exits`, and the log has the accuracy per exit and batch."""
    run = trainer()
    result = run.train()
    assert result.last_accuracy == evaluate_exits(run.model, tiny.images(9, seed=1))
    assert len(result.accuracy) == 3
    run.load_best()
    assert result.accuracy == evaluate_exits(run.model, tiny.images(9, seed=1))
    columns = ["accuracy_1", "accuracy_2", "accuracy_3"]
    assert set(columns) <= set(result.log.columns)
    mean = result.log[columns].mean(axis=1)
    assert (mean - result.log["accuracy"]).abs().max() < 1e-6
    assert result.log["val_accuracy"].notna().sum() == 3


def test_evaluate_exits_by_hand() -> None:
    """The accuracies equal a count image by image, and the network's mode is restored."""
    network, data = made().train(), tiny.images(7)
    accuracies = evaluate_exits(network, data, batch_size=3)
    assert network.training
    outputs = network.eval()(data.images.float() / 255)
    expected = [sum(int(a.argmax() == b) for a, b in zip(o, data.labels, strict=True)) / 7 for o in outputs]
    assert accuracies == pytest.approx(expected)


def test_resumes_where_it_was_stopped(tmp_path: Path) -> None:
    """A run that is stopped within an epoch and resumed by a new trainer ends as an uninterrupted one."""
    options = {"loss": JointLoss([1, 2, 3], distillation=0.5), "augment": crop_flip(1), "schedule": "warm-up cosine"}
    whole = trainer(**options)
    expected = whole.train()
    first = trainer(tmp_path / "run", **options)
    for report in first:
        if report.step == 3:
            break
    second = trainer(tmp_path / "run", **options)
    assert second.step == 3
    assert second.train().accuracy == expected.accuracy
    state = second.model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.model.state_dict().items())
    with pytest.raises(ValueError, match="loss"):
        trainer(tmp_path / "run", **{**options, "loss": JointLoss([1, 2, 4], distillation=0.5)})


def test_folder_holds_the_curve(tmp_path: Path) -> None:
    """A finished run can be explored from its folder: cost and test accuracy per exit."""
    first = trainer(tmp_path / "run")
    assert not (tmp_path / "run" / "curve.csv").exists()
    result = first.train()
    curve = pd.read_csv(tmp_path / "run" / "curve.csv")
    assert curve.columns.tolist() == ["model", "seed", "exit", "macs", "macs_own_head", "params", "accuracy"]
    assert curve["accuracy"].tolist() == pytest.approx(result.accuracy)
    assert curve["macs"].tolist() == exit_costs(first.model, (3, 8, 8))["macs"].tolist()
    assert trainer(tmp_path / "run").train().accuracy == result.accuracy


def test_the_curve_has_the_costs_of_the_test_images(tmp_path: Path) -> None:
    """Training on crops of another size does not change what a test image costs; nor what a stored run is for."""
    data = {"augment": v2.RandomCrop(8), "validation": None, "epochs": 1}
    AnytimeTrainer(
        made, tiny.images(size=16), tiny.images(9, size=16, seed=1), folder=tmp_path, progress=False, **data
    ).train()
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve["macs"].tolist() == exit_costs(made(), (3, 16, 16))["macs"].tolist()
    assert load_run(tmp_path, made()).image_shape == (3, 16, 16)


def test_exits_that_cannot_be_cut_out_fail_before_training(tmp_path: Path) -> None:
    """The curve needs their costs, and would otherwise fail after the last step."""

    class Broken(SlicedResNeXt):
        """Its exits cannot be cut out."""

        def extract(self, k: int) -> nn.Module:
            raise RuntimeError(f"no exit {k}")

    with pytest.raises(RuntimeError, match="no exit 1"):
        trainer(tmp_path / "run", model=lambda: Broken(3, width=6, bottleneck=2, branches=3, blocks=1))
    assert not (tmp_path / "run").exists()


def test_any_anytime_network() -> None:
    """The trainer needs a network that returns a list of logits, and nothing else."""
    network = InclusiveResNeXt(3, width=4, bottleneck=1, branches=2, blocks=1)
    run = AnytimeTrainer(network, tiny.images(), epochs=1, batch_size=12, progress=False)
    assert run.train().accuracy is None


@pytest.mark.parametrize(
    ("network", "came"),
    [(tiny.made(), "Tensor"), (nn.Sequential(tiny.made(), nn.ModuleList()), "Tensor")],
)
def test_other_outputs_are_refused(network: nn.Module, came: str) -> None:
    """A network with one output is refused before training."""
    if isinstance(network, nn.Sequential):
        network.forward = lambda images: [network[0](images), network[0](images)[:, :2]]
        came = r"\[\(\d+, 3\), \(\d+, 2\)\]"
    with pytest.raises(ValueError, match=f"^model: expected .* a list of logits .*, got {came}"):
        AnytimeTrainer(network, tiny.images(), epochs=1, batch_size=4, progress=False)


def test_warm_up_cosine_goes_step_by_step() -> None:
    """The rate rises over the first twentieth of the steps, then falls to nearly 0; other schedules go by epoch."""
    run = trainer(epochs=20, schedule="warm-up cosine", lr=1.0)
    rates = run.rates
    assert len(rates) == run.steps == 40
    peak = max(range(40), key=rates.__getitem__)
    assert peak == 2
    assert rates[:3] == sorted(rates[:3])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert 0 < rates[-1] < 0.01 < 0.9 < rates[peak] <= 1
    assert trainer(epochs=2, schedule="cosine", lr=1.0).rates == [1.0, 1.0, 0.5, 0.5]


def test_a_run_begun_again_has_its_own_curve(tmp_path: Path) -> None:
    """Who removes a checkpoint trains again; the curve of before must not stay."""
    trainer(tmp_path / "run").train()
    (tmp_path / "run" / "checkpoint.pt").unlink()
    file = tmp_path / "run" / "curve.csv"
    file.write_text(file.read_text().replace("SlicedResNeXt", "Old"))
    trainer(tmp_path / "run").train()
    assert "Old" not in file.read_text()
