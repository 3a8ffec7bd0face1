"""Curves of accuracy against cost: their validation, areas, gaps and savings.

A curve is a table with one row per exit (of each model and seed). In all functions `cost` names the column to compare
by: macs, macs_own_head or latency_ms.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mtanytime.checks import Words, require
from mtanytime.measure.tables import as_numbers, require_columns, require_rows, require_unique, require_whole


def validated_curve(curve: pd.DataFrame, *costs: str) -> pd.DataFrame:
    """Return a curve with costs and accuracies as numbers and exits as integers, after checking every row.

    Args:
        curve: model, exit, the costs, accuracy (NaN where a run has none)[, level][, seed], with one row per exit of
            each model (and level and seed).
        costs: the columns of costs to check.

    Raises:
        ValueError: a missing column or an empty table; a value that is not a number, an exit that is not a whole
            number, a cost that is not finite and above 0, or an accuracy outside [0, 1]; a model without a name, or two
            rows of the same model, exit, level and seed. The message names the column and the row.
    """
    require_columns(curve, "curve", "model", "exit", *costs, "accuracy")
    curve = as_numbers(curve, "curve", "exit", *costs, "accuracy")
    require_rows(curve["model"].notna(), curve, "curve", "model", "a name in every row")
    curve = curve.assign(exit=require_whole(curve, "curve", "exit"))
    row = ["model", "exit", *(key for key in ("level", "seed") if key in curve)]
    for cost in costs:
        good = (curve[cost] > 0) & (curve[cost] < math.inf)
        require_rows(good, curve, "curve", cost, "finite numbers above 0", *row)
    good = curve["accuracy"].between(0, 1) | curve["accuracy"].isna()
    require_rows(good, curve, "curve", "accuracy", "fractions in [0, 1]", *row)
    remedy = "" if "seed" in curve else "tell runs apart by a column seed"
    require_unique(curve, "curve", *row, remedy=remedy)
    return curve


def area_under_curve(
    curve: pd.DataFrame, between: tuple[float, float] | None = None, *, cost: str = "macs"
) -> pd.DataFrame:
    """Return the mean accuracy over the logarithm of the cost, per model (and seed): model[, seed], area.

    This is the area under accuracy against log(cost), divided by the width of the range.

    Args:
        curve: see `validated_curve`, with an accuracy in every row and one level per exit.
        between: the range (low, high) for all curves. A budget below a curve's first exit buys no answer and counts as
            accuracy 0; above the last exit, the last answer counts. If None, each curve's own range from first to last
            exit; the area of a single exit is its accuracy.
        cost: the column of costs.

    Raises:
        ValueError: not 0 < low < high, or as `interpolated`.
    """
    if between is not None:
        require(bool(0 < between[0] < between[1] < math.inf), "between", "(low, high) with 0 < low < high", between)
    rows = []
    for run, budgets, accuracies in _runs(_validated(curve, cost), cost):
        low, high = (budgets[0], budgets[-1]) if between is None else np.log(between)
        if low == high:
            rows.append({**run, "area": accuracies[0]})
            continue
        inside = budgets[(low < budgets) & (budgets < high)]
        x = np.unique([*inside, *(end for end in (low, high) if end >= budgets[0])])
        y = np.interp(x, budgets, accuracies)  # above the last exit: its accuracy
        rows.append({**run, "area": float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (high - low))})
    return pd.DataFrame(rows)


def interpolated(curve: pd.DataFrame, at: float | Sequence[float] | np.ndarray, *, cost: str = "macs") -> pd.DataFrame:
    """Return each model's (and seed's) accuracy at given costs: model[, seed], the cost, accuracy.

    Accuracy is linear in log(cost) between two exits and NaN outside a curve's range. Rows may be in any order.

    Raises:
        ValueError: as `validated_curve`; a cost is not above 0, an accuracy is missing, or a run has two rows of the
            same exit or cost (choose one level of a taxonomy first).
    """
    costs = np.atleast_1d(np.asarray(at, dtype=float))
    require(bool(((costs > 0) & np.isfinite(costs)).all()), "at", f"finite {cost} above 0", at)
    runs = [
        pd.DataFrame({**run, cost: costs, "accuracy": _at(costs, budgets, accuracies)})
        for run, budgets, accuracies in _runs(_validated(curve, cost), cost)
    ]
    return pd.concat(runs, ignore_index=True)


def gap(
    curve: pd.DataFrame, model: str, against: str, *, cost: str = "macs", last_stands: bool = False
) -> pd.DataFrame:
    """Return how far `model` is above `against` at each exit of `against`, in percentage points.

    Args:
        curve: as in `interpolated`, with the same exits for every seed of `against`.
        model: the model to rate.
        against: the model to compare with.
        cost: the column of costs.
        last_stands: above its last exit, `model` counts with the last accuracy; otherwise NaN.

    Returns:
        exit and cost of `against`; accuracy, of `model` interpolated there, and accuracy_against, both means over
        seeds; gap_points, their difference; and sem_points, its standard error if all runs are independent (NaN with
        one seed). NaN where a run of `model` does not reach.

    Raises:
        ValueError: as `interpolated`; the curve lacks one of the models.
    """
    table = _validated(curve, cost, model=model, against=against)
    theirs = _mean(table, against, cost)
    runs = _runs(table[table["model"] == model], cost)
    at = theirs[cost].to_numpy()
    ours = pd.DataFrame([_at(at, budgets, accuracies, last_stands) for _, budgets, accuracies in runs])
    accuracy = ours.mean(skipna=False).to_numpy()
    return pd.DataFrame(
        {
            "exit": theirs["exit"],
            cost: theirs[cost],
            "accuracy": accuracy,
            "accuracy_against": theirs["accuracy"],
            "gap_points": 100 * (accuracy - theirs["accuracy"]),
            "sem_points": 100 * np.hypot(ours.sem(skipna=False).to_numpy(), theirs["sem"]),
        }
    )


def savings(curve: pd.DataFrame, model: str, against: str, *, cost: str = "macs") -> pd.DataFrame:
    """Return how much less `model` costs than `against` at the accuracy of each exit of `against`, in per cent.

    Both costs are the lowest at which a model's mean curve over seeds reaches that accuracy. So an exit of `against`
    that is no better than a cheaper one counts with the cost of the cheaper one. A model whose first exit is already
    better counts with the cost of that exit. NaN where `model` never reaches the accuracy.

    Returns:
        exit and accuracy of `against` (mean over seeds); the cost of `model`, and with the suffix _against the cost of
        `against`; saving_percent.

    Raises:
        ValueError: as `gap`.
    """
    table = _validated(curve, cost, model=model, against=against)
    ours, theirs = _mean(table, model, cost), _mean(table, against, cost)
    least, least_against = (
        np.array([_least_cost(mean, accuracy, cost) for accuracy in theirs["accuracy"]]) for mean in (ours, theirs)
    )
    table = theirs[["exit", "accuracy"]].assign(**{cost: least, f"{cost}_against": least_against})
    return table.assign(saving_percent=100 * (1 - least / least_against))


def _validated(curve: pd.DataFrame, cost: str, **models: str) -> pd.DataFrame:
    """Return a validated curve that can be interpolated and has these models (argument name -> model)."""
    curve = validated_curve(curve, cost)
    keys = _keys(curve)
    require_rows(curve["accuracy"].notna(), curve, "curve", "accuracy", "fractions in [0, 1]", *keys, "exit")
    require_unique(curve, "curve", *keys, "exit", remedy="choose one level of the taxonomy")
    require_unique(curve, "curve", *keys, cost)
    names = curve["model"].unique().tolist()
    for argument, model in models.items():
        require(model in names, argument, f"a model of the curve ({', '.join(map(str, names))})", model)
    return curve


def _keys(curve: pd.DataFrame) -> list[str]:
    return ["model", "seed"] if "seed" in curve.columns else ["model"]


def _runs(table: pd.DataFrame, cost: str) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Yield model and seed of each run, the logarithms of its costs in rising order, and its accuracies."""
    keys = _keys(table)
    for values, rows in table.groupby(keys, sort=False, dropna=False, observed=True):
        rows = rows.sort_values(cost)
        yield dict(zip(keys, values, strict=True)), np.log(rows[cost].to_numpy()), rows["accuracy"].to_numpy()


