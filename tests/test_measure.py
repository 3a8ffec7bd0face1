"""Costs against counts by hand and published figures; curves, calibration and flips against second derivations."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from tiny_runs import coloured, loader, network
from torch import Tensor, nn
from typechecker import unchecked

from mtanytime import measure
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.backbones import Normalized, resnet
from mtanytime.measure import costs
from mtanytime.measure.evaluation import evaluate

SHAPE = (3, 8, 8)


class Ladder(AnytimeNetwork):
    """Three exits along one trunk of grouped convolutions, with ever heavier heads and some randomness in training."""

    def __init__(self, classes: int = 3, exits: int = 3) -> None:
        super().__init__()
        blocks = [nn.Conv2d(3, 4, 3, padding=1), *(nn.Conv2d(4, 4, 3, padding=1, groups=2) for _ in range(exits - 1))]
        self.blocks = nn.ModuleList(nn.Sequential(block, nn.BatchNorm2d(4), nn.ReLU()) for block in blocks)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(4, 5 * k, 1),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Dropout(0.5),
                nn.Linear(5 * k, classes),
            )
            for k in range(1, exits + 1)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits, thin to wide."""
        outputs = []
        for block, head in zip(self.blocks, self.heads, strict=True):
            images = block(images)
            outputs.append(head(images))
        return outputs

    def extract(self, k: int) -> nn.Module:
        """Exit k; made anew, so that it draws random numbers and has no mode yet."""
        alone = nn.Sequential(*(copy.deepcopy(block) for block in self.blocks[:k]), copy.deepcopy(self.heads[k - 1]))
        torch.rand(3)
        return alone.train(self.training)


# Counted by hand for images (3, 8, 8).
TRUNK = [6912, 11520, 16128]  # 3·4·9·64 for the stem, and 4·2·9·64 more for every grouped convolution
HEADS = [1295, 2590, 3885]  # 4·5k·64 for the 1×1 convolution, 5k·3 for the linear layer
PARAMS = [112 + 8 + 25 + 18, 112 + 8 + 76 + 8 + 50 + 33, 112 + 8 + 2 * (76 + 8) + 75 + 48]


