"""The transfer explorer without a browser: numbers, choices, static form."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tables
from hypothesis import given
from hypothesis import strategies as st
from ipywidgets import Widget
from matplotlib import pyplot as plt

from mtanytime.explore import contents, draw
from mtanytime.explore.transfer import TransferExplorer


def held(explorer: TransferExplorer) -> np.ndarray:
    """Return the front end's numbers at the explorer's step, a row per source layer and a column per target layer."""
    content = explorer.content
    values = np.full((len(content["sources"]), len(content["targets"])), np.nan)
    for (row, column), value in zip(
        content["pairs"], content["values"][content["steps"].index(explorer.step)], strict=True
    ):
        values[row, column] = np.nan if value is None else value
    return values


def test_the_step_moves_the_numbers() -> None:
    """Front end, kernel and static picture show the same λ at every step, whatever the order of the table's rows."""
    trace = tables.trace(steps=(20, 5, 10))
    explorer = TransferExplorer(trace)
    assert explorer.content["steps"] == [5, 10, 20]
    assert (explorer.step, explorer.pair) == (20, ["layer2", "t3"])  # the last step, its strongest pair
    for step in (5, 20):
        explorer.step = step
        wanted = trace[trace["step"] == step]["weight"].to_numpy().reshape(2, 3)
        np.testing.assert_allclose(explorer.values(), wanted)
        np.testing.assert_allclose(held(explorer), wanted, atol=1e-3)
        np.testing.assert_allclose(explorer.picture().axes[0].collections[0].get_array(), wanted)
        assert explorer.picture().alt.endswith(f"at step {step}")


def test_relative_scale() -> None:
    """Shares are relative to what is shown: the layers of the chosen network alone sum to 100 % per target."""
    explorer = TransferExplorer(tables.trace(sources=("birds/a", "birds/b", "cars/a")), relative=True)
    np.testing.assert_allclose(explorer.values().sum(), 1)
    assert explorer.content["networks"] == ["birds", "cars"]
    explorer.network = "birds"
    assert list(explorer.values().index) == ["birds/a", "birds/b"]
    np.testing.assert_allclose(explorer.values().sum(), 1)
    explorer.relative = False
    assert explorer.values().sum().min() > 1


def test_slices() -> None:
    """The λ of a sliced target's slices can be seen together or one slice at a time."""
    trace = tables.trace(sources=("a",), targets=("t",), slices=("1", "2"))
    explorer = TransferExplorer(trace)
    assert list(explorer.values().columns) == ["t slice 1", "t slice 2"]
    explorer.slice = "1"
    assert explorer.values().to_numpy() == trace[(trace["step"] == 200) & (trace["slice"] == "1")]["weight"].to_numpy()
    assert TransferExplorer(trace[trace["slice"] == "1"]).content["slices"] == []  # nothing to choose


def test_slashes_alone_make_no_networks() -> None:
    """With one source network, or layers of which only some name a network, there is nothing to choose."""
    assert TransferExplorer(tables.trace(sources=("birds/a", "birds/b"))).content["networks"] == []
    assert TransferExplorer(tables.trace(sources=("birds/a", "b"))).content["networks"] == []


def test_pairs_that_were_not_matched_or_diverged() -> None:
    """The front end distinguishes a pair that is not in the table from one without a number."""
    trace = tables.trace().iloc[1:]  # the first pair lacks its first step
    trace.loc[trace.index[-1], "weight"] = np.inf
    trace = trace[(trace["source"] != "layer1") | (trace["target"] != "t2")]
    explorer = TransferExplorer(trace)
    assert len(explorer.content["pairs"]) == 5
    assert explorer.content["values"][-1].count(None) == 1
    assert explorer.content["values"][0].count(None) == 1
    assert explorer.pair == ["layer2", "t2"]  # the strongest that has a number
    json.dumps(explorer.content, allow_nan=False)  # a browser reads no NaN
    assert TransferExplorer(tables.trace().assign(weight=np.nan)).pair == ["layer1", "t1"]


