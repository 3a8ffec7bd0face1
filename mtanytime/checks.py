"""Errors for bad input in one wording: `<argument>: expected <what>, got <value>[; <what to do>]`."""

import re

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]+[ ]*")  # line breaks of every kind, escapes of a terminal
_LETTERS_UP_TO = 1200


class Words(str):
    """Text that an error shows as it is, without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def one_line(text: str, most: int = _LETTERS_UP_TO) -> str:
    """The text in one line that any console can print, without the middle of a long text.

    A space stands for line breaks and control characters, and "?" for a lone surrogate (a name that is not UTF-8).
    """
    text = _CONTROL.sub(" ", text).encode(errors="replace").decode()
    return text if len(text) <= most else f"{text[: most // 2]} … {text[-most // 2 :]}"


def mismatch(argument: str, expected: str, got: object, remedy: str = "") -> ValueError:
    """A `ValueError`, in one line, that names the argument, what was expected and what was given.

    Args:
        argument: the argument, file, layer or column at fault.
        expected: what would have been accepted.
        got: the value, shown by `repr`; `Words` for a description of it.
        remedy: what to do about it.
    """
    parts = one_line(argument), one_line(expected), one_line(repr(got))
    return ValueError("{}: expected {}, got {}".format(*parts) + (f"; {remedy}" if remedy else ""))


def require(holds: bool, argument: str, expected: str, got: object, remedy: str = "") -> None:
    """Raise `mismatch` unless the condition holds."""
    if not holds:
        raise mismatch(argument, expected, got, remedy)
