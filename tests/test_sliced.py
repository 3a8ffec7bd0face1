"""Sliced networks: one pass, refinement and extraction give the same logits; thin exits never read wider slices."""

from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from long_mode import examples
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mtanytime.anytime import SliceCascade, SlicedResNet, SlicedResNeXt, SliceShape
from mtanytime.anytime.slice_layers import SliceConv, SliceNorm
from mtanytime.anytime.slice_pattern import TriangularConv, TriangularConv3x3, _Triangular
from mtanytime.anytime.stepping import SlicedNetwork
from mtanytime.measure.costs import exit_costs

KINDS = pytest.mark.parametrize("kind", ["resnext", "basic", "inverted", "cascade basic", "cascade inverted"])
TINY = {"width": 8, "bottleneck": 2, "branches": 4, "blocks": 1}


@st.composite
def shapes(draw: st.DrawFn, kind: str) -> dict[str, object]:
    """Small networks of every shape, with blocks of one kind."""
    count = draw(st.integers(1, 4))
    if kind != "resnext":
        stages = draw(st.lists(st.tuples(*[st.integers(1, 4)] * count), min_size=1, max_size=3))
        blocks = tuple(draw(st.integers(1, 2)) for _ in stages)
        stem_stride, expansion, squeeze = (draw(st.integers(*ends)) for ends in ((1, 2), (1, 3), (0, 2)))
        sizes = {"stem_stride": stem_stride, "expansion": expansion, "squeeze": squeeze}
        return {"kind": kind, "widths": tuple(stages), "blocks": blocks, "block": kind.split()[-1], **sizes}
    widths = draw(st.lists(st.integers(1, 5), min_size=count, max_size=count))
    branches = draw(st.lists(st.integers(1, 3), min_size=count, max_size=count))
    return {
        "kind": kind,
        "width": sum(widths),
        "bottleneck": draw(st.integers(1, 3)),
        "branches": sum(branches),
        "blocks": draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)),
        "slice_widths": widths,
        "slice_branches": branches,
        "stem": draw(st.sampled_from(["32x32", "224x224"])),
    }


def build(kind: str, classes: int, shape: dict[str, object]) -> SlicedNetwork:
    """A network of one of the kinds, with fresh weights."""
    torch.manual_seed(0)
    if kind == "resnext":
        return SlicedResNeXt(classes, **shape)
    network = SliceCascade if kind.startswith("cascade") else SlicedResNet
    return network(classes, SliceShape(**shape))


def made(shape: dict[str, object], training: bool) -> SlicedNetwork:
    """A network in float64 with batch norms that are not in their initial state."""
    network = build(shape["kind"], 3, {name: value for name, value in shape.items() if name != "kind"})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.double().train(training)


def some_images(network: SlicedNetwork) -> Tensor:
    """A few images, large enough for last maps of two pixels or more."""
    if not isinstance(network, SlicedResNeXt):  # whose strides do not round up
        return torch.randn(3, 3, 2 * network.trunk.stride, 2 * network.trunk.stride + 1, dtype=torch.float64)
    size = (8 if isinstance(network.trunk.stem, nn.Sequential) else 2) << (len(network.trunk.stages) - 1)
    return torch.randn(3, 3, size, size, dtype=torch.float64)


