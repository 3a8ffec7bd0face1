"""Areas, interpolation, gaps and savings of curves against numbers by hand and second derivations; their validation."""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtanytime import measure


def table_of(model: str, points: dict[float, float], seed: int | None = None, cost: str = "macs") -> pd.DataFrame:
    """Return a curve through points, cost -> accuracy."""
    rows = [{"model": model, "exit": k, cost: x, "accuracy": y} for k, (x, y) in enumerate(points.items(), 1)]
    return pd.DataFrame(rows) if seed is None else pd.DataFrame(rows).assign(seed=seed)


@st.composite
def points(draw: st.DrawFn, rising: bool = False) -> dict[float, float]:
    """Draw two or more exits of different cost, in any order, as cost -> accuracy."""
    costs = draw(st.lists(st.integers(1, 10**9), min_size=2, max_size=6, unique=True))
    accuracies = draw(st.lists(st.integers(0, 1000), min_size=len(costs), max_size=len(costs), unique=rising))
    if rising:
        costs, accuracies = sorted(costs), sorted(accuracies)
    return {cost: accuracy / 1000 for cost, accuracy in zip(costs, accuracies, strict=True)}


def logs(of: dict[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return base-10 logarithms of the costs in rising order, and the accuracies."""
    costs = np.array(sorted(of))
    return np.log10(costs), np.array([of[cost] for cost in costs])


def test_area_of_straight_lines() -> None:
    """By hand: the mean of a line is its middle; two decades from 0.5 to 0.7 and one at 0.7; one exit alone."""
    line = table_of("line", {10: 0.5, 1000: 0.9})
    assert measure.area_under_curve(line).to_dict("records") == [{"model": "line", "area": pytest.approx(0.7)}]
    both = pd.concat([table_of("bent", {1: 0.5, 100: 0.7, 1000: 0.7}, 1), table_of("one", {50: 0.3}, 0)])
    result = measure.area_under_curve(both)
    assert result["model"].tolist() == ["bent", "one"]
    assert result["seed"].tolist() == [1, 0]
    assert result["area"].tolist() == pytest.approx([(2 * 0.6 + 0.7) / 3, 0.3])


def test_area_over_a_common_range() -> None:
    """By hand: no answer below the first exit, the last answer above the last exit, part of a line between."""
    line = table_of("line", {10: 0.5, 1000: 0.9})
    for between, expected in (
        ((10, 100), 0.6),
        ((1, 10), 0.0),
        ((1, 100), 0.6 / 2),
        ((100, 10000), (0.8 + 0.9) / 2),
        ((1e4, 1e5), 0.9),
        ((1, 1e4), (2 * 0.7 + 0.9) / 4),
        ((0.1, 1), 0.0),
    ):
        assert measure.area_under_curve(line, between)["area"].item() == pytest.approx(expected), between
    one = table_of("one", {10: 0.4})
    assert measure.area_under_curve(one, (1, 100))["area"].item() == pytest.approx(0.2)


@given(points(), st.tuples(st.floats(-1, 5), st.floats(0.1, 5)))
def test_area_is_the_mean_over_a_fine_grid(of: dict[float, float], span: tuple[float, float]) -> None:
    """Up to the grid's resolution, the area is the mean of numpy's interpolation, with 0 to the left."""
    low, high = span[0], span[0] + span[1]
    grid = np.linspace(low, high, 20001)
    grid = (grid[1:] + grid[:-1]) / 2
    expected = np.interp(grid, *logs(of), left=0).mean()
    result = measure.area_under_curve(table_of("any", of), (10**low, 10**high))
    assert result["area"].item() == pytest.approx(expected, abs=2e-4)
    own = measure.area_under_curve(table_of("any", of))
    x, _ = logs(of)
    assert own["area"].item() == pytest.approx(np.interp(np.linspace(*x[[0, -1]], 20001), *logs(of)).mean(), abs=2e-4)


@given(points(), st.lists(st.floats(0.5, 2e9), min_size=1, max_size=5), st.floats(0.01, 100))
def test_interpolation_is_numpys_in_logarithms(of: dict[float, float], at: list[float], unit: float) -> None:
    """NaN outside, exact at the exits, and independent of the unit of cost."""
    table = table_of("any", of)
    result = measure.interpolated(table, at)
    assert result.columns.tolist() == ["model", "macs", "accuracy"]
    assert result["macs"].tolist() == at
    expected = np.interp(np.log10(at), *logs(of), left=np.nan, right=np.nan)
    np.testing.assert_allclose(result["accuracy"], expected, atol=1e-9)
    assert measure.interpolated(table, list(of))["accuracy"].tolist() == pytest.approx(list(of.values()), abs=1e-9)
    inside = math.sqrt(min(of) * max(of))
    scaled = table.assign(macs=table["macs"] * unit)
    same = measure.interpolated(scaled, inside * unit)["accuracy"].item()
    assert same == pytest.approx(measure.interpolated(table, inside)["accuracy"].item(), abs=1e-9)


def test_interpolation_goes_run_by_run() -> None:
    """Models and seeds stay apart and in order; rows may be in any order; any column of costs."""
    runs = [table_of("b", {1: 0.2, 100: 0.4}, 1), table_of("b", {1: 0.4, 100: 0.6}, 0), table_of("a", {10: 0.1}, 0)]
    table = pd.concat(runs).rename(columns={"macs": "latency_ms"}).iloc[[1, 3, 0, 4, 2]]
    result = measure.interpolated(table, 10, cost="latency_ms")
    assert result.drop(columns="accuracy").to_numpy().tolist() == [["b", 1, 10], ["b", 0, 10], ["a", 0, 10]]
    assert result["accuracy"].tolist() == pytest.approx([0.3, 0.5, 0.1])
    mixed = pd.concat([table_of("seeded", {10: 0.1}, 0), table_of("without", {10: 0.2})])
    assert measure.area_under_curve(mixed)["area"].tolist() == [0.1, 0.2]


def seeds(model: str, *runs: dict[float, float]) -> pd.DataFrame:
    """Return a curve of several runs."""
    return pd.concat([table_of(model, of, seed) for seed, of in enumerate(runs)], ignore_index=True)


def test_gap_by_hand() -> None:
    """Two seeds each: means, difference and standard error at the exits of `against`; NaN beyond one's own."""
    ours = seeds("ours", {1: 0.5, 100: 0.7}, {1: 0.54, 100: 0.74})
    theirs = seeds("theirs", {10: 0.61, 100: 0.70, 1000: 0.8}, {10: 0.65, 100: 0.70, 1000: 0.9})
    result = measure.gap(pd.concat([ours, theirs]), "ours", "theirs")
    assert result.columns.tolist() == ["exit", "macs", "accuracy", "accuracy_against", "gap_points", "sem_points"]
    assert result["exit"].tolist() == [1, 2, 3]
    assert result["macs"].tolist() == [10, 100, 1000]
    assert result["accuracy"].tolist() == pytest.approx([0.62, 0.72, math.nan], nan_ok=True)
    assert result["accuracy_against"].tolist() == pytest.approx([0.63, 0.70, 0.85])
    assert result["gap_points"].tolist() == pytest.approx([-1, 2, math.nan], nan_ok=True)
    # Two values d apart: standard deviation d/√2, standard error d/2.
    expected = [math.hypot(2, 2), 2, math.nan]
    assert result["sem_points"].tolist() == pytest.approx(expected, nan_ok=True)
    assert measure.gap(pd.concat([ours, theirs]), "ours", "theirs", last_stands=True)["gap_points"].tolist() == [
        *result["gap_points"].tolist()[:2],
        pytest.approx(72 - 85),
    ]


def test_gap_where_one_seed_does_not_reach() -> None:
    """A mean over only the seeds that reach would not be the mean that the table promises."""
    ours = seeds("ours", {1: 0.5, 100: 0.7}, {1: 0.5, 99: 0.7})
    result = measure.gap(pd.concat([ours, table_of("theirs", {100: 0.7}, 0)]), "ours", "theirs")
    assert math.isnan(result["gap_points"].item())


def test_no_gap_and_no_saving_against_itself() -> None:
    """One seed has no standard error; a curve that dips saves nothing against itself."""
    table = table_of("one", {100: 0.7, 10: 0.6, 50: 0.5})
    assert measure.gap(table, "one", "one")["gap_points"].tolist() == [0, 0, 0]
    assert measure.gap(table, "one", "one")["sem_points"].isna().all()
    assert measure.gap(table, "one", "one")["exit"].tolist() == [2, 3, 1]
    assert measure.savings(table, "one", "one")["saving_percent"].tolist() == [0, 0, 0]


def test_savings_by_hand() -> None:
    """By hand: an exit no better than a cheaper one counts with its cost; an accuracy never reached is NaN."""
    ours = table_of("ours", {10: 0.5, 20: 0.4, 1000: 0.8, 2000: 0.7})
    theirs = table_of("theirs", {30: 0.45, 1000: 0.75, 2000: 0.6, 4000: 0.9})
    result = measure.savings(pd.concat([ours, theirs]), "ours", "theirs")
    assert result.columns.tolist() == ["exit", "accuracy", "macs", "macs_against", "saving_percent"]
    assert result["accuracy"].tolist() == [0.45, 0.75, 0.6, 0.9]
    reached = [20 * 50 ** (0.35 / 0.4), 20 * 50 ** (0.2 / 0.4)]
    assert result["macs"].tolist() == pytest.approx([10, *reached, math.nan], nan_ok=True)
    against = [30, 1000, 30 * (1000 / 30) ** 0.5, 4000]
    assert result["macs_against"].tolist() == pytest.approx(against)
    savings = [100 * (1 - x / y) for x, y in zip([10, *reached], against[:3], strict=True)]
    assert result["saving_percent"].tolist() == pytest.approx([*savings, math.nan], nan_ok=True)


def test_savings_use_mean_curves() -> None:
    """By hand: both means are 0.6 to 0.8, ours at a quarter of the cost."""
    ours = seeds("ours", {25: 0.5, 250: 0.9}, {25: 0.7, 250: 0.7})
    theirs = seeds("theirs", {100: 0.55, 1000: 0.8}, {100: 0.65, 1000: 0.8})
    result = measure.savings(pd.concat([theirs, ours]), "ours", "theirs")
    assert result["saving_percent"].tolist() == pytest.approx([75, 75])


@given(points(rising=True), st.floats(0.01, 100))
def test_savings_of_a_curve_moved_along(of: dict[float, float], factor: float) -> None:
    """The same accuracies at a multiple of the cost: every exit saves the same fraction."""
    table = pd.concat([table_of("ours", {factor * x: y for x, y in of.items()}), table_of("theirs", of)])
    result = measure.savings(table, "ours", "theirs")
    assert result["saving_percent"].tolist() == pytest.approx([100 * (1 - factor)] * len(of), abs=1e-9)
    assert result["macs_against"].tolist() == list(of)


@given(points(), points())
def test_savings_and_interpolation_agree(ours: dict[float, float], theirs: dict[float, float]) -> None:
    """At the cost that savings gives the curve has that accuracy, and at no lower cost on a fine grid."""
    table = pd.concat([table_of("ours", ours), table_of("theirs", theirs)])
    for row in measure.savings(table, "ours", "theirs").itertuples():
        if math.isnan(row.macs):
            assert max(ours.values()) < row.accuracy
        elif row.macs == min(ours):
            assert ours[row.macs] >= row.accuracy
        else:
            x, y = logs(ours)
            assert np.interp(math.log10(row.macs), x, y) == pytest.approx(row.accuracy, abs=1e-6)
            before = np.linspace(x[0], math.log10(row.macs), 999)[:-1]
            assert (np.interp(before, x, y) < row.accuracy + 1e-9).all()


def bad_curves() -> Iterator[tuple[pd.DataFrame, str]]:
    """Yield invalid curves, each with the message that refuses it."""
    good = table_of("a", {10: 0.5, 100: 0.7})
    yield good.drop(columns=["macs", "accuracy"]), "curve: expected columns macs, accuracy, got columns model, exit"
    yield good.iloc[:0], r"curve: expected at least one row, got none \(columns: model, exit, macs, accuracy\)"
    row = "in the row of model a, exit 2"
    for macs in (0, -5, math.inf, math.nan):
        wrong = f"curve, column macs: expected finite numbers above 0, got {float(macs):g}.* {row}"
        yield good.assign(macs=[10, macs]), wrong
    yield good.assign(macs=["10", "many"]), "curve, column macs: expected numbers, got 'many'"
    nullable = good.assign(macs=[10, None]).convert_dtypes()
    yield nullable, f"curve, column macs: expected finite numbers above 0, got nan {row}"
    yield good.assign(exit=[1, None]).convert_dtypes(), "curve, column exit: expected whole numbers, got nan"
    for accuracy in (math.nan, 50.0, -0.1):
        wrong = f"curve, column accuracy: expected fractions in .0, 1., got {accuracy} {row}"
        yield good.assign(accuracy=[0.5, accuracy]), wrong
    yield good.assign(exit=[1, 1.5]), "curve, column exit: expected whole numbers, got 1.5"
    yield good.assign(model=["a", None]), "curve, column model: expected a name in every row, got nan"
    yield (
        good.assign(exit=1),
        "expected one row per model, exit, got several for model a, exit 1; tell runs apart",
    )
    levels = good.assign(exit=1, level=["coarse", "fine"])
    yield levels, "got several for model a, exit 1; choose one level of the taxonomy"
    yield good.assign(macs=10), "curve: expected one row per model, macs, got several for model a, macs 10"


@pytest.mark.parametrize(("curve", "message"), list(bad_curves()))
def test_curves_are_checked(curve: pd.DataFrame, message: str) -> None:
    """Costs without a logarithm, per cents, a diverged run, two levels in one: refused by column and row."""
    for function in (
        measure.area_under_curve,
        lambda curve: measure.interpolated(curve, 20),
        lambda curve: measure.gap(curve, "a", "a"),
        lambda curve: measure.savings(curve, "a", "a"),
    ):
        with pytest.raises(ValueError, match=message):
            function(curve)


def test_questions_to_curves_are_checked() -> None:
    """Unknown models, empty ranges, costs without a logarithm and seeds of different exits are refused."""
    table = pd.concat([table_of("a", {10: 0.5}), table_of("b", {10: 0.5})])
    with pytest.raises(ValueError, match=r"against: expected a model of the curve \(a, b\), got 'c'"):
        measure.gap(table, "a", "c")
    for between in ((0, 10), (10, 10), (10, math.inf), (20, 10), (math.nan, 10)):
        with pytest.raises(ValueError, match=r"between: expected \(low, high\) with 0 < low < high, got \("):
            measure.area_under_curve(table, between)
    for at in (0, [10, -1], math.nan):
        with pytest.raises(ValueError, match="at: expected finite macs above 0, got"):
            measure.interpolated(table, at)
    uneven = seeds("a", {10: 0.5, 20: 0.6}, {10: 0.5})
    with pytest.raises(
        ValueError, match=r"expected the same exits of 'a' for every seed, got runs per exit \{1: 2, 2: 1\}"
    ):
        measure.savings(uneven, "a", "a")


@pytest.mark.parametrize("seeds", [3, 5, 7])
def test_means_of_equal_costs_are_that_cost(seeds: int) -> None:
    """Otherwise the last exit of one model lies beyond the same exit of the other, by the last bit."""
    costs = (1.0, 6.166357757671799)
    one, several = (
        pd.concat([table_of(model, dict(zip(costs, (0.5, 0.7), strict=True)), seed, "latency_ms") for seed in range(n)])
        for model, n in (("one", 1), ("several", seeds))
    )
    gaps = measure.gap(pd.concat([one, several]), "several", "one", cost="latency_ms")
    assert gaps["gap_points"].tolist() == pytest.approx([0, 0])
