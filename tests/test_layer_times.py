"""Times of layers and ways to run networks: counts by torch, a clock of the test, the same answers in every runtime."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from mtanytime import measure
from mtanytime.anytime import SlicedResNet, SliceShape, fold_batch_norms
from mtanytime.measure import layer_times, runtimes
from mtanytime.measure.layer_times import Layer, LayerClock, usual_layers
from mtanytime.measure.runtimes import prepare, time_in_turn, write_onnx


def network() -> nn.Module:
    """The first of two exits of a tiny sliced network."""
    torch.manual_seed(0)
    return fold_batch_norms(SlicedResNet(3, SliceShape(((4, 4), (8, 8)), squeeze=2)).extract(2))


@pytest.mark.parametrize("layer", [*usual_layers([8], [5]), Layer(3, 8, 7, stride=2), Layer(6, 4, 5, 1, 2)], ids=str)
def test_multiply_adds_are_those_of_the_counter(layer: Layer) -> None:
    """For every kind of layer, with odd maps and strides, the table's count is torch's of the layer itself."""
    assert layer.macs == measure.macs(layer.module(), (layer.inputs, layer.side, layer.side))


def test_usual_layers_are_of_every_kind() -> None:
    """Each kind comes with each number of channels and each size of the maps."""
    layers = usual_layers([16, 32], [8])
    assert [layer.kind for layer in layers[::2]] == ["dense 3×3", "groups of 4", "depthwise", "dense 1×1"]
    assert [layer.module().groups for layer in layers] == [1, 1, 4, 8, 16, 32, 1, 1]


def test_a_table_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds are the lower quartile of the rounds; speed is multiply-adds of the whole batch by that time."""
    monkeypatch.setattr(layer_times, "time_in_turn", lambda calls, *_, **__: np.array([[4.0, 1, 2, 3, 9]] * len(calls)))
    layers = [Layer(8, 4, 6), Layer(8, 8, 6, groups=8)]
    table = layer_times.layer_times(layers, (1, 3), ("eager", "channels-last"), progress=False)
    assert table[["kind", "batch", "runtime"]].to_numpy().tolist() == [
        [kind, batch, runtime]
        for batch in (1, 3)
        for kind in ("dense 3×3", "depthwise")
        for runtime in ("eager", "channels-last")
    ]
    assert (table["ms"] == 2).all()
    assert table["threads"].unique().tolist() == [torch.get_num_threads()]
    by_hand = [8 * 4 * 9 * 36, 8 * 4 * 9 * 36, 8 * 9 * 36, 8 * 9 * 36]
    assert table["macs"].tolist() == by_hand * 2
    assert table["gmacs_per_s"].tolist() == pytest.approx([m * b / 0.002 / 1e9 for b in (1, 3) for m in by_hand])


def test_calls_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of one run of each call; those that warm up are not counted."""
    now, made = [0.0], []

    def call(name: str, milliseconds: list[float]) -> runtimes.Call:
        left = iter(milliseconds)

        def run() -> None:
            made.append(name)
            now[0] += next(left) / 1000

        return run

    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: now[0])
    times = time_in_turn([call("a", [50, 1, 2]), call("b", [60, 3, 4])], repeats=2, warmup=1)
    assert made == ["a", "b"] * 3
    assert times == pytest.approx(np.array([[1, 2], [3, 4]]))
    with pytest.raises(ValueError, match="repeats: expected a number >= 1, got 0"):
        time_in_turn([], repeats=0)
    with pytest.raises(ValueError, match="warmup: expected a number >= 0, got -1"):
        time_in_turn([], warmup=-1)


@pytest.mark.parametrize("runtime", ["eager", "channels-last", "onnxruntime"])
def test_runtimes_give_the_same_answer(runtime: str) -> None:
    """Each runs the network on the images; the network itself stays in its mode and memory layout."""
    if runtime == "onnxruntime":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    net, images = network().train(), torch.rand(3, 3, 9, 9)
    answer = prepare(net, images, runtime)()
    answer = torch.from_numpy(answer[0]) if isinstance(answer, list) else answer
    torch.testing.assert_close(answer, net.eval()(images).detach(), rtol=1e-4, atol=1e-5)
    assert all(p.is_contiguous() for p in net.parameters())


def test_an_exit_as_a_file(tmp_path: Path) -> None:
    """A written exit answers as the exit does, for batches of any size."""
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = network().eval()
    write_onnx(net, tmp_path / "exit.onnx", (3, 8, 8))
    session = onnxruntime.InferenceSession(str(tmp_path / "exit.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 2, 5):
        images = torch.rand(batch, 3, 8, 8)
        logits = torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])
        torch.testing.assert_close(logits, net(images).detach(), rtol=1e-4, atol=1e-5)


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The error says what to install."""
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'mtanytime\[export\]'"):
        write_onnx(network(), tmp_path / "exit.onnx")
    with pytest.raises(ImportError, match=r"onnxruntime: .* pip install 'mtanytime\[export\]'"):
        prepare(network(), torch.rand(1, 3, 8, 8), "onnxruntime")
    with pytest.raises(ValueError, match=r"runtime: expected one of \['eager', .*\], got 'tvm'"):
        prepare(network(), torch.rand(1, 3, 8, 8), "tvm")


