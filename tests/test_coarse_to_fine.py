"""The taxonomy task: the coarse-to-fine loss, training with it, and its metrics."""

import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from label_trees import ANIMALS, CLASSES, drawn, paths_of, trees
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn
from torch.nn import functional as F

from mtanytime.anytime.taxonomy import CoarseToFineLoss, Taxonomy, coarse_to_fine_metrics
from mtanytime.data.images import Tree
from mtanytime.data.synthetic import DIGIT_TREE, handwritten
from mtanytime.training.identity import name_of
from mtanytime.training.trainer import Trainer

# The loss


@given(trees(), st.integers(0, 2**31), st.sampled_from([0.0, 0.3]))
def test_loss_is_the_sum_written_out(drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, fine: float):
    """The sum is computed image by image, exit by exit and class by class, from the tree's own paths."""
    tree, classes = drawn_tree
    taxonomy, paths, rng = Taxonomy(tree, classes), paths_of(tree, classes), random.Random(seed)
    exits = taxonomy.levels + 2
    levels, weights = taxonomy.assign(exits), [rng.random() for _ in range(exits)]
    labels = [rng.randrange(len(classes)) for _ in range(3)]
    outputs = [drawn(3, len(classes), seed=seed + k) for k in range(exits)]
    wanted = []
    for logits, level in zip(outputs, levels, strict=True):
        loss = 0.0
        for row, label in zip(logits.tolist(), labels, strict=True):
            total = math.fsum(map(math.exp, row))
            group = [math.exp(x) for x, path in zip(row, paths, strict=True) if path[:level] == paths[label][:level]]
            loss -= math.log(math.fsum(group) / total)
            if level < taxonomy.levels:
                loss -= fine * math.log(math.exp(row[label]) / total)
        wanted.append(loss / len(labels))
    loss = CoarseToFineLoss(taxonomy, levels, weights, fine)
    assert loss.per_exit(outputs, torch.tensor(labels)).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    total = math.fsum(w * value for w, value in zip(weights, wanted, strict=True))
    assert loss(outputs, torch.tensor(labels)).item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    plain = CoarseToFineLoss(taxonomy, exits, fine=fine)(outputs, torch.tensor(labels))
    assert plain.item() == pytest.approx(math.fsum(wanted), rel=1e-9, abs=1e-12)


def test_gradient_of_a_coarse_loss_is_its_closed_form():
    """The gradient is p minus p given the true group; torch's finite differences agree for all exits together."""
    taxonomy, labels = Taxonomy(ANIMALS, CLASSES), torch.tensor([0, 1, 4, 3])
    outputs = [drawn(4, 5, seed=k).requires_grad_() for k in range(3)]
    loss = CoarseToFineLoss(taxonomy, 3)
    for logits, level, value in zip(outputs, loss.levels, loss.per_exit(outputs, labels), strict=True):
        p = logits.detach().softmax(-1)
        inside = p * (taxonomy.groups(level)[None] == taxonomy.groups(level)[labels][:, None])
        wanted = (p - inside / inside.sum(1, keepdim=True)) / 4
        torch.testing.assert_close(torch.autograd.grad(value, logits)[0], wanted, rtol=1e-10, atol=1e-14)
    uneven = CoarseToFineLoss(taxonomy, 3, [0.5, 1.0, 2.0], fine=0.3)
    assert torch.autograd.gradcheck(lambda *outputs: uneven(outputs, labels), outputs)


@given(trees(), st.integers(0, 2**31), st.sampled_from([1e2, 1e4, 1e30]))
def test_loss_and_gradient_stay_finite_for_extreme_logits(
    drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, scale: float
):
    """If a group's probability underflows, a sum of probabilities would give log 0 and a gradient of nan."""
    taxonomy = Taxonomy(*drawn_tree)
    labels = torch.arange(len(taxonomy.classes))
    signs = drawn(taxonomy.levels, len(labels), len(labels), seed=seed).sign()
    outputs = (scale * signs).float().requires_grad_()
    loss = CoarseToFineLoss(taxonomy, taxonomy.levels, fine=0.1)
    value = loss(list(outputs), labels)
    value.backward()
    assert value.isfinite()
    assert value >= 0
    assert outputs.grad.isfinite().all()


