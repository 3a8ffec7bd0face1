"""Explore what people have: CSV files of any kind, and folders of runs or of experiments."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pandas as pd

from mtanytime.checks import Words, mismatch, one_line, require
from mtanytime.explore import contents, draw, tables
from mtanytime.explore.contents.pictures import in_page, picture_contents
from mtanytime.explore.contents.transfer import runs_contents
from mtanytime.explore.draw.methods import REFERENCES
from mtanytime.explore.kinds import SETTINGS, kind_of, varied_settings
from mtanytime.explore.runs import RUNS_UP_TO, RunTables, run_names, split_all
from mtanytime.measure.tables import as_numbers, require_unique

PAIRS_UP_TO = 12  # pictures of channel weights in a page
Page = tuple[contents.Contents, str]  # what an explorer shows, and its picture in words


class Part(NamedTuple):
    """A table or a run among the places to explore: its kind decides what shows it.

    Attributes:
        path: the file or the run's folder.
        kind: one of `kinds.KINDS`.
        table: its main table.
        tables: of a trace, its run's tables.
        log: of a run's folder, its log.
    """

    path: Path
    kind: str
    table: pd.DataFrame
    tables: RunTables | None = None
    log: Path | None = None


def explored(*places: str | PathLike[str]) -> Page:
    """Return the contents of a page about tables or runs.

    A trace and a curve get their explorers, also from the folder of a run: with the run's channel weights and learning
    curves. Other tables (log, results, maps, channel weights, R²) become pictures. `channels.csv` and `arrived.csv`
    beside `trace.csv` are shown with it. The JSON file of a transfer map counts as a trace of one step. Several places
    of one kind become one page: traces a menu of runs, curves and results one picture of all. An experiment's folder
    stands for the runs in it that have a trace, or else a curve, or else a log; without the trials of a search, if
    there are other runs.

    Raises:
        ValueError: a table is of no known kind, lacks a column or cannot be drawn; a folder holds nothing to explore;
            or the places are of different kinds. Names the place.
        OSError: a table cannot be read.
    """
    require(len(places) > 0, "places", "one or more files or folders", len(places))
    parts, notes = [], []
    for path in map(Path, places):
        found, note = _naming(path, _parts, path)
        parts += found
        notes += [note] * bool(note)
    first = {part.kind: part.path for part in reversed(parts)}
    kinds = Words(" and ".join(f"a {kind} ({first[kind]})" for kind in tables.distinct(part.kind for part in parts)))
    require(len(first) == 1, "places", "tables of one kind", kinds, "explore each kind in a page of its own")
    content, alt = _naming(parts[0].path, _of_one, parts[0]) if len(parts) == 1 else several(parts)
    return content | {"note": " ".join([content["note"], *notes]).strip()}, alt


Result = TypeVar("Result")


def _naming(path: Path, read: Callable[..., Result], *arguments: Any) -> Result:
    """Call a reader of a place; its error names the place."""
    try:
        return read(*arguments)
    except ValueError as error:
        if (named := one_line(str(path))) in str(error):
            raise
        raise ValueError(f"{named}: {error}") from error


def _parts(path: Path) -> tuple[list[Part], str]:
    """Return the table or runs at a place, and a note on what is left out."""
    if not path.is_dir():
        return [_file(path)], ""
    if (run := _run(path)) is not None:
        return [run], ""
    folders = {config.parent for depth in ("*", "*/*") for config in path.glob(f"{depth}/config.json")}
    folders = sorted(folders, key=lambda folder: (folder.parent, _trial(folder), folder))
    runs = [(folder, _naming(folder, _run, folder)) for folder in folders]
    parts = [run for _, run in runs if run is not None]
    if not parts:
        names = [str(folder.relative_to(path)) for folder in folders]
        came = f"{path}, a folder with the runs {tables.first_few(names)}" if folders else f"{path}, without tables"
        files = ", ".join(tables.RUN_TABLES.values())
        remedy = f"name one of them, such as {folders[0]}, once it has trained" if folders else ""
        raise mismatch("place", f"a CSV file or a run's folder ({files})", Words(came), remedy)
    kind = min((part.kind for part in parts), key=list(tables.RUN_TABLES).index)
    kept = [part for part in parts if part.kind == kind]
    others = [str(folder.relative_to(path)) for folder, run in runs if run is None or run.kind != kind]
    notes = [f"Without a {kind}, so not shown: {tables.first_few(others)}."] * bool(others)
    trials = [part for part in kept if _trial(part.path) >= 0]
    channels = [part for part in kept if trials and part.path.parent == path / "channels"]  # learned before the trials
    led_to = [part for part in kept if part not in trials + channels]
    if trials and led_to:
        notes.append(f"The {len(trials)} trials of the search are not shown.")
    elif len(trials) > RUNS_UP_TO:
        notes.append(f"The first {RUNS_UP_TO} of {len(trials)} trials are shown.")
    if channels:
        notes.append("The search for channel weights is not shown.")
    return led_to or trials[:RUNS_UP_TO], " ".join(notes)


def _trial(folder: Path) -> int:
    """Return the number of a search's trial, from its folder; -1 for other runs."""
    found = re.fullmatch(r"trial(\d+)", folder.name)
    of_search = folder.parent.name == "search" or folder.with_suffix(".json").exists()
    return int(found[1]) if found and of_search else -1