def test_each_layer_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times are kept, in a table too, from which another clock goes on; another batch size is another time."""
    measured: list[Layer] = []

    def times(layers: list[Layer], batches: tuple[int, ...], *_: object) -> pd.DataFrame:
        measured.extend(layers)
        sizes = [{**vars(layer), "batch": batches[0], "runtime": "eager"} for layer in layers]
        return pd.DataFrame(sizes).assign(threads=torch.get_num_threads(), ms=[float(one.outputs) for one in layers])

    monkeypatch.setattr(layer_times, "layer_times", times)
    first, second, third = (Layer(4, size, 8) for size in (1, 2, 3))
    clock = LayerClock()
    clock.measure([second, first, second])
    assert [clock.ms(layer) for layer in (first, second, third, first)] == [1, 2, 3, 1]
    assert measured == [first, second, third]
    assert [LayerClock(table=clock.table).ms(layer) for layer in (third, first)] == [3, 1]
    assert len(measured) == 3
    assert LayerClock(64, table=clock.table).ms(first) == 1
    assert len(measured) == 4
    with pytest.raises(ValueError, match=r"table: expected times on \d+ threads, as torch uses now, got \[99\]"):
        LayerClock(table=clock.table.assign(threads=99))
    with pytest.raises(ValueError, match=r"table: expected columns inputs, .*, got none named stride, ms"):
        LayerClock(table=clock.table.drop(columns=["ms", "stride"]))


def test_bad_settings() -> None:
    """Without layers or images there is nothing to time."""
    with pytest.raises(ValueError, match=r"layers: expected one or more layers, got \[\]"):
        layer_times.layer_times([])
    with pytest.raises(ValueError, match=r"batch_sizes: expected one or more sizes >= 1, got \(0,\)"):
        layer_times.layer_times([Layer(4, 4, 4)], (0,))
    with pytest.raises(ValueError, match="size: expected an odd number, so that the maps keep their size, got 2"):
        Layer(4, 4, 8, size=2)


def test_real_times() -> None:
    """Layers of a few channels take some time on every machine."""
    table = layer_times.layer_times(usual_layers([8], [4]), (1,), ("eager",), repeats=2, progress=False)
    assert len(table) == 4
    assert (table["ms"] > 0).all()


def test_every_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not CUDA alone: otherwise the time of launches is measured."""
    waited: list[str] = []
    monkeypatch.setattr(runtimes, "best_device", lambda: torch.device("mps"))
    monkeypatch.setattr(runtimes, "synchronize", lambda device: waited.append(device.type))
    time_in_turn([lambda: None], repeats=1, warmup=0)
    time_in_turn([lambda: None], repeats=1, warmup=0, device=torch.device("xpu"))
    assert waited == ["mps", "mps", "xpu", "xpu"]


def test_groups_of_four_need_more_channels() -> None:
    """With four channels, groups of 4 would be a dense convolution, and be one twice."""
    for channels in ([2], [4, 8], [10]):
        with pytest.raises(ValueError, match="channels: expected multiples of 4, from 8 on"):
            usual_layers(channels)


def test_a_clock_takes_the_table_of_one_that_measured_nothing() -> None:
    """Which is empty and has no columns."""
    assert LayerClock(table=LayerClock().table).table.empty
