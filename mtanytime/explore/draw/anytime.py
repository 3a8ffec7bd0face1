"""Pictures of anytime networks: accuracy by budget, answers by time."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter

from mtanytime.checks import require
from mtanytime.explore.draw.style import LEAST_RATIO, LETTER, Picture, add_legend, distinct_looks, log_axis, shortened
from mtanytime.explore.tables import (
    COSTS,
    FLOAT32_UP_TO,
    Table,
    curve_at_level,
    distinct,
    format_cost,
    read_curve,
    read_table,
)
from mtanytime.measure.tables import as_booleans, require_rows, require_whole

BLUE = "#0072B2"


def accuracy_by_budget(
    curve: Table,
    cost: str = "macs",
    *,
    level: str | None = None,
    budget: float | None = None,
    hidden: Sequence[str] = (),
) -> Picture:
    """Draw the accuracy of every exit against its cost, on a logarithmic axis.

    One line per model, one marker per exit; bars show one standard deviation over runs (seeds).

    Args:
        curve: model, exit, accuracy (a fraction of 1) and the column of the cost[, level][, seed]; see
            `tables.read_curve`.
        cost: "macs" (multiply-adds), "latency_ms" or "params".
        level: the level of the taxonomy, where the table has several accuracies per exit; the last one if None.
        budget: draw a line at this cost, and a ring around the most expensive exit of each model that it covers.
        hidden: models to leave out; the others keep their colours.

    Raises:
        ValueError: as `tables.read_curve`; there is no such cost or level, the budget is not a finite number above 0,
            or all models are hidden.
    """
    require(cost in COSTS, "cost", f"one of {', '.join(COSTS)}", cost)
    valid = budget is None or 0 < budget < math.inf
    require(bool(valid), "budget", "a finite number above 0", budget)
    exits = curve_at_level(read_curve(curve, cost), level)
    looks = distinct_looks(distinct(exits["model"]))
    exits = exits[~exits["model"].isin(hidden)]
    require(len(exits) > 0, "hidden", "fewer than all models", list(hidden))
    axis, _ = COSTS[cost]
    models = distinct(exits["model"])
    alt = f"Accuracy against {axis} of {len(models)} model{'s' * (len(models) > 1)}: {', '.join(models)}"
    longest = max(len(shortened(model)) for model in models)
    picture = Picture(alt, 6.4 + LETTER * max(longest, 12), np.clip(0.22 * len(models) + 1.2, 3.9, 13))
    ax = picture.subplots()
    handles = {}
    for model, line in exits.sort_values(cost).groupby("model", sort=False):
        style = {"markersize": 6, "lw": 1.6, "capsize": 3, "label": model, **looks[model]}
        handles[model] = ax.errorbar(line[cost], 100 * line["accuracy"], yerr=100 * line["spread"], **style)
    marked = [*exits[cost], *([] if budget is None else [budget])]
    low, high = min(marked), max(marked)
    room = max(1.15, math.sqrt(LEAST_RATIO * low / high))
    log_axis(ax, None if cost == "latency_ms" else EngFormatter(sep=" "))
    ax.set(xlim=(low / room, high * room), xlabel=f"{axis}, log scale", ylabel="test accuracy (%)")
    title = f"Accuracy against {axis.split(' (')[0]}"
    if "level" in exits and exits["level"].nunique() == 1:
        title += f", level {shortened(exits['level'].iloc[0])}"
    ax.set_title(title, fontsize=11, loc="left")
    if budget is not None:
        picks = _mark_budget(ax, exits, cost, budget)
        picture.alt += f"; a budget of {format_cost(cost, budget)} pays for {', '.join(picks) or 'no exit'}"
    if exits["accuracy"].isna().all():
        ax.text(0.5, 0.5, "no run has an accuracy", transform=ax.transAxes, ha="center")
    title = "model"
    fewest, most = int(exits["runs"].min()), int(exits["runs"].max())
    if most > 1:
        runs = f"{most}" if fewest == most else f"{fewest} to {most}"
        title = f"model, ± 1 standard\ndeviation of {runs} runs"
    style = {"loc": "outside right upper", "frameon": False, "fontsize": 9, "title_fontsize": 9, "alignment": "left"}
    add_legend(picture, handles, title=title, **style)
    return picture


def _mark_budget(ax: Axes, exits: pd.DataFrame, cost: str, budget: float) -> list[str]:
    """Draw a line at a budget and a ring around each exit that it buys; return those exits in words."""
    ax.axvline(budget, color="0.35", ls="--", lw=1.2)
    picks = []
    for model, line in exits.sort_values(cost).groupby("model", sort=False):
        if len(covered := line[line[cost] <= budget]):
            pick = covered.iloc[-1:]
            ax.plot(pick[cost], 100 * pick["accuracy"], "o", ms=14, mfc="none", mew=1.8, color="0.15")
            picks.append(f"{shortened(model)} exit {pick['exit'].item()}")
    return picks


def answers_by_time(
    answers: Table, image: UInt8[np.ndarray, "3 h w"] | None = None, deadline: float | None = None
) -> Picture:
    """Draw the answers of an anytime network to one image: when each came, and with what confidence.

    Args:
        answers: exit, milliseconds, answer, confidence[, right]; one row per exit.
        image: drawn beside the answers.
        deadline: milliseconds; a line there divides answers in time from late ones.

    Raises:
        ValueError: a column is missing, or the table is empty.
    """
    table = _read_answers(answers)
    picture = Picture(_answers_alt(table, deadline), 8.4, 3.4)
    if image is None:
        ax = picture.subplots()
    else:
        beside, ax = picture.subplots(1, 2, width_ratios=(1, 2.6))
        beside.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        beside.set(xticks=[], yticks=[])
    last = table["milliseconds"].max()
    end = max(1.05 * last, 0.0 if deadline is None else min(deadline, 2 * last))
    known = "right" in table and table["right"].notna().all()  # in every row
    for row, until in zip(table.itertuples(), [*table["milliseconds"].iloc[1:], end], strict=True):
        late = deadline is not None and row.milliseconds > deadline
        mark = f" ({'correct' if row.right else 'incorrect'})" if known else ""
        _draw_answer(ax, row, until, f"{row.exit}: {shortened(row.answer)}{mark}", alpha=0.25 if late else 1.0)
    if deadline is not None and deadline <= end:
        ax.axvline(deadline, color="0.3", ls="--", lw=1, label="deadline")
        ax.legend(loc="lower right", frameon=False, fontsize=9)
    ax.set(xlim=(0, 1.3 * end), ylim=(0, 112), xlabel="time since the image arrived (ms)", ylabel="confidence (%)")
    return picture


def _read_answers(answers: Table) -> pd.DataFrame:
    """Return a table of answers by the time when they came, after checking every row."""
    name = "answers table"
    table = read_table(answers, name, "exit", "milliseconds", "confidence", "answer")
    table = table.assign(exit=require_whole(table, name, "exit"))
    times = (table["milliseconds"] >= 0) & (table["milliseconds"] < FLOAT32_UP_TO)
    require_rows(times, table, name, "milliseconds", "finite numbers >= 0", "exit")
    require_rows(table["confidence"].between(0, 1), table, name, "confidence", "fractions in [0, 1]", "exit")
    if "right" in table:
        table = table.assign(right=as_booleans(table, name, "right"))
    return table.sort_values("milliseconds", kind="stable")


def _answers_alt(table: pd.DataFrame, deadline: float | None) -> str:
    in_time = table if deadline is None else table[table["milliseconds"] <= deadline]
    answer = "no answer"
    if not in_time.empty:
        last = in_time.loc[in_time["exit"].idxmax()]  # run one by one, a wider exit may be done before a thinner one
        answer = f"{last['answer']} by exit {last['exit']}"
    after = "" if deadline is None else f" after {deadline:.3g} ms"
    return f"Confidence of the answers to an image against time{after}: {answer}"


def _draw_answer(ax: Axes, row: Any, until: float, label: str, alpha: float) -> None:
    """Draw one answer: a dot when it came, and a line until the next one."""
    confidence = 100 * row.confidence
    ax.plot([row.milliseconds, until], [confidence] * 2, lw=2.5, color=BLUE, alpha=alpha)
    ax.plot(row.milliseconds, confidence, "o", color=BLUE, alpha=alpha)
    offset = (4, 6 if row.exit % 2 else -13)  # above or below in turn, so that neighbours stay legible
    ax.annotate(label, (row.milliseconds, confidence), offset, textcoords="offset points", fontsize=8, alpha=alpha)
