"""The run-time type check of every signature in tests; an int is accepted for a float (PEP 484)."""

import inspect
from collections.abc import Callable

from beartype import BeartypeConf, beartype

numbers_as_usual = beartype(conf=BeartypeConf(is_pep484_tower=True))


def unchecked(function: Callable) -> Callable:
    """The function without the type check, to test the library's own error for a value of the wrong type."""
    return inspect.unwrap(function)
