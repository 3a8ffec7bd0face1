"""Decoded images in one file of fixed-size records, which several processes read and write at once.

A record is the pixels of one image and a checksum of them. It is valid if the checksum is right, so a record that was
never written, or not to its end, counts as absent, and no locks are needed: whoever decodes an image writes the same
bytes. Records are read one by one (pread); the pages of a memory map would count as the process's own memory.
"""

import os
import shutil
import zlib
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mtanytime.checks import Words, mismatch

MAGIC = b"mtanytime decoded images 1\n"
HEADER = 4096  # bytes before the first record
_MARK = b"img1"  # before a record's checksum


class RecordFile:
    """A file of decoded images. Other processes that get a copy of this object open it themselves.

    Args:
        path: the file; it and its folder are created.
        content: what the images are made from; a file that was made from anything else is refused.
        count: how many images there can be.
        size: height and width of the images.

    Raises:
        ValueError: a file of other images or no such file, or a disk without space for all images.
        OSError: the file is not there and cannot be created.
    """

    def __init__(self, path: str | Path, content: str, count: int, size: int) -> None:
        self.path, self.size, self._bytes = str(path), size, 3 * size * size
        self._header = (MAGIC + content.encode() + b"\n").ljust(HEADER, b"\0")
        self._descriptor: int | None = None
        self._writable, self._lock = True, Lock()
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        status = os.fstat(self._open())
        kept = getattr(status, "st_blocks", 0) * 512 or status.st_size  # a record that is absent takes no space
        needed, free = self._offset(count) - kept, shutil.disk_usage(Path(self.path).parent).free
        if self._writable and needed > free:
            raise mismatch("cache", f"{needed / 1e9:.1f} GB of free space for {self.path}", Words(f"{free / 1e9:.1f}"))

    def read(self, index: int, pixels: UInt8[np.ndarray, "3 size size"]) -> bool:
        """Copy an image to `pixels` and return True; return False if the file does not hold it yet."""
        data = self._read(self._bytes + 8, self._offset(index))
        image, end = data[: self._bytes], data[self._bytes :]
        if end != _MARK + zlib.crc32(image).to_bytes(4, "little"):
            return False
        pixels[:] = np.frombuffer(image, np.uint8).reshape(pixels.shape)
        return True

    def write(self, index: int, pixels: UInt8[np.ndarray, "3 size size"]) -> None:
        """Store an image, if the file can be written; on a full disk, storing stops without an error."""
        if not self._writable:
            return
        image = pixels.tobytes()
        try:
            self._write(image + _MARK + zlib.crc32(image).to_bytes(4, "little"), self._offset(index))
        except OSError:
            self._writable = False

    def _offset(self, index: int) -> int:
        return HEADER + index * (self._bytes + 8)

    def _open(self) -> int:
        if self._descriptor is not None:
            return self._descriptor
        kind = getattr(os, "O_BINARY", 0)
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | kind, 0o666)
        except OSError:
            if not os.path.exists(self.path):
                raise
            self._descriptor, self._writable = os.open(self.path, os.O_RDONLY | kind), False
        header = self._read(HEADER, 0)
        if header != self._header and self._writable and self._header.startswith(header):
            self._write(self._header, 0)  # a new file, or one whose writer was interrupted
        elif header != self._header:
            raise mismatch("cache", "decoded images of these files", Words(f"{self.path}, others"), "delete that file")
        return self._descriptor

    def _read(self, count: int, offset: int) -> bytes:
        descriptor = self._open()
        if hasattr(os, "pread"):
            return os.pread(descriptor, count, offset)
        with self._lock:  # Windows
            os.lseek(descriptor, offset, os.SEEK_SET)
            return os.read(descriptor, count)

    def _write(self, data: bytes, offset: int) -> None:
        descriptor = self._open()
        if hasattr(os, "pwrite"):
            os.pwrite(descriptor, data, offset)
            return
        with self._lock:  # Windows
            os.lseek(descriptor, offset, os.SEEK_SET)
            os.write(descriptor, data)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_descriptor": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=Lock())

    def __del__(self) -> None:
        if vars(self).get("_descriptor") is not None:
            os.close(self._descriptor)
