"""What an explorer shows, as plain lists and names that JSON can hold: made from a table here, drawn by front/.

The notebook's widgets and the exported pages hold the same contents, so that both show the same. Contents are bounded:
a table with more than a page can hold is thinned, and `note` says so.
"""

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.colors import to_hex

from mtanytime.explore import draw, tables

Contents = dict[str, Any]

STEPS_UP_TO = 200  # of one explorer
VALUES_UP_TO = 200_000  # numbers in a page, for λ and its spread, and for channel weights again: 1.2 MB each
IMAGES_UP_TO = 64
PIXELS_UP_TO = 96  # a side of an image in the strip
ALL = ""  # in place of the name of one network or one slice


def transfer_contents(trace: tables.Table, channels: tables.Table | None = None) -> Contents:
    """What a `TransferExplorer` shows.

    Args:
        trace: step, source, target, weight[, weight_std][, slice]; one row per step and pair.
        channels: step, source, target, channel, weight[, slice].

    Raises:
        ValueError: a column is missing, a table is empty, a pair has two rows at one step, or the channels table names
            a pair that the trace lacks.
    """
    table = tables.read_trace(trace)
    refuse_doubles(table, "trace", "step", "source", "target")
    pairs = list(table[["source", "target"]].drop_duplicates().itertuples(index=False, name=None))
    every = sorted(int(step) for step in table["step"].unique())
    steps = _thinned(every, VALUES_UP_TO // len(pairs))
    notes = []
    spreads = "weight_std" in table and pd.api.types.is_numeric_dtype(table["weight_std"])
    if spreads and 2 * len(steps) * len(pairs) > VALUES_UP_TO:  # steps tell more
        spreads = False
        notes.append("The spread over the images is left out for its size.")
    if len(steps) < len(every):
        notes.append(f"{len(steps)} of the table's {len(every):,} steps are shown, evenly spread.")
    sources, targets = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    contents = {
        "kind": "transfer",
        "title": "What is transferred where",
        "summary": summary(table) + (f", {len(steps)} of them shown" if len(steps) < len(every) else ""),
        "steps": steps,
        "all_steps": len(every),
        "sources": sources,
        "networks": networks(sources),
        "targets": targets,
        "slices": slices(table),
        "pairs": [[sources.index(source), targets.index(target)] for source, target in pairs],
        "values": _plain(wide(table).loc[steps].to_numpy()),
        "spreads": _plain(wide(table, "weight_std").loc[steps].to_numpy()) if spreads else None,
        "colours": [to_hex(colour) for colour in colormaps["viridis"](np.linspace(0, 1, 64))],
        "channels": None,
    }
    if channels is not None:
        contents["channels"], note = _channels(channels, table, pairs)
        notes += note
    return contents | {"note": " ".join(notes)}


def first_choices(content: Contents) -> dict[str, Any]:
    """What an explorer shows first, as its traits: the last step and its strongest pair, or the middle budget."""
    if content["kind"] == "transfer":
        strongest = max(enumerate(content["values"][-1]), key=lambda pair: -1 if pair[1] is None else pair[1])[0]
        source, target = content["pairs"][strongest]
        pair = [content["sources"][source], content["targets"][target]]
        return {"step": content["steps"][-1], "network": ALL, "slice": ALL, "relative": False, "pair": pair}
    view = content["views"][-len(content["costs"])]  # the last level, the first cost
    stop = view["stops"][len(view["stops"]) // 2]
    return {"cost": view["cost"], "level": view["level"] or ALL, "at": stop["at"][0]}


def summary(trace: pd.DataFrame) -> str:
    """A table from `tables.read_trace` in a line that is the same on every machine."""
    pairs, steps = trace.groupby(["source", "target"]).ngroups, trace["step"]
    several = f", {steps.nunique()} steps from {steps.min()} to {steps.max()}"
    return f"{pairs} pair{'s' * (pairs > 1)}" + (several if steps.nunique() > 1 else f" at step {steps.min()}")


def networks(sources: Iterable[str]) -> list[str]:
    """The names of several source networks, from layers called `birds/layer1`; none where there is one network."""
    names = list(dict.fromkeys(source.partition("/")[0] for source in sources))
    return names if len(names) > 1 and all("/" in source for source in sources) else []


def slices(trace: pd.DataFrame) -> list[str]:
    """The slices of an anytime target, in the table's order; none where there is one."""
    names = list(dict.fromkeys(trace["slice"].astype(str))) if "slice" in trace else []
    return names if len(names) > 1 else []


def refuse_doubles(table: pd.DataFrame, name: str, *columns: str) -> None:
    """ValueError if two rows of a table stand for the same thing: drawing their mean would hide both."""
    if (double := table.duplicated(list(columns))).any():
        first = table.loc[double, list(columns)].iloc[0]
        what = ", ".join(f"{column} {value}" for column, value in first.items())
        raise ValueError(f"the {name} has several rows for {what}; wanted one (a table of one run)")


def _thinned(steps: list[int], most: int) -> list[int]:
    """At most so many of the steps, evenly spread, the first and the last among them."""
    most = min(max(most, 2), STEPS_UP_TO)
    return [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int))]


