"""Pictures of a training run."""

import math

import numpy as np

from mtanytime.explore.draw.style import BATCH_ACCURACY, NOISY_FROM, Picture, distinct_colours, marker_for, step_axis
from mtanytime.explore.tables import Table, read_table


def learning_curves(log: Table) -> Picture:
    """Every loss of a log against the training step, and every accuracy in a panel beside it.

    A column of more than 200 values is drawn faintly, below its running mean over a fiftieth of them. Losses that
    spread over more than a factor of 50 are drawn on a logarithmic axis.

    Args:
        log: step, and any of the columns whose names end in `loss` or `accuracy` (fractions of 1).

    Raises:
        ValueError: there is no column to draw, `step` is missing, or the table is empty.
    """
    table = read_table(log, "log", "step")
    kinds = {kind: [c for c in table if c.endswith(kind) and table[c].notna().any()] for kind in ("loss", "accuracy")}
    kinds = {kind: names for kind, names in kinds.items() if names}
    if not kinds:
        raise ValueError(f"the log holds no loss and no accuracy (has: {', '.join(table)})")
    alt = f"{', '.join(name.replace('_', ' ') for names in kinds.values() for name in names)} against the training step"
    picture = Picture(alt.capitalize(), 4.6 * len(kinds) + 0.4, 3.6)
    panels = picture.subplots(1, len(kinds), squeeze=False).ravel()
    for ax, (kind, names) in zip(panels, kinds.items(), strict=True):
        for (name, colour), style in zip(
            distinct_colours(names).items(), ("-", "--", "-.", ":") * len(names), strict=False
        ):
            line = table[["step", name]].dropna().groupby("step").mean().reset_index()
            values = line[name] * (100 if kind == "accuracy" else 1)
            if len(line) > NOISY_FROM:
                ax.plot(line["step"], values, color=colour, lw=0.6, alpha=0.25)
                values = values.rolling(len(line) // 50, center=True, min_periods=1).mean()
            label = BATCH_ACCURACY if name == "accuracy" else name.replace("_", " ")
            ax.plot(line["step"], values, color=colour, ls=style, lw=1.6, marker=marker_for(line), label=label)
        numbers = table[names].to_numpy(float)
        numbers = numbers[np.isfinite(numbers)]
        if kind == "loss" and 0 < 50 * numbers.min(initial=math.inf) < numbers.max(initial=0):
            ax.set_yscale("log")
        ax.set(xlabel="training step", ylabel="accuracy (%)" if kind == "accuracy" else "loss")
        step_axis(ax)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)
    return picture
