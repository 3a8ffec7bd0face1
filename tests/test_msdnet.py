"""MSDNet: the authors' costs and outputs to the digit; extracted exits agree and hold no idle parameters."""

import math
from collections.abc import Callable
from itertools import accumulate, islice
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from typechecker import unchecked

from mtanytime.anytime.msdnet import MSDNet
from mtanytime.measure.costs import exit_costs

DEFAULTS = {"base": 4, "step": 2, "step_mode": "even", "channels": 16, "growth": 6, "factors": (1, 2, 4)}
DEFAULTS |= {"num_classes": 10, "blocks": 10, "reduction": 0.5}

# From the authors' PyTorch code, github.com/kalviny/MSDNet-PyTorch at f654595, run for 32x32 images: parameters up to
# each exit and the operations that its op_counter.py prints, then multiply-adds by torch's counter. All maps and all
# heads up to the exit are counted.
AUTHORS: dict[str, tuple[dict[str, Any], list[int], list[int], list[int]]] = {
    "anytime, CIFAR-10": (
        {"num_classes": 10},
        [422266, 853572, 1346798, 1781396, 2221486, 2723784, 3288290, 3772068, 4273550, 4839544],
        [15128842, 25482772, 37753630, 52015400, 62123570, 74001212, 87648326, 99946064, 110017370, 121563236],
        [14955776, 25235968, 37433088, 51621888, 61687040, 73521664, 87125760, 99391488, 109444352, 120971776],
    ),
    "anytime, CIFAR-100": (
        {"num_classes": 100, "blocks": 7},
        [433876, 876792, 1274952, 1695548, 2178352, 2603252, 3067960],
        [15140452, 25505992, 37095980, 46331024, 57335540, 66960728, 75937724],
        [14967296, 25259008, 36780544, 45972480, 56933888, 66529280, 75487744],
    ),
    "batch budget, 5 blocks": (
        {"num_classes": 100, "blocks": 5, "base": 1, "step": 1, "step_mode": "lin_grow"},
        [299704, 649740, 1018308, 1492424, 2078924],
        [6859876, 14350024, 27536684, 41714576, 58480628],
        [6792704, 14209024, 27278848, 41373696, 58087936],
    ),
    "batch budget, 7 blocks": (
        {"num_classes": 100, "blocks": 7, "base": 1, "step": 1, "step_mode": "lin_grow"},
        [299704, 649740, 1111388, 1727200, 2384968, 3052244, 3966664],
        [6859876, 14350024, 27291436, 48448912, 76432628, 108850520, 137280956],
        [6792704, 14209024, 27041280, 48054272, 75900416, 108191744, 136565248],
    ),
    "small": (
        {"num_classes": 10, "blocks": 7, "base": 2, "step": 1},
        [331162, 654168, 930006, 1215464, 1530298, 1794460, 2081310],
        [9350410, 14769172, 20514590, 24944168, 30037298, 34071356, 37935430],
        [9248000, 14628352, 20332288, 24738816, 29808896, 33824256, 37678848],
    ),
}

# Logits of the same code in training mode, for `waves` as images and every parameter filled by `fill`: second image,
# first three classes.
AUTHORS_LOGITS: dict[str, list[list[float]]] = {
    "anytime, CIFAR-100": [
        [4.918304141, -1.346307075, 0.111939386],
        [4.86540137, -1.326881636, 0.138625705],
        [5.050334593, -1.547470745, 0.251398162],
        [4.754137534, -1.241919988, 0.135225833],
        [4.91639554, -1.415557409, 0.207307804],
        [5.219147777, -1.629845006, 0.193756766],
        [5.154348576, -1.617751428, 0.242234551],
    ],
    "batch budget, 5 blocks": [
        [4.79797309, -1.346432303, 0.232439443],
        [4.796456999, -1.29063317, 0.158649374],
        [5.091272978, -1.566785591, 0.236526973],
        [4.909798281, -1.434817292, 0.239898081],
        [4.66756388, -1.197526141, 0.16188583],
    ],
}


