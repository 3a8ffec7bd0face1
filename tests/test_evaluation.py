"""Predictions and curves against the network's own forward pass; calibration and flips by hand and by other means."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ladder import SHAPE, ladder
from sklearn.calibration import calibration_curve
from tiny_runs import coloured, loader, network
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from typechecker import unchecked

from mtanytime import measure
from mtanytime.anytime.trainer import evaluate_exits
from mtanytime.backbones import Normalized
from mtanytime.data.images import ImageSet, Task
from mtanytime.measure.evaluation import evaluate


@pytest.mark.parametrize("kind", ["set", "loader"])
def test_predictions_are_the_networks_own(kind: str) -> None:
    """Logits of all exits in order are those of one pass in eval mode, each with its own label."""
    data, anytime = coloured(), ladder()
    outputs, labels = measure.predictions(
        anytime, data if kind == "set" else loader(data), batch_size=7, progress=False
    )
    assert outputs.shape == (3, 24, 3)
    assert labels.bincount().tolist() == [8, 8, 8]
    with torch.no_grad():
        expected = torch.stack(anytime.eval()(data.images / 255))
    if kind == "set":
        assert labels.equal(data.labels)
        torch.testing.assert_close(outputs, expected)
    else:  # shuffled
        torch.testing.assert_close(outputs[0].sort(dim=0).values, expected[0].sort(dim=0).values)
        right = (outputs.argmax(dim=2) == labels).double().mean(dim=1)
        assert right.equal((expected.argmax(dim=2) == data.labels).double().mean(dim=1))


def test_predictions_of_one_tensor_and_in_any_type() -> None:
    """An ordinary network is one exit; logits are float32 or wider."""
    plain, data = network(), coloured()
    outputs, labels = measure.predictions(plain, data, progress=False)
    assert outputs.shape == (1, 24, 3)
    assert (outputs[0].argmax(dim=1) == labels).double().mean().item() == evaluate(plain, data)
    double, _ = measure.predictions(network().double(), data, progress=False)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), outputs)
    short, _ = measure.predictions(plain, data, precision="bfloat16", progress=False)
    assert short.dtype == torch.float32
    assert not short.equal(outputs)
    torch.testing.assert_close(short, outputs, rtol=0.05, atol=0.05)


def test_progress_goes_to_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    """Notebooks compare stderr."""
    measure.predictions(ladder(), coloured())
    measure.latencies(ladder(), SHAPE, (2,), repeats=1)
    out, err = capfd.readouterr()
    assert "predicting" in out
    assert "timing batch 2" in out
    assert err == ""


def test_exits_of_different_classes_are_refused() -> None:
    """Logits of different shapes cannot be stacked."""
    anytime = ladder()
    anytime.heads[0][-1] = nn.Linear(5, 2)
    with pytest.raises(
        ValueError,
        match=r"network: expected logits of the same shape from all exits, got \[\(24, 2\), \(24, 3\), \(24, 3\)\]",
    ):
        measure.predictions(anytime, coloured(), progress=False)


def test_curve_of_a_network() -> None:
    """Each row has the cost and accuracy of the stand-alone network; latency and seed are optional."""
    anytime, data = ladder(), coloured(20, seed=3)
    table = measure.curve("ladder", anytime, data, seed=5, latency_batch=2, progress=False)
    columns = ["model", "exit", "macs", "macs_own_head", "params", "latency_ms", "accuracy", "seed"]
    assert table.columns.tolist() == columns
    assert table["accuracy"].tolist() == [evaluate(anytime.extract(k), data) for k in (1, 2, 3)]
    pd.testing.assert_frame_equal(table[columns[1:5]], measure.exit_costs(anytime, SHAPE))
    assert (table["latency_ms"] > 0).all()
    assert set(table["model"]) == {"ladder"}
    assert set(table["seed"]) == {5}
    bare = measure.curve("ladder", anytime, loader(data), progress=False)
    pd.testing.assert_frame_equal(bare, table.drop(columns=["latency_ms", "seed"]))
    plain = measure.curve("plain", network(), data, progress=False)
    assert plain["accuracy"].tolist() == [evaluate(network(), data)]


def test_times_are_of_the_precision_that_is_measured() -> None:
    """Accuracy and milliseconds in one row are of the same network."""

    class Seen(nn.Sequential):
        """Keeps the types of its answers by the size of the batch."""

        def forward(self, images: Tensor) -> Tensor:
            output = super().forward(images)
            kinds.setdefault(len(images), output.dtype)
            return output

    kinds: dict[int, torch.dtype] = {}
    measure.curve("plain", Seen(*network()), coloured(4), latency_batch=5, precision="bfloat16", progress=False)
    assert kinds[5] == kinds[12] == torch.bfloat16


def test_curve_refuses_what_would_be_wrong() -> None:
    """A broken weight makes the accuracy meaningless; every answer needs a cost."""
    anytime = ladder()
    with torch.no_grad():
        anytime.heads[1][-1].bias[0] = math.nan
    with pytest.raises(ValueError, match="outputs: expected finite logits, got other ones at exit 2 for image 0"):
        measure.curve("ladder", anytime, coloured(), progress=False)
    hidden = nn.Sequential(ladder())
    with pytest.raises(ValueError, match="Sequential: expected 1 answers, one per exit, got 3"):
        measure.curve("ladder", hidden, coloured(), progress=False)


class Listed(nn.Sequential):
    """A network whose answers are the list of one exit."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits."""
        return [super().forward(images)]


