"""Inclusive ResNeXt against numbers from the authors' code in float64, and against the thin networks it contains."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mtanytime.anytime import InclusiveResNeXt, resnext

REFERENCE = Path(os.environ.get("MTANYTIME_REFERENCE", Path(__file__).parent / "reference"))
CASES = sorted(REFERENCE.glob("inclusive_*.npz"))
PAPER_MACS = [15.88, 29.99, 44.09, 58.20, 72.31, 86.41, 100.52, 114.63]  # millions, the authors' code at its defaults


def test_reference_folder_holds_cases() -> None:
    """A wrong MTANYTIME_REFERENCE must not pass by running no case."""
    assert CASES, f"no inclusive_*.npz in {REFERENCE}"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_reference(path: Path) -> None:
    """Every sub-network's logits, losses and the summed gradient agree with the authors' code in float64."""
    case = np.load(path)
    config, order = json.loads(str(case["config"])), json.loads(str(case["order"]))
    network = InclusiveResNeXt(
        config["num_classes"],
        config["width"],
        config["bottleneck"],
        config["cardinality"],
        config["num_blocks"],
        config["anytime"],
    ).double()
    ours = dict(network.named_parameters())
    assert sorted(our_name(name) for name, _, _ in order) == sorted(ours)
    for name, shape, seed in order:
        ours[our_name(name)].data = filled(shape, seed, batch_norm_weight=name.endswith("weight"))
    eval_logits = case["eval_logits"]
    exits, batch, classes = eval_logits.shape
    assert exits == network.exits
    x = np.random.RandomState(config["seed"] - 1).standard_normal((batch, 3, 32, 32))
    images, labels = torch.from_numpy(x), torch.arange(batch) % classes

    with torch.no_grad():
        compare("eval_logits", torch.stack(network.eval()(images)), eval_logits)
    outputs = network.train()(images)
    for k, logits in enumerate(outputs):
        compare(f"train_logits/{k}", logits, case[f"train_logits/{k}"])
    losses = torch.stack([F.cross_entropy(logits, labels) for logits in outputs])
    compare("train_losses", losses, case["train_losses"])
    losses.sum().backward()
    norms = torch.stack([ours[our_name(name)].grad.norm() for name, _, _ in order])
    compare("grad_norms", norms, case["grad_norms"])
    assert ((norms - torch.from_numpy(case["grad_norms"])).abs() / norms).max() <= 1e-10


def our_name(theirs: str) -> str:
    """Our name of one of the authors' parameters."""
    if theirs.startswith("transitions.0."):
        return theirs.replace("transitions.0", "stem")
    if theirs.startswith("output_layers."):
        _, exit_, layer, part = theirs.split(".")
        return f"{'norms' if layer == '0' else 'heads'}.{exit_}.{part}"
    return theirs


def filled(shape: list[int], seed: int, batch_norm_weight: bool) -> Tensor:
    """A parameter's values, as ../shared/reference/README.md says."""
    values = torch.from_numpy(np.random.RandomState(seed).standard_normal(tuple(shape)))
    if len(shape) >= 2:
        return values * (2 / np.prod(shape[1:])) ** 0.5
    return 1 + 0.1 * values if batch_norm_weight else 0.05 * values


def compare(name: str, ours: Tensor, theirs: np.ndarray) -> None:
    """Assert a relative error of at most 1e-10."""
    wanted = torch.from_numpy(np.asarray(theirs))
    error = (ours.detach() - wanted).norm() / wanted.norm()
    assert error <= 1e-10, f"{name}: relative error {error:.2e}"


def macs(network: torch.nn.Module) -> float:
    """Millions of multiply-adds for one image, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() / 2e6


def test_macs_of_the_paper() -> None:
    """Each sub-network at the authors' defaults costs as much as theirs, and all exits cost the sum of the passes."""
    network = InclusiveResNeXt(10)
    found = [macs(network.extract(k)) for k in range(1, 9)]
    assert [round(number, 2) for number in found] == PAPER_MACS
    stem = 3 * 9 * 64 * 32 * 32 / 1e6  # which all exits share
    assert macs(network) == pytest.approx(sum(found) - 7 * stem)


@pytest.mark.parametrize("training", [True, False])
def test_extract_is_the_thin_network(training: bool) -> None:
    """A stand-alone ResNeXt with copied weights gives exit k's logits and shares no memory with the whole network."""
    torch.manual_seed(0)
    network = InclusiveResNeXt(5, width=8, bottleneck=2, branches=6, blocks=2, exits=3).double().train(training)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    network(images)  # the running statistics move
    state = {name: value.clone() for name, value in network.state_dict().items()}
    outputs = network(images)
    network.load_state_dict(state)
    for k in (1, 2, 3):
        thin = network.extract(k)
        assert thin.training == training
        torch.testing.assert_close(thin(images), outputs[k - 1], rtol=1e-12, atol=1e-12)
        alone = resnext(5, 8, 2, 2 * k, 2).double()
        alone.load_state_dict(thin.state_dict())  # the same structure as one built to be thin
        assert not {p.data_ptr() for p in thin.parameters()} & {p.data_ptr() for p in network.parameters()}


def test_thin_answers_do_not_see_later_branches() -> None:
    """Whatever the last branches hold, NaN even, the answers without them stay as they are."""
    torch.manual_seed(0)
    network = InclusiveResNeXt(5, width=8, bottleneck=2, branches=4, blocks=1, exits=2).eval()
    images = torch.randn(2, 3, 8, 8)
    before = network(images)
    with torch.no_grad():
        for stage in network.stages:
            for block in stage:
                inner = block.bn2[0].num_features
                block.conv1.weight[inner:] = torch.nan
                block.conv2.weight[inner:] = torch.nan
                block.conv3.weight[:, inner:] = torch.nan
    after = network(images)
    assert torch.equal(before[0], after[0])
    assert after[1].isnan().all()


def test_large_images() -> None:
    """The 224×224 stem divides an image by four; stages of several lengths are possible."""
    network = InclusiveResNeXt(7, width=4, bottleneck=1, branches=2, blocks=(1, 2, 1, 1), stem="224x224")
    assert [tuple(logits.shape) for logits in network(torch.rand(2, 3, 64, 64))] == [(2, 7), (2, 7)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exits": 3}, "exits: expected a divisor of the 8 branches, got 3"),
        ({"exits": 0}, "exits: expected a divisor of the 8 branches, got 0"),
        ({"width": 0}, "width: expected a whole number from 1, got 0"),
        ({"blocks": (2, 0)}, "blocks: expected a whole number from 1, got 0"),
        ({"blocks": ()}, r"blocks: expected a number for each stage, got \(\)"),
        ({"num_classes": -1}, "num_classes: expected a whole number from 1, got -1"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    """A size that no network can have is refused, with its name."""
    with pytest.raises(ValueError, match=message):
        InclusiveResNeXt(**{"num_classes": 10, **settings})


def test_bad_calls() -> None:
    """Greyscale or tiny images, and exits that do not exist, are refused with a clear message."""
    network = InclusiveResNeXt(5, width=4, bottleneck=1, branches=2, blocks=1)
    with pytest.raises(ValueError, match=r"images: expected \(batch, 3, height, width\) .*, got \(2, 1, 8, 8\)"):
        network(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match=r"at least 4×4 pixels for InclusiveResNeXt, got \(2, 3, 3, 8\)"):
        network(torch.rand(2, 3, 3, 8))
    for k in (0, 3):
        with pytest.raises(ValueError, match=f"k: expected an exit from 1 to 2, got {k}"):
            network.extract(k)