def ladder(seed: int = 0, **settings: Any) -> Ladder:
    """A Ladder with weights of its own and batch statistics that are not those of the start."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        made = Ladder(**settings)
        made(torch.rand(16, *SHAPE))
    return made


def traces(module: nn.Module) -> list[Any]:
    """All that a measurement might leave changed."""
    tensors = {name: value.tolist() for name, value in module.state_dict().items()}
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    gradients = [parameter.grad for parameter in module.parameters()]
    return [tensors, [part.training for part in module.modules()], hooks, gradients, torch.get_rng_state().tolist()]


# Costs.


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
    """Stride, groups, bias, batch norm and a matrix product that no layer makes, in the module's own type."""

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
    """What only training runs is no cost of an answer; a buffer that the network writes is put back."""

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
    """In eval mode torch runs a whole encoder layer as one kernel, in which the counter sees no product."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    tokens, width, hidden = 3, 64, 128
    expected = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    assert measure.macs(nn.Sequential(nn.Flatten(2), layer), SHAPE) == expected
    assert torch.backends.mha.get_fastpath_enabled()


def test_shared_parameters_count_once() -> None:
    """A layer used twice holds its weights once but works twice; frozen weights are weights too."""
    layer = nn.Conv2d(3, 3, 1).requires_grad_(False)
    module = nn.Sequential(layer, nn.ReLU(), layer)
    assert measure.parameters(module) == 12
    assert measure.macs(module, (3, 4, 4)) == 2 * 9 * 16


def test_exit_costs_by_hand() -> None:
    """The table of costs: own head alone, and with the heads before; the last row is what a whole pass runs."""
    made = ladder()
    table = measure.exit_costs(made, SHAPE)
    assert table.columns.tolist() == ["exit", "macs", "macs_own_head", "params"]
    assert table["exit"].tolist() == [1, 2, 3]
    assert table["macs_own_head"].tolist() == [trunk + head for trunk, head in zip(TRUNK, HEADS, strict=True)]
    assert table["macs"].tolist() == [trunk + sum(HEADS[: k + 1]) for k, trunk in enumerate(TRUNK)]
    assert table["macs"].iloc[-1] == measure.macs(made, SHAPE)
    assert table["params"].tolist() == PARAMS


def test_normalised_and_plain_networks() -> None:
    """A network may come in its normalisation, which costs no products; one without exits is one exit."""
    made = ladder()
    wrapped = Normalized(made, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)).double()
    pd.testing.assert_frame_equal(measure.exit_costs(wrapped, SHAPE), measure.exit_costs(made, SHAPE))
    resized = measure.exit_costs(Normalized(made, (0.1,) * 3, (0.5,) * 3, size=16), SHAPE)
    pd.testing.assert_frame_equal(resized, measure.exit_costs(made, (3, 16, 16)))
    alone, _ = costs.exits_apart(wrapped.eval())
    images = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(1)).double()
    for part, logits in zip(alone, wrapped(images), strict=True):
        torch.testing.assert_close(part(images), logits)
    plain = resnet(8, 10, width=4)
    total, count = measure.macs(plain), sum(value.numel() for value in plain.parameters())
    assert measure.exit_costs(plain).to_dict("records") == [
        {"exit": 1, "macs": total, "macs_own_head": total, "params": count}
    ]


def test_heads_must_run_once() -> None:
    """A head that another way of computing goes around would be left out of macs without a word."""
    made = ladder()
    made.heads[1] = made.heads[0]
    with pytest.raises(ValueError, match="head 1 of Ladder ran 2 times in a forward pass; wanted once"):
        measure.exit_costs(made, SHAPE)
    made.heads.append(nn.Linear(3, 3))
    made.blocks.append(nn.Identity())
    made.heads[1] = nn.Sequential(*made.heads[0])
    made.forward = lambda images: [made.heads[0](made.blocks[0](images))]
    with pytest.raises(ValueError, match="head 2 of Ladder ran 0 times"):
        measure.exit_costs(made, SHAPE)


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
    """A measurement amid a training run changes nothing of it: weights, statistics, modes, hooks, random state."""
    made = ladder()
    made.blocks[1].eval()
    before = traces(made)
    measured(made)
    assert traces(made) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shape", [(3, 8), (3, 0, 8), ()])
def test_image_shape_is_checked(shape: tuple[int, ...]) -> None:
    """Images have three sizes, none of them zero."""
    with pytest.raises(ValueError, match=r"wanted image_shape \(channels, height, width\); got \("):
        measure.macs(nn.Flatten(), shape)


# Latency.


class Clocked(nn.Module):
    """Takes as many milliseconds as it is told, pass by pass, on the clock of the test; notes when it runs."""

    def __init__(self, name: int, clock: list[float], notes: list[Any], milliseconds: list[float]) -> None:
        super().__init__()
        self.name, self.clock, self.notes, self.left = name, clock, notes, iter(milliseconds)

    def forward(self, images: Tensor) -> Tensor:
        """The images; a moment later."""
        self.notes.append((self.name, self.training, torch.is_grad_enabled(), tuple(images.shape)))
        self.clock[0] += next(self.left) / 1000
        return images


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `time.perf_counter` says in measure.py, as the one entry of a list."""
    now = [100.0]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])
    return now