def test_labels_without_logits_are_refused() -> None:
    """A network with one logit, or too few, would be right about the first classes alone."""
    data = coloured()
    few = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, len(data.classes) - 1))
    for measured, model in ((evaluate, few), (evaluate_exits, Listed(few))):
        with pytest.raises(ValueError, match=r"labels: expected classes from 0 to \d, got 0 to \d"):
            measured(model, data)


def test_logits_that_are_no_numbers() -> None:
    """The largest of NaN is the first: a network that diverged would have the accuracy of guessing."""
    data = ImageSet(torch.zeros(4, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ("a", "b"))
    network = Normalized(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (0.0,) * 3, (1.0,) * 3)
    nn.init.constant_(network.network[1].weight, math.nan)
    with pytest.raises(FloatingPointError, match="logits: expected numbers, got nan; the network may have diverged"):
        evaluate(network, data)


@pytest.mark.parametrize("wrong", ["task", "data set", "list"])
def test_what_is_no_set_of_images(wrong: str, unchecked: None) -> None:
    """It is named, with what was meant."""
    images = ImageSet(torch.zeros(2, 3, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    data = {"task": Task(images, images), "data set": TensorDataset(images.images, images.labels), "list": [1]}[wrong]
    got = {"task": "Task; give its part train or test", "data set": "TensorDataset", "list": "list"}[wrong]
    with pytest.raises(ValueError, match=f"data: expected an ImageSet, .*, got {got}"):
        evaluate(nn.Identity(), data)


def test_unknown_precisions_are_refused(unchecked: None) -> None:
    """They would otherwise be float32 without a word."""
    for precision in ("bf16", "float16", torch.bfloat16):
        with pytest.raises(ValueError, match=r"precision: expected one of .*'bfloat16'"):
            evaluate(network(), coloured(), precision=precision)


def logits_of(probabilities: list[list[float]]) -> Tensor:
    """Return logits (1, images, classes) whose softmax is these probabilities."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_calibration_of_a_worked_example() -> None:
    """Two bins by hand: (0, 0.5] holds 0.4 wrong and 0.5 right; (0.5, 1] holds 0.7 right, 0.8 right, 0.9 wrong."""
    outputs = logits_of([[0.4, 0.35, 0.25], [0.5, 0.25, 0.25], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1], [0.9, 0.05, 0.05]])
    table = measure.calibration(outputs, torch.tensor([1, 0, 0, 0, 2]), bins=2)
    assert table.columns.tolist() == ["exit", "accuracy", "confidence", "ece"]
    low, high = abs(1 / 2 - 0.45), abs(2 / 3 - 0.8)
    assert table.iloc[0].tolist() == pytest.approx([1, 3 / 5, 3.3 / 5, 2 / 5 * low + 3 / 5 * high])
    sure = torch.tensor([[[1e3, 0.0]] * 4])
    assert measure.calibration(sure, torch.tensor([0, 0, 0, 1])).iloc[0].tolist() == [1, 0.75, 1, 0.25]


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_agrees_with_scikit_learn(bins: int) -> None:
    """scikit-learn's reliability diagram, weighted by images per bin, gives the same error."""
    generator = torch.Generator().manual_seed(bins)
    outputs, labels = torch.randn(3, 500, 4, generator=generator), torch.randint(4, (500,), generator=generator)
    table = measure.calibration(outputs, labels, bins)
    for k in range(3):
        confidence, answers = outputs[k].double().softmax(dim=1).max(dim=1)
        right = (answers == labels).numpy()
        accuracies, means = calibration_curve(right, confidence.numpy(), n_bins=bins)
        counts = np.histogram(confidence.numpy(), bins, (0, 1))[0]
        expected = np.sum(counts[counts > 0] * np.abs(accuracies - means)) / 500
        assert table.loc[k, "ece"] == pytest.approx(expected)
        assert table.loc[k, "ece"] >= abs(table.loc[k, "accuracy"] - table.loc[k, "confidence"]) - 1e-12
        assert table.loc[k, "accuracy"] == right.mean()


def answers(right: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Return outputs (exits, images, 2) that are correct where there is a 1, and their labels."""
    correct = torch.tensor(right)
    labels = torch.arange(correct.shape[1]) % 2
    chosen = torch.where(correct.bool(), labels, 1 - labels)
    return nn.functional.one_hot(chosen, 2).float(), labels


def test_flips_by_hand() -> None:
    """Four images: always correct; correct, wrong, correct; wrong, correct, wrong; correct at the first exit only."""
    table = measure.flips(*answers([[1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]]))
    names = ["exit", "right_to_wrong", "wrong_to_right", "ever_right_to_wrong", "ever_wrong_to_right"]
    assert table.columns.tolist() == names
    assert table.to_numpy().tolist() == [[2, 0.5, 0.25, 0.5, 0.25], [3, 0.25, 0.25, 0.5, 0.25]]
    alone = measure.flips(*answers([[1, 0]]))
    assert alone.columns.tolist() == names
    assert alone.empty


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=2)))
def test_flips_of_any_answers(right: list[list[int]]) -> None:
    """Counted image by image; wrong-to-right minus right-to-wrong is the gain in accuracy."""
    table = measure.flips(*answers(right))
    for k in range(1, len(right)):
        images = list(zip(*right[: k + 1], strict=True))
        row = table.loc[k - 1]
        assert row["ever_right_to_wrong"] == pytest.approx(sum(1 in i[:k] and not i[k] for i in images) / len(images))
        assert row["ever_wrong_to_right"] == pytest.approx(sum(0 in i[:k] and i[k] for i in images) / len(images))
        gain = (sum(right[k]) - sum(right[k - 1])) / len(images)
        assert row["wrong_to_right"] - row["right_to_wrong"] == pytest.approx(gain)
        assert row["right_to_wrong"] <= row["ever_right_to_wrong"]


@pytest.mark.parametrize("function", [measure.calibration, measure.flips])
def test_logits_and_labels_are_checked(function: Callable[..., pd.DataFrame]) -> None:
    """Labels without a logit, logits that are not finite and shapes that do not match are refused."""
    outputs, labels = torch.zeros(2, 4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="labels: expected classes from 0 to 2, got 0 to 3"):
        function(outputs, labels + torch.tensor([0, 0, 1, 0]))
    with pytest.raises(ValueError, match="labels: expected classes from 0 to 2, got -1 to 2"):
        function(outputs, labels - torch.tensor([0, 0, 0, 1]))
    for broken in (math.nan, math.inf):
        changed = outputs.clone()
        changed[1, 2, 0] = broken
        with pytest.raises(ValueError, match="outputs: expected finite logits, got other ones at exit 2 for image 2"):
            function(changed, labels)
    expected = r"outputs and labels: expected shapes \(exits, images, classes\) and \(images,\), got shapes \("
    for wrong in (outputs[0], outputs[:, :3], outputs[:0]):
        with pytest.raises(ValueError, match=expected):
            unchecked(function)(wrong, labels)


def test_bins_are_checked() -> None:
    """Without bins there is nothing to average."""
    with pytest.raises(ValueError, match="bins: expected a number >= 1, got 0"):
        measure.calibration(torch.zeros(1, 2, 3), torch.tensor([0, 1]), bins=0)
