"""Damaged, foreign and hostile files for property tests of readers, and what every reader owes for each of them.

A reader of files gives a right result or one clear line of error; it executes nothing and changes nothing. To test a
new reader, draw files from `damaged` (bytes) or `altered` (a valid content with parts of another type) and read them
with `checked`.
"""

import copy
import os
import pickle
import re
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

SCALARS = [None, True, -1, 0, 3, 2**70, 0.5, float("nan"), float("inf"), "", "a", "1", "\ud800", b"\xff"]
TENSORS = [torch.zeros(2), torch.tensor(1), torch.zeros(1, dtype=torch.complex64), torch.zeros(3, device="meta")]
PLAIN = [*SCALARS, [], {}, [1], ["a"], {"a": 1}]
OTHERS = [*PLAIN, *TENSORS]


class Creates:
    """An object whose pickle creates a folder when it is loaded: the mark of executed code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@st.composite
def damaged(draw: st.DrawFn, *valid: bytes) -> bytes:
    """Random bytes or text; or a valid file with bits flipped, bytes replaced, left out, inserted, or cut off."""
    kind = draw(st.sampled_from(["bytes", "text", "flipped", "replaced", "left out", "inserted", "cut off", "doubled"]))
    if kind == "bytes":
        return draw(st.binary(max_size=200))
    if kind == "text":
        return draw(st.text(max_size=80)).encode(errors="surrogatepass")
    content = bytearray(draw(st.sampled_from(valid)))
    at, length = draw(st.integers(0, len(content) - 1)), draw(st.integers(1, 40))
    if kind == "flipped":
        for _ in range(draw(st.integers(1, 3))):
            content[draw(st.integers(0, len(content) - 1))] ^= 1 << draw(st.integers(0, 7))
    elif kind == "replaced":
        content[at : at + length] = draw(st.binary(min_size=length, max_size=length))
    elif kind == "left out":
        del content[at : at + length]
    elif kind == "inserted":
        content[at:at] = draw(st.binary(min_size=1, max_size=40))
    else:
        del content[at:]
    return bytes(content) * (2 if kind == "doubled" else 1)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all parts of nested dicts and lists, without the whole."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in items for place in ((*path, key), *places(part, (*path, key)))]


@st.composite
def altered(draw: st.DrawFn, valid: Any, others: Sequence[Any] = tuple(OTHERS)) -> Any:
    """A copy of a nested value in which a part, at any depth, is another value, missing, or there under a new name."""
    changed = copy.deepcopy(valid)
    *above, key = draw(st.sampled_from(places(valid)))
    part = changed
    for step in above:
        part = part[step]
    kind = draw(st.sampled_from(["another", "another", "missing", "renamed"]))
    if kind == "another":
        part[key] = draw(st.sampled_from(list(others)))
    else:
        value = part.pop(key)
        if kind == "renamed" and isinstance(part, dict):
            part[f"{key}?"] = value
    return changed


def checked(read: Callable[[Any], Any], path: Path, *kinds: type[Exception]) -> Any:
    """What `read(path)` returns, or None if it raises its one line of error: a ValueError, or one of other `kinds`.

    The line names the file and what was expected, and no file in its folder is changed, added or removed.
    """
    folder = path if path.is_dir() else path.parent
    before, result = contents(folder), None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*cut off", UserWarning)
            result = read(path)
    except (ValueError, *kinds) as error:
        check_message(error, re.compile(f".*{re.escape(str(folder))}"))
    assert contents(folder) == before
    return result


def check_message(error: Exception, start: re.Pattern[str] = re.compile("")) -> None:
    """The error is of this library, in one line that is not too long and says what was expected."""
    message = str(error)
    assert type(error) in (ValueError, FileNotFoundError), repr(error)
    assert start.match(message), message
    assert len(message.splitlines()) == 1, message
    assert len(message) < 4000
    assert not {"Cc", "Cs", "Zl", "Zp"}.intersection(map(unicodedata.category, message)), repr(message)
    assert ": expected " in message or "pass download" in message, message


def contents(folder: Path) -> dict[str, bytes | None]:
    """The bytes of every file in a folder and the folders below it."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def hostile(folder: Path) -> list[bytes]:
    """Pickles that execute code, alone and within a dictionary; each would create a folder `folder`."""
    values = (Creates(folder), {"data": [Creates(folder)], "labels": [0], "state_dict": Creates(folder)})
    return [pickle.dumps(value, protocol) for value in values for protocol in (0, 4)]
