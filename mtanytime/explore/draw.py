"""Tables in, matplotlib figures out: what was transferred where, how it came about, and what it was worth.

Every function takes a table of a run folder (a DataFrame, or the path of its CSV file) and returns a `Picture`: a
`matplotlib.figure.Figure` made without pyplot, so nothing global changes and no figure stays open. A notebook shows it
by itself; `picture.savefig("x.png")` stores it. Colours are safe for colour-blind readers, the background is white.
"""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from jaxtyping import UInt8
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

Table = pd.DataFrame | str | PathLike[str]
Step = int | np.integer | None

NUMBERS_UP_TO = 12  # layers a side; beyond, numbers in the cells would be too small to read
LETTER = 0.075  # inches that a letter of 9 points takes
NAMES_UP_TO = 40  # along an axis; beyond, every second or third is written, for writing takes most of the time
LETTERS_UP_TO = 60  # of a name in a picture
LINES_UP_TO = 8  # lines in one panel before they are spread over one panel for each target layer
MAPS_A_ROW = 4
LEGEND_UP_TO = 16  # entries of a legend before a colour bar takes its place
NOISY_FROM = 200  # values in a curve before its running mean is drawn over it
BATCH_ACCURACY = "accuracy of the training batch"
TEXT_COLUMNS = ("source", "target", "method", "model")  # a layer may be called "0": never a number
MARKERS = "osD^vPX*<>"
COSTS = {  # of an exit: its column, the words for it on an axis, and its unit
    "macs": ("FLOPs (multiply–adds)", "FLOPs"),
    "latency_ms": ("latency (ms)", "ms"),
    "params": ("parameters", "parameters"),
}
LEAST_RATIO = 2.6  # of the ends of a logarithmic axis: some 1, 2 or 5 times a power of ten lies between them


