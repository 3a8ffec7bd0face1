"""Predictions within budgets, by deadlines and by early exit equal those of the network itself."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from typechecker import unchecked

from mtanytime.anytime import (
    AnytimePredictor,
    InclusiveResNeXt,
    MSDNet,
    SliceCascade,
    SlicedResNet,
    SlicedResNeXt,
    SliceShape,
    choose_thresholds,
    exits_taken,
    fold_batch_norms,
    inference,
)
from mtanytime.anytime.network import AnytimeNetwork
from mtanytime.anytime.slice_pattern import TriangularConv
from mtanytime.backbones import Normalized
from mtanytime.measure.costs import exit_costs

KINDS = {
    "sliced": lambda: SlicedResNeXt(5, width=12, bottleneck=2, branches=3, blocks=1),
    "inclusive": lambda: InclusiveResNeXt(5, width=8, bottleneck=2, branches=3, blocks=1),
    "msdnet": lambda: MSDNet(5, blocks=3, base=1, step=1),
    "basic": lambda: SlicedResNet(5, SliceShape(((4, 2, 2), (6, 4, 4)))),
    "inverted": lambda: SlicedResNet(5, SliceShape(((4, 2, 2), (6, 4, 4)), 2, "inverted", 1, 2, 2)),
    "cascade": lambda: SliceCascade(5, SliceShape(((4, 2, 2), (6, 4, 4)), 2, "inverted", 1, 2, 2)),
}


def trained_like(kind: str, dtype: torch.dtype = torch.float64) -> AnytimeNetwork:
    """A network in train mode with batch norms that are not in their initial state."""
    torch.manual_seed(0)
    network = KINDS[kind]()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return network.to(dtype)


def some_images(count: int = 4) -> Tensor:
    """Float images in [0, 1]."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norms(network: nn.Module) -> int:
    """The number of batch norms in a network."""
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_folding_is_exact(kind: str) -> None:
    """Folding must not change the logits, nor the original network."""
    network = trained_like(kind)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    wanted = network.eval()(some_images())
    network.train()
    folded = fold_batch_norms(network)
    torch.testing.assert_close(folded(some_images()), wanted, rtol=1e-10, atol=1e-10)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    for k in range(1, network.exits + 1):
        for dense in (False, True):
            alone = fold_batch_norms(network.extract(k), dense=dense)
            torch.testing.assert_close(alone(some_images()), wanted[k - 1], rtol=1e-10, atol=1e-10)
        assert not any(isinstance(part, TriangularConv) for part in alone.modules())


def test_what_is_folded() -> None:
    """Two of three norms of a pre-activation block fold, elsewhere all; a sliced network still refines and extracts."""
    sliced = trained_like("sliced")
    folded = fold_batch_norms(sliced)
    assert (norms(sliced), norms(folded)) == (3 * 3 + 1, 3 + 1)
    wanted = sliced.eval()(some_images())
    torch.testing.assert_close(list(folded.refine(some_images())), wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded.extract(2)(some_images()), wanted[1], rtol=1e-10, atol=1e-10)
    for kind in ("msdnet", "basic", "inverted"):
        assert norms(fold_batch_norms(trained_like(kind))) == 0


def test_norms_that_cannot_be_folded_stay() -> None:
    """A norm without running statistics, or after something that is not a convolution, must stay."""
    free = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.BatchNorm2d(4))
    assert norms(fold_batch_norms(free)) == 2
    plain = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False)).double().eval()
    torch.testing.assert_close(fold_batch_norms(plain)(some_images()), plain(some_images()))


class ActivatedNorm(nn.BatchNorm2d):
    """A norm with its activation, as some libraries have them."""

    def forward(self, maps: Tensor) -> Tensor:
        """ReLU of the norm."""
        return super().forward(maps).relu()


def test_norms_that_do_more_stay() -> None:
    """A subclass of batch norm may activate, too, which its convolution cannot."""
    network = nn.Sequential(nn.Conv2d(3, 4, 1), ActivatedNorm(4), nn.Conv2d(4, 2, 1)).double().eval()
    torch.testing.assert_close(fold_batch_norms(network)(some_images()), network(some_images()))


