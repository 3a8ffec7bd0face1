"""Pictures of a training run."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from mtanytime.checks import Words, require
from mtanytime.explore.draw.style import (
    BATCH_ACCURACY,
    NOISY_FROM,
    Picture,
    add_legend,
    distinct_colours,
    marker_for,
    step_axis,
)
from mtanytime.explore.kinds import measures, remedy_for
from mtanytime.explore.tables import FLOAT32_UP_TO, Table, finite, read_table
from mtanytime.measure.tables import as_numbers, require_rows

LINE_STYLES = ("-", "--", "-.", ":")


def learning_curves(log: Table) -> Picture:
    """Draw every loss of a log against the training step, and every accuracy in a second panel.

    A column of more than 200 values is drawn faintly, with its running mean over a fiftieth of them on top. Losses that
    differ by more than a factor of 50 get a logarithmic axis.

    Args:
        log: step, and any columns whose names end in `loss` or `accuracy` (fractions of 1).

    Raises:
        ValueError: there is no column to draw, no column `step`, or no row.
    """
    table = read_table(log, "log", "step")
    columns = measures(table)
    table = as_numbers(table, "log", *(name for names in columns.values() for name in names))
    for name in (name for names in columns.values() for name in names):
        table[name] = finite(table[name])
    columns = {kind: [name for name in names if table[name].notna().any()] for kind, names in columns.items()}
    columns = {kind: names for kind, names in columns.items() if names}
    came = Words(f"columns {', '.join(map(str, table))}")
    require(bool(columns), "log", "a loss or an accuracy with a finite number", came, remedy_for(table, "log"))
    steps = table["step"].abs() < FLOAT32_UP_TO
    require_rows(steps, table, "log", "step", "finite numbers")
    names = [name.replace("_", " ") for names in columns.values() for name in names]
    alt = f"{', '.join(names)} against the training step".capitalize()
    picture = Picture(alt, 4.6 * len(columns) + 0.4, 3.6)
    panels = picture.subplots(1, len(columns), squeeze=False).ravel()
    for ax, (kind, names) in zip(panels, columns.items(), strict=True):
        _draw_panel(ax, table, kind, names)
    return picture


def _draw_panel(ax: Axes, table: pd.DataFrame, kind: str, names: list[str]) -> None:
    """Draw all columns of one kind, "loss" or "accuracy"."""
    lines = {}
    for (name, colour), style in zip(distinct_colours(names).items(), LINE_STYLES * len(names), strict=False):
        line = table[["step", name]].dropna().groupby("step").mean().reset_index()
        values = line[name] * (100 if kind == "accuracy" else 1)
        if len(line) > NOISY_FROM:
            ax.plot(line["step"], values, color=colour, lw=0.6, alpha=0.25)
            values = values.rolling(len(line) // 50, center=True, min_periods=1).mean()
        label = BATCH_ACCURACY if name == "accuracy" else name.replace("_", " ")
        look = {"color": colour, "ls": style, "lw": 1.6, "marker": marker_for(line)}
        (lines[label],) = ax.plot(line["step"], values, **look)
    numbers = table[names].to_numpy(float)
    numbers = numbers[np.isfinite(numbers)]
    if kind == "loss" and 0 < 50 * numbers.min(initial=math.inf) < numbers.max(initial=0):
        ax.set_yscale("log")
    ax.set(xlabel="training step", ylabel="accuracy (%)" if kind == "accuracy" else "loss")
    step_axis(ax)
    add_legend(ax, lines, loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)
