"""What the explorers share: a front end that draws their contents, a static form without one, and export as a page."""

from os import PathLike
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mtanytime.explore import draw, export, tables


class Explorer(anywidget.AnyWidget):
    """A widget that the scripts in front/ draw from `content`; a move of its slider needs no answer from the kernel.

    A subclass holds the reader's choices as traits, named in `CHOICES`; they follow the front end, and the front end
    follows them.
    """

    _esm, _css = export.SCRIPT, export.STYLE
    CHOICES: tuple[str, ...] = ()

    content = traitlets.Dict().tag(sync=True)

    def picture(self) -> draw.Picture:
        """The present choices as a static picture."""
        raise NotImplementedError

    def save_html(self, path: str | PathLike[str], force: bool = False) -> Path:
        """Write the explorer, with the present choices, as one HTML file that needs no kernel and no network.

        Args:
            path: the file, which is written whole or not at all.
            force: replace a file that is there already.

        Raises:
            ValueError: the file is there already, or the page would be larger than 3 MB.
        """
        choices = {name: getattr(self, name) for name in self.CHOICES}
        return export.save(path, self.content, choices, self.picture().alt, force=force)

    def close(self) -> None:
        """Take the explorer off the screen and let go of all it holds; it cannot be shown again."""
        self.unobserve_all()
        layout = self.layout
        super().close()
        if layout is not None:  # ipywidgets keeps it otherwise
            layout.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.content.get('summary', 'not made yet')}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data, about = self.picture()._repr_mimebundle_()
        live, _ = super()._repr_mimebundle_() or ({}, {})
        return {**live, **data, "text/plain": repr(self)}, about


def one_of(what: str, wanted: list[Any], came: Any) -> None:
    """ValueError if a choice is not offered."""
    if came not in wanted:
        raise ValueError(f"wanted {what} of {tables.some(list(map(repr, wanted)))}; got {came!r}")
