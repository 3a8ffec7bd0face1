"""Layers, pairs, networks and objectives that do not fit: refused before training."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny import TinyNet
from torch import Tensor, nn
from torchvision.transforms import v2
from transfer_runs import copied, refused, same, transfer
from typechecker import unchecked

from mtanytime.backbones import Normalized
from mtanytime.transfer import TransferMap, TransferTrainer
from mtanytime.transfer.layers import NOT_LATER, check_pair_form


class Kernel(torch.autograd.Function):
    """The identity, with a backward that has no derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The same."""
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """The same."""
        return gradient.clone()


class Once(nn.Module):
    """`Kernel` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        return Kernel.apply(x)


def test_double_backward_is_only_needed_to_learn_phi() -> None:
    """Fixed matching has no meta-gradient, so it takes a target that can't be differentiated twice."""
    target = nn.Sequential(nn.Conv2d(3, 4, 3), Once(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(RuntimeError, match=r"because of '1' \(Once\)"):
        transfer(target=target, target_layers=["2"])
    transfer(target=target, target_layers=["2"], what=False, where="off").train()


TWO = {"a": tiny.made(3, seed=2), "b": tiny.made(3, seed=3)}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"source_layers": ["layer9"]},
            r"^source: layers: expected layers of TinyNet \(.*first.*\), got 'layer9'$",
        ),
        ({"target_layers": ["layer9"]}, r"^target: layers: expected layers of TinyNet \(.*first.*\), got 'layer9'$"),
        ({"pairs": [("first", "frist")]}, r"^target: layers: expected layers of TinyNet \(first.*, got 'frist'$"),
        ({"pairs": [("frist", "first")]}, r"^source: layers: expected layers of TinyNet \(first.*, got 'frist'$"),
        ({"source_layers": []}, r"^source: layers: expected at least one module path of TinyNet, got \(\)"),
        ({"target_layers": []}, r"^target: layers: expected at least one module path of TinyNet, got \(\)"),
        ({"target_layers": ["first", "first"]}, "^target: layers: expected each layer once, got 'first' twice"),
        ({"pairs": [("first", "first")] * 2}, r"^pairs: expected each pair once, got \('first', 'first'\) 2 times$"),
        (
            {"source_layers": ["first"], "target_layers": ["second"], "pairs": [("first", "first")]},
            r"^pairs: expected a layer of the source \(first\) and one of the target \(second\), got \('first', '",
        ),
        (
            {"source_layers": ["first", "second"], "pairs": [("first", "first")]},
            "^pairs: expected every listed layer in a pair, got none with 'second'$",
        ),
        (
            {"target_layers": ["first", "second"], "pairs": [("first", "first")]},
            "^pairs: expected every listed layer in a pair, got none with 'second'$",
        ),
        (
            {"map": TransferMap({("first", "first"): 1.0}, {("first", "first"): [0.2] * 5}), "pairs": "not later"},
            "^pairs: expected None or a list of pairs beside a map, got 'not later'$",
        ),
        (
            {"source": TWO, "pairs": [("a/first", "first")]},
            r"^pairs: expected one or more for each source \(a, b\), got none for b$",
        ),
        (
            {"source": TWO, "pairs": [("first", "first")]},
            "^pairs: expected source layers as 'name/layer' with a name of a, b, got 'first'$",
        ),
        (
            {"source": TWO, "pairs": [("c/first", "first")]},
            "^pairs: expected source layers as 'name/layer' with a name of a, b, got 'c/first'$",
        ),
        (
            {"source": TWO, "pairs": [("a/first", "first"), ("b/frist", "first")]},
            r"^source 'b': layers: expected layers of TinyNet .*, got 'frist'$",
        ),
        (
            {"source": TWO, "source_layers": ["first"]},
            r"^source_layers: expected a dict with the layers of a, b, got \['first'\]$",
        ),
        (
            {"source": TWO, "source_layers": {"a": ["first"]}},
            r"^source_layers: expected a dict with the layers of a, b, got {'a'",
        ),
        ({"source_layers": {"a": ["first"]}}, r"^source_layers: expected a list, got {'a'"),
        (
            {"source": nn.Sequential(nn.Conv2d(3, 4, 3))},
            r"^source_layers: expected module paths, as the source \(Sequential\) has no feature_layers, got None; ",
        ),
        (
            {"target": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())},
            r"^target_layers: expected module paths, as the target \(Sequential\) has no feature_layers, got None; ",
        ),
    ],
    ids=lambda value: str(value).split(" at 0x")[0][:60],
)
def test_layers_and_pairs(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Unknown, repeated and unused layers and pairs are named, with their network."""
    source = options.get("source", tiny.made(3)).values() if isinstance(options.get("source"), dict) else ()
    refused(ValueError, match, tmp_path / "run", **options)
    assert all(network.training for network in source)  # refused before the source was changed


def test_pairs_that_are_not_later() -> None:
    """The rule leaves the early source layer out of the late target layer, and trains as the same pairs, listed."""
    listed = [("first", "first"), ("second", "first"), ("second", "second")]
    runs = [transfer(pairs=pairs) for pairs in ("not later", listed)]
    assert runs[0].pairs == listed
    for run in runs:
        run.train()
    assert same(copied(runs[0].model), copied(runs[1].model))
    of_one = transfer(pairs="not later", target_layers=["second"])  # half-way through a network of its own
    assert (of_one.pairs, list(of_one.sources[""].layers)) == ([("second", "second")], ["second"])
    two = transfer(source=TWO, pairs="not later")
    assert two.pairs == [(f"{name}/{source}", target) for name in TWO for source, target in listed]
    with pytest.raises(ValueError, match=r"^pairs: expected one or more .*, or 'not later', got 'later'$"):
        unchecked(check_pair_form)("later", (NOT_LATER,))
    with pytest.raises(
        ValueError, match=r"^pairs: expected one or more \(source layer, target layer\), got 'not later'$"
    ):
        unchecked(check_pair_form)("not later")  # as BaselineTrainer does
    for layers, error in ((["first", "typo"], "expected layers of TinyNet"), ([], "expected at least one module path")):
        with pytest.raises(ValueError, match=f"^target: layers: {error}"):
            transfer(pairs="not later", source_layers=["first"], target_layers=layers)


class Cases:
    """Networks that can't be matched, each for one reason."""

    class NoGrad(TinyNet):
        """Its second layer is computed without gradients."""

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            with torch.no_grad():
                maps = self.second(self.first(images))
            return self.classifier(maps.mean(dim=(2, 3)))

    class Twice(TinyNet):
        """Runs its first activation twice."""

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            self.first[2](images)
            return super().forward(images)

    class InPlace(TinyNet):
        """Normalizes its images where they are."""

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            return super().forward(images.sub_(0.5))

    class Attention(TinyNet):
        """Fused attention over the second layer's pixels."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            """Logits."""
            pixels = self.second(self.first(images)).flatten(2).transpose(1, 2)
            return self.classifier(self.attention(pixels, pixels, pixels, need_weights=False)[0].mean(dim=1))


def flat(size: int) -> nn.Module:
    """A network that takes images of one size only."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size**2, 3))


def frozen_first() -> TinyNet:
    """A target whose first layer is not trained."""
    target = tiny.made(4)
    target.first.requires_grad_(False)
    return target


NO_GRADIENT = r"which gets no gradient; no trained parameter comes before it in the forward pass \(is it frozen, or"


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"target": tiny.made(4, classes=2)},
            "^target: training labels: expected 0 to 1, one per output of the network, got 2$",
        ),
        (
            {"target": flat(9), "target_layers": ["1"]},
            r"^target: model: expected .* 4 training images of shape \(3, 8, 8\), got Sequential, which fails: mat1",
        ),
        (
            {"source": flat(9), "source_layers": ["1"]},
            r"^source, given images of shape \(3, 8, 8\): mat1 and mat2 shapes cannot be multiplied",
        ),
        (
            {"source": {"a": tiny.made(3), "b": flat(9)}, "source_layers": {"a": ["first"], "b": ["1"]}},
            r"^source 'b', given images of shape \(3, 8, 8\): mat1 and mat2 shapes cannot be multiplied",
        ),
        ({"target": frozen_first()}, f"^target_layers: expected layers that .* can train, got 'first', {NO_GRADIENT}"),
        ({"target": Cases.NoGrad()}, f"^target_layers: expected layers that .* can train, got 'first', {NO_GRADIENT}"),
        (
            {"target": Cases.NoGrad(), "target_layers": ["second"]},
            f"^target_layers: expected layers that .* can train, got 'second', {NO_GRADIENT}",
        ),
        (
            {"target": nn.Sequential(nn.AvgPool2d(2), flat(4)), "target_layers": ["0"]},
            f"^target_layers: expected layers that .* can train, got '0', {NO_GRADIENT}",
        ),
        (
            {"target": tiny.made(4).requires_grad_(False)},
            "model: expected a network with parameters that require grad, got",
        ),
        (
            {"target_layers": ["classifier"]},
            r"^target, given .*: layer 'classifier': expected an image map \(batch 4, channel.*, got \(4, 3\)$",
        ),
        (
            {"source_layers": ["classifier"]},
            r"^source, given .*: layer 'classifier': expected an image map \(batch 4, channel.*, got \(4, 3\)$",
        ),
        (
            {"target": Cases.Twice(), "target_layers": ["first.2"]},
            "^target, .*: layer 'first.2' .* runs more than once",
        ),
        (
            {"source": Cases.InPlace()},
            r"^source, given .*: network: expected one that leaves its input as it is, got one that writes into it; w",
        ),
        (
            {"target": Cases.InPlace()},
            r"^target, given .*: network: expected one that leaves its input as it is, got one that writes into it; w",
        ),
        (
            {"source": Cases.Twice(), "source_layers": ["first.2"]},
            "^source, .*: layer 'first.2' .* runs more than once",
        ),
        (
            {"outer": lambda forward, images, labels: forward(images)},
            "^outer .*: expected a scalar tensor that depends on the target, got tensor",
        ),
        (
            {"outer": lambda forward, images, labels: labels.sum()},
            "^outer .*: expected a scalar tensor that depends on the target, got tensor",
        ),
        ({"outer": lambda forward, images, labels: forward(images, 1)}, "^outer .*lambda.*: .*positional argument"),
    ],
    ids=lambda value: str(value).split(" at 0x")[0][:60],
)
def test_networks_that_do_not_fit(tmp_path: Path, options: dict[str, Any], match: str) -> None:
    """Networks, labels and objectives that can't work are found on a few images, before training."""
    target = options.get("target")
    before = None if target is None else copied(target)
    refused(ValueError, match, tmp_path / "run", **options)
    assert target is None or same(copied(target), before)


