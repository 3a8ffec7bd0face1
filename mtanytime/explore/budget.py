"""Explore budgets: which exit of every model a budget buys, its cost and accuracy, and the gain of the next exit."""

import math
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from jaxtyping import UInt8

from mtanytime.checks import require
from mtanytime.explore import draw, tables
from mtanytime.explore.contents.budget import budget_choices, budget_contents
from mtanytime.explore.contents.common import ALL
from mtanytime.explore.widget import Explorer, require_choice


class BudgetExplorer(Explorer):
    """Show accuracy against cost, with a slider over budgets and the exits that each budget buys.

    The slider stops at the cost of every exit ("58 M MACs · exit 4 of 8"). A budget pays for the most expensive exit of
    each model that it covers, which need not be the most accurate one: choosing by accuracy would be choosing on the
    test set. Hovering over a point shows its values, a click makes its cost the budget, and the legend's buttons hide
    and show models. Accuracies are means over runs (seeds) ± one standard deviation. Without a front end (GitHub,
    nbconvert), `picture()` is shown, with a line of text.

    Args:
        curve: model, exit, accuracy and at least one of macs, latency_ms and params[, level][, seed] (a DataFrame or
            the path of a CSV file or of a run's folder); see `tables.read_curve`. A cost that some rows lack is not
            offered.
        images: uint8 (n, 3, height, width), at most 64 test images for the strip; images with more than 96 pixels per
            side are shown smaller.
        predictions: image (its index), model, exit, answer[, coarse][, right]: each exit's answer to each image, the
            coarse class of the answer, and whether it is correct.

    Attributes:
        at: the budget, as the model and exit whose cost it is.
        cost: "macs", "latency_ms" or "params".
        level: the level of the taxonomy, where the curve has several accuracies per exit; else "".
        hidden: the names of the models that are not shown; at least one is.

    Raises:
        ValueError: a table lacks a column or rows or has a value out of range, the images are not as above, the
            predictions do not match the images or the curve, or a choice is not offered.
    """

    CHOICES = ("cost", "level", "at", "hidden")

    cost = traitlets.Unicode().tag(sync=True)
    level = traitlets.Unicode(ALL).tag(sync=True)
    at = traitlets.List(minlen=2, maxlen=2).tag(sync=True)
    hidden = traitlets.List(traitlets.Unicode()).tag(sync=True)

    def __init__(
        self,
        curve: tables.Table,
        images: UInt8[np.ndarray, "n 3 h w"] | None = None,
        predictions: tables.Table | None = None,
    ) -> None:
        self._curve = tables.load_table(curve, "curve")
        self._exits = tables.read_curve(self._curve)
        content = budget_contents(self._curve, images, predictions)
        super().__init__(content=content, **budget_choices(content))

    @property
    def budget(self) -> float:
        """The budget in multiply-adds, milliseconds or parameters.

        If the model in `at` is hidden, this is the cost of the most expensive shown exit that costs no more. If there
        is none, or the level lacks the exit, it is the lowest cost.
        """
        model, exit = self.at
        exits = self._at_level()
        here = exits.loc[(exits["model"] == model) & (exits["exit"] == exit), self.cost]
        costs = exits.loc[~exits["model"].isin(self.hidden), self.cost]
        covered = costs[costs <= (here.iloc[0] if len(here) else 0)]
        return float(costs.min() if covered.empty else covered.max())

    def picks(self, budget: float | None = None) -> pd.DataFrame:
        """Return the exit that a budget buys, one row per shown model of which it buys one.

        Args:
            budget: in the units of `cost`; the slider's budget if None.

        Returns:
            model, exit, the cost, accuracy, spread and runs, as from `tables.read_curve`, and the further cost and
            accuracy of the next exit, more_cost and more_accuracy (NaN after the last exit).

        Raises:
            ValueError: the budget is not a finite number above 0.
        """
        budget = self.budget if budget is None else budget
        require(bool(0 < budget < math.inf), "budget", "a finite number above 0", budget)
        exits = self._at_level().sort_values(self.cost, kind="stable")
        models = exits.groupby("model", sort=False)
        exits = exits.assign(
            more_cost=models[self.cost].shift(-1) - exits[self.cost],
            more_accuracy=models["accuracy"].shift(-1) - exits["accuracy"],
        )
        picks = exits[exits[self.cost] <= budget].groupby("model", sort=False).tail(1).set_index("model")
        shown = [model for model in tables.distinct(self._exits["model"]) if model not in self.hidden]
        order = [model for model in shown if model in picks.index]
        columns = ["exit", self.cost, "accuracy", "spread", "runs", "more_cost", "more_accuracy"]
        return picks.loc[order, columns].reset_index()

    def picture(self) -> draw.Picture:
        """Draw the curves, with the present budget marked."""
        choices = {"level": self.level or None, "budget": self.budget, "hidden": self.hidden}
        return draw.accuracy_by_budget(self._curve, self.cost, **choices)

    def _at_level(self) -> pd.DataFrame:
        return tables.curve_at_level(self._exits, self.level or None)

    @traitlets.validate("cost", "level", "at", "hidden")
    def _validate_choice(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "cost":
            require_choice("cost", [cost["name"] for cost in self.content["costs"]], value)
        elif name == "level":
            require_choice("level", self.content["levels"] or [ALL], value)
        elif name == "hidden":
            models = [model["name"] for model in self.content["models"]]
            for model in value:
                require_choice("hidden", models, model)
            require(len(set(value)) < len(models), "hidden", "fewer than all models", value)
        else:
            value = list(value)
            require_choice("at", self.content["exits"], value)
            value[1] = int(value[1])  # JSON knows no NumPy integers
        return value