def test_channels_of_a_pair() -> None:
    """The channel weights of the detail are the table's, at its steps."""
    trace = tables.trace()
    found = TransferExplorer(trace, tables.channels(trace)).content["channels"]
    assert found["steps"] == [0, 200]
    assert set(found["pairs"]) == {str(pair) for pair in range(6)}
    assert found["pairs"]["5"] == {"names": [0, 1, 2, 3], "weights": [[0.25] * 4, [0.1, 0.2, 0.3, 0.4]]}


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (200, 200), (201, 200), (5000, 200)])
def test_many_steps_are_thinned(count: int, shown: int) -> None:
    """At most 200 evenly spread steps are kept, with both ends, and a note says so."""
    explorer = TransferExplorer(tables.trace(sources=("a",), targets=("b",), steps=tuple(range(0, 10 * count, 10))))
    steps = explorer.content["steps"]
    assert len(steps) == shown
    assert (steps[0], steps[-1]) == (0, 10 * count - 10)
    assert np.ptp(np.diff(steps)) <= 10 if shown > 1 else True
    assert ("200 of the table's" in explorer.content["note"]) == (count > 200)
    assert repr(explorer).endswith("200 of them shown") == (count > 200)


def test_large_traces_fit_a_page() -> None:
    """The contents for 60 × 60 layers and thousands of channels stay below 3 MB."""
    names = tuple(f"layer{i}" for i in range(60))
    explorer = TransferExplorer(tables.trace(sources=names, targets=names, steps=tuple(range(60))))
    assert explorer.content["spreads"] is None
    assert "spread over the images is left out" in explorer.content["note"]
    assert len(explorer.content["steps"]) >= 50
    trace = tables.trace(sources=names[:30], targets=names[:30], steps=(0, 9))
    explorer = TransferExplorer(trace, tables.channels(trace, 200))
    kept = {int(pair) for pair in explorer.content["channels"]["pairs"]}
    assert kept == set(range(900 - len(kept), 900))  # the strongest
    assert f"the {len(kept)} strongest of 900 pairs" in explorer.content["note"]
    assert len(json.dumps(explorer.content)) < 2_900_000


@given(st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=20))
def test_numbers_keep_four_digits_of_the_largest(values: list[float]) -> None:
    """Rounding keeps a page small and is invisible: the error is at most 1/2000 of the scale."""
    trace = pd.DataFrame({"step": range(len(values)), "source": "a", "target": "b", "weight": values})
    held = np.array(contents.transfer_contents(trace)["values"]).ravel()
    assert np.abs(held - values).max() <= max(values) / 2000


def test_static_form() -> None:
    """Without a front end there are the heat map and one line of stable text."""
    data, about = TransferExplorer(tables.trace(steps=(1, 2)))._repr_mimebundle_()
    assert data["text/plain"] == "TransferExplorer: 6 pairs, 2 steps from 1 to 2"
    assert data["image/png"] == draw.heatmap(tables.trace(steps=(1, 2)))._repr_mimebundle_()[0]["image/png"]
    assert about["image/png"]["alt"] == "Heat map of λ, 2 source × 3 target layers, at step 2"
    assert "application/vnd.jupyter.widget-view+json" in data
    single = TransferExplorer(tables.trace(sources=("a",), targets=("b",), steps=(7,)))
    assert repr(single) == "TransferExplorer: 1 pair at step 7"


def test_nothing_is_left_after_closing() -> None:
    """Closing an explorer releases its figures, widgets and observers."""
    before = set(Widget.get_manager_state()["state"])
    explorer = TransferExplorer(tables.trace())
    explorer._repr_mimebundle_()
    assert len(Widget.get_manager_state()["state"]) > len(before)

    class Observer:
        def __call__(self, change: object) -> None: ...

    observer = Observer()
    explorer.observe(observer, names="step")
    left = weakref.ref(explorer), weakref.ref(observer)
    explorer.close()
    assert set(Widget.get_manager_state()["state"]) == before
    assert explorer.comm is None
    del explorer, observer
    gc.collect()
    assert [reference() for reference in left] == [None, None]
    assert plt.get_fignums() == []


