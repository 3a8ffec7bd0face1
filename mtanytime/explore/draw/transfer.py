"""Pictures of what is transferred where: maps of λ and of R², λ over time, channel weights."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from mtanytime.checks import Words, require
from mtanytime.explore.draw.style import (
    LETTER,
    LINES_UP_TO,
    MAPS_A_ROW,
    NUMBERS_UP_TO,
    Picture,
    colour_bar_of,
    coloured_grid,
    distinct_colours,
    legend_outside,
    marker_for,
    shortened,
    step_axis,
)
from mtanytime.explore.kinds import varied_settings
from mtanytime.explore.tables import (
    Step,
    Table,
    distinct,
    finite,
    first_few,
    read_arrived,
    read_channels,
    read_table,
    read_trace,
    step_of,
    with_slices,
)
from mtanytime.measure.tables import require_rows, require_unique

BLANK = "0.92"  # the grey of a pair that was not matched
WEIGHT_LABEL = "mean λ (pair weight)"
R2_LABEL = "R²: share of the source's variance"
ONE_RUN = "give the table of one run"


def heatmap(
    trace: Table,
    step: Step = None,
    relative: bool = False,
    *,
    vmax: float | None = None,
    numbers: bool | None = None,
    title: str | None = None,
) -> Picture:
    """Draw the mean λ of every pair at one step: a row per source layer, a column per target layer, in table order.

    A pair that was not matched is blank; one that diverged says nan. Several sources (`letters/layer1`,
    `digits/layer1`) are drawn below each other.

    Args:
        trace: step, source, target, weight[, slice]; each slice is a target layer of its own.
        step: the training step; the last one if None.
        relative: show each pair's share of the target layer's total λ (a column sums to 100 %) instead of λ.
        vmax: the value of the brightest colour; if None, the largest of the whole trace, so that pictures of its steps
            can be compared.
        numbers: write the value into each cell; if None, up to 12 layers per side.
        title: of the picture, for a map that is not of a step of a run, such as a mean; if None, λ and its step.

    Raises:
        ValueError: as `tables.read_trace`; the trace has several values for a pair and step, or lacks the step (names
            the nearest).
    """
    table = read_trace(trace)
    require_unique(table, "trace", "step", "source", "target", remedy=ONE_RUN)
    step = step_of(table, "trace", step)
    weights = table.groupby(["step", "source", "target"])["weight"].mean()
    if relative:
        weights = weights / weights.groupby(["step", "target"]).transform("sum").replace(0, 1)
    values = weights.loc[step].unstack().reindex(index=distinct(table["source"]), columns=distinct(table["target"]))
    if vmax is None:
        vmax = weights.max() if weights.max() > 0 else 1.0
    title = f"{'share of λ' if relative else 'λ'} at step {step}" if title is None else title
    label = "share of the target layer's λ" if relative else WEIGHT_LABEL
    if numbers is None:
        numbers = max(values.shape) <= NUMBERS_UP_TO
    picture = _draw_map(table, values, title, label, vmax, numbers, ".0%" if relative else ".2f")
    if relative:
        picture.axes[0].collections[0].colorbar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return picture


def arrived(table: Table, step: Step = None, *, numbers: bool | None = None) -> Picture:
    """Draw what arrived at one step: R² of every pair, a row per source layer, a column per target layer.

    Colours go from 0 to 1, so that pictures of all steps and runs can be compared; a negative R² has the colour of 0. A
    pair that is not in the table is blank; one without a number says nan.

    Args:
        table: step, source, target, r2[, slice]; each slice is a target layer of its own.
        step: the training step; the last one if None.
        numbers: write the value into each cell; if None, up to 12 layers per side.

    Raises:
        ValueError: as `tables.read_arrived`; the table has several values for a pair and step, or lacks the step
            (names the nearest).
    """
    name = "table of R²"
    table = read_arrived(table)
    require_unique(table, name, "step", "source", "target", remedy=ONE_RUN)
    step = step_of(table, name, step)
    values = table[table["step"] == step].pivot(index="source", columns="target", values="r2")
    values = values.reindex(index=distinct(table["source"]), columns=distinct(table["target"]))
    numbers = max(values.shape) <= NUMBERS_UP_TO if numbers is None else numbers
    return _draw_map(table, values, f"R² at step {step}", R2_LABEL, 1.0, numbers, ".2f")


def difference(values: pd.DataFrame, title: str, label: str, vmax: float | None = None, form: str = "+.2f") -> Picture:
    """Draw the difference of two maps, or a map's change, with colours that are white at 0.

    Args:
        values: a row per source layer, a column per target layer; NaN for a pair that either map lacks.
        title: what is shown at which step, such as "Change of λ at step 100".
        label: of the colour bar, with the unit.
        vmax: the size of the strongest colours; the largest difference if None.
        form: of the numbers in the cells.
    """
    largest = float(values.abs().max(axis=None)) if vmax is None else vmax
    table = values.stack().dropna().rename("weight").rename_axis(["source", "target"]).reset_index()
    few = max(values.shape) <= NUMBERS_UP_TO
    return _draw_map(table, values, title, label, largest if largest > 0 else 1.0, few, form, diverging=True)


def _draw_map(
    table: pd.DataFrame,
    values: pd.DataFrame,
    title: str,
    label: str,
    vmax: float,
    numbers: bool,
    form: str,
    diverging: bool = False,
) -> Picture:
    """Draw a map of values; a pair of the table without one says nan, and one that the table lacks is blank."""
    quantity, at, moment = title.replace("\n", " ").rpartition(" at step ")
    layers = f"{values.shape[0]} source × {values.shape[1]} target layers"
    alt = f"Heat map of {quantity}, {layers}, at step {moment}" if at else f"Heat map of {moment}, {layers}"
    picture, upright = _map_picture(alt, values, numbers)
    ax = picture.subplots()
    ax.set_facecolor(BLANK)
    coloured_grid(
        ax,
        values,
        vmax,
        diverging,
        annot=numbers,
        fmt=form,
        annot_kws={"size": 9},
        linewidths=0.5 if numbers else 0,
        linecolor="white",
        cbar_kws={"label": label},
    )
    pairs = table.groupby(["source", "target"]).size().unstack()
    matched = pairs.reindex(index=values.index, columns=values.columns).notna()
    for row, column in np.argwhere((values.isna() & matched).to_numpy()):
        ax.text(column + 0.5, row + 0.5, "nan", ha="center", va="center", fontsize=9 if numbers else 6)
    blanks = "" if matched.to_numpy().all() else "\nblank: not matched"
    longest = max(map(len, title.splitlines()))
    size = np.clip(
        11 * 0.75 * picture.get_figwidth() / (1.2 * LETTER * longest), 6, 11
    )  # the names of two runs are long
    ax.set_title(f"{title}{blanks}", fontsize=size)
    ax.set(xlabel="target layer", ylabel="source layer")
    ax.tick_params(axis="x", labelrotation=90 if upright else 0, labelsize=9 if numbers else 7)
    ax.tick_params(axis="y", labelrotation=0, labelsize=9 if numbers else 7)
    return picture


def _map_picture(alt: str, values: pd.DataFrame, numbers: bool) -> tuple[Picture, bool]:
    """Return a picture with room for a map and the names of its layers, and whether target layers are upright."""
    sources, targets = ([shortened(name) for name in names] for names in (values.index, values.columns))
    longest = LETTER * max(map(len, targets)) + 0.1
    wide, high = (0.62, 0.42) if numbers else (0.19, 0.16)  # inches per cell
    if numbers and len(targets) <= 6:  # a small grid has room for wider cells
        wide = np.clip(longest, wide, 1.3)
    upright = bool(longest > wide)
    width = 2.4 + LETTER * max(map(len, sources)) + wide * len(targets)
    height = (1.4 + longest if upright else 1.5) + high * len(sources)
    return Picture(alt, np.clip(width, 4.2, 15), np.clip(height, 2.8, 13)), upright


def heatmaps(maps: Table) -> Picture:
    """Draw the last λ of several runs side by side, one map per run in table order, with one colour scale.

    Args:
        maps: method, seed, source, target, weight[, beta, lr, precision], such as the `maps` of a recipe's results.

    Raises:
        ValueError: a column is missing, or the table is empty.
    """
    name = "table of maps"
    table = read_table(maps, name, "method", "seed", "source", "target", "weight")
    require_rows(table["seed"].notna(), table, name, "seed", "a seed in every row", "method")
    table = table.assign(weight=finite(table["weight"]))
    table = with_slices(table, name) if "slice" in table else table
    sources, targets = distinct(table["source"]), distinct(table["target"])
    keys = ["method", "seed", *varied_settings(table)]
    require_unique(table, name, *keys, "source", "target", remedy="give the last maps of runs with the same settings")
    runs = list(table.groupby(keys, sort=False, dropna=False))
    columns = min(len(runs), MAPS_A_ROW)
    rows = -(-len(runs) // columns)
    numbers = max(len(sources), len(targets)) <= NUMBERS_UP_TO
    cell = 0.44 if numbers else 0.14
    longest = [max(len(shortened(name)) for name in names) for names in (sources, targets)]
    width = columns * max(cell * len(targets), 1.7) + LETTER * longest[0] + 1.2
    height = rows * (cell * 0.75 * len(sources) + 0.35) + LETTER * longest[1] + 0.5
    alt = f"Heat maps of λ of {len(runs)} runs, {len(sources)} source × {len(targets)} target layers each"
    picture = Picture(alt, np.clip(width, 4.2, 15), np.clip(height, 2.2, 13))
    axes = picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    vmax = table["weight"].max() if table["weight"].max() > 0 else 1.0
    for ax, (names, run) in zip(axes.flat, runs, strict=False):
        values = run.pivot_table(index="source", columns="target", values="weight").reindex(sources, columns=targets)
        coloured_grid(ax, values, vmax, annot=numbers, fmt=".1f", annot_kws={"size": 8}, cbar=False)
        values = (f"{value:g}" if isinstance(value, (int, float)) else shortened(str(value)) for value in names[1:])
        words = [f"{name} {value}" for name, value in zip(keys[1:], values, strict=True)]
        ax.set_title(", ".join([shortened(names[0]), *words]), fontsize=9)
        ax.set(xlabel="", ylabel="", facecolor=BLANK)
        ax.tick_params(axis="x", labelrotation=90, labelsize=8)
        ax.tick_params(axis="y", labelrotation=0, labelsize=8)
    for ax in axes.flat[len(runs) :]:
        ax.set_visible(False)
    picture.supxlabel("target layer", fontsize=9)
    picture.supylabel("source layer", fontsize=9)
    picture.colorbar(colour_bar_of(vmax), ax=axes, label=WEIGHT_LABEL, fraction=0.03)
    return picture


def weights_over_time(trace: Table) -> Picture:
    """Draw λ against the training step: one line per pair, its band one standard deviation over the images.

    More than eight pairs get one panel per target layer.

    Args:
        trace: step, source, target, weight[, weight_std][, slice].

    Raises:
        ValueError: as `tables.read_trace`; the trace has several values for a pair and step.
    """
    table = read_trace(trace)
    require_unique(table, "trace", "step", "source", "target", remedy=ONE_RUN)
    sources, targets = distinct(table["source"]), distinct(table["target"])
    pairs = table[["source", "target"]].drop_duplicates()
    split = len(pairs) > LINES_UP_TO
    colours = distinct_colours(sources if split else [_arrow(*pair) for pair in pairs.itertuples(index=False)])
    layers = f"{len(sources)} source and {len(targets)} target layers"
    alt = f"λ against the training step for {len(pairs)} pairs of {layers}"
    columns = min(len(targets), 3 if len(targets) <= 12 else 6) if split else 1
    size = 4.5 if columns == 1 else 2.6 if columns <= 3 else 1.9  # of a panel, in inches
    longest = max(len(shortened(label)) for label in colours)
    picture, panels = _panels(alt, len(targets) if split else 1, columns, size, longest)
    for (source, target), rows in table.groupby(["source", "target"], sort=False):
        label = source if split else _arrow(source, target)
        _draw_weights(panels[targets.index(target) if split else 0], rows, label, colours[label])
    for ax, target in zip(panels, targets, strict=False):
        step_axis(ax)
        if split:
            title = shortened(target)
            ax.set_title(title, fontsize=np.clip(9 * size / (LETTER * len(title)), 5, 10))
    picture.supxlabel("training step", fontsize=10)
    picture.supylabel(WEIGHT_LABEL, fontsize=10)
    band = "\nband: ± 1 standard deviation over the images" if "weight_std" in table else ""
    picture.suptitle(f"λ during training{', by target layer' if split else ''}{band}", x=0.01, ha="left", fontsize=11)
    panels[0].set_ylim(bottom=0)
    legend_outside(picture, panels, colours, "source layer" if split else "source → target")
    return picture


def _arrow(source: str, target: str) -> str:
    """Return a pair of layers in words."""
    return f"{source} → {target}"


def _panels(alt: str, count: int, columns: int, size: float, letters: int) -> tuple[Picture, list[Axes]]:
    """Return a picture of `count` panels with shared axes, and room for a legend of so many letters beside them."""
    rows = math.ceil(count / columns)
    picture = Picture(alt, 1.0 + LETTER * letters + size * columns, 1 + 0.65 * size * rows)
    axes = list(picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    for ax in axes[:count][-columns:]:  # the lowest of each column, also above a removed panel
        ax.tick_params(labelbottom=True)
    return picture, axes[:count]


def _draw_weights(ax: Axes, rows: pd.DataFrame, label: str, colour: str) -> None:
    """Draw λ of one pair over time, with the spread over the images if the table has it."""
    line = rows.groupby("step")[[c for c in ("weight", "weight_std") if c in rows]].mean().reset_index()
    ax.plot(line["step"], line["weight"], color=colour, label=label, lw=1.6, marker=marker_for(line))
    if "weight_std" in line:
        low, high = (line["weight"] + sign * line["weight_std"] for sign in (-1, 1))
        ax.fill_between(line["step"], low.clip(lower=0), high, color=colour, alpha=0.13, lw=0)


def channel_weights(channels: Table, source: str, target: str, step: Step = None, *, top: int | None = None) -> Picture:
    """Draw the channel weights of one pair, largest first, with the uniform weight 1/C and the first step's weights.

    Args:
        channels: step, source, target, channel, weight[, slice]; each slice is a target layer of its own.
        source: the source layer, as in the table.
        target: the target layer, as in the table.
        step: the training step; the last one if None.
        top: draw only this many of the largest weights; all if None.

    Raises:
        ValueError: a column is missing, the table is empty or lacks the pair or the step, has several values for one
            of the pair's channels and a step, or `top` is below 1.
    """
    table = read_channels(channels)
    table = with_slices(table, "channels table") if "slice" in table else table
    pair = table[(table["source"] == source) & (table["target"] == target)]
    pairs = [_arrow(*row) for row in table[["source", "target"]].drop_duplicates().itertuples(index=False)]
    expected = f"a pair of the channels table ({first_few(pairs)})"
    require(len(pair) > 0, "source and target", expected, Words(f"{source} → {target}"))
    require(top is None or top >= 1, "top", "a number >= 1 or None", top)
    require_unique(pair, "channels table", "step", "source", "target", "channel", remedy=ONE_RUN)
    last, first = step_of(pair, "channels table", step), int(pair["step"].min())
    weights = pair.groupby(["step", "channel"])["weight"].mean()
    now = weights[last].sort_values(ascending=False, kind="stable")
    count, shown = len(now), now.iloc[:top]

    alt = f"Channel weights of {source} → {target} at step {last}, {len(shown)} of {count} channels, largest first"
    title = f"{_arrow(shortened(source), shortened(target))} at step {last}"
    picture = Picture(alt, np.clip(0.16 * len(shown) + 2.5, max(5, 1.2 * LETTER * len(title) + 1), 11), 3.8)
    ax = picture.subplots()
    few = len(shown) <= 50
    rank = np.arange(1, len(shown) + 1)
    ax.bar(rank, shown, width=0.8 if few else 1.0, color="#0072B2", label=f"step {last}")
    if first != last:
        before = weights[first].reindex(shown.index)
        ax.plot(rank, before, color="#E69F00", lw=1.2, marker="." if few else None, label=f"step {first}")
    ax.axhline(1 / count, color="0.25", ls="--", lw=1.2, label=f"uniform, 1/{count}")
    ax.margins(x=0.01)
    if few:
        rotation = 90 if len(shown) > 16 else 0
        ax.set_xticks(rank, [f"{channel}" for channel in shown.index], rotation=rotation, fontsize=8)
    ax.set(xlabel="channel, by weight" if few else "rank of the channel by weight", ylabel="mean channel weight")
    part = f"the largest {len(shown)} of {count} channels"
    ax.set_title(f"{title}\n{part if len(shown) < count else f'{count} channels, sum {now.sum():.3g}'}", fontsize=11)
    ax.grid(axis="y", alpha=0.3)
    picture.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return picture
