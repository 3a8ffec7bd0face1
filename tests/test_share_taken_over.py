"""The share of the source's knowledge that arrived, by hand."""

import math

import pandas as pd
import pytest

from mtanytime import measure

ROWS = [
    ("scratch", "small", 0, 0.40, 60.0),
    ("scratch", "small", 1, 0.44, 120.0),
    ("scratch", "large", 0, 0.50, 60.0),
    ("probe", "source", 0, 0.60, 6.0),
    ("probe", "source", 1, 0.64, 6.0),
    ("matching", "small", 0, 0.50, 600.0),  # half of the way
    ("matching", "small", 1, 0.69, 600.0),  # a quarter beyond
    ("matching", "large", 0, 0.60, 600.0),  # all of the way from its own network's scratch
    ("matching", "large", 1, 0.60, 600.0),  # no scratch of this network and seed
    ("matching", "small", 2, 0.60, 600.0),  # neither of this seed
]
TABLE = pd.DataFrame(ROWS, columns=["method", "network", "seed", "accuracy", "train_seconds"])


def test_share_taken_over() -> None:
    """Of each run, from scratch of the same network and the probe of the same seed, by hand."""
    share = measure.share_taken_over(TABLE)
    expected = [0.0, 0.0, 0.0, math.nan, math.nan, 0.5, 1.25, 1.0, math.nan, math.nan]
    assert share.tolist() == pytest.approx(expected, nan_ok=True)
    without = TABLE[TABLE["network"] != "large"].drop(columns="network")
    assert measure.share_taken_over(without).tolist() == pytest.approx([0, 0, 1, 1, 0.5, 1.25, math.nan], nan_ok=True)


def test_no_share_where_the_probe_is_no_better() -> None:
    """A way of no length, or backwards, has no shares."""
    table = TABLE.replace({"accuracy": {0.60: 0.40}})
    assert measure.share_taken_over(table)[5:6].isna().all()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (TABLE.drop(columns="seed"), "results table: expected column seed"),
        (TABLE.replace({"accuracy": {0.69: "good"}}), "results table, column accuracy: expected numbers, got 'good'"),
        (pd.concat([TABLE, TABLE]), "results table: expected one row per method, network, seed, got several"),
        (
            pd.concat([TABLE, TABLE[3:4].replace({"network": {"source": "other"}})]),
            "results table: expected one row per method, seed, got several",
        ),
    ],
)
def test_bad_tables(table: pd.DataFrame, message: str) -> None:
    """Named by column and row."""
    with pytest.raises(ValueError, match=message):
        measure.share_taken_over(table)


def test_rows_without_a_network() -> None:
    """They have no share; nor do those of a run that diverged."""
    rows = [("scratch", "small", 0, 0.4), ("probe", None, 0, 0.6), ("l2t", "small", 0, math.nan)]
    share = measure.share_taken_over(pd.DataFrame(rows, columns=["method", "network", "seed", "accuracy"]))
    assert share.tolist() == pytest.approx([0.0, math.nan, math.nan], nan_ok=True)
