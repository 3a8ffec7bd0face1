"""Errors for bad input in one wording: `<argument>: expected <what>, got <value>[; <what to do>]`."""


class Words(str):
    """Text that an error shows as it is, without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def mismatch(argument: str, expected: str, got: object, remedy: str = "") -> ValueError:
    """A `ValueError` that names the argument, what was expected and what was given.

    Args:
        argument: the argument, file, layer or column at fault.
        expected: what would have been accepted.
        got: the value, shown by `repr`; `Words` for a description of it.
        remedy: what to do about it.
    """
    return ValueError(f"{argument}: expected {expected}, got {got!r}" + (f"; {remedy}" if remedy else ""))


def require(holds: bool, argument: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise `mismatch` unless the condition holds."""
    if not holds:
        raise mismatch(argument, expected, got, remedy)
