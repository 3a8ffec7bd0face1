"""The linear probe against scikit-learn on features taken by hand."""

import math

import pytest
import tiny
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mtanytime.data.images import ImageSet, Task
from mtanytime.transfer.probe import OUTPUT, fit_probe

SOURCE = tiny.made(6, classes=5, seed=3).eval()
TRAIN, TEST = tiny.images(60), tiny.images(30, seed=5)


def pooled(data: ImageSet, layers: tuple[str, ...]) -> torch.Tensor:
    """The features, by running the source's parts one after the other."""
    images = data.images.float() / 255
    with torch.no_grad():
        first = SOURCE.first(images)
        second = SOURCE.second(first)
        parts = {"first": first.mean((2, 3)), "second": second.mean((2, 3)), OUTPUT: SOURCE(images)}
    return torch.cat([parts[layer] for layer in layers], 1)


def test_probe_is_scikit_learns_regression() -> None:
    """With the chosen layers and strength, the probe's logits are those of the regression on standardized features."""
    probe = fit_probe(SOURCE, TRAIN, seed=1)
    scaler = StandardScaler().fit(pooled(TRAIN, probe.layers).double())
    regression = LogisticRegression(C=probe.strength, max_iter=2000)
    regression.fit(scaler.transform(pooled(TRAIN, probe.layers).double()), TRAIN.labels)
    expected = regression.predict_log_proba(scaler.transform(pooled(TEST, probe.layers).double()))
    logits = probe(TEST.images.float() / 255)
    torch.testing.assert_close(logits.log_softmax(1).double(), torch.from_numpy(expected), atol=1e-4, rtol=1e-4)


def test_candidates_are_compared_on_the_labelled_images() -> None:
    """One row for each candidate and strength; the best is chosen."""
    probe = fit_probe(SOURCE, TRAIN, strengths=(0.01, 1.0), folds=3)
    assert list(probe.table["layers"].unique()) == ["second", "first second", "first second output"]
    assert len(probe.table) == 6
    best = probe.table.loc[probe.table["accuracy"].idxmax()]
    assert (" ".join(probe.layers), probe.strength) == (best["layers"], best["strength"])


def test_the_log_loss_chooses_answers_that_say_how_sure_they_are() -> None:
    """By log loss, another strength may win than by accuracy: here, equally good answers that are less uniform."""
    probe = fit_probe(SOURCE, TRAIN, scoring="log_loss", folds=3)
    best = probe.table.loc[probe.table["log_loss"].idxmin()]
    assert (" ".join(probe.layers), probe.strength) == (best["layers"], best["strength"])
    sure = [
        fit_probe(SOURCE, TRAIN, strengths=[c], layers=["second"], folds=3).table["log_loss"][0] for c in (1e-4, 1.0)
    ]
    assert sure[0] > sure[1]
    assert sure[0] == pytest.approx(math.log(3), abs=0.02)  # nearly uniform over three classes


def test_a_part_of_the_images() -> None:
    """Of a set, as many of each class; of a loader, the first batches."""
    seen: list[int] = []
    hook = SOURCE.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    fit_probe(SOURCE, TRAIN, max_images=30, folds=10)  # ten of each of the three classes
    loader = DataLoader(TensorDataset(TRAIN.images / 255, TRAIN.labels), 10)
    fit_probe(SOURCE, loader, max_images=30, folds=2)
    hook.remove()
    assert seen == [30, 10, 10, 10]


def test_logits_from_features_that_are_there() -> None:
    """A trainer that has run the source already need not run it again."""
    probe = fit_probe(SOURCE, TRAIN, folds=2)
    images = TEST.images.float() / 255
    output, features = probe.source(images)
    torch.testing.assert_close(probe.logits(output, features), probe(images))


