"""All pictures: no side effects, nothing cut off, bad tables named; methods and learning curves in detail."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import tables
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pictures import cells, legend_words, make_channels, make_maps, make_results, make_trace, words

from mtanytime.explore import draw

ALL = {
    "heatmap": lambda: draw.heatmap(make_trace()),
    "weights_over_time": lambda: draw.weights_over_time(make_trace()),
    "channel_weights": lambda: draw.channel_weights(make_channels(8), "layer1", "features.2"),
    "accuracy_by_method": lambda: draw.accuracy_by_method(make_results()),
    "accuracy_by_seconds": lambda: draw.accuracy_by_seconds(make_results().assign(train_seconds=range(1, 13))),
    "heatmaps": lambda: draw.heatmaps(make_maps()),
    "accuracy_by_budget": lambda: draw.accuracy_by_budget(tables.curve(), budget=5e6),
    "learning_curves": lambda: draw.learning_curves(pd.DataFrame({"step": [1, 2], "loss": [2.0, 1.0]})),
}


@pytest.mark.parametrize("name", ALL)
def test_pictures_leave_no_trace(name: str) -> None:
    """A callback that draws a frame must not change global settings or leave figures open, in any thread."""
    before = dict(mpl.rcParams)
    picture = ALL[name]()
    assert isinstance(picture, Figure)
    assert picture.png().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ALL)
def test_pictures_show_themselves(name: str) -> None:
    """In a notebook, a picture is a PNG with an alternative text, which is the same on every machine."""
    picture = ALL[name]()
    data, metadata = DisplayFormatter().format(picture)
    assert set(data) == {"image/png", "text/plain"}
    assert data["text/plain"] == metadata["image/png"]["alt"] == picture.alt
    assert not any(character in picture.alt for character in "<>\n")


LONG_SOURCES = tuple(f"tinyimagenet/encoder.layers.encoder_layer_{i}.mlp" for i in range(4))


LONG_TARGETS = tuple(f"features.denseblock{i}.denselayer16.conv2" for i in range(3))


LONG = {
    "long heatmap": lambda: draw.heatmap(make_trace(LONG_SOURCES, LONG_TARGETS)),
    "long panels": lambda: draw.weights_over_time(make_trace(LONG_SOURCES, LONG_TARGETS)),
    "long lines": lambda: draw.weights_over_time(make_trace(LONG_SOURCES, LONG_TARGETS[:1])),
    "long channels": lambda: draw.channel_weights(
        make_channels(16).assign(source=LONG_SOURCES[0], target=LONG_TARGETS[0]), LONG_SOURCES[0], LONG_TARGETS[0]
    ),
    "longer heatmap": lambda: draw.heatmap(make_trace(("encoder." * 25, "b"), ("a", "b"))),
    "long models": lambda: draw.accuracy_by_budget(tables.curve().replace("sliced", "encoder." * 25)),
    "many models": lambda: draw.accuracy_by_budget(
        pd.concat(
            tables.curve(1).query("model == 'sliced'").assign(model=f"width {k}", macs=lambda c, k=k: c["macs"] * k)
            for k in range(1, 31)
        )
    ),
    "long methods": lambda: draw.accuracy_by_method(make_results().replace("scratch", "everything, in three stages")),
}


@pytest.mark.parametrize("name", ALL | LONG)
def test_nothing_is_cut_off(name: str) -> None:
    """All labels lie inside the canvas, also with torchvision's long module paths."""
    picture = (ALL | LONG)[name]()
    picture.canvas.draw()
    drawn, canvas = picture.get_tightbbox(), picture.bbox_inches
    assert min(drawn.x0, drawn.y0, canvas.x1 - drawn.x1, canvas.y1 - drawn.y1) > -0.01  # inches
    panels = [ax.get_window_extent().width / picture.dpi for ax in picture.axes if ax.get_label() != "<colorbar>"]
    assert min(panels) > 1.5  # inches


