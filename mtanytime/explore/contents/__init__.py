"""What explorers show, as lists and names that JSON can hold: made from tables here, drawn by the scripts in front/.

A notebook's widget and an exported page have the same contents and so show the same. Contents are bounded: of a table
that is too large for a page only a part is kept, and `note` says so.
"""

from mtanytime.explore.contents.budget import budget_choices, budget_contents
from mtanytime.explore.contents.playground import playground_contents
from mtanytime.explore.contents.transfer import transfer_choices, transfer_contents

__all__ = ["budget_choices", "budget_contents", "playground_contents", "transfer_choices", "transfer_contents"]
