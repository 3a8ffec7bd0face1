"""A Sphinx extension with what assistive technology needs and the theme leaves out."""

from typing import Any

from sphinx.application import Sphinx

PARTS = ("body", "furo_navigation_tree")  # of a page, as HTML
CHANGES = {
    'role="heading"': 'role="heading" aria-level="2"',  # captions of contents, whose role needs a level
    '<dl>\n<dd><em class="sig-param">': '<dl role="none">\n<dd><em class="sig-param">',  # no definitions: parameters
}


def on_page(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: object) -> None:
    """Complete the roles of captions, and take their role from lists that define nothing."""
    for part in PARTS:
        for given, wanted in CHANGES.items():
            if part in context:
                context[part] = context[part].replace(given, wanted)


def setup(app: Sphinx) -> dict[str, bool]:
    """Change pages after the theme has prepared them."""
    app.connect("html-page-context", on_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
