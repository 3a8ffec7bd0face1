"""Read a file that torch.save wrote without executing code from it, and with its checksums compared."""

import zipfile
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mtanytime.checks import Words, mismatch


def load_file(path: str | PathLike[str], expected: str, *, old_form: bool = False, remedy: str = "") -> Any:
    """Return what torch.save wrote to a file, on the CPU.

    torch writes a checksum (CRC-32) for each part of a file and does not compare them, so they are compared here. Files
    in the form from before torch 1.6 have none.

    Args:
        path: the file.
        expected: what errors say that the file should be.
        old_form: also read the form from before torch 1.6.
        remedy: what errors say to do.

    Raises:
        ValueError: a foreign or damaged file, or one whose parts are compressed.
        FileNotFoundError, PermissionError: there is no such file, or it may not be read.
    """
    path = Path(path)
    try:
        if not old_form or _is_archive(path):
            _compare_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except Exception as error:  # torch and zipfile raise many kinds
        reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        raise mismatch(str(path), expected, Words(f"a truncated or foreign file ({reason})"), remedy) from error


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _compare_checksums(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members, size = archive.infolist(), path.stat().st_size
        if any(m.compress_type != zipfile.ZIP_STORED for m in members) or sum(m.file_size for m in members) > size:
            raise ValueError("its parts are compressed")  # torch.save compresses nothing; these may expand without end
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"the checksum of its part {damaged} is wrong: bits were changed")
