"""Move through a transfer: the heat-map of λ at any step of its trace."""

from typing import Any

import pandas as pd
import traitlets

from mtanytime.explore import contents, draw, tables
from mtanytime.explore.widget import Explorer, one_of


class TransferExplorer(Explorer):
    """A slider over training steps, the heat-map of λ at the step it stands on, and one pair of layers in detail.

    A click on a cell, or the two menus, choose the pair: its λ over time and its channel weights at the step. Several
    source networks (layers called `birds/layer1`, `cars/layer1`) and the slices of an anytime target can be shown one
    at a time. More than 200 steps are thinned, and fewer where there are many pairs; the explorer says so. Where no
    front end runs (GitHub, nbconvert), `picture()` is shown, with a line of text.

    Args:
        trace: step, source, target, weight[, weight_std][, slice] (a DataFrame or a CSV file's path).
        channels: step, source, target, channel, weight (likewise), for the detail.
        relative: show each pair's share of its target layer's λ, in place of λ itself (see `draw.heatmap`).

    Attributes:
        step: the step shown; one of `content["steps"]`.
        network: the source network shown; "" for all.
        slice: the target's slice shown; "" for all.
        relative: as the argument.
        pair: source and target layer of the detail.

    Raises:
        ValueError: a table lacks a column, has no row, or has two for the same thing; a choice is not offered.
    """

    CHOICES = ("step", "network", "slice", "relative", "pair")

    step = traitlets.Int().tag(sync=True)
    network = traitlets.Unicode(contents.ALL).tag(sync=True)
    slice = traitlets.Unicode(contents.ALL).tag(sync=True)
    relative = traitlets.Bool().tag(sync=True)
    pair = traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2).tag(sync=True)

    def __init__(self, trace: tables.Table, channels: tables.Table | None = None, relative: bool = False) -> None:
        content = contents.transfer_contents(trace, channels)
        self._weights = contents.wide(tables.read_trace(trace))
        choices = contents.first_choices(content) | {"relative": relative}
        super().__init__(content=content, **choices)

    def values(self) -> pd.DataFrame:
        """The numbers in the heat-map: λ or shares, source layers down and target layers across."""
        weights = self._scaled()
        sources, targets = (weights.columns.unique(side) for side in ("source", "target"))
        return weights.loc[self.step].unstack("target").reindex(index=sources, columns=targets)

    def picture(self) -> draw.Picture:
        """The heat-map of the present choices."""
        if self._shown().empty:
            return draw.Picture("No pair of layers was matched in this choice of network and slice", 4, 0.5)
        now = self._shown().loc[self.step].rename("weight").reset_index().assign(step=self.step)
        largest = self._scaled().max(axis=None)  # of all steps, so that their pictures compare
        return draw.heatmap(now, self.step, self.relative, vmax=float(largest) if largest > 0 else 1.0)

    def _shown(self) -> pd.DataFrame:
        """λ of the chosen network and slice at every step."""
        sources, targets = (self._weights.columns.get_level_values(side) for side in ("source", "target"))
        network, part = f"{self.network}/" if self.network else "", f" slice {self.slice}" if self.slice else ""
        return self._weights.loc[:, sources.str.startswith(network) & targets.str.endswith(part)]

    def _scaled(self) -> pd.DataFrame:
        """The same on the chosen scale."""
        weights = self._shown()
        if not self.relative:
            return weights
        return weights / weights.T.groupby("target").transform("sum").T.replace(0, 1)

    @traitlets.validate("step", "network", "slice", "pair")
    def _offered(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        if name == "pair":
            for side, side_name in enumerate(("sources", "targets")):
                one_of(f"a pair with one of its {side_name}", self.content[side_name], value[side])
        elif name == "step":
            steps = self.content["steps"]
            if value not in steps:
                nearest = min(steps, key=lambda step: abs(step - value))
                kept = f"{len(steps)} from {steps[0]} to {steps[-1]}"
                raise ValueError(f"the explorer has no step {value} (nearest: {nearest}; {kept})")
        else:
            one_of(f"a {name}", [contents.ALL, *self.content[f"{name}s"]], value)
        return value