def test_loss_of_low_precision_logits_is_computed_in_float32():
    """Under autocast, heads return bfloat16, in which a sum over classes would lose the small ones."""
    taxonomy, labels = Taxonomy(ANIMALS, CLASSES), torch.tensor([0, 1, 4, 3])
    outputs = [drawn(4, 5, seed=k).bfloat16() for k in range(3)]
    loss = CoarseToFineLoss(taxonomy, 3, fine=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(outputs, labels)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss([logits.float() for logits in outputs], labels), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1, 1]}, r"weights: expected 3, one per exit, got \(1.0, 1.0\)"),
        ({"weights": [1, -1, 1]}, r"weights: expected finite numbers >= 0, not all 0, got \[1, -1, 1\]"),
        ({"weights": [1, math.nan, 1]}, r"weights: expected finite numbers >= 0, .*, got \[1, nan, 1\]"),
        ({"weights": [1, math.inf, 1]}, r"weights: expected finite numbers >= 0, .*, got \[1, inf, 1\]"),
        ({"weights": [0, 0, 0]}, r"weights: expected finite numbers >= 0, not all 0, got \[0, 0, 0\]"),
        ({"fine": -0.1}, r"fine: expected a finite number >= 0, got -0.1"),
        ({"fine": math.nan}, r"fine: expected a finite number >= 0, got nan"),
    ],
)
def test_loss_refuses_invalid_settings(settings: dict, message: str):
    """A negative weight would train an exit away from its labels."""
    with pytest.raises(ValueError, match=message):
        CoarseToFineLoss(Taxonomy(ANIMALS, CLASSES), 3, **settings)


def test_loss_refuses_outputs_that_are_not_the_exits_and_classes():
    """With one exit too few, exits would be trained on the levels of others."""
    loss, labels = CoarseToFineLoss(Taxonomy(ANIMALS, CLASSES), 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"outputs: expected logits of 3 exits, got 2"):
        loss([drawn(2, 5)] * 2, labels)
    with pytest.raises(ValueError, match=r"logits: expected \(\.\.\., 5\), one per class, got \(2, 6\)"):
        loss([drawn(2, 6)] * 3, labels)
    for label in (-1, 5):  # as F.cross_entropy does; an index into a table would take -1 for the last class
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            loss([drawn(2, 5)] * 3, torch.tensor([0, label]))


# Training