def test_compiled_networks_keep_their_normalization() -> None:
    """`torch.compile` and DataParallel wrap a `Normalized`, which must not be lost inside of them."""
    network = Normalized(trained_like("sliced"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).double().eval()
    wanted = network(some_images())
    for wrapped in (torch.compile(network), nn.DataParallel(network)):
        predictor = AnytimePredictor(wrapped, (3, 16, 16))
        torch.testing.assert_close(predictor.predict(some_images(), 3, "exit").logits, wanted[2])
        pd.testing.assert_frame_equal(exit_costs(wrapped, (3, 16, 16)), exit_costs(network, (3, 16, 16)))


@pytest.mark.parametrize("kind", KINDS)
def test_predict_takes_the_widest_exit_in_the_budget(kind: str) -> None:
    """For budgets in multiply-adds, in milliseconds of a given table and as an exit, the logits are the network's."""
    network = trained_like(kind)
    predictor = AnytimePredictor(network, (3, 16, 16))
    own = exit_costs(network, (3, 16, 16))["macs_own_head"].tolist()
    assert predictor.costs["macs"].tolist() == own
    wanted = network.eval()(some_images())
    for k in range(1, network.exits + 1):
        for budget in (own[k - 1], own[k - 1] + 1):
            answer = predictor.predict(some_images(), budget)
            assert answer.exit == k
            torch.testing.assert_close(answer.logits, wanted[k - 1], rtol=1e-10, atol=1e-10)
        assert predictor.predict(some_images(), k, unit="exit").exit == k
    table = pd.DataFrame({"exit": [3, 1, 2], "macs": own, "latency_ms": [9.0, 2.0, 4.0]})
    timed = AnytimePredictor(network, (3, 16, 16), table)
    assert [timed.choose(ms, "ms") for ms in (2, 3.9, 4, 100)] == [1, 1, 2, 3]


def test_times_are_measured_when_asked_for() -> None:
    """A budget in milliseconds needs no table; an hour is enough for the last exit."""
    predictor = AnytimePredictor(trained_like("sliced", torch.float32), (3, 16, 16))
    assert "latency_ms" not in predictor.costs
    assert predictor.choose(3.6e6, "ms") == 3
    assert (predictor.costs["latency_ms"] > 0).all()
    assert predictor.predict(some_images().float()[:1], 3.6e6, "ms").exit == 3
    with pytest.raises(ValueError, match=r"images: expected 1, as many as the times were .*, got 2; .* batch=2"):
        predictor.predict(some_images().float()[:2], 3.6e6, "ms")


def test_normalized_network() -> None:
    """Every kind of prediction must apply the network's normalization."""
    network = Normalized(trained_like("sliced"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)).double()
    wanted = network.eval()(some_images())
    predictor = AnytimePredictor(network, (3, 16, 16))
    torch.testing.assert_close(predictor.predict(some_images(), 3, "exit").logits, wanted[2])
    torch.testing.assert_close(predictor.answer_by(some_images(), 1e6).logits, wanted[2])
    torch.testing.assert_close(predictor.leave_early(some_images(), [2.0, 2.0, 0.0])[0], wanted[2])


def test_costs_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are measured once for this machine; those of another machine or network are refused."""
    file, network = tmp_path / "costs.csv", trained_like("basic")
    first = AnytimePredictor(network, (3, 16, 16), file)
    assert not file.exists()
    assert first.choose(1e9, "ms") == 3
    monkeypatch.setattr(inference, "time_in_turn", None)
    again = AnytimePredictor(network, (3, 16, 16), str(file))
    pd.testing.assert_frame_equal(again.costs, first.costs)
    assert again.choose(1e9, "ms") == 3

    def refused(error: str, kind: str = "basic", **settings: int) -> None:
        with pytest.raises(ValueError, match=f"costs.csv: expected {error}"):
            AnytimePredictor(trained_like(kind), (3, 16, 16), file, **settings)

    refused(r"the table of this network, \[.*\] multiply-adds, got exits of", "inverted")
    refused(r"times of batch 2, got \[1\]; delete the file", batch=2)
    with monkeypatch.context() as patched:
        patched.setattr(inference, "processor", lambda device: "an abacus")
        refused(r"times of processor an abacus, got \[")
    kept = file.read_text()
    file.write_text(kept.replace(",cpu,", ",cuda,"))
    refused(r"times of device cpu, got \['cuda'\]")
    file.write_text(kept.replace("float64", "bfloat16"))
    refused(r"times of dtype float64, got \['bfloat16'\]")
    file.write_text("exit,macs\n1,5\n")
    refused("columns exit, macs, latency_ms, batch, threads, processor, device, dtype")
    file.write_text("")
    refused("a CSV table")


def test_times_are_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow moment of the machine must not make one exit look slow; the caller's random numbers stay."""
    network, seen = trained_like("basic"), []

    def timed(calls: list, **settings: int) -> np.ndarray:
        seen.extend(call() for call in calls)
        return np.array([[1.0, 2.0, 9.0], [2.0, 4.0, 9.0], [3.0, 5.0, 7.0]])

    monkeypatch.setattr(inference, "time_in_turn", timed)
    state = torch.get_rng_state()
    predictor = AnytimePredictor(network, (3, 16, 16), batch=2)
    assert predictor.choose(4.5, "ms") == 2
    assert predictor.costs["latency_ms"].tolist() == [2, 4, 5]
    with pytest.raises(
        ValueError, match=r"budget: expected at least 2 ms per batch, the cost of the cheapest exit, got 1"
    ):
        predictor.choose(1.5, "ms")
    assert torch.get_rng_state().equal(state)
    with torch.no_grad():
        wanted = network.eval()(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double())
    for logits, expected in zip(seen, wanted, strict=True):
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-6)