def test_latency_is_the_median_after_warming_up(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Median and quartiles by hand, on a clock of the test; the device is waited for on both sides of a pass."""
    notes: list[Any] = []
    monkeypatch.setattr(costs, "synchronise", lambda device: notes.append(str(device)))
    module = Clocked(1, clock, notes, [500, 400, 3, 1, 2, 5, 40])
    found = measure.latency(module, torch.zeros(6, *SHAPE), repeats=5, warmup=2)
    assert notes == ["cpu", (1, False, False, (6, *SHAPE)), "cpu"] * 7
    assert found.pop("latency_ms") == pytest.approx(3)
    assert found.pop("spread_ms") == pytest.approx(5 - 2)
    assert found == {"batch": 6, "threads": torch.get_num_threads(), "device": "cpu"}
    assert module.training


def test_latencies_take_turns(clock: list[float]) -> None:
    """The exits are timed in rounds, the batch sizes one after the other, and each gets its own times."""
    notes: list[Any] = []

    class Clocks(nn.Module):
        exits, heads = 2, nn.ModuleList()

        def extract(self, k: int) -> nn.Module:
            return Clocked(
                k, clock, notes, [99, *(k * t for t in (1, 3, 4)), 99, *(k * t for t in (10, 30, 20))]
            ).eval()

    table = measure.latencies(Clocks(), SHAPE, (1, 4), repeats=3, warmup=1, progress=False)
    assert [(k, shape[0]) for k, _, _, shape in notes] == [(1, 1), (2, 1)] * 4 + [(1, 4), (2, 4)] * 4
    assert table.columns.tolist() == ["exit", "latency_ms", "spread_ms", "batch", "threads", "device"]
    assert table[["exit", "batch"]].to_numpy().tolist() == [[1, 1], [2, 1], [1, 4], [2, 4]]
    assert table["latency_ms"].tolist() == pytest.approx([3, 6, 20, 40])
    assert table["spread_ms"].tolist() == pytest.approx([1.5, 3, 10, 20])


def test_latency_of_a_real_network() -> None:
    """Images of another type are brought to the network's own before the clock starts."""
    table = measure.latencies(ladder().double(), SHAPE, progress=False, repeats=2, warmup=1)
    assert (table["latency_ms"] > 0).all()
    assert (table["spread_ms"] >= 0).all()
    assert table["batch"].tolist() == [1] * 3 + [64] * 3
    assert measure.latency(ladder().double(), torch.zeros(1, *SHAPE), repeats=1, warmup=0)["latency_ms"] > 0


def test_latency_refuses_bad_settings() -> None:
    """Nothing to take a median of, or no images."""
    with pytest.raises(ValueError, match=r"wanted repeats >= 1 and warmup >= 0; got \(0, 5\)"):
        measure.latency(ladder(), torch.zeros(1, *SHAPE), repeats=0)
    for sizes in ((), (4, 0)):
        with pytest.raises(ValueError, match="wanted batch sizes >= 1"):
            measure.latencies(ladder(), SHAPE, sizes)


# Predictions and the curve of a network.


@pytest.mark.parametrize("kind", ["set", "loader"])
def test_predictions_are_the_networks_own(kind: str) -> None:
    """The logits of all exits in order, as one pass in eval mode gives them, each beside its own label."""
    data, made = coloured(), ladder()
    outputs, labels = measure.predictions(made, data if kind == "set" else loader(data), batch_size=7, progress=False)
    assert outputs.shape == (3, 24, 3)
    assert labels.bincount().tolist() == [8, 8, 8]
    with torch.no_grad():
        expected = torch.stack(made.eval()(data.images / 255))
    if kind == "set":
        assert labels.equal(data.labels)
        torch.testing.assert_close(outputs, expected)
    else:  # shuffled
        torch.testing.assert_close(outputs[0].sort(dim=0).values, expected[0].sort(dim=0).values)
        right = (outputs.argmax(dim=2) == labels).double().mean(dim=1)
        assert right.equal((expected.argmax(dim=2) == data.labels).double().mean(dim=1))


def test_predictions_of_one_tensor_and_in_any_type() -> None:
    """An ordinary network is one exit; logits come back in float32 at least."""
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
    """They make no one tensor."""
    made = ladder()
    made.heads[0][-1] = nn.Linear(5, 2)
    with pytest.raises(
        ValueError, match=r"logits of one shape from all exits; got \[\(24, 2\), \(24, 3\), \(24, 3\)\]"
    ):
        measure.predictions(made, coloured(), progress=False)


def test_curve_of_a_network() -> None:
    """Each row is what its stand-alone network costs and scores; latency and seed only where asked for."""
    made, data = ladder(), coloured(20, seed=3)
    table = measure.curve("ladder", made, data, seed=5, latency_batch=2, progress=False)
    columns = ["model", "exit", "macs", "macs_own_head", "params", "latency_ms", "accuracy", "seed"]
    assert table.columns.tolist() == columns
    assert table["accuracy"].tolist() == [evaluate(made.extract(k), data) for k in (1, 2, 3)]
    pd.testing.assert_frame_equal(table[columns[1:5]], measure.exit_costs(made, SHAPE))
    assert (table["latency_ms"] > 0).all()
    assert set(table["model"]) == {"ladder"}
    assert set(table["seed"]) == {5}
    bare = measure.curve("ladder", made, loader(data), progress=False)
    pd.testing.assert_frame_equal(bare, table.drop(columns=["latency_ms", "seed"]))
    plain = measure.curve("plain", network(), data, progress=False)
    assert plain["accuracy"].tolist() == [evaluate(network(), data)]


def test_curve_refuses_what_would_be_wrong() -> None:
    """A network of which a weight broke has an accuracy only by chance; answers without a cost have no place."""
    made = ladder()
    with torch.no_grad():
        made.heads[1][-1].bias[0] = math.nan
    with pytest.raises(ValueError, match="logits of exit 2 for image 0 are not finite"):
        measure.curve("ladder", made, coloured(), progress=False)
    hidden = nn.Sequential(ladder())
    with pytest.raises(ValueError, match="Sequential gives 3 answers; wanted one an exit, 1"):
        measure.curve("ladder", hidden, coloured(), progress=False)


# Calibration and flips.


def logits_of(probabilities: list[list[float]]) -> Tensor:
    """Logits (1, images, classes) whose softmax is these probabilities."""
    return torch.tensor([probabilities], dtype=torch.float64).log()


def test_calibration_of_a_worked_example() -> None:
    """Two bins by hand: (0, 0.5] holds 0.4 wrong and 0.5 right; (0.5, 1] holds 0.7 right, 0.8 right, 0.9 wrong."""
    outputs = logits_of([[0.4, 0.35, 0.25], [0.5, 0.25, 0.25], [0.7, 0.2, 0.1], [0.8, 0.1, 0.1], [0.9, 0.05, 0.05]])
    found = measure.calibration(outputs, torch.tensor([1, 0, 0, 0, 2]), bins=2)
    assert found.columns.tolist() == ["exit", "accuracy", "confidence", "ece"]
    low, high = abs(1 / 2 - 0.45), abs(2 / 3 - 0.8)
    assert found.iloc[0].tolist() == pytest.approx([1, 3 / 5, 3.3 / 5, 2 / 5 * low + 3 / 5 * high])
    sure = torch.tensor([[[1e3, 0.0]] * 4])
    assert measure.calibration(sure, torch.tensor([0, 0, 0, 1])).iloc[0].tolist() == [1, 0.75, 1, 0.25]


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_calibration_agrees_with_scikit_learn(bins: int) -> None:
    """Its reliability diagram, weighted by how many images each bin has, is the same error."""
    generator = torch.Generator().manual_seed(bins)
    outputs, labels = torch.randn(3, 500, 4, generator=generator), torch.randint(4, (500,), generator=generator)
    found = measure.calibration(outputs, labels, bins)
    for k in range(3):
        confidence, answers = outputs[k].double().softmax(dim=1).max(dim=1)
        right = (answers == labels).numpy()
        accuracies, means = calibration_curve(right, confidence.numpy(), n_bins=bins)
        counts = np.histogram(confidence.numpy(), bins, (0, 1))[0]
        expected = np.sum(counts[counts > 0] * np.abs(accuracies - means)) / 500
        assert found.loc[k, "ece"] == pytest.approx(expected)
        assert found.loc[k, "ece"] >= abs(found.loc[k, "accuracy"] - found.loc[k, "confidence"]) - 1e-12
        assert found.loc[k, "accuracy"] == right.mean()


def answers(right: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Outputs (exits, images, 2) that are right where a 1 stands, and their labels."""
    table = torch.tensor(right)
    labels = torch.arange(table.shape[1]) % 2
    chosen = torch.where(table.bool(), labels, 1 - labels)
    return nn.functional.one_hot(chosen, 2).float(), labels


def test_flips_by_hand() -> None:
    """Four images: always right; right, wrong, right; wrong, right, wrong; right at the first exit alone."""
    found = measure.flips(*answers([[1, 1, 0, 1], [1, 0, 1, 0], [1, 1, 0, 0]]))
    names = ["exit", "right_to_wrong", "wrong_to_right", "ever_right_to_wrong", "ever_wrong_to_right"]
    assert found.columns.tolist() == names
    assert found.to_numpy().tolist() == [[2, 0.5, 0.25, 0.5, 0.25], [3, 0.25, 0.25, 0.5, 0.25]]
    alone = measure.flips(*answers([[1, 0]]))
    assert alone.columns.tolist() == names
    assert alone.empty


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.integers(0, 1), min_size=n, max_size=n), min_size=2)))
def test_flips_of_any_answers(right: list[list[int]]) -> None:
    """Counted image by image; what is mended less what is broken is what the accuracy gains."""
    found = measure.flips(*answers(right))
    for k in range(1, len(right)):
        images = list(zip(*right[: k + 1], strict=True))
        row = found.loc[k - 1]
        assert row["ever_right_to_wrong"] == pytest.approx(sum(1 in i[:k] and not i[k] for i in images) / len(images))
        assert row["ever_wrong_to_right"] == pytest.approx(sum(0 in i[:k] and i[k] for i in images) / len(images))
        gain = (sum(right[k]) - sum(right[k - 1])) / len(images)
        assert row["wrong_to_right"] - row["right_to_wrong"] == pytest.approx(gain)
        assert row["right_to_wrong"] <= row["ever_right_to_wrong"]


@pytest.mark.parametrize("function", [measure.calibration, measure.flips])
def test_logits_and_labels_are_checked(function: Callable[..., pd.DataFrame]) -> None:
    """Labels that no logit stands for, logits that are no numbers, shapes that do not fit."""
    outputs, labels = torch.zeros(2, 4, 3), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match="wanted labels 0 to 2, the logits' classes; got 0 to 3"):
        function(outputs, labels + torch.tensor([0, 0, 1, 0]))
    with pytest.raises(ValueError, match="got -1 to 2"):
        function(outputs, labels - torch.tensor([0, 0, 0, 1]))
    for broken in (math.nan, math.inf):
        changed = outputs.clone()
        changed[1, 2, 0] = broken
        with pytest.raises(ValueError, match="logits of exit 2 for image 2 are not finite"):
            function(changed, labels)
    for wrong in (outputs[0], outputs[:, :3], outputs[:0]):
        with pytest.raises(ValueError, match=r"wanted logits \(exits, images, classes\) and labels \(images,\); got"):
            unchecked(function)(wrong, labels)


def test_bins_are_checked() -> None:
    """No bin holds no image."""
    with pytest.raises(ValueError, match="wanted bins >= 1; got 0"):
        measure.calibration(torch.zeros(1, 2, 3), torch.tensor([0, 1]), bins=0)


# What curves say.


def table_of(model: str, points: dict[float, float], seed: int | None = None, cost: str = "macs") -> pd.DataFrame:
    """A curve of points cost -> accuracy."""
    rows = [{"model": model, "exit": k, cost: x, "accuracy": y} for k, (x, y) in enumerate(points.items(), 1)]
    return pd.DataFrame(rows) if seed is None else pd.DataFrame(rows).assign(seed=seed)


@st.composite
def points(draw: st.DrawFn, rising: bool = False) -> dict[float, float]:
    """Two or more exits of different cost, in any order, as cost -> accuracy."""
    costs = draw(st.lists(st.integers(1, 10**9), min_size=2, max_size=6, unique=True))
    accuracies = draw(st.lists(st.integers(0, 1000), min_size=len(costs), max_size=len(costs), unique=rising))
    if rising:
        costs, accuracies = sorted(costs), sorted(accuracies)
    return {cost: accuracy / 1000 for cost, accuracy in zip(costs, accuracies, strict=True)}


def logs(of: dict[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Base-10 logarithms of the costs, rising, and the accuracies."""
    costs = np.array(sorted(of))
    return np.log10(costs), np.array([of[cost] for cost in costs])


def test_area_of_straight_lines() -> None:
    """By hand: a line's mean is its middle; two decades at 0.5 to 0.7 and one at 0.7; a single exit is its own."""
    line = table_of("line", {10: 0.5, 1000: 0.9})
    assert measure.area_under_curve(line).to_dict("records") == [{"model": "line", "area": pytest.approx(0.7)}]
    both = pd.concat([table_of("bent", {1: 0.5, 100: 0.7, 1000: 0.7}, 1), table_of("one", {50: 0.3}, 0)])
    found = measure.area_under_curve(both)
    assert found["model"].tolist() == ["bent", "one"]
    assert found["seed"].tolist() == [1, 0]
    assert found["area"].tolist() == pytest.approx([(2 * 0.6 + 0.7) / 3, 0.3])


def test_area_over_a_common_range() -> None:
    """By hand: no answer below the first exit, the last one above the last, part of a line between."""
    line = table_of("line", {10: 0.5, 1000: 0.9})
    for between, expected in (
        ((10, 100), 0.6),
        ((1, 10), 0.0),
        ((1, 100), 0.6 / 2),
        ((100, 10000), (0.8 + 0.9) / 2),
        ((1e4, 1e5), 0.9),
        ((1, 1e4), (2 * 0.7 + 0.9) / 4),
        ((0.1, 1), 0.0),
    ):
        assert measure.area_under_curve(line, between)["area"].item() == pytest.approx(expected), between
    one = table_of("one", {10: 0.4})
    assert measure.area_under_curve(one, (1, 100))["area"].item() == pytest.approx(0.2)


@given(points(), st.tuples(st.floats(-1, 5), st.floats(0.1, 5)))
def test_area_is_the_mean_over_a_fine_grid(of: dict[float, float], span: tuple[float, float]) -> None:
    """Within rounding of the grid, the area is the mean of what numpy interpolates, with 0 to the left."""
    low, high = span[0], span[0] + span[1]
    grid = np.linspace(low, high, 20001)
    grid = (grid[1:] + grid[:-1]) / 2
    expected = np.interp(grid, *logs(of), left=0).mean()
    found = measure.area_under_curve(table_of("any", of), (10**low, 10**high))
    assert found["area"].item() == pytest.approx(expected, abs=2e-4)
    own = measure.area_under_curve(table_of("any", of))
    x, _ = logs(of)
    assert own["area"].item() == pytest.approx(np.interp(np.linspace(*x[[0, -1]], 20001), *logs(of)).mean(), abs=2e-4)


@given(points(), st.lists(st.floats(0.5, 2e9), min_size=1, max_size=5), st.floats(0.01, 100))
def test_interpolation_is_numpys_in_logarithms(of: dict[float, float], at: list[float], unit: float) -> None:
    """NaN outside, exact at the exits, and the same in any unit of cost."""
    table = table_of("any", of)
    found = measure.interpolated(table, at)
    assert found.columns.tolist() == ["model", "macs", "accuracy"]
    assert found["macs"].tolist() == at
    expected = np.interp(np.log10(at), *logs(of), left=np.nan, right=np.nan)
    np.testing.assert_allclose(found["accuracy"], expected, atol=1e-9)
    assert measure.interpolated(table, list(of))["accuracy"].tolist() == pytest.approx(list(of.values()), abs=1e-9)
    inside = math.sqrt(min(of) * max(of))
    scaled = table.assign(macs=table["macs"] * unit)
    same = measure.interpolated(scaled, inside * unit)["accuracy"].item()
    assert same == pytest.approx(measure.interpolated(table, inside)["accuracy"].item(), abs=1e-9)


def test_interpolation_goes_run_by_run() -> None:
    """Models and seeds keep apart and in their order; rows may be mixed up; any column of costs."""
    runs = [table_of("b", {1: 0.2, 100: 0.4}, 1), table_of("b", {1: 0.4, 100: 0.6}, 0), table_of("a", {10: 0.1}, 0)]
    table = pd.concat(runs).rename(columns={"macs": "latency_ms"}).iloc[[1, 3, 0, 4, 2]]
    found = measure.interpolated(table, 10, cost="latency_ms")
    assert found.drop(columns="accuracy").to_numpy().tolist() == [["b", 1, 10], ["b", 0, 10], ["a", 0, 10]]
    assert found["accuracy"].tolist() == pytest.approx([0.3, 0.5, 0.1])
    mixed = pd.concat([table_of("seeded", {10: 0.1}, 0), table_of("without", {10: 0.2})])
    assert measure.area_under_curve(mixed)["area"].tolist() == [0.1, 0.2]


def seeds(model: str, *runs: dict[float, float]) -> pd.DataFrame:
    """A curve of several runs."""
    return pd.concat([table_of(model, of, seed) for seed, of in enumerate(runs)], ignore_index=True)


def test_gap_by_hand() -> None:
    """Two seeds each: means, difference and standard error at the other's exits; nothing beyond one's own."""
    ours = seeds("ours", {1: 0.5, 100: 0.7}, {1: 0.54, 100: 0.74})
    theirs = seeds("theirs", {10: 0.61, 100: 0.70, 1000: 0.8}, {10: 0.65, 100: 0.70, 1000: 0.9})
    found = measure.gap(pd.concat([ours, theirs]), "ours", "theirs")
    assert found.columns.tolist() == ["exit", "macs", "accuracy", "accuracy_against", "gap_points", "sem_points"]
    assert found["exit"].tolist() == [1, 2, 3]
    assert found["macs"].tolist() == [10, 100, 1000]
    assert found["accuracy"].tolist() == pytest.approx([0.62, 0.72, math.nan], nan_ok=True)
    assert found["accuracy_against"].tolist() == pytest.approx([0.63, 0.70, 0.85])
    assert found["gap_points"].tolist() == pytest.approx([-1, 2, math.nan], nan_ok=True)
    # Two values d apart: standard deviation d/√2, standard error d/2.
    expected = [math.hypot(2, 2), 2, math.nan]
    assert found["sem_points"].tolist() == pytest.approx(expected, nan_ok=True)
    assert measure.gap(pd.concat([ours, theirs]), "ours", "theirs", last_stands=True)["gap_points"].tolist() == [
        *found["gap_points"].tolist()[:2],
        pytest.approx(72 - 85),
    ]


def test_gap_where_one_seed_does_not_reach() -> None:
    """A mean over the seeds that happen to reach would compare others than the table says."""
    ours = seeds("ours", {1: 0.5, 100: 0.7}, {1: 0.5, 99: 0.7})
    found = measure.gap(pd.concat([ours, table_of("theirs", {100: 0.7}, 0)]), "ours", "theirs")
    assert math.isnan(found["gap_points"].item())


def test_no_gap_and_no_saving_against_itself() -> None:
    """One seed has no standard error; a curve that dips saves nothing against itself either."""
    table = table_of("one", {100: 0.7, 10: 0.6, 50: 0.5})
    assert measure.gap(table, "one", "one")["gap_points"].tolist() == [0, 0, 0]
    assert measure.gap(table, "one", "one")["sem_points"].isna().all()
    assert measure.gap(table, "one", "one")["exit"].tolist() == [2, 3, 1]
    assert measure.savings(table, "one", "one")["saving_percent"].tolist() == [0, 0, 0]


def test_savings_by_hand() -> None:
    """Half a decade saved; an exit no better than a cheaper one counts at that one's cost; too good is NaN."""
    ours = table_of("ours", {10: 0.5, 20: 0.4, 1000: 0.8, 2000: 0.7})
    theirs = table_of("theirs", {30: 0.45, 1000: 0.75, 2000: 0.6, 4000: 0.9})
    found = measure.savings(pd.concat([ours, theirs]), "ours", "theirs")
    assert found.columns.tolist() == ["exit", "accuracy", "macs", "macs_against", "saving_percent"]
    assert found["accuracy"].tolist() == [0.45, 0.75, 0.6, 0.9]
    reached = [20 * 50 ** (0.35 / 0.4), 20 * 50 ** (0.2 / 0.4)]
    assert found["macs"].tolist() == pytest.approx([10, *reached, math.nan], nan_ok=True)
    against = [30, 1000, 30 * (1000 / 30) ** 0.5, 4000]
    assert found["macs_against"].tolist() == pytest.approx(against)
    savings = [100 * (1 - x / y) for x, y in zip([10, *reached], against[:3], strict=True)]
    assert found["saving_percent"].tolist() == pytest.approx([*savings, math.nan], nan_ok=True)


def test_savings_use_mean_curves() -> None:
    """By hand: both means are 0.6 to 0.8, ours at a quarter of the cost."""
    ours = seeds("ours", {25: 0.5, 250: 0.9}, {25: 0.7, 250: 0.7})
    theirs = seeds("theirs", {100: 0.55, 1000: 0.8}, {100: 0.65, 1000: 0.8})
    found = measure.savings(pd.concat([theirs, ours]), "ours", "theirs")
    assert found["saving_percent"].tolist() == pytest.approx([75, 75])


@given(points(rising=True), st.floats(0.01, 100))
def test_savings_of_a_curve_moved_along(of: dict[float, float], factor: float) -> None:
    """The same accuracies at a multiple of the cost: every exit saves the same share."""
    table = pd.concat([table_of("ours", {factor * x: y for x, y in of.items()}), table_of("theirs", of)])
    found = measure.savings(table, "ours", "theirs")
    assert found["saving_percent"].tolist() == pytest.approx([100 * (1 - factor)] * len(of), abs=1e-9)
    assert found["macs_against"].tolist() == list(of)


@given(points(), points())
def test_savings_and_interpolation_agree(ours: dict[float, float], theirs: dict[float, float]) -> None:
    """At the cost that savings gives, the curve has that accuracy, and below it nowhere on a fine grid."""
    table = pd.concat([table_of("ours", ours), table_of("theirs", theirs)])
    for row in measure.savings(table, "ours", "theirs").itertuples():
        if math.isnan(row.macs):
            assert max(ours.values()) < row.accuracy
        elif row.macs == min(ours):
            assert ours[row.macs] >= row.accuracy
        else:
            x, y = logs(ours)
            assert np.interp(math.log10(row.macs), x, y) == pytest.approx(row.accuracy, abs=1e-6)
            before = np.linspace(x[0], math.log10(row.macs), 999)[:-1]
            assert (np.interp(before, x, y) < row.accuracy + 1e-9).all()


def bad_curves() -> Iterator[tuple[pd.DataFrame, str]]:
    """Curves that mean nothing, and what is said of them."""
    good = table_of("a", {10: 0.5, 100: 0.7})
    yield good.drop(columns=["macs", "accuracy"]), r"\['macs', 'accuracy'\] missing in \['model', 'exit'\]"
    yield good.iloc[:0], "wanted a curve with rows; got 'none'"
    for macs in (0, -5, math.inf, math.nan):
        yield good.assign(macs=[10, macs]), f"macs of 'a', exit 2 is {float(macs):g}.*; wanted finite and above 0"
    yield good.assign(macs=["10", "many"]), "macs of 'a', exit 2 is many; wanted"
    for accuracy in (math.nan, 50.0, -0.1):
        yield good.assign(accuracy=[0.5, accuracy]), f"accuracy of 'a', exit 2 is {accuracy}; wanted in"
    yield good.assign(exit=1), "wanted each exit once in a run; 'a' has 1 twice"
    yield good.assign(macs=10), "wanted each macs once in a run; 'a' has 10 twice"


@pytest.mark.parametrize(("curve", "message"), list(bad_curves()))
def test_curves_are_checked(curve: pd.DataFrame, message: str) -> None:
    """A logarithm of nothing, per cents for fractions, a diverged run, two levels in one: named, not computed."""
    for function in (
        measure.area_under_curve,
        lambda curve: measure.interpolated(curve, 20),
        lambda curve: measure.gap(curve, "a", "a"),
        lambda curve: measure.savings(curve, "a", "a"),
    ):
        with pytest.raises(ValueError, match=message):
            function(curve)


def test_questions_to_curves_are_checked() -> None:
    """Models that are not there, ranges that are none, costs without a logarithm, seeds that cannot be averaged."""
    table = pd.concat([table_of("a", {10: 0.5}), table_of("b", {10: 0.5})])
    with pytest.raises(ValueError, match=r"wanted a model of the curve \(has: a, b\); got 'c'"):
        measure.gap(table, "a", "c")
    for between in ((0, 10), (10, 10), (10, math.inf), (20, 10), (math.nan, 10)):
        with pytest.raises(ValueError, match="wanted between = "):
            measure.area_under_curve(table, between)
    for at in (0, [10, -1], math.nan):
        with pytest.raises(ValueError, match="wanted a macs above 0 to interpolate at"):
            measure.interpolated(table, at)
    uneven = seeds("a", {10: 0.5, 20: 0.6}, {10: 0.5})
    with pytest.raises(ValueError, match=r"same exits of 'a' for every seed; got runs by exit \{1: 2, 2: 1\}"):
        measure.savings(uneven, "a", "a")
