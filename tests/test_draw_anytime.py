"""Pictures of anytime networks show what their tables hold: checked on the artists' data and words, not on pixels."""

import numpy as np
import pandas as pd
import pytest
import tables
from pictures import legend_words, words

from mtanytime.explore import draw


def test_accuracy_by_budget_shows_means_and_spread_over_seeds() -> None:
    """By hand: means and spread over three seeds 0.01 apart, on a logarithmic axis of cost."""
    picture = draw.accuracy_by_budget(tables.curve())
    ax = picture.axes[0]
    lines = {container.get_label(): container for container in ax.containers}
    assert list(lines) == legend_words(picture) == ["sliced", "msdnet"]
    np.testing.assert_allclose(
        lines["sliced"].lines[0].get_xydata(), [(1e6, 60), (4e6, 70), (9e6, 80), (16e6, 90)], rtol=1e-12
    )
    bar = lines["sliced"].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar, [(1e6, 59), (1e6, 61)])
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "multiply-adds (MACs), log scale")
    assert len({line.lines[0].get_marker() for line in lines.values()}) == 2  # told apart without colours
    assert "model, ± 1 standard\ndeviation of 3 runs" in words(picture)
    one_run = tables.curve()[lambda rows: (rows["model"] == "sliced") | (rows["seed"] == rows["seed"].min())]
    assert "model, ± 1 standard\ndeviation of 1 to 3 runs" in words(draw.accuracy_by_budget(one_run))
    assert {"1 M", "10 M"} <= set(words(picture))
    latency = draw.accuracy_by_budget(tables.curve(seeds=1), "latency_ms").axes[0]
    np.testing.assert_allclose(latency.containers[1].lines[0].get_xydata()[:, 0], [3, 6, 9, 12])
    assert latency.get_xlabel() == "latency (ms), log scale"


def test_accuracy_by_budget_marks_what_is_paid_for() -> None:
    """A ring around the most expensive exit that a budget covers, none for a model that it does not cover."""
    rings = [
        line for line in draw.accuracy_by_budget(tables.curve(), budget=5e6).axes[0].get_lines() if line.get_ms() == 14
    ]
    np.testing.assert_allclose([ring.get_xydata()[0] for ring in rings], [(4e6, 70), (1.5e6, 57.5)])
    assert draw.accuracy_by_budget(tables.curve(), budget=1.2e6).alt.endswith("1.2 M MACs pays for sliced exit 1")
    assert draw.accuracy_by_budget(tables.curve(), budget=1.0).alt.endswith("1 MACs pays for no exit")


def test_accuracy_by_budget_of_one_exit() -> None:
    """An axis around one point still has a labelled tick."""
    picture = draw.accuracy_by_budget(tables.curve().iloc[:1])
    low, high = picture.axes[0].get_xlim()
    assert low < 1e6 < high
    assert "1 M" in words(picture)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda c: c, {"cost": "joules"}, "cost: expected one of macs, latency_ms, params, got 'joules'"),
        (
            lambda c: c.drop(columns="latency_ms"),
            {"cost": "latency_ms"},
            "curve: expected column latency_ms",
        ),
        (lambda c: c, {"level": "fine"}, r"level: expected a level of the curve \(none\), got 'fine'"),
        (
            lambda c: c.assign(params=-1),
            {"cost": "params"},
            "column params: expected finite numbers .*got -1",
        ),
    ],
)
def test_bad_curves_are_named(change, options: dict, message: str) -> None:
    """A curve that cannot be drawn is refused with its column or the choice at fault."""
    with pytest.raises(ValueError, match=message):
        draw.accuracy_by_budget(change(tables.curve()), **options)


def test_a_budget_is_in_the_picture() -> None:
    """The axis reaches it; one that is no budget is refused, as by the explorer."""
    curve = tables.curve()
    axes = draw.accuracy_by_budget(curve, budget=1e12).axes[0]
    assert axes.get_xlim()[1] > 1e12
    for budget in (-5.0, float("nan")):
        with pytest.raises(ValueError, match="budget: expected a finite number above 0"):
            draw.accuracy_by_budget(curve, budget=budget)


def test_the_last_exit_in_time_answers() -> None:
    """Run one by one, a wider exit may be done before a thinner one, and its answer stands."""
    answers = pd.DataFrame(
        {"exit": [1, 2, 3], "milliseconds": [1.0, 5.0, 3.0], "answer": list("abc"), "confidence": 0.5}
    )
    assert draw.answers_by_time(answers, deadline=10).alt.endswith("after 10 ms: c by exit 3")
