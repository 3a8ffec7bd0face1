"""Pictures of a transfer: maps of λ, channel weights, accuracy by method."""

import math

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.cm import ScalarMappable
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from mtanytime.explore.draw.style import (
    LETTER,
    LINES_UP_TO,
    MAPS_A_ROW,
    MARKERS,
    NUMBERS_UP_TO,
    Picture,
    coloured_grid,
    distinct_colours,
    legend_outside,
    marker_for,
    shortened,
    step_axis,
)
from mtanytime.explore.tables import Step, Table, distinct, read_table, read_trace, some, step_of


def heatmap(
    trace: Table,
    step: Step = None,
    relative: bool = False,
    *,
    vmax: float | None = None,
    numbers: bool | None = None,
) -> Picture:
    """Mean λ of every pair at one step: source layers down, target layers across, in the table's order.

    A pair that was not matched is blank, one that diverged says nan. Several sources (`letters/layer1`,
    `digits/layer1`) stand below each other.

    Args:
        trace: step, source, target, weight[, slice]; a slice makes a target layer of its own.
        step: which step; the last one if None.
        relative: show each pair's share of the target layer's total λ (a column sums to 100 %) instead of λ.
        vmax: the value of the brightest colour; if None, the largest of the whole trace, so that the pictures of
            all its steps compare.
        numbers: write the value into each cell; if None, up to 12 layers a side.

    Raises:
        ValueError: a column is missing, the table is empty, or the step is not in it (names the nearest).
    """
    table = read_trace(trace)
    last = step_of(table, "trace", step)
    weights = table.groupby(["step", "source", "target"])["weight"].mean()
    if relative:
        weights = weights / weights.groupby(["step", "target"]).transform("sum").replace(0, 1)
    values = weights.loc[last].unstack().reindex(index=distinct(table["source"]), columns=distinct(table["target"]))
    sources, targets = ([shortened(name) for name in names] for names in (values.index, values.columns))
    if vmax is None:
        vmax = weights.max() if weights.max() > 0 else 1.0
    if numbers is None:
        numbers = max(values.shape) <= NUMBERS_UP_TO

    what = "share of λ" if relative else "λ"
    alt = f"Heat map of {what}, {len(sources)} source × {len(targets)} target layers, at step {last}"
    longest = LETTER * max(map(len, targets)) + 0.1
    wide, high, size = (0.62, 0.42, 9) if numbers else (0.19, 0.16, 7)  # inches a cell, points a letter
    if numbers and len(targets) <= 6:  # a small grid makes room for its layers' names
        wide = np.clip(longest, wide, 1.3)
    upright = longest > wide
    width = 2.4 + LETTER * max(map(len, sources)) + wide * len(targets)
    height = (1.4 + longest if upright else 1.5) + high * len(sources)
    picture = Picture(alt, np.clip(width, 4.2, 15), np.clip(height, 2.8, 13))
    ax = picture.subplots()
    ax.set_facecolor("0.92")
    coloured_grid(
        ax,
        values,
        vmax,
        annot=numbers,
        fmt=".0%" if relative else ".2f",
        annot_kws={"size": 9},
        linewidths=0.5 if numbers else 0,
        linecolor="white",
        cbar_kws={"label": "share of the target layer's λ" if relative else "mean λ (pair weight)"},
    )
    if relative:
        ax.collections[0].colorbar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    matched = (
        table.groupby(["source", "target"]).size().unstack().reindex(index=values.index, columns=values.columns).notna()
    )
    for row, column in np.argwhere((values.isna() & matched).to_numpy()):
        ax.text(column + 0.5, row + 0.5, "nan", ha="center", va="center", fontsize=9 if numbers else 6)
    ax.set(xlabel="target layer", ylabel="source layer")
    ax.set_title(f"{what} at step {last}" + ("" if matched.to_numpy().all() else "\nblank: not matched"), fontsize=11)
    ax.tick_params(axis="x", labelrotation=90 if upright else 0, labelsize=size)
    ax.tick_params(axis="y", labelrotation=0, labelsize=size)
    return picture


