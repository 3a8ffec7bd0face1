"""What all explorers share: a front end that draws their contents, a static form without one, export as a page."""

from os import PathLike
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mtanytime._moved import find
from mtanytime.checks import require
from mtanytime.explore import draw, export, tables


class Explorer(anywidget.AnyWidget):
    """A widget that the scripts in front/ draw from `content`; moving its slider needs no answer from the kernel.

    A subclass holds the reader's choices as traits, named in `CHOICES`; traits and front end follow each other.
    """

    _esm, _css = export.SCRIPT, export.STYLE
    CHOICES: tuple[str, ...] = ()

    content = traitlets.Dict().tag(sync=True)

    def picture(self) -> draw.Picture:
        """Draw the present choices as a static picture."""
        raise NotImplementedError

    def save_html(self, path: str | PathLike[str], force: bool = False) -> Path:
        """Write the explorer, with the present choices, as one HTML file that needs no kernel and no network.

        Args:
            path: the file; it is written completely or not at all.
            force: replace an existing file.

        Raises:
            ValueError: the file exists, or the page would be larger than 3 MB.
        """
        choices = {name: getattr(self, name) for name in self.CHOICES}
        return export.save(path, self.content, choices, self.picture().alt, force=force)

    def close(self) -> None:
        """Remove the explorer from the screen and release its memory; it cannot be shown again."""
        self.unobserve_all()
        layout = self.layout
        super().close()
        if layout is not None:  # ipywidgets would keep it
            layout.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}: {self.content.get('summary', 'not made yet')}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data, metadata = self.picture()._repr_mimebundle_()
        live, _ = super()._repr_mimebundle_() or ({}, {})
        return {**live, **data, "text/plain": repr(self)}, metadata


def require_choice(argument: str, offered: list[Any], value: Any) -> None:
    """Raise ValueError unless a value is one of the choices that an explorer offers."""
    require(value in offered, argument, f"one of {tables.first_few(list(map(repr, offered)))}", value)


def __getattr__(name: str) -> object:
    """Look up a name that was here before version 0.2."""
    return find("explore.widget", name)
