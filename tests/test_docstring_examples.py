"""Every idea of the papers can be used alone, with plain torch: the examples in docstrings run as they are printed."""

import doctest
import inspect
from typing import Any

import pytest
import torch

from mtanytime import anytime, data, tap, transfer
from mtanytime.anytime.shape_search import search_shapes
from mtanytime.training.batch_norm import settle_batch_norms
from mtanytime.transfer.distillation import distillation_loss
from mtanytime.transfer.second_order import second_order

IDEAS = [
    tap,
    transfer.FeatureMatching,
    transfer.Lookahead,
    transfer.meta_gradient,
    transfer.PairSearch,
    second_order,
    distillation_loss,
    data.StrongViews,
    anytime.JointLoss,
    anytime.SlicedResNet,
    anytime.SliceCascade,
    anytime.fold_batch_norms,
    anytime.prepare_steps,
    anytime.choose_thresholds,
    anytime.AnytimePredictor,
    search_shapes,
    settle_batch_norms,
]
LINES_UP_TO = 18


@pytest.mark.parametrize("idea", IDEAS, ids=lambda idea: idea.__name__)
def test_an_idea_is_used_in_a_few_lines(idea: Any) -> None:
    """A reader copies the example into a training loop; one that fails, or needs a page, costs more than it shows."""
    module = inspect.getmodule(inspect.unwrap(idea))
    plain = {"torch": torch, "nn": torch.nn}  # all that an example may take for granted
    (example,) = doctest.DocTestFinder(recurse=False).find(idea, idea.__name__, module, plain)
    assert 0 < sum(part.source.count("\n") for part in example.examples) <= LINES_UP_TO
    lines: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=lines.append)
    assert not failed, "".join(lines)
