"""Settings of the site: which extensions, which theme, what may be shown. docs/build.py gathers its pages."""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature
from traitlets import MetaHasTraits

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for the site's own extensions

import mtanytime

project = "mtanytime"
author = "the mtanytime authors"
release = mtanytime.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
extensions += ["chapters", "mathml", "accessible"]
exclude_patterns = ["parts"]

# Notebooks were executed before; their stored outputs are shown as they are.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"

# Single backticks in docstrings are names where there is one, and code otherwise.
default_role = "py:obj"
python_display_short_literal_types = True
python_maximum_signature_line_length = 88
add_module_names = False
autodoc_member_order = "groupwise"
autodoc_class_signature = "mixed"
autodoc_default_options = {"members": True}
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "mtanytime"
html_static_path = ["static"]
templates_path = ["templates"]
html_css_files = ["site.css"]
html_js_files = [(name, {"defer": "defer"}) for name in ("frames.js", "scrolling.js")]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # pages opened from files cannot fetch each other
html_permalinks_icon = "#"
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"
copybutton_selector = "div.highlight pre"
copybutton_prompt_text, copybutton_prompt_is_regexp = r">>> |\.\.\. ", True  # examples are copied without them


def readable(app: Sphinx, kind: str, name: str, *rest: Any) -> tuple[str, str | None] | None:
    """Show a widget's own constructor, and a function that is a default by its name.

    Widgets have a __new__ that takes anything; "<function f>" and "<factory>" would keep a signature in one line.
    """
    thing, _, signature, returned = rest
    if kind == "class" and isinstance(thing, MetaHasTraits):
        parameters = list(inspect.signature(thing.__init__).parameters.values())[1:]
        signature = stringify_signature(inspect.Signature(parameters), unqualified_typehints=True)
    if not signature:
        return None
    return re.sub(r"<function (\w+)>", r"\1", signature).replace("<factory>", "..."), returned


def setup(app: Sphinx) -> None:
    """Change signatures in the reference."""
    app.connect("autodoc-process-signature", readable)
