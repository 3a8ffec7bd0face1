"""Curves of accuracy against cost; `cost` names the column of what is paid: macs, macs_own_head or latency_ms."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mtanytime.checks import require_wanted


def area_under_curve(
    curve: pd.DataFrame, between: tuple[float, float] | None = None, *, cost: str = "macs"
) -> pd.DataFrame:
    """Mean accuracy over the logarithm of the budget, for each model (and seed): model[, seed], area.

    The area under accuracy against log(cost), over the width of the range. The range is each curve's own, first to
    last exit (for a single exit, its accuracy), or `between` = (low, high), the same for all. There, a budget below a
    curve's first exit allows no answer and counts as accuracy 0, and above its last exit the last answer stands.
    ValueError for a range that is not 0 < low < high, and for a curve that `interpolated` refuses.
    """
    if between is not None:
        require_wanted(0 < between[0] < between[1] < math.inf, "between = (low, high) with 0 < low < high", between)
    rows = []
    for run, budgets, accuracies in _runs(_checked(curve, cost), cost):
        low, high = (budgets[0], budgets[-1]) if between is None else np.log(between)
        if low == high:
            rows.append({**run, "area": accuracies[0]})
            continue
        inside = budgets[(low < budgets) & (budgets < high)]
        x = np.unique([*inside, *(end for end in (low, high) if end >= budgets[0])])
        y = np.interp(x, budgets, accuracies)  # beyond the last exit: its accuracy
        rows.append({**run, "area": float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) / (high - low))})
    return pd.DataFrame(rows)


def interpolated(curve: pd.DataFrame, at: float | Sequence[float] | np.ndarray, *, cost: str = "macs") -> pd.DataFrame:
    """Accuracy of each model (and seed) at given costs: model[, seed], the cost, accuracy; NaN outside a curve's range.

    Raises ValueError for costs that are not positive, columns that are missing (named), an accuracy outside [0, 1], and
    a run with two rows of the same exit or cost (pick one level of a taxonomy first). Rows may have any order.
    """
    costs = np.atleast_1d(np.asarray(at, dtype=float))
    require_wanted(bool(((costs > 0) & np.isfinite(costs)).all()), f"a {cost} above 0 to interpolate at", at)
    found = [
        pd.DataFrame({**run, cost: costs, "accuracy": _at(costs, budgets, accuracies)})
        for run, budgets, accuracies in _runs(_checked(curve, cost), cost)
    ]
    return pd.concat(found, ignore_index=True)


def gap(
    curve: pd.DataFrame, model: str, against: str, *, cost: str = "macs", last_stands: bool = False
) -> pd.DataFrame:
    """How far `model` is above `against` at each of the latter's exits, in points (per cent of the images).

    Columns: exit and cost of `against`; accuracy, of `model` interpolated there, and accuracy_against, both means over
    seeds; gap_points, their difference, and sem_points, its standard error, the runs taken as independent (NaN with one
    seed). NaN where a run of `model` does not reach; with `last_stands`, only below its first exit: a budget beyond its
    last exit buys that one. ValueError also for a model that the curve does not hold.
    """
    table = _checked(curve, cost, model, against)
    theirs = _mean(table, against, cost)
    of_model = _runs(table[table["model"] == model], cost)
    at = theirs[cost].to_numpy()
    ours = pd.DataFrame([_at(at, budgets, accuracies, last_stands) for _, budgets, accuracies in of_model])
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
    """How much less `model` costs than `against` at the accuracy of each of the latter's exits, in per cent.

    Columns: exit of `against` and its accuracy (mean over seeds); the cost of `model` and, with _against, of the other:
    the least at which its mean curve reaches that accuracy; saving_percent. So an exit of `against` that is no better
    than a cheaper one counts at the cheaper one's cost. A model whose first exit is already better costs that exit; NaN
    for one that is never so good. Errors as in `gap`.
    """
    table = _checked(curve, cost, model, against)
    ours, theirs = _mean(table, model, cost), _mean(table, against, cost)
    least, least_against = (
        np.array([_least_cost(mean, accuracy, cost) for accuracy in theirs["accuracy"]]) for mean in (ours, theirs)
    )
    found = theirs[["exit", "accuracy"]].assign(**{cost: least, f"{cost}_against": least_against})
    return found.assign(saving_percent=100 * (1 - least / least_against))


def _checked(curve: pd.DataFrame, cost: str, *models: str) -> pd.DataFrame:
    """The curve, its costs and accuracies as numbers."""
    columns = ["model", "exit", cost, "accuracy"]
    if missing := [column for column in columns if column not in curve.columns]:
        raise ValueError(f"wanted a curve with columns {columns}; {missing} missing in {list(curve.columns)}")
    require_wanted(len(curve) > 0, "a curve with rows", "none")
    amounts, accuracy = (pd.to_numeric(curve[column], errors="coerce") for column in (cost, "accuracy"))
    good = {cost: (amounts > 0) & (amounts < math.inf), "accuracy": accuracy.between(0, 1)}
    for column, wanted in ((cost, "finite and above 0"), ("accuracy", "in [0, 1]")):
        if not good[column].all():
            row = curve[~good[column]].iloc[0]
            raise ValueError(f"{column} of {row['model']!r}, exit {row['exit']} is {row[column]}; wanted {wanted}")
    for column in ("exit", cost):
        if (twice := curve.duplicated([*_keys(curve), column])).any():
            row = curve[twice].iloc[0]
            raise ValueError(f"wanted each {column} once in a run; {row['model']!r} has {row[column]} twice")
    for model in models:
        has = curve["model"].unique().tolist()
        require_wanted(model in has, f"a model of the curve (has: {', '.join(map(str, has))})", model)
    return curve.assign(**{cost: amounts, "accuracy": accuracy})


def _keys(curve: pd.DataFrame) -> list[str]:
    return ["model", "seed"] if "seed" in curve.columns else ["model"]


def _runs(table: pd.DataFrame, cost: str) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Each run of a checked curve: its model and seed, the logarithms of its costs, rising, and its accuracies."""
    keys = _keys(table)
    for values, rows in table.groupby(keys, sort=False, dropna=False, observed=True):
        rows = rows.sort_values(cost)
        yield dict(zip(keys, values, strict=True)), np.log(rows[cost].to_numpy()), rows["accuracy"].to_numpy()