class Picture(Figure):
    """A figure that a notebook shows by itself; `alt` says in words what it shows, for readers who cannot see it."""

    def __init__(self, alt: str, width: float, height: float):
        super().__init__(figsize=(width, height), layout="constrained")
        self.alt = alt
        FigureCanvasAgg(self)  # or seaborn turns to pyplot's current figure, and makes one

    def png(self, dpi: float = 144) -> bytes:
        """The picture as a PNG file; its size depends on the layers and methods in the table, not on values."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=dpi, pil_kwargs={"compress_level": 3})
        return file.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt, "width": width, "height": height}}


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
    last = _step(table, "trace", step)
    weights = table.groupby(["step", "source", "target"])["weight"].mean()
    if relative:
        weights = weights / weights.groupby(["step", "target"]).transform("sum").replace(0, 1)
    values = weights.loc[last].unstack().reindex(index=_order(table["source"]), columns=_order(table["target"]))
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
    _coloured(
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
    sources, targets = _order(table["source"]), _order(table["target"])
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
        _coloured(ax, values, vmax, annot=cell > 0.2, fmt=".1f", annot_kws={"size": 8}, cbar=False)
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
    sources, targets = _order(table["source"]), _order(table["target"])
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
        ax.plot(line["step"], line["weight"], color=colours[label], label=label, lw=1.6, marker=_marker(line))
        if "weight_std" in line:
            low, high = (line["weight"] + sign * line["weight_std"] for sign in (-1, 1))
            ax.fill_between(line["step"], low.clip(lower=0), high, color=colours[label], alpha=0.13, lw=0)
    for ax, target in zip(used, targets, strict=False):
        _steps(ax)
        if split:
            ax.set_title(target, fontsize=np.clip(9 * panel / (LETTER * len(target)), 5, 10))
    picture.supxlabel("training step", fontsize=10)
    picture.supylabel("mean λ (pair weight)", fontsize=10)
    band = "\nband: ± 1 standard deviation over the images" if "weight_std" in table else ""
    picture.suptitle(f"λ during training{', by target layer' if split else ''}{band}", x=0.01, ha="left", fontsize=11)
    used[0].set_ylim(bottom=0)
    _legend(picture, used, colours, "source layer" if split else "source → target")
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
    last, first = _step(pair, "channels table", step), int(pair["step"].min())
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
    methods = _order(table["method"])
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
    methods = _order(table["method"])
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
    models = _order(exits["model"])
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


def learning_curves(log: Table) -> Picture:
    """Every loss of a log against the training step, and every accuracy in a panel beside it.

    A column of more than 200 values is drawn faintly, below its running mean over a fiftieth of them. Losses that
    spread over more than a factor of 50 are drawn on a logarithmic axis.

    Args:
        log: step, and any of the columns whose names end in `loss` or `accuracy` (fractions of 1).

    Raises:
        ValueError: there is no column to draw, `step` is missing, or the table is empty.
    """
    table = read_table(log, "log", "step")
    kinds = {kind: [c for c in table if c.endswith(kind) and table[c].notna().any()] for kind in ("loss", "accuracy")}
    kinds = {kind: names for kind, names in kinds.items() if names}
    if not kinds:
        raise ValueError(f"the log holds no loss and no accuracy (has: {', '.join(table)})")
    alt = f"{', '.join(name.replace('_', ' ') for names in kinds.values() for name in names)} against the training step"
    picture = Picture(alt.capitalize(), 4.6 * len(kinds) + 0.4, 3.6)
    panels = picture.subplots(1, len(kinds), squeeze=False).ravel()
    for ax, (kind, names) in zip(panels, kinds.items(), strict=True):
        for (name, colour), style in zip(
            distinct_colours(names).items(), ("-", "--", "-.", ":") * len(names), strict=False
        ):
            line = table[["step", name]].dropna().groupby("step").mean().reset_index()
            values = line[name] * (100 if kind == "accuracy" else 1)
            if len(line) > NOISY_FROM:
                ax.plot(line["step"], values, color=colour, lw=0.6, alpha=0.25)
                values = values.rolling(len(line) // 50, center=True, min_periods=1).mean()
            label = BATCH_ACCURACY if name == "accuracy" else name.replace("_", " ")
            ax.plot(line["step"], values, color=colour, ls=style, lw=1.6, marker=_marker(line), label=label)
        numbers = table[names].to_numpy(float)
        numbers = numbers[np.isfinite(numbers)]
        if kind == "loss" and 0 < 50 * numbers.min(initial=math.inf) < numbers.max(initial=0):
            ax.set_yscale("log")
        ax.set(xlabel="training step", ylabel="accuracy (%)" if kind == "accuracy" else "loss")
        _steps(ax)
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False, fontsize=9)
    return picture


def read_table(table: Table, name: str, *columns: str) -> pd.DataFrame:
    """The table with at least these columns and one row; names of layers, methods and models as text. A file may begin
    with comment lines (`#`).

    Raises:
        ValueError: a column is missing or holds no numbers where it should, there is no row, the file is empty or no
            table.
    """
    if not isinstance(table, pd.DataFrame):
        try:
            comments = 0
            while str(pd.read_csv(table, nrows=0, skiprows=comments).columns[0]).startswith("#"):
                comments += 1
            table = pd.read_csv(table, dtype=dict.fromkeys(TEXT_COLUMNS, str), keep_default_na=True, skiprows=comments)
        except pd.errors.EmptyDataError:
            raise ValueError(f"the {name} {table} is an empty file") from None
        except (pd.errors.ParserError, UnicodeDecodeError) as error:
            raise ValueError(f"the {name} {table} is no CSV table: {str(error).strip()}") from None
    for column in columns:
        if column not in table:
            raise ValueError(f"the {name} lacks column '{column}' (has: {', '.join(map(str, table))})")
    if table.empty:
        raise ValueError(f"the {name} has no rows (its columns: {', '.join(map(str, table))})")
    for column in columns:
        if column in TEXT_COLUMNS:
            if table[column].isna().any():
                raise ValueError(f"column '{column}' of the {name} has rows without a name")
        elif not pd.api.types.is_numeric_dtype(table[column]):
            wrong = table[column][pd.to_numeric(table[column], errors="coerce").isna() & table[column].notna()]
            example = table[column].iloc[0] if wrong.empty else wrong.iloc[0]
            raise ValueError(f"column '{column}' of the {name} is not numeric, for example {example!r}")
    return table.astype({column: str for column in TEXT_COLUMNS if column in columns})


def read_trace(trace: Table) -> pd.DataFrame:
    """A trace in which a slice, if there is one, is part of the target layer's name, and an infinite λ is nan.

    Raises:
        ValueError: as `read_table`; a step is not a whole number.
    """
    table = read_table(trace, "trace", "step", "source", "target", "weight")
    if len(wrong := table["step"][~(table["step"] % 1 == 0)]):
        raise ValueError(f"column 'step' of the trace holds {wrong.iloc[0]}, wanted whole numbers")
    table = table.assign(step=table["step"].astype(int), weight=table["weight"].replace([np.inf, -np.inf], np.nan))
    if "slice" in table:
        table = table.assign(target=table["target"] + " slice " + table["slice"].astype(str))
    return table


def read_curve(curve: Table, *costs: str) -> pd.DataFrame:
    """One row per model, exit (and level of the taxonomy), in the table's order, from a table with one per run, too.

    Args:
        curve: model, exit, accuracy (a fraction of 1), at least one of `COSTS`[, level][, seed]. A table with one row
            per exit may say the level that the exit answers at; one with several gives the accuracy at each.
        costs: those that must be there; others that some row lacks are left out.

    Returns:
        model, exit, [level,] the costs (means over the runs), accuracy (mean), spread (standard deviation over the
        runs, n − 1; nan for one) and runs (those that have an accuracy).

    Raises:
        ValueError: as `read_table`; an accuracy is no fraction of 1, an exit is no whole number, a cost is not above 0,
            or two rows stand for the same exit (of one run).
    """
    table = read_table(curve, "curve", "model", "exit", *costs, "accuracy")
    costs = [name for name in COSTS if name in table and (name in costs or table[name].notna().all())] or ["macs"]
    table = read_table(table, "curve", *costs)
    if not table["accuracy"].dropna().between(0, 1).all():
        low, high = table["accuracy"].min(), table["accuracy"].max()
        raise ValueError(f"column 'accuracy' of the curve must be a fraction of 1, got {low:g} to {high:g}")
    if len(wrong := table["exit"][~(table["exit"] % 1 == 0)]):
        raise ValueError(f"column 'exit' of the curve holds {wrong.iloc[0]}, wanted whole numbers")
    for name in costs:
        if len(wrong := table[name][~(table[name] > 0) | np.isinf(table[name])]):
            raise ValueError(f"column '{name}' of the curve holds {wrong.iloc[0]:g}, wanted a number above 0")
    table = table.assign(exit=table["exit"].astype(int))
    levels = ["level"] if "level" in table else []
    if levels:
        table = table.assign(level=table["level"].astype(str))
    same = ["model", "exit", *levels, *(["seed"] if "seed" in table else [])]
    if (double := table.duplicated(same)).any():
        what = ", ".join(f"{column} {value}" for column, value in table.loc[double, same].iloc[0].items())
        raise ValueError(f"the curve has several rows for {what}; wanted one, or a column 'seed' that tells runs apart")
    exits = table.groupby(["model", "exit", *levels], sort=False)
    means = exits[[*costs, "accuracy"]].mean()
    return means.assign(spread=exits["accuracy"].std(), runs=exits["accuracy"].count()).reset_index()


def levels_of(exits: pd.DataFrame) -> list[str]:
    """The levels to choose from in a table from `read_curve`; none where an exit has one accuracy."""
    several = "level" in exits and exits.duplicated(["model", "exit"]).any()
    return _order(exits["level"]) if several else []


def curve_at_level(exits: pd.DataFrame, level: str | None = None) -> pd.DataFrame:
    """The rows of a table from `read_curve` at one level: the named one, or the last.

    Raises:
        ValueError: there is no such level.
    """
    levels = levels_of(exits)
    if level is not None and level not in levels:
        raise ValueError(f"the curve has no level {level!r} to choose (has: {', '.join(levels) or 'none'})")
    return exits[exits["level"] == (level or levels[-1])] if levels else exits


def worded(cost: str, value: float) -> str:
    """A cost with its unit, to three digits: "58.3 M FLOPs", "4.2 ms"."""
    _, unit = COSTS[cost]
    rounded = float(f"{value:.3g}")
    return f"{rounded:g} {unit}" if cost == "latency_ms" else f"{EngFormatter(sep=' ')(rounded)} {unit}"


def _step(table: pd.DataFrame, name: str, step: Step) -> int:
    """The wanted step, or the last; refuses one that is not there."""
    steps = np.sort(table["step"].unique())
    if step is None:
        return int(steps[-1])
    if step not in steps:
        nearest = int(steps[np.abs(steps - step).argmin()])
        raise ValueError(
            f"the {name} has no step {step} (nearest: {nearest}; {len(steps)} from {steps[0]} to {steps[-1]})"
        )
    return int(step)


def _order(names: Iterable[str]) -> list[str]:
    """Distinct names in order of first appearance."""
    return list(dict.fromkeys(names))


def _coloured(ax: Axes, values: pd.DataFrame, vmax: float, **look: Any) -> None:
    """A grid of colours from 0 to vmax, every row and column named while there is room."""
    # seaborn would draw the figure to see whether names fit, which takes a while and warns where they do not
    sns.heatmap(values, ax=ax, vmin=0, vmax=vmax, cmap="viridis", xticklabels=False, yticklabels=False, **look)
    for names, set_ticks in ((values.index, ax.set_yticks), (values.columns, ax.set_xticks)):
        every = -(-len(names) // NAMES_UP_TO)
        set_ticks(np.arange(0, len(names), every) + 0.5, [shortened(name) for name in names[::every]])


def shortened(name: str) -> str:
    """A name with its middle left out, if it would leave no room for the picture."""
    return name if len(name) <= LETTERS_UP_TO else f"{name[: LETTERS_UP_TO // 2]}…{name[1 - LETTERS_UP_TO // 2 :]}"


def some(names: Sequence[str], most: int = 8) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f", and {len(names) - most} more" if len(names) > most else "")


def distinct_colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each name: distinct ones while they last (Okabe and Ito's), then from dark to bright in order."""
    if len(names) <= 8:
        okabe_ito = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
        return dict(zip(names, okabe_ito, strict=False))
    return dict(zip(names, colormaps["viridis"](np.linspace(0, 0.93, len(names))), strict=True))


