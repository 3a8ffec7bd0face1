"""Pictures show what their tables hold: checked on the artists' data and words, never on pixels."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import tables
from IPython.core.formatters import DisplayFormatter
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from mtanytime.explore import draw
from mtanytime.explore.tables import format_cost


def make_trace(
    sources: tuple[str, ...] = ("layer1", "layer2", "layer3"),
    targets: tuple[str, ...] = ("features.2", "features.11", "features.5"),
    steps: tuple[int, ...] = (0, 100, 200),
) -> pd.DataFrame:
    """A trace whose weights are all different: step / 100 + a hundredth for each pair."""
    pairs = [(source, target) for source in sources for target in targets]
    rows = [(step, *pair, step / 100 + 0.01 * i, 0.2) for step in steps for i, pair in enumerate(pairs, start=1)]
    return pd.DataFrame(rows, columns=["step", "source", "target", "weight", "weight_std"])


def make_channels(count: int, steps: tuple[int, ...] = (0, 50)) -> pd.DataFrame:
    """Uniform channel weights at the first step, growing with the channel's number at the others."""
    rows = []
    for step in steps:
        weights = np.arange(count) + 1.0 if step != steps[0] else np.ones(count)
        rows += [(step, "layer1", "features.2", c, w) for c, w in enumerate(weights / weights.sum())]
    return pd.DataFrame(rows, columns=["step", "source", "target", "channel", "weight"])


def make_results(seeds: int = 4) -> pd.DataFrame:
    """Three methods out of alphabetical order; seeds one hundredth apart."""
    means = {"scratch": 0.3, "L2T-ww": 0.5, "fine-tuning": 0.4}
    rows = [(method, seed, mean + 0.01 * seed) for method, mean in means.items() for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["method", "seed", "accuracy"])


def make_maps(seeds: int = 5) -> pd.DataFrame:
    """The last map of several runs, as `recipes.Results` has them."""
    trace = make_trace(steps=(200,))
    return pd.concat(trace.assign(method="l2t", seed=s, weight=trace["weight"] + s) for s in range(seeds))


def cells(picture: Figure) -> np.ndarray:
    """The values behind a heat-map's colours; blank cells are nan."""
    return np.ma.filled(picture.axes[0].collections[0].get_array().astype(float), np.nan)


def words(picture: Figure) -> list[str]:
    """Every text of a figure."""
    picture.canvas.draw()
    return [text.get_text() for text in picture.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]


def legend_words(picture: Figure) -> list[str]:
    """The entries of all legends of a figure."""
    legends = picture.legends + [ax.get_legend() for ax in picture.axes if ax.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]


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
    """A callback that draws a frame must not change global settings or leave figures open, whatever thread it is on."""
    before = dict(mpl.rcParams)
    picture = ALL[name]()
    assert isinstance(picture, Figure)
    assert picture.png().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == []


@pytest.mark.parametrize("name", ALL)
def test_pictures_show_themselves(name: str) -> None:
    """In a notebook, a picture is a PNG with words for the blind, and its text is the same on every machine."""
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
    """A label outside the canvas cannot be read, and torchvision's module paths are long."""
    picture = (ALL | LONG)[name]()
    picture.canvas.draw()
    drawn, canvas = picture.get_tightbbox(), picture.bbox_inches
    assert min(drawn.x0, drawn.y0, canvas.x1 - drawn.x1, canvas.y1 - drawn.y1) > -0.01  # inches
    panels = [ax.get_window_extent().width / picture.dpi for ax in picture.axes if ax.get_label() != "<colorbar>"]
    assert min(panels) > 1.5  # inches


def test_heatmap_holds_the_last_step_in_the_tables_order() -> None:
    """Layers have an order of depth that sorting by name would destroy: features.11 comes before features.5 here."""
    picture = draw.heatmap(make_trace())
    np.testing.assert_allclose(cells(picture), 2 + 0.01 * np.arange(1, 10).reshape(3, 3))
    ax = picture.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["features.2", "features.11", "features.5"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer1", "layer2", "layer3"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target layer", "source layer")
    assert ax.get_title() == "λ at step 200"
    assert {"2.01", "2.09", "mean λ (pair weight)"} <= set(words(picture))


def test_heatmap_frames_compare() -> None:
    """Frames of a slider must share their colours and their size, or a change of colour would mean nothing."""
    trace = make_trace()
    first, last = draw.heatmap(trace, 0), draw.heatmap(trace, 200)
    assert first.axes[0].collections[0].get_clim() == last.axes[0].collections[0].get_clim() == (0, pytest.approx(2.09))
    assert tuple(first.get_size_inches()) == tuple(last.get_size_inches())
    assert draw.heatmap(trace, vmax=6.0).axes[0].collections[0].get_clim() == (0, 6)