def test_two_classes() -> None:
    """scikit-learn keeps one row of coefficients for two classes."""
    chosen = TRAIN.labels < 2
    data = ImageSet(TRAIN.images[chosen], TRAIN.labels[chosen], ("a", "b"))
    probe = fit_probe(SOURCE, data, folds=2)
    assert probe(data.images.float() / 255).shape == (len(data), 2)
    assert (probe(data.images.float() / 255).argmax(1) == data.labels).float().mean() > 0.6


def test_the_source_stays_as_it_is() -> None:
    """Neither weights nor running statistics change."""
    before = {name: value.clone() for name, value in SOURCE.state_dict().items()}
    fit_probe(SOURCE, TRAIN, folds=2)
    assert all(torch.equal(value, before[name]) for name, value in SOURCE.state_dict().items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 30}, "data: expected at least 30 images per class, got 20 of 'class 0'; lower folds"),
        ({"folds": 1}, "folds: expected a whole number >= 2, got 1"),
        ({"strengths": ()}, r"strengths: expected numbers above 0, got \[\]"),
        ({"layers": ["third"]}, "third"),
    ],
)
def test_bad_input(options: dict, message: str) -> None:
    """Refused before anything is fitted."""
    with pytest.raises(ValueError, match=message):
        fit_probe(SOURCE, TRAIN, **options)


@pytest.mark.usefixtures("unchecked")
def test_data_that_a_probe_cannot_read() -> None:
    """A task, and a loader whose labels begin at 1: each error says what to do."""
    with pytest.raises(ValueError, match=r"^data: expected an ImageSet or a DataLoader, got Task; give its attribute"):
        fit_probe(SOURCE, Task(TRAIN, TEST))
    loader = DataLoader(TensorDataset(TRAIN.images / 255, TRAIN.labels + 1), 10)
    with pytest.raises(ValueError, match=r"images per class, got 0 of class 0; number the classes from 0 on$"):
        fit_probe(SOURCE, loader)
    order = TRAIN.labels.argsort()
    in_order = DataLoader(TensorDataset(TRAIN.images[order] / 255, TRAIN.labels[order]), 2)
    with pytest.raises(ValueError, match=r"classes, got those of one; shuffle the DataLoader, of which only the first"):
        fit_probe(SOURCE, in_order, max_images=4)


def test_as_many_folds_as_there_are_images() -> None:
    """Also of a loader, whose labels are known only once it was read; and of a part of the images."""
    few = TRAIN.subset(range(9))
    loader = DataLoader(TensorDataset(few.images / 255, few.labels), 4)
    tables = [fit_probe(SOURCE, few, **options).table for options in ({"folds": 3}, {"folds": None})]
    assert tables[0].equals(tables[1])
    assert fit_probe(SOURCE, loader, folds=None).table.round(4).equals(tables[0].round(4))
    fit_probe(SOURCE, TRAIN, folds=None, max_images=9)


@pytest.mark.usefixtures("unchecked")
def test_one_layer_as_text() -> None:
    """It was read letter by letter."""
    assert fit_probe(SOURCE, TRAIN, layers="second").layers == ("second",)


def test_one_class() -> None:
    """There is nothing to tell apart; scikit-learn says so in pages."""
    with pytest.raises(ValueError, match=r"^data: expected images of at least two classes, got those of one$"):
        fit_probe(SOURCE, tiny.images(12, classes=1))


def test_a_source_without_parameters() -> None:
    """Fixed filters are features, too."""

    class Means(nn.Module):
        """Mean pooling of the pixels."""

        feature_layers = ("pool",)

        def __init__(self) -> None:
            super().__init__()
            self.pool = nn.AvgPool2d(4)

        def forward(self, images: Tensor) -> Tensor:
            """Pooled pixels."""
            return self.pool(images)

    assert fit_probe(Means(), TRAIN)(TEST.images / 255).shape == (30, 3)


def test_a_wrapped_source() -> None:
    """A network in DataParallel names its layers, too."""
    source = tiny.made(5, seed=2).eval()
    probe = fit_probe(nn.DataParallel(source), tiny.images(30))
    torch.testing.assert_close(probe.linear.weight, fit_probe(source, tiny.images(30)).linear.weight)
