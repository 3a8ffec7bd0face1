"""Pictures that compare methods over their runs: accuracy, and accuracy against training time."""

import math
from collections.abc import Callable, Mapping

import pandas as pd
import seaborn as sns
from matplotlib.lines import Line2D

from mtanytime.checks import Words, require
from mtanytime.explore.draw.style import LETTER, Picture, add_legend, distinct_looks, log_axis, shortened
from mtanytime.explore.tables import FLOAT32_UP_TO, Table, distinct, read_table
from mtanytime.measure.tables import require_rows

RESULTS = "results table"
DOT, MEAN = "#56B4E9", "#000000"
# Methods that keep the source's own network: lines to compare the others with.
REFERENCES = {
    "probe": ("linear probe of the source", "#D55E00"),
    "fine_tuning": ("the source, fine-tuned", "#009E73"),
    "fine_tuning_probe": ("the source, fine-tuned from its probe", "#CC79A7"),
}


def accuracy_by_method(results: Table) -> Picture:
    """Draw the accuracy of every method, in table order: one dot per seed, and a diamond for the mean.

    With three seeds or more, a bar shows the mean's 95 % confidence interval (Student's t). The means of the
    methods in `REFERENCES`, which keep the source's own network, are lines beside the others.

    Args:
        results: method, seed, accuracy (a fraction of 1).

    Raises:
        ValueError: a column is missing, the table is empty, or an accuracy is outside [0, 1].
    """
    table, references = _without_references(_read_results(results))
    methods = distinct(table["method"])
    seeds = table.groupby("method")["percent"].count()
    several = seeds.max() > 1
    count = f"{seeds.max()}" if seeds.nunique() == 1 else f"{seeds.min()}–{seeds.max()}"
    count += " seeds" if several or seeds.nunique() > 1 else " seed"

    alt = f"Accuracy of {len(methods)} methods with {count} each: {', '.join(methods)}"
    names = [shortened(method) for method in methods]
    picture = Picture(alt, 6.4 + 1.1 * LETTER * max(map(len, names)), 1.9 + 0.42 * len(methods))
    ax = picture.subplots()
    common = {"data": table, "x": "percent", "y": "method", "order": methods, "ax": ax, "legend": False}
    if several:
        style = {"linestyle": "none", "marker": "D", "markersize": 5, "linewidth": 1.5, "capsize": 0.25}
        sns.pointplot(**common, color=MEAN, errorbar=_interval, **style)
    sns.stripplot(**common, color=DOT, size=6, alpha=0.85, jitter=False, zorder=3)
    for row, method in enumerate(methods):
        mean = table.loc[table["method"] == method, "percent"].mean()
        label = f"{mean:.1f}" if math.isfinite(mean) else "none"
        ax.text(1.02, row, label, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.text(1.02, 1.03, "mean", transform=ax.transAxes, fontsize=9, color="0.35")
    ax.set_yticks(range(len(names)), names)
    ax.set(xlabel="test accuracy (%)", ylabel="", ylim=(len(methods) - 0.5, -0.5))
    ax.set_title(f"Accuracy by method, {count}", fontsize=11, loc="left")
    ax.grid(axis="x", alpha=0.3)
    lines = _draw_references(references, ax.axvline)
    marks = {"one seed": ax.plot([], [], color=DOT, marker="o", ls="")[0]}
    if several:
        marks["mean and its 95 % interval"] = ax.plot([], [], color=MEAN, marker="D", ls="-")[0]
    marks |= lines
    picture.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return picture


def accuracy_by_seconds(results: Table) -> Picture:
    """Draw accuracy against training time: one dot per run; a larger marker shows each method's mean.

    The bars of a mean show one standard deviation over the method's runs. The means of the methods in
    `REFERENCES` are lines.

    Args:
        results: method, seed, accuracy (a fraction of 1), train_seconds.

    Raises:
        ValueError: a column is missing, or no row has an accuracy and a time.
    """
    table, references = _without_references(_read_results(results, "train_seconds"))
    table = table.dropna(subset=["percent", "train_seconds"])
    positive = (table["train_seconds"] > 0) & (table["train_seconds"] < FLOAT32_UP_TO)
    require_rows(positive, table, RESULTS, "train_seconds", "finite numbers above 0", "method", "seed")
    require(len(table) > 0, "results table", "a row with accuracy and train_seconds", Words("none"))
    methods = distinct(table["method"])
    alt = f"Test accuracy against training seconds of {len(methods)} methods: {', '.join(methods)}"
    longest = max(len(shortened(method)) for method in methods)
    picture = Picture(alt, 6.8 + LETTER * longest, 3.8)
    ax = picture.subplots()
    handles = {}
    for method, look in distinct_looks(methods).items():
        runs = table[table["method"] == method]
        ax.scatter(runs["train_seconds"], runs["percent"], s=18, alpha=0.5, linewidths=0, **look)
        spread = [[runs[name].std(ddof=1) if len(runs) > 1 else 0.0] for name in ("train_seconds", "percent")]
        mean = runs["train_seconds"].mean(), runs["percent"].mean()
        bars = {"xerr": spread[0], "yerr": spread[1], "capsize": 3, "label": method}
        handles[method] = ax.errorbar(*mean, markersize=9, ls="", **bars, **look)
    handles |= _draw_references(references, ax.axhline)
    log_axis(ax)
    ax.set(xlabel="training time (s, log scale)", ylabel="test accuracy (%)")
    ax.set_title("Accuracy against training time", fontsize=11, loc="left")
    style = {"loc": "outside right upper", "frameon": False, "fontsize": 9, "title_fontsize": 9}
    add_legend(picture, handles, title="method: mean ± spread", **style)
    return picture


def _read_results(results: Table, *columns: str) -> pd.DataFrame:
    """Return a table of results with accuracies in per cent, after checking every row."""
    table = read_table(results, RESULTS, "method", "seed", "accuracy", *columns)
    fractions = table["accuracy"].between(0, 1) | table["accuracy"].isna()
    require_rows(fractions, table, RESULTS, "accuracy", "fractions in [0, 1]", "method", "seed")
    return table.assign(percent=100 * table["accuracy"])


def _without_references(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, float]]:
    """Split off the methods of `REFERENCES`: the other rows, and their mean accuracies in per cent."""
    known = table["method"].isin(REFERENCES)
    if known.all():
        return table, {}
    means = table[known].groupby("method")["percent"].mean().dropna()
    return table[~known], {method: means[method] for method in REFERENCES if method in means}


def _draw_references(references: Mapping[str, float], draw_line: Callable[..., Line2D]) -> dict[str, Line2D]:
    """Draw one line per reference and return the lines by label."""
    lines = {}
    for method, percent in references.items():
        words, colour = REFERENCES[method]
        label = f"{words}: {percent:.1f}"
        lines[label] = draw_line(percent, color=colour, ls="--", lw=1.4, label=label, zorder=1)
    return lines


def _interval(values: pd.Series) -> tuple[float, float]:
    """Return the 95 % confidence interval of the mean of a few independent values, by Student's t.

    Fewer than three values get none: their interval would be wider than the picture.
    """
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values)) if len(values) > 2 else 0.0
    return values.mean() - half, values.mean() + half
