"""Explore a transfer: the heat map of λ, or of what arrived, at any step of its trace."""

from typing import Any

import pandas as pd
import traitlets

from mtanytime.explore import draw, tables
from mtanytime.explore.contents.common import ALL
from mtanytime.explore.contents.transfer import (
    ARRIVED,
    ASKED,
    arrived_by_pair,
    by_pair,
    transfer_choices,
    transfer_contents,
)
from mtanytime.explore.widget import Explorer, require_choice


class TransferExplorer(Explorer):
    """Show the heat map of λ with a slider over training steps, and one pair of layers in detail.

    A click on a cell, or the two menus, choose the pair; the detail shows its λ over time and its channel weights at
    the step. Where R² was measured (see `TransferTrainer`), a switch shows what arrived in place of what was asked for,
    λ: R² at the last step measured until then. Several source networks (layers like `birds/layer1`, `cars/layer1`) and
    the slices of an anytime target can be shown one at a time. At most 200 steps are kept, and fewer where there are
    many pairs; a note says so. Without a front end (GitHub, nbconvert), `picture()` is shown, with a line of text.

    Args:
        trace: step, source, target, weight[, weight_std][, slice] (a DataFrame, the path of a CSV file, or the folder
            of a run, which is shown with its channel weights and R²).
        channels: step, source, target, channel, weight (likewise), for the detail.
        relative: show each pair's share of its target layer's λ instead of λ (see `draw.heatmap`).
        arrived: step, source, target, r2[, slice] (likewise); default: the arrived.csv beside a run's trace.csv.

    Attributes:
        step: the step shown; one of `content["steps"]`.
        network: the source network shown; "" for all.
        slice: the slice of the target shown; "" for all.
        relative: as the argument.
        quantity: "asked", λ, or "arrived", R².
        pair: source and target layer of the detail.

    Raises:
        ValueError: a table lacks a column or rows or has two rows for the same pair and step, or a choice is not
            offered.
    """

    CHOICES = ("step", "network", "slice", "relative", "quantity", "pair")

    step = traitlets.Int().tag(sync=True)
    network = traitlets.Unicode(ALL).tag(sync=True)
    slice = traitlets.Unicode(ALL).tag(sync=True)
    relative = traitlets.Bool().tag(sync=True)
    quantity = traitlets.Unicode(ASKED).tag(sync=True)
    pair = traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2).tag(sync=True)

    def __init__(
        self,
        trace: tables.Table,
        channels: tables.Table | None = None,
        relative: bool = False,
        arrived: tables.Table | None = None,
    ) -> None:
        arrived = tables.arrived_beside(trace) if arrived is None else arrived
        trace, channels = tables.whole_run(trace, channels)
        content = transfer_contents(trace, channels, arrived)
        table = tables.read_trace(trace)
        self._weights = by_pair(table)
        self._r2 = None if arrived is None else arrived_by_pair(arrived, table)
        super().__init__(content=content, **transfer_choices(content) | {"relative": relative})

    def values(self) -> pd.DataFrame:
        """Return the numbers in the heat map, λ, shares or R²: a row per source layer and a column per target layer."""
        arrived = self.quantity == ARRIVED
        numbers = self._shown() if arrived else self._scaled()
        sources, targets = (numbers.columns.unique(side) for side in ("source", "target"))
        now = numbers.loc[self._measured() if arrived else self.step]
        return now.unstack("target").reindex(index=sources, columns=targets)

    def picture(self) -> draw.Picture:
        """Draw the heat map of the present choices."""
        if self._shown().empty:
            return draw.Picture("No pair of layers was matched in this choice of network and slice", 4, 0.5)
        if self.quantity == ARRIVED:
            r2 = self._shown().loc[self._measured()].rename("r2").reset_index()
            return draw.arrived(r2.assign(step=self._measured()))
        now = self._shown().loc[self.step].rename("weight").reset_index().assign(step=self.step)
        largest = self._scaled().max(axis=None)  # of all steps, so that their pictures can be compared
        return draw.heatmap(now, self.step, self.relative, vmax=float(largest) if largest > 0 else 1.0)

    def _shown(self) -> pd.DataFrame:
        """Return λ or R² of the chosen network and slice, a row per step and a column per pair."""
        numbers = self._r2 if self.quantity == ARRIVED else self._weights
        sources, targets = (numbers.columns.get_level_values(side) for side in ("source", "target"))
        network, part = f"{self.network}/" if self.network else "", f" slice {self.slice}" if self.slice else ""
        return numbers.loc[:, sources.str.startswith(network) & targets.str.endswith(part)]

    def _measured(self) -> int:
        """Return the last step up to the present one at which the front end has R²; the first of all before it."""
        steps = self.content["arrived"]["steps"]
        return max([step for step in steps if step <= self.step], default=steps[0])

    def _scaled(self) -> pd.DataFrame:
        """Return λ of the chosen network and slice, as shares if `relative`."""
        weights = self._shown()
        if not self.relative:
            return weights
        return weights / weights.T.groupby("target").transform("sum").T.replace(0, 1)

    @traitlets.validate("step", "network", "slice", "quantity", "pair")
    def _validate_choice(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "pair":
            require_choice("pair, source layer", self.content["sources"], value[0])
            require_choice("pair, target layer", self.content["targets"], value[1])
        elif name == "quantity":
            require_choice(name, [ASKED] if self.content["arrived"] is None else [ASKED, ARRIVED], value)
        elif name == "step":
            tables.require_step(self.content["steps"], "explorer", value)
        else:
            require_choice(name, [ALL, *self.content[f"{name}s"]], value)
        return value
