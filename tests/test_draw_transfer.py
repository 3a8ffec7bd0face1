"""Pictures of a transfer show what their tables hold: checked on the artists' data and words, never on pixels."""

import numpy as np
import pandas as pd
import pytest
from pictures import cells, legend_words, make_channels, make_maps, make_trace, words

from mtanytime.explore import draw


def test_heatmap_holds_the_last_step_in_the_tables_order() -> None:
    """Layers have an order of depth that sorting by name would destroy: features.11 comes before features.5 here."""
    picture = draw.heatmap(make_trace())
    np.testing.assert_allclose(cells(picture), 2 + 0.01 * np.arange(1, 10).reshape(3, 3))
    ax = picture.axes[0]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["features.2", "features.11", "features.5"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["layer1", "layer2", "layer3"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("target layer", "source layer")
    assert ax.get_title() == "λ at step 200"
    assert picture.alt == "Heat map of λ, 3 source × 3 target layers, at step 200"
    assert {"2.01", "2.09", "mean λ (pair weight)"} <= set(words(picture))


def test_a_heatmap_with_a_title_of_its_own() -> None:
    """A mean over seeds is of no step."""
    picture = draw.heatmap(make_trace(steps=(0,)), title="λ, mean over 8 seeds")
    assert picture.axes[0].get_title() == "λ, mean over 8 seeds"
    assert picture.alt == "Heat map of λ, mean over 8 seeds, 3 source × 3 target layers"


def test_heatmap_frames_compare() -> None:
    """Frames of a slider have the same colour scale and size; otherwise a change of colour would mean nothing."""
    trace = make_trace()
    first, last = draw.heatmap(trace, 0), draw.heatmap(trace, 200)
    assert first.axes[0].collections[0].get_clim() == last.axes[0].collections[0].get_clim() == (0, pytest.approx(2.09))
    assert tuple(first.get_size_inches()) == tuple(last.get_size_inches())
    assert draw.heatmap(trace, vmax=6.0).axes[0].collections[0].get_clim() == (0, 6)


def test_heatmap_relative_sums_to_one_for_each_target() -> None:
    """Relative weights are shares of one target layer's λ and sum to 1."""
    trace = make_trace()
    trace.loc[trace["target"] == "features.5", "weight"] = 0.0  # no knowledge at all: shares of nothing are 0, not nan
    values = cells(draw.heatmap(trace, relative=True))
    np.testing.assert_allclose(values.sum(0), [1, 1, 0])
    np.testing.assert_allclose(values[0, 0], 2.01 / (2.01 + 2.04 + 2.07))
    assert "33%" in words(draw.heatmap(trace, relative=True))


def test_heatmap_of_listed_pairs_and_several_sources() -> None:
    """A pair that was never matched is blank, not 0; one that diverged is nan; two sources are below each other."""
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
    """A large grid has no numbers, as they would be too small to read."""
    names = tuple(f"layer{i}" for i in range(layers))
    picture = draw.heatmap(make_trace(sources=names, targets=names, steps=(5,)))
    assert bool(picture.axes[0].texts) == numbers
    assert cells(picture).shape == (layers, layers)
    assert max(picture.get_size_inches()) <= 15


def test_heatmap_tells_slices_apart() -> None:
    """A sliced target has one λ per slice, and each slice is a column."""
    trace = make_trace(sources=("layer1",), targets=("layer1",))
    trace = pd.concat([trace.assign(slice=1), trace.assign(slice=2, weight=trace["weight"] + 1)])
    picture = draw.heatmap(trace)
    np.testing.assert_allclose(cells(picture), [[2.01, 3.01]])
    assert [label.get_text() for label in picture.axes[0].get_xticklabels()] == ["layer1 slice 1", "layer1 slice 2"]


def test_heatmap_without_any_weight() -> None:
    """The picture also works for a run whose λ are all zero or diverged."""
    for weight in (0.0, np.nan):
        picture = draw.heatmap(make_trace().assign(weight=weight))
        assert picture.axes[0].collections[0].get_clim() == (0, 1)
        assert picture.png()


def test_few_pairs_share_a_panel() -> None:
    """A few pairs share a panel, with the spread over the images as bands."""
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
    """Nine lines in one panel could not be told apart."""
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
    """The largest channels come first, with 1/C and the first step's weights for comparison."""
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
    """The largest few of many channels are compared with 1 over the number of all channels."""
    picture = draw.channel_weights(make_channels(200), "layer1", "features.2", step=0, top=3)
    (ax,) = picture.axes
    assert len(ax.patches) == 3
    assert set(legend_words(picture)) == {"step 0", "uniform, 1/200"}
    assert "the largest 3 of 200 channels" in ax.get_title()
    assert draw.channel_weights(make_channels(200), "layer1", "features.2").axes[0].get_xlabel().startswith("rank")


@pytest.mark.parametrize("picture", ["heatmap", "weights_over_time", "channel_weights"])
def test_tables_of_several_runs_are_refused(picture: str) -> None:
    """A mean over seeds must not look like one run."""
    table = make_channels(4) if picture == "channel_weights" else make_trace()
    both = pd.concat([table.assign(seed=seed) for seed in (0, 1)])
    pair = ("layer1", "features.2") if picture == "channel_weights" else ()
    with pytest.raises(
        ValueError, match=r"expected one row per step, .* got several for .*; give the table of one run"
    ):
        getattr(draw, picture)(both, *pair)


def test_channel_weights_tell_slices_apart() -> None:
    """Each slice is a target layer of its own, as in a map."""
    table = pd.concat([make_channels(4).assign(slice=part, weight=weight) for part, weight in ((0, 0.1), (1, 0.25))])
    (ax,) = draw.channel_weights(table, "layer1", "features.2 slice 1").axes
    assert {bar.get_height() for bar in ax.patches} == {0.25}


def test_a_pair_without_a_difference_is_blank() -> None:
    """It was not matched; "nan" would say that it diverged."""
    values = pd.DataFrame([[1.0, np.nan]], index=["a"], columns=["b", "c"])
    picture = draw.difference(values, "Change of λ at step 100", "change")
    assert [text.get_text() for text in picture.axes[0].texts] == ["+1.00"]
    assert "blank: not matched" in picture.axes[0].get_title()


def test_heatmaps_of_several_runs() -> None:
    """Each run has its own map, with its name, and all share one colour scale."""
    picture = draw.heatmaps(make_maps())
    shown = [ax for ax in picture.axes if ax.get_visible() and ax.get_title()]
    assert [ax.get_title() for ax in shown] == [f"l2t, seed {seed}" for seed in range(5)]
    meshes = [ax.collections[0] for ax in shown]
    assert {mesh.get_clim() for mesh in meshes} == {(0, make_maps()["weight"].max())}
    for seed, mesh in enumerate(meshes):
        np.testing.assert_allclose(mesh.get_array(), cells(draw.heatmap(make_trace(steps=(200,)))) + seed)
