"""The explorer's state and the pictures behind it, without a browser."""

import pandas as pd
import pytest

from mtanytime.explore import draw
from mtanytime.explore.transfer import TransferExplorer


def trace(steps: list[int]) -> pd.DataFrame:
    """λ of two pairs that grows with the step."""
    rows = [
        {"step": s, "source": m, "target": "t1", "weight": s / 10, "weight_std": 0.1} for s in steps for m in ("a", "b")
    ]
    return pd.DataFrame(rows)


def test_slider_swaps_the_picture() -> None:
    """Setting the slider shows the frame of that step, whatever the order of the table's rows."""
    explorer = TransferExplorer(trace([20, 5, 10]))
    assert [value for _, value in explorer.step.options] == [5, 10, 20]
    assert explorer.step.value == 20
    last = explorer.picture.value
    explorer.step.value = 5
    assert explorer.picture.value != last
    explorer.step.value = 20
    assert explorer.picture.value == last


def test_static_form() -> None:
    """Without a front end a reader gets the last heat-map and a line that does not change between machines."""
    data, about = TransferExplorer(trace([1, 2]))._repr_mimebundle_()
    assert data["text/plain"] == "TransferExplorer: 2 pairs, 2 steps from 1 to 2"
    assert data["image/png"] == draw.heatmap(trace([1, 2]))._repr_mimebundle_()[0]["image/png"]
    assert "alt" in about["image/png"]
    assert "application/vnd.jupyter.widget-view+json" in data


def test_bad_table() -> None:
    """A table that is no trace is refused by the name of the column it lacks."""
    with pytest.raises(ValueError, match="weight"):
        TransferExplorer(trace([1]).drop(columns="weight"))
