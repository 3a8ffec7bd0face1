"""Archives that the user downloaded: find them or what was unpacked from them, check them, unpack them once."""

import errno
import hashlib
import math
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

from tqdm import tqdm

from mtanytime.checks import Words, mismatch, require
from mtanytime.console import printable
from mtanytime.data.files import SECONDS_BEFORE_BAR

_CHUNK = 2**20  # bytes read at once
SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")


@dataclass(frozen=True)
class Archive:
    """A file that a data set is published as.

    Args:
        name: the file's name.
        holds: files and folders in it that a reader needs.
        inside: the folder in the archive that they are in, if they are in one.
        md5: the published archive's checksum.
    """

    name: str
    holds: tuple[str, ...]
    inside: str = ""
    md5: str | None = None


def folders_of(path: str | Path, archives: Sequence[Archive], unpack_to: str | Path | None = None) -> list[Path]:
    """Return, for each archive of a data set, the folder with what it holds; an archive is unpacked if need be.

    Args:
        path: an archive, or a folder with the archives or with what was unpacked from them.
        archives: the set's archives. The first one may have any name if `path` is the file.
        unpack_to: where to unpack; default: beside the archive.

    Raises:
        ValueError: the path or an archive is missing, damaged, holds no or other files, links, or names outside its
            folder; the folder to unpack to cannot be written or has too little space.
        OSError: the disk became full meanwhile; nothing of the archive is left.
    """
    path = Path(path).expanduser()
    names = " and ".join(archive.name for archive in archives)
    require(path.exists(), str(path), f"{names}, or the folder they are in", Words("nothing there"))
    folder = path if path.is_dir() else path.parent
    renamed = path.is_file() and path.name not in [archive.name for archive in archives]
    files = [folder / archive.name for archive in archives]
    files[0] = path if renamed else files[0]
    return [_folder_of(archive, file, folder, unpack_to) for archive, file in zip(archives, files, strict=True)]


def _folder_of(archive: Archive, file: Path, folder: Path, unpack_to: str | Path | None) -> Path:
    target = (file.parent if unpack_to is None else Path(unpack_to).expanduser()) / _stem(file.name)
    inside = [target / archive.inside, target]
    places = list(dict.fromkeys([*inside, folder, folder / archive.inside]))
    for place in places:
        if all((place / name).exists() for name in archive.holds):
            return place
    if file.is_file():
        if not target.exists():
            unpack(file, target, archive.md5)
        places = inside
    place = max(places, key=lambda place: sum((place / name).exists() for name in archive.holds))
    missing = [name for name in archive.holds if not (place / name).exists()]
    if not missing:
        return place
    remedy = f"or delete {target}, to unpack {file.name} again" if file.is_file() else f"or put {archive.name} there"
    expected = f"a folder with {', '.join(archive.holds)}"
    raise mismatch(str(place), expected, Words(f"one without {', '.join(missing)}"), f"complete it, {remedy}")


def unpack(archive: str | Path, target: str | Path, md5: str | None = None) -> None:
    """Unpack a .zip, .tar, .tgz or .tar.gz file into a new folder, with a progress bar.

    Only folders and plain files are made. The folder appears when all is there; if the process is killed, a hidden
    folder stays beside it.

    Args:
        archive: the file.
        target: the folder; if another process has made it meanwhile, that one stays.
        md5: the checksum that the file must have.

    Raises:
        ValueError, OSError: as `folders_of`.
    """
    archive, target = Path(archive), Path(target)
    if md5 is not None:
        _check_md5(archive, md5)
    needed = _unpacked_size(archive)
    remedy = "pass unpack_to=FOLDER"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    except OSError as error:
        expected = f"a folder that can be written, to unpack {archive.name}"
        raise mismatch(str(target.parent), expected, Words(error.strerror), remedy) from error
    try:
        free = shutil.disk_usage(place).free
        expected = f"{needed / 1e9:.2f} GB of free space to unpack {archive.name}"
        require(needed <= free, str(target.parent), expected, Words(f"{free / 1e9:.2f} GB"), remedy)
        (place / "whole").mkdir()  # with the usual permissions, which a temporary folder has not
        _extract(archive, place / "whole", needed)
        try:
            (place / "whole").rename(target)
        except OSError:
            if not target.is_dir():
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = f"{target.parent}: expected space to unpack {archive.name}, got a full disk; {remedy}"
            raise OSError(error.errno, text) from error
        raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _extract(archive: Path, folder: Path, total: int) -> None:
    title = printable(f"unpacking {archive.name}")
    bar = tqdm(desc=title, total=total, unit="B", unit_scale=True, file=sys.stdout, delay=SECONDS_BEFORE_BAR)
    with bar, _named(archive):
        for name, size, source in _members(archive):
            parts = _safe_parts(name)
            if source is None:
                folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)
                continue
            file = folder.joinpath(*parts)
            file.parent.mkdir(parents=True, exist_ok=True)
            with source, file.open("wb") as out:
                left = size
                while left and (data := source.read(min(left, _CHUNK))):
                    _write(out, data)
                    left -= len(data)
            if left:
                raise ValueError(f"its part {name} ends too early")
            bar.update(size)


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)


def _members(archive: Path) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Name, size and content of each file in an archive; folders have no content."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                kind = member.external_attr >> 28
                if kind not in (0, 0o4, 0o10):  # of Unix: a folder, a file
                    raise ValueError(f"its part {member.filename} is a link or a device")
                yield member.filename, member.file_size, None if member.is_dir() else file.open(member)
        return
    with tarfile.open(archive) as file:
        for member in file:
            if not (member.isdir() or member.isreg()):
                raise ValueError(f"its part {member.name} is a link or a device")
            yield member.name, member.size, None if member.isdir() else file.extractfile(member)


def _safe_parts(name: str) -> tuple[str, ...]:
    """The folders and the file of a member's name; ValueError for a name that leads outside."""
    parts = PurePosixPath(name).parts
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in (*parts, *windows.parts):
        raise ValueError(f"its part {name} would be outside the folder")
    return parts


def _unpacked_size(archive: Path) -> int:
    """About how many bytes an archive unpacks to."""
    size = archive.stat().st_size
    with _named(archive):
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                return sum(member.file_size for member in file.infolist())
        with archive.open("rb") as file:
            if file.read(2) == b"\x1f\x8b" and size > 18:  # gzip ends with the size modulo 2³²
                file.seek(-4, os.SEEK_END)
                rest = int.from_bytes(file.read(4), "little")
                return rest + max(0, math.ceil((0.99 * size - rest) / 2**32)) * 2**32
    return size


def _check_md5(file: Path, md5: str) -> None:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    expected = f"the published archive, whose MD5 checksum is {md5}"
    require(found == md5, str(file), expected, Words(found), "download it again, or pass the folder if you unpacked it")


def _stem(name: str) -> str:
    lower = name.lower()
    return next((name[: -len(suffix)] for suffix in SUFFIXES if lower.endswith(suffix)), f"{name} unpacked")


@contextmanager
def _named(archive: Path) -> Iterator[None]:
    """Name the archive in the error for a damaged or hostile one."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:  # of the disk, not of a reader
            raise
        raise _damaged(archive, error) from error
    except Exception as error:  # tarfile, zipfile and the decompressors raise many kinds
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> ValueError:
    reason: Any = str(error).partition("\n")[0] or type(error).__name__
    return mismatch(str(archive), "a complete archive", Words(f"a damaged one ({reason})"), "download it again")
