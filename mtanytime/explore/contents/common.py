"""Names that the contents of all explorers share."""

from typing import Any

Contents = dict[str, Any]  # that JSON can hold

ALL = ""  # the choice of all networks, slices or levels
NONE = ""  # no run to compare with
NO_CHANNEL = -1