def _marker(line: pd.DataFrame) -> str | None:
    """Dots where there are few points: a line through one would be invisible."""
    return "." if len(line) <= 12 else None


def _steps(ax: Axes) -> None:
    """Whole numbers on the step axis, a light grid."""
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)


def _legend(picture: Picture, panels: list[Axes], colours: dict[str, Any], title: str) -> None:
    """What the lines are, outside the panels: a legend, or a colour bar when there are too many for one."""
    if len(colours) <= LEGEND_UP_TO:
        lines = {line.get_label(): line for ax in panels for line in ax.get_lines()}
        ordered = [lines[name] for name in colours if name in lines]
        picture.legend(handles=ordered, title=title, loc="outside right upper", frameon=False, fontsize=9)
    else:
        bar = picture.colorbar(ScalarMappable(cmap="viridis"), ax=panels, label=title, aspect=40)
        names = list(colours)
        bar.set_ticks([0, 0.93], labels=[names[0], names[-1]])
        bar.ax.set_ylim(0, 0.93)


def _interval(values: pd.Series) -> tuple[float, float]:
    """The 95 % interval of the mean of a few independent values, by Student's t; nothing around fewer than three, whose
    interval would be wider than anything drawn with it."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * values.std() / math.sqrt(len(values)) if len(values) > 2 else 0.0
    return values.mean() - half, values.mean() + half
