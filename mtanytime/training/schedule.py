"""Learning-rate schedules."""

import math
from collections.abc import Callable
from typing import Literal

Schedule = Literal["cosine", "steps", "constant", "warm-up cosine"] | Callable[[float], float]


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "steps": lambda progress: 1.0 if progress < 0.5 else 0.1 if progress < 0.75 else 0.01,
    "constant": lambda progress: 1.0,
    "warm-up cosine": lambda progress: min(progress / 0.05, 1.0) * 0.5 * (1 + math.cos(math.pi * progress)),
}


STEP_BY_STEP = ("warm-up cosine",)  # schedules for runs of a few epochs
