"""The style of all pictures: the figure, colours, axes and legends."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from unicodedata import bidirectional, category

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import to_hex
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager, get_font
from matplotlib.text import Text
from matplotlib.ticker import (
    Formatter,
    LogFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    ScalarFormatter,
    StrMethodFormatter,
)

NUMBERS_UP_TO = 12  # layers per side of a map with numbers; in a larger map they could not be read
LETTER = 0.075  # width of a letter of 9 points, in inches
NAMES_UP_TO = 40  # per axis; with more, only every second or third is written, as writing takes most of the time
LETTERS_UP_TO = 60  # per name in a picture
LINES_UP_TO = 8  # per panel; with more, every target layer gets a panel
MAPS_A_ROW = 4
LEGEND_UP_TO = 16  # entries of a legend; with more, a colour bar replaces it
NOISY_FROM = 200  # values of a curve; with more, its running mean is drawn over it
BATCH_ACCURACY = "accuracy of the training batch"
MARKERS = "osD^vPX*<>"
DIVERGING_MAP = "RdBu_r"  # of differences: blue below 0, red above
COLOUR_MAP = "viridis"  # of heat maps, and of lines too many for distinct colours
BRIGHTEST_LINE = 0.93  # of the colour map; brighter lines would not stand out from white
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
TURNS_TEXT = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")  # classes of marks
LEAST_RATIO = 2.6  # of the ends of a logarithmic axis, so that 1, 2 or 5 times a power of ten lies between them


class Picture(Figure):
    """A figure that a notebook shows by itself; `alt` says in words what it shows, for readers who cannot see it."""

    def __init__(self, alt: str, width: float, height: float):
        super().__init__(figsize=(width, height), layout="constrained")
        self.alt = "".join(map(_visible, alt))
        FigureCanvasAgg(self)  # without it seaborn would make a figure of pyplot

    def draw(self, renderer: Any) -> None:
        """Draw the figure with every text as it stands: no formulas between dollars, and no letters the font lacks."""
        formatted = set()  # the numbers of an axis: a formatter may write them as formulas, such as 10⁻³
        for axis in (axis for ax in self.axes for axis in (ax.xaxis, ax.yaxis)):
            if isinstance(axis.get_major_formatter(), (ScalarFormatter, LogFormatter)):
                formatted.update(axis.findobj(Text))
                formatted.discard(axis.label)
        for text in set(self.findobj(Text)) - formatted:
            text.set(parse_math=False, usetex=False, text=_drawable(text))
        super().draw(renderer)

    def png(self, dpi: float = 144) -> bytes:
        """Return the picture as a PNG file; its size depends on the layers and methods of the table, not on values."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=dpi, pil_kwargs={"compress_level": 6})
        return file.getvalue()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, str], dict[str, Any]]:
        width, height = (round(96 * inches) for inches in self.get_size_inches())
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt}
        return data, {"image/png": {"alt": self.alt, "width": width, "height": height}}


