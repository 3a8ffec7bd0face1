"""Explore a transfer: the heat maps of λ and of what arrived, at any step of one run or of several."""

from typing import Any

import numpy as np
import pandas as pd
import traitlets

from mtanytime.checks import require
from mtanytime.explore import draw, tables
from mtanytime.explore.contents.common import ALL, NO_CHANNEL, NONE
from mtanytime.explore.contents.transfer import (
    ARRIVED,
    ASKED,
    BOTH,
    arrived_by_pair,
    by_pair,
    held_runs,
    read_run,
    runs_contents,
    transfer_choices,
)
from mtanytime.explore.runs import Tables, runs_of
from mtanytime.explore.widget import Explorer, require_choice

PINNED_UP_TO = 8


class TransferExplorer(Explorer):
    """Show the heat map of λ with a slider over training steps, and one pair of layers in detail.

    A click on a cell pins its pair: the pair's curve stays marked beside those of the other pinned pairs, until a
    second click. The two menus choose a pair without pinning it. The detail shows the pair's λ over time and its
    channel weights at the step; a click on the curve jumps to that step. Where R² was measured (see
    `TransferTrainer`), a switch shows what arrived in place of what was asked for, λ, or both side by side: R² at the
    last step measured until then. Of several runs (seeds, methods) one is chosen, and may be compared with another:
    both maps and their difference. Several source networks (layers like `birds/layer1`, `cars/layer1`) and the slices
    of an anytime target can be shown one at a time. At most 200 steps are kept, and fewer where there are many pairs
    or runs; a note says so. Where `write_feature_maps` wrote what channels see into a run's folder, a click on a
    channel's bar, or the menu, shows it. Without a front end (GitHub, nbconvert), `picture()` is shown, with a line of
    text.

    Args:
        trace: step, source, target, weight[, weight_std][, slice] (a DataFrame, the path of a CSV file, or the folder
            of a run, which is shown with its channel weights and R²). Of several runs: a dictionary from names to
            tables, a list of paths, or one table in which a column seed or method tells the runs apart. A results.csv
            (method, seed, accuracy) in the folder of such a table gives the test accuracies.
        channels: step, source, target, channel, weight (likewise), for the detail; of several runs, a dictionary.
        relative: show each pair's share of its target layer's λ instead of λ (see `draw.heatmap`).
        arrived: step, source, target, r2[, slice] (likewise); default: the arrived.csv beside a run's trace.csv.

    Attributes:
        step: the step shown; one of `content["steps"]`.
        run: the name of the run shown; "" for the only one.
        compare: the name of another run, shown beside it; "" for none.
        network: the source network shown; "" for all.
        slice: the slice of the target shown; "" for all.
        relative: as the argument.
        change: show the change since the run's first step.
        quantity: "asked", λ; "arrived", R²; or "both".
        pair: source and target layer of the detail.
        pinned: at most 8 further pairs whose curves are drawn.
        channel: the channel of the source layer whose feature maps are shown; -1 for none.

    Raises:
        ValueError: a table lacks a column or rows or has two rows for the same pair and step, or a choice is not
            offered.
    """

    CHOICES = ("step", "run", "compare", "network", "slice", "relative", "change", "quantity", "pair", "pinned")
    CHOICES += ("channel",)

    step = traitlets.Int().tag(sync=True)
    run = traitlets.Unicode().tag(sync=True)
    compare = traitlets.Unicode(NONE).tag(sync=True)
    network = traitlets.Unicode(ALL).tag(sync=True)
    slice = traitlets.Unicode(ALL).tag(sync=True)
    relative = traitlets.Bool().tag(sync=True)
    change = traitlets.Bool().tag(sync=True)
    quantity = traitlets.Unicode(ASKED).tag(sync=True)
    pair = traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2).tag(sync=True)
    pinned = traitlets.List(traitlets.List(traitlets.Unicode(), minlen=2, maxlen=2)).tag(sync=True)

    channel = traitlets.Int(NO_CHANNEL, min=NO_CHANNEL).tag(sync=True)

    def __init__(
        self,
        trace: Tables,
        channels: Tables | None = None,
        relative: bool = False,
        arrived: Tables | None = None,
    ) -> None:
        runs = runs_of(trace, channels, arrived)
        content = runs_contents(runs)
        traces = {name: read_run(run) for name, run in runs.items()}
        self._weights = {name: by_pair(table) for name, table in traces.items()}
        measured = {name: run.arrived for name, run in runs.items() if run.arrived is not None}
        self._r2 = {name: arrived_by_pair(table, traces[name]) for name, table in measured.items()}
        super().__init__(content=content, **transfer_choices(content) | {"relative": relative})

    def values(self, run: str | None = None) -> pd.DataFrame:
        """Return the numbers in a heat map, λ, shares or R²: a row per source layer and a column per target layer.

        Where λ and R² are shown side by side, or R² of a run was not measured, they are λ.

        Args:
            run: the name of the run; the one that is shown if None.

        Raises:
            ValueError: there is no such run.
        """
        return self._map(self._numbers(run))

    def differences(self) -> pd.DataFrame:
        """Return the numbers of the run shown minus those of the run that it is compared with, as `values`.

        Raises:
            ValueError: no run to compare with is chosen.
        """
        require(self.compare != NONE, "compare", "the name of a run to compare with", self.compare)
        difference = self.values() - self.values(self.compare)  # with layers in alphabetical order where they differ
        sources, targets = (
            [name for name in self.content[side] if name in names]
            for side, names in (("sources", difference.index), ("targets", difference.columns))
        )
        return difference.reindex(index=sources, columns=targets)

    def picture(self) -> draw.Picture:
        """Draw the heat map of the present choices; of two runs, their difference."""
        numbers = self._numbers(None)
        if numbers.empty:
            return draw.Picture("No pair of layers was matched in this choice of network and slice", 4, 0.5)
        form = "+.0%" if self.relative and not self._arrived() else "+.2f"
        if self.compare != NONE:
            words = f"{self._quantity()}, {draw.shortened(self.run)}\n− {draw.shortened(self.compare)}"
            return draw.difference(self.differences(), f"{words} at step {self.step}", words, form=form)
        step = self._step_of(numbers)
        if self.change:
            largest = float(numbers.abs().max(axis=None))  # of all steps, so that their pictures can be compared
            words = f"{self._quantity()} since step {numbers.index[0]}"
            return draw.difference(self._map(numbers), f"{words} at step {step}", words, largest, form)
        if self._arrived():
            r2 = numbers.loc[step].rename("r2").reset_index()
            return draw.arrived(r2.assign(step=step))
        weights = self._chosen(self._weights[self.run])
        now = weights.loc[step].rename("weight").reset_index().assign(step=step)
        largest = numbers.max(axis=None)  # of all steps, likewise
        return draw.heatmap(now, step, self.relative, vmax=float(largest) if largest > 0 else 1.0)

    def _arrived(self, *runs: str) -> bool:
        """Whether R² is shown: it is chosen, and was measured in each run shown."""
        shown = {self.run, *runs} | ({self.compare} if self.compare != NONE else set())
        return self.quantity == ARRIVED and shown <= set(self._r2)

    def _quantity(self) -> str:
        """Return what a map shows, in words."""
        words = "R²" if self._arrived() else "share of λ" if self.relative else "λ"
        return f"Change of {words}" if self.change else words

    def _numbers(self, run: str | None) -> pd.DataFrame:
        """Return what a run's map shows at every step: a row per step and a column per pair."""
        name = self.run if run is None else run
        require_choice("run", list(self._weights), name)
        if self._arrived(name):
            numbers = self._chosen(self._r2[name]).loc[self._held(name)["arrived"]["steps"]]
        else:
            numbers = self._chosen(self._weights[name]).loc[self._held(name)["steps"]]
            if self.relative:
                numbers = numbers / numbers.T.groupby("target").transform("sum").T.replace(0, 1)
        return numbers - numbers.iloc[0] if self.change else numbers

    def _chosen(self, numbers: pd.DataFrame) -> pd.DataFrame:
        """Return the pairs of the chosen network and slice."""
        sources, targets = (numbers.columns.get_level_values(side) for side in ("source", "target"))
        network, part = f"{self.network}/" if self.network else "", f" slice {self.slice}" if self.slice else ""
        return numbers.loc[:, sources.str.startswith(network) & targets.str.endswith(part)]

    def _step_of(self, numbers: pd.DataFrame) -> int:
        """Return the last step up to the present one at which a run has numbers; the first of all before it."""
        before = int(np.searchsorted(numbers.index, self.step, side="right"))
        return int(numbers.index[max(before - 1, 0)])

    def _map(self, numbers: pd.DataFrame) -> pd.DataFrame:
        sources, targets = (numbers.columns.unique(side) for side in ("source", "target"))
        now = numbers.loc[self._step_of(numbers)]
        return now.unstack("target").reindex(index=sources, columns=targets)

    def _held(self, run: str) -> dict[str, Any]:
        """Return the numbers of a run that the front end has."""
        return next(held for held in held_runs(self.content) if held["name"] == run)

    @traitlets.validate("step", "run", "compare", "network", "slice", "quantity", "pair", "pinned")
    def _validate_choice(self, proposal: Any) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        runs = [held["name"] for held in held_runs(self.content)]
        if name == "pair":
            self._require_pair(name, value)
        elif name == "pinned":
            require(len(value) <= PINNED_UP_TO, name, f"at most {PINNED_UP_TO} pairs", len(value))
            for pair in value:
                self._require_pair(name, pair)
        elif name == "run":
            require_choice(name, runs, value)
        elif name == "compare":
            require_choice(name, [NONE, *(run for run in runs if run)], value)
        elif name == "quantity":
            measured = any(held["arrived"] is not None for held in held_runs(self.content))
            require_choice(name, [ASKED, ARRIVED, BOTH] if measured else [ASKED], value)
        elif name == "step":
            tables.require_step(self.content["steps"], "explorer", value)
        else:
            require_choice(name, [ALL, *self.content[f"{name}s"]], value)
        return value

    def _require_pair(self, name: str, pair: list[str]) -> None:
        require_choice(f"{name}, source layer", self.content["sources"], pair[0])
        require_choice(f"{name}, target layer", self.content["targets"], pair[1])
