"""Small tables for the tests of pictures, and readers of what a picture shows."""

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure


def make_trace(
    sources: tuple[str, ...] = ("layer1", "layer2", "layer3"),
    targets: tuple[str, ...] = ("features.2", "features.11", "features.5"),
    steps: tuple[int, ...] = (0, 100, 200),
) -> pd.DataFrame:
    """Return a trace whose weights are all different: step / 100 + 0.01 per pair."""
    pairs = [(source, target) for source in sources for target in targets]
    rows = [(step, *pair, step / 100 + 0.01 * i, 0.2) for step in steps for i, pair in enumerate(pairs, start=1)]
    return pd.DataFrame(rows, columns=["step", "source", "target", "weight", "weight_std"])


def make_channels(count: int, steps: tuple[int, ...] = (0, 50)) -> pd.DataFrame:
    """Return channel weights that are uniform at the first step and grow with the channel's number at the others."""
    rows = []
    for step in steps:
        weights = np.arange(count) + 1.0 if step != steps[0] else np.ones(count)
        rows += [(step, "layer1", "features.2", c, w) for c, w in enumerate(weights / weights.sum())]
    return pd.DataFrame(rows, columns=["step", "source", "target", "channel", "weight"])


def make_results(seeds: int = 4) -> pd.DataFrame:
    """Return accuracies of three methods, not in alphabetical order, with seeds 0.01 apart."""
    means = {"scratch": 0.3, "L2T-ww": 0.5, "fine-tuning": 0.4}
    rows = [(method, seed, mean + 0.01 * seed) for method, mean in means.items() for seed in range(seeds)]
    return pd.DataFrame(rows, columns=["method", "seed", "accuracy"])


def make_maps(seeds: int = 5) -> pd.DataFrame:
    """Return the last map of several runs, as in the results of a recipe."""
    trace = make_trace(steps=(200,))
    return pd.concat(trace.assign(method="l2t", seed=s, weight=trace["weight"] + s) for s in range(seeds))


def cells(picture: Figure) -> np.ndarray:
    """Return the values of a heat map; blank cells are NaN."""
    return np.ma.filled(picture.axes[0].collections[0].get_array().astype(float), np.nan)


def words(picture: Figure) -> list[str]:
    """Return every text of a figure."""
    picture.canvas.draw()
    return [text.get_text() for text in picture.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]


def legend_words(picture: Figure) -> list[str]:
    """Return the entries of all legends of a figure."""
    legends = picture.legends + [ax.get_legend() for ax in picture.axes if ax.get_legend()]
    return [text.get_text() for legend in legends for text in legend.get_texts()]