def _at(costs: np.ndarray, budgets: np.ndarray, accuracies: np.ndarray, last_stands: bool = False) -> np.ndarray:
    beyond = accuracies[-1] if last_stands else np.nan
    return np.interp(np.log(costs), budgets, accuracies, left=np.nan, right=beyond)


def _mean(table: pd.DataFrame, model: str, cost: str) -> pd.DataFrame:
    """A model's mean curve over seeds: exit, cost, accuracy and its standard error sem, by rising cost."""
    by_exit = table[table["model"] == model].groupby("exit", observed=True)
    if (runs := by_exit.size()).nunique() > 1:
        raise ValueError(f"wanted the same exits of {model!r} for every seed; got runs by exit {runs.to_dict()}")
    found = {cost: by_exit[cost].mean(), "accuracy": by_exit["accuracy"].mean(), "sem": by_exit["accuracy"].sem()}
    return pd.DataFrame(found).reset_index().sort_values(cost, ignore_index=True)


def _least_cost(mean: pd.DataFrame, accuracy: float, cost: str) -> float:
    """The least cost at which a mean curve reaches an accuracy."""
    costs, accuracies = mean[cost].to_numpy(), mean["accuracy"].to_numpy()
    if not (reached := accuracies >= accuracy).any():
        return math.nan
    i = int(reached.argmax())
    if i == 0 or accuracies[i] == accuracy:
        return costs[i]
    return math.exp(np.interp(accuracy, accuracies[i - 1 : i + 1], np.log(costs[i - 1 : i + 1])))