def test_costs_that_are_no_costs(tmp_path: Path) -> None:
    """A damaged table would choose an exit at random, and a missing folder be noticed only after the timing."""
    network, file = trained_like("basic"), tmp_path / "costs.csv"
    AnytimePredictor(network, (3, 16, 16), file).choose(1e9, "ms")
    table = pd.read_csv(file)
    for value, got in (("quick", "'quick'"), (math.nan, "nan in the row of exit 2"), (-1.0, "-1.0 in the row")):
        bad = table.astype({"latency_ms": object})
        bad.loc[1, "latency_ms"] = value
        with pytest.raises(ValueError, match=f"^costs, column latency_ms: expected .*numbers.*, got {got}"):
            AnytimePredictor(network, (3, 16, 16), bad)
        bad.to_csv(file, index=False)
        with pytest.raises(ValueError, match=r"costs.csv, column latency_ms: expected .*numbers.*, got"):
            AnytimePredictor(network, (3, 16, 16), file)
    with pytest.raises(ValueError, match="costs: expected a file in a folder that exists, got"):
        AnytimePredictor(network, (3, 16, 16), tmp_path / "none" / "costs.csv")


def test_costs_are_of_the_images_that_come() -> None:
    """A network that first resizes its images costs as much as on the resized images."""
    network = Normalized(trained_like("sliced"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size=16).double()
    costs = AnytimePredictor(network, (3, 64, 64)).costs
    assert costs["macs"].tolist() == exit_costs(network, (3, 64, 64))["macs_own_head"].tolist()
    assert costs["macs"].tolist() == exit_costs(network.network, (3, 16, 16))["macs_own_head"].tolist()


def test_times_that_were_measured_for_another_batch() -> None:
    """Also where only the multiply-adds were given."""
    network = trained_like("sliced")
    predictor = AnytimePredictor(network, (3, 16, 16), exit_costs(network, (3, 16, 16)))
    with pytest.raises(ValueError, match="images: expected 1, as many as the times were measured for, got 4; make"):
        predictor.predict(some_images(4), 1e6, "ms")
    assert predictor.predict(some_images(1), 1e6, "ms").exit == 3


def test_costs_from_a_part_of_a_table() -> None:
    """A column's labels need not begin with 0."""
    outputs = torch.randn(2, 50, 5, generator=torch.Generator().manual_seed(0))
    costs = pd.Series([1.0, 2.0, 1.0, 3.0])
    assert choose_thresholds(outputs, costs[2:], 2.0) == choose_thresholds(outputs, [1.0, 3.0], 2.0)


def test_images_that_do_not_fit_are_refused() -> None:
    """Another image size has other costs, and bytes are not in [0, 1]: neither may be accepted silently."""
    predictor = AnytimePredictor(trained_like("sliced"), (3, 16, 16))
    with pytest.raises(ValueError, match=r"images: expected .* of shape \(batch, 3, 16, 16\), got \(4, 3, 32, 32\)"):
        predictor.predict(torch.rand(4, 3, 32, 32), 1e9)
    with pytest.raises(ValueError, match=r"got \(3, 16, 16\); for a single image, images\[None\]"):
        unchecked(AnytimePredictor.predict)(predictor, torch.rand(3, 16, 16), 1e9)
    assert predictor.predict(torch.rand(4, 3, 32, 32), 1, "exit").exit == 1
    with pytest.raises(ValueError, match=r"images: expected a tensor of floats in \[0, 1\], got torch.uint8"):
        unchecked(AnytimePredictor.predict)(predictor, torch.zeros(4, 3, 16, 16, dtype=torch.uint8), 1, "exit")
    with pytest.raises(ValueError, match="budget: expected a number, got None"):
        unchecked(AnytimePredictor.choose)(predictor, None)


def test_images_are_taken_to_the_network() -> None:
    """Images of another dtype or device than the network's are converted, as a trainer does."""
    network = trained_like("sliced")
    answer = AnytimePredictor(network, (3, 16, 16)).predict(some_images().float(), 1, "exit")
    assert answer.logits.dtype == torch.float64


@pytest.mark.parametrize("kind", ["sliced", "msdnet"])
def test_answer_by(kind: str) -> None:
    """No time gives the first answer and unlimited time the last; `on_answer` gets every answer."""
    network = trained_like(kind)
    predictor, wanted = AnytimePredictor(network, (3, 16, 16)), network.eval()(some_images())
    first = predictor.answer_by(some_images(), 0)
    assert first.exit == 1
    torch.testing.assert_close(first.logits, wanted[0])
    seen = []
    last = predictor.answer_by(some_images(), 1e9, on_answer=seen.append)
    assert last.exit == 3
    assert [answer.exit for answer in seen] == [1, 2, 3]
    torch.testing.assert_close([answer.logits for answer in seen], wanted)
    assert sorted(times := [answer.milliseconds for answer in seen]) == times


def test_a_step_that_would_end_late_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """With costs 10, 20, 30 and 10 ms for the first exit, 25 ms are enough for the second exit only."""
    table = pd.DataFrame({"exit": [1, 2, 3], "macs": [10, 20, 30]})
    predictor = AnytimePredictor(trained_like("sliced"), (3, 16, 16), table)
    clock = iter([0.0, 0.010, 0.020, 0.030])
    monkeypatch.setattr("mtanytime.anytime.inference.time.perf_counter", lambda: next(clock))
    answer = predictor.answer_by(some_images(), 25)
    assert (answer.exit, answer.milliseconds) == (2, pytest.approx(20))


@pytest.mark.parametrize("kind", ["sliced", "msdnet"])
def test_leave_early_is_what_the_whole_network_would_say(kind: str) -> None:
    """Refining some images gives the same logits as the whole batch; each leaves at its first confident exit."""
    network = trained_like(kind)
    images = some_images(16)
    outputs = torch.stack(network.eval()(images))
    confidence = outputs.softmax(dim=2).amax(dim=2)
    thresholds = [*confidence[:2].quantile(0.5, dim=1).tolist(), 0.0]  # between two images: no ties
    taken = exits_taken(outputs, thresholds)
    assert set(taken.tolist()) == {1, 2, 3}
    logits, exits = AnytimePredictor(network, (3, 16, 16)).leave_early(images, thresholds)
    assert torch.equal(exits, taken)
    torch.testing.assert_close(logits, outputs[taken - 1, torch.arange(16)], rtol=1e-10, atol=1e-10)
    assert AnytimePredictor(network, (3, 16, 16)).leave_early(images, [0.0, 0.0, 0.0])[1].tolist() == [1] * 16


@settings(max_examples=50)
@given(st.integers(1, 4), st.integers(1, 60), st.floats(0, 1), st.integers(0, 9))
def test_thresholds_keep_the_budget(exits: int, count: int, generous: float, seed: int) -> None:
    """On the data they were chosen on, the mean cost is within the budget; a large budget keeps all to the end."""
    outputs = torch.from_numpy(np.random.RandomState(seed).standard_normal((exits, count, 3)))
    costs = [1.0, 2.5, 4.0, 9.0][:exits]
    budget = costs[0] + generous * (costs[-1] - costs[0])
    thresholds = choose_thresholds(outputs, costs, budget)
    taken = exits_taken(outputs, thresholds)
    assert thresholds[-1] == 0
    assert torch.tensor(costs)[taken - 1].mean() <= budget + 1e-9
    assert exits_taken(outputs, choose_thresholds(outputs, costs, 1e6)).tolist() == [exits] * count


def test_thresholds_follow_the_geometric_shares() -> None:
    """With many images, exits answer in the proportions q·(1 - q)^(k-1) that meet the budget; by hand, 4 : 2 : 1."""
    outputs = torch.randn(3, 7000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    budget = (4 * 1 + 2 * 2 + 1 * 3) / 7
    taken = exits_taken(outputs, choose_thresholds(outputs, [1, 2, 3], budget))
    assert torch.bincount(taken)[1:].tolist() == pytest.approx([4000, 2000, 1000], abs=2)


def test_bad_requests() -> None:
    """Each impossible request is refused with a message that says what is possible."""
    predictor = AnytimePredictor(trained_like("sliced"), (3, 16, 16))
    least = int(predictor.costs["macs"][0])
    message = rf"budget: expected at least {least:g} multiply-adds per image, .*, got {least - 1:g}$"
    with pytest.raises(ValueError, match=message):
        predictor.predict(some_images(), least - 1)
    with pytest.raises(ValueError, match="budget: expected an exit from 1 to 3, got 4"):
        predictor.choose(4, "exit")
    with pytest.raises(ValueError, match="deadline: expected 0 ms or more, got -1"):
        predictor.answer_by(some_images(), -1)
    with pytest.raises(ValueError, match=r"thresholds: expected 3, one per exit, got \[0\.5, 0\.0\]"):
        predictor.leave_early(some_images(), [0.5, 0.0])
    with pytest.raises(ValueError, match=r"network: expected one with refine, .*, got one without it"):
        AnytimePredictor(trained_like("inclusive"), (3, 16, 16)).answer_by(some_images(), 10)
    with pytest.raises(ValueError, match="network: expected an AnytimeNetwork, got a Conv2d"):
        AnytimePredictor(nn.Conv2d(3, 3, 1))
    with pytest.raises(ValueError, match=r"costs: expected columns exit and macs, got \['exit'\]"):
        AnytimePredictor(trained_like("sliced"), costs=pd.DataFrame({"exit": [1, 2, 3]}))
    with pytest.raises(ValueError, match=r"costs: expected a row for each exit of \[1, 2, 3\], got \[1, 2\]"):
        AnytimePredictor(trained_like("sliced"), costs=pd.DataFrame({"exit": [1, 2], "macs": [1, 2]}))
    outputs = torch.zeros(2, 4, 3)
    with pytest.raises(ValueError, match="budget: expected at least 5, the cost of the first exit, got 4"):
        choose_thresholds(outputs, [5, 6], 4)
    with pytest.raises(ValueError, match=r"costs: expected 2 costs, increasing from exit to exit, got \[5.0, 5.0\]"):
        choose_thresholds(outputs, [5, 5], 6)
    with pytest.raises(ValueError, match=r"thresholds: expected 2, one per exit, got \[0\.5\]"):
        exits_taken(outputs, [0.5])
    steps = trained_like("sliced").refine(some_images())
    next(steps)
    with pytest.raises(ValueError, match=r"keep: expected torch.bool \(4,\), one per image, got torch.bool \(3,\)"):
        steps.send(torch.ones(3, dtype=torch.bool))


def test_thresholds_of_logits_without_a_softmax() -> None:
    """A confidence that is NaN would let every image leave at that exit, or none."""
    outputs = torch.zeros(3, 10, 4)
    outputs[1, 2, 0] = math.nan
    with pytest.raises(ValueError, match="outputs: expected logits that have a softmax, got some that are NaN or inf"):
        choose_thresholds(outputs, [1, 2, 3], 2)
    choose_thresholds(torch.zeros(3, 10, 4).index_fill(2, torch.tensor([1]), -math.inf), [1, 2, 3], 2)