def heatmaps(maps: Table) -> Picture:
    """The last λ of several runs side by side, one map a run, in the table's order and with one scale of colour.

    Args:
        maps: method, seed, source, target, weight[, beta]; see `recipes.Results`.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    table = read_table(maps, "table of maps", "method", "seed", "source", "target", "weight")
    sources, targets = distinct(table["source"]), distinct(table["target"])
    several = ["method", "seed"]
    if "beta" in table and table.groupby("method")["beta"].nunique().max() > 1:
        several.append("beta")
    runs = list(table.groupby(several, sort=False))
    columns = min(len(runs), MAPS_A_ROW)
    rows = -(-len(runs) // columns)
    longest = LETTER * max(map(len, sources)), LETTER * max(map(len, targets))
    cell = 0.44 if max(len(sources), len(targets)) <= NUMBERS_UP_TO else 0.14
    width = columns * max(cell * len(targets), 1.7) + longest[0] + 1.2
    height = rows * (cell * 0.75 * len(sources) + 0.35) + longest[1] + 0.5
    alt = f"Heat maps of λ of {len(runs)} runs, {len(sources)} source × {len(targets)} target layers each"
    picture = Picture(alt, np.clip(width, 4.2, 15), np.clip(height, 2.2, 13))
    axes = picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    vmax = table["weight"].max() if table["weight"].max() > 0 else 1.0
    for ax, (names, run) in zip(axes.flat, runs, strict=False):
        values = run.pivot_table(index="source", columns="target", values="weight").reindex(sources, columns=targets)
        coloured_grid(ax, values, vmax, annot=cell > 0.2, fmt=".1f", annot_kws={"size": 8}, cbar=False)
        words = [f"{name} {value:g}" for name, value in zip(several[1:], names[1:], strict=True)]
        ax.set_title(", ".join([names[0], *words]), fontsize=9)
        ax.set(xlabel="", ylabel="", facecolor="0.92")
        ax.tick_params(axis="x", labelrotation=90, labelsize=8)
        ax.tick_params(axis="y", labelrotation=0, labelsize=8)
    for ax in axes.flat[len(runs) :]:
        ax.set_visible(False)
    picture.supxlabel("target layer", fontsize=9)
    picture.supylabel("source layer", fontsize=9)
    scale = ScalarMappable(cmap="viridis")
    scale.set_clim(0, vmax)
    picture.colorbar(scale, ax=axes, label="mean λ (pair weight)", fraction=0.03)
    return picture


def weights_over_time(trace: Table) -> Picture:
    """How λ moved: one line a pair, its band one standard deviation over the images; a panel a target layer if many.

    Args:
        trace: step, source, target, weight[, weight_std][, slice].

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    table = read_trace(trace)
    sources, targets = distinct(table["source"]), distinct(table["target"])
    pairs = table[["source", "target"]].drop_duplicates()
    split = len(pairs) > LINES_UP_TO
    colours = distinct_colours(sources if split else [" → ".join(pair) for pair in pairs.itertuples(index=False)])
    alt = (
        f"λ against the training step for {len(pairs)} pairs of {len(sources)} source and {len(targets)} target layers"
    )
    columns = min(len(targets), 3 if len(targets) <= 12 else 6) if split else 1
    rows = math.ceil(len(targets) / columns) if split else 1
    panel = 4.5 if columns == 1 else 2.6 if columns <= 3 else 1.9  # inches
    beside = 1.0 + LETTER * max(map(len, colours))  # the legend
    picture = Picture(alt, beside + panel * columns, 1 + 0.65 * panel * rows)
    panels = list(picture.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    used = panels[: len(targets) if split else 1]
    for ax in panels[len(used) :]:
        ax.remove()
    for ax in used[-columns:]:  # also those with a removed panel below
        ax.tick_params(labelbottom=True)

    for (source, target), line in table.groupby(["source", "target"], sort=False):
        ax = used[targets.index(target) if split else 0]
        line = line.groupby("step")[[c for c in ("weight", "weight_std") if c in line]].mean().reset_index()
        label = source if split else f"{source} → {target}"
        ax.plot(line["step"], line["weight"], color=colours[label], label=label, lw=1.6, marker=marker_for(line))
        if "weight_std" in line:
            low, high = (line["weight"] + sign * line["weight_std"] for sign in (-1, 1))
            ax.fill_between(line["step"], low.clip(lower=0), high, color=colours[label], alpha=0.13, lw=0)
    for ax, target in zip(used, targets, strict=False):
        step_axis(ax)
        if split:
            ax.set_title(target, fontsize=np.clip(9 * panel / (LETTER * len(target)), 5, 10))
    picture.supxlabel("training step", fontsize=10)
    picture.supylabel("mean λ (pair weight)", fontsize=10)
    band = "\nband: ± 1 standard deviation over the images" if "weight_std" in table else ""
    picture.suptitle(f"λ during training{', by target layer' if split else ''}{band}", x=0.01, ha="left", fontsize=11)
    used[0].set_ylim(bottom=0)
    legend_outside(picture, used, colours, "source layer" if split else "source → target")
    return picture


def channel_weights(channels: Table, source: str, target: str, step: Step = None, *, top: int | None = None) -> Picture:
    """The channel weights of one pair, largest first, beside the uniform weight 1/C and where training began.

    Args:
        channels: step, source, target, channel, weight.
        source: the source layer, as in the table.
        target: the target layer, as in the table.
        step: which step; the last one if None.
        top: only the largest so many; all if None.

    Raises:
        ValueError: a column is missing, the table is empty, or the pair or the step is not in it.
    """
    table = read_table(channels, "channels table", "step", "source", "target", "channel", "weight")
    pair = table[(table["source"] == source) & (table["target"] == target)]
    if pair.empty:
        has = [" → ".join(row) for row in table[["source", "target"]].drop_duplicates().itertuples(index=False)]
        raise ValueError(f"the channels table has no pair {source} → {target} (has: {some(has)})")
    if top is not None and top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    last, first = step_of(pair, "channels table", step), int(pair["step"].min())
    moved = pair.groupby(["step", "channel"])["weight"].mean()
    now = moved[last].sort_values(ascending=False, kind="stable")
    count = len(now)
    shown = now.iloc[:top]
    before = moved[first].reindex(shown.index)

    alt = f"Channel weights of {source} → {target} at step {last}, {len(shown)} of {count} channels, largest first"
    title = f"{source} → {target} at step {last}"
    picture = Picture(alt, np.clip(0.16 * len(shown) + 2.5, max(5, 1.2 * LETTER * len(title) + 1), 11), 3.8)
    ax = picture.subplots()
    few = len(shown) <= 50
    place = np.arange(1, len(shown) + 1)
    ax.bar(place, shown, width=0.8 if few else 1.0, color="#0072B2", label=f"step {last}")
    if first != last:
        ax.plot(place, before, color="#E69F00", lw=1.2, marker="." if few else None, label=f"step {first}")
    ax.axhline(1 / count, color="0.25", ls="--", lw=1.2, label=f"uniform, 1/{count}")
    ax.margins(x=0.01)
    if few:
        ax.set_xticks(
            place, [f"{channel}" for channel in shown.index], rotation=90 if len(shown) > 16 else 0, fontsize=8
        )
    ax.set(xlabel="channel, by weight" if few else "rank of the channel by weight", ylabel="mean channel weight")
    part = (
        f"the largest {len(shown)} of {count} channels"
        if len(shown) < count
        else f"{count} channels, sum {now.sum():.3g}"
    )
    ax.set_title(f"{title}\n{part}", fontsize=11)
    ax.grid(axis="y", alpha=0.3)
    picture.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return picture


def accuracy_by_method(results: Table) -> Picture:
    """Accuracy of every method, in the table's order: a dot a seed, the mean, and its 95 % interval (Student's t; of
    three seeds or more).

    Args:
        results: method, seed, accuracy (a fraction of 1).

    Raises:
        ValueError: a column is missing, the table is empty, or an accuracy is no fraction of 1.
    """
    table = read_table(results, "results table", "method", "seed", "accuracy")
    if not table["accuracy"].dropna().between(0, 1).all():
        raise ValueError(
            f"accuracy must be a fraction of 1, got {table['accuracy'].min():g} to {table['accuracy'].max():g}"
        )
    table = table.assign(percent=100 * table["accuracy"])
    methods = distinct(table["method"])
    seeds = table.groupby("method")["percent"].count()
    count = (
        f"{seeds.max()} seed{'s' if seeds.max() > 1 else ''}"
        if seeds.nunique() == 1
        else f"{seeds.min()}–{seeds.max()} seeds"
    )

    alt = f"Accuracy of {len(methods)} methods with {count} each: {', '.join(methods)}"
    picture = Picture(alt, 6.4 + 1.1 * LETTER * max(map(len, methods)), 1.9 + 0.42 * len(methods))
    ax = picture.subplots()
    common = {"data": table, "x": "percent", "y": "method", "order": methods, "ax": ax, "legend": False}
    if several := seeds.max() > 1:
        look = {"linestyle": "none", "marker": "D", "markersize": 5, "linewidth": 1.5, "capsize": 0.25}
        sns.pointplot(**common, color="#000000", errorbar=_interval, **look)
    sns.stripplot(**common, color="#56B4E9", size=6, alpha=0.85, jitter=False, zorder=3)
    for row, method in enumerate(methods):
        mean = table.loc[table["method"] == method, "percent"].mean()
        label = f"{mean:.1f}" if math.isfinite(mean) else "none"
        ax.text(1.02, row, label, transform=ax.get_yaxis_transform(), va="center", fontsize=9)
    ax.text(1.02, 1.03, "mean", transform=ax.transAxes, fontsize=9, color="0.35")
    ax.set(xlabel="test accuracy (%)", ylabel="", ylim=(len(methods) - 0.5, -0.5))
    ax.set_title(f"Accuracy by method, {count}", fontsize=11, loc="left")
    ax.grid(axis="x", alpha=0.3)
    dot, diamond = (
        ax.plot([], [], color=c, marker=m, ls=s)[0] for c, m, s in (("#56B4E9", "o", ""), ("#000000", "D", "-"))
    )
    marks = {"one seed": dot} | ({"mean and its 95 % interval": diamond} if several else {})
    picture.legend(marks.values(), marks.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return picture


def accuracy_by_seconds(results: Table) -> Picture:
    """Accuracy against training time: a dot a run, and each method's mean, large, with the spread of its runs (one
    standard deviation either way).

    Args:
        results: method, seed, accuracy (a fraction of 1), train_seconds.

    Raises:
        ValueError: a column is missing or the table is empty.
    """
    table = read_table(results, "results table", "method", "seed", "accuracy", "train_seconds")
    table = table.assign(percent=100 * table["accuracy"]).dropna(subset=["percent", "train_seconds"])
    if table.empty:
        raise ValueError("the results table has no row with an accuracy and train_seconds")
    methods = distinct(table["method"])
    alt = f"Test accuracy against training seconds of {len(methods)} methods: {', '.join(methods)}"
    picture = Picture(alt, 6.8 + LETTER * max(map(len, methods)), 3.8)
    ax = picture.subplots()
    colours = distinct_colours(methods)
    marks = dict(zip(methods, MARKERS * len(methods), strict=False))
    for method in methods:
        runs = table[table["method"] == method]
        look = {"color": colours[method], "marker": marks[method]}
        ax.scatter(runs["train_seconds"], runs["percent"], s=18, alpha=0.5, linewidths=0, **look)
        spread = [[runs[name].std(ddof=1) if len(runs) > 1 else 0.0] for name in ("train_seconds", "percent")]
        centre = runs["train_seconds"].mean(), runs["percent"].mean()
        ax.errorbar(*centre, xerr=spread[0], yerr=spread[1], markersize=9, ls="", capsize=3, label=method, **look)
    ax.set(xscale="log", xlabel="training time (s, log scale)", ylabel="test accuracy (%)")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title("Accuracy against training time", fontsize=11, loc="left")
    ax.grid(alpha=0.3)
    picture.legend(
        title="method: mean ± spread", loc="outside right upper", frameon=False, fontsize=9, title_fontsize=9
    )
    return picture


def _interval(values: pd.Series) -> tuple[float, float]:
    """The 95 % interval of the mean of a few independent values, by Student's t; nothing around fewer than three, whose
    interval would be wider than anything drawn with it."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values)) if len(values) > 2 else 0.0
    return values.mean() - half, values.mean() + half
