"""How many examples a property test tries: few normally, many in the long mode (MTANYTIME_LONG set)."""

import os

LONG = bool(os.environ.get("MTANYTIME_LONG"))


def examples(count: int) -> int:
    """`settings(max_examples=examples(60))` tries 60 examples, or 1,000 in the long mode."""
    return max(count, 1000) if LONG else count
