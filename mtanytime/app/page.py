"""The app's page: explorers of committed results, which need no server once it is loaded, and room for a training."""

import html
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from mtanytime.explore import contents
from mtanytime.explore.export import ADDRESS_SCRIPT, PAGE_STYLE, SCRIPT, as_script
from mtanytime.explore.places import explored
from mtanytime.explore.tables import RUN_TABLES
from mtanytime.pages import HEAD, content_policy

HERE = Path(__file__).parent
TITLE = "What is transferred, and what a budget buys"
STYLE = PAGE_STYLE + (HERE / "app.css").read_text(encoding="utf-8")
APP_SCRIPT = "\n" + SCRIPT + ADDRESS_SCRIPT + (HERE / "app.js").read_text(encoding="utf-8")
POLICY = content_policy(STYLE, APP_SCRIPT) + "; connect-src 'self'"
ABOUT = {  # kind of explorer -> what to do with it
    "transfer": "A trained network taught another one. Move the slider through the training steps, choose a cell of "
    "the map for its curve and its channels, and compare two runs.",
    "budget": "Each network answers at several exits. Move the slider, or click a point of a curve: for each network, "
    "the table shows the exit that the budget buys.",
    "pictures": "The tables' numbers as pictures.",
}
SECTION = """<section>
<h2>{title}</h2>
<p class="about">{about}</p>
<div class="explorer"></div>
<script type="application/json" class="state">{state}</script>
<p class="about">{summary}.{origin}</p>
</section>
"""
END = """<section id="training">
<h2>Watch a training run</h2>
<p class="about">A sliced network with three exits, the first of them very thin, learns handwritten digits on \
cluttered backgrounds, coarse answers first. It takes about half a minute, and runs for this page alone.</p>
<p><button type="button" id="train">▶ Train a network</button></p>
<p id="message" role="status" hidden></p>
<div class="explorer"></div>
</section>
<section id="answers" hidden>
<h2>One image at a time</h2>
<p class="about">The network that you have just trained answers from thin to wide, and a deadline takes the last \
answer that has arrived. <em>Play</em> runs the milliseconds, measured on the server, in slow motion. Take an \
image whose first answer is wrong, and wait.</p>
<div class="explorer"></div>
</section>
<noscript><p class="about">This page needs JavaScript.</p></noscript>
</main>
<script type="module">{script}</script>
</body>
</html>
"""


def page_of(places: Sequence[str | PathLike[str]]) -> str:
    """Return the page with one explorer per place, in order, and a button that starts a training.

    Args:
        places: CSV files and folders of runs, see `explore.places.explored`.

    Raises:
        ValueError: a place holds nothing to explore, or an explorer cannot be made of it; names the place.
        OSError: a table cannot be read.
    """
    sections = []
    for place in places:
        content, _ = explored(place)
        state = {"content": content, "page": True} | contents.first_choices(content)
        words = {name: html.escape(content[name]) for name in ("title", "summary")}
        words["origin"] = html.escape(_origin(Path(place)))
        sections.append(SECTION.format(**words, about=ABOUT[content["kind"]], state=as_script(state)))
    head = HEAD.format(policy=POLICY, title=TITLE, style=STYLE)
    return head + "".join(sections) + END.format(script=APP_SCRIPT)


def _origin(place: Path) -> str:
    """Return where the numbers come from, as the comment line on top of a table says; else nothing."""
    path = next((table for name in RUN_TABLES.values() if (table := place / name).is_file()), place)
    if path.suffix != ".csv" or not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = lines.readline().strip()
    return f" Source: {first.lstrip('# ')}." if first.startswith("#") else ""
