"""Summarize results: means over seeds with their intervals, beside the paper's figures, without mixing settings."""

import itertools
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mtanytime.checks import Words, mismatch, require
from mtanytime.experiments.paper_figures import DATA_SETS, paper_figure
from mtanytime.experiments.recipe import as_text, changed, nearest
from mtanytime.experiments.runner import RECIPES
from mtanytime.experiments.sweep import LISTED, collect, read_sweep
from mtanytime.measure.results import share_taken_over
from mtanytime.measure.tables import as_numbers, require_columns, require_rows

MEASURED = ("accuracy", "last_accuracy", "right_first", "map_changed", "macs", "macs_own_head", "params")
IGNORED = (*LISTED, "betas", "checkpoint_seconds")  # settings that list what the rows hold, or change no result
TEXT = ("method", "model", "task", "network", "level")


class Source(NamedTuple):
    """The rows of one place, the settings that all of them share, and the columns that tell its rows apart."""

    place: str
    rows: pd.DataFrame
    settings: dict[str, str]
    varied: list[str]


def load_results(places: Sequence[Path]) -> list[Source]:
    """Read the results of sweeps (their folders) and of CSV files with the columns method (or model), seed, accuracy.

    Raises:
        ValueError: a place that is neither, or a table that lacks a column.
        OSError: a file that cannot be read.
    """
    different = len({place.resolve() for place in places}) == len(places)
    require(different, "places", "different ones", list(map(str, places)))
    for place in places:
        require(place.exists(), "place", "the folder of a sweep or a CSV file", str(place))
    return [_of_sweep(place) if place.is_dir() else _of_file(place) for place in places]


def _of_sweep(folder: Path) -> Source:
    record = read_sweep(folder)
    rows = collect(folder)
    require(len(rows) > 0, str(folder), "a sweep with finished runs", Words("none"))
    several = [key for key, values in record["over"].items() if len(values) > 1]
    varied = [LISTED.get(key, key) for key in several]
    return Source(str(folder), _checked(rows, str(folder)), {"recipe": record["recipe"]} | record["settings"], varied)