def images(*shape: int, seed: int = 0) -> Tensor:
    """Random images in float64, the same on every run."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(seed: int = 0, **options: Any) -> MSDNet:
    """An MSDNet in float64 with weights from a seed, and running statistics that are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = MSDNet(**{"num_classes": 3} | options).double()
    network(images(4, 3, 32, 32, seed=1))
    return network


def parameters(*modules: nn.Module) -> int:
    """The number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def multiply_adds(network: nn.Module, size: int = 32) -> dict[str, int]:
    """Multiply-adds by module path for one image, "Global" for all, by torch's counter."""
    with torch.no_grad(), FlopCounterMode(display=False, depth=9) as counter:
        network.eval()(torch.zeros(1, 3, size, size))
    return {name: sum(counts.values()) // 2 for name, counts in counter.get_flop_counts().items()}


@torch.no_grad()
def authors_operations(network: MSDNet) -> list[int]:
    """What the authors' op_counter.py counts: multiply-adds, biases, numbers through ReLU, numbers pooled; by exit."""
    totals: list[int] = []
    running = 0

    def count(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal running
        if isinstance(module, nn.Conv2d):
            running += module.weight.numel() * output[0, 0].numel()
        elif isinstance(module, nn.Linear):
            running += module.weight.numel() + module.bias.numel()
            totals.append(running)
        elif isinstance(module, nn.ReLU | nn.AdaptiveAvgPool2d):
            running += inputs[0].numel()

    for module in network.modules():
        module.register_forward_hook(count)
    network.eval()(torch.zeros(1, 3, 32, 32))
    return totals


@pytest.mark.parametrize("name", AUTHORS)
def test_costs_are_those_of_the_authors_code(name: str) -> None:
    """Parameters, operations and multiply-adds of every exit of the published configurations, to the last digit."""
    options, params, operations, macs = AUTHORS[name]
    network = MSDNet(**options)
    counts = multiply_adds(network)
    blocks = [counts[f"MSDNet.blocks.{i}"] + counts[f"MSDNet.heads.{i}"] for i in range(network.exits)]
    assert [counts["MSDNet.stem"] + total for total in accumulate(blocks)] == macs
    parts = [parameters(block, head) for block, head in zip(network.blocks, network.heads, strict=True)]
    assert [parameters(network.stem) + total for total in accumulate(parts)] == params
    assert authors_operations(network) == operations


def test_published_curve_lies_where_its_exits_do() -> None:
    """The MSDNet curve of later papers (CIFAR-10 at 15, 25, 38, 52, 74 and 122 million) has the default's exits."""
    operations = authors_operations(MSDNet(10))
    assert [round(operations[k - 1] / 1e6) for k in (1, 2, 3, 4, 6, 10)] == [15, 25, 38, 52, 74, 122]


def waves(*shape: int) -> Tensor:
    """Numbers in [-1, 1] that any program can reproduce."""
    return torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) ** 1.1).view(shape)


@torch.no_grad()
def fill(network: nn.Module) -> nn.Module:
    """Fill every parameter with numbers that depend on its shape alone, so that its name and place do not matter."""
    for p in network.parameters():
        wave = torch.cos(torch.arange(p.numel(), dtype=torch.float64) * 1.7 + 0.3).view(p.shape)
        p.copy_(wave * (4 / p[0].numel()) ** 0.5 if p.ndim > 1 else 1 + 0.3 * wave)
    return network


@pytest.mark.parametrize("name", AUTHORS_LOGITS)
def test_logits_are_those_of_the_authors_code(name: str) -> None:
    """Equal costs could hide other connections; with equal weights, only the authors' network gives their logits."""
    logits = fill(MSDNet(**AUTHORS[name][0]).double())(waves(2, 3, 32, 32))
    found = torch.stack([answer[1, :3] for answer in logits])
    torch.testing.assert_close(found, torch.tensor(AUTHORS_LOGITS[name], dtype=torch.float64), rtol=0, atol=1e-7)


