"""What networks cost and what their exits are worth."""

from mtanytime._moved import find
from mtanytime.measure.costs import (
    Shape,
    exit_costs,
    exits_apart,
    latencies,
    latency,
    macs,
    parameters,
    random_images,
    reference_tensor,
    table_by_exit,
)
from mtanytime.measure.curves import area_under_curve, gap, interpolated, savings
from mtanytime.measure.evaluation import (
    batch_accuracy,
    calibration,
    curve,
    evaluate,
    flips,
    fraction_correct,
    predictions,
)

__all__ = [
    "Shape",
    "area_under_curve",
    "batch_accuracy",
    "calibration",
    "curve",
    "evaluate",
    "exit_costs",
    "exits_apart",
    "flips",
    "fraction_correct",
    "gap",
    "interpolated",
    "latencies",
    "latency",
    "macs",
    "parameters",
    "predictions",
    "random_images",
    "reference_tensor",
    "savings",
    "table_by_exit",
]


def __getattr__(name: str) -> object:
    """Names that were here before version 0.2."""
    return find("measure", name)
