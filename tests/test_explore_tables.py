"""Reading and checking the tables that pictures show; tests of the explorers and pictures have the details."""

import subprocess
import sys

import pytest

from mtanytime.explore import draw
from mtanytime.explore.tables import format_cost, read_curve, read_trace


def test_tables_are_read_without_matplotlib() -> None:
    """A program that only reads tables need not load the plotting libraries."""
    code = "import sys, mtanytime.explore.tables; print({'matplotlib', 'seaborn', 'anywidget'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_old_names_are_found() -> None:
    """Names that `draw` had before version 0.2 lead to the tables; a renamed one warns."""
    assert draw.read_curve is read_curve
    assert draw.read_trace is read_trace
    with pytest.warns(DeprecationWarning, match=r"draw\.worded is now mtanytime\.explore\.tables\.format_cost"):
        assert draw.worded("macs", 7) == "7 MACs"


@pytest.mark.parametrize(
    ("cost", "value", "wanted"),
    [
        ("macs", 58_312_000, "58.3 M MACs"),
        ("macs", 999_600, "1 M MACs"),
        ("macs", 7, "7 MACs"),
        ("macs", 4.1e9, "4.1 G MACs"),
        ("params", 1_234, "1.23 k parameters"),
        ("latency_ms", 0.04217, "0.0422 ms"),
        ("latency_ms", 1234.0, "1230 ms"),
    ],
)
def test_costs_are_written_with_units(cost: str, value: float, wanted: str) -> None:
    """Costs are written with three digits, an SI prefix and a unit."""
    assert format_cost(cost, value) == wanted
