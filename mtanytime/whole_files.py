"""Write a file completely or not at all, so that a killed process or a full disk leaves no damaged one."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the path's name when the block ends; if it fails, the one before it is kept."""
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, contents: str | bytes) -> None:
    """Write text, in UTF-8, or bytes. Raises OSError, which names the file, if it cannot be written."""
    try:
        with whole_file(path) as file:
            file.write(contents if isinstance(contents, bytes) else contents.encode())
    except OSError as error:
        raise OSError(error.errno, f"could not write it ({os.strerror(error.errno or 0)})", str(path)) from error


def temporary_name(path: Path) -> Path:
    """The name of a file that is not complete yet."""
    return path.with_name(f"{path.name}.tmp")
