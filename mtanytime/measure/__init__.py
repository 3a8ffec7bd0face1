"""What networks cost, how accurate their exits are, and how curves of both compare."""

from mtanytime._moved import find
from mtanytime.measure.costs import Shape, exit_costs, latencies, latency, macs, parameters
from mtanytime.measure.curves import area_under_curve, gap, interpolated, savings, validated_curve
from mtanytime.measure.evaluation import (
    batch_accuracy,
    calibration,
    curve,
    evaluate,
    flips,
    fraction_correct,
    predictions,
)
from mtanytime.measure.results import share_taken_over

__all__ = [
    "Shape",
    "area_under_curve",
    "batch_accuracy",
    "calibration",
    "curve",
    "evaluate",
    "exit_costs",
    "flips",
    "fraction_correct",
    "gap",
    "interpolated",
    "latencies",
    "latency",
    "macs",
    "parameters",
    "predictions",
    "savings",
    "share_taken_over",
    "validated_curve",
]


def __getattr__(name: str) -> object:
    """Look up a name that was here before version 0.2."""
    return find("measure", name)