def state_of(network: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters and buffers."""
    return {name: value.clone() for name, value in network.state_dict().items()}


def counted(call: object) -> int:
    """Multiply-adds of a call, by torch's counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return counter.get_total_flops() // 2


@KINDS
@settings(max_examples=examples(12))
@given(st.data(), st.booleans())
def test_one_pass_refine_and_extract_agree(kind: str, data: st.DataObject, training: bool) -> None:
    """Three ways to compute the same logits and running statistics, in train and eval mode."""
    network = made(data.draw(shapes(kind)), training)
    images, start = some_images(network), state_of(network)
    whole = network(images)
    after = state_of(network)
    network.load_state_dict(start)
    stepped = list(network.refine(images))
    assert len(whole) == len(stepped) == network.exits
    for name, value in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(value, after[name], rtol=1e-10, atol=1e-10)
    network.load_state_dict(start)
    for k in range(1, network.exits + 1):
        alone = network.extract(k)
        torch.testing.assert_close(stepped[k - 1], whole[k - 1], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(alone(images), whole[k - 1], rtol=1e-10, atol=1e-10)
        assert alone.training == network.training


@KINDS
@settings(max_examples=examples(10))
@given(st.data(), st.booleans(), st.integers(1, 3))
def test_later_slices_do_not_matter(kind: str, data: st.DataObject, training: bool, k: int) -> None:
    """NaN in every parameter and statistic of later slices leaves earlier logits unchanged, bit for bit."""
    network = made(data.draw(shapes(kind)), training)
    k = min(k, network.exits)
    images, start = some_images(network), state_of(network)
    before = [network(images)[:k], list(network.refine(images))[:k]]
    network.load_state_dict(start)
    spoil_after(network, k)
    after = [network(images)[:k], list(network.refine(images))[:k]]
    assert all(torch.equal(a, b) for old, new in zip(before, after, strict=True) for a, b in zip(old, new, strict=True))
    if network.exits > k:
        assert network(images)[-1].isnan().all()


@torch.no_grad()
def spoil_after(network: SlicedNetwork, k: int) -> None:
    """Put NaN into all parameters and statistics of the slices after the k-th."""

    def spoil(module: nn.Module, start: int) -> None:
        for name, values in module.state_dict().items():
            if values.is_floating_point() and name in ("weight", "bias", "running_mean", "running_var"):
                values[start:] = torch.nan

    for head in network.heads[k:]:
        spoil(head, 0)
    if isinstance(network, SliceCascade):
        for layer in network.trunk.slices[k:].modules():
            spoil(layer, 0)
            for weight in layer.weights if isinstance(layer, TriangularConv) else ():
                weight.fill_(torch.nan)
        return
    if isinstance(network, SlicedResNet):
        for layer in network.trunk.modules():
            if isinstance(layer, SliceNorm | SliceConv):
                spoil(layer, sum(layer.slices[:k]))
            elif isinstance(layer, TriangularConv):
                spoil(layer, sum(layer.outputs[:k]))  # its bias
                for weight in layer.weights[k:]:
                    weight.fill_(torch.nan)
        return
    trunk, width, branches = network.trunk, sum(network.slice_widths[:k]), sum(network.slice_branches[:k])
    spoil(trunk.stem if isinstance(trunk.stem, nn.Conv2d) else trunk.stem[0], width)
    for i, stage in enumerate(trunk.stages):
        for block in stage:
            inner = sum(block.conv3.inputs[:k])
            assert inner == branches * block.conv2.weight.shape[1]
            spoil(block.bn1, width << i)
            for module in (block.bn2, block.conv2, block.bn3):
                spoil(module, inner)
            for convolution in (block.conv1, block.conv3):
                for weight in convolution.weights[k:]:
                    weight.fill_(torch.nan)
    spoil(trunk.norm, width << (len(trunk.stages) - 1))


def test_gradients_reach_what_is_there_and_nothing_else() -> None:
    """An exit's loss has gradients for the parameters of its slices; those of later slices get none or zero."""
    torch.manual_seed(0)
    network = SlicedResNeXt(3, width=6, bottleneck=2, branches=3, blocks=1)
    images = torch.randn(4, 3, 8, 8)
    network(images)[1].square().sum().backward()
    block = network.trunk.stages[1][0]
    for convolution in (block.conv1, block.conv3):
        assert all(weight.grad.abs().max() > 0 for weight in convolution.weights[:2])
        assert convolution.weights[2].grad.abs().max() == 0
    assert block.bn1.weight.grad[8:].abs().max() == 0
    assert [head.weight.grad is not None for head in network.heads] == [False, True, False]
    network.zero_grad()
    sum(logits.square().sum() for logits in network(images)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@KINDS
@settings(max_examples=examples(6))
@given(st.data())
def test_one_pass_and_refine_cost_no_more_than_the_widest(kind: str, data: st.DataObject) -> None:
    """A pass, or refining step by step, costs as much as the widest sub-network plus the heads of the thin exits."""
    network = made(data.draw(shapes(kind)), training=False)
    images = some_images(network)
    widest = counted(lambda: network.extract(network.exits)(images))
    heads = sum(head.weight.numel() for head in network.heads[:-1]) * len(images)
    assert counted(lambda: network(images)) == widest + heads
    assert counted(lambda: list(network.refine(images))) == widest + heads


def test_costs_at_the_papers_size() -> None:
    """At W = 64, b = 4, K = 8, n = 7 the forbidden blocks cost nothing, and everything is within 5 % of the widest."""
    network, images = SlicedResNeXt(10).eval(), torch.zeros(1, 3, 32, 32)
    costs = [counted(lambda k=k: network.extract(k)(images)) for k in range(1, 9)]
    for k, cost in enumerate(costs, 1):
        assert cost == by_hand(width=8 * k, slices=k, bottleneck=4, blocks=7)
    assert counted(lambda: network(images)) <= 1.05 * costs[-1]
    assert counted(lambda: list(network.refine(images))) <= 1.05 * costs[-1]


def by_hand(width: int, slices: int, bottleneck: int, blocks: int) -> int:
    """Multiply-adds of a sub-network of equal slices, counted on paper."""
    total = 3 * 9 * width * 32 * 32
    for stage in range(3):
        pixels, w, b = (32 >> stage) ** 2, (width // slices) << stage, bottleneck << stage
        pairs = slices * (slices + 1) // 2  # of a slice and one before it or itself
        total += blocks * pixels * (2 * pairs * w * b + slices * 9 * b * b)
    return total + 10 * (width << 2)


@pytest.mark.parametrize("stem_stride", [1, 2])
def test_costs_of_dense_blocks(stem_stride: int) -> None:
    """At four slices of 16, 32 and 64 channels, one block per stage, each exit costs what a count on paper says."""
    shape = SliceShape(((16,) * 4, (32,) * 4, (64,) * 4), stem_stride=stem_stride)
    costs = exit_costs(SlicedResNet(10, shape))
    side = 32 // stem_stride
    for k in range(1, 5):
        pairs = k * (k + 1) // 2  # of a slice and one before it or itself
        stages = [2 * 9 * 16 * 16, 9 * 16 * 32 + 9 * 32 * 32 + 16 * 32, 9 * 32 * 64 + 9 * 64 * 64 + 32 * 64]
        own = 3 * 9 * 16 * k * side**2 + 10 * 64 * k
        own += sum(pairs * stage * (side >> i) ** 2 for i, stage in enumerate(stages))
        earlier_heads = 10 * 64 * (k - 1) * k // 2
        assert costs.loc[k - 1, ["macs_own_head", "macs"]].tolist() == [own, own + earlier_heads]


def test_costs_of_a_cascade() -> None:
    """Four slices of 8, 16 and 32 channels, one inverted residual per stage: each exit costs a count on paper."""
    shape = SliceShape(((8,) * 4, (16,) * 4, (32,) * 4), 1, "inverted", 1, 4)
    costs = exit_costs(SliceCascade(10, shape))
    own = 0
    for k in range(1, 5):
        own += 3 * 9 * 8 * 32**2 + (8 * k * 32 + 9 * 32 + 32 * 8) * 32**2  # the first stage
        for width, side in ((8, 32), (16, 16)):  # the others begin with a stride: half the side, twice the channels
            inner, half = 4 * width, (side // 2) ** 2
            own += width * k * inner * side**2 + 9 * inner * half
            own += (inner + 2 * width * (k - 1) + width) * 2 * width * half  # with the shortcut's 1×1
        heads = [10 * 32 * j for j in range(1, k + 1)]
        assert costs.loc[k - 1, ["macs_own_head", "macs"]].tolist() == [own + heads[-1], own + sum(heads)]


@pytest.mark.parametrize("block", ["basic", "inverted"])
def test_a_cascade_reads_finished_stages(block: str) -> None:
    """The second slice's first block depends on the last block of the first slice; in a `SlicedResNet` it does not."""
    shape = SliceShape(((4, 4),), 2, block)
    for kind, depends in ((SliceCascade, True), (SlicedResNet, False)):
        torch.manual_seed(0)
        network, seen = kind(3, shape).eval(), []
        parts = network.trunk.slices if depends else [network.trunk]
        last_of_first = parts[0].stages[0][1]
        parts[-1].stages[0][0].register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        images = torch.randn(2, 3, 8, 8)
        network(images)
        for parameter in last_of_first.parameters():
            parameter.data.add_(1.0)
        network(images)
        assert torch.equal(*seen) != depends


def test_a_cascade_becomes_deeper() -> None:
    """The longest path to an exit grows by the blocks of one stage with every slice, as notebook 04 says."""
    shape = SliceShape(((4,) * 3, (6,) * 3), 2, "inverted")

    def longest(node: object, known: dict) -> int:
        """Depthwise convolutions on the longest path to a node of autograd's graph."""
        if node not in known:
            before = [longest(other, known) for other, _ in node.next_functions if other is not None]
            known[node] = max(before, default=0) + (getattr(node, "_saved_groups", 1) > 1)
        return known[node]

    images = torch.randn(2, 3, 8, 8)
    paths = [longest(SliceCascade(3, shape).extract(k)(images).grad_fn, {}) for k in (1, 2, 3)]
    assert paths == [2 * (2 + k - 1) for k in (1, 2, 3)]


def test_one_slice_of_a_cascade_is_the_usual_network() -> None:
    """Without earlier slices nothing is read beside, so both kinds of network compute the same."""
    for block in ("basic", "inverted"):
        shape = SliceShape(((4,), (6,)), 2, block, 1, 3, 2)
        torch.manual_seed(0)
        cascade, usual = SliceCascade(3, shape), SlicedResNet(3, shape)
        tensors = cascade.state_dict().values()
        places = list(usual.state_dict().values())
        for place, value in zip(places, tensors, strict=True):
            place.copy_(value.view_as(place))
        images = torch.randn(2, 3, 9, 8)
        torch.testing.assert_close(cascade(images)[0], usual(images)[0])


def test_answers_come_one_by_one() -> None:
    """An early answer is useful only if it computes one slice and no more."""
    network, images = SlicedResNeXt(10, width=16, branches=4, blocks=1).eval(), torch.zeros(1, 3, 32, 32)
    assert counted(lambda: next(network.refine(images))) == counted(lambda: network.extract(1)(images))


@pytest.mark.parametrize("size", [(2, 3), (5, 4), (9, 8)])
def test_triangular_convolution_is_a_masked_one(size: tuple[int, int]) -> None:
    """It equals an ordinary 1×1 convolution whose absent weights are zero, and so do its first two derivatives.

    Maps of few pixels, more, and many are computed in three ways.
    """
    torch.manual_seed(0)
    inputs, outputs = (2, 1, 3), (1, 2, 2)
    layer = TriangularConv(inputs, outputs).double()
    maps = torch.randn(2, 6, *size, dtype=torch.float64)
    dense = torch.zeros(5, 6, dtype=torch.float64)
    for weight, stop in zip(layer.weights, accumulate(outputs), strict=True):
        dense[stop - len(weight) : stop, : weight.shape[1]] = weight.detach()
    torch.testing.assert_close(layer(maps), nn.functional.conv2d(maps, dense[:, :, None, None]))
    channels_last = maps.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(channels_last), layer(maps))
    taken = [maps.flatten(2).requires_grad_(), *(weight.detach().requires_grad_() for weight in layer.weights)]
    fast = maps.numel() > 500  # random directions in place of every number
    assert torch.autograd.gradcheck(_Triangular.apply, taken, fast_mode=fast)
    assert torch.autograd.gradgradcheck(_Triangular.apply, taken, fast_mode=fast)


def test_strided_triangular_convolution_is_a_masked_one() -> None:
    """A dense 3×3 one, too, for maps of odd sizes, and its slices one by one are bit for bit those of all together."""
    torch.manual_seed(0)
    inputs, outputs = (2, 1, 3), (1, 2, 2)
    for stride in (1, 2):
        layer = TriangularConv3x3(inputs, outputs, stride).double()
        maps = torch.randn(2, 6, 5, 4, dtype=torch.float64)
        dense = torch.zeros(5, 6, 3, 3, dtype=torch.float64)
        for weight, stop in zip(layer.weights, accumulate(outputs), strict=True):
            dense[stop - len(weight) : stop, : weight.shape[1]] = weight.detach()
        whole = layer(maps)
        torch.testing.assert_close(whole, nn.functional.conv2d(maps, dense, stride=stride, padding=1))
        for j, part in enumerate(whole.split(outputs, dim=1)):
            assert torch.equal(layer.output_slice(maps[:, : sum(inputs[: j + 1])], j), part)


@pytest.mark.parametrize("side", [5, 6])
def test_depthwise_stride_in_bfloat16(side: int) -> None:
    """A stride is taken in another way when a processor trains in bfloat16: same values, same gradients."""
    torch.manual_seed(0)
    layer, maps = SliceConv(None, (4, 4), 2), torch.randn(2, 8, side, side)
    found = []
    for rough in (False, True):
        layer.zero_grad()
        taken = maps.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=rough):
            out = layer(taken)
        out.float().square().sum().backward()
        found.append([out.float(), taken.grad, layer.weight.grad])
    for exact, rounded in zip(*found, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.05)


@KINDS
def test_extract_can_be_exported(kind: str) -> None:
    """Deployment needs torch.export to accept an extracted exit as it is."""
    shape = {"widths": ((4, 2, 2), (4, 4, 4)), "block": kind.split()[-1], "squeeze": 2}
    network = made({"kind": kind} | (TINY if kind == "resnext" else shape), training=False).float()
    images, alone = torch.randn(2, 3, 8, 8), network.extract(2)
    exported = torch.export.export(alone, (images,)).module()
    torch.testing.assert_close(exported(images), alone(images))


@KINDS
def test_bfloat16(kind: str) -> None:
    """Under autocast, products are computed in bfloat16, and gradients have the weights' own precision."""
    shape = {"widths": ((4, 4), (8, 8)), "block": kind.split()[-1], "squeeze": 2}
    network = build(kind, 5, TINY if kind == "resnext" else shape)
    images = torch.randn(4, 3, 8, 8)
    exact = network(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(images)
        sum(logits.float().sum() for logits in rough).backward()
    assert rough[0].dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())
    torch.testing.assert_close(rough[-1].float(), exact[-1], rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 60}, "width: expected a multiple of 8, the number of slices, got 60; pass slice_widths"),
        ({"slice_widths": (32, 16)}, r"slice_widths: expected sizes that add up to width = 64, got \(32, 16\)"),
        (
            {"slice_widths": (30, 20, 14)},
            "branches: expected a multiple of 3, .*, got 8; pass slice_branches",
        ),
        (
            {"slice_widths": (32, 32), "slice_branches": (4, 2, 2)},
            r"slice_branches: expected 2 slices, got \(4, 2, 2\)",
        ),
        ({"slice_widths": (64, 0)}, r"slice_widths: expected whole numbers from 1, got \(64, 0\)"),
        ({"slice_branches": (4, 5)}, r"slice_branches: expected sizes that add up to branches = 8, got \(4, 5\)"),
        ({"bottleneck": 0}, "bottleneck: expected a whole number from 1, got 0"),
    ],
)
def test_bad_settings(settings: dict, message: str) -> None:
    """Slices that do not add up to the network are refused, with the argument's name."""
    with pytest.raises(ValueError, match=message):
        SlicedResNeXt(**{"num_classes": 10, **settings})


