"""What the code of a user's functions computes, as text that only another computation changes.

A loss or an optimizer is often a lambda or a function of a notebook, which may be rewritten under the same name. Its
text has the names, constants and operators in it, and those of the functions and methods of the user's own that it
calls. Comments, docstrings, layout and the version of Python do not change it, nor does the order of operands.
"""

import dis
import re
import sysconfig
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (bool, int, float, str)


def code_of(value: Any) -> list[str]:
    """The text of a function, or of the `forward` or `__call__` of an object, as a list; empty for installed code."""
    found: set[str] = set()
    seen: set[int] = set()
    if isinstance(value, FunctionType):
        while value is not None:  # a decorated function and what it wraps
            _collect(value, None, found, seen)
            value = getattr(value, "__wrapped__", None)
    else:
        for name in ("forward", "__call__"):
            _collect(_method(type(value), name), type(value), found, seen)
    return sorted(found)


def global_names(code: CodeType) -> set[str]:
    """The global variables that a function reads, functions inside it included."""
    return {i.argval for part in _parts(code) for i in dis.get_instructions(part) if i.opname == "LOAD_GLOBAL"}


def _collect(function: Any, owner: type | None, found: set[str], seen: set[int]) -> None:
    if not isinstance(function, FunctionType) or not _is_own(function) or id(function) in seen:
        return
    seen.add(id(function))
    documented = {function.__doc__} if function.__doc__ is not None else set()
    for part in _parts(function.__code__):
        found |= set(_words(part, documented))
        for name in part.co_names:
            _collect(_method(owner, name), owner, found, seen)
    for name in global_names(function.__code__):
        value = function.__globals__.get(name)
        if isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(isinstance(v, _PLAIN) for v in value)):
            found.add(f"{name} = {value!r}")
        _collect(value, None, found, seen)


def _parts(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of comprehensions and functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _parts(constant)


def _words(code: CodeType, documented: set[str]) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        name, value = instruction.opname, instruction.argval
        value = code.co_consts[instruction.arg] if name == "KW_NAMES" else value  # which Python 3.11 leaves unknown
        if name in ("BINARY_OP", "COMPARE_OP") and instruction.argrepr != "[]":  # as Python 3.14 writes subscripts
            yield re.sub(r"bool\((.*)\)", r"\1", instruction.argrepr)  # as Python 3.13 writes conditions
        elif name == "UNARY_NEGATIVE":
            yield "negative"
        elif instruction.opcode in dis.hasname:
            yield f"name {value}"
        elif (name == "LOAD_SMALL_INT" or instruction.opcode in dis.hasconst) and _counts(value, documented):
            yield f"constant {sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)}"


def _counts(constant: Any, documented: set[str]) -> bool:
    return constant is not None and not isinstance(constant, CodeType) and constant not in documented


def _method(owner: type | None, name: str) -> Any:
    """The function of a class and its bases with this name, or None."""
    return None if owner is None else next((vars(c)[name] for c in owner.__mro__ if name in vars(c)), None)


def _is_own(function: FunctionType) -> bool:
    """Whether a function is the user's, not one of an installed package or of this library."""
    file = function.__code__.co_filename
    library = (function.__module__ or "").partition(".")[0] == "mtanytime"
    return not (library or file.startswith((*_INSTALLED, "<frozen")) or "-packages" in file)