def _at(costs: np.ndarray, budgets: np.ndarray, accuracies: np.ndarray, last_stands: bool = False) -> np.ndarray:
    """Interpolate a run of `_runs` at these costs."""
    beyond = accuracies[-1] if last_stands else np.nan
    return np.interp(np.log(costs), budgets, accuracies, left=np.nan, right=beyond)


def _mean(table: pd.DataFrame, model: str, cost: str) -> pd.DataFrame:
    """Return a model's mean curve over seeds by rising cost: exit, cost, accuracy and its standard error, sem."""
    by_exit = table[table["model"] == model].groupby("exit", observed=True)
    runs = by_exit.size()
    got = Words(f"runs per exit {runs.to_dict()}")
    require(runs.nunique() == 1, "curve", f"the same exits of {model!r} for every seed", got)
    costs = by_exit[cost].mean().clip(by_exit[cost].min(), by_exit[cost].max())  # of equal ones, no other number
    columns = {cost: costs, "accuracy": by_exit["accuracy"].mean(), "sem": by_exit["accuracy"].sem()}
    return pd.DataFrame(columns).reset_index().sort_values(cost, ignore_index=True)


def _least_cost(mean: pd.DataFrame, accuracy: float, cost: str) -> float:
    """Return the least cost at which a mean curve reaches an accuracy; NaN if it never does."""
    costs, accuracies = mean[cost].to_numpy(), mean["accuracy"].to_numpy()
    if not (reached := accuracies >= accuracy).any():
        return math.nan
    i = int(reached.argmax())
    if i == 0 or accuracies[i] == accuracy:
        return costs[i]
    return math.exp(np.interp(accuracy, accuracies[i - 1 : i + 1], np.log(costs[i - 1 : i + 1])))
