"""A picture of a summary of results: mean accuracies with their intervals, beside the paper's figures."""

import pandas as pd
from matplotlib.axes import Axes

from mtanytime.checks import Words, require
from mtanytime.explore.draw.methods import REFERENCES
from mtanytime.explore.draw.style import LETTER, Picture, add_legend, distinct_looks, log_axis, shortened
from mtanytime.explore.tables import distinct
from mtanytime.measure.tables import require_columns

INTERVAL = "95 % interval of the mean"


def accuracy_summary(summary: pd.DataFrame) -> Picture:
    """Draw mean accuracies with their 95 % intervals; hollow marks are the paper's figures.

    Where a numeric column varies beside one of names, such as per_class beside method, it is the x-axis and each name
    is a line; otherwise each group is a row. Methods that keep the source's own network (`methods.REFERENCES`) get a
    dashed line among rows if each is one row.

    Args:
        summary: the columns of groups, then n, diverged, accuracy and half (fractions of 1)[, paper, paper_is].

    Raises:
        ValueError: a column is missing, or no group has an accuracy.
    """
    require_columns(summary, "summary", "n", "accuracy", "half")
    table = summary.dropna(subset="accuracy")
    require(len(table) > 0, "summary", "a group with an accuracy", Words("none"))
    by = list(table.columns[: list(table.columns).index("n")])
    table = table.assign(percent=100 * table["accuracy"], bar=100 * table["half"].fillna(0.0))
    table["reported"] = 100 * table["paper"] if "paper" in table else float("nan")
    numbers = [name for name in by if pd.api.types.is_numeric_dtype(table[name]) and table[name].dtype != bool]
    numeric = [name for name in numbers if table[name].nunique() > 1]
    axis = numeric[0] if len(numeric) == 1 and len(by) > 1 else None
    names = [name for name in by if name != axis]
    table["group"] = [", ".join(f"{row[name]}" for name in names) for row in table.to_dict("records")]
    groups = distinct(table["group"])
    longest = max(len(shortened(group)) for group in groups)
    alt = f"Mean accuracy with its 95 % interval of {len(groups)} groups: {', '.join(groups)}"
    if axis is None:
        picture = Picture(alt, 5.4 + 1.1 * LETTER * longest, 1.6 + 0.4 * len(groups))
        _draw_rows(picture, picture.subplots(), table, groups)
    else:
        picture = Picture(alt, 5.8 + LETTER * longest, 3.8)
        _draw_lines(picture, picture.subplots(), table, axis)
    return picture


def _draw_rows(picture: Picture, ax: Axes, table: pd.DataFrame, groups: list[str]) -> None:
    rows = range(len(table))
    handles = {INTERVAL: ax.errorbar(table["percent"], rows, xerr=table["bar"], fmt="D", color="black", capsize=3)}
    for method, (words, colour) in REFERENCES.items():
        found = table.loc[table["method"] == method, "percent"] if "method" in table else table["percent"][:0]
        if len(found) == 1:
            handles[words] = ax.axvline(found.item(), color=colour, ls="--", lw=1.4, zorder=1)
    if table["reported"].notna().any():
        style = {"mfc": "none", "mec": "#D55E00", "ls": ""}
        handles[_paper_label(table)] = ax.plot(table["reported"], rows, "s", **style)[0]
    ax.set_yticks(rows, map(shortened, groups))
    ax.set(xlabel="accuracy (%)", ylim=(len(table) - 0.5, -0.5))
    ax.grid(axis="x", alpha=0.3)
    add_legend(picture, handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)


def _draw_lines(picture: Picture, ax: Axes, table: pd.DataFrame, axis: str) -> None:
    handles, low, high = {}, table[axis].min(), table[axis].max()
    logarithmic, looks = low > 0 and high / low >= 5, distinct_looks(distinct(table["group"]))
    for k, (group, look) in enumerate(looks.items()):
        line = table[table["group"] == group].sort_values(axis)
        aside = 0.01 * (k - (len(looks) - 1) / 2)  # of the width, so that intervals do not hide each other
        x = line[axis] * (high / low) ** aside if logarithmic else line[axis] + aside * (high - low)
        handles[group] = ax.errorbar(x, line["percent"], yerr=line["bar"], capsize=3, **look)
        if line["reported"].notna().any():
            hollow = ax.plot(x, line["reported"], ls="", mfc="none", mec=look["color"], marker=look["marker"])
            handles.setdefault(_paper_label(table), hollow[0])
    if logarithmic:
        log_axis(ax)
        ax.set_xticks(sorted(table[axis].unique()))
    else:
        ax.grid(alpha=0.3)
    ax.set(xlabel=axis, ylabel="accuracy (%)", ylim=(max(0.0, ax.get_ylim()[0]), min(100.0, ax.get_ylim()[1])))
    style = {"loc": "outside right upper", "frameon": False, "fontsize": 9, "title_fontsize": 9}
    add_legend(picture, handles, title=f"mean and {INTERVAL.removesuffix(' of the mean')}", **style)


def _paper_label(table: pd.DataFrame) -> str:
    recalled = (table.get("paper_is") == "recalled").any()
    return "the paper" + " (recalled, not checked)" * bool(recalled)