class TwoExits(nn.Module):
    """A network of two heads on the logits of one TinyNet, which returns the list of their logits."""

    def __init__(self, classes: int):
        super().__init__()
        self.body, self.heads = tiny.made(classes=4), nn.ModuleList(nn.Linear(4, classes) for _ in range(2))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits of both exits."""
        maps = self.body(images)
        return [head(maps) for head in self.heads]


def widest(outputs: list[Tensor]) -> Tensor:
    """The logits of the last exit."""
    return outputs[-1]


class AnytimeSteps(Trainer):
    """The smallest trainer of a network that returns a list of logits."""

    def train_on_batch(self, images: Tensor, labels: Tensor) -> dict[str, float]:
        """Do one SGD step on the loss."""
        loss = self.loss(self.model(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.item()}


def test_a_trainer_takes_the_loss_and_tells_two_of_them_apart(tmp_path: Path):
    """A run that was started with other levels, weights or another tree must not be resumed as if it were the same."""
    data = tiny.images(24, classes=4)
    tree = {"even": ["class 0", "class 2"], "odd": ["class 1", "class 3"]}
    taxonomy = Taxonomy(tree, data.classes)

    def trainer(loss: CoarseToFineLoss) -> AnytimeSteps:
        settings = {"epochs": 12, "batch_size": 8, "lr": 0.05, "progress": False, "device": "cpu"}
        settings["logits"] = widest
        return AnytimeSteps(lambda: TwoExits(4), data, loss=loss, folder=tmp_path / "run", **settings)

    log = trainer(CoarseToFineLoss(taxonomy, 2)).train().log
    assert log["loss"].tail(6).mean() < 0.9 * log["loss"].head(6).mean()
    record = json.loads((tmp_path / "run" / "config.json").read_text())["loss"]
    assert "'levels': (1, 2), 'weights': (1.0, 1.0)" in record
    assert trainer(CoarseToFineLoss(taxonomy, (1, 2), [1, 1])).step == 36  # the same run, finished

    swapped = Taxonomy({"low": ["class 0", "class 1"], "high": ["class 2", "class 3"]}, data.classes)
    others = [
        CoarseToFineLoss(swapped, 2),
        CoarseToFineLoss(taxonomy, 2, [1, 2]),
        CoarseToFineLoss(taxonomy, 2, fine=0.1),
    ]
    for other in others:
        with pytest.raises(ValueError, match=r"loss: there .*CoarseToFineLoss .*here .*CoarseToFineLoss"):
            trainer(other)
    losses = [CoarseToFineLoss(taxonomy, 3), CoarseToFineLoss(taxonomy, (1, 1, 2)), *others]
    assert len({name_of(loss) for loss in losses}) == len(losses)
    with pytest.raises(ValueError, match=r"^loss: expected a function .*: outputs: expected logits of 3 exits, got 2"):
        trainer(losses[0])


def linear_exits(loss: Callable, inputs: list[Tensor], labels: Tensor, train: Tensor, test: Tensor) -> pd.DataFrame:
    """Train one linear exit per input, all together, and return their metrics on the tree of the digits."""
    weights = [torch.zeros(x.shape[1] + 1, 10, requires_grad=True) for x in inputs]
    optimizer = torch.optim.Adam(weights, lr=0.1)

    def outputs(index: Tensor) -> list[Tensor]:
        return [x[index] @ w[:-1] + w[-1] for x, w in zip(inputs, weights, strict=True)]

    for _ in range(100):
        optimizer.zero_grad()
        loss(outputs(train), labels[train]).backward()
        optimizer.step()
    taxonomy = Taxonomy(DIGIT_TREE, "0123456789")
    return coarse_to_fine_metrics(taxonomy, len(inputs), torch.stack(outputs(test)), labels[test])


def test_an_early_answer_is_correct_at_its_level_more_often_than_a_fine_guess():
    """The purpose of the task, on handwritten digits, of which the early exit reads six random features.

    The guess is from an early exit with the same features that was trained on the digits themselves.
    """
    glyphs, labels = handwritten()
    pixels = F.adaptive_avg_pool2d(glyphs[:, 1].float() / 255, 8).flatten(1)
    coarse_to_fine = CoarseToFineLoss(Taxonomy(DIGIT_TREE, "0123456789"), 2, fine=0.3)
    gains = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        train, test = torch.randperm(len(labels), generator=generator).split(900)
        inputs = [pixels @ torch.randn(64, 6, generator=generator) / 8, pixels]
        ours = linear_exits(coarse_to_fine, inputs, labels, train, test)
        plain = linear_exits(
            lambda outputs, y: sum(F.cross_entropy(x, y) for x in outputs), inputs, labels, train, test
        )
        gains.append(ours["accuracy"][0] - plain["fine_guess"][0])
        assert ours["accuracy"][1] > 0.9
    assert np.mean(gains) > 0.01


# Metrics


def test_metrics_of_an_example_worked_out_by_hand():
    """Three images; the thin exit predicts the correct group where its guess at the class would be wrong."""
    taxonomy = Taxonomy({"a": ["a1", "a2"], "b": ["b1", "b2"]}, ("a1", "a2", "b1", "b2"))
    probabilities = torch.tensor(
        [
            [[0.3, 0.3, 0.4, 0.0], [0.1, 0.2, 0.3, 0.4], [0.4, 0.0, 0.3, 0.3]],  # answers a, b, b; guesses b1, b2, a1
            [[0.6, 0.4, 0.0, 0.0], [0.0, 0.0, 0.1, 0.9], [0.9, 0.1, 0.0, 0.0]],  # a, b, a; a1, b2, a1
            [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 0.0]],  # a2, b1, b1
        ]
    )
    table = coarse_to_fine_metrics(taxonomy, (1, 1, 2), (probabilities + 1e-9).log(), torch.tensor([0, 3, 2]))
    wanted = {
        "exit": [1, 2, 3],
        "level": [1, 1, 2],
        "accuracy": [1, 2 / 3, 1 / 3],
        "kappa": [1, 2 / 5, 1 / 7],  # chance 5/9, 4/9 and 2/9
        "fine_guess": [1 / 3, 2 / 3, 1 / 3],
        "consistent_next": [2 / 3, 2 / 3, math.nan],
        "consistent_last": [1, 2 / 3, math.nan],
        "mistake_distance": [2, 2, 1],  # b1 and a1 for a1 and b1; a1 for b1; a2 for a1 and b1 for b2
        "accuracy_1": [1, 2 / 3, 1],
        "accuracy_2": [1 / 3, 2 / 3, 1 / 3],
        "kappa_1": [1, 2 / 5, 1],
        "kappa_2": [0, 1 / 2, 1 / 7],
    }
    pd.testing.assert_frame_equal(table, pd.DataFrame(wanted), check_dtype=False, rtol=1e-12, atol=0)


@given(trees(), st.integers(0, 2**31), st.integers(1, 6))
def test_metrics_are_what_a_loop_over_images_counts(drawn_tree: tuple[Tree, tuple[str, ...]], seed: int, images: int):
    """Every number is computed again as an exact fraction, from the tree's own paths."""
    tree, classes = drawn_tree
    taxonomy, paths = Taxonomy(tree, classes), paths_of(tree, classes)
    levels = taxonomy.assign(taxonomy.levels + 1)
    outputs = drawn(len(levels), images, len(classes), seed=seed, scale=1.0)
    labels = torch.randint(len(classes), (images,), generator=torch.Generator().manual_seed(seed))
    rows = coarse_to_fine_metrics(taxonomy, levels, outputs, labels).to_dict("records")

    def answer(row: list[float], level: int) -> tuple[str, ...]:
        sums: dict[tuple[str, ...], float] = {}
        for x, path in zip(row, paths, strict=True):
            sums[path[:level]] = sums.get(path[:level], 0) + math.exp(x)
        return max(sums, key=sums.get)

    answers = [[answer(row, level) for row in rows] for rows, level in zip(outputs.tolist(), levels, strict=True)]
    truth = [paths[label] for label in labels.tolist()]
    for k, (level, row) in enumerate(zip(levels, rows, strict=True)):
        guesses = [answer(values, taxonomy.levels) for values in outputs[k].tolist()]
        share = {
            "accuracy": [a == t[:level] for a, t in zip(answers[k], truth, strict=True)],
            "fine_guess": [g[:level] == t[:level] for g, t in zip(guesses, truth, strict=True)],
        }
        for of in range(1, taxonomy.levels + 1):
            asked = [answer(values, of) for values in outputs[k].tolist()]
            share[f"accuracy_{of}"] = [a == t[:of] for a, t in zip(asked, truth, strict=True)]
        if k + 1 < len(levels):
            for name, j in (("next", k + 1), ("last", -1)):
                stays = [later[:level] == a for later, a in zip(answers[j], answers[k], strict=True)]
                share[f"consistent_{name}"] = stays
        far = [  # below the level where two paths separate, equal names do not matter
            taxonomy.levels - next(i for i, (a, b) in enumerate(zip(g, t, strict=True)) if a != b)
            for g, t in zip(guesses, truth, strict=True)
            if g != t
        ]
        assert {name: Fraction(sum(values), images) for name, values in share.items()} == {
            name: Fraction(row[name]).limit_denominator(100) for name in share
        }
        assert row["mistake_distance"] == pytest.approx(np.mean(far) if far else math.nan, nan_ok=True)
        assert (row["exit"], row["level"]) == (k + 1, level)
        named, right = (["/".join(path) for path in part] for part in (answers[k], [t[:level] for t in truth]))
        if len({*named, *right}) > 1:
            assert row["kappa"] == pytest.approx(cohen_kappa_score(named, right))
        else:
            assert math.isnan(row["kappa"])
        assert math.isnan(row["consistent_next"]) == math.isnan(row["consistent_last"]) == (k + 1 == len(levels))


@pytest.mark.parametrize(
    ("outputs", "labels", "message"),
    [
        (drawn(2, 4, 5), [0, 1, 2, 3], r"outputs: expected \(exits, images, classes\) = \(3, 4, 5\), got \(2, 4, 5\)"),
        (drawn(3, 4, 6), [0, 1, 2, 3], r"outputs: expected .* = \(3, 4, 5\), got \(3, 4, 6\)"),
        (drawn(3, 2, 5), [0, 5], r"labels: expected 0 to 4, got 0 to 5"),
        (drawn(3, 2, 5), [-1, 4], r"labels: expected 0 to 4, got -1 to 4"),
        (drawn(3, 2, 5) / 0, [0, 4], r"outputs: expected finite logits, got some that are not"),
        (drawn(3, 0, 5), [], r"labels: expected at least one image, got 0"),
    ],
)
def test_metrics_refuse_what_they_cannot_count(outputs: Tensor, labels: list[int], message: str):
    """The argmax of nan is some class, and label -1 is the last class: both would give plausible numbers."""
    with pytest.raises(ValueError, match=message):
        coarse_to_fine_metrics(Taxonomy(ANIMALS, CLASSES), 3, outputs, torch.tensor(labels, dtype=torch.int64))