any_options = st.fixed_dictionaries(
    {
        "num_classes": st.integers(1, 4),
        "blocks": st.integers(1, 4),
        "base": st.integers(1, 3),
        "step": st.integers(1, 2),
        "step_mode": st.sampled_from(["even", "lin_grow"]),
        "channels": st.integers(1, 5),
        "growth": st.sampled_from([2, 4]),
        "factors": st.sampled_from([(1,), (2, 1), (1, 2), (1, 2, 4), (1, 1, 3), (1, 2, 4, 4)]),
        "reduction": st.sampled_from([0.4, 0.5, 0.75, 1.0]),
    }
)


def by_hand(k: int, size: int, o: dict[str, Any]) -> tuple[int, int]:
    """(parameters, multiply-adds) of exit k: walk back from its head to the maps it needs, and add up their cost."""
    grows = o["step_mode"] == "lin_grow"
    steps = [o["base"]] + [o["step"] * i + 1 if grows else o["step"] for i in range(1, o["blocks"])]
    depth, end, factors = sum(steps), sum(steps[:k]), o["factors"]
    finest = [0] + [i // math.ceil(depth / len(factors)) for i in range(depth)]  # after the stem, after each layer
    width, pixels = [o["channels"]], [(size >> s) ** 2 for s in range(len(factors) + 2)]
    for layer in range(1, depth + 1):
        dropped = finest[layer] > finest[layer - 1]
        width.append(math.floor((width[-1] + o["growth"]) * (o["reduction"] if dropped else 1)))
    params = macs = 0

    def convolution(inputs: int, outputs: int, kernel: int, scale: int) -> int:
        nonlocal params, macs
        params += inputs * outputs * kernel**2 + 2 * outputs
        macs += inputs * outputs * kernel**2 * pixels[scale]
        return outputs

    channels = 3
    for scale, factor in enumerate(factors):
        channels = convolution(channels, width[0] * factor, 3, scale)
    waiting, seen = [(end, len(factors) - 1)], set()
    while waiting:
        layer, scale = waiting.pop()
        if layer == 0 or (layer, scale) in seen:
            continue
        seen.add((layer, scale))
        sources = [source for source in (scale - 1, scale) if source >= finest[layer - 1]]
        for source in sources:
            waiting.append((layer - 1, source))
            inputs, outputs = width[layer - 1] * factors[source], o["growth"] * factors[scale] // len(sources)
            inner = convolution(inputs, min(inputs, factors[source] * outputs), 1, source)
            convolution(inner, outputs, 3, scale)
        if finest[layer] > finest[layer - 1]:
            convolution((width[layer - 1] + o["growth"]) * factors[scale], width[layer] * factors[scale], 1, scale)
    convolution(width[end] * factors[-1], 128, 3, len(factors))
    convolution(128, 128, 3, len(factors) + 1)
    return params + 128 * o["num_classes"] + o["num_classes"], macs + 128 * o["num_classes"]


@given(options=any_options, which=st.integers(0, 11))
@settings(max_examples=25)
def test_exit_alone_costs_what_it_needs(options: dict[str, Any], which: int) -> None:
    """An extracted exit must not compute finer maps that its logits do not depend on."""
    k = which % options["blocks"] + 1
    alone = MSDNet(**options).extract(k)
    size = 2 ** (len(options["factors"]) + 1)
    assert (parameters(alone), multiply_adds(alone, size)["Global"]) == by_hand(k, size, options)


@given(options=any_options, training=st.booleans())
@settings(max_examples=20)
def test_refine_agrees_with_one_pass(options: dict[str, Any], training: bool) -> None:
    """Step by step: the same logits and, in train mode, the same running statistics; no step computes too early."""
    network = made(**options).train(training)
    other = made(**options).train(training)
    inputs = images(3, 3, 32, 32, seed=2)
    wanted = network(inputs)
    for stepped, logits in zip(other.refine(inputs), wanted, strict=True):
        assert not stepped.requires_grad
        torch.testing.assert_close(stepped, logits, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other.state_dict(), network.state_dict(), rtol=1e-10, atol=1e-10)
    image = torch.zeros(1, 3, 32, 32).double()
    for k, macs in enumerate(exit_costs(network)["macs"], 1):
        with FlopCounterMode(display=False) as counter:
            list(islice(network.eval().refine(image), k))
        assert counter.get_total_flops() // 2 == macs


def test_refine_goes_on_with_the_images_that_are_kept() -> None:
    """Some images leave after each answer; the others' logits stay those of the whole batch."""
    network = made(blocks=3, base=2, step=1).eval()
    inputs = images(4, 3, 32, 32, seed=2)
    wanted, steps = network(inputs), network.refine(inputs)
    torch.testing.assert_close(next(steps), wanted[0])
    torch.testing.assert_close(steps.send(torch.tensor([True, False, True, True])), wanted[1][[0, 2, 3]])
    torch.testing.assert_close(steps.send(torch.tensor([False, False, True])), wanted[2][[3]])
    steps = network.refine(inputs)
    next(steps)
    with pytest.raises(ValueError, match=r"keep: expected torch.bool \(4,\), one per image, got torch.int64 \(4,\)"):
        steps.send(torch.ones(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "macs"),
    [
        ({"blocks": 7}, [13244672, 19689728, 27760896, 33622272, 40368384, 46326016, 51880192]),
        (
            {"blocks": 7, "base": 2, "step": 1},
            [7831808, 10409216, 12589312, 16010496, 18498816, 20546816, 22409472],
        ),
    ],
)
def test_exit_alone_of_a_published_network(options: dict[str, Any], macs: list[int]) -> None:
    """The numbers that other networks are compared with (10 classes, each exit's own head alone) must not change."""
    network = MSDNet(10, **options)
    found = [multiply_adds(network.extract(k))["Global"] for k in range(1, 8)]
    assert found == macs
    assert found == [by_hand(k, 32, DEFAULTS | options)[1] for k in range(1, 8)]


@given(options=any_options, training=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=10)
def test_exit_alone_answers_as_in_the_full_network(options: dict[str, Any], training: bool, seed: int) -> None:
    """Extraction must not change an exit's logits, nor in training, nor leave parameters in it that are unused."""
    network = made(seed, **options).train(training)
    batch = images(3, 3, 32, 32, seed=seed)
    answers = network(batch)
    assert [tuple(answer.shape) for answer in answers] == [(3, options["num_classes"])] * network.exits
    for k, answer in enumerate(answers, start=1):
        alone = network.extract(k)
        logits = alone(batch)
        torch.testing.assert_close(logits, answer, rtol=0, atol=1e-11)
        logits.sum().backward()
        assert all(p.grad is not None for p in alone.parameters())
    assert all(p.grad is None for p in network.parameters())
    sum(answer.sum() for answer in answers).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_every_parameter_learns_from_the_joint_loss() -> None:
    """A weight whose gradient is all zero would reveal a path without effect; the default network has none."""
    network = made()
    labels = torch.tensor([0, 1, 2, 0])
    sum(F.cross_entropy(answer, labels) for answer in network(images(4, 3, 32, 32))).backward()
    assert all(p.grad.any() for p in network.parameters())


def test_exit_alone_has_its_own_weights_and_the_networks_mode() -> None:
    """Training, folding or saving an extracted exit must not touch the network that it came from."""
    network = made(blocks=2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    alone = network.extract(2)
    assert all(module.training for module in alone.modules())
    for p in alone.parameters():
        p.data.zero_()
    alone(images(2, 3, 32, 32))
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(module.training for module in network.eval().extract(1).modules())


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 40), (64, 32)])
def test_other_image_sizes(height: int, width: int) -> None:
    """Digits are often smaller than 32x32, other data sets larger or oblong; odd sizes give maps rounded up."""
    network = made(blocks=2)
    batch = images(2, 3, height, width)
    for k, answer in enumerate(network(batch), start=1):
        assert answer.shape == (2, 3)
        torch.testing.assert_close(network.extract(k)(batch), answer, rtol=0, atol=1e-11)


