"""What arrived, drawn and explored: the numbers of the table, on one scale, at the steps where it was measured."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tables
from pictures import cells, words

from mtanytime.explore import contents, draw
from mtanytime.explore.places import explored
from mtanytime.explore.transfer import TransferExplorer


def test_picture_holds_the_last_step() -> None:
    """R² of the last step, on a scale from 0 to 1; a negative one keeps its number and has the colour of 0."""
    table = tables.arrived(tables.trace())
    picture = draw.arrived(table)
    (mesh,) = picture.axes[0].collections
    np.testing.assert_allclose(cells(picture).ravel(), np.linspace(-0.3, 1, 6))
    assert mesh.get_clim() == (0, 1)
    colours = mesh.to_rgba(np.array([-0.3, 0.0, 1.0]))
    assert colours[0].tolist() == colours[1].tolist() != colours[2].tolist()
    assert {"-0.30", "1.00", "R² at step 200", "R²: share of the source's variance"} <= set(words(picture))
    assert picture.alt == "Heat map of R², 2 source × 3 target layers, at step 200"
    np.testing.assert_allclose(cells(draw.arrived(table, 50)).ravel(), np.linspace(-0.3, 0.5, 6))


def test_pairs_without_a_number() -> None:
    """A pair that was not matched is blank; a constant source, which has no R², says nan."""
    table = tables.arrived(tables.trace(), steps=(7,)).iloc[1:]
    table.loc[table.index[-1], "r2"] = np.nan
    picture = draw.arrived(table)
    assert words(picture).count("nan") == 1
    assert "blank: not matched" in picture.axes[0].get_title()


def test_explorer_switches_from_asked_to_arrived() -> None:
    """The switch shows R² at the last step measured until then, in kernel, front end and picture alike."""
    trace = tables.trace(steps=(0, 100, 200))
    table = tables.arrived(trace, steps=(100, 200))
    explorer = TransferExplorer(trace, arrived=table)
    assert explorer.quantity == "asked"
    np.testing.assert_allclose(explorer.values().to_numpy().ravel(), trace[trace["step"] == 200]["weight"])
    explorer.quantity = "arrived"
    for step, measured in ((200, 200), (100, 100), (0, 100)):
        explorer.step = step
        wanted = table[table["step"] == measured]["r2"]
        np.testing.assert_allclose(explorer.values().to_numpy().ravel(), wanted)
        np.testing.assert_allclose(cells(explorer.picture()).ravel(), wanted)
        assert explorer.picture().alt.endswith(f"at step {measured}")
    assert explorer.content["arrived"]["steps"] == [100, 200]
    np.testing.assert_allclose(explorer.content["arrived"]["values"][1], np.linspace(-0.3, 1, 6), atol=1e-4)
    json.dumps(explorer.content, allow_nan=False)


def test_slices_and_networks_choose_in_both() -> None:
    """A choice of network and slice holds for R² as for λ."""
    trace = tables.trace(sources=("birds/a", "cars/a"), targets=("t",), slices=("1", "2"))
    explorer = TransferExplorer(trace, arrived=tables.arrived(trace, steps=(9,)))
    explorer.quantity, explorer.network, explorer.slice = "arrived", "cars", "2"
    np.testing.assert_allclose(explorer.values(), [[1.0]])
    assert cells(explorer.picture()).tolist() == [[1.0]]


def test_nothing_to_switch_to() -> None:
    """Without a measurement there is no switch, and R² is refused."""
    explorer = TransferExplorer(tables.trace())
    assert explorer.content["arrived"] is None
    with pytest.raises(ValueError, match="quantity: expected one of 'asked', got 'arrived'"):
        explorer.quantity = "arrived"


def test_found_beside_the_trace(tmp_path: Path) -> None:
    """The table is found in a run's folder and beside its trace.csv or channels.csv; an empty one is none."""
    trace = tables.trace()
    trace.to_csv(tmp_path / "trace.csv", index=False)
    tables.channels(trace).to_csv(tmp_path / "channels.csv", index=False)
    places = [tmp_path, tmp_path / "trace.csv", tmp_path / "channels.csv"]
    (tmp_path / "arrived.csv").touch()
    assert all(TransferExplorer(place).content["arrived"] is None for place in places)
    tables.arrived(trace).to_csv(tmp_path / "arrived.csv", index=False)
    for place in places:
        assert TransferExplorer(place).content["arrived"]["steps"] == [50, 200]
        assert explored(place)[0]["arrived"]["steps"] == [50, 200]
        assert contents.first_choices(explored(place)[0])["quantity"] == "asked"
    content, alt = explored(tmp_path / "arrived.csv")
    assert (content["kind"], alt) == ("pictures", draw.arrived(tmp_path / "arrived.csv").alt)


def test_long_tables_fit_a_page() -> None:
    """At most 40,000 numbers are kept, with the first and the last step, and a note says so."""
    names = tuple(f"layer{i}" for i in range(30))
    trace = tables.trace(sources=names, targets=names, steps=(0, 9))
    explorer = TransferExplorer(trace, arrived=tables.arrived(trace, steps=tuple(range(100))))
    steps = explorer.content["arrived"]["steps"]
    assert (len(steps), steps[0], steps[-1]) == (44, 0, 99)
    assert "R² is held at 44 of 100 steps." in explorer.content["note"]


def test_large_negative_numbers_keep_the_others() -> None:
    """One fit that failed on the other images does not round the numbers of the rest away."""
    trace = tables.trace()
    table = tables.arrived(trace, steps=(200,))
    table.loc[0, "r2"] = -1e7
    values = TransferExplorer(trace, arrived=table).content["arrived"]["values"][0]
    np.testing.assert_allclose(values[1:], table["r2"][1:], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.replace("layer1", "other"), "table of R²: expected pairs of the trace, got other → t1"),
        (lambda t: pd.concat([t, t]), "table of R²: expected one row per step, source, target"),
        (lambda t: t.assign(r2=1.5), "table of R², column r2: expected numbers up to 1"),
        (lambda t: t.drop(columns="r2"), "table of R²: expected column r2"),
        (lambda t: t.assign(step=0.5), "table of R², column step: expected whole numbers"),
    ],
)
def test_bad_tables(change: object, message: str) -> None:
    """A table of another run, with repeated rows or without R² is refused by name."""
    trace = tables.trace()
    with pytest.raises(ValueError, match=message):
        TransferExplorer(trace, arrived=change(tables.arrived(trace)))


def test_a_trace_given_as_arrived() -> None:
    """Tables that are mixed up are told apart, with what shows each."""
    trace = tables.trace()
    with pytest.raises(ValueError, match=r"it is a table of R²: TransferExplorer\(trace, arrived=…\)"):
        TransferExplorer(tables.arrived(trace))
    with pytest.raises(ValueError, match="step: expected a step of the table of R²"):
        draw.arrived(tables.arrived(trace), 51)