def coloured_grid(ax: Axes, values: pd.DataFrame, vmax: float, diverging: bool = False, **look: Any) -> None:
    """Draw a grid of colours from 0 (or −vmax) to vmax, with the names of rows and columns for which there is room."""
    look |= {"vmin": -vmax, "cmap": DIVERGING_MAP} if diverging else {"vmin": 0, "cmap": COLOUR_MAP}
    # seaborn's own tick labels would draw the figure to see whether they fit: slow, with warnings where they do not
    sns.heatmap(values, ax=ax, vmax=vmax, xticklabels=False, yticklabels=False, **look)
    for names, set_ticks in ((values.index, ax.set_yticks), (values.columns, ax.set_xticks)):
        every = -(-len(names) // NAMES_UP_TO)
        set_ticks(np.arange(0, len(names), every) + 0.5, [shortened(name) for name in names[::every]])


def shortened(name: str) -> str:
    """Return a name in one line, without its middle if it would leave no room for the picture.

    Line breaks, control characters and marks that would turn the text beside them are shown by their codes.
    """
    name = "".join(map(_visible, name))
    return name if len(name) <= LETTERS_UP_TO else f"{name[: LETTERS_UP_TO // 2]}…{name[1 - LETTERS_UP_TO // 2 :]}"


def _visible(letter: str) -> str:
    hidden = category(letter) in ("Cc", "Cs", "Zl", "Zp") or bidirectional(letter) in TURNS_TEXT
    return letter.encode("unicode_escape").decode() if hidden else letter


def _drawable(text: Text) -> str:
    """Return a text with the codes of letters that its fonts lack, such as emoji: they would be empty boxes."""
    words = text.get_text()
    if words.isascii():
        return words
    properties = text.get_fontproperties()
    fonts = []
    for family in properties.get_family():
        properties = properties.copy()
        properties.set_family(family)
        with suppress(ValueError):  # a family that is not installed
            fonts.append(get_font(fontManager.findfont(properties, fallback_to_default=False)))
    drawable = {
        letter for letter in words if letter.isspace() or any(font.get_char_index(ord(letter)) for font in fonts)
    }
    return "".join(letter if letter in drawable else letter.encode("unicode_escape").decode() for letter in words)


def add_legend(place: Figure | Axes, handles: Mapping[str, Artist | Container], **look: Any) -> None:
    """Add a legend with a name per handle, as it stands: matplotlib would leave out names that begin with "_"."""
    legend = place.legend(list(handles.values()), ["name"] * len(handles), **look)
    for text, name in zip(legend.get_texts(), handles, strict=True):
        text.set_text(shortened(name))


def distinct_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour per name: Okabe and Ito's for up to eight names, else from dark to bright in order."""
    distinct = len(names) <= len(OKABE_ITO)
    colours = OKABE_ITO if distinct else colormaps[COLOUR_MAP](np.linspace(0, BRIGHTEST_LINE, len(names)))
    return {name: to_hex(colour) for name, colour in zip(names, colours, strict=False)}


def distinct_looks(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return a colour and a marker per name, as keyword arguments of matplotlib."""
    markers = dict(zip(names, MARKERS * len(names), strict=False))
    return {name: {"color": colour, "marker": markers[name]} for name, colour in distinct_colours(names).items()}


def scale_colours(count: int) -> list[str]:
    """Return the colours of a heat map's scale, from 0 to the largest value."""
    return [to_hex(colour) for colour in colormaps[COLOUR_MAP](np.linspace(0, 1, count))]


def diverging_colours(count: int) -> list[str]:
    """Return the colours of a difference's scale, from the most negative to the most positive."""
    return [to_hex(colour) for colour in colormaps[DIVERGING_MAP](np.linspace(0, 1, count))]


def colour_bar_of(vmax: float) -> ScalarMappable:
    """Return a colour scale from 0 to vmax, for the colour bar of several heat maps."""
    scale = ScalarMappable(cmap=COLOUR_MAP)
    scale.set_clim(0, vmax)
    return scale


def marker_for(line: pd.DataFrame) -> str | None:
    """Return a dot where a line has few points: a line through one point would be invisible."""
    return "." if len(line) <= 12 else None


def step_axis(ax: Axes) -> None:
    """Give a panel whole numbers on the step axis and a light grid."""
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))
    ax.grid(alpha=0.3)


def log_axis(ax: Axes, formatter: Formatter | None = None) -> None:
    """Give a panel a logarithmic x-axis with labels at 1, 2 and 5 times powers of ten, and a light grid."""
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}") if formatter is None else formatter)
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(alpha=0.3)


def legend_outside(picture: Picture, panels: list[Axes], colours: dict[str, str], title: str) -> None:
    """Name the lines outside the panels: in a legend, or by a colour bar if they are too many for one."""
    if len(colours) <= LEGEND_UP_TO:
        lines = {line.get_label(): line for ax in panels for line in ax.get_lines()}
        ordered = {name: lines[name] for name in colours if name in lines}
        add_legend(picture, ordered, title=title, loc="outside right upper", frameon=False, fontsize=9)
    else:
        bar = picture.colorbar(ScalarMappable(cmap=COLOUR_MAP), ax=panels, label=title, aspect=40)
        names = list(colours)
        bar.set_ticks([0, BRIGHTEST_LINE], labels=[shortened(names[0]), shortened(names[-1])])
        bar.ax.set_ylim(0, BRIGHTEST_LINE)
