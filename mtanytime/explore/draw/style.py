"""What all pictures share: the figure, colours, axes and legends."""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

NUMBERS_UP_TO = 12  # layers a side; beyond, numbers in the cells would be too small to read


LETTER = 0.075  # inches that a letter of 9 points takes


NAMES_UP_TO = 40  # along an axis; beyond, every second or third is written, for writing takes most of the time


LETTERS_UP_TO = 60  # of a name in a picture


LINES_UP_TO = 8  # lines in one panel before they are spread over one panel for each target layer


MAPS_A_ROW = 4


LEGEND_UP_TO = 16  # entries of a legend before a colour bar takes its place


NOISY_FROM = 200  # values in a curve before its running mean is drawn over it


BATCH_ACCURACY = "accuracy of the training batch"


MARKERS = "osD^vPX*<>"


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


def coloured_grid(ax: Axes, values: pd.DataFrame, vmax: float, **look: Any) -> None:
    """A grid of colours from 0 to vmax, every row and column named while there is room."""
    # seaborn would draw the figure to see whether names fit, which takes a while and warns where they do not
    sns.heatmap(values, ax=ax, vmin=0, vmax=vmax, cmap="viridis", xticklabels=False, yticklabels=False, **look)
    for names, set_ticks in ((values.index, ax.set_yticks), (values.columns, ax.set_xticks)):
        every = -(-len(names) // NAMES_UP_TO)
        set_ticks(np.arange(0, len(names), every) + 0.5, [shortened(name) for name in names[::every]])


def shortened(name: str) -> str:
    """A name with its middle left out, if it would leave no room for the picture."""
    return name if len(name) <= LETTERS_UP_TO else f"{name[: LETTERS_UP_TO // 2]}…{name[1 - LETTERS_UP_TO // 2 :]}"


def distinct_colours(names: Sequence[str]) -> dict[str, Any]:
    """A colour for each name: distinct ones while they last (Okabe and Ito's), then from dark to bright in order."""
    if len(names) <= 8:
        okabe_ito = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
        return dict(zip(names, okabe_ito, strict=False))
    return dict(zip(names, colormaps["viridis"](np.linspace(0, 0.93, len(names))), strict=True))


def marker_for(line: pd.DataFrame) -> str | None:
    """Dots where there are few points: a line through one would be invisible."""
    return "." if len(line) <= 12 else None


def step_axis(ax: Axes) -> None:
    """Whole numbers on the step axis, a light grid."""
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)


def legend_outside(picture: Picture, panels: list[Axes], colours: dict[str, Any], title: str) -> None:
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