def _of_file(path: Path) -> Source:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise mismatch(str(path), "a CSV table in UTF-8", Words("one in another encoding, or no text")) from error
    comments = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    try:
        rows = pd.read_csv(path, skiprows=comments, converters=dict.fromkeys(TEXT, str), encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise mismatch(str(path), "a CSV table of results", Words(f"one that cannot be read ({error})")) from error
    return Source(str(path), _checked(rows, str(path)), _settings_in(" ".join(lines[:comments])), [])


def _checked(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    require_columns(rows, name, "seed", "accuracy")
    require(_kind(rows) is not None, name, "a column method or model", Words(", ".join(rows.columns)))
    rows = as_numbers(rows, name, "accuracy")
    fractions = rows["accuracy"].between(0, 1) | rows["accuracy"].isna()
    require_rows(fractions, rows, name, "accuracy", "fractions in [0, 1]", "seed")
    return rows


def _kind(rows: pd.DataFrame) -> str | None:
    return next((name for name in ("method", "model") if name in rows), None)


def _settings_in(comment: str) -> dict[str, str]:
    """The recipe and the settings of the first command in a comment; empty without one."""
    command = re.search(r"python -m mtanytime (?:run|sweep) ([\w-]+)", comment)
    if command is None:
        return {}
    rest = comment[command.end() :]
    given = re.match(r"[^;]*? --set ([^;]*)", rest)
    pairs = _pairs_in(given[1]) if given else {}
    recipe = RECIPES.get(command[1])
    try:
        settings = pairs if recipe is None else changed(recipe.settings, pairs)
    except ValueError:  # a setting of an earlier version
        settings = pairs
    return {"recipe": command[1]} | {key: as_text(value) for key, value in settings.items()}


def _pairs_in(text: str) -> dict[str, str]:
    """The settings at the beginning of a text, which words may follow; a value in quotes may hold spaces."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark without its end
        words = text.split()
    settings = [*itertools.takewhile(re.compile(r"\w+=").match, words)]
    if settings and len(settings) < len(words):  # such as "lr=0.1, and the same with …"
        settings[-1] = settings[-1].rstrip(",)")
    return dict(word.split("=", 1) for word in settings)


def summarize(sources: Sequence[Source], by: Sequence[str] | None = None) -> pd.DataFrame:
    """Means over seeds for each combination of the columns `by`, in the order of the rows.

    Args:
        sources: what `load_results` returned.
        by: columns or settings that tell groups apart; by default the method (or model and exit) and what the sweeps
            vary.

    Returns:
        the columns of `by`, n (runs with an accuracy), diverged (runs without), accuracy (mean, a fraction), half
        (half of its 95 % interval by Student's t; NaN for one run), share (the mean of `measure.share_taken_over`;
        NaN for scratch and the probe themselves), paper (the paper's figure, a fraction) and paper_is ("verified" or
        "recalled"). share is there only if scratch and the probe are among the methods, the last two only if the paper
        has a figure.

    Raises:
        ValueError: an unknown column; one of several places that does not state its settings; or runs in one group, or
            places, that differ in a setting which is not in `by`: the message names it and its values.
    """
    silent = [source.place for source in sources if len(sources) > 1 and not source.settings]
    expected = "a comment with the command that made it, as where several tables are compared"
    require(not silent, silent[0] if silent else "", expected, Words("none, so its settings are unknown"))
    table = pd.concat([source.rows for source in sources], ignore_index=True)
    by = _columns(sources, table, by)
    table = pd.concat([_with_settings(source, by) for source in sources], ignore_index=True)
    settings = [source.settings for source in sources for _ in range(len(source.rows))]  # of each row's place
    _refuse_other_settings(sources, by)
    groups = table.groupby(by, sort=False, dropna=False)
    for _, group in groups:
        _refuse_mixing(group, by)
    shares = _shares(table, by)
    rows = []
    for _, group in groups:
        kept = group["accuracy"].dropna()
        key = {name: group[name].iloc[0] for name in by}
        row = key | {"n": len(kept), "diverged": len(group) - len(kept), "accuracy": kept.mean(), "half": _half(kept)}
        row |= {} if shares is None else {"share": shares[group.index].mean()}
        rows.append(row | _paper(settings[group.index[0]] | group.iloc[0].dropna().to_dict()))
    return pd.DataFrame(rows)


def _shares(table: pd.DataFrame, by: Sequence[str]) -> pd.Series | None:
    """Each row's `share_taken_over`, among rows that differ only in the method; None if all are NaN."""
    if "method" not in by:
        return None
    others = [name for name in by if name != "method"]
    parts = [part for _, part in table.groupby(others, dropna=False)] if others else [table]
    shares = pd.concat([share_taken_over(part) for part in parts]).mask(table["method"].isin(["scratch", "probe"]))
    return None if shares.isna().all() else shares


def _half(values: pd.Series) -> float:
    """Half of the 95 % confidence interval of the mean of independent values, by Student's t; NaN for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return math.nan
    return float(t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values)))


def _columns(sources: Sequence[Source], table: pd.DataFrame, by: Sequence[str] | None) -> list[str]:
    known = [name for name in table if name not in ("seed", *MEASURED) and not name.endswith("seconds")]
    settings = [name for source in sources for name in source.settings]
    if by is None:
        usual = [name for name in ("method", "model", "task", "exit", "level") if name in table]
        return list(dict.fromkeys([*usual, *(name for source in sources for name in source.varied)]))
    by = [LISTED.get(name, name) for name in by]
    require(len(by) > 0 and len(set(by)) == len(by), "--by", "one or more different columns", list(by))
    for name in by:
        if name not in known and name not in settings:
            raise mismatch("--by", "columns or settings of the results", name, nearest(name, [*known, *settings]))
    return list(by)


def _with_settings(source: Source, by: Sequence[str]) -> pd.DataFrame:
    """The rows with a column for each setting in `by` that their place states for all of them."""
    missing = [name for name in by if name not in source.rows]
    for name in missing:
        remedy = f"{source.place} does not state it"
        require(name in source.settings, "--by", "columns or settings of all places", name, remedy)
    return source.rows.assign(**{name: _number(source.settings[name]) for name in missing})


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _refuse_other_settings(sources: Sequence[Source], by: Sequence[str]) -> None:
    """Raise ValueError if two places have different values of a setting, by their columns or else by what they state.

    Values that differ within one place are compared group by group, see `_refuse_mixing`.
    """
    for name in dict.fromkeys(key for source in sources for key in source.settings):
        places: dict[frozenset[object], str] = {}
        for source in sources:
            if name in source.rows:
                places.setdefault(frozenset(source.rows[name].dropna()), source.place)
            elif name in source.settings:
                places.setdefault(frozenset([_number(source.settings[name])]), source.place)
        if name not in by and name not in IGNORED and len(places) > 1:
            values = [f"{', '.join(sorted(map(str, given))) or 'none'} ({place})" for given, place in places.items()]
            raise _mixed(name, values, by)


def _refuse_mixing(group: pd.DataFrame, by: Sequence[str]) -> None:
    """Raise ValueError if the runs of a group differ in anything but the seed and what is measured."""
    here = ", ".join(f"{name} {group[name].iloc[0]}" for name in by)
    for name in group:
        if name in ("seed", *by, *MEASURED) or name.endswith(("seconds", "_ms")):
            continue
        values = group[name].drop_duplicates().tolist()
        if len(values) > 1:
            raise _mixed(name, [f"{value}" for value in values], by, f" for {here}")
    twice = group.loc[group["seed"].duplicated(), "seed"].tolist()
    if twice:
        came = Words(f"seed {twice[0]} twice for {here}")
        raise mismatch("results", "one run per seed", came, "add a column that tells them apart to --by")


def _mixed(name: str, values: Sequence[str], by: Sequence[str], where: str = "") -> ValueError:
    came = Words(" and ".join(values) + where)
    return mismatch(name, "one value, or a column of --by", came, f"--by {' '.join(by)} {name}")


def _paper(row: Mapping[str, Any]) -> dict[str, Any]:
    """The paper's figure beside a group, given its columns and settings; nothing where there is none."""
    if row.get("scored_on") == "validation":
        return {}
    per_class = row.get("per_class")
    figure = paper_figure(
        DATA_SETS.get(str(row.get("recipe")), ""), str(row.get("method")), None if per_class is None else int(per_class)
    )
    if figure is None:
        return {}
    return {"paper": round(figure.percent / 100, 6), "paper_is": "verified" if figure.verified else "recalled"}


def as_markdown(summary: pd.DataFrame) -> str:
    """A summary as a Markdown table, accuracies in per cent, with footnotes for its marks."""
    by = list(summary.columns[: list(summary.columns).index("n")])
    share, paper = "share" in summary, "paper" in summary
    header = [*by, "n", "accuracy (%)", *(["share taken over"] if share else []), *(["paper (%)"] if paper else [])]
    lines = [header, ["---"] * len(by) + ["---:"] * (len(header) - len(by))]
    for row in summary.to_dict("records"):
        runs = str(row["n"]) + f" ({row['diverged']} diverged)" * bool(row["diverged"])
        mean = "none" if math.isnan(row["accuracy"]) else f"{100 * row['accuracy']:.1f}"
        interval = "" if math.isnan(row["half"]) else f" ± {100 * row['half']:.1f}"
        cells = [*(_cell(row[name]) for name in by), runs, mean + interval]
        if share:
            cells.append("" if math.isnan(row["share"]) else f"{row['share']:.2f}")
        if paper:
            mark = " †" * (row["paper_is"] == "recalled")
            cells.append("" if math.isnan(row["paper"]) else f"{100 * row['paper']:.2f}{mark}")
        lines.append(cells)
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    if summary["half"].notna().any():
        text += "\n\n±: half of the mean's 95 % confidence interval over n seeds (Student's t)."
    if share:
        text += "\n\nShare taken over: of the way from scratch to the source's linear probe, the mean over seeds."
    if paper and (summary["paper_is"] == "recalled").any():
        text += "\n\n†: recalled from the paper and not checked again."
    return text


def _cell(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|")