@pytest.mark.usefixtures("unchecked")
def test_bad_calls() -> None:
    """Images that the network cannot read, and exits that do not exist, are refused with a clear message."""
    network = SlicedResNeXt(5, width=8, bottleneck=2, branches=4, blocks=1)
    with pytest.raises(ValueError, match=r"images: expected \(batch, 3, .* for SlicedResNeXt, got \(2, 1, 8, 8\)"):
        network(torch.rand(2, 1, 8, 8))
    with pytest.raises(ValueError, match="at least 4×4 pixels"):
        next(network.refine(torch.rand(2, 3, 2, 2)))
    state = torch.get_rng_state()
    network.extract(np.int64(4))  # as a table holds it
    assert torch.equal(torch.get_rng_state(), state)  # a copy needs no random weights
    assert SlicedResNeXt(5, width=8, branches=2, slice_widths=np.array([4, 4])).exits == 2
    with pytest.raises(ValueError, match="k: expected an exit from 1 to 4, got 5"):
        network.extract(5)


@pytest.mark.parametrize("missing", ["statistics", "scale"])
def test_norms_without_statistics_or_scale(missing: str) -> None:
    """A stand-alone exit has them neither, and answers as the exit does."""
    network = SlicedResNet(3, SliceShape(((4, 4), (8, 8)), squeeze=2))
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d) and missing == "statistics":
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
        elif isinstance(norm, nn.BatchNorm2d):
            norm.affine, norm.weight, norm.bias = False, None, None
    network.eval()
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    for k, logits in enumerate(network(images), 1):
        torch.testing.assert_close(network.extract(k).eval()(images), logits)