def test_tables_come_from_files_too(tmp_path: Path) -> None:
    """A table can be the path of a CSV file; layers called "0", "2" and "10" stay names in their order."""
    trace = make_trace(sources=("0",), targets=("2", "10"))
    trace.to_csv(tmp_path / "trace.csv", index=False)
    for table in (tmp_path / "trace.csv", str(tmp_path / "trace.csv"), trace.assign(source=0, target=[2, 10] * 3)):
        picture = draw.heatmap(table)
        assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["2", "10"]
        np.testing.assert_allclose(cells(picture), [[2.01, 2.02]])


def test_accuracy_shows_every_seed_and_students_interval() -> None:
    """Few seeds need Student's t: the mean of four values 0.01 apart is known to ± 2.05 points only."""
    picture = draw.accuracy_by_method(make_results())
    ax = picture.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["scratch", "L2T-ww", "fine-tuning"]
    assert ax.get_xlabel() == "test accuracy (%)"
    assert ax.get_title(loc="left") == "Accuracy by method, 4 seeds"
    assert legend_words(picture) == ["one seed", "mean and its 95 % interval"]
    dots = np.concatenate([dots.get_offsets() for dots in ax.collections])
    np.testing.assert_allclose(sorted(dots[:, 0]), sorted(100 * make_results()["accuracy"]))
    whisker = ax.get_lines()[1].get_xdata()  # of the first method
    low, high = np.nanmin(whisker), np.nanmax(whisker)
    assert ((low + high) / 2, (high - low) / 2) == pytest.approx((31.5, 3.182446 * 1.290994 / 2), rel=1e-5)
    assert {"31.5", "51.5", "41.5"} <= set(words(picture))


@pytest.mark.parametrize("draw_results", [draw.accuracy_by_method, draw.accuracy_by_seconds])
def test_probe_and_fine_tuning_are_lines(draw_results: Callable) -> None:
    """What keeps the source's own network is a line beside the other methods, or a row where there is nothing else."""
    others = pd.DataFrame({"method": ["probe"] * 2 + ["fine_tuning"], "seed": [0, 1, 0], "accuracy": [0.6, 0.62, 0.68]})
    table = pd.concat([make_results(), others]).assign(train_seconds=10.0)
    picture = draw_results(table)
    assert legend_words(picture)[-2:] == ["linear probe of the source: 61.0", "the source, fine-tuned: 68.0"]
    ax = picture.axes[0]
    along = "get_xdata" if draw_results is draw.accuracy_by_method else "get_ydata"
    lines = [list(getattr(line, along)()) for line in ax.get_lines()]
    assert [pytest.approx(61.0)] * 2 in lines
    assert [pytest.approx(68.0)] * 2 in lines
    alone = draw_results(others.assign(train_seconds=10.0))
    assert not any("source" in word for word in legend_words(alone))


def test_accuracy_of_unequal_and_missing_seeds() -> None:
    """A method without a result keeps its row, and the title gives the number of seeds."""
    table = make_results()
    table.loc[table["method"] == "scratch", "accuracy"] = np.nan
    picture = draw.accuracy_by_method(table.iloc[:-1])
    assert picture.axes[0].get_title(loc="left") == "Accuracy by method, 0–4 seeds"
    assert "none" in words(picture)
    single = draw.accuracy_by_method(make_results(seeds=1))
    assert single.axes[0].get_title(loc="left") == "Accuracy by method, 1 seed"
    assert legend_words(single) == ["one seed"]