def _file(path: Path) -> Part:
    """Return the table in a file; the channel weights of a run stand for the run."""
    table = tables.read_table(path, "table")
    kind = kind_of(table)
    trace = path.with_name(tables.RUN_TABLES["trace"])
    if kind == "channels table" and path.name == tables.RUN_TABLES[kind] and tables.has_rows(trace):
        main = tables.load_table(trace, "trace")
        further = tables.arrived_beside(path), tables.features_beside(path), tables.results_beside(path)
        return Part(path, "trace", main, RunTables(main, table, *further))
    if kind != "trace":
        return Part(path, kind, table)
    channels = path.with_name(tables.RUN_TABLES["channels table"])
    beside = path if tables.is_map(path) else channels if path == trace and tables.has_rows(channels) else None
    further = tables.arrived_beside(path), tables.features_beside(path), tables.results_beside(path)
    return Part(path, kind, table, RunTables(table, beside, *further))


def _run(folder: Path) -> Part | None:
    """Return a run; None for a folder without tables."""
    present = {name: folder / file for name, file in tables.RUN_TABLES.items() if tables.has_rows(folder / file)}
    if not present:
        return None
    kind = next((kind for kind in ("trace", "curve") if kind in present), next(iter(present)))
    table = tables.load_table(present[kind], kind)
    further = present.get("channels table"), present.get("table of R²"), tables.features_beside(folder)
    further += (tables.results_beside(folder),)
    run = RunTables(table, *further) if kind == "trace" else None
    return Part(folder, kind, table, run, present.get("log") if kind in ("trace", "curve") else None)


def _of_one(part: Part) -> Page:
    """Return the page of one table or run."""
    if part.tables is not None:
        runs = split_all({"": part.tables})
        content, alt = runs_contents(runs), draw.heatmap(next(iter(runs.values())).trace).alt
    else:
        content, alt = PAGES[part.kind](part.table)
    if part.log is not None:
        content["pictures"] = in_page(draw.learning_curves(part.log))
    return content, alt


def several(parts: Sequence[Part]) -> Page:
    """Return one page of several tables of one kind."""
    kind = parts[0].kind
    names = run_names([part.path for part in parts])
    if kind == "trace":
        require(len(parts) <= RUNS_UP_TO, "places", f"at most {RUNS_UP_TO} runs", len(parts))
        runs = split_all({name: part.tables for name, part in zip(names, parts, strict=True)})
        return runs_contents(runs), f"Heat maps of λ of {len(runs)} runs"
    if kind in JOINED:
        return PAGES[kind](_joined(kind, dict(zip(names, [part.table for part in parts], strict=True))))
    pages = [_naming(part.path, PAGES[kind], part.table)[0] for part in parts]
    pictures = [
        picture | {"caption": name, "alt": f"{name}: {picture['alt']}"}
        for name, page in zip(names, pages, strict=True)
        for picture in page["pictures"]
    ]
    content = pages[0] | {"summary": f"{len(parts)} tables", "pictures": pictures}
    content["note"] = " ".join(tables.distinct(page["note"] for page in pages if page["note"]))
    return content, "; ".join(picture["alt"] for picture in pictures)


def _joined(kind: str, by_name: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Return several tables as one; where two hold a row of the same keys, the names of all are made distinct."""
    name, keys = JOINED[kind]
    for key in keys:
        if any(key in table for table in by_name.values()) and key not in ("seed", *SETTINGS):
            lacking = [place for place, table in by_name.items() if key not in table]
            require(not lacking, kind, f"column {key} in every table", Words(f"none in {', '.join(lacking[:1])}"))
    whole = pd.concat(by_name.values(), ignore_index=True)
    if "seed" in whole:
        whole = whole.assign(seed=whole["seed"].fillna(0))
    if whole.duplicated([key for key in keys if key in whole]).any():
        renamed = [table.assign(**{name: table[name] + f" ({place})"}) for place, table in by_name.items()]
        whole = pd.concat(renamed, ignore_index=True)
    return whole


def _of_arrived(table: pd.DataFrame) -> Page:
    picture = draw.arrived(table)
    return _page("What arrived", picture.alt, [picture])


def _of_curve(curve: pd.DataFrame) -> Page:
    content = contents.budget_contents(curve)
    return content, draw.accuracy_by_budget(curve, content["costs"][0]["name"]).alt


def _of_channels(table: pd.DataFrame) -> Page:
    """Return pictures of the channel weights of the first pairs at their last step."""
    channels = tables.read_channels(table)
    if "slice" in channels:
        channels = tables.with_slices(channels, "channels table").drop(columns="slice")
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
    if "train_seconds" in table:
        table = as_numbers(table, "results table", "train_seconds")
    pictures = [draw.accuracy_by_method(table)]
    timed = table["accuracy"].notna() & (table["train_seconds"] > 0) if "train_seconds" in table else table.index < 0
    if (timed & ~table["method"].isin(REFERENCES)).any():
        pictures.append(draw.accuracy_by_seconds(table[timed]))
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


JOINED = {  # kind -> the column of names, and the columns that tell rows apart
    "curve": ("model", ("model", "exit", "level", "seed")),
    "results table": ("method", ("method", "seed", *SETTINGS)),
    "table of maps": ("method", ("method", "seed", "source", "target", "slice", *SETTINGS)),
}
PAGES = {
    "table of R²": _of_arrived,
    "curve": _of_curve,
    "channels table": _of_channels,
    "table of maps": _of_maps,
    "results table": _of_results,
    "log": _of_log,
}