def test_heatmap_relative_sums_to_one_for_each_target() -> None:
    """Relative weights answer "where did this layer's knowledge come from": shares of one target layer's λ."""
    trace = make_trace()
    trace.loc[trace["target"] == "features.5", "weight"] = 0.0  # no knowledge at all: shares of nothing are 0, not nan
    values = cells(draw.heatmap(trace, relative=True))
    np.testing.assert_allclose(values.sum(0), [1, 1, 0])
    np.testing.assert_allclose(values[0, 0], 2.01 / (2.01 + 2.04 + 2.07))
    assert "33%" in words(draw.heatmap(trace, relative=True))


def test_heatmap_of_listed_pairs_and_several_sources() -> None:
    """A pair that was never matched is blank, not 0; one that diverged is nan; two sources stand below each other."""
    trace = make_trace(sources=("letters/layer1", "digits/layer1"), targets=("layer1", "layer2"))
    trace = trace[(trace["source"] != "digits/layer1") | (trace["target"] != "layer1")]
    trace.loc[trace.index[-1], "weight"] = np.nan
    picture = draw.heatmap(trace)
    np.testing.assert_allclose(cells(picture), [[2.01, 2.02], [np.nan, np.nan]])
    assert words(picture).count("nan") == 1
    assert "λ at step 200\nblank: not matched" in words(picture)
    assert [label.get_text() for label in picture.axes[0].get_yticklabels()] == ["letters/layer1", "digits/layer1"]


@pytest.mark.parametrize(("layers", "numbers"), [(1, True), (12, True), (13, False), (60, False)])
def test_heatmap_drops_numbers_that_nobody_could_read(layers: int, numbers: bool) -> None:
    """Two numbers a millimetre apart are noise: a large grid speaks by colour alone."""
    names = tuple(f"layer{i}" for i in range(layers))
    picture = draw.heatmap(make_trace(sources=names, targets=names, steps=(5,)))
    assert bool(picture.axes[0].texts) == numbers
    assert cells(picture).shape == (layers, layers)
    assert max(picture.get_size_inches()) <= 15


def test_heatmap_tells_slices_apart() -> None:
    """A sliced target has one λ a slice: their mean would hide what the picture is for."""
    trace = make_trace(sources=("layer1",), targets=("layer1",))
    trace = pd.concat([trace.assign(slice=1), trace.assign(slice=2, weight=trace["weight"] + 1)])
    picture = draw.heatmap(trace)
    np.testing.assert_allclose(cells(picture), [[2.01, 3.01]])
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["layer1 slice 1", "layer1 slice 2"]


def test_heatmap_without_any_weight() -> None:
    """A run whose λ all died or diverged is just when a reader looks: the picture must not fail then."""
    for weight in (0.0, np.nan):
        picture = draw.heatmap(make_trace().assign(weight=weight))
        assert picture.axes[0].collections[0].get_clim() == (0, 1)
        assert picture.png()


def test_tables_come_from_files_too(tmp_path: Path) -> None:
    """The path of a run's CSV file is enough, and layers called "0", "2" and "10" stay names in their order."""
    trace = make_trace(sources=("0",), targets=("2", "10"))
    trace.to_csv(tmp_path / "trace.csv", index=False)
    for table in (tmp_path / "trace.csv", str(tmp_path / "trace.csv"), trace.assign(source=0, target=[2, 10] * 3)):
        picture = draw.heatmap(table)
        assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["2", "10"]
        np.testing.assert_allclose(cells(picture), [[2.01, 2.02]])


def test_few_pairs_share_a_panel() -> None:
    """Lines of a few pairs are compared best side by side, with the spread over the images around them."""
    trace = make_trace(targets=("a", "b"))
    picture = draw.weights_over_time(trace)
    (ax,) = picture.axes
    assert legend_words(picture) == [f"layer{i} → {target}" for i in (1, 2, 3) for target in "ab"]
    np.testing.assert_allclose(ax.get_lines()[1].get_xydata(), [(0, 0.02), (100, 1.02), (200, 2.02)])
    band = ax.collections[1].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(2.22)
    assert band[:, 1].min() == 0  # λ is never negative, so its band is not either
    assert {"training step", "mean λ (pair weight)"} <= set(words(picture))


def test_many_pairs_get_a_panel_for_each_target() -> None:
    """Nine lines in one panel cannot be told apart."""
    picture = draw.weights_over_time(make_trace().drop(columns="weight_std"))
    assert [ax.get_title() for ax in picture.axes] == ["features.2", "features.11", "features.5"]
    assert legend_words(picture) == ["layer1", "layer2", "layer3"]
    np.testing.assert_allclose(picture.axes[1].get_lines()[2].get_ydata(), [0.08, 1.08, 2.08])
    assert not picture.axes[0].collections  # no spread in the table, no band


