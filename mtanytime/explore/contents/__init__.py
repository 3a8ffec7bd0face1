"""What explorers show, as lists and names that JSON can hold: made from tables here, drawn by the scripts in front/.

A notebook's widget and an exported page have the same contents and so show the same. Contents are bounded: of a table
that is too large for a page only a part is kept, and `note` says so.
"""

from typing import Any

from mtanytime._moved import find
from mtanytime.explore.contents.budget import budget_choices, budget_contents
from mtanytime.explore.contents.common import Contents
from mtanytime.explore.contents.playground import playground_contents
from mtanytime.explore.contents.transfer import transfer_choices, transfer_contents

__all__ = ["Contents", "budget_contents", "first_choices", "playground_contents", "transfer_contents"]


def first_choices(content: Contents) -> dict[str, Any]:
    """Return what a transfer or budget explorer shows first, as its traits; a page of pictures has none."""
    if content["kind"] == "pictures":
        return {}
    return transfer_choices(content) if content["kind"] == "transfer" else budget_choices(content)


def __getattr__(name: str) -> object:
    """Look up a name that was here before version 0.2."""
    return find("explore.contents", name)
