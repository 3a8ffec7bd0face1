"""Move a budget: which exit it buys of every model, what that costs, and what more would gain."""

import math
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from jaxtyping import UInt8

from mtanytime.explore import contents, draw, tables
from mtanytime.explore.widget import Explorer, one_of


class BudgetExplorer(Explorer):
    """Accuracy against cost, a slider over budgets, and what each budget buys.

    The slider stops at the cost of every exit ("58 M FLOPs · exit 4 of 8"). A budget pays for the most expensive exit
    of each model that it covers, which need not be the most accurate one: picking by accuracy would choose on the test
    set. Its accuracy is a mean over the runs (seeds) with one standard deviation either way. Where no front end runs
    (GitHub, nbconvert), `picture()` is shown, with a line of text.

    Args:
        curve: model, exit, accuracy and at least one of macs, latency_ms and params[, level][, seed] (a DataFrame or a
            CSV file's path); see `tables.read_curve`. A cost that some rows lack is not offered.
        images: uint8 (n, 3, height, width), at most 64 test images for the strip; larger than 96 pixels a side, they
            are shown smaller.
        predictions: image (its index), model, exit, answer[, coarse][, right]: what each exit answers to each image,
            the coarse class that it belongs to, and whether it is right.

    Attributes:
        at: the budget, as the model and exit that it pays for exactly.
        cost: "macs", "latency_ms" or "params".
        level: the taxonomy's level, where the curve has several accuracies an exit; else "".

    Raises:
        ValueError: a table lacks a column, has no row, or holds a number out of range; the images are of another kind,
            or the predictions do not belong to them or to the curve; a choice is not offered.
    """

    CHOICES = ("cost", "level", "at")

    cost = traitlets.Unicode().tag(sync=True)
    level = traitlets.Unicode(contents.ALL).tag(sync=True)
    at = traitlets.List(minlen=2, maxlen=2).tag(sync=True)

    def __init__(
        self,
        curve: tables.Table,
        images: UInt8[np.ndarray, "n 3 h w"] | None = None,
        predictions: tables.Table | None = None,
    ) -> None:
        self._curve = tables.read_table(curve, "curve")
        self._exits = tables.read_curve(self._curve)
        content = contents.budget_contents(self._curve, images, predictions)
        super().__init__(content=content, **contents.first_choices(content))

    @property
    def budget(self) -> float:
        """What the slider stands on, in multiply–adds, milliseconds or parameters; the lowest where `at` has no level
        of this name."""
        model, exit = self.at
        exits = self._shown()
        here = exits.loc[(exits["model"] == model) & (exits["exit"] == exit), self.cost]
        return float(here.iloc[0] if len(here) else exits[self.cost].min())

    def picks(self, budget: float | None = None) -> pd.DataFrame:
        """The exit that a budget pays for, one row a model that it pays for at all.

        Args:
            budget: in the units of `cost`; where the slider stands if None.

        Returns:
            model, exit, the cost, accuracy, spread and runs, as from `tables.read_curve`; and of the next exit
            `more_cost` and `more_accuracy` (nan after the last one).

        Raises:
            ValueError: the budget is no number above 0.
        """
        budget = self.budget if budget is None else budget
        if not (budget > 0 and math.isfinite(budget)):
            raise ValueError(f"wanted a budget above 0; got {budget}")
        exits = self._shown().sort_values(self.cost, kind="stable")
        models = exits.groupby("model", sort=False)
        exits = exits.assign(
            more_cost=models[self.cost].shift(-1) - exits[self.cost],
            more_accuracy=models["accuracy"].shift(-1) - exits["accuracy"],
        )
        paid = exits[exits[self.cost] <= budget].groupby("model", sort=False).tail(1).set_index("model")
        order = [model for model in dict.fromkeys(self._exits["model"]) if model in paid.index]
        columns = ["exit", self.cost, "accuracy", "spread", "runs", "more_cost", "more_accuracy"]
        return paid.loc[order, columns].reset_index()

    def picture(self) -> draw.Picture:
        """The curves, with the present budget marked."""
        return draw.accuracy_by_budget(self._curve, self.cost, level=self.level or None, budget=self.budget)

    def _shown(self) -> pd.DataFrame:
        return tables.curve_at_level(self._exits, self.level or None)

    @traitlets.validate("cost", "level", "at")
    def _offered(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "cost":
            one_of("a cost", [cost["name"] for cost in self.content["costs"]], value)
        elif name == "level":
            one_of("a level", self.content["levels"] or [contents.ALL], value)
        else:
            value = list(value)
            one_of("a model and exit", self.content["exits"], value)
        return value