def wide(trace: pd.DataFrame, column: str = "weight") -> pd.DataFrame:
    """A column of a table from `tables.read_trace`: steps in order down, pairs in the table's order across."""
    pairs = pd.MultiIndex.from_frame(trace[["source", "target"]].drop_duplicates())
    return trace.pivot(index="step", columns=["source", "target"], values=column).reindex(columns=pairs).astype(float)


def _plain(values: np.ndarray) -> list[list[float | None]]:
    """Numbers to four digits of the largest, as short as they can be written; None where one is not finite."""
    largest = np.abs(values[np.isfinite(values)]).max(initial=0)
    digits = 4 - int(np.floor(np.log10(largest))) - 1 if largest > 0 else 4
    rows = np.round(values, max(digits, 0)).tolist()
    if np.isfinite(values).all():
        return rows
    return [[value if np.isfinite(value) else None for value in row] for row in rows]


def _channels(
    channels: tables.Table, trace: pd.DataFrame, pairs: list[tuple[str, str]]
) -> tuple[Contents | None, list[str]]:
    """Channel weights of every pair, all channels in order, at as many steps as there is room for; and what to say."""
    table = tables.read_table(channels, "channels table", "step", "source", "target", "channel", "weight")
    if "slice" in table and "slice" in trace:
        table = table.assign(target=table["target"] + " slice " + table["slice"].astype(str))
    refuse_doubles(table, "channels table", "step", "source", "target", "channel")
    unknown = set(table[["source", "target"]].drop_duplicates().itertuples(index=False, name=None)) - set(pairs)
    if unknown:
        raise ValueError(f"the channels table has the pair {' → '.join(min(unknown))}, which the trace lacks")
    every = sorted(int(step) for step in table["step"].unique())
    sizes = table.groupby(["source", "target"])["channel"].nunique()
    strongest = trace[trace["step"] == trace["step"].max()].sort_values("weight", ascending=False)
    order = [pair for pair in strongest[["source", "target"]].itertuples(index=False, name=None) if pair in sizes.index]
    order += [pair for pair in sizes.index if pair not in set(order)]
    room = sizes[order].cumsum() * min(2, len(every)) <= VALUES_UP_TO
    kept = [pair for pair in order if room[pair]] or order[:1]
    steps = _thinned(every, int(VALUES_UP_TO // sizes[kept].sum()))
    notes = []
    if len(kept) < len(order):
        notes.append(f"Channel weights are held for the {len(kept)} strongest of {len(order)} pairs.")
    if len(steps) < len(every):
        notes.append(f"Channel weights are held at {len(steps)} of {len(every)} steps.")
    weights = {}
    place = {pair: i for i, pair in enumerate(pairs)}
    for pair, part in table[table["step"].isin(steps)].groupby(["source", "target"], sort=False):
        if pair in kept:
            wide = part.pivot(index="step", columns="channel", values="weight").reindex(index=steps)
            names = [int(channel) for channel in wide.columns]
            weights[str(place[pair])] = {"names": names, "weights": _plain(wide.to_numpy(float))}
    return {"steps": steps, "pairs": weights}, notes


def budget_contents(
    curve: tables.Table, images: UInt8[np.ndarray, "n 3 h w"] | None = None, predictions: tables.Table | None = None
) -> Contents:
    """What a `BudgetExplorer` shows; see there for the arguments and errors."""
    exits = tables.read_curve(curve)
    models = list(dict.fromkeys(exits["model"]))
    levels = tables.levels_of(exits)
    costs = [cost for cost in tables.COSTS if cost in exits]
    order = [[model, int(number)] for model, number in exits[["model", "exit"]].drop_duplicates().to_numpy()]
    views = [
        _view(tables.curve_at_level(exits, level), models, cost, level) for level in levels or [None] for cost in costs
    ]
    counts = [sum(name == model for name, _ in order) for model in models]
    exits_said = f"{counts[0]}" if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    each = f" with {exits_said} exit{'s' * (max(counts) > 1)}" + " each" * (len(models) > 1)
    fewest, runs = int(exits["runs"].min()), int(exits["runs"].max())
    said = f"{runs}" if fewest == runs else f"{fewest} to {runs}"
    return {
        "kind": "budget",
        "title": "Accuracy for a budget",
        "summary": f"{len(models)} model{'s' * (len(models) > 1)}{each}" + (f", {said} runs" if runs > 1 else ""),
        "note": "A budget pays for the most expensive exit of each model that it covers."
        + (" Bars: ± 1 standard deviation of the runs, where there are several." if runs > 1 else ""),
        "models": [
            {"name": model, "colour": to_hex(colour)} for model, colour in draw.distinct_colours(models).items()
        ],
        "levels": levels,
        "costs": [{"name": cost, "words": tables.COSTS[cost][0]} for cost in costs],
        "exits": order,
        "views": views,
        "strip": _strip(images, predictions, order),
    }


def _view(exits: pd.DataFrame, models: list[str], cost: str, level: str | None) -> Contents:
    """The curves for one cost at one level: exits by cost, the slider's stops, and what each stop pays for."""
    lines = []
    for model in models:
        line = exits[exits["model"] == model].sort_values(cost, kind="stable").reset_index(drop=True)
        lines.append([_exit(line, i, cost) for i in range(len(line))])
    stops = []
    for value in sorted({point["cost"] for line in lines for point in line}):
        at = [(model, p) for model, line in zip(models, lines, strict=True) for p in line if p["cost"] == value]
        named = [f"{model} {p['words']}" if len(models) > 1 else p["words"] for model, p in at]
        stops.append(
            {
                "cost": value,
                "label": f"{tables.worded(cost, value)} · {tables.some(named, 2)}",
                "at": [[model, point["exit"]] for model, point in at],
                "picks": [sum(point["cost"] <= value for point in line) - 1 for line in lines],  # -1: none
            }
        )
    return {"cost": cost, "level": level, "lines": lines, "stops": stops}


def _exit(line: pd.DataFrame, i: int, cost: str) -> Contents:
    """One exit in numbers and words; `line` holds a model's exits by cost."""
    row, after = line.iloc[i], line.iloc[i + 1] if i + 1 < len(line) else None
    accuracy, spread = (None if pd.isna(row[name]) else round(100 * row[name], 4) for name in ("accuracy", "spread"))
    said = "none" if accuracy is None else f"{accuracy:.1f} %" if spread is None else f"{accuracy:.1f} ± {spread:.1f} %"
    words = f"exit {row['exit']} of {len(line)}"
    if "level" in row and line["level"].nunique() > 1:
        words += f" ({row['level']})"  # the level that this exit answers at
    if after is None:
        beyond = "the last exit"
    else:
        more = after[cost] - row[cost]
        gain = 100 * (after["accuracy"] - row["accuracy"])
        gains = "no known gain" if pd.isna(gain) else f"{gain:+.1f} points".replace("-", "−")
        costs = f"+{tables.worded(cost, more)} ({more / row[cost]:+.0%})" if more > 0 else "no more cost"
        beyond = f"exit {after['exit']}: {costs} for {gains}"
    return {
        "exit": int(row["exit"]),
        "cost": float(row[cost]),
        "accuracy": accuracy,
        "spread": spread,
        "words": words,
        "costs": tables.worded(cost, row[cost]),
        "said": said,
        "next": beyond,
    }


def _strip(
    images: UInt8[np.ndarray, "n 3 h w"] | None, predictions: tables.Table | None, order: list[list[Any]]
) -> Contents | None:
    """Images as data URIs, and the answers of every exit to them."""
    if (images is None) != (predictions is None):
        raise ValueError("wanted images and predictions together; got only one of them")
    if images is None:
        return None
    check_images(images)
    table = tables.read_table(predictions, "predictions table", "image", "model", "exit")
    if "answer" not in table:
        raise ValueError(f"the predictions table lacks column 'answer' (has: {', '.join(map(str, table))})")
    refuse_doubles(table, "predictions table", "image", "model", "exit")
    if len(wrong := table["image"][~table["image"].isin(range(len(images)))]):
        raise ValueError(f"the predictions table names image {wrong.iloc[0]}; there are 0 to {len(images) - 1}")
    known = {tuple(pair) for pair in order}
    answers = {}
    for row in table.to_dict("records"):
        key = row["model"], int(row["exit"])
        if key not in known:
            raise ValueError(f"the predictions table names {key[0]} exit {key[1]}, which the curve lacks")
        answer = {"answer": str(row["answer"])}
        if not pd.isna(row.get("coarse")):
            answer["coarse"] = str(row["coarse"])
        if not pd.isna(row.get("right")):
            answer["right"] = bool(row["right"])
        answers.setdefault(key[0], {}).setdefault(str(key[1]), {})[str(int(row["image"]))] = answer
    return {"images": [data_uri(image) for image in images], "answers": answers}


def check_images(images: Any) -> None:
    """ValueError unless they are what a strip can hold: uint8 (n, 3, height, width), not too many."""
    if not (isinstance(images, np.ndarray) and images.ndim == 4 and images.shape[1] == 3 and images.dtype == np.uint8):
        came = f"{getattr(images, 'dtype', type(images).__name__)} of shape {tuple(getattr(images, 'shape', ()))}"
        raise ValueError(f"wanted images as a NumPy array of uint8 (n, 3, height, width); got {came}")
    if not 1 <= len(images) <= IMAGES_UP_TO:
        raise ValueError(f"wanted 1 to {IMAGES_UP_TO} images; got {len(images)}")


def data_uri(image: UInt8[np.ndarray, "3 h w"]) -> str:
    """An image as a PNG that a page can hold, made smaller if it is large."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((PIXELS_UP_TO, PIXELS_UP_TO))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def pixels(uri: str) -> UInt8[np.ndarray, "3 h w"]:
    """The image in a data URI of `data_uri`."""
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))).transpose(2, 0, 1)
