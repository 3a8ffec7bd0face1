"""Write an explorer as one HTML file, which needs no kernel and no network."""

import html
import json
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from mtanytime._moved import find
from mtanytime.checks import Words, require
from mtanytime.explore import contents
from mtanytime.explore.places import explored
from mtanytime.pages import HEAD, content_policy
from mtanytime.whole_files import write_whole

BYTES_UP_TO = 3_000_000
FRONT = Path(__file__).with_name("front")
SCRIPTS = ("common", "download", "transfer_numbers", "transfer_map", "transfer_detail", "channel_view", "transfer")
SCRIPTS += ("budget", "playground", "live", "pictures", "render")  # joined in this order
ADDRESS_SCRIPTS = ("choices", "fragment")  # of pages, which keep choices in their address
PAGE_SCRIPTS = ("page", "frame")  # of exported pages alone


def _joined(names: Sequence[str]) -> str:
    return "\n".join((FRONT / f"{name}.js").read_text(encoding="utf-8") for name in names)


SCRIPT = _joined(SCRIPTS)
ADDRESS_SCRIPT = _joined(ADDRESS_SCRIPTS)
STYLE = (FRONT / "explorer.css").read_text(encoding="utf-8")

PAGE_STYLE = (
    """
:root { color-scheme: light dark; scrollbar-gutter: stable; } /* pictures are as wide as the page: it keeps its width */
/* JupyterLab's names, which the explorers' style reads */
body { --jp-content-font-color1: light-dark(CanvasText, #e8e8e8); --jp-layout-color0: light-dark(Canvas, #16181c);
margin: 1rem 1.5rem 2rem; background: var(--jp-layout-color0); color: var(--jp-content-font-color1); }
h1 { font: 600 1.3rem/1.3 system-ui, "Liberation Sans", "DejaVu Sans", sans-serif; margin: 0 0 .6rem; }
p.about { font: .9rem system-ui, "Liberation Sans", "DejaVu Sans", sans-serif; }
@media (max-width: 600px) { body { margin: .8rem .8rem 2rem; } }
.framed body { margin: .5rem; }
.fitted { overflow-y: hidden; scrollbar-gutter: auto; }
.framed h1, .framed p.about { display: none; }
@media (forced-colors: active) { body { --jp-content-font-color1: CanvasText; --jp-layout-color0: Canvas; } }
"""
    + STYLE
)
PAGE_SCRIPT = "\n" + SCRIPT + ADDRESS_SCRIPT + _joined(PAGE_SCRIPTS)
POLICY = content_policy(PAGE_STYLE, PAGE_SCRIPT)
PAGE = (
    HEAD
    + """<div id="explorer"><noscript><p class="about">{alt}. Moving through it needs JavaScript.</p></noscript></div>
<p class="about">{summary}. Made by mtanytime; the tables are in this file, and nothing is loaded.</p>
</main>
<script type="application/json" id="state">{state}</script>
<script type="module">{script}</script>
</body>
</html>
"""
)


def save(
    path: str | PathLike[str], content: dict[str, Any], choices: dict[str, Any], alt: str, force: bool = False
) -> Path:
    """Write an explorer's contents as a page, completely or not at all.

    Args:
        path: the file.
        content: what the explorer shows, such as `contents.transfer_contents` returns.
        choices: the explorer's traits at first.
        alt: the picture in words, for a reader without JavaScript.
        force: replace an existing file.

    Raises:
        ValueError: the file exists, or the page would be larger than 3 MB.
        OSError: the page cannot be written.
    """
    path = _free(path, force)
    state = as_script({"content": content, "page": True, **choices})
    page = PAGE.format(
        policy=POLICY,
        title=html.escape(content["title"]),
        summary=html.escape(content["summary"]),
        alt=html.escape(alt),
        style=PAGE_STYLE,
        script=PAGE_SCRIPT,
        state=state,
    )
    data = page.encode(errors="replace")
    size = Words(f"{len(data) / 1e6:.1f} MB")
    require(len(data) <= BYTES_UP_TO, "page", "at most 3 MB", size, "give fewer images or rows")
    write_whole(path, data)
    return path


def as_script(state: dict[str, Any]) -> str:
    """Return an explorer's state as JSON that can stand in a page's script element.

    Only "<" could end the element or begin another one; lone surrogates have no bytes in UTF-8.
    """
    text = json.dumps(state, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return re.sub("[<\u2028\u2029\ud800-\udfff]", lambda letter: f"\\u{ord(letter[0]):04x}", text)


def export_csv(
    places: str | PathLike[str] | Sequence[str | PathLike[str]], path: str | PathLike[str], force: bool = False
) -> str:
    """Write tables or runs as one page, and return one line about what was written.

    Args:
        places: a CSV file (trace, curve, log, results, maps, channel weights or R², told by its columns), a run's
            folder, an experiment's folder, or several of one kind; see `places.explored`.
        path: the page.
        force: replace an existing page.

    Raises:
        ValueError: as `places.explored`; or the page exists already.
        OSError: a table cannot be read, or the page cannot be written.
    """
    path = _free(path, force)
    content, alt = explored(*([places] if isinstance(places, (str, PathLike)) else places))
    save(path, content, contents.first_choices(content), alt, force)
    return f"{path}: {content['summary']}" + f". {content['note']}" * bool(content["note"])


def _free(path: str | PathLike[str], force: bool) -> Path:
    """Return the path if a page may be written there."""
    path = Path(path)
    remedy = "delete it, name another file, or replace it with force=True (--force)"
    require(force or not path.exists(), "path", "a new file", Words(f"{path}, which exists"), remedy)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent}")
    return path


def __getattr__(name: str) -> object:
    """Look up a name that has left this module."""
    return find("explore.export", name)