def test_fused_attention_trains() -> None:
    """Attention in a target, whose fused kernel has no second derivative, is computed in torch's plain kernel."""
    with torch.random.fork_rng([]):
        target = Cases.Attention()
    trainer = transfer(target=target)
    before = copied(trainer.meta)
    trainer.train()
    assert all(value.isfinite().all() for value in trainer.meta.parameters())
    assert not same(before, copied(trainer.meta))


def test_source_and_target_are_two_networks(tmp_path: Path) -> None:
    """A target that is its own source, or shares a part of it, is refused."""
    match = "^target: expected a network that shares no layer or parameter with the {}, got one that does$"
    network = tiny.made(4)
    refused(ValueError, match.format("source"), tmp_path / "run", source=network, target=network)
    tied, dropout = tiny.made(4, seed=7), tiny.made(4, seed=8)
    tied.first[0].weight = network.first[0].weight
    dropout.dropout = network.dropout
    for other in (tied, dropout, Normalized(network, (0.5,) * 3, (0.5,) * 3)):
        refused(ValueError, match.format("source 'a'"), tmp_path / "run", source={"a": other}, target=network)
        assert other.training


def test_sources_that_take_one_size_alone() -> None:
    """Where the augmentation changes the size, a source's features are measured at the size of training."""

    class Fixed(tiny.TinyNet):
        def forward(self, images: Tensor) -> Tensor:
            if images.shape[2:] != (8, 8):
                raise RuntimeError("8×8 alone")
            return super().forward(images)

    data = tiny.images(size=12)
    options = {"augment": v2.RandomCrop(8), "steps": 1, "batch_size": 6, "progress": False, "device": "cpu"}
    TransferTrainer(Fixed(5), tiny.made(), data, teacher=None, **options).train()
    with pytest.raises(ValueError, match="teacher: no probe of the source can be fitted: 8×8 alone; or pass"):
        TransferTrainer(Fixed(5), tiny.made(), data, **options)
