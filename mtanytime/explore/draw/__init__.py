"""Pictures: tables in, matplotlib figures out."""

from mtanytime._moved import find
from mtanytime.explore.draw.anytime import accuracy_by_budget, answers_by_time
from mtanytime.explore.draw.methods import accuracy_by_method, accuracy_by_seconds
from mtanytime.explore.draw.style import (
    BATCH_ACCURACY,
    LEAST_RATIO,
    LEGEND_UP_TO,
    LETTER,
    LETTERS_UP_TO,
    LINES_UP_TO,
    MAPS_A_ROW,
    MARKERS,
    NAMES_UP_TO,
    NOISY_FROM,
    NUMBERS_UP_TO,
    Picture,
    coloured_grid,
    distinct_colours,
    diverging_colours,
    legend_outside,
    marker_for,
    scale_colours,
    shortened,
    step_axis,
)
from mtanytime.explore.draw.summary import accuracy_summary
from mtanytime.explore.draw.training import learning_curves
from mtanytime.explore.draw.transfer import arrived, channel_weights, difference, heatmap, heatmaps, weights_over_time

__all__ = [
    "BATCH_ACCURACY",
    "LEAST_RATIO",
    "LEGEND_UP_TO",
    "LETTER",
    "LETTERS_UP_TO",
    "LINES_UP_TO",
    "MAPS_A_ROW",
    "MARKERS",
    "NAMES_UP_TO",
    "NOISY_FROM",
    "NUMBERS_UP_TO",
    "Picture",
    "accuracy_by_budget",
    "accuracy_by_method",
    "accuracy_by_seconds",
    "accuracy_summary",
    "answers_by_time",
    "arrived",
    "channel_weights",
    "coloured_grid",
    "difference",
    "distinct_colours",
    "diverging_colours",
    "heatmap",
    "heatmaps",
    "learning_curves",
    "legend_outside",
    "marker_for",
    "scale_colours",
    "shortened",
    "step_axis",
    "weights_over_time",
]


def __getattr__(name: str) -> object:
    """Look up a name that was here before version 0.2."""
    return find("explore.draw", name)
