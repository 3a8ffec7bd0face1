"""Archives that a user downloaded: damaged and hostile ones, full and read-only disks."""

import errno
import os
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from made_archives import pack

import mtanytime.data.archives as archives
from mtanytime.data.archives import Archive, folders_of, unpack

FILES = {"set/a.txt": b"a" * 3000, "set/deep/b.txt": os.urandom(70_000), "set/c.txt": b""}
SUFFIXES = ["zip", "tar", "tgz", "tar.gz"]


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder, by their paths."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_unpacked_once(suffix: str, tmp_path: Path) -> None:
    """All files, with the usual permissions; the second call uses what is there."""
    file = tmp_path / f"set.{suffix}"
    pack(file, FILES)
    parts = [Archive(file.name, ("a.txt", "deep"), "set")]
    (folder,) = folders_of(file, parts)
    assert contents(tmp_path / "set") == FILES
    assert folder == tmp_path / "set" / "set"
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "set").stat().st_mode == (tmp_path / "usual").stat().st_mode
    file.write_bytes(b"no longer an archive")
    assert folders_of(file, parts) == folders_of(tmp_path, parts) == folders_of(tmp_path / "set", parts) == [folder]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["set", "usual", file.name])


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9])
def test_half_an_archive(suffix: str, share: float, tmp_path: Path) -> None:
    """A download that broke off is an error in one line, and nothing of it stays."""
    file = tmp_path / f"set.{suffix}"
    pack(file, FILES)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=rf"set.{suffix}: expected a complete archive, got a damaged one \(.*again$"):
        unpack(file, tmp_path / "set")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("suffix", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", bytes(10_000)])
def test_no_archive(suffix: str, content: bytes, tmp_path: Path) -> None:
    """An error page that was saved under the archive's name; what reads as an empty archive lacks the set's files."""
    file = tmp_path / f"set.{suffix}"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r": expected (a complete archive|a folder with a.txt)"):
        folders_of(file, [Archive(file.name, ("a.txt",))])


HOSTILE = [
    "../outside.txt",
    "/tmp/mtanytime-outside.txt",
    "set/../../outside.txt",
    "C:\\outside.txt",
    "..\\outside.txt",
]


@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_outside(suffix: str, name: str, tmp_path: Path) -> None:
    """A member's name may lead to any file of the user's."""
    file = tmp_path / "in" / f"set.{suffix}"
    file.parent.mkdir()
    pack(file, {"set/a.txt": b"a", name: b"b"})
    with pytest.raises(ValueError, match=r"got a damaged one \(its part .*outside.txt would be outside the folder\)"):
        unpack(file, file.parent / "set")
    assert list(tmp_path.rglob("*")) == [file.parent, file]
    assert not Path("/tmp/mtanytime-outside.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(kind: bytes, tmp_path: Path) -> None:
    """A link's target may be any file, which the next member of that name would overwrite."""
    file = tmp_path / "set.tar"
    with tarfile.open(file, "w") as archive:
        member = tarfile.TarInfo("set/x")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(ValueError, match=r"its part set/x is a link or a device"):
        unpack(file, tmp_path / "set")


def test_a_link_in_a_zip_file(tmp_path: Path) -> None:
    """A zip file marks links in the attributes of Unix."""
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        member = zipfile.ZipInfo("set/x")
        member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(ValueError, match=r"its part set/x is a link or a device"):
        unpack(tmp_path / "set.zip", tmp_path / "set")


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little space is noticed before; a disk that becomes full meanwhile leaves no half of a set."""
    file = tmp_path / "set.tgz"
    pack(file, FILES)
    written = []

    def write(out: Any, data: bytes) -> None:
        written.append(data)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        out.write(data)

    monkeypatch.setattr(archives, "_write", write)
    with pytest.raises(OSError, match=r"expected space to unpack set.tgz, got a full disk; pass unpack_to=") as caught:
        unpack(file, tmp_path / "set")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("Usage", (), {"free": 10_000}))
    with pytest.raises(ValueError, match=r"expected 0.00 GB of free space to unpack set.tgz, got 0.00 GB; pass unpack"):
        unpack(file, tmp_path / "set")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.skipif(os.name == "nt", reason="permissions of Unix")
def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shared folder of downloads: the remedy is named, and works."""
    file = tmp_path / "set.tar"
    pack(file, FILES)

    def refuse(dir: Path, prefix: str) -> str:  # root may write anywhere, so permissions alone would test nothing
        raise PermissionError(errno.EACCES, "Permission denied", str(dir))

    parts = [Archive(file.name, ("a.txt",), "set")]
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkdtemp", refuse)
        with pytest.raises(ValueError, match=r"a folder that can be written.*Permission denied; pass unpack_to=FOLDER"):
            folders_of(file, parts)
    assert folders_of(file, parts, tmp_path / "new" / "place") == [tmp_path / "new" / "place" / "set" / "set"]
    assert folders_of(tmp_path, parts, tmp_path / "new" / "place") == [tmp_path / "new" / "place" / "set" / "set"]


def test_two_at_once(tmp_path: Path) -> None:
    """Two runs that start together unpack into folders of their own, and the first one's is used by both."""
    pack(tmp_path / "set.tar", FILES)
    errors = []

    def run() -> None:
        try:
            unpack(tmp_path / "set.tar", tmp_path / "set")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert contents(tmp_path / "set") == FILES
    assert len(list(tmp_path.iterdir())) == 2


def test_the_size_of_a_large_gzip_file(tmp_path: Path) -> None:
    """gzip keeps the size modulo 4 GiB; images barely compress, so the size of the file tells the rest."""
    file = tmp_path / "set.tgz"
    with file.open("wb") as out:
        out.write(b"\x1f\x8b")
        out.seek(5 * 10**9 - 4)
        out.write((5_100_000_000 % 2**32).to_bytes(4, "little"))
    assert archives._unpacked_size(file) == 5_100_000_000
