"""Multiply-adds and parameters against published figures and counts by hand; latency on a clock of the test."""

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
import torchvision
from ladder import HEADS, PARAMS, SHAPE, TRUNK, ladder
from tiny_runs import coloured, loader
from torch import Tensor, nn

from mtanytime import measure
from mtanytime.anytime import SlicedResNeXt
from mtanytime.anytime.resnext import ResNeXt
from mtanytime.backbones import Normalized, resnet
from mtanytime.measure import costs, runtimes


def traces(module: nn.Module) -> list[Any]:
    """Return everything that a measurement might change."""
    tensors = {name: value.tolist() for name, value in module.state_dict().items()}
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    gradients = [parameter.grad for parameter in module.parameters()]
    return [tensors, [part.training for part in module.modules()], hooks, gradients, torch.get_rng_state().tolist()]


@pytest.mark.parametrize(
    ("name", "weights"), [("resnet18", "ResNet18_Weights"), ("mobilenet_v2", "MobileNet_V2_Weights")]
)
def test_macs_are_the_published_ones(name: str, weights: str) -> None:
    """torchvision publishes multiply-adds and parameters of its networks: plain and depthwise convolutions."""
    published = getattr(torchvision.models, weights).DEFAULT.meta
    module = getattr(torchvision.models, name)()
    assert round(measure.macs(module, (3, 224, 224)) / 1e9, 3) == published["_ops"]
    assert measure.parameters(module) == published["num_params"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_macs_by_hand(dtype: torch.dtype) -> None:
    """Stride, groups, bias, batch norm and a matrix product outside any layer, in the dtype of the module."""

    class Hand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(2, 6, 3, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(6)
            self.second = nn.Conv2d(6, 9, (1, 3), groups=3)
            self.last = nn.Linear(9, 5)

        def forward(self, images: Tensor) -> Tensor:
            maps = self.second(self.norm(self.first(images)).relu()).flatten(2)
            return self.last((maps @ maps.mT).mean(dim=2))

    assert measure.macs(Hand().to(dtype), (2, 10, 8)) == 2 * 6 * 9 * 20 + 6 * 9 // 3 * 3 * 10 + 9 * 10 * 9 + 9 * 5
    assert measure.macs(nn.Flatten(), (2, 10, 8)) == 0


def test_macs_are_those_of_eval_mode_and_a_trial() -> None:
    """Layers that run only in training do not count; a buffer that the network writes is restored."""

    class Odd(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 3, 1)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(super().forward(images) if self.training else images)

    module = Odd()
    assert measure.macs(module, SHAPE) == 9 * 64
    assert module.training
    assert module.calls == 0


def test_attention_is_counted() -> None:
    """In eval mode torch runs an encoder layer as one kernel, in which the counter sees no product."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    tokens, width, hidden = 3, 64, 128
    expected = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    assert measure.macs(nn.Sequential(nn.Flatten(2), layer), SHAPE) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_shared_parameters_count_once() -> None:
    """A layer used twice has its weights once but costs twice; frozen weights count."""
    layer = nn.Conv2d(3, 3, 1).requires_grad_(False)
    module = nn.Sequential(layer, nn.ReLU(), layer)
    assert measure.parameters(module) == 12
    assert measure.macs(module, (3, 4, 4)) == 2 * 9 * 16


def test_exit_costs_by_hand() -> None:
    """Costs with the exit's own head alone and with all earlier heads; the last row is a whole forward pass."""
    network = ladder()
    table = measure.exit_costs(network, SHAPE)
    assert table.columns.tolist() == ["exit", "macs", "macs_own_head", "params"]
    assert table["exit"].tolist() == [1, 2, 3]
    assert table["macs_own_head"].tolist() == [trunk + head for trunk, head in zip(TRUNK, HEADS, strict=True)]
    assert table["macs"].tolist() == [trunk + sum(HEADS[: k + 1]) for k, trunk in enumerate(TRUNK)]
    assert table["macs"].iloc[-1] == measure.macs(network, SHAPE)
    assert table["params"].tolist() == PARAMS


def test_normalized_and_plain_networks() -> None:
    """Normalization adds no products; a network without exits is one exit."""
    network = ladder()
    wrapped = Normalized(network, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)).double()
    pd.testing.assert_frame_equal(measure.exit_costs(wrapped, SHAPE), measure.exit_costs(network, SHAPE))
    resized = measure.exit_costs(Normalized(network, (0.1,) * 3, (0.5,) * 3, size=16), SHAPE)
    pd.testing.assert_frame_equal(resized, measure.exit_costs(network, (3, 16, 16)))
    networks = costs.exit_networks(wrapped.eval())
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    for part, logits in zip(networks, wrapped(images), strict=True):
        torch.testing.assert_close(part(images), logits)
    plain = resnet(8, 10, width=4)
    total, count = measure.macs(plain), sum(value.numel() for value in plain.parameters())
    assert measure.exit_costs(plain).to_dict("records") == [
        {"exit": 1, "macs": total, "macs_own_head": total, "params": count}
    ]


class TwoAnswers(nn.Module):
    """Two exits, and a method `extract` that has nothing to do with them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.first, self.second = nn.Conv2d(3, 4, 3), nn.Linear(4, 2), nn.Linear(4, 2)

    def extract(self, images: Tensor) -> Tensor:
        """Features."""
        return self.body(images).mean((2, 3))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits."""
        return [self.first(self.extract(images)), self.second(self.extract(images))]


def test_extract_may_mean_something_else() -> None:
    """A network is an anytime network by its exits and heads, not by one method of that name."""
    assert len(measure.exit_costs(TwoAnswers(), SHAPE)) == 1
    assert not costs.has_exits(TwoAnswers())
    assert costs.has_exits(ladder())


def test_heads_must_run_once() -> None:
    """A head that the forward pass bypasses would be missing from macs without notice."""
    network = ladder()
    network.heads[1] = network.heads[0]
    with pytest.raises(ValueError, match="head 1 of Ladder: expected one run per forward pass, got 2"):
        measure.exit_costs(network, SHAPE)
    network.heads.append(nn.Linear(3, 3))
    network.blocks.append(nn.Identity())
    network.heads[1] = nn.Sequential(*network.heads[0])
    network.forward = lambda images: [network.heads[0](network.blocks[0](images))]
    with pytest.raises(ValueError, match="head 2 of Ladder: expected one run per forward pass, got 0"):
        measure.exit_costs(network, SHAPE)


@pytest.mark.parametrize(
    "measured",
    [
        lambda module: measure.macs(module, SHAPE),
        lambda module: measure.exit_costs(module, SHAPE),
        lambda module: measure.latency(module, torch.rand(2, *SHAPE, generator=torch.Generator()), repeats=2),
        lambda module: measure.latencies(module, SHAPE, (1, 2), repeats=1, warmup=0, progress=False),
        lambda module: measure.predictions(module, coloured(), batch_size=7, progress=False),
        lambda module: measure.curve("ladder", module, loader(coloured()), latency_batch=1, progress=False),
    ],
    ids=["macs", "exit_costs", "latency", "latencies", "predictions", "curve"],
)
def test_measuring_leaves_no_trace(measured: Callable[[nn.Module], object], capfd: pytest.CaptureFixture[str]) -> None:
    """A measurement during training changes no weights, statistics, modes, hooks or random state."""
    network = ladder()
    network.blocks[1].eval()
    before = traces(network)
    measured(network)
    assert traces(network) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shape", [(3, 8), (3, 0, 8), ()])
def test_image_shape_is_checked(shape: tuple[int, ...]) -> None:
    """Images have three sizes, none of them zero."""
    with pytest.raises(ValueError, match=r"image_shape: expected three sizes >= 1: channels, height, width, got \("):
        measure.macs(nn.Flatten(), shape)


class Clocked(nn.Module):
    """A module that advances the test's clock by given milliseconds per pass and records every pass."""

    def __init__(self, name: int, clock: list[float], passes: list[Any], milliseconds: list[float]) -> None:
        super().__init__()
        self.name, self.clock, self.passes, self.left = name, clock, passes, iter(milliseconds)

    def forward(self, images: Tensor) -> Tensor:
        """Return the images after advancing the clock."""
        self.passes.append((self.name, self.training, torch.is_grad_enabled(), tuple(images.shape)))
        self.clock[0] += next(self.left) / 1000
        return images


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace `time.perf_counter` in costs.py; the time in seconds is the one entry of the list."""
    now = [100.0]
    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: now[0])
    return now


def test_latency_is_the_median_after_warming_up(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Median and quartiles by hand, on a clock of the test; the device is waited for before and after each pass."""
    passes: list[Any] = []
    monkeypatch.setattr(runtimes, "synchronize", lambda device: passes.append(str(device)))
    module = Clocked(1, clock, passes, [500, 400, 3, 1, 2, 5, 40])
    timing = measure.latency(module, torch.zeros(6, *SHAPE), repeats=5, warmup=2)
    assert passes == ["cpu", (1, False, False, (6, *SHAPE)), "cpu"] * 7
    assert timing.pop("latency_ms") == pytest.approx(3)
    assert timing.pop("spread_ms") == pytest.approx(5 - 2)
    assert timing == {"batch": 6, "threads": torch.get_num_threads(), "device": "cpu"}
    assert module.training


def test_latencies_take_turns(clock: list[float]) -> None:
    """The exits are timed in rounds, one batch size after the other, and each gets its own times."""
    passes: list[Any] = []

    class Clocks(nn.Module):
        exits, heads = 2, nn.ModuleList()

        def extract(self, k: int) -> nn.Module:
            return Clocked(
                k, clock, passes, [99, *(k * t for t in (1, 3, 4)), 99, *(k * t for t in (10, 30, 20))]
            ).eval()

    table = measure.latencies(Clocks(), SHAPE, (1, 4), repeats=3, warmup=1, progress=False)
    assert [(k, shape[0]) for k, _, _, shape in passes] == [(1, 1), (2, 1)] * 4 + [(1, 4), (2, 4)] * 4
    assert table.columns.tolist() == ["exit", "latency_ms", "spread_ms", "batch", "threads", "device"]
    assert table[["exit", "batch"]].to_numpy().tolist() == [[1, 1], [2, 1], [1, 4], [2, 4]]
    assert table["latency_ms"].tolist() == pytest.approx([3, 6, 20, 40])
    assert table["spread_ms"].tolist() == pytest.approx([1.5, 3, 10, 20])


def test_step_up_takes_turns_with_the_exits(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """All answers up to an exit: that many steps, on normalized images, in the rounds of the exits alone."""
    network = SlicedResNeXt(4, width=6, bottleneck=2, branches=3, blocks=1)
    seen: list[str] = []

    def refine(images: Tensor) -> Iterator[Tensor]:
        assert images.mean().item() == pytest.approx(1, abs=0.2)  # (0.5 - 0.25) / 0.25
        for j in range(3):
            seen.append(f"step {j + 1}")
            clock[0] += 0.001
            yield images

    monkeypatch.setattr(network, "refine", refine)
    monkeypatch.setattr(ResNeXt, "forward", lambda self, images: seen.append(f"exit {len(self.head.weight[0]) // 8}"))
    wrapped = Normalized(network, (0.25,) * 3, (0.25,) * 3)
    table = measure.latencies(wrapped, (3, 8, 8), (1,), repeats=2, warmup=0, progress=False, step_up=True)
    steps = ["step 1", "step 1", "step 2", "step 1", "step 2", "step 3"]
    assert seen == ["exit 1", "exit 2", "exit 3", *steps] * 2
    assert table["answer"].tolist() == ["alone"] * 3 + ["step-up"] * 3
    assert table["exit"].tolist() == [1, 2, 3] * 2
    assert table["latency_ms"].tolist() == pytest.approx([0, 0, 0, 1, 2, 3])
    with pytest.raises(ValueError, match="step_up: expected False for a network without refine, got True"):
        measure.latencies(ladder(), SHAPE, step_up=True, progress=False)


def test_latency_of_a_real_network() -> None:
    """Images of another dtype are converted before the clock starts."""
    table = measure.latencies(ladder().double(), SHAPE, progress=False, repeats=2, warmup=1)
    assert (table["latency_ms"] > 0).all()
    assert (table["spread_ms"] >= 0).all()
    assert table["batch"].tolist() == [1] * 3 + [64] * 3
    assert measure.latency(ladder().double(), torch.zeros(1, *SHAPE), repeats=1, warmup=0)["latency_ms"] > 0


def test_latency_refuses_bad_settings() -> None:
    """Without passes or images there is no median."""
    with pytest.raises(ValueError, match="repeats: expected a number >= 1, got 0"):
        measure.latency(ladder(), torch.zeros(1, *SHAPE), repeats=0)
    with pytest.raises(ValueError, match="warmup: expected a number >= 0, got -1"):
        measure.latency(ladder(), torch.zeros(1, *SHAPE), warmup=-1)
    for sizes in ((), (4, 0)):
        with pytest.raises(ValueError, match="batch_sizes: expected one or more sizes >= 1, got"):
            measure.latencies(ladder(), SHAPE, sizes)