def test_more_lines_than_a_legend_holds() -> None:
    """A legend of sixty entries would be taller than the picture: a colour bar from first to last replaces it."""
    names = tuple(f"block{i}" for i in range(20))
    picture = draw.weights_over_time(make_trace(sources=names, targets=("a", "b", "c", "d")))
    assert legend_words(picture) == []
    assert {"block0", "block19", "source layer"} <= set(words(picture))
    assert len(picture.axes) == 5


def test_channel_weights_are_sorted_beside_uniform_and_first() -> None:
    """The question is which channels rose above 1/C, and from where."""
    picture = draw.channel_weights(make_channels(4), "layer1", "features.2")
    (ax,) = picture.axes
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], [0.4, 0.3, 0.2, 0.1])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["3", "2", "1", "0"]
    before, uniform = ax.get_lines()
    np.testing.assert_allclose(before.get_ydata(), 0.25)
    assert set(uniform.get_ydata()) == {0.25}
    assert set(legend_words(picture)) == {"step 0", "step 50", "uniform, 1/4"}
    assert ax.get_title() == "layer1 → features.2 at step 50\n4 channels, sum 1"


def test_channel_weights_of_one_step_and_the_largest_only() -> None:
    """A layer may have thousands of channels: the largest few must still be shown against 1 over all of them."""
    picture = draw.channel_weights(make_channels(200), "layer1", "features.2", step=0, top=3)
    (ax,) = picture.axes
    assert len(ax.patches) == 3
    assert set(legend_words(picture)) == {"step 0", "uniform, 1/200"}
    assert "the largest 3 of 200 channels" in ax.get_title()
    assert draw.channel_weights(make_channels(200), "layer1", "features.2").axes[0].get_xlabel().startswith("rank")


def test_accuracy_shows_every_seed_and_students_interval() -> None:
    """Few seeds need Student's t: four values a hundredth apart have a mean known to 2.05 points only."""
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


def test_accuracy_of_unequal_and_missing_seeds() -> None:
    """A method without a result keeps its place, and nobody takes one seed for five."""
    table = make_results()
    table.loc[table["method"] == "scratch", "accuracy"] = np.nan
    picture = draw.accuracy_by_method(table.iloc[:-1])
    assert picture.axes[0].get_title(loc="left") == "Accuracy by method, 0–4 seeds"
    assert "none" in words(picture)
    single = draw.accuracy_by_method(make_results(seeds=1))
    assert single.axes[0].get_title(loc="left") == "Accuracy by method, 1 seed"
    assert legend_words(single) == ["one seed"]


def test_learning_curves_draw_whatever_the_log_holds() -> None:
    """Each kind of run logs other losses; validation is measured now and then, and its dots must still join."""
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
    """A thousand noisy batches hide their course: the running mean lies over the faint raw values."""
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
        (lambda t: draw.learning_curves(t), "log: expected a loss or an accuracy, got columns step, source"),
    ],
)
def test_bad_tables_are_named(call, message: str) -> None:
    """A wrong table must say what it lacks, not fail somewhere inside a plotting library."""
    with pytest.raises(ValueError, match=message):
        call(make_trace())


def test_an_empty_file_is_named(tmp_path: Path) -> None:
    """A run that was stopped before its first row leaves an empty file."""
    (tmp_path / "trace.csv").touch()
    with pytest.raises(ValueError, match=r"trace: expected a CSV table, got an empty file, .*trace\.csv"):
        draw.heatmap(tmp_path / "trace.csv")


def test_heatmaps_of_several_runs() -> None:
    """Each run has its own map, by name, and all share one scale of colour, so that they compare."""
    picture = draw.heatmaps(make_maps())
    shown = [ax for ax in picture.axes if ax.get_visible() and ax.get_title()]
    assert [ax.get_title() for ax in shown] == [f"l2t, seed {seed}" for seed in range(5)]
    meshes = [ax.collections[0] for ax in shown]
    assert {mesh.get_clim() for mesh in meshes} == {(0, make_maps()["weight"].max())}
    for seed, mesh in enumerate(meshes):
        np.testing.assert_allclose(mesh.get_array(), cells(draw.heatmap(make_trace(steps=(200,)))) + seed)


