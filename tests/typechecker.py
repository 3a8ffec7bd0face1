"""The run-time type check of every signature in tests, with an int welcome where a float is asked for (PEP 484)."""

import inspect
from collections.abc import Callable

from beartype import BeartypeConf, beartype

numbers_as_usual = beartype(conf=BeartypeConf(is_pep484_tower=True))


def unchecked(function: Callable) -> Callable:
    """The function as users have it, without the check: to see our own refusal of a value of the wrong type."""
    return inspect.unwrap(function)
