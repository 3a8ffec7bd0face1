"""Pictures of anytime networks: accuracy by budget, answers by time."""

import math

import numpy as np
from jaxtyping import UInt8
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

from mtanytime.explore.draw.style import LEAST_RATIO, LETTER, MARKERS, Picture, distinct_colours, shortened
from mtanytime.explore.tables import COSTS, Table, curve_at_level, distinct, read_curve, read_table, worded


def accuracy_by_budget(
    curve: Table, cost: str = "macs", *, level: str | None = None, budget: float | None = None
) -> Picture:
    """Accuracy of every exit against what it costs, on a logarithmic axis: a line a model, a mark an exit, its bar one
    standard deviation over the runs (seeds) either way.

    Args:
        curve: model, exit, accuracy (a fraction of 1) and the cost's column[, level][, seed]; see `read_curve`.
        cost: "macs" (multiply–adds), "latency_ms" or "params".
        level: which level of the taxonomy, where the table has several accuracies an exit; the last one if None.
        budget: if given, a line there, and a ring around the most expensive exit of each model that it pays for.

    Raises:
        ValueError: a column is missing, the table is empty, an accuracy is no fraction of 1, a cost is not above 0, or
            there is no such cost or level.
    """
    if cost not in COSTS:
        raise ValueError(f"wanted a cost of {', '.join(COSTS)}; got {cost!r}")
    exits = curve_at_level(read_curve(curve, cost), level)
    axis, _ = COSTS[cost]
    models = distinct(exits["model"])
    alt = f"Accuracy against {axis} of {len(models)} model{'s' * (len(models) > 1)}: {', '.join(models)}"
    longest = max(len(shortened(model)) for model in models)
    picture = Picture(alt, 6.4 + LETTER * max(longest, 12), np.clip(0.22 * len(models) + 1.2, 3.9, 13))
    ax = picture.subplots()
    colours, marks = distinct_colours(models), dict(zip(models, MARKERS * len(models), strict=False))
    picked = []
    for model, line in exits.sort_values(cost).groupby("model", sort=False):
        values, spread = 100 * line["accuracy"], 100 * line["spread"]
        look = {"color": colours[model], "marker": marks[model]}
        ax.errorbar(line[cost], values, yerr=spread, markersize=6, lw=1.6, capsize=3, label=shortened(model), **look)
        if budget is not None and len(paid := line[line[cost] <= budget]):
            ax.plot(
                paid[cost].iloc[-1:], 100 * paid["accuracy"].iloc[-1:], "o", ms=14, mfc="none", mew=1.8, color="0.15"
            )
            picked.append(f"{model} exit {paid['exit'].iloc[-1]}")
    low, high = exits[cost].min(), exits[cost].max()
    room = max(1.15, math.sqrt(LEAST_RATIO * low / high))
    ax.set(xscale="log", xlim=(low / room, high * room), xlabel=f"{axis}, log scale", ylabel="test accuracy (%)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}") if cost == "latency_ms" else EngFormatter(sep=" "))
    ax.xaxis.set_minor_formatter(NullFormatter())
    title = f"Accuracy against {axis.split(' (')[0]}"
    if "level" in exits and exits["level"].nunique() == 1:
        title += f", level {exits['level'].iloc[0]}"
    if budget is not None:
        ax.axvline(budget, color="0.35", ls="--", lw=1.2)
        picture.alt += f"; a budget of {worded(cost, budget)} pays for {', '.join(picked) or 'no exit'}"
    ax.set_title(title, fontsize=11, loc="left")
    ax.grid(alpha=0.3)
    runs = exits["runs"].max()
    about = f"model, ± 1 standard\ndeviation of {runs} runs" if runs > 1 else "model"
    handles = {label: handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    picture.legend(
        handles.values(),
        handles.keys(),
        title=about,
        loc="outside right upper",
        frameon=False,
        fontsize=9,
        title_fontsize=9,
        alignment="left",
    )
    return picture


def answers_by_time(
    answers: Table, image: UInt8[np.ndarray, "3 h w"] | None = None, deadline: float | None = None
) -> Picture:
    """The answers of an anytime network to one image: when each came, and how sure it was.

    Args:
        answers: exit, milliseconds, answer, confidence[, right]; a row an exit.
        image: drawn beside them.
        deadline: milliseconds; a line that divides those in time from those that are late.

    Raises:
        ValueError: a column is missing, or the table is empty.
    """
    table = read_table(answers, "answers table", "exit", "milliseconds", "confidence").sort_values("milliseconds")
    if "answer" not in table:
        raise ValueError(f"the answers table lacks column 'answer' (has: {', '.join(map(str, table))})")
    in_time = table if deadline is None else table[table["milliseconds"] <= deadline]
    told = "no answer" if in_time.empty else f"{in_time['answer'].iloc[-1]} by exit {in_time['exit'].iloc[-1]}"
    by = "" if deadline is None else f" after {deadline:.3g} ms"
    picture = Picture(f"Confidence of the answers to an image against time{by}: {told}", 8.4, 3.4)
    if image is None:
        ax = picture.subplots()
    else:
        beside, ax = picture.subplots(1, 2, width_ratios=(1, 2.6))
        beside.imshow(image.transpose(1, 2, 0), interpolation="nearest")
        beside.set(xticks=[], yticks=[])
    end = max(
        1.05 * table["milliseconds"].max(), 0.0 if deadline is None else min(deadline, 2 * table["milliseconds"].max())
    )
    ends = [*table["milliseconds"].iloc[1:], end]
    known = "right" in table and table["right"].notna().all()
    for row, until in zip(table.itertuples(), ends, strict=True):
        late = deadline is not None and row.milliseconds > deadline
        look = {"color": "#0072B2", "alpha": 0.25 if late else 1.0}
        ax.plot([row.milliseconds, until], [100 * row.confidence] * 2, lw=2.5, **look)
        ax.plot(row.milliseconds, 100 * row.confidence, "o", **look)
        mark = f" ({'right' if row.right else 'wrong'})" if known else ""
        place = (row.milliseconds, 100 * row.confidence)
        ax.annotate(
            f"{row.exit}: {row.answer}{mark}",
            place,
            (4, 6 if row.exit % 2 else -13),  # so that answers close to each other stay legible
            textcoords="offset points",
            fontsize=8,
            alpha=look["alpha"],
        )
    if deadline is not None and deadline <= end:
        ax.axvline(deadline, color="0.3", ls="--", lw=1, label="deadline")
        ax.legend(loc="lower right", frameon=False, fontsize=9)
    ax.set(xlim=(0, 1.3 * end), ylim=(0, 112), xlabel="time since the image came (ms)", ylabel="confidence (%)")
    return picture