def test_accuracy_by_seconds() -> None:
    """A method's large mark stands at the means of its runs; a run that diverged is left out."""
    table = make_results().assign(train_seconds=[1.0, 2, 3, 4, 10, 10, 10, 10, 5, 5, 5, 5])
    table.loc[3, "accuracy"] = np.nan
    picture = draw.accuracy_by_seconds(table)
    marks = {container.get_label(): container.lines[0].get_xydata()[0] for container in picture.axes[0].containers}
    np.testing.assert_allclose(marks["scratch"], (2, 31))
    np.testing.assert_allclose(marks["L2T-ww"], (10, 51.5))
    assert "(s, log scale)" in picture.axes[0].get_xlabel()


def test_comment_lines_of_a_file(tmp_path: Path) -> None:
    """Result files say in their first lines how they came about."""
    file = tmp_path / "results.csv"
    file.write_text("# python -m mtanytime run; 2 cores\n# seeds 0-3\n" + make_results().to_csv(index=False))
    assert draw.accuracy_by_method(file).alt == draw.accuracy_by_method(make_results()).alt


def test_accuracy_by_budget_shows_means_and_spread_over_seeds() -> None:
    """Hand-computed: accuracies of three seeds a hundredth apart, costs by exit, on an axis of powers."""
    picture = draw.accuracy_by_budget(tables.curve())
    ax = picture.axes[0]
    lines = {container.get_label(): container for container in ax.containers}
    assert list(lines) == legend_words(picture) == ["sliced", "msdnet"]
    np.testing.assert_allclose(
        lines["sliced"].lines[0].get_xydata(), [(1e6, 60), (4e6, 70), (9e6, 80), (16e6, 90)], rtol=1e-12
    )
    bar = lines["sliced"].lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar, [(1e6, 59), (1e6, 61)])
    assert (ax.get_xscale(), ax.get_xlabel()) == ("log", "multiply-adds (MACs), log scale")
    assert len({line.lines[0].get_marker() for line in lines.values()}) == 2  # told apart without colours
    assert "model, ± 1 standard\ndeviation of 3 runs" in words(picture)
    assert {"1 M", "10 M"} <= set(words(picture))
    latency = draw.accuracy_by_budget(tables.curve(seeds=1), "latency_ms").axes[0]
    np.testing.assert_allclose(latency.containers[1].lines[0].get_xydata()[:, 0], [3, 6, 9, 12])
    assert latency.get_xlabel() == "latency (ms), log scale"


def test_accuracy_by_budget_marks_what_is_paid_for() -> None:
    """A ring around the most expensive exit that a budget covers, none for a model that it does not cover."""
    rings = [
        line for line in draw.accuracy_by_budget(tables.curve(), budget=5e6).axes[0].get_lines() if line.get_ms() == 14
    ]
    np.testing.assert_allclose([ring.get_xydata()[0] for ring in rings], [(4e6, 70), (1.5e6, 57.5)])
    assert draw.accuracy_by_budget(tables.curve(), budget=1.2e6).alt.endswith("1.2 M MACs pays for sliced exit 1")
    assert draw.accuracy_by_budget(tables.curve(), budget=1.0).alt.endswith("1 MACs pays for no exit")


def test_accuracy_by_budget_of_one_exit() -> None:
    """One point has no range: the axis must still have a labelled tick around it."""
    picture = draw.accuracy_by_budget(tables.curve().iloc[:1])
    low, high = picture.axes[0].get_xlim()
    assert low < 1e6 < high
    assert "1 M" in words(picture)


@pytest.mark.parametrize(
    ("cost", "value", "wanted"),
    [
        ("macs", 58_312_000, "58.3 M MACs"),
        ("macs", 999_600, "1 M MACs"),
        ("macs", 7, "7 MACs"),
        ("macs", 4.1e9, "4.1 G MACs"),
        ("params", 1_234, "1.23 k parameters"),
        ("latency_ms", 0.04217, "0.0422 ms"),
        ("latency_ms", 1234.0, "1230 ms"),
    ],
)
def test_costs_are_worded(cost: str, value: float, wanted: str) -> None:
    """Three digits and a unit are what a reader can hold in mind."""
    assert format_cost(cost, value) == wanted


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda c: c, {"cost": "joules"}, "cost: expected one of macs, latency_ms, params, got 'joules'"),
        (
            lambda c: c.drop(columns="latency_ms"),
            {"cost": "latency_ms"},
            "curve: expected column latency_ms",
        ),
        (lambda c: c, {"level": "fine"}, r"level: expected a level of the curve \(none\), got 'fine'"),
        (
            lambda c: c.assign(params=-1),
            {"cost": "params"},
            "column params: expected finite numbers .*got -1",
        ),
    ],
)
def test_bad_curves_are_named(change, options: dict, message: str) -> None:
    """A curve that cannot be drawn is refused by the column or choice at fault."""
    with pytest.raises(ValueError, match=message):
        draw.accuracy_by_budget(change(tables.curve()), **options)
