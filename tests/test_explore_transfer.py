"""The explorer's state and the pictures behind it, without a browser."""

from pathlib import Path

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


def test_layer_names_of_a_file_stay_text(tmp_path: Path) -> None:
    """Layers "1.1" and "1.10" are two layers, though the same number."""
    rows = [{"step": 1, "source": m, "target": "0", "weight": 1.0} for m in ("1.1", "1.10")]
    pd.DataFrame(rows).to_csv(tmp_path / "trace.csv", index=False)
    data, _ = TransferExplorer(tmp_path / "trace.csv")._repr_mimebundle_()
    assert data["text/plain"].startswith("TransferExplorer: 2 pairs")
