"""Files are written completely or not at all."""

import errno
import os
from pathlib import Path

import pytest

from mtanytime.whole_files import whole_file, write_whole


def test_text_and_bytes(tmp_path: Path) -> None:
    """Text is UTF-8 with its line ends as they are; a file of that name is replaced, and nothing else is left."""
    file = tmp_path / "file"
    write_whole(file, "λ\n\r\n")
    assert file.read_bytes() == b"\xce\xbb\n\r\n"
    write_whole(file, b"\xff")
    assert file.read_bytes() == b"\xff"
    assert list(tmp_path.iterdir()) == [file]


def test_what_was_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an interrupt nor a full disk changes it, and the disk's error names the file."""
    file = tmp_path / "file"
    write_whole(file, "before")

    def interrupted() -> None:
        with whole_file(file) as begun:
            begun.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"could not write it \(No space left on device\).*file"):
        write_whole(file, "after")
    assert file.read_text() == "before"
    assert list(tmp_path.iterdir()) == [file]