@pytest.mark.parametrize(("options", "fan"), [({}, "out_channels"), ({"initialization": "fan_in"}, "in_channels")])
def test_starts_as_the_authors_code_does(options: dict[str, str], fan: str) -> None:
    """Published results rely on He's normal distribution by fan-out and zero biases; fan-in is an option."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MSDNet(10, **options)
    drawn = torch.cat(
        [
            (m.weight * (getattr(m, fan) * m.kernel_size[0] ** 2 / 2) ** 0.5).flatten()
            for m in network.modules()
            if isinstance(m, nn.Conv2d)
        ]
    )
    assert drawn.mean().item() == pytest.approx(0, abs=0.005)
    assert drawn.std().item() == pytest.approx(1, abs=0.005)
    assert not any(head[-1].bias.any() for head in network.heads)


def refused(**options: Any) -> Callable[[], object]:
    """A function that builds an MSDNet with wrong options, without the run-time type check."""
    return lambda: unchecked(MSDNet.__init__)(MSDNet.__new__(MSDNet), **{"num_classes": 3} | options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (refused(num_classes=0), "num_classes: expected a whole number from 1, got 0"),
        (refused(blocks=0), "blocks: expected a whole number from 1, got 0"),
        (refused(base=1.5), r"base: expected a whole number from 1, got 1\.5"),
        (refused(step=0), "step: expected a whole number from 1, got 0"),
        (refused(channels=-4), "channels: expected a whole number from 1, got -4"),
        (refused(growth="6"), "growth: expected a whole number from 1, got '6'"),
        (refused(factors=(1, 0)), "factors: expected a whole number from 1, got 0"),
        (refused(factors=()), r"factors: expected one number per scale, got \(\)"),
        (refused(step_mode="odd"), r"step_mode: expected one of \['even', 'lin_grow'\], got 'odd'"),
        (refused(initialization="he"), r"initialization: expected one of \['fan_out', 'fan_in'\], got 'he'"),
        (refused(growth=3, factors=(1, 1, 2)), r"growth: expected an even product .* \(1, 1, 2\), got 3"),
        (refused(reduction=0.0), r"reduction: expected above 0 and at most 1, got 0\.0"),
        (refused(reduction=math.nan), "reduction: expected above 0 and at most 1, got nan"),
        (refused(reduction=0.01), r"reduction: expected a fraction that keeps at least one of \d+ channels, got 0\.01"),
        (lambda: made()(images(2, 1, 32, 32)), r"images: expected \(batch, 3, .* for MSDNet, got \(2, 1, 32, 32\)"),
        (lambda: made()(images(2, 3, 15, 32)), r"at least 16×16 pixels .*, got \(2, 3, 15, 32\)"),
        (lambda: made(blocks=2).extract(1)(images(2, 3, 8, 8)), r"at least 16×16 pixels .*, got \(2, 3, 8, 8\)"),
        (lambda: made(blocks=2).extract(0), "k: expected an exit from 1 to 2, got 0"),
        (lambda: made(blocks=2).extract(3), "k: expected an exit from 1 to 2, got 3"),
    ],
)
def test_wrong_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    """The message must say what was expected and what came; it must not come from deep inside torch."""
    with pytest.raises(ValueError, match=message):
        make()


def test_odd_growth_of_the_finest_scale_is_accepted() -> None:
    """Only scales with a finer neighbour halve their growth, so 3 with factors 1, 2 and 4 is no error."""
    assert len(made(growth=3, blocks=2)(images(2, 3, 32, 32))) == 2
