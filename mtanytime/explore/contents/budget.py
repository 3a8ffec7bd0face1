"""What a `BudgetExplorer` shows: curves, the exits that each budget buys, and the answers of exits to images."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8

from mtanytime.checks import Words, mismatch, require
from mtanytime.explore import draw, tables
from mtanytime.explore.contents.common import ALL, Contents
from mtanytime.explore.contents.images import data_uri, require_images
from mtanytime.measure.tables import as_booleans, require_rows, require_unique, require_whole


def budget_contents(
    curve: tables.Table, images: UInt8[np.ndarray, "n 3 h w"] | None = None, predictions: tables.Table | None = None
) -> Contents:
    """Return what a `BudgetExplorer` shows; arguments and errors as there."""
    exits = tables.read_curve(curve)
    models = tables.distinct(exits["model"])
    levels = tables.levels_of(exits)
    costs = [cost for cost in tables.COSTS if cost in exits]
    order = [[model, int(number)] for model, number in exits[["model", "exit"]].drop_duplicates().to_numpy()]
    runs = int(exits["runs"].max())
    return {
        "kind": "budget",
        "title": "Accuracy for a budget",
        "summary": _summary(exits, models, order),
        "note": "A budget pays for the most expensive exit of each model that it covers."
        + (" Bars: ± 1 standard deviation of the runs, where there are several." if runs > 1 else ""),
        "models": [{"name": model, "colour": colour} for model, colour in draw.distinct_colours(models).items()],
        "levels": levels,
        "costs": [{"name": cost, "words": tables.COSTS[cost][0]} for cost in costs],
        "exits": order,
        "views": [
            _view(tables.curve_at_level(exits, level), models, cost, level)
            for level in levels or [None]
            for cost in costs
        ],
        "strip": _strip(images, predictions, order),
    }


def budget_choices(content: Contents) -> dict[str, Any]:
    """Return what the explorer shows first, as its traits: the middle budget of the first cost, at the last level."""
    view = content["views"][-len(content["costs"])]
    stop = view["stops"][len(view["stops"]) // 2]
    return {"cost": view["cost"], "level": view["level"] or ALL, "at": stop["at"][0], "hidden": []}


def _summary(exits: pd.DataFrame, models: list[str], order: list[list[Any]]) -> str:
    """Return one line about a curve: "2 models with 4 exits each, 3 runs"."""
    counts = [sum(name == model for name, _ in order) for model in models]
    numbers = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    summary = f"{len(models)} model{'s' * (len(models) > 1)} with {numbers} exit{'s' * (max(counts) > 1)}"
    fewest, most = int(exits["runs"].min()), int(exits["runs"].max())
    runs = f"{most}" if fewest == most else f"{fewest} to {most}"
    return summary + " each" * (len(models) > 1) + (f", {runs} runs" if most > 1 else "")


def _view(exits: pd.DataFrame, models: list[str], cost: str, level: str | None) -> Contents:
    """Return the curves for one cost at one level: exits by cost, the slider's stops, and what each stop buys."""
    lines = []
    for model in models:
        line = exits[exits["model"] == model].sort_values(cost, kind="stable").reset_index(drop=True)
        lines.append([_exit(line, i, cost) for i in range(len(line))])
    stops = []
    for value in sorted({point["cost"] for line in lines for point in line}):
        at = [(model, p) for model, line in zip(models, lines, strict=True) for p in line if p["cost"] == value]
        names = [f"{model} {p['words']}" if len(models) > 1 else p["words"] for model, p in at]
        stops.append(
            {
                "cost": value,
                "label": f"{tables.format_cost(cost, value)} · {tables.first_few(names, 2)}",
                "at": [[model, point["exit"]] for model, point in at],
                "picks": [sum(point["cost"] <= value for point in line) - 1 for line in lines],  # -1: none
            }
        )
    return {"cost": cost, "level": level, "lines": lines, "stops": stops}


def _exit(line: pd.DataFrame, i: int, cost: str) -> Contents:
    """Return exit i of a model's exits by cost, in numbers and words."""
    row, after = line.iloc[i], line.iloc[i + 1] if i + 1 < len(line) else None
    accuracy, spread = (None if pd.isna(row[name]) else round(100 * row[name], 4) for name in ("accuracy", "spread"))
    said = "none" if accuracy is None else f"{accuracy:.1f} %" if spread is None else f"{accuracy:.1f} ± {spread:.1f} %"
    words = f"exit {row['exit']} of {len(line)}"
    if "level" in row and line["level"].nunique() > 1:
        words += f" ({row['level']})"  # the level at which this exit answers
    return {
        "exit": int(row["exit"]),
        "cost": float(row[cost]),
        "accuracy": accuracy,
        "spread": spread,
        "words": words,
        "costs": tables.format_cost(cost, row[cost]),
        "said": said,
        "next": "the last exit" if after is None else _step_up(row, after, cost),
    }


def _step_up(row: pd.Series, after: pd.Series, cost: str) -> str:
    """Describe the step to the next exit: "exit 3: +5 M MACs (+125%) for +10.0 points"."""
    more = after[cost] - row[cost]
    costs = f"+{tables.format_cost(cost, more)} ({more / row[cost]:+.0%})" if more > 0 else "no more cost"
    gain = 100 * (after["accuracy"] - row["accuracy"])
    gains = "no known gain" if pd.isna(gain) else f"{gain:+.1f} points".replace("-", "−")
    return f"exit {after['exit']}: {costs} for {gains}"


def _strip(
    images: UInt8[np.ndarray, "n 3 h w"] | None, predictions: tables.Table | None, exits: list[list[Any]]
) -> Contents | None:
    """Return images as data URIs, and the answers of every exit to them."""
    if (images is None) != (predictions is None):
        raise mismatch("images and predictions", "both or neither", Words("only one of them"))
    if images is None:
        return None
    require_images(images)
    name = "predictions table"
    table = tables.read_table(predictions, name, "image", "model", "exit", "answer")
    table = table.assign(image=require_whole(table, name, "image"), exit=require_whole(table, name, "exit"))
    if "right" in table:
        table = table.assign(right=as_booleans(table, name, "right"))
    require_unique(table, name, "image", "model", "exit")
    require_rows(table["image"].isin(range(len(images))), table, name, "image", f"images 0 to {len(images) - 1}")
    known = {tuple(pair) for pair in exits}
    answers = {}
    for row in table.to_dict("records"):
        model, exit = row["model"], row["exit"]
        require(
            (model, exit) in known, name, "exits of the curve", Words(f"{model} exit {exit}, which the curve lacks")
        )
        answer = {"answer": row["answer"]}
        if not pd.isna(row.get("coarse")) and row["coarse"] != "":
            answer["coarse"] = str(row["coarse"])
        if row.get("right") is not None:
            answer["right"] = row["right"]
        answers.setdefault(model, {}).setdefault(str(exit), {})[str(row["image"])] = answer
    return {"images": [data_uri(image) for image in images], "answers": answers}
