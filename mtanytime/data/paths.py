"""Many paths in little memory: two arrays instead of a Python object per path.

A worker process shares its parent's memory until one of them writes to it. Python writes to every object that it looks
at (its reference count), so a list of a million paths is copied into each worker; an array is not.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from mtanytime.checks import Words, mismatch


class Paths:
    """Paths below one folder: `paths[i]` is the i-th, as text.

    Args:
        paths: absolute paths, or relative to the current folder.
        root: a folder that all of them are in.
    """

    def __init__(self, paths: Iterable[str | Path], root: str | Path) -> None:
        self.root = os.path.abspath(root)
        start, parts, lengths = self.root.rstrip(os.sep) + os.sep, [], []
        for path in paths:
            whole = os.path.abspath(path)
            if not whole.startswith(start):
                raise mismatch("paths", f"files in {self.root}", Words(whole))
            parts.append(os.fsencode(whole[len(start) :]))
            lengths.append(len(parts[-1]))
        self._bytes = np.frombuffer(b"".join(parts), np.uint8)
        self._ends = np.cumsum(np.array(lengths, np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.name(index)))

    def name(self, index: int) -> bytes:
        """The path relative to the root, as the file system stores it."""
        start = 0 if index == 0 else self._ends[index - 1]
        return self._bytes[start : self._ends[index]].tobytes()

    def names(self, index: Int64[Tensor, " k"]) -> bytes:
        """The relative paths at some indices with `/` between folders, each ended by a zero byte."""
        return b"".join(self.name(i).replace(os.sep.encode(), b"/") + b"\0" for i in index.tolist())
