"""What is kept of an executed notebook: what a reader sees, in a small file that is the same on every machine."""

import json
from typing import Any

import nbformat
from nbformat import NotebookNode

WIDGET = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"
STILL = ("image/png", "image/jpeg", "text/html")
OF_EVERY_WIDGET = ("layout", "tabbable", "tooltip")
CHARACTERS_UP_TO = 300_000  # of an explorer's contents


def normalized(notebook: NotebookNode) -> NotebookNode:
    """Keep what a reader sees and drop what differs between machines and runs, so that diffs show only changes.

    A widget with a picture beside it keeps only the picture: its live form needs a kernel, and the state it would save
    (the bytes of every frame) shows nothing without one. If the widget is an explorer, the output's metadata keep what
    it shows and the choices made in it under "explorer", from which the site draws it live. Other widgets keep their
    state, under fixed names.
    """
    live = False
    states = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    for cell in notebook.cells:
        cell.metadata = {key: cell.metadata[key] for key in ("tags", "alt", "jupyter") if key in cell.metadata}
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if WIDGET in data and any(kind in data for kind in STILL):
                view = data.pop(WIDGET)
                if explorer := explorer_of(states.get(view["model_id"], {}).get("state", {})):
                    output.metadata["explorer"] = explorer
            live |= WIDGET in data
    widgets = notebook.metadata.get("widgets", {}) if live else {}
    notebook.metadata = NotebookNode(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        **({"widgets": widgets} if widgets else {}),
    )
    text = nbformat.writes(notebook)
    for number, name in enumerate(widgets.get(STATE, {}).get("state", ())):
        text = text.replace(name, f"{number:032x}")
    return nbformat.reads(text, as_version=4)


def explorer_of(state: dict[str, Any]) -> str:
    """Return an explorer's contents and choices as JSON, read from a widget's state; "" for other widgets.

    It is text because a notebook's file gives every number of a list a line of its own.
    """
    content = state.get("content")
    if not isinstance(content, dict) or "kind" not in content:
        return ""
    choices = {name: state[name] for name in state if not name.startswith("_") and name not in OF_EVERY_WIDGET}
    text = json.dumps(choices, ensure_ascii=False, separators=(",", ":"))
    return text if len(text) <= CHARACTERS_UP_TO else ""