def test_learning_curves_draw_whatever_the_log_holds() -> None:
    """All losses of a log are drawn; validation accuracies, measured now and then, are joined by a line."""
    log = {"step": [1, 2, 3], "loss": [3.0, 2, 1], "matching_loss": [0.3, 0.2, 0.1], "val_accuracy": [0.1, np.nan, 0.5]}
    picture = draw.learning_curves(pd.DataFrame(log | {"seconds": [1, 2, 3], "outer_loss": [np.nan] * 3}))
    losses, accuracies = picture.axes
    assert legend_words(picture) == ["loss", "matching loss", "val accuracy"]
    np.testing.assert_allclose(losses.get_lines()[1].get_ydata(), [0.3, 0.2, 0.1])
    np.testing.assert_allclose(accuracies.get_lines()[0].get_xydata(), [(1, 10), (3, 50)])
    assert accuracies.get_ylabel() == "accuracy (%)"
    assert losses.get_yscale() == "linear"
    log["matching_loss"] = [3e-4, 2e-4, 1e-4]
    assert draw.learning_curves(pd.DataFrame(log)).axes[0].get_yscale() == "log"
    log["matching_loss"] = [0.0, 2e-4, 1e-4]  # a zero has no place on a logarithmic axis
    assert draw.learning_curves(pd.DataFrame(log)).axes[0].get_yscale() == "linear"


def test_learning_curves_of_every_step_are_smoothed() -> None:
    """Over many noisy values a running mean is drawn."""
    steps = np.arange(1000)
    log = pd.DataFrame({"step": steps, "loss": 2.0 + (-1.0) ** steps})
    raw, mean = draw.learning_curves(log).axes[0].get_lines()
    assert (raw.get_ydata().min(), raw.get_ydata().max(), raw.get_alpha()) == (1, 3, 0.25)
    assert np.abs(mean.get_ydata() - 2).max() < 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: draw.heatmap(t.drop(columns="weight")),
            "trace: expected column weight, got columns step, source, target, weight_std",
        ),
        (lambda t: draw.weights_over_time(t.iloc[:0]), r"trace: expected at least one row, got none \(columns: step"),
        (
            lambda t: draw.heatmap(t, 130),
            r"a step of the trace \(3 from 0 to 200\), got 130; nearest: 100",
        ),
        (lambda t: draw.heatmap(t.assign(weight="a")), "trace, column weight: expected numbers, got 'a'"),
        (
            lambda _: draw.channel_weights(make_channels(4), "layer9", "features.2"),
            r"expected a pair of the channels table \(layer1 → features.2\), got layer9 → features.2",
        ),
        (
            lambda _: draw.channel_weights(make_channels(4), "layer1", "features.2", 7),
            r"step: expected .*\(2 from 0 to 50\), got 7",
        ),
        (
            lambda _: draw.channel_weights(make_channels(4), "layer1", "features.2", top=0),
            "top: expected a number >= 1 or None, got 0",
        ),
        (
            lambda _: draw.accuracy_by_method(make_results().assign(accuracy=93.0)),
            r"results table, column accuracy: expected fractions in \[0, 1\], got 93.0 in the row of method s",
        ),
        (
            lambda t: draw.accuracy_by_method(t),
            "results table: expected columns method, seed, accuracy, got columns step",
        ),
        (
            lambda t: draw.learning_curves(t),
            "log: expected a loss or an accuracy with a finite number, got columns step, source.*; it is a trace",
        ),
    ],
)
def test_bad_tables_are_named(call, message: str) -> None:
    """A wrong table is refused by name before it reaches the plotting library."""
    with pytest.raises(ValueError, match=message):
        call(make_trace())


ODD = [
    "a$\\1$",
    "$x$",
    "a_b^c",
    "\\frac",
    "<b>&",
    "100 %",
    "two\nlines",
    "n" * 5000,
    "😀",
    "שכבה",
    "_hidden",
    "NA",
    "1e5",
]


