"""Move through a transfer: the heat-map of λ at any step of its trace."""

from functools import cached_property
from typing import Any

import ipywidgets as widgets

from mtanytime.explore import draw


class TransferExplorer(widgets.VBox):
    """A slider over training steps and the heat-map of λ at the step it stands on.

    Frames are drawn at first sight and kept; moving the slider swaps the bytes of one picture. Where no front end runs
    (GitHub, nbconvert), the heat-map at the last step is shown, with a line of text.

    Args:
        trace: step, source, target, weight (a DataFrame or a CSV file's path).
        relative: show each pair's share of its target layer's λ, in place of λ itself (see `draw.heatmap`).

    Attributes:
        step: a selection slider over the trace's steps.
        picture: the image that shows the frame.

    Raises:
        ValueError: the trace lacks a column or has no row.
    """

    def __init__(self, trace: draw.Table, relative: bool = False) -> None:
        last = draw.heatmap(trace, relative=relative)  # refuses a table that cannot be drawn
        self._trace = draw.read_table(trace, "trace", "step", "source", "target", "weight")
        self._relative = relative
        self._frames: dict[int, bytes] = {}
        steps = sorted(int(step) for step in self._trace["step"].unique())
        self._frames[steps[-1]] = last.png(dpi=96)
        self.picture = widgets.Image(value=self._frames[steps[-1]], format="png")
        self.step = widgets.SelectionSlider(
            options=[(f"step {step} of {steps[-1]}", step) for step in steps],
            value=steps[-1],
            description="training",
            continuous_update=True,
            layout=widgets.Layout(width="36rem"),
        )
        self.step.observe(self._show, names="value")
        super().__init__([self.step, self.picture])

    def frame(self, step: int) -> bytes:
        """The PNG of one step."""
        if step not in self._frames:
            picture = draw.heatmap(self._trace, step, relative=self._relative)
            self._frames[step] = picture.png(dpi=96)
        return self._frames[step]

    def _show(self, change: Any) -> None:
        self.picture.value = self.frame(change["new"])

    @cached_property
    def _text(self) -> str:
        pairs, steps = self._trace.groupby(["source", "target"]).ngroups, self._trace["step"]
        return f"TransferExplorer: {pairs} pairs, {steps.nunique()} steps from {steps.min()} to {steps.max()}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data, about = draw.heatmap(self._trace, relative=self._relative)._repr_mimebundle_()
        live = super()._repr_mimebundle_(include=include, exclude=exclude) or {}
        return {**live, **data, "text/plain": self._text}, about