@pytest.mark.parametrize(
    ("choice", "value", "message"),
    [
        ("step", 130, r"step: expected a step of the explorer \(3 from 0 to 200\), got 130; nearest: 100"),
        ("network", "birds", "network: expected one of '', got 'birds'"),
        ("slice", "3", "slice: expected one of '', got '3'"),
        ("pair", ["layer1", "t9"], "pair, target layer: expected one of 't1', 't2', 't3', got 't9'"),
    ],
)
def test_choices_that_are_not_offered(choice: str, value: object, message: str) -> None:
    """A choice that is not offered is refused with the choices that are, and the explorer does not change."""
    explorer = TransferExplorer(tables.trace())
    before = getattr(explorer, choice)
    with pytest.raises(ValueError, match=message):
        setattr(explorer, choice, value)
    assert getattr(explorer, choice) == before


@pytest.mark.parametrize("column", ["step", "source", "target", "weight"])
def test_missing_columns(column: str) -> None:
    """A trace that lacks a column is refused, and the message names it."""
    with pytest.raises(ValueError, match=f"trace: expected column {column}, got columns"):
        TransferExplorer(tables.trace().drop(columns=column))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: pd.concat([t, t]),
            "step, source, target, got several for step 0, source layer1, target t1",
        ),
        (lambda t: t.assign(step=0.5), "trace, column step: expected whole numbers, got 0.5"),
        (lambda t: t.assign(step=np.nan), "trace, column step: expected whole numbers, got nan"),
        (lambda t: t.assign(source=None), "trace, column source: expected a name in every row, got"),
    ],
)
def test_bad_rows(change: object, message: str) -> None:
    """A trace with invalid or repeated rows is refused before anything is drawn."""
    with pytest.raises(ValueError, match=message):
        TransferExplorer(change(tables.trace()))


def test_channels_of_another_run() -> None:
    """Channel weights of a pair that the trace lacks are refused: they come from another run."""
    trace = tables.trace()
    with pytest.raises(ValueError, match="channels table: expected pairs of the trace, got other → t1"):
        TransferExplorer(trace, tables.channels(trace).replace("layer1", "other"))
    with pytest.raises(ValueError, match="channels table: expected column channel, got columns"):
        TransferExplorer(trace, trace)


def test_layer_names_of_a_file_stay_text(tmp_path: Path) -> None:
    """Layers "1.1" and "1.10" stay two layers, although they are the same number."""
    tables.trace(sources=("1.1", "1.10"), targets=("0",)).to_csv(tmp_path / "trace.csv", index=False)
    assert TransferExplorer(tmp_path / "trace.csv").content["sources"] == ["1.1", "1.10"]


def test_a_choice_without_pairs() -> None:
    """A choice of network and slice without matched pairs says so."""
    trace = tables.trace(sources=("birds/a", "cars/a"), slices=("1", "2"))
    trace = trace[(trace["source"] == "birds/a") == (trace["slice"] == "1")]
    explorer = TransferExplorer(trace)
    explorer.network, explorer.slice = "birds", "2"
    assert "No pair of layers was matched" in explorer.picture().alt


def test_the_picture_of_a_comparison() -> None:
    """Names of any length fit, one that holds " at " stays whole in the text, and layers keep the table's order."""
    long = "runs/at home/" + "x" * 80
    layers = [f"layer{i}" for i in (1, 2, 10)]
    traces = {long: tables.trace(sources=layers), "other": tables.trace(sources=layers[1:])}
    explorer = TransferExplorer(traces)
    explorer.run, explorer.compare = long, "other"
    assert list(explorer.differences().index) == [name for name in explorer.content["sources"] if name in layers]
    picture = explorer.picture()
    picture.draw_without_rendering()
    box = picture.axes[0].title.get_window_extent()
    assert 0 <= box.x0
    assert box.x1 <= picture.bbox.x1
    assert "runs/at home/" in picture.alt.partition(", 3 ")[0]