def named(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return a table in which the first layer, method or model has another name."""
    columns = [column for column in ("source", "method", "model") if column in table]
    return table.assign(**{c: table[c].where(table[c] != table[c].iloc[0], name) for c in columns})


NAMED = {
    "heatmap": lambda n: draw.heatmap(named(make_trace(), n)),
    "weights_over_time": lambda n: draw.weights_over_time(named(make_trace(), n)),
    "lines": lambda n: draw.weights_over_time(named(make_trace(targets=("f",)), n)),
    "channel_weights": lambda n: draw.channel_weights(make_channels(8).assign(source=n), n, "features.2"),
    "accuracy_by_method": lambda n: draw.accuracy_by_method(named(make_results(), n)),
    "accuracy_by_seconds": lambda n: draw.accuracy_by_seconds(named(make_results().assign(train_seconds=1.0), n)),
    "heatmaps": lambda n: draw.heatmaps(make_maps().assign(method=n)),
    "accuracy_by_budget": lambda n: draw.accuracy_by_budget(named(tables.curve(), n), budget=5e6),
    "answers_by_time": lambda n: draw.answers_by_time(
        pd.DataFrame({"exit": [1], "milliseconds": [2.0], "confidence": [0.5], "answer": [n], "right": ["False"]})
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_dollar_in_layer_name(name: str) -> None:
    """Names are drawn as they stand: formulas, markup, line breaks, emoji, long names, a leading underscore."""
    for odd in ODD:
        picture = NAMED[name](odd)
        assert "\n" not in picture.alt
        shown = " ".join(words(picture))
        shown_as = {"two\nlines": "two\\nlines", "n" * 5000: "n" * 30 + "…"}.get(odd, odd)
        assert shown_as in shown, odd
        if name == "answers_by_time":
            assert "(incorrect)" in shown  # bool("False") is True


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e308, -1e308, 1e-308, 0.0, -1.0, True, "x", None])
@pytest.mark.parametrize(
    "column", ["step", "weight", "weight_std", "accuracy", "macs", "train_seconds", "loss", "exit"]
)
def test_odd_numbers(column: str, value: object) -> None:
    """NaN, infinities, huge numbers, booleans and text are drawn without a warning, or refused by column."""
    curve, results = tables.curve(), make_results().assign(train_seconds=2.0)
    log = pd.DataFrame({"step": [1, 2, 3], "loss": [3.0, 2.0, 1.0], "val_accuracy": [0.1, 0.2, 0.3]})
    pictures = {draw.heatmap: make_trace(), draw.weights_over_time: make_trace(), draw.heatmaps: make_maps()}
    pictures |= {draw.accuracy_by_method: results, draw.accuracy_by_seconds: results, draw.learning_curves: log}
    for picture, table in (pictures | {draw.accuracy_by_budget: curve}).items():
        if column not in table:
            continue
        table = table.astype({column: object})
        table.loc[table.index == table.index[0], column] = value
        try:
            assert picture(table).png().startswith(b"\x89PNG")
        except ValueError as error:
            assert f"column {column}: expected" in str(error)  # noqa: PT017


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    """A run that was stopped before its first row leaves an empty file."""
    (tmp_path / "trace.csv").touch()
    with pytest.raises(ValueError, match=r"trace: expected a CSV table, got an empty file, .*trace\.csv"):
        draw.heatmap(tmp_path / "trace.csv")


def test_accuracy_by_seconds() -> None:
    """A method's larger marker shows the means of its runs; a run that diverged is left out."""
    table = make_results().assign(train_seconds=[1.0, 2, 3, 4, 10, 10, 10, 10, 5, 5, 5, 5])
    table.loc[3, "accuracy"] = np.nan
    picture = draw.accuracy_by_seconds(table)
    marks = {container.get_label(): container.lines[0].get_xydata()[0] for container in picture.axes[0].containers}
    np.testing.assert_allclose(marks["scratch"], (2, 31))
    np.testing.assert_allclose(marks["L2T-ww"], (10, 51.5))
    assert "(s, log scale)" in picture.axes[0].get_xlabel()


def test_comment_lines_of_a_file(tmp_path: Path) -> None:
    """Result files begin with comment lines about the command that made them."""
    file = tmp_path / "results.csv"
    file.write_text("# python -m mtanytime run; 2 cores\n# seeds 0-3\n" + make_results().to_csv(index=False))
    assert draw.accuracy_by_method(file).alt == draw.accuracy_by_method(make_results()).alt
