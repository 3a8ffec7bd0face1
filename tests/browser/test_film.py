"""The README's film is made from pages in a browser: docs/film.py moves their slider and joins what is seen."""

import importlib.util
import io
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image, ImageChops

PAGE = """<!doctype html><main><div class="mtanytime"><svg width="9" height="9"></svg>
<input type="range" min="0" max="3" value="3" oninput="document.getElementById('shown').style.width=60*this.value+'px'">
<div id="shown" style="background: #0072b2; height: 60px; width: 0"></div></div>
<p class="about">a last line</p></main>"""


@pytest.fixture
def maker(root: Path) -> ModuleType:
    """docs/film.py, which is a script beside the library."""
    pytest.importorskip("playwright.sync_api", reason="playwright for Python is not installed")
    spec = importlib.util.spec_from_file_location("film", root / "docs" / "film.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_slider_is_filmed_from_its_first_stop_to_its_last(
    maker: ModuleType, tab: Callable[..., Any], tmp_path: Path
) -> None:
    """A film of pictures that are all alike, or without the last stop, would show that nothing moves."""
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    page = tab()
    page.goto((tmp_path / "page.html").as_uri())
    pictures = maker.frames(page, maker.SIZES["transfer"])
    assert [picture.size for picture in pictures] == [(maker.WIDTH, maker.HEIGHT)] * 4  # one per stop
    assert page.locator("input").input_value() == "3"
    assert not page.locator(".about").is_visible()  # it does not fit into the film
    assert all(ImageChops.difference(one, other).getbbox() for one, other in pairwise(pictures))
    with Image.open(io.BytesIO(maker.film([pictures, pictures[::-1]]))) as film:
        assert film.format == "GIF"
        assert film.info["loop"] == 0  # again and again
        assert film.n_frames >= 7  # the scenes' pictures that meet are alike, and may be one
