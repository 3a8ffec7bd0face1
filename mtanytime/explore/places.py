"""Explore what people have: a CSV file of any kind, or the folder of a run."""

import math
from os import PathLike
from pathlib import Path

import pandas as pd

from mtanytime.checks import Words, mismatch, one_line, require
from mtanytime.explore import contents, draw, tables
from mtanytime.explore.contents.pictures import in_page, picture_contents
from mtanytime.explore.kinds import kind_of, varied_settings
from mtanytime.measure.tables import require_unique

PAIRS_UP_TO = 12  # pictures of channel weights in a page
Page = tuple[contents.Contents, str]  # what an explorer shows, and its picture in words


def explored(place: str | PathLike[str]) -> Page:
    """Return the contents of a page about a table or a run.

    A trace and a curve get their explorers, also from the folder of a run: with the run's channel weights and learning
    curves. Other tables (log, results, maps, channel weights, R²) become pictures. `channels.csv` and `arrived.csv`
    beside `trace.csv` are shown with it.

    Raises:
        ValueError: the table is of no known kind, lacks a column or cannot be drawn; or the folder is no run's (names
            the runs in it). Names the place.
        OSError: a table cannot be read.
    """
    path = Path(place)
    try:
        return _of_folder(path) if path.is_dir() else _of_file(path)
    except ValueError as error:
        if (named := one_line(str(path))) in str(error):
            raise
        raise ValueError(f"{named}: {error}") from error


def _of_file(path: Path) -> Page:
    """Return the page of a table."""
    table = tables.read_table(path, "table")
    kind = kind_of(table)
    trace, channels = path.with_name("trace.csv"), path.with_name("channels.csv")
    if kind == "channels table" and path == channels and tables.has_rows(trace):
        return _of_trace(tables.load_table(trace, "trace"), table, tables.arrived_beside(path))
    if kind == "trace":
        beside = channels if path == trace and channels.exists() else None
        return _of_trace(table, beside, tables.arrived_beside(path))
    return PAGES[kind](table)


def _of_folder(folder: Path) -> Page:
    """Return the page of a run."""
    present = {name: folder / file for name, file in tables.RUN_TABLES.items() if tables.has_rows(folder / file)}
    if not present:
        runs = sorted({config.parent for depth in ("*", "*/*") for config in folder.glob(f"{depth}/config.json")})
        names = [str(run.relative_to(folder)) for run in runs]
        came = f"{folder}, a folder with the runs {tables.first_few(names)}" if runs else f"{folder}, without tables"
        files = ", ".join(tables.RUN_TABLES.values())
        remedy = f"name one of them, such as {runs[0]}" if runs else ""
        raise mismatch("place", f"a CSV file or a run's folder ({files})", Words(came), remedy)
    if "trace" in present:
        further = present.get("channels table"), present.get("table of R²")
        content, alt = _of_trace(tables.load_table(present["trace"], "trace"), *further)
    elif "curve" in present:
        content, alt = _of_curve(tables.load_table(present["curve"], "curve"))
    else:
        name, path = next(iter(present.items()))
        return PAGES[name](tables.load_table(path, name))
    if "log" in present:
        content["pictures"] = in_page(draw.learning_curves(present["log"]))
    return content, alt


def _of_trace(trace: pd.DataFrame, channels: tables.Table | None = None, arrived: tables.Table | None = None) -> Page:
    return contents.transfer_contents(trace, channels, arrived), draw.heatmap(trace).alt


def _of_arrived(table: pd.DataFrame) -> Page:
    picture = draw.arrived(table)
    return _page("What arrived", picture.alt, [picture])


def _of_curve(curve: pd.DataFrame) -> Page:
    content = contents.budget_contents(curve)
    return content, draw.accuracy_by_budget(curve, content["costs"][0]["name"]).alt


def _of_channels(table: pd.DataFrame) -> Page:
    """Return pictures of the channel weights of the first pairs at their last step."""
    channels = tables.read_channels(table)
    pairs = list(channels[["source", "target"]].drop_duplicates().itertuples(index=False, name=None))
    note = f"The first {PAIRS_UP_TO} of {len(pairs)} pairs." if len(pairs) > PAIRS_UP_TO else ""
    pictures = [draw.channel_weights(channels, *pair) for pair in pairs[:PAIRS_UP_TO]]
    summary = f"channel weights of {len(pairs)} pair{'s' * (len(pairs) > 1)}"
    return _page("Channel weights", summary, pictures, note)


def _of_maps(table: pd.DataFrame) -> Page:
    picture = draw.heatmaps(table)
    return _page("What is transferred where, by run", picture.alt, [picture])


def _of_results(table: pd.DataFrame) -> Page:
    """Return pictures of accuracies; a method with several learning rates or β counts as several."""
    table = tables.read_table(table, "results table", "method", "seed", "accuracy")
    names = table["method"]
    for setting in varied_settings(table):
        names = names + f", {setting} " + table[setting].astype(str)
    table = table.assign(method=names)
    require_unique(table, "results table", "method", "seed", remedy="give the runs of one setting")
    pictures = [draw.accuracy_by_method(table)]
    if "train_seconds" in table and table[["accuracy", "train_seconds"]].notna().all(axis=1).any():
        pictures.append(draw.accuracy_by_seconds(table))
    return _page("Accuracy by method", pictures[0].alt, pictures)


def _of_log(table: pd.DataFrame) -> Page:
    for column in ("method", "model", "seed"):
        runs = table[column].nunique() if column in table else 1
        require(runs <= 1, "log", "the log of one run", Words(f"{runs} values in its column {column}"))
    picture = draw.learning_curves(table)
    steps = pd.to_numeric(table["step"])
    return _page("Training", f"{len(table)} rows to step {math.floor(steps.max())}", [picture])


def _page(title: str, summary: str, pictures: list[draw.Picture], note: str = "") -> Page:
    return picture_contents(title, summary, pictures, note), "; ".join(picture.alt for picture in pictures)


PAGES = {
    "trace": _of_trace,
    "table of R²": _of_arrived,
    "curve": _of_curve,
    "channels table": _of_channels,
    "table of maps": _of_maps,
    "results table": _of_results,
    "log": _of_log,
}
